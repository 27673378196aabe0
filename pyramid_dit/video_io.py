"""Promised path of `media.video_files`."""

from .media.video_files import export_to_gif, export_to_video, read_video, video_frames

__all__ = ["export_to_gif", "export_to_video", "read_video", "video_frames"]
