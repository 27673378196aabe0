"""The names that LoRAs have in files, and how this library writes one.

Read are the names of `peft` (with the prefixes that trainers put before them), those that
diffusers wrote before it used `peft`, and kohya's. Other ways to adapt a model are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import replacing
from ..models.lora_text import TokenChanges

FILE_NAME = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps what is to be known of an adapter, as JSON."""
WORDS = "known_words"

_PREFIXES = ("base_model.model.", "diffusion_model.", "model.", PREFIX)
_SIDES = {"A": "A", "B": "B", "down": "A", "up": "B"}
_PEFT = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_DIFFUSERS = re.compile(r"(.+)\.lora(?:_linear_layer)?\.(down|up)\.weight")
_PROCESSORS = re.compile(r"(.+)\.processor\.(\w+)_lora\.(down|up)\.weight")
_KOHYA = re.compile(r"(.+)\.lora_(down|up)\.weight")
_KOHYA_PREFIX = re.compile(r"lora_(?:unet|transformer)_")
_TEXT = re.compile(r"(text_encoder(?:_\d)?)\.lora_token_(ids|rows)")
_OTHERS = {
    "hada_": "LoHa (LyCORIS)",
    "lokr_": "LoKr (LyCORIS)",
    "lora_mid": "LoCon with a middle matrix (LyCORIS)",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "ia3_": "IA3",
    "vera_": "VeRA",
    "lora_embedding_": "a LoRA of embeddings",
    "lora_te": "a LoRA of text encoders",
    "text_encoder": "a LoRA of text encoders",
    "diff_b": "a full difference of weights",
}


def transformer_weights(weights: Mapping[str, Tensor], transformer: nn.Module) -> dict[str, Tensor]:
    """The matrices of a LoRA under the names of `peft`, `MODULE.lora_A.weight` and `lora_B`.

    Args:
        weights: As a file has them, without those of `token_changes`. Where a file has an alpha of
            its own for each matrix, as kohya's, it is in the matrices afterwards.
        transformer: What the LoRA is for.

    Raises:
        ValueError: They are none of a LoRA, or one for another model; the message says which.
    """
    modules = {name for name, _ in transformer.named_modules() if name}
    flat = {name.replace(".", "_"): name for name in modules}
    found: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    foreign: list[str] = []
    for key, value in weights.items():
        module, side = _place(key, modules, flat)
        if module is None:
            foreign.append(key)
        elif side == "alpha":
            alphas[module] = float(value)
        else:
            found[f"{module}.lora_{side}.weight"] = value
    if foreign or not found:
        raise ValueError(_refusal(sorted(foreign)))
    for module in {key.partition(".lora_")[0] for key in found}:
        lower, upper = (f"{module}.lora_{side}.weight" for side in "AB")
        if lower not in found or upper not in found:
            raise ValueError(f"the LoRA has only one of its two matrices for {module}")
        if module in alphas:
            found[upper] = found[upper] * (alphas[module] / found[lower].shape[0])
    return found


def _place(key: str, modules: set[str], flat: Mapping[str, str]) -> tuple[str | None, str]:
    """The module that a weight is for, None if for none, and which of its weights it is."""
    name = key
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    readings: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = (
        (_PEFT, lambda match: match[1]),
        (_PROCESSORS, lambda match: f"{match[1]}.{match[2]}"),
        (_DIFFUSERS, lambda match: match[1]),
        (_KOHYA, lambda match: match[1]),
    )
    for pattern, module_of in readings:
        if match := pattern.fullmatch(name):
            return _module(module_of(match), modules, flat), _SIDES[match.groups()[-1]]
    if name.endswith(".alpha"):
        return _module(name.removesuffix(".alpha"), modules, flat), "alpha"
    return None, ""


def _module(name: str, modules: set[str], flat: Mapping[str, str]) -> str | None:
    """The module of a name that may be written with underscores alone."""
    if f"{name}.0" in modules and name.endswith("to_out"):
        name = f"{name}.0"  # diffusers' own names for it leave the number out
    return name if name in modules else flat.get(_KOHYA_PREFIX.sub("", name))


def _refusal(foreign: Sequence[str]) -> str:
    if not foreign:
        return "there are no weights of a LoRA in it"
    for key in foreign:
        for part, name in _OTHERS.items():
            if part in key:
                return f"it is {name}, got {key}; read are LoRAs of peft, diffusers and kohya"
    return (
        "the names of a LoRA's weights must start with 'transformer.' and name modules of this "
        f"transformer, got {', '.join(foreign[:3])}"
    )


def token_changes(weights: Mapping[str, Tensor]) -> dict[str, TokenChanges]:
    """Changes of token embeddings in `weights`, by the name of the text encoder.

    Raises:
        ValueError: One half of a pair is missing.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        if match := _TEXT.fullmatch(key):
            parts.setdefault(match[1], {})[match[2]] = value
    try:
        return {name: TokenChanges(**pair) for name, pair in parts.items()}
    except TypeError as error:
        raise ValueError("the LoRA lacks half of its token embeddings") from error


def without_tokens(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` but those of `token_changes`."""
    return {key: value for key, value in weights.items() if not _TEXT.fullmatch(key)}


def words_of(metadata: Mapping[str, Any] | None) -> list[str]:
    """The words that a LoRA taught, by what its file says.

    Raises:
        ValueError: It says something else in their place.
    """
    words = (metadata or {}).get(WORDS, [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{WORDS} in the LoRA's metadata must be a list of words, got {words!r}")
    return words


def write_lora(
    path: str | PathLike[str],
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    tokens: Mapping[str, TokenChanges] | None = None,
    words: Iterable[str] = (),
) -> None:
    """Write a LoRA so that `load_lora_weights` of both faces and of diffusers' pipelines read it.

    Args:
        path: Of the file; what is there is replaced.
        weights: By the names of `peft`, as of `get_peft_model_state_dict`.
        config: What the adapter was made with, as `LoraConfig.to_dict` has it.
        tokens: Changes of token embeddings, by the name of the text encoder.
        words: What it taught.

    Raises:
        OSError: The file cannot be written.
    """
    tensors = {f"{PREFIX}{key}": value.detach().cpu() for key, value in weights.items()}
    for name, changes in (tokens or {}).items():
        tensors[f"{name}.lora_token_ids"] = changes.ids
        tensors[f"{name}.lora_token_rows"] = changes.rows
    about = {f"{PREFIX}{key}": _plain(value) for key, value in config.items()}
    said = json.dumps(about | {WORDS: sorted(words)}, indent=2, sort_keys=True)
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt", METADATA: said})


def _plain(value: Any) -> Any:
    """A value of a config as JSON has it."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value.value if hasattr(value, "value") else value
