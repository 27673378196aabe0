"""How near a video is to its reference, frame by frame: PSNR, SSIM and VMAF.

Videos are bytes `[t, h, w, 3]` of one shape. PSNR is that of `video_vae.round_trip`, over all
pixels, frames and colors together.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyramid_dit.media.ffmpeg import ffmpeg_says

VMAF_LINES = 480
"""Height in pixels from which on VMAF means what it says."""
LEAST_SIDES = {"ssim": 11, "vmaf": 17}
"""Pixels that both sides must have: SSIM's window; ffmpeg's VMAF crashes on smaller videos."""
_WINDOW, _DEVIATION = LEAST_SIDES["ssim"], 1.5  # of SSIM's Gaussian, in pixels
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _check(name: str, frames: np.ndarray, reference: np.ndarray) -> None:
    """Refuse with a ValueError what a measure cannot compare."""
    if frames.shape != reference.shape:
        raise ValueError(f"videos of {frames.shape} and {reference.shape} cannot be compared")
    height, width = frames.shape[1:3]
    least = LEAST_SIDES[name]
    if min(height, width) < least:
        raise ValueError(f"{name} takes at least {least}x{least} pixels, got {width}x{height}")


def luma(frames: np.ndarray) -> Iterator[Tensor]:
    """Brightness of each frame, float64 `[h, w]` in 0 to 255: 0.299 R + 0.587 G + 0.114 B."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return (torch.tensor(frame).double() @ weights for frame in frames)


def ssim(frames: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of the luma: at most 1, for equal videos.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity",
    eq. 13: a Gaussian window of 11x11 pixels with a deviation of 1.5, K1 = 0.01, K2 = 0.03. The
    mean over all windows that lie in the frame and over the frames.

    Args:
        frames: Bytes `[t, h, w, 3]`.
        reference: What it is compared with, of the same shape.

    Raises:
        ValueError: The shapes differ, or a side is below 11 pixels.
    """
    _check("ssim", frames, reference)
    place = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    bell = torch.exp(-(place**2) / (2 * _DEVIATION**2))
    bell /= bell.sum()
    values = [
        _frame_ssim(torch.stack((x, y)), bell)
        for x, y in zip(luma(frames), luma(reference), strict=True)
    ]
    return float(np.mean(values))


def _frame_ssim(pair: Tensor, bell: Tensor) -> float:
    """SSIM of two pictures `[2, h, w]`."""
    x, y = pair
    maps = torch.stack((x, y, x * x, y * y, x * y))
    for axis in (1, 2):  # several times as fast as conv2d in double precision
        length = maps.shape[axis] - len(bell) + 1
        blurred = torch.zeros_like(maps.narrow(axis, 0, length))
        for place, weight in enumerate(bell.tolist()):
            blurred.add_(maps.narrow(axis, place, length), alpha=weight)
        maps = blurred
    mean_x, mean_y, xx, yy, xy = maps
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((above / ((mean_x**2 + mean_y**2 + _C1) * (variances + _C2))).mean())


def vmaf(frames: np.ndarray, reference: np.ndarray) -> float:
    """VMAF of a video by the filter `libvmaf` of ffmpeg: 0 to 100, 100 for no visible loss.

    It is made for videos with at least 480 lines. Smaller ones can be compared with each other, but
    a single value means little.

    Args:
        frames: Bytes `[t, h, w, 3]`.
        reference: What it is compared with, of the same shape.

    Raises:
        ValueError: The shapes differ, or a side is below 17 pixels.
        OSError: ffmpeg has no such filter, or failed.
    """
    _check("vmaf", frames, reference)
    _, height, width, _ = frames.shape
    with tempfile.TemporaryDirectory() as folder:
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "24"]
        given = []
        for name, video in (("frames", frames), ("reference", reference)):
            path = Path(folder, f"{name}.raw")
            path.write_bytes(np.ascontiguousarray(video).data)
            given += [*raw, "-i", str(path)]
        log = Path(folder, "log.json")
        planes = "[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];[a][b]"
        wanted = f"log_fmt=json:log_path={_quoted(log)}:n_threads={os.cpu_count() or 1}"
        done = ffmpeg_says(
            [*given, "-lavfi", f"{planes}libvmaf={wanted}", "-f", "null", "-"], patience=None
        )
        if not log.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise OSError(f"ffmpeg does not measure VMAF: {said[-1] if said else done.returncode}")
        score: float = json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"]
    return score


def _quoted(path: Path) -> str:
    """A path inside of ffmpeg's filters."""
    text = path.as_posix()
    for mark in ("\\", ":", "'"):
        text = text.replace(mark, "\\" + mark)
    return f"'{text}'" if " " in text else text
