"""How well a VAE keeps videos: encodes and decodes them and compares the result.

    python -m trainer_misc.round_trip VAE ANNOTATIONS --resolution 128 --num_frames 65

prints PSNR and VMAF of each video of the annotations (JSON lines, a folder or shards). No
transformer draws better than its VAE. VMAF is made for videos with at least 480 lines. For smaller
ones you can compare values with each other, but a single value means little.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyramid_dit.checks import FRAMES, SIDE
from pyramid_dit.generation.latent_codec import to_bytes
from video_vae import CausalVideoVAE
from video_vae.round_trip import psnr, through_vae

from .data.annotations import Annotations
from .data.skipped import SampleError
from .data.videos import clip_pixels, read_clip
from .measure.similarity import vmaf


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
