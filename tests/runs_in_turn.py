"""Run by torchrun: several trainings in turn in the same processes, each as `main` would train.

    torchrun runs_in_turn.py {train_dit,train_vae} RUNS

RUNS is a JSON file with the arguments of each. A VAE is judged by a small discriminator.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState
from vae_ranks import SmallDiscriminator

from pyramid_dit.distributed.parallel import leave_processes
from trainer_misc import distill, distill_options, dit_options, train_dit, train_vae, vae_options
from trainer_misc.options import parse
from video_vae import losses

TRAINERS = {
    "distill": (distill.Distillation, distill_options.GROUPS),
    "train_dit": (train_dit.Trainer, dit_options.GROUPS),
    "train_vae": (train_vae.Trainer, vae_options.GROUPS),
}


def main(name: str, runs: Path) -> None:
    losses.PatchDiscriminator = SmallDiscriminator  # type: ignore[assignment, misc]
    trainer, groups = TRAINERS[name]
    for arguments in json.loads(runs.read_text()):
        AcceleratorState._reset_state(True)
        trainer(parse(None, groups, arguments)).run()
        leave_processes()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    os._exit(0)  # threads of Gloo can outlive Python's own end, which then aborts
