"""The page in the browser: `python app.py`, then open the address that it prints."""

from __future__ import annotations

import sys

from pyramid_dit.page.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python app.py", [__file__]))
