"""One factor at a time: number of stages, gamma, noise in the history, length of the training.

    python -m trainer_misc.experiments.factors --output output/arms

Each arm differs from the usual one in one setting, at as many operations of training, with one
seed. Clips are sampled to 97 frames in the end, nearly twice as long as those of the training, and
their last 25 frames judged on their own: what is lost there has drifted away.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import spatial_pyramid, temporal_pyramid
from .claims import Claim
from .report import FRECHET, RIGHT, Measure

LAST = Measure(("last_all",), "all right in the last second of 97 frames, in %")
LAST_ATTRIBUTES = Measure(
    ("last_color", "last_background", "last_shape", "last_motion"), "attributes right there, in %"
)
STAGES = Claim(
    "stages",
    "Pictures",
    {
        "pictures-1-stage": "K = 1",
        "pictures-2-stages": "K = 2",
        "pictures-3-stages": "K = 3",
    },
    (RIGHT, spatial_pyramid.ATTRIBUTES, FRECHET),
    seeds=1,
)
GAMMA = Claim(
    "gamma",
    "Pictures",
    {
        "pictures-3-stages": "gamma = 1/3",
        "pictures-gamma-0.2": "gamma = 0.2",
        "pictures-gamma-0.05": "gamma = 0.05",
    },
    (RIGHT, spatial_pyramid.ATTRIBUTES, FRECHET),
    seeds=1,
)
DRIFT = Claim(
    "drift",
    "Clips",
    {
        "clips-autoregressive": "as usual",
        "clips-clean-history": "clean history",
        "clips-short-training": "trained on 17 frames",
    },
    (RIGHT, temporal_pyramid.ATTRIBUTES),
    seeds=1,
    at_the_end=(RIGHT, temporal_pyramid.ATTRIBUTES, LAST, LAST_ATTRIBUTES),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and run."""
    for claim in (STAGES, GAMMA, DRIFT):
        claim.run(__doc__, arguments)


if __name__ == "__main__":
    main()
