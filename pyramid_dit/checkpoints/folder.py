"""Reading a checkpoint folder: what is in it, and whether all of it is there.

Nothing here reads a weight; a folder that lacks something is refused before any is moved.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..flow.latents import LatentStatistics
from ..json_files import read_json
from ..models.text_encoder import TextPart
from .architectures import (
    Architecture,
    architecture_of_config,
    architecture_of_encoders,
)
from .defaults import GenerationDefaults, stated
from .settings import STEPPING, Settings, stepping
from .sizes import check_sizes, stored_dtypes

if TYPE_CHECKING:
    from torch import nn

VARIANT_PREFIX = "diffusion_transformer_"
DEFAULT_VARIANT = f"{VARIANT_PREFIX}768p"
VAE_FOLDER = "causal_video_vae"
INDEX_NAME = "model_index.json"
VARIANTS = "variants"
"""Entry of `model_index.json`: by the name of a transformer's folder, entries that hold for it in
place of those around, and `vae`, the folder of the VAE that goes with it."""
FAST_SUFFIX = "_fast"
"""Ends the name of a distilled transformer's folder, after that of the one it learned from."""

PIPELINE_CLASS = "PyramidFlowPipeline"
"""Class that `model_index.json` names in the layout of diffusers' `save_pretrained`."""
PIPELINE_TRANSFORMER, PIPELINE_VAE = "transformer", "vae"

_DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")

