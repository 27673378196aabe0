"""`python -m pyramid_dit` is the command `pyramid-flow`."""

from __future__ import annotations

import sys

from .cli.command import main as make_video


def main() -> int:
    """Run `pyramid-flow` and return the exit status; the first word `page` serves the page."""
    if sys.argv[1:2] != ["page"]:
        return make_video()
    from .page.command import main as serve_page

    return serve_page(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
