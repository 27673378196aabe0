"""Blockwise causal attention against attention from every frame to every other.

    python -m trainer_misc.experiments.attention --output output/arms

Section 3.3 of arXiv 2410.05954. Both transformers make clips of moving shapes unit by unit with the
temporal pyramid; in one of them the frames of the history see later ones, and the frame that is
being made, too. Both have as many operations in training.
"""

from __future__ import annotations

from collections.abc import Sequence

from .claims import Claim
from .report import RIGHT
from .temporal_pyramid import ATTRIBUTES, MOTION

CLAIM = Claim(
    "attention",
    "Clips",
    {"clips-autoregressive": "blockwise causal", "clips-bidirectional": "bidirectional"},
    (RIGHT, ATTRIBUTES, MOTION),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and run."""
    CLAIM.run(__doc__, arguments)


if __name__ == "__main__":
    main()
