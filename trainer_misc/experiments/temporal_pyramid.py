"""The temporal pyramid, unit by unit, against diffusion of full sequences, at equal operations.

    python -m trainer_misc.experiments.temporal_pyramid --output output/arms

Section 3.3 of arXiv 2410.05954. Two transformers of one size learn clips of 49 frames of moving
shapes, both in three spatial stages: one makes a latent frame at a time, with the frames before it
at falling resolution, and one all seven at once. Quality is the share of clips whose color, shape,
motion and background the judge of shapes finds right.

It also counts the tokens of a video of 10 seconds in 768p, 1280x768 pixels and 241 frames, from the
layout of the model's history.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyramid_dit.flow.sizes import SPATIAL_FACTOR, temp_of
from pyramid_dit.flow.temporal_pyramid import history_plan
from pyramid_dit.models.token_layout import PATCH

from .claims import Claim
from .report import RIGHT, Measure, Results

ATTRIBUTES = Measure(("color", "background", "shape", "motion"), "attributes right, in %")
MOTION = Measure(("motion",), "motion right, in %")
CLAIM = Claim(
    "temporal-pyramid",
    "Clips",
    {"clips-autoregressive": "unit by unit", "clips-full-sequence": "full sequence"},
    (RIGHT, ATTRIBUTES, MOTION),
)
HEIGHT, WIDTH, FRAMES, STAGES = 768, 1280, 241, 3


def video_tokens(height: int, width: int, frames: int, stages: int = STAGES) -> tuple[int, int]:
    """Video tokens of the last unit with its history at the highest stage, and of the sequence.

    Args:
        height: Of the video in pixels.
        width: Of the video in pixels.
        frames: Of the video, 8n + 1.
        stages: Of the spatial pyramid.
    """

    def of_frame(stage: int) -> int:
        side = SPATIAL_FACTOR * PATCH * 2 ** (stages - 1 - stage)
        return (height // side) * (width // side)

    temp, top = temp_of(frames), stages - 1
    plan = history_plan(temp - 1, top)
    history = sum((clip.stop - clip.start) * of_frame(clip.stage) for clip in plan)
    return history + of_frame(top), temp * of_frame(top)


def tokens(results: Results) -> str:
    """The tokens in words."""
    pyramid, full = video_tokens(HEIGHT, WIDTH, FRAMES)
    return (
        f"\nTokens of a video of 10 seconds in 768p, counted from the layout: {full:,} at full "
        f"length and resolution, and at most {pyramid:,} with the temporal pyramid, a factor of "
        f"{full / pyramid:.2f}.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and run."""
    CLAIM.run(__doc__, arguments, tokens)


if __name__ == "__main__":
    main()
