"""Write the model card of a checkpoint: how it was made, and what was measured of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .judge import ATTRIBUTES

TITLES = {
    "t2v": "Text to video, 49 frames",
    "i2v": "Image to video from a drawn first frame, 49 frames",
    "long": "Text to video, the last 25 of 97 frames",
    "extend": "Drawn clips of 25 frames that go on, what is added",
    "change": "A sentence that changes in the middle, the last 25 of 97 frames",
}
PARTS = {
    "diffusion_transformer_128p": "miniFLUX transformer",
    "diffusion_transformer_128p_fast": "its student of one or two steps per stage",
    "causal_video_vae": "causal video VAE",
    "causal_video_vae_fast": "the same encoder with a light decoder",
    "text_encoder": "CLIP text encoder",
    "text_encoder_2": "T5 text encoder",
}


def rates_table(rates: dict[str, dict[str, float]]) -> str:
    """Rates by group of clips as a markdown table."""
    columns = [*ATTRIBUTES, "all"]
    lines = [
        "| clips | " + " | ".join([*ATTRIBUTES, "all four"]) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for group, values in rates.items():
        cells = " | ".join(f"{values[name]:.0%}" for name in columns)
        lines.append(f"| {group} | {cells} |")
    return "\n".join(lines)


def scores_text(scores: dict[str, Any]) -> str:
    """All that `trainer_misc.toy.evaluation` measured, in markdown."""
    parts = []
    if "vae" in scores:
        vae = scores["vae"]
        parts.append(
            f"VAE: {vae['psnr']:.1f} dB PSNR on {vae['clips']} fresh clips "
            f"(the worst: {vae['lowest_psnr']:.1f} dB)."
        )
    if "vae_any_color" in scores:
        vae = scores["vae_any_color"]
        parts.append(
            f"In any colors: {vae['psnr']:.1f} dB on {vae['clips']} "
            f"(the worst: {vae['lowest_psnr']:.1f} dB)."
        )
    for mode, title in TITLES.items():
        if mode in scores:
            count = len(scores[mode]["clips"])
            parts.append(f"{title}, {count} clips:\n\n{rates_table(scores[mode]['rates'])}")
    return "\n\n".join(parts)


def count_parameters(folder: Path) -> int:
    """Number of values in the safetensors files of `folder`."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                values = 1
                for extent in file.get_slice(name).get_shape():
                    values *= extent
                total += values
    return total


def model_card(checkpoint: Path, scores: dict[str, Any], training: str) -> str:
    """The text of the card.

    Args:
        checkpoint: Folder in the released layout.
        scores: What `trainer_misc.toy.evaluation --output` wrote.
        training: What to say about the run: machine, steps, hours.
    """
    sizes = "\n".join(
        f"| `{name}` | {title} | {count_parameters(checkpoint / name) / 1e6:.2f} million |"
        for name, title in PARTS.items()
        if (checkpoint / name).is_dir()
    )
    return f"""---
license: mit
pipeline_tag: text-to-video
---

# Pyramid Flow, the default checkpoint

A model as small as it can be while everything in it is the real thing: it draws moving shapes,
128x128 pixels, 24 frames a second, up to 97 frames, from sentences of one form:

> a {{red, green, blue, yellow, purple, orange}} {{circle, square, triangle, cross}}
> {{moves left, moves right, moves up, moves down, stays still, grows, shrinks}}
> on a {{white, black, gray}} background

| folder | what | parameters |
|---|---|--:|
{sizes}

## How it was made

`scripts/train_toy.sh` trains everything from nothing on clips that are drawn on the fly
(`trainer_misc/toy/moving_shapes.py`): the VAE on single images, then on clips; then the
transformer together with both text encoders on latents. Of the 504 sentences those
whose number is 3 modulo 10 are never trained on: they test whether the model composes.

{training.strip()}

## What was measured

Judged from the frames alone by `python -m trainer_misc.evaluation --mode all`, half of the prompts
held out, one sample each.

{scores_text(scores)}

## What it is not

It knows nothing but these shapes; other words are spelled out letter by letter and mean nothing
to it. Its license is that of the project, MIT.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write `README.md` into the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--scores", type=Path, required=True, help="json file of the evaluation")
    parser.add_argument("--training", default="", help="a sentence on machine, steps and hours")
    options = parser.parse_args(arguments)
    scores = json.loads(options.scores.read_text(encoding="utf-8"))
    card = model_card(options.checkpoint, scores, options.training)
    (options.checkpoint / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
