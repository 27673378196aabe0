"""The architectures that a checkpoint can hold, one record of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..flow.latents import FrameStatistics, LatentStatistics
from ..models.text_encoder import (
    FluxTextEncoderWithMask,
    SD3TextEncoderWithMask,
    TextEncoderWithMask,
)

if TYPE_CHECKING:
    from torch import nn

    from ..models.flux import PyramidFluxTransformer
    from ..models.mmdit import PyramidDiffusionMMDiT


@dataclass(frozen=True)
class Architecture:
    """An architecture by the name that the reference's scripts give it."""

    name: str
    transformer_module: str
    """Module of the transformer in `models`."""
    transformer_name: str
    """Class of the transformer, as its `config.json` has it."""
    text_encoder: type[TextEncoderWithMask]
    """Class of the text encoder, whose `parts()` are the folders of encoders and tokenizers."""
    released_statistics: LatentStatistics
    """Statistics of the released checkpoints' latents."""

    @property
    def transformer(self) -> type[PyramidFluxTransformer] | type[PyramidDiffusionMMDiT]:
        """Class of the transformer, imported only now: it brings diffusers."""
        module = import_module(f"..models.{self.transformer_module}", __package__)
        return getattr(module, self.transformer_name)


_LATER = FrameStatistics(shift=-0.2343, scale=1 / 3.0986)
_FLUX = Architecture(
    "pyramid_flux",
    transformer_module="flux",
    transformer_name="PyramidFluxTransformer",
    text_encoder=FluxTextEncoderWithMask,
    released_statistics=LatentStatistics(FrameStatistics(-0.04, 1 / 1.8726), _LATER),
)
_MMDIT = Architecture(
    "pyramid_mmdit",
    transformer_module="mmdit",
    transformer_name="PyramidDiffusionMMDiT",
    text_encoder=SD3TextEncoderWithMask,
    released_statistics=LatentStatistics(FrameStatistics(0.1490, 1 / 1.8415), _LATER),
)
ARCHITECTURES = {architecture.name: architecture for architecture in (_FLUX, _MMDIT)}


def architecture_of_config(config: Mapping[str, Any], source: Path) -> Architecture:
    """The architecture whose transformer has this `config`, which was read from `source`.

    Raises:
        ValueError: The config is one of another class.
    """
    by_class = {entry.transformer_name: entry for entry in ARCHITECTURES.values()}
    class_name = config.get("_class_name")
    if class_name not in by_class:
        raise ValueError(
            f"{source} has _class_name {class_name!r}, expected one of {', '.join(by_class)}"
        )
    return by_class[class_name]


def architecture_of(transformer: nn.Module) -> Architecture:
    """The architecture of `transformer`."""
    entries = ARCHITECTURES.values()
    return next(entry for entry in entries if isinstance(transformer, entry.transformer))


def architecture_of_encoders(class_names: Mapping[str, str]) -> Architecture:
    """The architecture that reads its prompts by these text encoders.

    Args:
        class_names: Of the encoders that there are, by their names in a checkpoint.

    Raises:
        ValueError: There is none, or they belong to no architecture.
    """
    for entry in ARCHITECTURES.values():
        known = {part.encoder: part.class_name for part in entry.text_encoder.parts()}
        if class_names and class_names.items() <= known.items():
            return entry
    named = ", ".join(f"{name} {kind}" for name, kind in class_names.items()) or "none"
    raise ValueError(
        f"without a transformer the text encoders say which model it is; there are {named}"
    )
