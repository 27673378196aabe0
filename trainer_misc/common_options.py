"""Settings that both trainers have, by the names and defaults of the reference's."""

from __future__ import annotations

from pathlib import Path

from pyramid_dit.checks import Number, Whole

from .options import Flag

COUNT, POSITIVE, SHARE = Whole(0), Whole(1), Number(0, 1)
RATE = Number(0, 1)

SOURCES = (
    "JSON lines; a folder of videos or pictures, with captions beside them or in metadata.jsonl or "
    "metadata.csv; or WebDataset shards, as clips-{000..012}.tar"
)
DATA = [
    Flag("max_skipped", 0.05, "largest share of samples that may be unreadable", check=SHARE),
    Flag(
        "num_workers",
        10,
        "processes that read, at most one a core",
        check=COUNT,
    ),
    Flag("pin_mem", False, "put batches where a GPU fetches them sooner"),
    Flag("no_pin_mem", False, "the opposite of pin_mem, the last word"),
    Flag("not_add_normalize", False, instead="pixels are in [-1, 1] always"),
]
STEPS = [
    Flag("epochs", 100, "epochs of iters_per_epoch batches", check=POSITIVE),
    Flag("iters_per_epoch", 2000, "batches of an epoch, of each process", check=POSITIVE),
    Flag("steps", None, "optimizer steps, in place of epochs", kind=int, check=POSITIVE),
    Flag("gradient_accumulation_steps", 1, "batches of an optimizer step", check=POSITIVE),
    Flag("opt_eps", 1e-8, "AdamW's epsilon", check=RATE),
    Flag(
        "clip_grad",
        None,
        "largest norm of the gradients",
        kind=float,
        check=Number(0, 1e9, above=True),
    ),
    Flag("weight_decay", 1e-4, "AdamW's, on matrices", check=SHARE),
    Flag("lr", 5e-5, "peak of the learning rate", check=RATE),
    Flag("warmup_lr", 1e-6, "where the warm-up starts", check=RATE),
    Flag("min_lr", 1e-5, "where the cosine ends", check=RATE),
    Flag("warmup_steps", -1, "optimizer steps of warm-up"),
    Flag("ema_update", False, "keep a moving average of the weights"),
]
RUN = [
    Flag("output_dir", None, "folder of the run", kind=Path),
    Flag("print_freq", 20, "steps between lines of the log", check=POSITIVE),
    Flag(
        "save_ckpt_freq",
        20,
        "epochs between checkpoints, where save_steps is 0",
        check=POSITIVE,
    ),
    Flag("save_steps", 0, "optimizer steps between checkpoints", check=COUNT),
    Flag("keep", 2, "checkpoints to keep, 0 all", check=COUNT),
    Flag("resume", None, "checkpoint of a run to go on from", kind=Path),
    Flag("auto_resume", True, "go on from the newest checkpoint in output_dir"),
    Flag("start_epoch", 0, "epoch to count from", check=COUNT),
    Flag("global_step", 0, "optimizer step to count from", check=COUNT),
    Flag(
        "max_minutes",
        0.0,
        "stop after so many minutes, with a checkpoint",
        check=Number(0, 1e6),
    ),
    Flag("seed", 0, "of every draw", check=Whole(0, 2**22)),
]
PROCESSES = [
    Flag("device", "auto", "cpu, or auto: the accelerator", kind=str),
    Flag("dist_on_itp", False, "mpirun started the processes"),
    Flag("dist_url", "env://", instead="torchrun's environment says it"),
    Flag("world_size", 1, instead="torchrun's environment says it"),
    Flag("local_rank", -1, instead="torchrun's environment says it"),
]
