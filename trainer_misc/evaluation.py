"""Promised path of `toy.evaluation`: `python -m trainer_misc.evaluation`."""

from .toy.evaluation import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
