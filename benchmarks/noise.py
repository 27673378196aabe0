"""The noise of a unit's two jumps: drawn block after block on the CPU, and in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyramid_dit import PyramidFlowMatchEulerDiscreteScheduler

from .baseline.pipeline import block_noise
from .flops import SPATIAL_FACTOR
from .measure import alternate, device_name, speed_up
from .report import (
    Cell,
    Report,
    finish,
    median,
    option_parser,
    rounds,
    spread,
)
from .setups import SIZES, TINY_SIZES

BASELINE, OURS = "baseline", "ours"
CHANNELS = 16


def measure(sizes: dict[str, tuple[int, int]], *, device: torch.device, repeats: int) -> Report:
    """Time of the draws for one latent frame at each of `sizes`, height and width in pixels."""
    scheduler = PyramidFlowMatchEulerDiscreteScheduler()
    generator = torch.Generator(device).manual_seed(0)
    rows: list[dict[str, Cell]] = []
    for name, (height, width) in sizes.items():
        sides = [(height // SPATIAL_FACTOR // k, width // SPATIAL_FACTOR // k) for k in (2, 1)]
        shapes = [(1, CHANNELS, 1, *side) for side in sides]

        def draw_baseline(shapes: Sequence[tuple[int, ...]] = shapes) -> None:
            for shape in shapes:
                block_noise(shape, scheduler.config.gamma).to(device)

        def draw_ours(shapes: Sequence[tuple[int, ...]] = shapes) -> None:
            for shape in shapes:
                scheduler.sample_block_noise(shape, generator=generator, device=device)

        ways = {BASELINE: draw_baseline, OURS: draw_ours}
        times = alternate(ways, repeats=repeats, device=device)
        rows += [
            {
                "size": name,
                "blocks": sum(CHANNELS * h * w // 4 for h, w in sides),
                "way": way,
                "median, s": median(times[way]),
                "range, s": spread(times[way]),
                "speed-up": speed_up(times, BASELINE, way),
            }
            for way in ways
        ]
    return Report(
        benchmark="noise",
        device=device_name(device),
        settings=f"Both jumps of one latent frame of {CHANNELS} channels, {rounds(repeats)}",
        rows=rows,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = option_parser(__doc__, repeats=5).parse_args(arguments)
    sizes = TINY_SIZES if options.tiny else SIZES
    finish(measure(sizes, device=options.device, repeats=options.repeats), options)


if __name__ == "__main__":
    main()
