"""Training of an arm, with samples and verdicts at some points of its way.

Arms are compared by the floating point operations that their training took. The batch size follows
from those of a step, so that all arms of a claim have as many a step, on average. Every step trains
one stage on clips of one length; stages and lengths take turns, as often as their shares say.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyramid_dit.files import remove, replacing
from pyramid_dit.flow.objective import FlowObjective
from pyramid_dit.flow.sizes import SPATIAL_FACTOR
from pyramid_dit.json_files import read_json
from pyramid_dit.models.flux import PyramidFluxTransformer

from ..log import Figures
from ..loop import TrainingLoop
from ..loop_config import LoopConfig, new_accelerator
from ..optimization import Muon, hidden_matrices, muon_groups
from ..toy.start import new_dit
from .arms import QUICK_SHARES, SHARES, Arm
from .flops import training_flops
from .sampling import Judge, keep_samples
from .shape_latents import Encoded
from .words import condition, word_table

DROPPED = 0.1
"""Share of the texts that is left empty in training, for the guidance."""
LAYERS = {"num_layers": 2, "num_single_layers": 4}
RESERVE = 1.5
"""So many times the last sampling's seconds are kept for the next one."""


class Turns:
    """Which stage each step trains, on how many units.

    All pairs come equally often but for the shares of the stages, in an order that is shuffled
    once.

    Args:
        arm: Whose.
        longest: Latent frames of the clips.
    """

    def __init__(self, arm: Arm, longest: int) -> None:
        units = range(1, longest + 1) if arm.use_temporal_pyramid else [longest]
        stages = [k for k, share in enumerate(arm.sample_ratios) for _ in range(share)]
        self.pairs = list(itertools.product(stages, units))
        random.Random(0).shuffle(self.pairs)

    def __getitem__(self, step: int) -> tuple[int, int]:
        return self.pairs[step % len(self.pairs)]


class Flow:
    """The loss of an arm.

    Args:
        arm: Whose.
        data: What it is trained on.
    """

    def __init__(self, arm: Arm, data: Encoded) -> None:
        self.arm = arm
        self.data = data
        self.device = data.latents.device
        self.table = word_table(self.device)
        self.turns = Turns(arm, data.latents.shape[2])
        scheduler = arm.scheduler()
        self.objectives = [
            FlowObjective(
                scheduler,
                sample_ratios=[int(stage == other) for other in range(arm.stages)],
                corrupt_ratio=arm.corrupt_ratio,
            )
            for stage in range(arm.stages)
        ]

    def loss(self, dit: PyramidFluxTransformer, step: int, batch: int, seed: int) -> Tensor:
        """The loss of a batch at `step`, of what `seed` draws."""
        stage, units = self.turns[step]
        rng = torch.Generator(self.device).manual_seed(seed)
        count = len(self.data.latents)
        chosen = torch.randint(count, (batch,), generator=rng, device=self.device)
        dropped = torch.rand(batch, generator=rng, device=self.device) < DROPPED
        text = condition(self.table, self.data.combinations[chosen], dropped)
        objective = self.objectives[stage]
        flow = objective.prepare(
            self.data.latents[chosen],
            units=[units] * self.arm.stages,
            use_temporal_pyramid=self.arm.use_temporal_pyramid,
            generator=rng,
        )
        velocities: Any = dit(flow.samples, *text, flow.timesteps)
        loss, _ = objective.loss(velocities, flow.targets)
        return loss


def new_transformer(arm: Arm, channels: int) -> PyramidFluxTransformer:
    """A fresh transformer for the arm; PyTorch's global random numbers say which."""
    return new_dit(channels, **LAYERS, use_temporal_causal=arm.use_temporal_causal)


def flops_of_a_sample(arm: Arm, data: Encoded) -> float:
    """Operations of the training for one sample, the mean over all stages and lengths."""
    few = Encoded(data.latents[:1].cpu(), data.combinations[:1].cpu())
    flow = Flow(arm, few)
    dit = new_transformer(arm, few.latents.shape[1])
    kinds = {pair: flow.turns.pairs.index(pair) for pair in flow.turns.pairs}
    counted = {
        pair: training_flops(partial(flow.loss, dit, step, 1, 0)) for pair, step in kinds.items()
    }
    return sum(counted[pair] for pair in flow.turns.pairs) / len(flow.turns.pairs)


