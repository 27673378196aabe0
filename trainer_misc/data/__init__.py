"""Batches that trainers take: latents, images and videos, named in a file of annotations."""

from .batches import Batches, MixedBatches, loader
from .images import ImageBatches, StillBatches
from .latents import LatentBatches
from .videos import TextVideoBatches, VideoBatches

__all__ = [
    "Batches",
    "ImageBatches",
    "LatentBatches",
    "MixedBatches",
    "StillBatches",
    "TextVideoBatches",
    "VideoBatches",
    "loader",
]
