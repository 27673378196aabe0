"""Run by torchrun: train a VAE to each of several steps in turn, as `train_vae` does each time.

The arguments are the steps, with commas between them, and the options of `train_vae`. With them
the discriminator is a small one.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from accelerate.state import AcceleratorState

from pyramid_dit.distributed.parallel import leave_processes
from trainer_misc import train_vae
from trainer_misc.options import parse
from trainer_misc.vae_options import GROUPS
from video_vae import losses

SmallDiscriminator = partial(losses.PatchDiscriminator, base_channels=8, num_layers=2)


def main(steps: str, arguments: list[str]) -> None:
    losses.PatchDiscriminator = SmallDiscriminator  # type: ignore[assignment, misc]
    for step in steps.split(","):
        AcceleratorState._reset_state(True)
        train_vae.Trainer(parse(None, GROUPS, [*arguments, "--steps", step])).run()
        leave_processes()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    os._exit(0)  # threads of Gloo can outlive Python's own end, which then aborts
