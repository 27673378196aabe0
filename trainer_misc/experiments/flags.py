"""The flags that the experiments have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pyramid_dit.checks import Number, Whole

SEEDS = 3


def new_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m trainer_misc.experiments.NAME`, with the flags that all have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m trainer_misc.experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--output", type=Path, required=True, help="folder for all files")
    parser.add_argument("--device", default=default, help=f"what to compute on; {default}")
    parser.add_argument("--quick", action="store_true", help="only try it out, on next to nothing")
    parser.add_argument(
        "--seeds", type=Whole(1, 100).parse, default=SEEDS, help=f"number of seeds; {SEEDS}"
    )
    return parser


def add_training(parser: argparse.ArgumentParser) -> None:
    """The flags of experiments that train."""
    parser.add_argument("--workers", type=Whole(1, 64).parse, default=1, help="processes; 1")
    parser.add_argument(
        "--budget-seconds",
        type=Number(0, 1e6, above=True).parse,
        help="end all runs after about so many seconds, trained as far as they are",
    )
    parser.add_argument("--latents", type=Path, help="folder of latents, drawn where missing")
