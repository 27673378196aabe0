"""Settings of both trainers, with the names and defaults of the reference's."""

from __future__ import annotations

from pathlib import Path

from pyramid_dit.checks import Number, Whole

from .options import Flag

COUNT, POSITIVE, SHARE = Whole(0), Whole(1), Number(0, 1)
RATE = Number(0, 1)

SOURCES = (
    "JSON lines; a folder of videos or pictures, with captions in .txt files, metadata.jsonl or "
    "metadata.csv; or WebDataset shards, as clips-{000..012}.tar"
)
DATA = [
    Flag("max_skipped", 0.05, "largest share of samples that may be unreadable", check=SHARE),
    Flag(
        "num_workers",
        10,
        "processes that read data, at most one per core",
        check=COUNT,
    ),
    Flag("pin_mem", False, "keep batches in pinned memory, from which a GPU copies faster"),
    Flag("no_pin_mem", False, "turns pin_mem off, also if both are given"),
    Flag("not_add_normalize", False, instead="pixels are always in [-1, 1]"),
]
STEPS = [
    Flag("epochs", 100, "number of epochs, each of iters_per_epoch batches", check=POSITIVE),
    Flag("iters_per_epoch", 2000, "batches per epoch and process", check=POSITIVE),
    Flag("steps", None, "number of optimizer steps, instead of epochs", kind=int, check=POSITIVE),
    Flag("gradient_accumulation_steps", 1, "batches per optimizer step", check=POSITIVE),
    Flag("opt_eps", 1e-8, "AdamW's epsilon", check=RATE),
    Flag(
        "clip_grad",
        None,
        "clip the gradients to this norm",
        kind=float,
        check=Number(0, 1e9, above=True),
    ),
    Flag("weight_decay", 1e-4, "weight decay of AdamW, for matrices", check=SHARE),
    Flag("lr", 5e-5, "highest learning rate", check=RATE),
    Flag("warmup_lr", 1e-6, "learning rate at the start of the warm-up", check=RATE),
    Flag("min_lr", 1e-5, "learning rate at the end of the cosine", check=RATE),
    Flag("warmup_steps", -1, "optimizer steps of warm-up"),
    Flag("cooldown_steps", 1000, "steps of the final decay of the trapezoid schedule", check=COUNT),
    Flag("ema_update", False, "keep a moving average of the weights"),
]
RUN = [
    Flag("output_dir", None, "folder of the run", kind=Path),
    Flag("print_freq", 20, "steps between log lines", check=POSITIVE),
    Flag(
        "save_ckpt_freq",
        20,
        "epochs between checkpoints, if save_steps is 0",
        check=POSITIVE,
    ),
    Flag("save_steps", 0, "optimizer steps between checkpoints", check=COUNT),
    Flag("keep", 2, "number of checkpoints to keep; 0 keeps all", check=COUNT),
    Flag("resume", None, "checkpoint to resume from", kind=Path),
    Flag("auto_resume", True, "resume from the newest checkpoint in output_dir"),
    Flag("start_epoch", 0, "number of the first epoch", check=COUNT),
    Flag("global_step", 0, "number of the first optimizer step", check=COUNT),
    Flag(
        "max_minutes",
        0.0,
        "stop after this many minutes, with a checkpoint; 0 is no limit",
        check=Number(0, 1e6),
    ),
    Flag("seed", 0, "seed of all random numbers", check=Whole(0, 2**22)),
]
PROCESSES = [
    Flag("device", "auto", "auto, the GPU if there is one; cuda; or cpu", kind=str),
    Flag("dist_on_itp", False, "mpirun started the processes"),
    Flag("dist_url", "env://", instead="torchrun's environment is used"),
    Flag("world_size", 1, instead="torchrun's environment is used"),
    Flag("local_rank", -1, instead="torchrun's environment is used"),
]
