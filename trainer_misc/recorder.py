"""Which rollouts a round of distillation records, and the files that they are written to."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.flow.sizes import SPATIAL_FACTOR
from pyramid_dit.generation.latent_codec import encode_clip
from pyramid_dit.sampling.prompts import GuidedText

from .data import Batches
from .encoded_texts import EncodedTexts
from .rollouts import StageSolver, roll_out

logger = logging.getLogger(__name__)

KINDS = ("first", "text", "image")
"""First units alone, videos from text, videos that start with a picture."""


class Recorder:
    """Makes the rollouts of a round, and writes those that are not there yet.

    A file is a function of the seed, the round, its kind and its number, so that a run that was
    stopped goes on with the next one.

    Args:
        model: Its scheduler, its size and, for pixels to start with, its VAE.
        texts: All prompts, encoded, with the negative one.
        prompts: What the videos show.
        options: Of the run.
        pictures: What videos start with, if some do.
        place: Which of how many processes this is; each writes its part of the files.
    """

    def __init__(
        self,
        model: PyramidDiTForVideoGeneration,
        texts: EncodedTexts,
        prompts: Sequence[str],
        options: Namespace,
        *,
        pictures: Batches | None = None,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        self.model, self.texts, self.options = model, texts, options
        self.prompts = list(prompts)
        self._pictures, self._place = pictures, place
        self._lengths = np.array([texts.lengths[texts.numbers[text]] for text in self.prompts])

    def files(self, folder: Path) -> dict[Path, tuple[str, int, int]]:
        """All files of a round: kind, number and how many rollouts each has."""
        options = self.options
        from_image = round(options.image_share * options.videos)
        counts = (options.first_units, options.videos - from_image, from_image)
        found = {}
        for kind, count in zip(KINDS, counts, strict=True):
            for number, start in enumerate(range(0, count, options.rollout_batch)):
                path = folder / f"{kind}-{number:05d}.safetensors"
                found[path] = kind, number, min(options.rollout_batch, count - start)
        return found

    def record(
        self,
        folder: Path,
        round_number: int,
        teacher: StageSolver,
        student: StageSolver | None,
        *,
        until: float | None = None,
    ) -> bool:
        """Write what is missing in `folder`.

        Args:
            folder: Where to.
            round_number: From 1 on.
            teacher: Says where stages end.
            student: Whose way is gone; by default the teacher's.
            until: When to stop, by `time.monotonic`.

        Returns:
            Whether this process has written all of its part.
        """
        rank, world = self._place
        missing = [
            (path, *what)
            for index, (path, what) in enumerate(self.files(folder).items())
            if index % world == rank and not path.exists()
        ]
        bar = tqdm(missing, desc=folder.name, mininterval=10, disable=rank > 0)
        for path, kind, number, count in bar:
            if until is not None and time.monotonic() > until:
                return False
            self._write(
                path, kind, count, [round_number, KINDS.index(kind), number], teacher, student
            )
        return True

    def _write(
        self,
        path: Path,
        kind: str,
        count: int,
        key: Sequence[int],
        teacher: StageSolver,
        student: StageSolver | None,
    ) -> None:
        model, options = self.model, self.options
        device, unit = model.device, model.frame_per_unit
        source = np.random.default_rng([options.seed, *key])
        generator = torch.Generator(device).manual_seed(int(source.integers(2**62)))
        temp = 1 if kind == "first" else options.max_frames
        past = None
        if kind == "image":
            past, shown = self._first_frames(count, source, generator)
            temp -= 1
        else:
            shown = self._chosen(count, source)
        storyboard: dict[int, Sequence[str]] = {0: shown}
        units = 1 + (options.max_frames - 1) // unit
        if kind != "first" and units > 2 and source.random() < options.change_share:
            storyboard[int(source.integers(2, units))] = self._chosen(count, source)
        width, height = self.size() if past is None else past.shape[:-3:-1]
        shape = (count, model.latent_channels, temp, height, width)
        roll_out(
            teacher,
            student,
            noise=torch.randn(shape, generator=generator, device=device),
            texts={start: self._encoded(prompts) for start, prompts in storyboard.items()},
            storyboard=storyboard,
            frame_per_unit=unit,
            generator=generator,
            past=past,
        ).write(path)

    def size(self) -> tuple[int, int]:
        """Width and height of the latents."""
        options, defaults = self.options, self.model.defaults
        width, height = options.width, options.height
        if width is None or height is None:
            usual = defaults.size()
            width, height = width or usual[0], height or usual[1]
        return width // SPATIAL_FACTOR, height // SPATIAL_FACTOR

    def _chosen(self, count: int, source: np.random.Generator) -> list[str]:
        """Prompts that are about equally long, for they are worked on together."""
        begin = int(source.integers(len(self.prompts)))
        distance = np.abs(self._lengths - self._lengths[begin])
        enough = max(int((distance == 0).sum()), len(self.prompts) // 10)
        pool = np.argsort(distance, kind="stable")[:enough]
        return [self.prompts[index] for index in np.resize(source.permutation(pool), count)]

    def _encoded(self, prompts: Sequence[str]) -> GuidedText:
        negative = self.texts.of([self.options.negative_prompt] * len(prompts))
        text = GuidedText(self.texts.of(prompts), negative)
        return text.to(self.model.device, self.model.dtype)

    def _first_frames(
        self, count: int, source: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, list[str]]:
        """Normalized latents `[count, c, 1, h, w]` of pictures, and their texts."""
        assert self._pictures is not None
        batch: Mapping[str, Any] = self._pictures[int(source.integers(2**31))]
        pictures: Tensor = batch["video"][:count]
        pictures = pictures[:, :, None] if pictures.ndim == 4 else pictures
        vae, device = self.model.vae, self.model.device
        if vae is not None:
            posterior = encode_clip(vae, pictures, device=device)
            mean, std = posterior.mean.float(), posterior.std.float()
            noise = torch.randn(mean.shape, generator=generator, device=device)
            pictures = mean + std * noise
        latents = self.model.statistics.normalize(pictures.to(device, torch.float32))
        texts = [text + self.model.defaults.prompt_suffix for text in batch["text"][:count]]
        return latents, texts
