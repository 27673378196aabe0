"""The command line: `pyramid-flow`, or `python -m pyramid_dit`."""

from .command import main

__all__ = ["main"]
