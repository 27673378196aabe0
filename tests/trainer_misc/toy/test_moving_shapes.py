"""The synthetic set: numbering, splits, determinism, and what its clips show."""

import numpy as np
import pytest
import torch

from trainer_misc.toy.moving_shapes import (
    BACKGROUNDS,
    COLORS,
    FRAMES_PER_SECOND,
    MAX_FRAMES,
    MOTIONS,
    NUM_COMBINATIONS,
    SHAPES,
    MovingShapes,
    caption_of,
    combination_of,
    draw_clip,
    first_frame,
    is_held_out,
    render,
    render_uint8,
)


def shape_mask(clip, frames):
    """Where the drawn color is nearer to the shape's than to the background's, [T, H, W]."""
    pixels = render_uint8(clip, frames).astype(int)
    to_shape = np.abs(pixels - COLORS[clip.color]).sum(-1)
    return to_shape < np.abs(pixels - BACKGROUNDS[clip.background]).sum(-1)


def test_combinations_are_numbered_row_major():
    captions = [
        f"a {color} {shape} {motion} on a {background} background"
        for color in COLORS
        for shape in SHAPES
        for motion in MOTIONS
        for background in BACKGROUNDS
    ]
    assert len(captions) == NUM_COMBINATIONS == 504
    assert [caption_of(number) for number in range(504)] == captions
    assert [combination_of(caption) for caption in captions] == list(range(504))
    assert captions[0] == "a red circle moves left on a white background"
    assert captions[-1] == "a orange cross shrinks on a gray background"


@pytest.mark.parametrize("number", [-1, 504])
def test_unknown_combinations_are_refused(number):
    with pytest.raises(ValueError, match=str(number)):
        caption_of(number)
    with pytest.raises(ValueError, match="a pink circle"):
        combination_of("a pink circle moves left on a white background")


def test_splits_do_not_overlap():
    train, held_out = MovingShapes(), MovingShapes(combinations="held_out")
    assert not any(is_held_out(number) for number in train.combinations)
    assert all(is_held_out(number) for number in held_out.combinations)
    both = train.combinations + held_out.combinations
    assert sorted(both) == list(MovingShapes(combinations="all").combinations) == list(range(504))
    assert len(held_out.combinations) == 51
    seen = {held_out.sample(index, [0])["combination"] for index in range(20)}
    assert len(seen) > 10
    assert all(number % 10 == 3 for number in seen)


def test_items_are_deterministic_by_seed_and_index():
    item, again = MovingShapes(seed=3, num_frames=9)[5], MovingShapes(seed=3, num_frames=9)[5]
    assert item["text"] == again["text"] == caption_of(item["combination"])
    assert torch.equal(item["video"], again["video"])
    clips = {MovingShapes(seed=seed).clip(index) for seed in range(3) for index in range(20)}
    assert len(clips) == 60


def test_item_format():
    video = MovingShapes(num_frames=17, size=64)[0]["video"]
    assert video.shape == (3, 17, 64, 64)
    assert video.dtype == torch.float32
    assert video.min() >= -1
    assert video.max() <= 1


def test_shorter_videos_are_prefixes_and_single_frames_agree():
    whole = MovingShapes(seed=1)[7]
    assert torch.equal(MovingShapes(seed=1, num_frames=25)[7]["video"], whole["video"][:, :25])
    some = MovingShapes(seed=1)
    assert torch.equal(some.sample(7, slice(40, 44))["video"], whole["video"][:, 40:44])
    assert torch.equal(some.sample(7, [96, 0])["video"], whole["video"][:, [96, 0]])
    preview = np.asarray(first_frame(some.clip(7)), np.float32) / 127.5 - 1
    assert np.abs(preview - whole["video"][:, 0].permute(1, 2, 0).numpy()).max() < 0.5 / 127


@pytest.mark.parametrize("motion", range(len(MOTIONS)), ids=MOTIONS)
@pytest.mark.parametrize("size", [128, 96])
def test_shapes_stay_in_the_frame_and_keep_their_speed(motion, size):
    for seed in range(12):
        number = ((seed % 6 * 4 + seed % 4) * 7 + motion) * 3 + seed % 3
        clip = draw_clip(number, np.random.default_rng(seed), size)
        mask = shape_mask(clip, [0, 48, 96])
        border = np.concatenate([mask[:, [0, -1]], mask[:, :, [0, -1]].transpose(0, 2, 1)], 1)
        assert not border.any()
        unit = size / 128
        speed = np.hypot(*clip.velocity) / unit
        growth = max(clip.scaling, 1 / clip.scaling)
        if MOTIONS[motion].startswith("moves"):
            assert 8 <= speed <= 20
            assert growth == 1
        else:
            assert speed == 0
            assert growth == 1 if MOTIONS[motion] == "stays still" else 1.8 <= growth <= 3
        radii = [clip.radius_at(0) / unit, clip.radius_at(96) / unit]
        assert min(radii) >= 16
        assert max(radii) <= (34 if growth == 1 else 56)

        # What is drawn moves and scales as the record says.
        columns, rows = mask.any(1), mask.any(2)
        travel = [
            (np.flatnonzero(hit[2]).mean() - np.flatnonzero(hit[0]).mean())
            for hit in (columns, rows)
        ]
        seconds = (MAX_FRAMES - 1) / FRAMES_PER_SECOND
        assert np.allclose(travel, np.array(clip.velocity) * seconds, atol=1.01)
        assert np.sqrt(mask[2].sum() / mask[0].sum()) == pytest.approx(clip.scaling, rel=0.05)


def test_directions_are_what_they_say():
    ends = {}
    for motion in range(4):
        clip = draw_clip(motion * 3, np.random.default_rng(0))
        ends[clip.motion] = np.sign(clip.velocity)
    assert {name: tuple(sign) for name, sign in ends.items()} == {
        "moves left": (-1, 0),
        "moves right": (1, 0),
        "moves up": (0, -1),
        "moves down": (0, 1),
    }


@pytest.mark.parametrize("shape", range(4), ids=SHAPES)
def test_edges_are_antialiased(shape):
    """The drawn area is the shape's true area to a fraction of a percent, at any sub-pixel place.

    True areas in units of radius squared: pi, 4, 2, and 4 a (2 - a) for a cross of arm width a.
    """
    area = (np.pi, 4.0, 2.0, 4 * 0.38 * (2 - 0.38))[shape]
    for seed in range(10):
        clip = draw_clip(shape * 21 + 12 + 1, np.random.default_rng(seed))  # red, still, on black
        red = render(clip, [0])[0, 0]
        coverage = (red + 1) / (COLORS["red"][0] / 127.5)
        assert coverage.sum() == pytest.approx(area * clip.radius**2, rel=5e-3)
        partial = (coverage > 0.02) & (coverage < 0.98)
        assert partial.any()
        assert partial.sum() < 12 * clip.radius


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_frames is 16"):
        MovingShapes(num_frames=16)
    with pytest.raises(ValueError, match="num_frames is 105"):
        MovingShapes(num_frames=105)
    with pytest.raises(ValueError, match="seed is -1"):
        MovingShapes(seed=-1)
    with pytest.raises(ValueError, match="'test'"):
        MovingShapes(combinations="test")
    with pytest.raises(ValueError, match="empty"):
        MovingShapes(combinations=[])
    with pytest.raises(IndexError, match="index 3"):
        MovingShapes(length=3)[3]
