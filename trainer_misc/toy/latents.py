"""Draw moving shapes and write their latents to files, with annotations for `train_dit`.

The folder contains `pictures.jsonl`, first frames as latents of one frame; `clips.jsonl`, whole
clips; and `prompts.txt`, captions to draw sample sheets of.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from pyramid_dit.checks import Whole
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.devices.offload import chosen_device
from pyramid_dit.files import write_folder
from video_vae.autoencoder import CausalVideoVAE

from .moving_shapes import MAX_FRAMES, NUM_COMBINATIONS, MovingShapes, caption_of

PICTURES, CLIPS, PROMPTS = "pictures.jsonl", "clips.jsonl", "prompts.txt"
PICTURE_SEED, CLIP_SEED = 10_000, 20_000


def write_latents(
    folder: Path, vae: CausalVideoVAE, *, pictures: int, clips: int, frames: int = MAX_FRAMES
) -> None:
    """Write latents of `pictures` first frames and of `clips` clips, whole or not at all.

    Args:
        folder: Where to.
        vae: Encodes them.
        pictures: How many.
        clips: How many.
        frames: Of a clip, 8n + 1.
    """

    def write(target: Path) -> None:
        write_annotated(target / PICTURES, _encoded(vae, pictures, 1, PICTURE_SEED))
        write_annotated(target / CLIPS, _encoded(vae, clips, frames, CLIP_SEED))
        prompts = [caption_of(number) for number in range(3, NUM_COMBINATIONS, 42)]
        (target / PROMPTS).write_text("\n".join(prompts) + "\n")

    write_folder(folder, write)


@torch.no_grad()
def _encoded(
    vae: CausalVideoVAE, count: int, frames: int, seed: int
) -> Iterator[tuple[Tensor, dict[str, str]]]:
    """Latents `[1, c, t, h, w]` of clips, not normalized, and their captions as `text`."""
    data = MovingShapes(seed=seed, num_frames=frames)
    batch = 32 if frames == 1 else 2
    for start in tqdm(range(0, count, batch), desc=f"{frames} frames", mininterval=10):
        items = [data[index] for index in range(start, min(count, start + batch))]
        video = torch.stack([item["video"] for item in items]).to(vae.device)
        latents = vae.encode(video, temporal_chunk=frames > 17).latent_dist.mode()
        texts = [{"text": item["text"]} for item in items]
        yield from zip(latents.half().cpu().split(1), texts, strict=True)


def write_annotated(annotations: Path, samples: Iterable[tuple[Tensor, dict[str, Any]]]) -> None:
    """Write a file for each sample into a folder beside `annotations`, and their lines.

    Args:
        annotations: A new file of JSON lines.
        samples: Latents `[1, c, t, h, w]`, and what their lines say beside the file's name.
    """
    annotations.with_suffix("").mkdir()
    with annotations.open("w", encoding="utf-8") as lines:
        for number, (latents, said) in enumerate(samples):
            name = f"{annotations.stem}/{number:06d}.safetensors"
            save_file({"latent": latents.contiguous()}, annotations.parent / name)
            lines.write(json.dumps({"latent": name, **said}) + "\n")


def check_length(name: str, frames: int) -> None:
    """Refuse what is no number of frames of a clip with moving shapes (ValueError)."""
    if frames % 8 != 1 or not 9 <= frames <= MAX_FRAMES:
        raise ValueError(f"{name} is {frames}, must be 8n + 1 in 9..{MAX_FRAMES}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and encode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--pictures", type=int, default=16_000, help="number of single frames")
    parser.add_argument("--clips", type=int, default=1_000, help="number of clips")
    parser.add_argument(
        "--num-frames", type=int, default=MAX_FRAMES, help="of a clip, 8n + 1; by default 97"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    try:
        Whole(0)("--pictures", options.pictures)
        Whole(0)("--clips", options.clips)
        Whole(1)("--pictures and --clips together", options.pictures + options.clips)
        check_length("--num-frames", options.num_frames)
    except ValueError as error:
        parser.error(str(error))
    keep_freed_memory()
    vae = CausalVideoVAE.from_pretrained(options.vae).requires_grad_(False).eval()
    vae.to(chosen_device(options.device))
    write_latents(
        *(options.output, vae),
        pictures=options.pictures,
        clips=options.clips,
        frames=options.num_frames,
    )


if __name__ == "__main__":
    main()
