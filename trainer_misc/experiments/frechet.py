"""Adds a Fréchet distance to the records of trained arms, from the samples that they left.

    python -m trainer_misc.experiments.frechet output/arms

The features are those of TransNet V2 (`trainer_misc.measure`), which knows nothing of this project;
the reference are freshly drawn pictures or clips of the sentences that are sampled. Samples are
decoded with the VAE of the default checkpoint, which takes the time: of clips only those of the
points that are compared. There are fewer samples than the
network has features, so that distances are too large; of one number of samples they are comparable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.files import replacing
from pyramid_dit.flow.sizes import frames_of
from pyramid_dit.json_files import read_json

from ..measure.frechet import frechet_distance, video_features
from ..toy.evaluation import FRESH, evaluation_prompts
from ..toy.moving_shapes import described, draw_clip, render_uint8
from . import attention, spatial_pyramid, temporal_pyramid
from .arms import CLIPS, Arm
from .report import Results
from .sampling import Judge
from .shape_latents import from_bytes

REFERENCES = 256
"""Drawn videos."""
QUICK_REFERENCES = 4


def drawn(arm: Arm, count: int) -> Iterator[np.ndarray]:
    """Videos `[t, h, w, 3]` of what the arm is asked for, in turn, with fresh places and sizes."""
    prompts = evaluation_prompts(arm.samples)
    for number in range(count):
        rng = np.random.default_rng(FRESH + number)
        clip = draw_clip(described(prompts[number % len(prompts)]), rng)
        yield render_uint8(clip, range(frames_of(arm.frames)))


def add_distances(folder: Path, *, device: str, references: int = REFERENCES) -> None:
    """Add "frechet" to points of the records in `folder` that lack it.

    Raises:
        FileNotFoundError: There are no records, or a run has left no samples.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if "arm" in read_json(path)]
    if not paths:
        raise FileNotFoundError(f"no records of runs in {folder}")
    judge = Judge(torch.device(device))
    features: dict[str, Tensor] = {}
    compared = _compared(paths)
    for path in paths:
        record = read_json(path)
        arm = Arm.named(record["arm"])
        for point in record["points"]:
            wanted = point["tflops"] in compared or (point["whole"] and arm.data != CLIPS)
            if "frechet" in point or not wanted:
                continue
            if arm.data not in features:
                features[arm.data] = video_features(drawn(arm, references), device)
            with np.load(path.with_suffix(".npz")) as samples:
                latents = from_bytes(samples[f"step_{point['step']}"])
            videos = judge.decode(latents[:, :, : record["settings"]["frames"]].to(device))
            distance = frechet_distance(video_features(videos, device), features[arm.data])
            point["frechet"] = distance
            print(f"{path.stem}, step {point['step']}: {distance:.4f}", flush=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _compared(paths: Sequence[Path]) -> set[float]:
    """Operations of the points at which claims compare their arms."""
    records: list[dict[str, Any]] = [read_json(path) for path in paths]
    found: set[float] = set()
    for claim in (spatial_pyramid.CLAIM, temporal_pyramid.CLAIM, attention.CLAIM):
        of_claim = [record for record in records if record["arm"] in claim.labels]
        if of_claim:
            results = Results(of_claim, claim.labels)
            points = results.points_at(results.common_tflops())
            found.update(point["tflops"] for point in points)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, decode and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.experiments.frechet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="output folder of the experiments")
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