_HALF_PRECISIONS = {"BF16": "bf16", "F16": "fp16"}


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint folder that was looked into, in the released layout or in diffusers' own."""

    path: Path
    variant: str
    """Name of the folder of the transformer."""
    architecture: Architecture
    model_dtype: str | None
    """What `model_index.json` says, else the half precision that the weights are stored in."""
    settings: Settings
    vae_folder: str = VAE_FOLDER
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the scheduler, as far as the folder tells: one in the released layout has at
    most those of `settings.STEPPING`, in `model_index.json`, which goes before a saved config."""
    absent: frozenset[str] = frozenset()
    """Components that were saved as None."""
    file_variant: str | None = None
    """Part of the names of files of weights that `save_pretrained(variant=...)` wrote."""
    use_safetensors: bool | None = None
    """True takes weights in safetensors only, False pickled ones only."""

    @property
    def which_files(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that say which of the files of weights are read."""
        return {"variant": self.file_variant, "use_safetensors": self.use_safetensors}

    @property
    def transformer_title(self) -> str:
        """Which transformer it is; empty for a saved pipeline, which does not say."""
        known = self.variant != PIPELINE_TRANSFORMER
        return f"{self.architecture.name} {self.variant}" if known else ""

    @classmethod
    def open(
        cls, path: str | PathLike[str], variant: str | None = None, *, fast: bool = False
    ) -> CheckpointFolder:
        """Look into the folder at `path`.

        Args:
            path: Folder in the released layout, with or without a `model_index.json`, or one that
                `PyramidFlowPipeline.save_pretrained` wrote.
            variant: Name of the transformer's folder, `diffusion_transformer_768p` or in short
                `768p`. By default that of `model_index.json`, else `768p`, else the only one.
                A saved pipeline has but one, `transformer`; of it this may also be the variant
                that it was saved with, such as `fp16`, which is found without being named.
            fast: Take the transformer that was distilled from this one.

        Raises:
            FileNotFoundError: There is no such folder, or no such variant in it.
            ValueError: The variant is ambiguous, or a file cannot be understood.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"no checkpoint folder at {folder}")
        index = read_json(folder / INDEX_NAME) if (folder / INDEX_NAME).exists() else {}
        saved = index.get("_class_name") == PIPELINE_CLASS
        file_variant = _file_variant(folder / PIPELINE_TRANSFORMER) if saved else None
        if saved and variant in (None, PIPELINE_TRANSFORMER, file_variant):
            chosen = PIPELINE_TRANSFORMER
        else:
            named = index.get("model_variant")
            if named is not None and not isinstance(named, str):
                raise ValueError(f"model_variant in {folder / INDEX_NAME} is {named!r}, not a name")
            chosen = _choose_variant(folder, variant or named)
        if fast and not chosen.endswith(FAST_SUFFIX):
            chosen = _choose_variant(folder, chosen + FAST_SUFFIX)
        of_variant = _entries_of(index, chosen, folder / INDEX_NAME)
        index = index | of_variant
        absent = frozenset(k for k, v in index.items() if v == [None, None])
        config_path = folder / chosen / "config.json"
        config = {} if chosen in absent else read_json(config_path)
        if config:
            architecture = architecture_of_config(config, config_path)
        else:
            encoders = {k: v[-1] for k, v in index.items() if k.startswith("text_encoder") and v}
            present = {name: kind for name, kind in encoders.items() if name not in absent}
            architecture = architecture_of_encoders(present)
        vae_folder = PIPELINE_VAE if saved else of_variant.get("vae", VAE_FOLDER)
        vae_path = folder / vae_folder / "config.json"
        said = index if saved else {**index, "generation_defaults": stated(index, chosen)}
        settings = Settings.of(
            (said, folder / INDEX_NAME),
            (read_json(vae_path) if vae_path.exists() else {}, vae_path),
            (config, config_path),
        )
        scheduler_path = folder / "scheduler" / "scheduler_config.json"
        scheduler = read_json(scheduler_path) if saved else {}
        stepping(scheduler, scheduler_path)
        scheduler |= stepping(index, folder / INDEX_NAME)
        return cls(
            path=folder,
            variant=chosen,
            architecture=architecture,
            model_dtype=index.get("model_dtype") or _stored_half_precision(folder / chosen),
            settings=settings,
            vae_folder=vae_folder,
            scheduler_config={k: v for k, v in scheduler.items() if not k.startswith("_")},
            absent=absent,
            file_variant=file_variant,
        )

    @property
    def statistics(self) -> LatentStatistics:
        """Normalization of the VAE's latents."""
        return self.settings.latent_statistics or self.architecture.released_statistics

    @property
    def defaults(self) -> GenerationDefaults:
        """What to do where a caller does not say."""
        return self.settings.generation_defaults

    @property
    def stepping(self) -> dict[str, str]:
        """How sampling steps: what is said of the fields in `settings.STEPPING`."""
        return {name: said for name, said in self.scheduler_config.items() if name in STEPPING}

    def check_files(
        self, text_parts: Sequence[TextPart], *, vae: bool, transformer: bool = True
    ) -> None:
        """Look for every file of the transformer, of the VAE and of the text encoders.

        What configs and headers of weights say has to fit; no weight is read.

        Args:
            text_parts: Encoders that will be loaded, each with its tokenizer.
            vae: Whether the VAE will be.
            transformer: Whether the transformer will be.

        Raises:
            FileNotFoundError: A folder or a file is missing.
            ValueError: A file of weights is truncated or of other sizes than its config, or a JSON
                file cannot be read.
        """
        models = {self.variant: transformer, self.vae_folder: vae}
        names = [name for name, wanted in models.items() if wanted]
        names += [name for part in text_parts for name in (part.encoder, part.tokenizer)]
        for name in names:
            self.check_part(name)

    def check_part(self, name: str) -> list[Path]:
        """Look for the files in one folder, as `check_files` does in all.

        Args:
            name: Of the folder: of the transformer, of the VAE, of a text encoder or a tokenizer.

        Returns:
            The files of weights, none of a tokenizer.

        Raises:
            FileNotFoundError: As of `check_files`.
            ValueError: As of `check_files`.
        """
        from video_vae import CausalVideoVAE  # only now: it brings models

        parts = self.architecture.text_encoder.parts()
        if name in {part.tokenizer for part in parts}:
            _check_tokenizer(self.path / name)
            return []
        kind: type[nn.Module]
        weights: Sequence[str] = _DIFFUSERS_WEIGHTS
        if name == self.variant:
            kind = self.architecture.transformer
        elif name == self.vae_folder:
            kind = CausalVideoVAE
        else:
            kind = next(part.model_class for part in parts if part.encoder == name)
            weights = _TRANSFORMERS_WEIGHTS
        if self.use_safetensors is not None:
            safe = [name for name in weights if name.endswith(".safetensors")]
            weights = safe if self.use_safetensors else [n for n in weights if n not in safe]
        files = _find_weights(self.path / name, weights, self.file_variant)
        check_sizes(self.path / name, files, kind)
        return files


def full_variant_name(variant: str) -> str:
    """`768p` or `diffusion_transformer_768p` as the latter."""
    return variant if variant.startswith(VARIANT_PREFIX) else VARIANT_PREFIX + variant


