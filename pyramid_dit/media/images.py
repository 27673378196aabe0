"""Images and videos in the forms that diffusers' pipelines take, brought to a size."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..checks import FRAMES
from ..flow.sizes import TEMPORAL_FACTOR
from .rgb import byte_image, rgb_image
from .video_files import last_frames

OneImage: TypeAlias = Image.Image | np.ndarray | Tensor
Images: TypeAlias = OneImage | Sequence[OneImage]
Video: TypeAlias = str | PathLike[str] | np.ndarray | Sequence[Image.Image]


def pictures_of(images: Images) -> list[Image.Image]:
    """The images as PIL's.

    Args:
        images: One or several: of PIL, arrays `[h, w, 3]` or tensors `[3, h, w]`; floats are in
            [0, 1]. With one more axis in front they are several.

    Raises:
        TypeError: One is of another kind.
        ValueError: There is none, or an array has another shape.
    """
    listed = [images] if isinstance(images, OneImage) else images
    pictures = [picture for entry in listed for picture in _pictures(entry)]
    if not pictures:
        raise ValueError("the list of images is empty")
    return pictures


def fit_video(
    video: Video,
    height: int | None,
    width: int | None,
    most_frames: int,
    fps: float = 24,
) -> Video:
    """The end of `video`, at most `most_frames`, scaled and cropped where a size is given.

    A file is read at `fps` frames a second.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Only one of height and width is given.
    """
    if height is None and width is None:
        return video
    if height is None or width is None:
        raise ValueError(f"height and width go together for a video, got {height} and {width}")
    if isinstance(video, str | PathLike):
        return last_frames(Path(video), most_frames, size=(width, height), fps=fps)
    pictures = [_pictures(frame)[0] for frame in video[-most_frames:]]
    return [fit_image(picture, width, height) for picture in pictures]


def _pictures(images: OneImage) -> list[Image.Image]:
    if isinstance(images, Image.Image):
        return [rgb_image(images)]
    if isinstance(images, Tensor):
        array = images.detach().float().movedim(-3, -1).cpu().numpy()
    elif isinstance(images, np.ndarray):
        array = images
    else:
        raise TypeError(
            f"an image must be a PIL image, an array or a tensor, got {type(images).__name__}"
        )
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(
            "an image must be an array [h, w, 3] or a tensor [3, h, w], got shape "
            f"{tuple(images.shape)}"
        )
    array = byte_image(array, "an image")
    return [Image.fromarray(picture) for picture in array]


def fit_image(image: Image.Image, width: int, height: int) -> Image.Image:
    """`image` as by `rgb_image`, scaled to cover `width` x `height`, cropped in the middle."""
    return ImageOps.fit(rgb_image(image), (width, height), method=Image.Resampling.LANCZOS)


def image_pixels(images: Image.Image | Sequence[Image.Image] | None) -> Tensor:
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
    video: str | PathLike[str] | Sequence[Image.Image] | np.ndarray | None,
    most_frames: int,
    frame_per_unit: int,
    fps: float = 24,
) -> Tensor:
    """The end of a video as pixels `[1, 3, 8n + 1, h, w]`, float32 in [-1, 1]: whole units.

    Args:
        video: A file, images, or bytes `[t, h, w, 3]`.
        most_frames: Look at so many frames at most.
        frame_per_unit: Latent frames of every unit but unit 0.
        fps: Frames a second that a file is read at.

    Raises:
        TypeError: A frame is no PIL image, or `most_frames` no integer.
        FileNotFoundError: There is no such file.
        ValueError: There is no video or no frame in it, the sizes differ, or `most_frames` is
            below 1.
    """
    FRAMES("history_frames", most_frames)
    if video is None:
        raise ValueError("pass a video, or resume")
    frames = video
    if isinstance(frames, str | PathLike):
        frames = last_frames(Path(frames), most_frames, fps=fps)
    if len(frames) == 0:
        raise ValueError("the video has no frames")
    unit = TEMPORAL_FACTOR * frame_per_unit
    last = frames[-((min(len(frames), most_frames) - 1) // unit * unit + 1) :]
    if not isinstance(last, np.ndarray):
        last = _one_size(last)
    elif last.ndim != 4 or last.shape[3] != 3 or last.dtype != np.uint8:
        raise ValueError(
            f"a video must be bytes, a uint8 array [t, h, w, 3], "
            f"got {last.dtype} of shape {list(last.shape)}"
        )
    return _pixels(last).transpose(0, 1).unsqueeze(0)


def _one_size(images: Sequence[Image.Image]) -> np.ndarray:
    """Images as bytes `[n, h, w, 3]`."""
    converted = [rgb_image(image) for image in images]
    sizes = {image.size for image in converted}
    if len(sizes) > 1:
        raise ValueError(f"the images must have one size, got {sorted(sizes)}")
    return np.stack([np.asarray(image) for image in converted])


def _pixels(frames: np.ndarray) -> Tensor:
    """Bytes `[n, h, w, 3]` as `[n, 3, h, w]`, float32 in [-1, 1]."""
    return (torch.tensor(frames).float() / 127.5 - 1).movedim(-1, 1)
