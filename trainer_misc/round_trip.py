"""How well a VAE keeps videos: encodes and decodes them and compares the result.

    python -m trainer_misc.round_trip VAE ANNOTATIONS --resolution 128 --num_frames 65

prints PSNR and VMAF of each video of the annotations (JSON lines, a folder or shards). No
transformer draws better than its VAE. VMAF is made for videos with at least 480 lines. For smaller
ones you can compare values with each other, but a single value means little.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyramid_dit.checks import FRAMES, SIDE
from pyramid_dit.generation.latent_codec import to_bytes
from pyramid_dit.media.ffmpeg import ffmpeg_says
from video_vae import CausalVideoVAE
from video_vae.round_trip import psnr, through_vae

from .data.annotations import Annotations
from .data.skipped import SampleError
from .data.videos import clip_pixels, read_clip


def vmaf(frames: np.ndarray, reference: np.ndarray) -> float:
    """VMAF of a video by the filter `libvmaf` of ffmpeg: 0 to 100, 100 for no visible loss.

    Args:
        frames: Bytes `[t, h, w, 3]`.
        reference: What it is compared with, of the same shape.

    Raises:
        ValueError: The shapes differ.
        OSError: ffmpeg has no such filter, or failed.
    """
    if frames.shape != reference.shape:
        raise ValueError(f"videos of {frames.shape} and {reference.shape} cannot be compared")
    _, height, width, _ = frames.shape
    with tempfile.TemporaryDirectory() as folder:
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "24"]
        given = []
        for name, video in (("frames", frames), ("reference", reference)):
            path = Path(folder, f"{name}.raw")
            path.write_bytes(np.ascontiguousarray(video).tobytes())
            given += [*raw, "-i", str(path)]
        log = Path(folder, "log.json")
        planes = "[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];[a][b]"

        done = ffmpeg_says(
            [*given, "-lavfi", f"{planes}libvmaf=log_fmt=json:log_path={_quoted(log)}"]
            + ["-f", "null", "-"]
        )
        if not log.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise OSError(f"ffmpeg does not measure VMAF: {said[-1] if said else done.returncode}")
        score: float = json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"]
    return score


def _quoted(path: Path) -> str:
    """A path inside of ffmpeg's filters."""
    text = path.as_posix()
    for mark in ("\\", ":", "'"):
        text = text.replace(mark, "\\" + mark)
    return f"'{text}'" if " " in text else text


def measured(
    vae: CausalVideoVAE, source: str | Path, *, resolution: int = 128, num_frames: int = 65
) -> Iterator[dict[str, Any]]:
    """`video`, `frames`, `psnr` and `vmaf` of each video of a source, the middle square of it.

    Args:
        vae: What they go through.
        source: As `Annotations.open` takes it.
        resolution: Side of the square in pixels.
        num_frames: The first of the video, or of the `frames` in its annotation; 8n + 1.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: It holds no videos.
    """
    annotations = Annotations.open(source, "video")
    for index in range(len(annotations)):
        try:
            record = annotations.checked(index, ["video"])
            with annotations.file(record, "video") as path:
                clip = read_clip(
                    path,
                    num_frames,
                    size=(resolution, resolution),
                    indices=record.get("frames"),
                )
        except SampleError as error:
            raise ValueError(str(error)) from error
        clip = clip[: len(clip) - (len(clip) - 1) % 8]
        pixels = clip_pixels(clip)[None]
        back = through_vae(vae, pixels)
        yield {
            "video": record["video"],
            "frames": len(clip),
            "psnr": round(psnr(back.numpy(), pixels.numpy(), peak=2.0), 2),
            "vmaf": round(vmaf(to_bytes(back)[0].numpy(), clip), 2),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.round_trip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("vae", type=Path, help="folder of a VAE, such as causal_video_vae")
    parser.add_argument("annotations", help="JSON lines, a folder or shards")
    parser.add_argument("--resolution", type=int, default=128, help="side of the square; 128")
    parser.add_argument("--num_frames", "--num-frames", type=int, default=65, help="8n + 1; 65")
    options = parser.parse_args(arguments)
    try:
        SIDE("--resolution", options.resolution)
        FRAMES("--num_frames", options.num_frames)
        vae = CausalVideoVAE.from_pretrained(options.vae).eval()
        sizes = {"resolution": options.resolution, "num_frames": options.num_frames}
        for line in measured(vae, options.annotations, **sizes):
            print("{video}: {frames} frames, PSNR {psnr:.2f} dB, VMAF {vmaf:.1f}".format(**line))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
