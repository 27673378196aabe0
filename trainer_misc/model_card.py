"""Promised path of `toy.model_card`: `python -m trainer_misc.model_card`."""

from .toy.model_card import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
