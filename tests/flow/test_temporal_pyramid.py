"""The history rule."""

from __future__ import annotations

import pytest
import torch

from pyramid_dit.flow.latents import latent_pyramid
from pyramid_dit.flow.temporal_pyramid import HistoryClip, gather_history, history_plan


@pytest.mark.parametrize(
    ("num_frames", "stage", "plan"),
    [
        (0, 2, []),
        (1, 0, [(0, 1, 0)]),
        (1, 2, [(0, 1, 2)]),
        (2, 2, [(0, 1, 1), (1, 2, 2)]),
        (5, 0, [(0, 4, 0), (4, 5, 0)]),
        (5, 1, [(0, 4, 0), (4, 5, 1)]),
        (5, 2, [(0, 3, 0), (3, 4, 1), (4, 5, 2)]),
        (5, 3, [(0, 2, 0), (2, 3, 1), (3, 4, 2), (4, 5, 3)]),
    ],
)
def test_one_frame_a_unit(num_frames, stage, plan):
    assert history_plan(num_frames, stage) == tuple(HistoryClip(*clip) for clip in plan)


@pytest.mark.parametrize(
    ("num_frames", "stage", "plan"),
    [
        (1, 2, [(0, 1, 2)]),
        (3, 0, [(0, 1, 0), (1, 3, 0)]),
        (3, 2, [(0, 1, 1), (1, 3, 2)]),
        (7, 2, [(0, 3, 0), (3, 5, 1), (5, 7, 2)]),
    ],
)
def test_two_frames_a_unit(num_frames, stage, plan):
    actual = history_plan(num_frames, stage, frame_per_unit=2)
    assert actual == tuple(HistoryClip(*clip) for clip in plan)


@pytest.mark.parametrize("frame_per_unit", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_frame_is_seen_once_and_the_older_the_coarser(stage, frame_per_unit):
    for num_units in range(31):
        num_frames = 0 if num_units == 0 else 1 + (num_units - 1) * frame_per_unit
        plan = history_plan(num_frames, stage, frame_per_unit=frame_per_unit)
        frames = [frame for clip in plan for frame in range(clip.start, clip.stop)]
        assert frames == list(range(num_frames))
        levels = [clip.stage for clip in plan]
        assert levels == sorted(levels)
        assert not levels or levels[-1] == stage
        assert all(clip.stop > clip.start for clip in plan)


def test_gather_history_takes_the_frames_of_the_plan():
    latents = torch.randn(2, 4, 6, 16, 16)
    pyramid = latent_pyramid(latents, 3)
    clips = gather_history(pyramid, history_plan(5, 2))
    assert [tuple(clip.shape[2:]) for clip in clips] == [(3, 4, 4), (1, 8, 8), (1, 16, 16)]
    assert torch.equal(clips[1], pyramid[1][:, :, 3:4])
    assert torch.equal(clips[2], latents[:, :, 4:5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 1), "num_history_frames must be 0 or 1 plus a multiple of 1, got -1"),
        ((2, 0, 2), "num_history_frames must be 0 or 1 plus a multiple of 2, got 2"),
        ((1, -1, 1), "stage must be at least 0, got -1"),
        ((1, 0, 0), "frame_per_unit must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    num_frames, stage, frame_per_unit = arguments
    with pytest.raises(ValueError, match=message):
        history_plan(num_frames, stage, frame_per_unit=frame_per_unit)
