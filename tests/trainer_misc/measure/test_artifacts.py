"""Flicker and block edges: values that can be calculated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer_misc.measure import block_edges, flicker


def gray(levels: list[float], side: int = 8) -> np.ndarray:
    """A video of flat gray frames."""
    frames = np.array(levels)[:, None, None, None]
    return np.broadcast_to(frames, (len(levels), side, side, 3)).astype(np.uint8)


def test_no_flicker() -> None:
    """Of frames that stay, or change in one direction."""
    assert flicker(gray([100] * 5)) == 0
    assert flicker(gray([10, 20, 40, 41, 90])) == 0
    edge = np.stack([np.where(np.arange(8) < i, 0, 200) for i in range(5)])
    passing = np.broadcast_to(edge[:, None, :, None], (5, 8, 8, 3)).astype(np.uint8)
    assert flicker(passing) == 0


def test_flicker_of_levels_that_alternate() -> None:
    """It is the difference of the two; one frame of four that differs counts in one triple."""
    assert flicker(gray([100, 110] * 3)) == pytest.approx(10)
    assert flicker(gray([100, 100, 130, 100, 100, 100])) == pytest.approx(30 / 4)


def test_flicker_of_noise() -> None:
    """A median of three is passed by σ / sqrt(π) on average; luma has 0.669 of the noise's σ."""
    noise = np.random.default_rng(0).normal(128, 20, (12, 64, 64, 3)).round().astype(np.uint8)
    share = math.sqrt(0.299**2 + 0.587**2 + 0.114**2)
    assert flicker(noise) == pytest.approx(20 * share / math.sqrt(math.pi), rel=0.01)


def test_flicker_takes_three_frames() -> None:
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        flicker(gray([1, 2]))


def tiles(side: int, noise: float = 0.0) -> np.ndarray:
    """Two frames of flat tiles of random colors, with noise."""
    rng = np.random.default_rng(0)
    colors = rng.normal(128, 30, (2, 128 // side, 128 // side, 3))
    return colors.repeat(side, 1).repeat(side, 2) + noise * rng.standard_normal((2, 128, 128, 3))


def test_tiles_have_edges() -> None:
    """Neighbors across an edge differ by 2 σ² of tiles and noise, others by 2 σ² of noise."""
    assert block_edges(tiles(16), 16) == math.inf
    assert block_edges(tiles(16, noise=5), 16) == pytest.approx(1 + 30**2 / 5**2, rel=0.15)
    # every second edge of 8 is one of 16
    assert block_edges(tiles(16, noise=5), 8) == pytest.approx(1 + 7 / 15 * 30**2 / 5**2, rel=0.15)


def test_edges_elsewhere_do_not_count() -> None:
    shifted = np.roll(tiles(16, noise=5), (4, 4), axis=(1, 2))
    assert block_edges(shifted, 16) < 0.5


def test_noise_has_no_edges() -> None:
    noise = np.random.default_rng(0).normal(128, 20, (3, 96, 64, 3)).round().astype(np.uint8)
    for side in (2, 8, 16):
        assert block_edges(noise, side) == pytest.approx(1, abs=0.05)
    assert block_edges(gray([7, 7]), 2) == 1


def test_of_latents() -> None:
    """Any numbers and channels: blocks of 2x2, as a jump of the pyramid leaves them."""
    latents = np.random.default_rng(0).standard_normal((5, 8, 8, 16))
    doubled = latents.repeat(2, 1).repeat(2, 2) + 0.1 * np.random.default_rng(1).standard_normal(
        (5, 16, 16, 16)
    )
    assert block_edges(doubled, 2) == pytest.approx(101, rel=0.1)


def test_frames_without_an_edge() -> None:
    with pytest.raises(ValueError, match="blocks of 8 have no edge in frames of 8x8"):
        block_edges(gray([1]), 8)
    with pytest.raises(ValueError, match="blocks of 1 have no edge"):
        block_edges(gray([1]), 1)
    strip = np.zeros((1, 4, 16, 3), np.uint8)
    strip[:, :, 8:] = 9
    assert block_edges(strip, 8) == math.inf
