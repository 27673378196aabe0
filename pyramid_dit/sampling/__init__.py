"""Tensors in, latents out: prompts, guidance, the loop over the units of a video."""
