"""The latents of an unfinished video in a file, with what it takes to go on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..flow.sizes import SPATIAL_FACTOR
from ..media.video_files import replacing
from ..sampling.prompts import Prompts
from ..sampling.unit_sampler import Unit
from .request import Generators, Progress, Request

if TYPE_CHECKING:
    from .arguments import Options

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
        latents: Normalized latents `[b, c, t, h, w]` of the complete units, float32.
        noise: Initial noise of the units that are left `[b, c, t', h, w]`, float32.
        generator_states: States of the sources of random numbers, one for all or one a sample.
        generator_device: Type of the device that they draw on.
        units: The units that are left, counted as in the whole video.
        texts: Prompts that the units refer to.
        samples_each: Samples of each prompt.
    """

    latents: Tensor
    noise: Tensor
    generator_states: Sequence[Tensor]
    generator_device: str
    units: Sequence[Unit]
    texts: Sequence[SavedText]
    samples_each: int

    @classmethod
    def of(cls, request: Request, progress: Progress) -> SavedLatents:
        """Where the work on a request stands.

        Raises:
            ValueError: No unit is complete.
        """
        if progress.latents is None or progress.noise is None:
            raise ValueError("there are no latents to save: no unit of the video is complete")
        made = progress.frames_made
        left = [unit for unit in request.units if unit.start >= made]
        texts = [
            SavedText(*(words if isinstance(words, list) else None for words in pair))
            for pair in ((prompts.positive, prompts.negative) for prompts in request.texts)
        ]
        first = request.generator
        if isinstance(first, Sequence):
            first = first[0]
        return cls(
            latents=progress.latents.cpu(),
            noise=progress.noise[:, :, made:].cpu(),
            generator_states=progress.generator_states,
            generator_device=(progress.noise if first is None else first).device.type,
            units=[replace(u, start=u.start - made, stop=u.stop - made) for u in left],
            texts=texts,
            samples_each=request.samples_each,
        )

    def generators(self) -> Generators:
        """Sources of random numbers that go on where those of the run were."""
        sources = []
        for state in self.generator_states:
            source = torch.Generator(self.generator_device)
            source.set_state(state)
            sources.append(source)
        return sources[0] if len(sources) == 1 else sources

    def request(self, options: Options, channels: int, **rest: Any) -> Request:
        """The request to do what is left.

        Args:
            options: Of which the encoded prompts and the callback count.
            channels: Of the latents that the model makes.
            rest: Further arguments of the request.

        Raises:
            ValueError: The latents are another model's, or encoded prompts are missing.
        """
        batch, own_channels, frames, height, width = self.latents.shape
        if own_channels != channels:
            raise ValueError(
                f"the saved latents have {own_channels} channels, the model {channels}"
            )
        texts = [
            Prompts.checked(
                text.prompts,
                text.negative_prompts or "",
                encoded=options.encoded,
                encoded_negative=options.encoded_negative,
                suffix="",
                guided=any(unit.guidance_scale != 1 for unit in self.units),
                allow_empty=True,
            )
            for text in self.texts
        ]
        return Request(
            texts=texts,
            units=self.units,
            height=height * SPATIAL_FACTOR,
            width=width * SPATIAL_FACTOR,
            temp=self.noise.shape[2],
            past=self.latents,
            given_frames=frames,
            nested=batch > self.samples_each,
            samples_each=self.samples_each,
            generator=self.generators(),
            latents=self.noise,
            callback_on_step_end=options.callback_on_step_end,
            **rest,
        )

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
            )
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} holds no saved latents: {error}") from error
