"""One step of the transformer late in a video, the baseline's way and ours.

The step is one velocity with guidance, a batch of two, in the unit that makes the 16th latent
(the last one of five seconds). A CPU gets a narrower model with the token layout of the released
one: 6 heads of 64, 2 joint and 4 single blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from pyramid_dit import PyramidFluxTransformer
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.models.transformer import StageContext

from .baseline.transformer import baseline_transformer
from .flops import baseline_step_flops, step_flops
from .measure import (
    Times,
    alternate,
    device_name,
    in_fresh_process,
    matmul_peak,
    peak_memory,
    speed_up,
    timed,
)
from .report import (
    Bar,
    Cell,
    Report,
    finish,
    median,
    number,
    option_parser,
    rounds,
    spread,
)
from .setups import (
    FLUX_CONFIGS,
    SIZES,
    TINY_SIZES,
    StepInputs,
    random_flux,
    step_inputs,
)

BASELINE, OURS = "baseline", "ours"
VARIANTS = (BASELINE, OURS)
LATE_UNIT = 15
CPU_BARS = {"768p": 2.2, "384p": 1.3}
CPU_MEMORY_BAR = 1 / 3
MB = 1e6


def step_function(
    variant: str, dit: PyramidFluxTransformer, inputs: StepInputs
) -> Callable[[], torch.Tensor]:
    """A function that computes the velocity; what we compute once a stage is done before."""
    text = inputs.text
    if variant == BASELINE:
        baseline = baseline_transformer(dit)
        return lambda: baseline.predict(
            [*inputs.history, inputs.guided_latents],
            *text,
            inputs.timestep,
        )
    context = prepare(dit, inputs)
    return lambda: dit.denoise(inputs.guided_latents, inputs.timestep, context)


def prepare(dit: PyramidFluxTransformer, inputs: StepInputs) -> StageContext:
    """What we compute once a stage."""
    text, shape = inputs.text, inputs.guided_latents.shape
    return dit.prepare(inputs.history, shape, *text)


Place = tuple[int, int, int, int]
"""Height and width in pixels, unit, stage."""


def peak_memories(
    model: str, device: torch.device, dtype: torch.dtype, places: Sequence[Place]
) -> dict[str, list[int]]:
    """Bytes that a step takes at each of `places`, by variant, beside weights and inputs.

    On a CPU a fresh process measures them, so that nothing that ran before is counted.
    """
    arguments = (model, device, dtype, list(places))
    if device.type == "cpu":
        return in_fresh_process(_peak_memories, *arguments)
    return _peak_memories(*arguments)


@torch.no_grad()
def _peak_memories(
    model: str, device: torch.device, dtype: torch.dtype, places: Sequence[Place]
) -> dict[str, list[int]]:
    dit = random_flux(model, device, dtype)
    peaks: dict[str, list[int]] = {variant: [] for variant in VARIANTS}

    def run(variant: str, inputs: StepInputs) -> None:
        step_function(variant, dit, inputs)()  # with what belongs to a whole stage

    for variant in VARIANTS:
        run(variant, step_inputs(dit, 64, 64, unit=0))  # libraries allocate things at first use
        for height, width, unit, stage in places:
            inputs = step_inputs(dit, height, width, unit=unit, stage=stage)
            peaks[variant].append(peak_memory(partial(run, variant, inputs), device))
    return peaks


def step_rows(
    name: str,
    dit: PyramidFluxTransformer,
    inputs: StepInputs,
    times: Times,
    peaks: dict[str, int],
    matmul_flops: float,
) -> list[dict[str, Cell]]:
    """A row for each variant."""
    needed = step_flops(dit, inputs.rows)
    done = {BASELINE: baseline_step_flops(dit, inputs.padded_rows), OURS: needed}
    return [
        {
            "layout": name,
            "tokens": inputs.padded_rows[0].total if v == BASELINE else inputs.rows[1].total,
            "way": v,
            "median, s": median(times[v]),
            "range, s": spread(times[v]),
            "speed-up": speed_up(times, BASELINE, v),
            "TFLOP done": done[v] / 1e12,
            "TFLOP needed": needed / 1e12,
            "% of matmul": 100 * needed / median(times[v]) / matmul_flops,
            "peak memory, MB": round(peaks[v] / MB),
        }
        for v in VARIANTS
    ]


@torch.no_grad()
def measure(
    sizes: dict[str, tuple[int, int]],
    *,
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    unit: int = LATE_UNIT,
    stage: int = 2,
) -> Report:
    """Time and memory of the step at each of `sizes`."""
    dit = random_flux(model, device, dtype)
    places = [(*size, unit, stage) for size in sizes.values()]
    peaks = peak_memories(model, device, dtype, places)
    if device.type == "cpu":
        keep_freed_memory()  # for both
    matmul_flops = matmul_peak(device, dtype)
    rows: list[dict[str, Cell]] = []
    preparations = []
    for index, (name, (height, width)) in enumerate(sizes.items()):
        inputs = step_inputs(dit, height, width, unit=unit, stage=stage)
        functions = {v: step_function(v, dit, inputs) for v in VARIANTS}
        times = alternate(functions, repeats=repeats, device=device)
        peak = {v: peaks[v][index] for v in VARIANTS}
        rows += step_rows(name, dit, inputs, times, peak, matmul_flops)
        seconds = timed(partial(prepare, dit, inputs), device)
        preparations.append(f"{seconds * 1000:.3g} ms at {name}")
    return Report(
        benchmark="dit_step",
        device=device_name(device),
        settings=(
            f"Transformer `{model}` in {str(dtype).removeprefix('torch.')}, unit {unit}, stage "
            f"{stage}, guidance as a batch of two, {rounds(repeats)}; a matrix product reaches "
            f"{matmul_flops / 1e12:.3g} TFLOP/s; beside the steps ours computes once a stage, "
            f"{', '.join(preparations)}"
        ),
        rows=rows,
    )


def cpu_bars(report: Report) -> list[Bar]:
    """What a CPU should reach."""
    bars = []
    for before, after in zip(report.rows[::2], report.rows[1::2], strict=True):
        name = str(after["layout"])
        bars.append(Bar(f"speed-up at {name}", number(after, "speed-up"), CPU_BARS[name], "x"))
        if name == "768p":
            share = number(after, "peak memory, MB") / max(number(before, "peak memory, MB"), 1)
            bars.append(
                Bar(
                    "peak memory at 768p, of the baseline's",
                    100 * share,
                    100 * CPU_MEMORY_BAR,
                    "%",
                    at_least=False,
                )
            )
    return bars


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = option_parser(__doc__, repeats=5)
    parser.add_argument("--layout", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--model", choices=FLUX_CONFIGS, default="narrow")
    parser.add_argument("--unit", type=int, default=LATE_UNIT, help="default: %(default)s")
    parser.add_argument("--stage", type=int, choices=range(3), default=2, help="default: 2")
    options = parser.parse_args(arguments)
    sizes = TINY_SIZES if options.tiny else SIZES
    on_cpu = options.device.type == "cpu"
    report = measure(
        {name: sizes[name] for name in options.layout or sizes},
        model="tiny" if options.tiny else options.model,
        device=options.device,
        dtype=torch.float32 if on_cpu else torch.bfloat16,
        repeats=options.repeats,
        unit=options.unit,
        stage=options.stage,
    )
    if on_cpu and options.unit == LATE_UNIT and options.stage == 2:
        report.bars = cpu_bars(report)
    finish(report, options)


if __name__ == "__main__":
    main()
