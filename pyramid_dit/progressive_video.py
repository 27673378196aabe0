"""Documented path of `media.progressive_video`."""

from .media.progressive_video import CollectedFrames, ProgressiveVideo, open_video

__all__ = ["CollectedFrames", "ProgressiveVideo", "open_video"]
