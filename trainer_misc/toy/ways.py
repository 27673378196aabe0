"""The ways in which a model is asked for clips of moving shapes: what `evaluation` measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .moving_shapes import MOTIONS, described, draw_clip, first_frame, render_uint8
from .tables import Frames

if TYPE_CHECKING:
    from pyramid_dit import PyramidDiTForVideoGeneration

FRESH = 1_000_000  # added to seeds, so that no clip is one of a training set's
GIVEN_FRAMES = 25  # of a clip that is extended

Generate = Callable[[list[str], list[int]], Sequence[Frames]]
"""Takes prompts and as many seeds, returns as many clips."""


def text_to_video(model: PyramidDiTForVideoGeneration, num_frames: int) -> Generate:
    """Clips from prompts alone."""

    def generate(prompts: list[str], seeds: list[int]) -> Sequence[Frames]:
        return model.generate(
            prompts,
            temp=(num_frames - 1) // 8 + 1,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )

    return generate


def image_to_video(model: PyramidDiTForVideoGeneration, num_frames: int) -> Generate:
    """Clips from prompts and first frames, drawn where the motion has room."""

    def generate(prompts: list[str], seeds: list[int]) -> Sequence[Frames]:
        images = [
            first_frame(draw_clip(described(prompt), np.random.default_rng(FRESH + seed)))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return model.generate_i2v(
            prompts,
            input_image=images,
            temp=(num_frames - 1) // 8 + 1,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )

    return generate


def extension(model: PyramidDiTForVideoGeneration, num_frames: int) -> Generate:
    """What is added to drawn clips of `GIVEN_FRAMES` until they have `num_frames`.

    Raises:
        ValueError: They have as many already.
    """
    added = (num_frames - GIVEN_FRAMES) // 8
    if added < 1:
        raise ValueError(
            f"extended clips have {GIVEN_FRAMES} frames before, {num_frames} are no more"
        )

    def generate(prompts: list[str], seeds: list[int]) -> Sequence[Frames]:
        clips: list[Frames] = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            clip = draw_clip(described(prompt), np.random.default_rng(FRESH + seed))
            video = model.generate_v2v(
                [prompt],
                video=render_uint8(clip, range(GIVEN_FRAMES)),
                temp=added,
                generator=[torch.Generator().manual_seed(seed)],
                output_type="np",
            )
            clips.append(video[0])
        return clips

    return generate


def former_sentence(prompt: str) -> str:
    """What a clip shows before its sentence changes to `prompt`: another motion."""
    after = described(prompt)
    before = MOTIONS[MOTIONS.index(after.motion) - 1]
    return replace(after, motion=before).caption


def change(model: PyramidDiTForVideoGeneration, num_frames: int) -> Generate:
    """Clips whose sentence changes to the prompt in the middle, from `former_sentence`."""
    units = (num_frames - 1) // 8

    def generate(prompts: list[str], seeds: list[int]) -> Sequence[Frames]:
        return model.generate(
            prompts={0: [former_sentence(prompt) for prompt in prompts], 1 + units // 2: prompts},
            temp=units + 1,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )

    return generate
