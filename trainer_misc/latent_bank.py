"""Promised path of `toy.latent_bank`: `python -m trainer_misc.latent_bank`."""

from .toy.latent_bank import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
