"""Batches that trainers take: latents, images and videos, named in a file of annotations."""
