"""Batches that trainers take: latents, images and videos, named in a file of annotations."""

from .batches import Batches, MixedBatches, loader
from .latents import LatentBatches
from .pixels import ImageBatches, StillBatches, TextVideoBatches, VideoBatches

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
