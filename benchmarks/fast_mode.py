"""What each approximation saves and costs, on the bundled checkpoint.

Every way makes the same videos from the same seeds. The latents are compared with the exact ones,
and the frames are judged by the project's evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.hooks import FirstBlockCacheConfig
from torch import Tensor

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.devices.cpu import keep_freed_memory
from trainer_misc.toy.evaluation import evaluation_prompts
from trainer_misc.toy.tables import evaluate_frames

from .measure import device_name
from .report import Report, finish, option_parser
from .setups import REFERENCE_STEPS

BATCH = 10


@contextmanager
def approximately(model: PyramidDiTForVideoGeneration, **options: Any) -> Iterator[None]:
    """The fast mode, while the context is open."""
    model.enable_fast_mode(**options)
    try:
        yield
    finally:
        model.disable_fast_mode()


@contextmanager
def _first_block_cache(model: PyramidDiTForVideoGeneration, threshold: float) -> Iterator[None]:
    model.dit.enable_cache(FirstBlockCacheConfig(threshold))
    try:
        yield
    finally:
        model.dit.disable_cache()


Way = Callable[[PyramidDiTForVideoGeneration], Any]
EXACT = "exact"
WAYS: dict[str, Way] = {
    EXACT: approximately,
    "history_cache=2": partial(approximately, history_cache=2),
    "history_cache=4": partial(approximately, history_cache=4),
    "guidance_interval=(0, 0.67)": partial(approximately, guidance_interval=(0.0, 0.67)),
    "guidance_interval=(0, 0.34)": partial(approximately, guidance_interval=(0.0, 0.34)),
    "history_window=4": partial(approximately, history_window=4),
    "history_window=2": partial(approximately, history_window=2),
    "history_cache=4, guidance_interval=(0, 0.67)": partial(
        approximately, history_cache=4, guidance_interval=(0.0, 0.67)
    ),
    "FirstBlockCacheConfig(0.1)": partial(_first_block_cache, threshold=0.1),
    "FirstBlockCacheConfig(0.3)": partial(_first_block_cache, threshold=0.3),
}


def make_latents(
    model: PyramidDiTForVideoGeneration,
    prompts: Sequence[str],
    temp: int,
    *,
    batch: int = BATCH,
    **options: Any,
) -> tuple[Tensor, float]:
    """Latents of a video for every prompt, `batch` at a time, and the seconds that took.

    `options` are other arguments of `generate`.
    """
    began, parts = time.perf_counter(), []
    options |= {"temp": temp, "output_type": "latent"}
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        parts.append(model.generate(some, generator=generators, **options))
    return torch.cat(parts), time.perf_counter() - began


@torch.no_grad()
def decode(model: PyramidDiTForVideoGeneration, latents: Tensor) -> Iterator[Any]:
    """Frames `[t, h, w, 3]` of every video, in 0 to 1."""
    assert model.vae is not None
    for row in model.statistics.denormalize(latents).split(1):
        video = model.vae.decode(row.to(model.vae.dtype)).sample[0]
        yield (video.float().clamp(-1, 1) * 0.5 + 0.5).permute(1, 2, 3, 0).cpu().numpy()


def measure(*, device: torch.device, count: int, temp: int) -> Report:
    """Every way on `count` prompts, with videos of `temp` latent frames."""
    keep_freed_memory()
    model = PyramidDiTForVideoGeneration.from_pretrained(device=device)
    model.set_progress_bar_config(disable=True)
    prompts = evaluation_prompts(count)
    options = {"solver": "euler", **REFERENCE_STEPS}
    make_latents(model, prompts[:1], temp, **options)
    exact, exact_seconds = make_latents(model, prompts, temp, **options)
    rows = []
    for name, way in WAYS.items():
        latents, seconds = exact, exact_seconds
        if name != EXACT:
            with way(model):
                latents, seconds = make_latents(model, prompts, temp, **options)
        table = evaluate_frames(zip(decode(model, latents), prompts, strict=True))
        error = (latents - exact).square().mean().sqrt() / exact.std()
        rows.append(
            {
                "way": name,
                "transformer, s": seconds,
                "speed-up": exact_seconds / seconds,
                "latent error": float(error),
                "shape, %": 100 * table.rate("all clips", "shape"),
                "all four, %": 100 * table.rate("all clips", "all"),
            }
        )
    steps = REFERENCE_STEPS["video_num_inference_steps"]
    return Report(
        benchmark="fast_mode",
        device=device_name(device),
        settings=(
            f"{count} videos of {8 * (temp - 1) + 1} frames, {steps} steps in the stages of a "
            "unit; the latent error is a root mean square, relative to the latents' deviation"
        ),
        rows=rows,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = option_parser(__doc__, repeats=50)
    options = parser.parse_args(arguments)
    if options.tiny:
        report = measure(device=options.device, count=1, temp=2)
    else:
        report = measure(device=options.device, count=options.repeats, temp=7)
    finish(report, options)


if __name__ == "__main__":
    main()
