"""The latents of an unfinished video in a file, with what it takes to go on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import replacing
from ..flow.latents import Generators
from ..sampling.unit_sampler import Unit

FORMAT = "pyramid-flow latents 1"


@dataclass(frozen=True)
class SavedText:
    """Prompts and negative prompts in words, complete with their suffix; None where encoded."""

    prompts: list[str] | None
    negative_prompts: list[str] | None


@dataclass(frozen=True)
class SavedLatents:
    """What was made of a video, and what is needed to make the rest of it.

    Attributes:
        latents: Normalized latents `[b, c, t, h, w]` of the complete units, float32; of a video
            without end those that the next unit sees.
        noise: Initial noise of the units that are left `[b, c, t', h, w]`, float32; of a video
            without end none, for it is drawn unit by unit.
        generator_states: States of the sources of random numbers, one for all or one per sample.
        generator_device: Type of the device that they draw on.
        units: The units that are left, counted as in the whole video.
        texts: Prompts that the units refer to.
        samples_each: Samples of each prompt.
        kept: Other arguments of the run that the rest of it needs, by name.
        model: Which transformer made them, empty where that is not known.
        endless: Whether the last of `units` is followed by others like it, without end.
    """

    latents: Tensor
    noise: Tensor
    generator_states: Sequence[Tensor]
    generator_device: str
    units: Sequence[Unit]
    texts: Sequence[SavedText]
    samples_each: int
    kept: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    endless: bool = False

    def generators(self) -> Generators:
        """Sources of random numbers that go on where those of the run were."""
        sources = []
        for state in self.generator_states:
            source = torch.Generator(self.generator_device)
            source.set_state(state)
            sources.append(source)
        return sources[0] if len(sources) == 1 else sources

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file; the name holds a complete file or what it held before.

        Raises:
            OSError: The file could not be written.
        """
        settings = {
            "generator_device": self.generator_device,
            "units": [asdict(unit) for unit in self.units],
            "texts": [asdict(text) for text in self.texts],
            "samples_each": self.samples_each,
            "arguments": dict(self.kept),
            "model": self.model,
            "endless": self.endless,
        }
        tensors = {"latents": self.latents, "noise": self.noise}
        for index, state in enumerate(self.generator_states):
            tensors[f"generator_state.{index}"] = state
        metadata = {"format": FORMAT, "settings": json.dumps(settings)}
        with replacing(Path(path)) as temporary:
            # an empty tensor, of a complete video, has no storage of its own to share
            # (and `save_file` makes files that only their owner can read)
            own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
            temporary.write_bytes(save(own, metadata))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SavedLatents:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is something else, or it is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file of latents: {str(path)!r}")
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            settings: dict[str, Any] = json.loads(metadata["settings"])
            states = [n for n in tensors if n.startswith("generator_state.")]
            return cls(
                latents=tensors["latents"],
                noise=tensors["noise"],
                generator_states=[tensors[f"generator_state.{i}"] for i in range(len(states))],
                generator_device=settings["generator_device"],
                units=[Unit(**unit) for unit in settings["units"]],
                texts=[SavedText(**text) for text in settings["texts"]],
                samples_each=settings["samples_each"],
                kept=settings.get("arguments", {}),
                model=settings.get("model", ""),
                endless=settings.get("endless", False),
            )
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} holds no saved latents: {error}") from error
