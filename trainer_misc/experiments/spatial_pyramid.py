"""The spatial pyramid against flow matching at full resolution, at equal operations.

    python -m trainer_misc.experiments.spatial_pyramid --output output/arms

Section 3.2 of arXiv 2410.05954. Two transformers of one size learn to draw pictures of moving
shapes: one in three stages, one at full resolution alone. Each step has as many floating point
operations in both, so that the pyramid sees more pictures a step. Quality is the share of pictures
that the judge of shapes finds right.
"""

from __future__ import annotations

from collections.abc import Sequence

from .claims import Claim
from .report import FRECHET, RIGHT, Measure, Results, convergence_factor

ATTRIBUTES = Measure(("color", "background", "shape"), "attributes right, in %")
PYRAMID, FULL = "pictures-3-stages", "pictures-1-stage"
CLAIM = Claim(
    "spatial-pyramid",
    "Pictures",
    {PYRAMID: "3 stages", FULL: "full resolution"},
    (RIGHT, ATTRIBUTES, FRECHET),
)


def factors(results: Results) -> str:
    """How many times the operations full resolution takes, to the best that both get to."""
    lines = []
    for measure in CLAIM.measures:
        (pyramid, _), (full, _) = (results.curve(arm, measure) for arm in (PYRAMID, FULL))
        factor = convergence_factor(pyramid, full, measure) if pyramid and full else None
        if factor is not None:
            lines.append(
                f"To the best {measure.title} that both get to, full resolution takes "
                f"{factor:.1f} times the operations of three stages.\n"
            )
    return "\n" + "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and run."""
    CLAIM.run(__doc__, arguments, factors)


if __name__ == "__main__":
    main()
