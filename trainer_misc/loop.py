"""The loop that both trainers share: steps, EMA, checkpoints, resume, progress."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from pyramid_dit.devices.cpu import keep_freed_memory

from .checkpoints import newest_checkpoint, thin_checkpoints, write_folder
from .optimization import learning_rate_factor, parameter_groups

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LoopConfig:
    """How long and how hard to train.

    Attributes:
        output: Folder of the run: checkpoints, sheets, log.
        steps: Optimizer steps of the whole run.
        learning_rate: Peak of the schedule.
        schedule: "constant", "cosine" or "trapezoid".
        warmup: Steps of linear warm-up.
        cooldown: Steps of the trapezoid's descent.
        betas: AdamW's.
        weight_decay: AdamW's, on matrices only.
        clip: Largest gradient norm.
        ema_decay: Decay of the moving average of the weights.
        accumulation: Batches per step.
        mixed_precision: "no", "bf16" or "fp16".
        seed: Of the weights and of every draw.
        save_every: Steps between checkpoints.
        keep: Checkpoints to keep.
        sheet_every: Steps between sample sheets; 0 draws none.
        log_every: Steps between lines of the log.
        max_minutes: Stop (with a checkpoint) after so many minutes of this process; 0: never.
    """

    output: Path
    steps: int
    learning_rate: float
    schedule: str = "cosine"
    warmup: int = 100
    cooldown: int = 1000
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema_decay: float = 0.999
    accumulation: int = 1
    mixed_precision: str = "no"
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    sheet_every: int = 1000
    log_every: int = 50
    max_minutes: float = 0.0


class TrainingLoop:
    """Trains modules on a loss that the caller computes.

    Args:
        config: How long and how hard.
        modules: What is trained, by name. Gradients are averaged over processes.
        optimizer: By default AdamW as the config says; a given one has `learning_rate` as its lr.

    Attributes:
        accelerator: Device, precision and processes.
        modules: The modules as accelerate wrapped them, to compute losses with.
        step: Steps done.
    """

    def __init__(
        self,
        config: LoopConfig,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        keep_freed_memory()
        self.config = config
        config.output.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulation,
        )
        set_seed(config.seed, device_specific=True)
        optimizer = optimizer or torch.optim.AdamW(
            parameter_groups(modules.values(), config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            functools.partial(
                learning_rate_factor,
                steps=config.steps,
                warmup=config.warmup,
                schedule=config.schedule,
                cooldown=config.cooldown,
            ),
        )
        self._raw = dict(modules)
        self._ema = EMAModel(self._parameters(), decay=config.ema_decay, use_ema_warmup=True)
        self.modules = {name: self.accelerator.prepare(m) for name, m in modules.items()}
        self.optimizer = self.accelerator.prepare(optimizer)
        self.scheduler = scheduler
        self.accelerator.register_for_checkpointing(self._ema, self.scheduler)
        self._ema.to(self.accelerator.device)
        self.step = 0
        self.resume()

    def _parameters(self) -> list[nn.Parameter]:
        return [p for m in self._raw.values() for p in m.parameters()]

    def resume(self) -> None:
        """Go on from the newest checkpoint of the output folder, if there is one."""
        newest = newest_checkpoint(self.config.output)
        if newest is None:
            return
        self.accelerator.load_state(str(newest))
        self.step = int(newest.name.rsplit("-", 1)[1])
        logger.info("going on from %s", newest)

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            target = self.config.output / f"checkpoint-{self.step}"
            write_folder(target, lambda folder: self.accelerator.save_state(str(folder)))
            thin_checkpoints(self.config.output, self.config.keep)
        self.accelerator.wait_for_everyone()

    def averaged(self, action: Callable[[], None]) -> None:
        """Run `action` with the moving average in place of the weights."""
        parameters = self._parameters()
        self._ema.store(parameters)
        self._ema.copy_to(parameters)
        try:
            action()
        finally:
            self._ema.restore(parameters)

    def adopt_average(self) -> None:
        """Put the moving average in the place of the weights for good."""
        self._ema.copy_to(self._parameters())

    def run(
        self,
        compute_loss: Callable[[int], tuple[Tensor, dict[str, float]]],
        *,
        draw_sheet: Callable[[Path], None] | None = None,
    ) -> bool:
        """Train to the last step.

        Args:
            compute_loss: From the number of the batch (over steps and accumulation) to a scalar
                loss and figures to log. Draw from the number and the rank, so that a resumed run
                sees what an unbroken one would.
            draw_sheet: Draws a sample sheet into the given PNG, with averaged weights.

        Returns:
            True if all steps are done, False if the time was up.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        config, accelerator = self.config, self.accelerator
        began = time.monotonic()
        seen: dict[str, list[float]] = {}
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            disable=not accelerator.is_main_process,
            mininterval=10,
            desc=config.output.name,
        )
        while self.step < config.steps:
            for part in range(config.accumulation):
                with accelerator.accumulate(*self.modules.values()):
                    loss, figures = compute_loss(self.step * config.accumulation + part)
                    self._check(loss)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(self._parameters(), config.clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                for name, value in figures.items():
                    seen.setdefault(name, []).append(value)
            self.scheduler.step()
            self._ema.step(self._parameters())
            self.step += 1
            bar.update()
            if self.step % config.log_every == 0:
                means = {name: sum(values) / len(values) for name, values in seen.items()}
                self._log(means, time.monotonic() - began)
                seen.clear()
            if self.step % config.save_every == 0:
                self.save()
            if draw_sheet and config.sheet_every and self.step % config.sheet_every == 0:
                self._draw(draw_sheet)
            if self._time_is_up(began):
                break
        bar.close()
        self.save()
        return self.step >= config.steps

    def _time_is_up(self, began: float) -> bool:
        """Whether any process has run out of time; all processes agree."""
        if not self.config.max_minutes:
            return False
        over = time.monotonic() - began > 60 * self.config.max_minutes
        flag = torch.tensor(float(over), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step + 1}")

    def _draw(self, draw_sheet: Callable[[Path], None]) -> None:
        if self.accelerator.is_main_process:
            path = self.config.output / f"sheet-{self.step:06d}.png"
            self.averaged(lambda: draw_sheet(path))
        self.accelerator.wait_for_everyone()

    def _log(self, figures: dict[str, float], seconds: float) -> None:
        if not self.accelerator.is_main_process:
            return
        rate = self.scheduler.get_last_lr()[0]
        line = {"step": self.step, "lr": rate, "seconds": round(seconds, 1), **figures}
        with (self.config.output / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        logger.info(" ".join(f"{k} {v:.4g}" for k, v in line.items()))
