"""Checks of what a caller hands to `generate`, at the door, and sizes and lengths put right."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .media.video_files import read_video

if TYPE_CHECKING:
    from PIL.Image import Image

SPATIAL_FACTOR = 8
TEMPORAL_FACTOR = 8
RELEASED_SIZES = "640x384, 1280x768, 768x1280, 1024x1024"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_OPAQUE_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


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
            f"a video goes on by a multiple of 8 frames, got {num_frames}; the nearest are "
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


def check_size(height: int, width: int, multiple: int) -> None:
    """Refuse a size whose latents do not survive the halvings and the 2x2 patch.

    Raises:
        TypeError: A side is not an integer.
        ValueError: A side is not a positive multiple of `multiple`.
    """
    for name, side in (("height", height), ("width", width)):
        check_count(name, side)
        if side % multiple:
            below = side // multiple * multiple
            nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise ValueError(
                f"{name} must be a multiple of {multiple} pixels, got {side}; try {nearest} "
                f"(sizes of the released models, width x height: {RELEASED_SIZES})"
            )


def check_temp(temp: int, frame_per_unit: int, *, from_image: bool) -> None:
    """Refuse a number of latent frames that is no whole number of units.

    Raises:
        TypeError: `temp` is not an integer.
        ValueError: `temp` is below 1, or does not fit `frame_per_unit`.
    """
    check_count("temp", temp)
    if from_image and temp % frame_per_unit:
        raise ValueError(f"temp must be a multiple of {frame_per_unit}, got {temp}")
    if not from_image and (temp - 1) % frame_per_unit:
        raise ValueError(f"temp must be 1 plus a multiple of {frame_per_unit}, got {temp}")


def check_steps(name: str, steps: int | Sequence[int], stages: int) -> list[int]:
    """Steps for each of the stages; one number serves all.

    Raises:
        TypeError: A number of steps is not an integer.
        ValueError: A number of steps is below 1, or the list has another length.
    """
    per_stage = list(steps) if isinstance(steps, Sequence) else [steps] * stages
    if len(per_stage) != stages:
        raise ValueError(
            f"{name} must be one number or {stages}, one a stage, got {len(per_stage)}: {per_stage}"
        )
    for count in per_stage:
        check_count(name, count)
    return per_stage


def check_output_type(output_type: str) -> None:
    """Refuse an unknown form of the result with a ValueError."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}"
        )


def check_prompts(prompt: str | Sequence[str], *, allow_empty: bool = False) -> list[str]:
    """The prompts as a list.

    Raises:
        TypeError: `prompt` is neither a string nor a sequence of strings.
        ValueError: There is no prompt, or one is blank and `allow_empty` does not hold.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty")
    for entry in prompts:
        if not isinstance(entry, str):
            raise TypeError(f"a prompt must be a string, got {type(entry).__name__}")
        if not allow_empty and not entry.strip():
            raise ValueError("the prompt is empty: say what the video should show")
    return prompts


def check_generator(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int
) -> torch.Generator | list[torch.Generator] | None:
    """One generator for all, or a list with one a sample.

    Raises:
        ValueError: The list does not fit the batch.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    generators = list(generator)
    if len(generators) != batch:
        raise ValueError(f"{len(generators)} generators for a batch of {batch}")
    return generators


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape with a ValueError."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def rgb_image(image: Image) -> Image:
    """`image` in RGB; what is transparent shows white.

    Raises:
        TypeError: `image` is no PIL image.
        ValueError: Its mode has no obvious meaning in 8-bit RGB (16-bit or float gray, Lab).
    """
    from PIL import Image as Images

    if not isinstance(image, Images.Image):
        raise TypeError(f"the image must be a PIL image, got {type(image).__name__}")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Images.new("RGBA", layer.size, "white")
        return Images.alpha_composite(white, layer).convert("RGB")
    if image.mode not in _OPAQUE_MODES:
        allowed = ", ".join((*_OPAQUE_MODES, *_ALPHA_MODES))
        raise ValueError(f"an image of mode {image.mode} is not supported, only {allowed}")
    return image.convert("RGB")


def fit_image(image: Image, width: int, height: int) -> Image:
    """`image` in RGB, scaled to cover `width` x `height` and cropped to it in the middle."""
    from PIL import Image as Images
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    return ImageOps.fit(rgb_image(upright), (width, height), method=Images.Resampling.LANCZOS)


def image_pixels(images: Image | Sequence[Image] | None) -> Tensor:
    """Images of one size as pixels `[b, 3, 1, h, w]`, float32 in [-1, 1].

    Raises:
        TypeError: One is no PIL image.
        ValueError: There is none, one has a mode that does not fit, or the sizes differ.
    """
    if images is None:
        raise ValueError("an input_image is needed, or image_latents")
    given = list(images) if isinstance(images, Sequence) else [images]
    if not given:
        raise ValueError("the list of images is empty")
    return _pixels(_one_size(given)).unsqueeze(2)


def video_pixels(
    video: str | PathLike[str] | Sequence[Image] | np.ndarray | None,
    most_frames: int,
    frame_per_unit: int,
) -> Tensor:
    """The end of a video as pixels `[1, 3, 8n + 1, h, w]`, float32 in [-1, 1]: whole units.

    Args:
        video: A file, images, or bytes `[t, h, w, 3]`.
        most_frames: Look at so many frames at most.
        frame_per_unit: Latent frames of every unit but unit 0.

    Raises:
        TypeError: A frame is no PIL image, or `most_frames` no integer.
        FileNotFoundError: There is no such file.
        ValueError: There is no video or no frame in it, the sizes differ, or `most_frames` is
            below 1.
    """
    check_count("history_frames", most_frames)
    if video is None:
        raise ValueError("a video is needed, or resume")
    frames = read_video(Path(video)) if isinstance(video, str | PathLike) else video
    if len(frames) == 0:
        raise ValueError("the video has no frames")
    unit = TEMPORAL_FACTOR * frame_per_unit
    last = frames[-((min(len(frames), most_frames) - 1) // unit * unit + 1) :]
    if not isinstance(last, np.ndarray):
        last = _one_size(last)
    elif last.ndim != 4 or last.shape[3] != 3 or last.dtype != np.uint8:
        raise ValueError(
            f"a video must be bytes [t, h, w, 3], got {last.dtype} of shape {list(last.shape)}"
        )
    return _pixels(last).transpose(0, 1).unsqueeze(0)


def _one_size(images: Sequence[Image]) -> np.ndarray:
    """Images as bytes `[n, h, w, 3]`."""
    converted = [rgb_image(image) for image in images]
    sizes = {image.size for image in converted}
    if len(sizes) > 1:
        raise ValueError(f"the images must have one size, got {sorted(sizes)}")
    return np.stack([np.asarray(image) for image in converted])


def _pixels(frames: np.ndarray) -> Tensor:
    """Bytes `[n, h, w, 3]` as `[n, 3, h, w]`, float32 in [-1, 1]."""
    return (torch.tensor(frames).float() / 127.5 - 1).movedim(-1, 1)


def check_count(name: str, value: int) -> None:
    """Refuse what is no integer (TypeError) or below 1 (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
