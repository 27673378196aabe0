"""Promised path of `media.video_files`: frames to files and back."""

from .media.video_files import (
    export_to_gif,
    export_to_png_folder,
    export_to_video,
    output_format,
    read_video,
    save_frames,
    video_frames,
    video_size,
)

__all__ = [
    "export_to_gif",
    "export_to_png_folder",
    "export_to_video",
    "output_format",
    "read_video",
    "save_frames",
    "video_frames",
    "video_size",
]
