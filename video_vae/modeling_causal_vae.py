"""The reference's path of the VAE."""

from .autoencoder import CausalVideoVAE

__all__ = ["CausalVideoVAE"]
