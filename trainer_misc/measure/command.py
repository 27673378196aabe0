"""The command `python -m trainer_misc.measure`: a table and JSON of the measures of videos.

    python -m trainer_misc.measure VIDEOS [--reference VIDEOS] [--json FILE]

VIDEOS are files (mp4, gif, ...), folders of videos, or folders of frames. With a reference, a video
is compared with the one of the same name, or else in the same place, by PSNR, SSIM and VMAF; and
both sets as a whole by a Fréchet distance. Flicker and block edges are measured without it.
docs/measures.md says what each number means.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pyramid_dit.files import replacing
from video_vae.round_trip import psnr

from .artifacts import BLOCKS, block_edges, flicker
from .frechet import ENOUGH, NETWORK, frechet_distance, video_features
from .similarity import LEAST_SIDES, VMAF_LINES, ssim, vmaf
from .sources import VideoSource, paired, sources_of

PAIRED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "psnr": psnr,
    "ssim": ssim,
    "vmaf": vmaf,
}
"""Measures of a video and its reference."""
ALONE = ("flicker", "block-edges")
MEASURES = (*PAIRED, "frechet", *ALONE)
_UNITS = {"psnr": "PSNR dB", "ssim": "SSIM", "vmaf": "VMAF"}


@dataclass
class Measurement:
    """What was measured."""

    videos: list[dict[str, Any]]
    """`video`, `frames`, `width` and `height` of each, `reference` if there is one, and its values
    by the names of the columns; None where the video is too small or too short for one."""
    mean: dict[str, float | None]
    """Of the columns over the videos that have a value."""
    frechet: dict[str, Any] | None = None
    """`distance`, the sizes of both sets, and the `network`."""
    notes: list[str] = field(default_factory=list)
    """What to mind when reading the numbers."""

    def table(self) -> str:
        """All of it as text."""
        columns = list(self.mean)
        lines = [["video", "frames", "size", *(_UNITS.get(name, name) for name in columns)]]
        for row in self.videos:
            size = f"{row['width']}x{row['height']}"
            values = [_text(name, row[name]) for name in columns]
            lines.append([row["video"], str(row["frames"]), size, *values])
        if len(self.videos) > 1:
            lines.append(["mean", "", "", *(_text(name, self.mean[name]) for name in columns)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        if self.frechet is not None:
            distance, count, others = (
                self.frechet[key] for key in ("distance", "videos", "references")
            )
            text.append(f"Fréchet distance {distance:.4g}, of {count} videos and {others}")
        return "\n".join([*text, *(f"- {note}" for note in self.notes)])

    def save(self, path: Path) -> None:
        """Write JSON; an infinite number is the string "inf", for JSON has none."""
        text = json.dumps(_finite(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
        with replacing(path) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")


def measure(
    videos: Sequence[VideoSource],
    references: Sequence[VideoSource] = (),
    *,
    measures: Sequence[str] = MEASURES,
    device: str = "cpu",
    quiet: bool = True,
) -> Measurement:
    """Measure videos, see `MEASURES`.

    Args:
        videos: At least one.
        references: What they are compared with; without any, `PAIRED` and "frechet" need them.
        measures: Which.
        device: Where the network of the Fréchet distance computes.
        quiet: Whether no progress is shown.

    Raises:
        OSError: A file cannot be read, or ffmpeg cannot measure VMAF.
        ImportError: The network of the Fréchet distance is not installed.
        ValueError: There are no references for a measure that takes them, they cannot be paired, or
            a video and its reference differ in size or length.
    """
    if unknown := set(measures) - set(MEASURES):
        raise ValueError(f"measures are {', '.join(MEASURES)}, not {', '.join(sorted(unknown))}")
    needing = [name for name in measures if name not in ALONE]
    if needing and not references:
        raise ValueError(f"{', '.join(needing)} take --reference")
    distance = None
    if "frechet" in measures:  # first, for its package may not be there
        sets = [
            video_features(
                (source.read() for source in tqdm(group, "features", disable=quiet)), device
            )
            for group in (videos, references)
        ]
        distance = frechet_distance(*sets)
    compared = [name for name in PAIRED if name in measures]
    pairs: list[tuple[VideoSource, VideoSource | None]] = (
        [*paired(videos, references)] if compared else [(video, None) for video in videos]
    )
    rows = []
    for video, reference in tqdm(pairs, "videos", disable=quiet):
        rows.append(_row(video, reference, measures))
    found = Measurement(rows, _means(rows))
    if distance is not None:
        counts = {"videos": len(videos), "references": len(references)}
        found.frechet = {"distance": distance, **counts, "network": NETWORK}
        if min(counts.values()) < ENOUGH:
            found.notes.append(
                f"The Fréchet distance of fewer than {ENOUGH} videos is too large: compare it only "
                "with that of other sets of the same sizes."
            )
    lowest = min(row["height"] for row in rows)
    if "vmaf" in compared and lowest < VMAF_LINES:
        found.notes.append(
            f"VMAF is out of its range: it is made for {VMAF_LINES} lines and more, and there are "
            f"videos with {lowest}. Compare its values only with each other."
        )
    return found


def _row(
    video: VideoSource, reference: VideoSource | None, measures: Sequence[str]
) -> dict[str, Any]:
    frames = video.read()
    count, height, width, _ = frames.shape
    row: dict[str, Any] = {"video": str(video.path)}
    expected = None
    if reference is not None:
        expected = reference.read()
        row["reference"] = str(reference.path)
        if expected.shape != frames.shape:
            raise ValueError(
                f"{video.path} has {_said(frames)}, its reference {reference.path} has "
                f"{_said(expected)}: they must be the same"
            )
    row |= {"frames": count, "width": width, "height": height}
    for name, compare in PAIRED.items():
        if name in measures and expected is not None:
            too_small = min(height, width) < LEAST_SIDES.get(name, 1)
            row[name] = None if too_small else compare(frames, expected)
    for suffix, given in (("", frames), (" ref.", expected)):
        if given is not None:
            row |= {f"{name}{suffix}": value for name, value in _alone(given, measures).items()}
    return row


def _alone(frames: np.ndarray, measures: Sequence[str]) -> dict[str, float | None]:
    """What is measured of each video by itself."""
    found: dict[str, float | None] = {}
    if "flicker" in measures:
        found["flicker"] = flicker(frames) if len(frames) >= 3 else None
    if "block-edges" in measures:
        larger = max(frames.shape[1:3])
        for side in BLOCKS:
            found[f"edges {side}"] = block_edges(frames, side) if larger > side else None
    return found


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    facts = ("video", "reference", "frames", "width", "height")
    means: dict[str, float | None] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        if name not in facts:
            means[name] = float(np.mean(values)) if values else None
    return means


def _said(frames: np.ndarray) -> str:
    count, height, width, _ = frames.shape
    return f"{count} frames of {width}x{height}"


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if name == "ssim" else f"{value:.2f}"


def _finite(value: Any) -> Any:
    """The same with "inf" for infinite numbers."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in MEASURES]:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is not a measure; there are {', '.join(MEASURES)}"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEOS", help="files and folders")
    parser.add_argument(
        "--reference", nargs="+", default=[], metavar="VIDEOS", help="what they are compared with"
    )
    parser.add_argument(
        "--measures",
        type=_chosen,
        metavar="NAMES",
        help=f"which, with commas: {', '.join(MEASURES)} (default: all that the videos allow; "
        "frechet from two videos on)",
    )
    parser.add_argument(
        "--device", default="cpu", help="where the network of frechet computes; default %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all of it to a file")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        videos, references = sources_of(options.videos), sources_of(options.reference)
        measures = options.measures
        if measures is None:
            sets = min(len(videos), len(references)) > 1
            left_out = set() if sets else {"frechet"}
            left_out |= set() if references else set(PAIRED)
            measures = [name for name in MEASURES if name not in left_out]
        found = measure(
            videos, references, measures=measures, device=options.device, quiet=options.quiet
        )
        if options.json is not None:
            found.save(options.json)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except ImportError as error:
        others = ",".join(name for name in measures if name != "frechet")
        parser.error(f"{error}, or leave it out: --measures {others}")
    print(found.table())