def variants_of(folder: Path) -> list[str]:
    """Names of the folders of transformers in a checkpoint of the released layout."""
    return sorted(path.name for path in folder.glob(f"{VARIANT_PREFIX}*") if path.is_dir())


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is the folder of a checkpoint, complete or not."""
    return path.is_dir() and bool(variants_of(path) or (path / INDEX_NAME).exists())


def _entries_of(index: Mapping[str, Any], variant: str, source: Path) -> dict[str, Any]:
    """What `index`, read from `source`, says of a variant alone."""
    every = index.get(VARIANTS, {})
    entries = every.get(variant, {}) if isinstance(every, Mapping) else None
    if not isinstance(entries, Mapping):
        raise ValueError(f"{VARIANTS} in {source} must have an object for each variant")
    vae = entries.get("vae", VAE_FOLDER)
    if not isinstance(vae, str) or vae != Path(vae).name:
        raise ValueError(f"vae of {variant} in {source} is {vae!r}, not the name of a folder")
    return dict(entries)


def _choose_variant(folder: Path, wanted: str | None) -> str:
    there = variants_of(folder)
    if wanted is not None:
        name = full_variant_name(wanted)
        if name not in there:
            if name.endswith(FAST_SUFFIX):
                raise FileNotFoundError(
                    f"{folder} has no fast variant of {name.removesuffix(FAST_SUFFIX)}: none was "
                    f"distilled from it (docs/distill.md)"
                )
            found = f"it has {', '.join(there)}" if there else f"it has no {VARIANT_PREFIX}*"
            raise FileNotFoundError(f"{folder} has no variant {name}; {found}")
        return name
    if DEFAULT_VARIANT in there:
        return DEFAULT_VARIANT
    if not there:
        raise FileNotFoundError(f"{folder} is not a checkpoint folder: it has no {VARIANT_PREFIX}*")
    originals = [name for name in there if not name.endswith(FAST_SUFFIX)] or there
    if len(originals) > 1:
        raise ValueError(f"{folder} has several variants, choose one of {', '.join(there)}")
    return originals[0]


def _file_variant(folder: Path) -> str | None:
    """The `fp16` of `diffusion_pytorch_model.fp16.safetensors`, if there is no plain file."""
    names = [path.name for path in folder.glob("diffusion_pytorch_model*")]
    if any(re.fullmatch(r"diffusion_pytorch_model(-\d.*)?\.(safetensors|bin)", n) for n in names):
        return None
    found = (re.match(r"diffusion_pytorch_model\.(?!safetensors|bin)(\w+)[.-]", n) for n in names)
    return next((match[1] for match in found if match), None)


def _find_weights(folder: Path, weight_names: Sequence[str], kind: str | None) -> list[Path]:
    """All files of weights in `folder`, of the variant `kind`, beside a config."""
    if not folder.is_dir():
        raise FileNotFoundError(f"missing folder {folder}")
    read_json(folder / "config.json")
    if kind is not None:
        weight_names = [
            f"{stem}.{kind}.{end}" for stem, end in (n.split(".") for n in weight_names)
        ]
    for name in weight_names:
        plain = name.replace(f".{kind}.", ".")
        index = folder / f"{plain}.index.{f'{kind}.' if kind else ''}json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            return [_whole(folder / shard) for shard in shards]
        if (folder / name).is_file():
            return [_whole(folder / name)]
    raise FileNotFoundError(f"{folder} has no weights: no {' and no '.join(weight_names)}")


def _whole(path: Path) -> Path:
    """`path`, if the whole of the file is there."""
    if not path.is_file():
        raise FileNotFoundError(f"missing file {path}")
    pickled = path.suffix != ".safetensors"
    if not (_is_complete_pickle(path) if pickled else stored_dtypes(path) is not None):
        raise ValueError(f"{path} is truncated or damaged, download it again")
    return path


def _stored_half_precision(folder: Path) -> str | None:
    """`bf16` or `fp16` where all weights in `folder` are stored so, else None."""
    dtypes = set[str]().union(*(stored_dtypes(f) or () for f in folder.glob("*.safetensors")))
    return _HALF_PRECISIONS.get(dtypes.pop()) if len(dtypes) == 1 else None


def _is_complete_pickle(path: Path) -> bool:
    """Whether the zip archive that `torch.save` writes has its end, where its directory is."""
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    # before PyTorch 1.6 it was a bare pickle, which only reading can check
    return zipfile.is_zipfile(path) if is_archive else path.stat().st_size > 0


def _check_tokenizer(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"missing folder {folder}")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise FileNotFoundError(f"{folder} has no vocabulary: none of {', '.join(_VOCABULARIES)}")
    for path in sorted(folder.glob("*.json")):
        read_json(path)
