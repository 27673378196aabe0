"""Adds a Fréchet distance to the records of arms that learn pictures, from their samples.

    python -m trainer_misc.experiments.frechet output/arms

The features are those of TransNet V2 (`trainer_misc.measure`), which knows nothing of this project;
the reference are freshly drawn pictures of the sentences that are sampled. Samples are decoded with
the VAE of the default checkpoint, which takes the time. There are fewer samples than the network
has features, so that distances are too large; of one number of samples they are comparable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.files import replacing
from pyramid_dit.json_files import read_json

from ..measure.frechet import frechet_distance, video_features
from ..toy.evaluation import FRESH, evaluation_prompts
from ..toy.moving_shapes import described, draw_clip, render_uint8
from . import spatial_pyramid
from .arms import PICTURES
from .report import Results
from .sampling import Judge
from .shape_latents import from_bytes

REFERENCES = 256
"""Drawn videos."""
QUICK_REFERENCES = 4


def drawn(record: Mapping[str, Any], count: int) -> Iterator[np.ndarray]:
    """Pictures `[1, h, w, 3]` of what a run is asked for, in turn, of fresh places and sizes.

    Args:
        record: Of the run, which says how large its pictures are and of which shapes.
        count: How many.
    """
    prompts = evaluation_prompts(record["settings"]["samples"], shapes=record["shapes"])
    for number in range(count):
        rng = np.random.default_rng(FRESH + number)
        what = described(prompts[number % len(prompts)])
        yield render_uint8(draw_clip(what, rng, record["pixels"]), [0])


def add_distances(folder: Path, *, device: str, references: int = REFERENCES) -> None:
    """Add "frechet" to points of the records of pictures in `folder` that lack it.

    Points at which a run was ended by its time are left out, unless arms are compared there.

    Raises:
        FileNotFoundError: There are no such records, or a run has left no samples.
    """
    records = {path: read_json(path) for path in sorted(folder.glob("*.json"))}
    records = {p: r for p, r in records.items() if r.get("settings", {}).get("data") == PICTURES}
    if not records:
        raise FileNotFoundError(f"no records of runs with pictures in {folder}")
    judge = Judge(torch.device(device))
    known: dict[tuple[int | str, ...], Tensor] = {}
    compared = _compared(list(records.values()))
    for path, record in records.items():
        for point in record["points"]:
            wanted = point["whole"] or point["tflops"] in compared
            if "frechet" in point or not wanted:
                continue
            kind = record["settings"]["samples"], record["pixels"], *record["shapes"]
            if kind not in known:
                known[kind] = video_features(drawn(record, references), device)
            with np.load(path.with_suffix(".npz")) as samples:
                latents = from_bytes(samples[f"step_{point['step']}"])
            features = video_features(judge.decode(latents.to(device)), device)
            point["frechet"] = frechet_distance(features, known[kind])
            print(f"{path.stem}, step {point['step']}: {point['frechet']:.4f}", flush=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _compared(records: Sequence[dict[str, Any]]) -> set[float]:
    """Operations of the points at which the spatial pyramid is compared with full resolution."""
    labels = spatial_pyramid.CLAIM.labels
    of_claim = [record for record in records if record["arm"] in labels]
    if not of_claim:
        return set()
    results = Results(of_claim, labels)
    return {point["tflops"] for point in results.points_at(results.common_tflops())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, decode and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.experiments.frechet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="output folder of the runs")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"what to compute on; {default}")
    parser.add_argument("--quick", action="store_true", help="only try it out: few references")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    references = QUICK_REFERENCES if options.quick else REFERENCES
    try:
        add_distances(options.folder, device=options.device, references=references)
    except (OSError, ValueError, ImportError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
