"""How time and memory of the transformer grow with the length and the size of a video.

Length: a video of n latents at 384p takes a step in each stage of each of its n units; its memory
is that of the last of them. Size: a step in the highest stage of unit 15. A CPU gets the narrower
model of `dit_step`. What is computed once a stage is not in our times. The exponent p of
cost ~ x^p is fitted to the last three points.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pyramid_dit import PyramidFluxTransformer
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.media.charts import Chart, draw_charts

from .dit_step import (
    LATE_UNIT,
    MB,
    VARIANTS,
    peak_memories,
    step_function,
)
from .flops import STAGES
from .measure import Times, alternate, device_name
from .report import (
    RESULTS,
    Cell,
    Report,
    finish,
    median,
    option_parser,
    rounds,
)
from .setups import FLUX_CONFIGS, random_flux, step_inputs

Size = tuple[int, int]
LENGTHS = (1, 2, 4, 8, 16, 31)
LENGTH_SIZE: Size = (384, 640)
SIZES: tuple[Size, ...] = ((192, 320), (384, 640), (576, 960), (768, 1280))
TINY_LENGTHS = (1, 2, 3)
TINY_SIZES: tuple[Size, ...] = ((64, 64), (64, 128), (128, 128))
FITTED_POINTS = 3


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """p of y ~ x^p, by least squares on the logarithms of the last points."""
    x, y = np.log(np.array(points[-FITTED_POINTS:])).T
    return float(np.polyfit(x, y, 1)[0])


def step_times(
    dit: PyramidFluxTransformer, size: Size, *, unit: int, stage: int, repeats: int, warm_up: bool
) -> Times:
    """Seconds of a step, by variant."""
    inputs = step_inputs(dit, *size, unit=unit, stage=stage)
    functions = {variant: step_function(variant, dit, inputs) for variant in VARIANTS}
    return alternate(functions, repeats=repeats, device=dit.device, warm_up=warm_up)


def video_seconds(
    dit: PyramidFluxTransformer, size: Size, lengths: Sequence[int]
) -> dict[str, list[float]]:
    """Seconds for a step in each stage of all units of videos of `lengths` latents."""
    spent = dict.fromkeys(VARIANTS, 0.0)
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for unit in range(max(lengths)):
        for stage in range(STAGES):
            warm_up = unit == 0
            times = step_times(dit, size, unit=unit, stage=stage, repeats=1, warm_up=warm_up)
            for variant in VARIANTS:
                spent[variant] += times[variant][0]
        if unit + 1 in lengths:
            for variant in VARIANTS:
                seconds[variant].append(spent[variant])
    return seconds


@torch.no_grad()
def measure(
    *,
    model: str,
    lengths: Sequence[int],
    length_size: Size,
    sizes: Sequence[Size],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    png: Path,
) -> Report:
    """Time and memory at all `lengths` and `sizes`; draws the chart `png`."""
    places = [(*length_size, length - 1, STAGES - 1) for length in lengths]
    places += [(*size, LATE_UNIT, STAGES - 1) for size in sizes]
    peaks = peak_memories(model, device, dtype, places)
    if device.type == "cpu":
        keep_freed_memory()  # for both
    dit = random_flux(model, device, dtype)
    seconds = video_seconds(dit, length_size, lengths)
    for size in sizes:
        times = step_times(
            dit, size, unit=LATE_UNIT, stage=STAGES - 1, repeats=repeats, warm_up=False
        )
        for variant in VARIANTS:
            seconds[variant].append(median(times[variant]))

    names = [f"{n} latent{'s' * (n > 1)}, {_name(length_size)}" for n in lengths]
    names += [f"unit {LATE_UNIT}, {_name(size)}" for size in sizes]
    xs = [*map(float, lengths), *(height * width / 1e6 for height, width in sizes)]
    rows: list[dict[str, Cell]] = []
    for index, name in enumerate(names):
        row: dict[str, Cell] = {"what": name}
        row |= {f"{variant}, s": seconds[variant][index] for variant in VARIANTS}
        row |= {f"{variant}, MB": round(peaks[variant][index] / MB) for variant in VARIANTS}
        rows.append(row)

    by_length, by_size = slice(len(lengths)), slice(len(lengths), None)
    fits, charts = [], []
    for part, label in ((by_length, "latents"), (by_size, "megapixels")):
        for quantity, table, unit in (("time, s", seconds, 1.0), ("peak memory, MB", peaks, MB)):
            lines = {}
            for variant in VARIANTS:
                values = [max(value / unit, 1e-6) for value in table[variant][part]]
                points = list(zip(xs[part], values, strict=True))
                power = exponent(points)
                lines[f"{variant}: x^{power:.2f}"] = points
                fits.append(f"{quantity.partition(',')[0]} of {variant} by {label} {power:.2f}")
            charts.append(Chart(f"{quantity}, by {label}", label, lines))
    draw_charts(charts, png)
    return Report(
        benchmark="scaling",
        device=device_name(device),
        settings=(
            f"Transformer `{model}` in {str(dtype).removeprefix('torch.')}, guidance as a batch "
            f"of two, {rounds(repeats)} by size; exponents: {', '.join(fits)}"
        ),
        rows=rows,
    )


def _name(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = option_parser(__doc__, repeats=3)
    parser.add_argument("--model", choices=FLUX_CONFIGS, default="narrow")
    parser.add_argument("--png", type=Path, default=RESULTS / "scaling.png", help="the chart")
    options = parser.parse_args(arguments)
    on_cpu = options.device.type == "cpu"
    report = measure(
        model="tiny" if options.tiny else options.model,
        lengths=TINY_LENGTHS if options.tiny else LENGTHS,
        length_size=TINY_SIZES[0] if options.tiny else LENGTH_SIZE,
        sizes=TINY_SIZES if options.tiny else SIZES,
        device=options.device,
        dtype=torch.float32 if on_cpu else torch.bfloat16,
        repeats=options.repeats,
        png=options.png,
    )
    finish(report, options)


if __name__ == "__main__":
    main()
