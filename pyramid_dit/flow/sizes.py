"""Frames and latent frames, pixels and latents: whole numbers only."""

from __future__ import annotations

SPATIAL_FACTOR = 8
TEMPORAL_FACTOR = 8


def frames_of(temp: int) -> int:
    """Frames of a video of `temp` latent frames: 8 * (temp - 1) + 1."""
    return TEMPORAL_FACTOR * (temp - 1) + 1


def temp_of(num_frames: int) -> int:
    """Latent frames of a video of `num_frames` frames.

    Raises:
        ValueError: `num_frames` is not 8n + 1; the nearest ones that are get named.
    """
    temp, rest = divmod(num_frames - 1, TEMPORAL_FACTOR)
    if num_frames < 1:
        raise ValueError(f"the number of frames must be at least 1, got {num_frames}")
    if rest:
        below, above = frames_of(temp + 1), frames_of(temp + 2)
        raise ValueError(
            f"the number of frames must be 8n + 1, got {num_frames}; the nearest are {below} "
            f"and {above}"
        )
    return temp + 1


def added_temp_of(num_frames: int) -> int:
    """Latent frames that `num_frames` frames more are.

    Raises:
        ValueError: `num_frames` is no multiple of 8; the nearest ones that are get named.
    """
    temp, rest = divmod(num_frames, TEMPORAL_FACTOR)
    if rest:
        raise ValueError(
            f"a video is extended by a multiple of 8 frames, got {num_frames}; the nearest are "
            f"{frames_of(max(temp, 1) + 1) - 1} and {frames_of(max(temp, 1) + 2) - 1}"
        )
    return temp


def temp_of_seconds(
    seconds: float, frames_per_second: float = 24, *, frame_per_unit: int = 1
) -> int:
    """Latent frames of the video of whole units whose length is nearest to `seconds`.

    Raises:
        ValueError: `seconds` is not above 0.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"the length must be above 0 seconds, got {seconds}")
    unit = TEMPORAL_FACTOR * frame_per_unit
    return 1 + frame_per_unit * max(0, round((seconds * frames_per_second - 1) / unit))
