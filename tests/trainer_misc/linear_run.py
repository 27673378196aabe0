"""A training run of one small matrix, as a script: what kills and signals are tried on.

    python linear_run.py OUTPUT STEPS [NAME=VALUE ...]

Settings are those of `LoopConfig`, and `pause=SECONDS` for every step, `bad=STEP` with `kind=loss`
or `kind=gradient` for values that are not finite from that step on, `good=STEP` until that one.
The last line printed is `done`.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer_misc.loop import TrainingLoop
from trainer_misc.loop_config import LoopConfig
from trainer_misc.runs import run_or_say


class InfiniteGradient(torch.autograd.Function):
    """The identity, with gradients of infinity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, torch.inf)


def new_loop(output: Path, steps: int, **settings: Any) -> TrainingLoop:
    """A loop over one matrix of 3 by 3, from a fixed start."""
    torch.manual_seed(0)
    defaults = {"schedule": "constant", "warmup": 1, "log_every": 1, "save_every": 1}
    config = LoopConfig(output=output, steps=steps, learning_rate=0.1, **defaults | settings)
    return TrainingLoop(config, {"model": nn.Linear(3, 3)})


def train(
    loop: TrainingLoop,
    *,
    pause: float = 0.0,
    bad: int = 10**9,
    good: int = 10**9,
    kind: str = "loss",
) -> bool:
    """Run it; its data are drawn from the global random numbers."""

    def compute_loss(number: int) -> tuple[Tensor, dict[str, float]]:
        time.sleep(pause)
        x = torch.randn(8, 3)
        output = loop.modules["model"](x)
        if bad <= number < good:
            output = InfiniteGradient.apply(output) if kind == "gradient" else output * torch.nan
        error = (output - x.flip(1)).square().mean()
        return error, {"error": error.item()}

    return loop.run(compute_loss)


def main() -> None:
    """Parse the command line and train."""
    logging.basicConfig(level=logging.INFO)
    output, steps, *rest = sys.argv[1:]
    settings = dict(entry.split("=") for entry in rest)
    given = {k: settings.pop(k) for k in ("pause", "bad", "kind") if k in settings}
    options: dict[str, Any] = {
        k: v if k == "kind" else float(v) if k == "pause" else int(v) for k, v in given.items()
    }

    def run() -> None:
        loop = new_loop(Path(output), int(steps), **{k: int(v) for k, v in settings.items()})
        train(loop, **options)
        print("done", flush=True)

    run_or_say(run)


if __name__ == "__main__":
    main()
