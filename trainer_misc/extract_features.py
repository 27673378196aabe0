"""Latents of videos and features of texts, made once for many trainings.

    python -m trainer_misc.extract_features --what latents --model_path M --anno_file clips.jsonl
    python -m trainer_misc.extract_features --what text --model_path M --anno_file clips.jsonl

Each line of the annotations says where its result goes, `latent` or `text_fea`. The flags are those
of the reference's `tools/extract_video_vae_latents.py` and `tools/extract_text_features.py`. What
is there already and whole is left as it is, so that a run which was ended at any moment goes on.
By torchrun several processes share the lines.
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from pyramid_dit import FluxTextEncoderWithMask, SD3TextEncoderWithMask
from pyramid_dit.checkpoints.folder import VAE_FOLDER
from pyramid_dit.checkpoints.weights import resolve_dtype, vae_dtype
from pyramid_dit.checks import FRAMES, SIDE
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.devices.offload import chosen_device
from pyramid_dit.distributed.launcher import launched_process
from pyramid_dit.files import replacing
from pyramid_dit.flow.sizes import TEMPORAL_FACTOR, temp_of
from pyramid_dit.generation.latent_codec import encode_clip
from pyramid_dit.models.text_encoder import TextEncoderWithMask
from video_vae import CausalVideoVAE

from .common_options import POSITIVE, SHARE
from .data.annotations import Annotations
from .data.folders import Record
from .data.latents import STORED, read_text_features
from .data.skipped import SampleError, Skip, Skipped, Tally
from .data.tensor_files import read_tensor
from .data.videos import clip_pixels, read_clip
from .options import Flag, parse
from .runs import log_to_people, run_or_say

logger = logging.getLogger(__name__)

EMPTY_TEXT = "empty_text_feature.pt"
WINDOWS = {False: 16, True: 8}
"""Frames that are encoded at a time, without and with `--save_memory`."""
GROUPS: dict[str, list[Flag]] = {
    "what is made": [
        Flag(
            "what",
            "latents",
            "latents of videos, or features of texts",
            choices=("latents", "text"),
        ),
        Flag("model_path", None, "folder of the checkpoint, or of its VAE for latents", kind=Path),
        Flag(
            "model_name",
            "pyramid_flux",
            "whose text encoders",
            choices=("pyramid_flux", "pyramid_mmdit"),
        ),
        Flag(
            "model_dtype",
            "bf16",
            "what the models compute in, and the results are in",
            choices=("bf16", "fp16", "fp32"),
        ),
        Flag("width", 640, "of the clips in pixels", check=SIDE),
        Flag("height", 384, "of the clips in pixels", check=SIDE),
        Flag("num_frames", 121, "most frames of a clip, 8n+1", check=FRAMES),
        Flag(
            "empty_text_feature",
            None,
            f"file for the features of the empty prompt; by default {EMPTY_TEXT} beside anno_file",
            kind=Path,
        ),
    ],
    "how": [
        Flag("anno_file", None, "annotations, JSON lines", kind=Path),
        Flag("batch_size", 4, "samples at a time", check=POSITIVE),
        Flag("save_memory", False, "encode fewer frames at a time"),
        Flag("max_skipped", 0.05, "largest share of samples that may be unreadable", check=SHARE),
        Flag("seed", 0, "of the draws from the VAE's posterior"),
        Flag("device", "auto", "cpu, or auto: the accelerator", choices=("auto", "cpu", "cuda")),
    ],
}


class Extraction(ABC):
    """Makes a file for each line of the annotations, of which this process has every n-th.

    Args:
        options: As `parse` gives them.
        device: Where the model computes.

    Attributes:
        annotations: All lines.
        done: Files that were there and whole.
        made: Files that were written.

    Raises:
        FileNotFoundError: The annotations or the model are missing.
        ValueError: A setting does not fit.
    """

    key: str
    """The entry of an annotation that names the file."""
    needed: tuple[str, ...]
    """The entries that each must have."""

    def __init__(self, options: Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        launched = launched_process()
        self.rank, self.world = (0, 1) if launched is None else (launched.rank, launched.processes)
        self.annotations = Annotations.read(options.anno_file)
        self.done = self.made = 0

    def run(self) -> None:
        """Make what is not there yet.

        Raises:
            ValueError: Too many lines cannot be used.
            OSError: A file cannot be written.
        """
        lines = range(self.rank, len(self.annotations), self.world)
        folder = self.options.anno_file.parent
        skipped = Skipped(len(self.annotations), self.options.max_skipped, folder, self.world)
        size = self.options.batch_size
        bar = tqdm(total=len(lines), disable=self.rank > 0, desc=self.options.what, mininterval=5)
        with bar, ThreadPoolExecutor(size) as pool:
            for start in range(0, len(lines), size):
                batch = lines[start : start + size]
                found = list(pool.map(self._wanted, batch))
                skips = [entry for entry in found if isinstance(entry, Skip)]
                wanted = {i: e for i, e in zip(batch, found, strict=True) if isinstance(e, dict)}
                samples: dict[int, Any] = {}
                for read, unreadable in pool.map(self._read, self._together(wanted)):
                    samples |= read
                    skips += unreadable
                skipped.count(Tally(len(batch), skips))
                for index, tensors in self._make(samples).items():
                    write_tensors(self._target(index), tensors)
                    self.made += 1
                self.done += sum(entry is None for entry in found)
                bar.update(len(batch))
        logger.info("%d made, %d already there", self.made, self.done)
        skipped.say()

    def _target(self, index: int) -> Path:
        return self.annotations.find(self.annotations[index][self.key])

    def _wanted(self, index: int) -> Record | Skip | None:
        """The annotation, None if its file is there already, or why it cannot be used."""
        try:
            record = self.annotations.checked(index, self.needed)
            return None if self._is_whole(self._target(index), record) else record
        except SampleError as error:
            return self._skip(index, error)

    def _skip(self, index: int, error: SampleError) -> Skip:
        return Skip(index, self.annotations.called(index, self.key), error.kind, str(error))

    def _together(self, records: Mapping[int, Record]) -> list[dict[int, Record]]:
        """The annotations in groups of what is read together."""
        groups: dict[Hashable, dict[int, Record]] = {}
        for index, record in records.items():
            groups.setdefault(self._source(index, record), {})[index] = record
        return list(groups.values())

    def _source(self, index: int, record: Record) -> Hashable:
        """What the annotations have in common that are read together; by default each is alone."""
        return index

    def _read(self, records: Mapping[int, Record]) -> tuple[dict[int, Any], list[Skip]]:
        """What is to be encoded of annotations with one source, and which cannot be used."""
        samples, skips = {}, []
        for index, record in records.items():
            try:
                samples[index] = self._sample(record)
            except SampleError as error:
                skips.append(self._skip(index, error))
        return samples, skips

    @abstractmethod
    def _is_whole(self, path: Path, record: Record) -> bool:
        """Whether the file is there and holds what it should."""

    @abstractmethod
    def _sample(self, record: Record) -> Any:
        """What is to be encoded. Raises SampleError."""

    @abstractmethod
    def _make(self, samples: Mapping[int, Any]) -> dict[int, dict[str, Tensor]]:
        """Results of samples, by the number of their line."""


class LatentExtraction(Extraction):
    """Latents `[1, c, t, h/8, w/8]` of videos, draws from the posterior, not normalized.

    A clip is the beginning of the video at 24 frames a second, or the `frames` that the annotation
    names, scaled to cover width and height and cropped in the middle; of a shorter video as many
    frames as make whole latents.
    """

    key, needed = "latent", ("video", "latent")

    def __init__(self, options: Namespace, device: torch.device) -> None:
        super().__init__(options, device)
        for name in ("width", "height"):
            if getattr(options, name) % 8:
                raise ValueError(f"--{name} must be a multiple of 8, got {getattr(options, name)}")
        folder = options.model_path
        if not (folder / "config.json").is_file():
            folder = folder / VAE_FOLDER
        if not folder.is_dir():
            raise FileNotFoundError(f"no VAE at {options.model_path}, nor in {VAE_FOLDER} there")
        dtype = vae_dtype(resolve_dtype(options.model_dtype))
        self.vae = CausalVideoVAE.from_pretrained(folder, torch_dtype=dtype)
        self.vae.to(device).eval().requires_grad_(False)

    def _is_whole(self, path: Path, record: Record) -> bool:
        options = self.options
        try:
            latents = read_tensor(path, "latent")
        except SampleError:
            return False
        size = (options.height // self.vae.spatial_factor, options.width // self.vae.spatial_factor)
        return (
            tuple(latents.shape[-2:]) == size
            and bool(latents.isfinite().all())
            and self._is_as_long(latents.shape[-3], record)
        )

    def _is_as_long(self, length: int, record: Record) -> bool:
        """Whether so many latent frames are all that there can be of a video.

        Fewer than asked for are so of a short video, but may come from a run for shorter clips.
        """
        most = temp_of(self.options.num_frames)
        if length >= most:
            return length == most
        try:
            return length == 1 + (len(self._frames(record)) - 1) // TEMPORAL_FACTOR
        except SampleError:  # the video may be gone since
            return True

    def _frames(self, record: Record, most: int | None = None) -> np.ndarray:
        """At most so many frames, by default `--num_frames`."""
        options, path = self.options, self.annotations.find(record["video"])
        size = (options.width, options.height)
        return read_clip(path, most or options.num_frames, size=size, indices=record.get("frames"))

    def _source(self, index: int, record: Record) -> Hashable:
        return index if record.get("frames") is None else record["video"]

    def _read(self, records: Mapping[int, Record]) -> tuple[dict[int, Any], list[Skip]]:
        """As for any, but the frames that several annotations list are decoded at once."""
        if len(records) > 1:
            most = self.options.num_frames
            listed = {index: record["frames"][:most] for index, record in records.items()}
            frames = sorted(set(itertools.chain(*listed.values())))
            any_record = next(iter(records.values()))
            # Where not all can be read, it is found out one by one which.
            with suppress(SampleError):
                clip = self._frames(any_record | {"frames": frames}, len(frames))
                places = {index: np.searchsorted(frames, those) for index, those in listed.items()}
                return {index: self._pixels(clip[those]) for index, those in places.items()}, []
        return super()._read(records)

    def _sample(self, record: Record) -> Tensor:
        return self._pixels(self._frames(record))

    @staticmethod
    def _pixels(clip: np.ndarray) -> Tensor:
        """Of as many frames as make whole latents."""
        return clip_pixels(clip[: 1 + (len(clip) - 1) // TEMPORAL_FACTOR * TEMPORAL_FACTOR])

    @torch.no_grad()
    def _make(self, samples: Mapping[int, Tensor]) -> dict[int, dict[str, Tensor]]:
        made = {}
        by_length: dict[int, list[int]] = {}
        for index, pixels in samples.items():
            by_length.setdefault(pixels.shape[1], []).append(index)
        for indices in by_length.values():
            clips = torch.stack([samples[index] for index in indices])
            window = WINDOWS[self.options.save_memory]
            posterior = encode_clip(self.vae, clips, device=self.device, window=window)
            draws = [torch.Generator().manual_seed((self.options.seed << 40) + i) for i in indices]
            for index, latents in zip(indices, posterior.sample(draws).split(1), strict=True):
                made[index] = {"latent": latents.cpu().contiguous()}
        return made


class TextExtraction(Extraction):
    """Features of texts: `prompt_embed` `[1, l, d]`, `prompt_attention_mask` `[1, l]` and
    `pooled_prompt_embed` `[1, p]`."""

    key, needed = "text_fea", ("text", "text_fea")

    def __init__(self, options: Namespace, device: torch.device) -> None:
        super().__init__(options, device)
        kinds: dict[str, type[TextEncoderWithMask]] = {
            "pyramid_flux": FluxTextEncoderWithMask,
            "pyramid_mmdit": SD3TextEncoderWithMask,
        }
        if not options.model_path.is_dir():
            raise FileNotFoundError(f"no folder at {options.model_path}")
        encoder = kinds[options.model_name](
            options.model_path, torch_dtype=resolve_dtype(options.model_dtype)
        )
        self.encoder = encoder.to(device).eval().requires_grad_(False)

    def run(self) -> None:
        """Make what is not there yet, the features of the empty prompt first."""
        empty = self.options.empty_text_feature or self.options.anno_file.parent / EMPTY_TEXT
        if self.rank == 0 and not self._is_whole(empty, {}):
            write_tensors(empty, self._make({0: ""})[0])
        super().run()

    def _is_whole(self, path: Path, record: Record) -> bool:
        try:
            read_text_features(path)
        except SampleError:
            return False
        return True

    def _sample(self, record: Record) -> str:
        return str(record["text"])

    @torch.no_grad()
    def _make(self, samples: Mapping[int, str]) -> dict[int, dict[str, Tensor]]:
        if not samples:
            return {}
        condition = self.encoder(list(samples.values()), "cpu")
        features = (
            condition.prompt_embeds,
            condition.prompt_attention_mask,
            condition.pooled_prompt_embeds,
        )
        rows = zip(*(tensor.split(1) for tensor in features), strict=True)
        return {
            index: {name: value.contiguous() for name, value in zip(STORED, row, strict=True)}
            for index, row in zip(samples, rows, strict=True)
        }


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file whole or not at all: safetensors by that ending, else PyTorch's.

    Of a single tensor PyTorch's file holds the tensor itself, as those of the reference's tools do.
    """
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            save_file({name: t.clone() for name, t in tensors.items()}, temporary)
        else:
            named = {name: tensor.clone() for name, tensor in tensors.items()}
            torch.save(named if len(named) > 1 else next(iter(named.values())), temporary)


def check(options: Namespace) -> None:
    """Refuse settings that do not fit, before anything is loaded (ValueError)."""
    for name in ("model_path", "anno_file"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is needed")
    temp_of(options.num_frames)


def extract(options: Namespace) -> Extraction:
    """Do what the options say, in this process."""
    check(options)
    keep_freed_memory()
    launched = launched_process()
    device = chosen_device(options.device, 0 if launched is None else launched.local_rank)
    kind = LatentExtraction if options.what == "latents" else TextExtraction
    extraction = kind(options, device)
    extraction.run()
    return extraction


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and extract."""
    log_to_people()
    options = parse(__doc__, GROUPS, arguments)
    run_or_say(lambda: extract(options))


if __name__ == "__main__":
    main()
