"""A whole run with the bundled checkpoint, from the prompt to the frames, the baseline's way and
ours.

Both step as the reference does and start from the same seed; beside them is ours as the checkpoint
recommends to step. A round of its own tells where the time goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.generation.components import Components

from .baseline.pipeline import BaselinePipeline
from .measure import (
    PhaseClock,
    alternate,
    device_name,
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
from .setups import REFERENCE_STEPS
from .steps import own_way

BASELINE, OURS, FEWER = "baseline", "ours", "ours, own steps"
PROMPT = "a red circle moves left on a white background"
CPU_BAR = 1.8
PHASES = ("text", "transformer", "jump noise", "decoding")


def watch_ours(clock: PhaseClock, model: Components) -> None:
    """Count what our models do."""
    clock.watch(model.text_encoder, ["forward"], "text")
    clock.watch(model.dit, ["prepare", "denoise"], "transformer")
    clock.watch(model.scheduler, ["sample_block_noise"], "jump noise")
    clock.watch(model.vae, ["decode_chunk"], "decoding")


def watch_baseline(clock: PhaseClock, baseline: BaselinePipeline) -> None:
    """Count what the baseline does."""
    clock.watch(baseline, ["encode_text"], "text")
    clock.watch(baseline.transformer, ["predict"], "transformer")
    clock.watch(baseline, ["draw_block_noise"], "jump noise")
    clock.watch(baseline.decoder, ["decode"], "decoding")


def phases(
    watch: Callable[[PhaseClock], None], run: Callable[[], object], device: torch.device
) -> dict[str, Cell]:
    """Seconds of each phase of `run`, and of what is left."""
    with PhaseClock(device) as clock:
        watch(clock)
        total = timed(run, device)
    seconds = {f"{phase}, s": clock.seconds[phase] for phase in PHASES}
    return {**seconds, "rest, s": total - sum(clock.seconds.values())}


def run_arguments(model: PyramidDiTForVideoGeneration, *, tiny: bool) -> dict[str, Any]:
    """The settings of the checkpoint with steps for the reference's solver, written out."""
    defaults = model.defaults
    assert defaults.num_frames is not None  # the bundled checkpoint's model_index.json has it
    frames = 9 if tiny else defaults.num_frames
    return {
        "height": defaults.height,
        "width": defaults.width,
        "temp": (frames - 1) // 8 + 1,
        **({name: [1, 1, 1] for name in REFERENCE_STEPS} if tiny else REFERENCE_STEPS),
        "guidance_scale": defaults.guidance_scale,
        "video_guidance_scale": defaults.video_guidance_scale,
        "negative_prompt": defaults.negative_prompt,
    }


def measure(*, device: torch.device, repeats: int, tiny: bool = False) -> Report:
    """Time of the run and of its phases."""
    model = PyramidDiTForVideoGeneration.from_pretrained(device=device)
    model.set_progress_bar_config(disable=True)
    components = model.video_generator.components
    baseline = BaselinePipeline(components)
    if device.type == "cpu":
        keep_freed_memory()  # for both
    arguments = run_arguments(model, tiny=tiny)
    own = {name: value for name, value in arguments.items() if name not in REFERENCE_STEPS}

    def run(generate: Callable[..., object], options: Mapping[str, Any]) -> object:
        return generate(PROMPT, generator=torch.Generator().manual_seed(0), **options)

    runs = {
        BASELINE: partial(run, baseline.generate, arguments),
        OURS: partial(run, model.generate, arguments | {"solver": "euler"}),
        FEWER: partial(run, model.generate, own),
    }
    watches = {
        BASELINE: partial(watch_baseline, baseline=baseline),
        OURS: partial(watch_ours, model=components),
        FEWER: partial(watch_ours, model=components),
    }
    times = alternate(runs, repeats=repeats, device=device)
    rows: list[dict[str, Cell]] = [
        {
            "way": way,
            "median, s": median(times[way]),
            "range, s": spread(times[way]),
            "speed-up": speed_up(times, BASELINE, way),
            **phases(watches[way], runs[way], device),
        }
        for way in runs
    ]
    frames = 8 * (arguments["temp"] - 1) + 1
    return Report(
        benchmark="generate",
        device=device_name(device),
        settings=(
            f"Bundled checkpoint, {frames} frames of {arguments['width']}x{arguments['height']}, "
            f"{arguments['num_inference_steps']} steps for the first unit and "
            f"{arguments['video_num_inference_steps']} for the others, the checkpoint's own being "
            f"`{own_way(model).name}`, {rounds(repeats)}; phases from one more run"
        ),
        rows=rows,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = option_parser(__doc__, repeats=5).parse_args(arguments)
    report = measure(device=options.device, repeats=options.repeats, tiny=options.tiny)
    if options.device.type == "cpu":
        value = number(report.rows[1], "speed-up")
        report.bars = [Bar("speed-up of the whole run", value, CPU_BAR, "x")]
    finish(report, options)


if __name__ == "__main__":
    main()
