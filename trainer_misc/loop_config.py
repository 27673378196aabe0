"""How long and how hard a run trains, and what accelerate makes of it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType

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
        warmup_rate: Learning rate that the warm-up starts from.
        least_rate: Learning rate that the cosine ends at.
        cooldown: Steps of the trapezoid's descent.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: AdamW's, on matrices only.
        clip: Largest gradient norm; None does not clip.
        skip_above: An update whose loss is at least this is left out.
        ema_decay: Decay of the moving average of the weights; None keeps none.
        ema_warmup: Let the average soon forget its start.
        ema_every: Steps between its updates.
        ema_on_cpu: Keep it in the CPU's memory.
        trained_alone: Leave out of checkpoints what is not trained.
        accumulation: Batches per step.
        mixed_precision: "no", "bf16" or "fp16".
        seed: Of the weights and of every draw.
        save_every: Steps between checkpoints.
        keep: Checkpoints to keep; 0 keeps all.
        resume: Checkpoint to go on from.
        auto_resume: Without one, go on from the newest in `output`.
        sheet_every: Steps between sample sheets; 0 draws none.
        validate_every: Steps between validations; 0 does none.
        log_every: Steps between lines of the log.
        report_to: Tracker of accelerate, or "none".
        logging_dir: Folder in `output` for it.
        max_minutes: Stop (with a checkpoint) after so many minutes of this process; 0: never.
    """

    output: Path
    steps: int
    learning_rate: float
    schedule: str = "cosine"
    warmup: int = 100
    warmup_rate: float = 0.0
    least_rate: float = 0.0
    cooldown: int = 1000
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip: float | None = 1.0
    skip_above: float = math.inf
    ema_decay: float | None = 0.999
    ema_warmup: bool = True
    ema_every: int = 1
    ema_on_cpu: bool = False
    trained_alone: bool = False
    accumulation: int = 1
    mixed_precision: str = "no"
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    resume: Path | None = None
    auto_resume: bool = True
    sheet_every: int = 1000
    validate_every: int = 0
    log_every: int = 50
    report_to: str = "none"
    logging_dir: str = "log"
    max_minutes: float = 0.0


def new_accelerator(config: LoopConfig, *, cpu: bool = False, unused: bool = False) -> Accelerator:
    """Device, precision, processes and trackers of a run.

    Args:
        config: Of the run.
        cpu: Leave accelerators alone.
        unused: Not every weight is used in every step.

    Raises:
        ValueError: accelerate knows no such tracker.
    """
    accelerator = Accelerator(
        cpu=cpu or not torch.accelerator.is_available(),
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
        log_with=_tracker(config.report_to),
        project_dir=str(config.output / config.logging_dir),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    if config.mixed_precision == "fp16" and accelerator.scaler is None:
        # accelerate scales the loss on accelerators alone, and would compute in float32 here.
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
    torch.manual_seed((config.seed << 40) + accelerator.process_index)
    return accelerator


def _tracker(name: str) -> str | None:
    """The tracker of that name, None where it is not wanted or not installed."""
    known = ["none", *LoggerType.list()]
    if name not in known:
        raise ValueError(f"report_to must be one of {', '.join(known)}, got {name!r}")
    if name == "none" or name in [str(tracker) for tracker in get_available_trackers()]:
        return None if name == "none" else name
    logger.warning("%s is not installed: the log is only in log.jsonl", name)
    return None
