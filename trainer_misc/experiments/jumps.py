"""The jump between stages with the corrective noise, with white noise, and with none.

    python -m trainer_misc.experiments.jumps --output output/jumps

Section 3.2 of arXiv 2410.05954: nearest up-sampling repeats each value over a block of 2x2, and the
noise of a jump has covariances that cancel what that leaves between the values of a block. The
default checkpoint is sampled with this noise, with white noise of the same size, and without noise,
everything else being equal: pictures with few and with more steps, and clips.

What is measured is the energy at the edges of blocks, the mean square of the difference of
neighbors. In latents it is that between blocks of 2x2 over that inside of them; in frames, that at
every 16th pixel, where such blocks meet, over that halfway between, without differences of more
than `OUTLINE`, which are the shapes' own. Both are 1 without blocks.

The same is measured of latents at the start of the last stage: where training has it, and where
the jump leads from the exact end of the stage before. There it is the energy inside of blocks over
that between them, 0 where a block has one value.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.files import replacing
from pyramid_dit.flow.latents import latent_pyramid
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from pyramid_dit.generation.latent_codec import DecodeSizes, decode_latents
from pyramid_dit.generation.video_generator import VideoGenerator
from pyramid_dit.json_files import read_json
from pyramid_dit.media.figures import picture_grid

from ..measure.artifacts import block_edges
from ..toy.evaluation import evaluation_prompts
from ..toy.judge import ATTRIBUTES, judge
from ..toy.tables import Judged
from .flags import new_parser

BLOCK_PIXELS = 16
OUTLINE = 16
"""Of 255."""
SHOWN = 6
"""Pictures of the figure for each kind of jump."""


class WhiteJumps(PyramidFlowMatchEulerDiscreteScheduler):
    """The scheduler with white noise of unit variance, as that of n', in its jumps."""

    def sample_block_noise(self, shape: Sequence[int], **options: Any) -> Tensor:
        """White noise; arguments as in the base class."""
        device = torch.device(options.pop("device", None) or "cpu")
        return randn_tensor(tuple(shape), device=device, **options)


class BareJumps(PyramidFlowMatchEulerDiscreteScheduler):
    """The scheduler without noise in its jumps, which scale and up-sample only."""

    def sample_block_noise(self, shape: Sequence[int], **options: Any) -> Tensor:
        """Zeros; arguments as in the base class."""
        return torch.zeros(*shape, device=options.get("device"), dtype=options.get("dtype"))


CORRECTIVE = "corrective"
JUMPS: dict[str, type[PyramidFlowMatchEulerDiscreteScheduler]] = {
    CORRECTIVE: PyramidFlowMatchEulerDiscreteScheduler,
    "white": WhiteJumps,
    "none": BareJumps,
}


@dataclass(frozen=True)
class Setting:
    """What is sampled: `samples` videos of `temp` latent frames, with `steps` in each stage."""

    name: str
    temp: int
    steps: int
    samples: int


SETTINGS = (
    Setting("pictures, 3 steps a stage", 1, 3, 96),
    Setting("pictures, 10 steps a stage", 1, 10, 48),
    Setting("clips of 17 frames, 3 steps a stage", 3, 3, 12),
)
QUICK_SETTINGS = (Setting("pictures, 1 step a stage", 1, 1, 2),)


def latent_block_edges(latents: Tensor) -> float:
    """Energy at the edges of blocks of 2x2 over that inside, of latents `[b, c, t, h, w]`."""
    return block_edges(latents.movedim(1, -1).flatten(0, 1).cpu().numpy(), 2)


def frame_block_edges(frames: np.ndarray) -> float:
    """Energy at every 16th pixel over that halfway between, of frames `[..., h, w, 3]`, uint8."""
    across, between = 0.0, 0.0
    for axis in (-3, -2):
        steps = np.moveaxis(np.diff(frames.astype(np.float32), axis=axis), axis, 0)
        across += _energy(steps[BLOCK_PIXELS - 1 :: BLOCK_PIXELS])
        between += _energy(steps[BLOCK_PIXELS // 2 - 1 :: BLOCK_PIXELS])
    return across / between


def _energy(steps: np.ndarray) -> float:
    small = steps[np.abs(steps) <= OUTLINE]
    return float(np.mean(np.square(small)))


def starts(clean: Tensor, seed: int) -> dict[str, float]:
    """Energy inside of blocks over that between them at the start of the last stage.

    Args:
        clean: Latents `[b, c, t, h, w]`.
        seed: Of the noise.

    Returns:
        "training", where a training begins, and where each of the jumps leads.
    """
    rng = torch.Generator().manual_seed(seed)
    scheduler = PyramidFlowMatchEulerDiscreteScheduler()
    last = scheduler.config.stages - 1
    *_, coarse, fine = latent_pyramid(clean.cpu(), scheduler.config.stages)
    white = torch.randn(fine.shape, generator=rng)
    found = {"training": scheduler.stage_start(last, white, coarse)}
    end = scheduler.stage_end(last - 1, torch.randn(coarse.shape, generator=rng), coarse)
    for jump, kind in JUMPS.items():
        noise = kind().sample_block_noise(fine.shape, generator=rng)
        found[jump] = scheduler.jump(end, last, noise)
    return {name: 1 / latent_block_edges(latents) for name, latents in found.items()}


class Sampler:
    """The default checkpoint with other jumps."""

    def __init__(self, device: str) -> None:
        model = PyramidDiTForVideoGeneration.from_pretrained(None, device=device)
        self.components = model.video_generator.components

    def latents(self, setting: Setting, jump: str, seed: int) -> Tensor:
        """Normalized latents `[n, c, t, h, w]`."""
        scheduler = JUMPS[jump].from_config(self.components.scheduler.config)
        generator = VideoGenerator(replace(self.components, scheduler=scheduler))
        generator.set_progress_bar_config(disable=True)
        prompts = evaluation_prompts(setting.samples)
        sources = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(prompts))]
        steps = [setting.steps] * self.components.stages
        latents: Tensor = generator.generate(
            prompts,
            temp=setting.temp,
            num_inference_steps=steps,
            video_num_inference_steps=steps,
            generator=sources,
            output_type="latent",
        )
        return latents

    def frames(self, latents: Tensor) -> np.ndarray:
        """Frames `[n, t, h, w, 3]`, uint8."""
        vae, statistics = self.components.vae, self.components.statistics
        assert vae is not None
        sizes = DecodeSizes.of(save_memory=False)
        parts = [
            decode_latents(vae, statistics, part, device=self.components.device, sizes=sizes).cpu()
            for part in latents.split(8)
        ]
        return np.asarray(torch.cat(parts).numpy())


