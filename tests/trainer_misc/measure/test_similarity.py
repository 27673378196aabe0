"""PSNR, SSIM and VMAF: known values, the formula written out, and ffmpeg beside it."""

from __future__ import annotations

import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pyramid_dit.media.ffmpeg import ffmpeg_says
from pyramid_dit.media.video_files import video_frames
from trainer_misc.measure import psnr, ssim, vmaf
from trainer_misc.measure.similarity import luma


def moving(frames: int, noise: float = 0.0, side: int = 64) -> np.ndarray:
    """A texture that moves, with noise of that deviation in levels."""
    rng = np.random.default_rng(0)
    texture = rng.integers(40, 216, (side, side + frames, 3)).astype(float)
    video = np.stack([texture[:, i : i + side] for i in range(frames)])
    return np.clip(video + noise * rng.standard_normal(video.shape), 0, 255).astype(np.uint8)


def test_of_equal_videos() -> None:
    clip = moving(9)
    assert psnr(clip, clip) == math.inf
    assert ssim(clip, clip) == pytest.approx(1, abs=1e-12)
    assert vmaf(clip, clip) > 95


def test_psnr_of_a_known_error() -> None:
    """A constant error of 5 levels is 20 log10(255 / 5) dB; on one frame of four, 6 dB less bad."""
    clip = np.full((4, 8, 8, 3), 100, np.uint8)
    assert psnr(clip + np.uint8(5), clip) == pytest.approx(20 * math.log10(51))
    once = clip.copy()
    once[2] += 5
    assert psnr(once, clip) == pytest.approx(20 * math.log10(51) + 10 * math.log10(4))


def test_ssim_of_two_flat_videos() -> None:
    """Without contrast only the means count: (2 x y + C1) / (x² + y² + C1)."""
    one, two = (np.full((2, 16, 16, 3), level, np.uint8) for level in (100, 150))
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert ssim(one, two) == pytest.approx(expected, rel=1e-9)


def test_ssim_is_the_formula() -> None:
    """Equation 13 of the paper, window by window, with weighted means and variances."""
    frames, reference = moving(1, 30, side=14), moving(1, side=14)
    x, y = (next(luma(video)).numpy() for video in (frames, reference))
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top, left in itertools.product(range(4), repeat=2):
        a, b = (picture[top : top + 11, left : left + 11] for picture in (x, y))
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        both = (weights * (a - mean_a) * (b - mean_b)).sum()
        near = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        values.append(near * (2 * both + c2) / (var_a + var_b + c2))
    assert ssim(frames, reference) == pytest.approx(np.mean(values), rel=1e-9)


def ssim_of_ffmpeg(frames: np.ndarray, reference: np.ndarray, folder: Path) -> float:
    """By ffmpeg's filter, which has flat windows of 8x8 pixels, on the luma."""
    _, height, width, _ = frames.shape
    given = []
    for name, video in (("frames", frames), ("reference", reference)):
        gray = np.stack([frame.round().numpy() for frame in luma(video)]).astype(np.uint8)
        (folder / name).write_bytes(gray.tobytes())
        raw = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}"]
        given += [*raw, "-i", str(folder / name)]
    said = ffmpeg_says([*given, "-lavfi", "ssim", "-f", "null", "-"]).stderr.decode()
    found = re.search(r"All:([\d.]+)", said)
    assert found is not None, said
    return float(found[1])


def blurred(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(3)))


def compressed(frame: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=10)
    return np.asarray(Image.open(file))


def noisy(frame: np.ndarray) -> np.ndarray:
    noise = 20 * np.random.default_rng(0).standard_normal(frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


def test_on_real_video_beside_ffmpeg(tmp_path: Path) -> None:
    """The windows differ, the values little: flat ones of 8x8 against Gaussian ones of 11x11."""
    gradio = pytest.importorskip("gradio")
    path = Path(gradio.__file__).parent / "media_assets" / "videos" / "world.mp4"
    clip = np.stack(list(itertools.islice(video_frames(path, size=(240, 136)), 3)))
    clip = clip // 2 + np.uint8(60)  # it is mostly black, where ffmpeg's C1 is not the paper's
    scores = {}
    for spoil in (blurred, compressed, noisy):
        spoiled = np.stack([spoil(frame) for frame in clip])
        scores[spoil] = ssim(spoiled, clip)
        assert scores[spoil] == pytest.approx(ssim_of_ffmpeg(spoiled, clip, tmp_path), abs=0.02)
    assert 0.98 > scores[compressed] > scores[noisy]
    assert 0.98 > scores[blurred] > scores[noisy]


def test_vmaf_of_noisy_videos() -> None:
    clip = moving(9)
    same, little, much = (vmaf(moving(9, noise), clip) for noise in (0, 10, 40))
    assert same > little > much


def test_what_cannot_be_compared() -> None:
    clip = moving(5)
    for compare in (ssim, vmaf):
        with pytest.raises(ValueError, match="cannot be compared"):
            compare(clip[:4], clip)
    small = moving(3, side=10)
    with pytest.raises(ValueError, match="ssim takes at least 11x11 pixels, got 10x10"):
        ssim(small, small)
    with pytest.raises(ValueError, match="vmaf takes at least 17x17 pixels, got 10x10"):
        vmaf(small, small)
    assert vmaf(*[moving(2, side=17)] * 2) > 90
