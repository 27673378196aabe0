"""Measures of videos: against a reference, against a set of others, and alone."""

from video_vae.round_trip import psnr

from .artifacts import block_edges, flicker
from .command import main, measure
from .frechet import frechet_distance, video_features
from .similarity import ssim, vmaf
from .sources import paired, sources_of

__all__ = [
    "block_edges",
    "flicker",
    "frechet_distance",
    "main",
    "measure",
    "paired",
    "psnr",
    "sources_of",
    "ssim",
    "video_features",
    "vmaf",
]
