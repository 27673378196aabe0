"""Batches that trainers take: latents, images and videos, named in a file of annotations."""

from .batches import Batches, MixedBatches, loader
from .latents import LatentBatches

__all__ = ["Batches", "LatentBatches", "MixedBatches", "loader"]