def measured(setting: Setting, latents: Tensor, frames: np.ndarray) -> dict[str, Any]:
    """Energies at the edges of blocks, and the share of the samples in which all is right."""
    names = [name for name in ATTRIBUTES if setting.temp > 1 or name != "motion"]
    verdicts = [
        Judged(prompt, judge(clip))
        for prompt, clip in zip(evaluation_prompts(setting.samples), frames, strict=True)
    ]
    right = [all(one.right(name) for name in names) for one in verdicts]
    return {
        "latent_edges": latent_block_edges(latents),
        "frame_edges": frame_block_edges(frames),
        "right": sum(right) / len(right),
    }


def run(folder: Path, *, device: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Sample and measure what is not in the result yet, which is written after each."""
    folder.mkdir(parents=True, exist_ok=True)
    file, figure = folder / "jumps.json", folder / "jumps.png"
    settings = QUICK_SETTINGS if quick else SETTINGS
    result: dict[str, Any] = read_json(file) if file.is_file() else {"runs": []}
    done = {(run["setting"]["name"], run["jump"], run["seed"]) for run in result["runs"]}
    sampler = Sampler(device)
    if not figure.is_file():
        _draw(sampler, settings[0], figure)
    for setting, seed, jump in itertools.product(settings, range(seeds), JUMPS):
        if (setting.name, jump, seed) in done:
            continue
        latents = sampler.latents(setting, jump, seed)
        figures = measured(setting, latents, sampler.frames(latents))
        if setting is settings[0] and jump == CORRECTIVE:
            figures["starts"] = starts(latents, seed)
        result["runs"].append({"setting": asdict(setting), "jump": jump, "seed": seed} | figures)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{setting.name}, {jump}, seed {seed}: {figures}", flush=True)
    return result


def _draw(sampler: Sampler, setting: Setting, path: Path) -> None:
    """The same pictures with each kind of jump, one below the other."""
    few = replace(setting, samples=min(setting.samples, SHOWN))
    rows = []
    for jump in JUMPS:
        clips = sampler.frames(sampler.latents(few, jump, 0))
        rows.append([Image.fromarray(clip[0]) for clip in clips])
    with replacing(path) as temporary:
        picture_grid(rows, row_labels=list(JUMPS)).save(temporary, "PNG")


def table(result: dict[str, Any]) -> str:
    """Means and deviations over the seeds, as Markdown."""
    from .report import mean_and_deviation

    lines = [
        "| sampled | jump | 2x2 blocks of latents | 16 pixels of frames | right |",
        "|---|---|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in result["runs"]:
        groups.setdefault((one["setting"]["name"], one["jump"]), []).append(one)
    names = list(dict.fromkeys(setting for setting, _ in groups))
    for setting, jump in itertools.product(names, JUMPS):
        runs = groups.get((setting, jump))
        if not runs:
            continue
        cells = [
            mean_and_deviation([one["latent_edges"] for one in runs], "{:.2f}"),
            mean_and_deviation([one["frame_edges"] for one in runs], "{:.2f}"),
            mean_and_deviation([100 * one["right"] for one in runs], "{:.0f}") + "%",
        ]
        lines.append(f"| {setting} | {jump} | {' | '.join(cells)} |")
    lines += [
        "",
        "| start of the last stage | inside of 2x2 blocks over between them |",
        "|---|--:|",
    ]
    found = [one["starts"] for one in result["runs"] if "starts" in one]
    for name in found[0] if found else ():
        values = mean_and_deviation([one[name] for one in found], "{:.3f}")
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, sample and measure."""
    parser = new_parser("jumps", __doc__)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        result = run(
            options.output, device=options.device, seeds=options.seeds, quick=options.quick
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    with replacing(options.output / "jumps.md") as temporary:
        temporary.write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
