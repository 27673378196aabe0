"""Samples of an arm, and what the judge of shapes says about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.checkpoints.hub import TOY_FOLDER
from pyramid_dit.files import replacing
from pyramid_dit.flow.sizes import SPATIAL_FACTOR, frames_of
from pyramid_dit.generation.latent_codec import DecodeSizes, decode_latents
from pyramid_dit.models.flux import PyramidFluxTransformer
from pyramid_dit.sampling.prompts import GuidedText
from pyramid_dit.sampling.unit_sampler import Unit, UnitSampler
from video_vae import CausalVideoVAE

from ..toy.evaluation import LAST_FRAMES, evaluation_prompts
from ..toy.judge import ATTRIBUTES, judge
from ..toy.moving_shapes import FRAMES_PER_SECOND, combination_of
from ..toy.tables import Judged
from .arms import Arm
from .shape_latents import as_bytes
from .words import condition, empty_condition, word_table

SOLVER = "ab2"
STRIDE = 2
"""Every other frame is judged."""
DECODED = 16
"""Samples that are decoded at a time."""

Rates = dict[str, float]


class Judge:
    """Samples a transformer, decodes with the VAE of the default checkpoint, and judges.

    The noise is drawn on the CPU from a fixed seed, so that all arms have the same.

    Args:
        device: What to compute on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        vae = CausalVideoVAE.from_pretrained(TOY_FOLDER / "causal_video_vae")
        self.vae = vae.requires_grad_(False).eval().to(device)
        self.statistics = CheckpointFolder.open(TOY_FOLDER, None).statistics
        self.table = word_table(device)

    def __call__(
        self, dit: PyramidFluxTransformer, arm: Arm, *, at_the_end: bool
    ) -> tuple[Rates, Tensor]:
        """Rates of what is right in the samples, and their latents `[n, c, t, h, w]`."""
        prompts = evaluation_prompts(arm.samples, shapes=arm.shapes(self.device.type))
        frames = (at_the_end and arm.last_frames) or arm.frames
        numbers = [combination_of(prompt) for prompt in prompts]
        latents = self.sample(dit, arm, numbers, frames)
        return self.rates(latents, prompts, arm.frames), latents

    @torch.no_grad()
    def sample(
        self,
        dit: PyramidFluxTransformer,
        arm: Arm,
        combinations: Sequence[int],
        frames: int,
    ) -> Tensor:
        """Normalized latents `[n, c, t, h, w]` of these combinations, of `frames` latent frames."""
        count = len(combinations)
        numbers = torch.tensor(combinations, device=self.device)
        text = GuidedText(condition(self.table, numbers), empty_condition(self.table, count))
        rng = torch.Generator().manual_seed(0)
        side = arm.pixels(self.device.type) // SPATIAL_FACTOR
        shape = (count, self.vae.config.encoder_out_channels, frames, side, side)
        noise = torch.randn(shape, generator=rng).to(self.device)
        scale, steps = arm.guidance_scale, arm.inference_steps
        if arm.use_temporal_pyramid:
            bounds = [(frame, frame + 1) for frame in range(frames)]
        else:
            bounds = [(0, frames)]
        units = [
            Unit(index, *bound, steps, scale, solver=SOLVER) for index, bound in enumerate(bounds)
        ]
        sampler = UnitSampler(dit, arm.scheduler(), texts=[text], frame_per_unit=1, generator=rng)
        return torch.cat(
            list(sampler.run(lambda unit: noise[:, :, unit.start : unit.stop], units)), dim=2
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Frames `[n, t, h, w, 3]` of normalized latents, uint8."""
        sizes = DecodeSizes.of(save_memory=False)
        parts = [
            decode_latents(self.vae, self.statistics, part, device=self.device, sizes=sizes).cpu()
            for part in latents.split(DECODED)
        ]
        frames: np.ndarray = torch.cat(parts).numpy()
        return frames

    def rates(self, latents: Tensor, prompts: Sequence[str], frames: int) -> Rates:
        """Shares of the samples in which an attribute is right, and in which all are.

        Pictures have no motion. The first `frames` latent frames are judged; of longer clips the
        end is judged too, on its own (`last_all`).
        """
        clips = self.decode(latents)
        still = latents.shape[2] == 1
        names = [name for name in ATTRIBUTES if not (still and name == "motion")]
        parts = {"": slice(None)}
        if latents.shape[2] > frames:
            parts = {"": slice(frames_of(frames)), "last_": slice(-LAST_FRAMES, None)}
        rates: Rates = {}
        for prefix, part in parts.items():
            judged = [
                Judged(prompt, judge(clip[part][::STRIDE], FRAMES_PER_SECOND / STRIDE))
                for prompt, clip in zip(prompts, clips, strict=True)
            ]
            right = np.array([[one.right(name) for name in names] for one in judged])
            rates |= {f"{prefix}{n}": float(r) for n, r in zip(names, right.mean(0), strict=True)}
            rates[f"{prefix}all"] = float(right.all(axis=1).mean())
        return rates


def keep_samples(path: Path, step: int, latents: Tensor) -> None:
    """Add the latents of the samples at `step` to a file, for measures that come later."""
    arrays: dict[str, np.ndarray] = {}
    if path.is_file():
        with np.load(path) as known:
            arrays = dict(known)
    arrays[f"step_{step}"] = as_bytes(latents)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
