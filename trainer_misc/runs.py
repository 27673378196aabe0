"""What both trainers make of the options that they have in common."""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from pyramid_dit.distributed.launcher import end_with_launcher, launched_process
from pyramid_dit.distributed.parallel import leave_processes

from .data import Batches, loader

logger = logging.getLogger(__name__)


def schedule_of(options: Namespace) -> dict[str, Any]:
    """Arguments of `LoopConfig`: how many steps, how fast, how precise, how often saved.

    An epoch is so many batches of a process, and a step takes one or several of them.
    """
    accumulation = options.gradient_accumulation_steps
    epoch = max(1, options.iters_per_epoch // accumulation)
    warmup = options.warmup_steps if options.warmup_steps > 0 else options.warmup_epochs * epoch
    return {
        "accumulation": accumulation,
        "steps": options.steps or options.epochs * epoch,
        "learning_rate": options.lr,
        "warmup": warmup,
        "cooldown": options.cooldown_steps,
        "warmup_rate": min(options.warmup_lr, options.lr),
        "least_rate": min(options.min_lr, options.lr),
        "save_every": options.save_steps or options.save_ckpt_freq * epoch,
        "mixed_precision": "no" if options.model_dtype == "fp32" else options.model_dtype,
    }


def first_step(options: Namespace) -> int:
    """The optimizer step that a new run counts from."""
    started = options.start_epoch * options.iters_per_epoch
    return options.global_step or started // options.gradient_accumulation_steps


def numbered(
    batches: Batches, start: int, options: Namespace
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Batches from number `start` on, with their numbers."""
    coming = loader(
        batches,
        start=start,
        workers=min(options.num_workers, os.cpu_count() or 1),
        pin_memory=options.pin_mem and not options.no_pin_mem,
    )
    return zip(count(start), coming, strict=False)


def say_skipped(batches: Batches) -> None:
    """List in the log which samples of `batches` could not be used, by kind."""
    for counter in getattr(batches, "skipped", []):
        counter.say()


def log_to_people() -> None:
    """Have what trainers say come with the time, and ffmpeg's reader keep quiet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)


def run_or_say(action: Callable[[], object]) -> None:
    """Run `action`; what people can mend ends the process with one line and status 1.

    A process that a launcher started ends with it, even where that is killed.
    """
    end_with_launcher()
    try:
        action()
        _end_at_once()
    except (OSError, ValueError, TypeError, FloatingPointError) as error:
        logger.debug("why", exc_info=True)
        reason = " ".join(str(error).split())
        sys.exit(f"error: {reason}")
    except KeyboardInterrupt:  # before the first step, or a second one after it
        sys.exit(130)


def _end_at_once() -> None:
    """End a process that others worked with, once its work is done.

    Threads of the communication can outlive Python's own end, which then aborts the process.
    """
    if launched_process() is None:
        return
    leave_processes()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
