"""Measures of videos: against a reference, against a set of others, and alone."""

from .frechet import frechet_distance, video_features

__all__ = ["frechet_distance", "video_features"]
