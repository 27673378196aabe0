"""Images and videos in the forms that diffusers' pipelines take, brought to a size."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from ..checkpoints.folder import GenerationDefaults
from ..inputs import fit_image
from .video_files import read_video

OneImage: TypeAlias = Image.Image | np.ndarray | Tensor
Images: TypeAlias = OneImage | Sequence[OneImage]
Video: TypeAlias = str | PathLike[str] | np.ndarray | Sequence[Image.Image]


def fit_images(
    images: Images, height: int | None, width: int | None, defaults: GenerationDefaults
) -> list[Image.Image]:
    """The images as PIL's, scaled and cropped to a size.

    Args:
        images: One or several: of PIL, arrays `[h, w, 3]` or tensors `[3, h, w]`; floats are in
            [0, 1]. With one more axis in front they are several.
        height: In pixels; by default that of `defaults`.
        width: In pixels; by default that of `defaults`. Where neither is given, the size stands
            or lies as the first image does; where `defaults` have none, images keep their own.

    Raises:
        TypeError: One is of another kind.
        ValueError: There is none, or an array has another shape.
    """
    listed = [images] if isinstance(images, OneImage) else images
    pictures = [picture for entry in listed for picture in _pictures(entry)]
    if not pictures:
        raise ValueError("the list of images is empty")
    first = pictures[0]
    chosen = height is not None or width is not None
    width, height = width or defaults.width, height or defaults.height
    if width is None or height is None:
        return pictures
    if not chosen and (first.width < first.height) != (width < height):
        width, height = height, width
    return [fit_image(picture, width, height) for picture in pictures]


def fit_video(video: Video, height: int | None, width: int | None, most_frames: int) -> Video:
    """The end of `video`, at most `most_frames`, scaled and cropped where a size is given.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Only one of height and width is given.
    """
    if height is None and width is None:
        return video
    if height is None or width is None:
        raise ValueError(f"height and width go together for a video, got {height} and {width}")
    frames = read_video(Path(video)) if isinstance(video, str | PathLike) else video
    pictures = [_pictures(frame)[0] for frame in frames[-most_frames:]]
    return [fit_image(picture, width, height) for picture in pictures]


def _pictures(images: OneImage) -> list[Image.Image]:
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, Tensor):
        array = images.detach().float().movedim(-3, -1).cpu().numpy()
    elif isinstance(images, np.ndarray):
        array = images
    else:
        raise TypeError(
            f"an image must be of PIL, an array or a tensor, got {type(images).__name__}"
        )
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(
            "an image must be an array [h, w, 3] or a tensor [3, h, w], got shape "
            f"{tuple(images.shape)}"
        )
    if array.dtype != np.uint8:
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(picture) for picture in array]
