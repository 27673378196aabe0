"""`python -m pyramid_dit` is the command `pyramid-flow`."""

import sys

from .cli.command import main

if __name__ == "__main__":
    sys.exit(main())