class ArmRun:
    """One seed of an arm, which goes on where it was stopped.

    Args:
        arm: What to train.
        seed: Of the weights, and of all draws of the training.
        data: What to train on, on the device to compute on.
        judge: Samples and judges.
        folder: For the files `NAME-SEED.json` and `NAME-SEED.npz`, and meanwhile checkpoints.
        quick: Only try it out.

    Raises:
        ValueError: The data are of another size than the arm has on their device.
    """

    def __init__(
        self,
        arm: Arm,
        seed: int,
        data: Encoded,
        judge: Judge,
        folder: Path,
        *,
        quick: bool = False,
    ) -> None:
        self.arm = arm.quick() if quick else arm
        self.seed, self.judge, self.folder = seed, judge, folder
        self.data = Encoded(data.latents[:, :, : self.arm.max_frames], data.combinations)
        self.name = f"{arm.name}-{seed}"
        self.shares = QUICK_SHARES if quick else SHARES[arm.data]
        device = data.latents.device
        pixels = SPATIAL_FACTOR * data.latents.shape[-1]
        if pixels != self.arm.pixels(device.type):
            raise ValueError(
                f"{arm.name} on {device.type} takes latents of {self.arm.pixels(device.type)} "
                f"pixels, got {pixels}"
            )
        self.steps = self.arm.steps(device.type)
        of_sample = flops_of_a_sample(self.arm, self.data)
        self.batch = max(1, round(self.arm.step_flops(device.type) / of_sample))
        self.step_flops = self.batch * of_sample
        torch.manual_seed(seed)
        self.dit = new_transformer(self.arm, data.latents.shape[1]).to(device)
        self.flow = Flow(self.arm, self.data)

    @property
    def result_file(self) -> Path:
        """The record of the run."""
        return self.folder / f"{self.name}.json"

    def run(self, seconds: float | None = None) -> dict[str, Any]:
        """Train and judge, for no more than about so many seconds.

        Returns:
            The record: settings, and for each point steps, operations, seconds and rates.

        Raises:
            OSError: A file cannot be written.
            ValueError: The folder holds a record of other settings.
        """
        began = time.monotonic()
        record = self._record()
        if record["finished"]:
            return record
        loop = self._loop()
        spent, sampling = record["points"][-1]["seconds"] if record["points"] else 0.0, 0.0
        for share in self.shares:
            goal = max(1, round(share * self.steps))
            if record["points"] and record["points"][-1]["step"] >= goal:
                continue
            loop.config.steps = goal
            started = time.monotonic()
            if seconds is not None:
                left = seconds - (started - began) - RESERVE * sampling
                loop.config.max_minutes = max(left, 1e-3) / 60
            in_time = loop.run(self._loss)
            asked = time.monotonic()
            spent += asked - started
            with loop.average_in_place():
                last = share == self.shares[-1] or not in_time
                rates, latents = self.judge(self.dit, self.arm, at_the_end=last)
            sampling = time.monotonic() - asked
            record["points"].append(
                {
                    "step": loop.step,
                    "tflops": loop.step * self.step_flops / 1e12,
                    "seconds": round(spent, 1),
                    "sampling_seconds": round(sampling, 1),
                    "whole": in_time,
                    "rates": rates,
                }
            )
            keep_samples(self.folder / f"{self.name}.npz", loop.step, latents)
            self._write(record)
            if not in_time:
                break
        record["finished"] = True
        self._write(record)
        remove(self._checkpoints)
        return record

    def _record(self) -> dict[str, Any]:
        device = self.flow.device.type
        fresh = {
            "arm": self.arm.name,
            "seed": self.seed,
            "device": device,
            "pixels": self.arm.pixels(device),
            "shapes": list(self.arm.shapes(device)),
            "parameters": sum(p.numel() for p in self.dit.parameters()),
            "batch_size": self.batch,
            "step_gflops": self.step_flops / 1e9,
            "steps": self.steps,
            "settings": self.arm.as_dict(device),
            "finished": False,
            "points": [],
        }
        if not self.result_file.is_file():
            return fresh
        record = read_json(self.result_file)
        if any(record.get(name) != fresh[name] for name in ("settings", "batch_size", "steps")):
            raise ValueError(f"{self.result_file} is the record of a run with other settings")
        return record

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints" / self.name

    def _loop(self) -> TrainingLoop:
        arm, device = self.arm, self.flow.device
        config = LoopConfig(
            output=self._checkpoints,
            steps=self.steps,
            learning_rate=arm.lr,
            schedule="constant",
            warmup=arm.warmup_steps,
            weight_decay=0.01,
            ema_decay=0.99,
            seed=self.seed,
            keep=1,
            save_every=max(self.steps, 1),
        )
        groups = muon_groups(hidden_matrices(self.dit), [self.dit], config.weight_decay)
        accelerator = new_accelerator(config, cpu=device.type == "cpu")
        optimizer = Muon(groups, arm.lr, betas=(0.95, 0.99))
        return TrainingLoop(config, {"dit": self.dit}, optimizer, accelerator)

    def _loss(self, number: int) -> tuple[Tensor, Figures]:
        loss = self.flow.loss(self.dit, number, self.batch, torch.initial_seed())
        return loss, {}

    def _write(self, record: dict[str, Any]) -> None:
        with replacing(self.result_file) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
