"""Promised path of what brings pictures, videos and lengths into the forms that are taken."""

from .flow.sizes import added_temp_of, frames_of, temp_of, temp_of_seconds
from .media.images import fit_image, image_pixels, video_pixels
from .media.rgb import rgb_image

__all__ = [
    "added_temp_of",
    "fit_image",
    "frames_of",
    "image_pixels",
    "rgb_image",
    "temp_of",
    "temp_of_seconds",
    "video_pixels",
]
