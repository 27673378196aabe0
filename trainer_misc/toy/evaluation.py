"""How well a model draws moving shapes: prompts, tables, and the command that fills them.

    python -m trainer_misc.evaluation --mode all --output table.json --contact-sheet sheet.png

Modes: ``t2v`` text to video; ``i2v`` a drawn first frame and a prompt; ``long`` 97 frames, judged
on their last second; ``extend`` what is added to drawn clips of 25 frames; ``change`` 97 frames
whose sentence changes in the middle, judged as ``long``; ``vae`` reconstruction of fresh clips, in
the six known colors and in any.
``--new-word`` measures sentences with that word, too; and, with ``vae``, how often drawn clips of
them are judged right, before and after their way through the VAE: no model of it can do better.
Every clip has a generator of its own, so the result does not depend on the batch size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyramid_dit.devices.cpu import keep_freed_memory
from video_vae.round_trip import psnr, through_vae

from .judge import as_frames, judge
from .moving_shapes import (
    MAX_FRAMES,
    NEW_WORDS,
    Combination,
    MovingShapes,
    combinations,
    described,
    draw_clip,
    random_colors,
    render,
)
from .tables import Judged, Table, contact_sheet
from .ways import FRESH, GIVEN_FRAMES, Generate, change, extension, image_to_video, text_to_video

if TYPE_CHECKING:
    from pyramid_dit import PyramidDiTForVideoGeneration
    from video_vae import CausalVideoVAE

logger = logging.getLogger(__name__)

WAYS = {
    "t2v": text_to_video,
    "i2v": image_to_video,
    "long": text_to_video,
    "extend": extension,
    "change": change,
}
MODES = (*WAYS, "vae")
LONG = ("long", "change")
"""Of `MAX_FRAMES`, of which the last ones are judged."""
LAST_FRAMES = 25


def evaluation_prompts(
    count: int = 100,
    seed: int = 0,
    new_word: str | None = None,
    *,
    shapes: Sequence[str] | None = None,
) -> list[str]:
    """Different prompts, every other one held out of training, spread evenly over attributes.

    Where fewer than half of them are held out, the last ones are not.

    Args:
        count: How many.
        seed: Of the choice.
        new_word: One of `NEW_WORDS`, that all of them have; by default the known sentences.
        shapes: The only ones that they ask for; by default all.

    Raises:
        ValueError: There are not so many sentences, or it is no new word.
    """
    sentences = [what for what in combinations(new_word) if shapes is None or what.shape in shapes]
    if not 1 <= count <= len(sentences):
        raise ValueError(f"count is {count}, must be in 1..{len(sentences)}")
    rng = random.Random(seed)
    split: dict[bool, list[Combination]] = {True: [], False: []}
    for what in sentences:
        split[what.is_held_out].append(what)
    most = min(len(split[True]), count // 2)
    held_out = _spread(split[True], most, rng)
    trained = _spread(split[False], count - most, rng)
    mixed = itertools.chain.from_iterable(itertools.zip_longest(trained, held_out))
    return [what.caption for what in mixed if what is not None]


def _spread(sentences: Sequence[Combination], count: int, rng: random.Random) -> list[Combination]:
    """Choose combinations one by one, always one whose attributes were chosen least so far."""
    left = {what: astuple(what) for what in rng.sample(sentences, len(sentences))}
    values = [len(set(column)) for column in zip(*left.values(), strict=True)]
    seen: Counter[str] = Counter()
    chosen = []
    for _ in range(count):
        # Weighted by how many values an attribute has, all attributes count alike.
        cost = {n: sum(seen[v] * w for v, w in zip(left[n], values, strict=True)) for n in left}
        best = min(left, key=cost.__getitem__)
        seen.update(left.pop(best))
        chosen.append(best)
    return chosen


def evaluate_model(
    generate: Generate,
    prompts: Sequence[str],
    *,
    batch_size: int = 10,
    seed: int = 0,
    last_frames: int | None = None,
    name: str = "clips",
) -> tuple[Table, list[np.ndarray]]:
    """Generate a clip for every prompt and judge it.

    Args:
        generate: Takes prompts and as many seeds, returns as many clips.
        prompts: Captions of moving shapes.
        batch_size: Clips generated at a time.
        seed: The i-th prompt gets the seed ``seed + i``.
        last_frames: Judge only so many frames at a clip's end.
        name: Heads the progress lines.

    Returns:
        The table, and a few frames of every clip for a contact sheet.
    """
    judged: list[Judged] = []
    glimpses: list[np.ndarray] = []
    start = time.monotonic()
    for batch in _batches(len(prompts), batch_size):
        captions = [prompts[i] for i in batch]
        clips = generate(captions, [seed + i for i in batch])
        for caption, clip in zip(captions, clips, strict=True):
            frames = as_frames(clip)
            shown = frames if last_frames is None else frames[-last_frames:]
            judged.append(Judged(caption, judge(shown)))
            glimpses.append(frames[np.linspace(0, len(frames) - 1, 6).round().astype(int)])
        logger.info(
            "%s: %d of %d, all four right in %.0f%%, %.0f s",
            name,
            len(judged),
            len(prompts),
            100 * Table(tuple(judged)).rate("all clips", "all"),
            time.monotonic() - start,
        )
    return Table(tuple(judged)), glimpses


def _batches(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def reconstruction(
    vae: CausalVideoVAE,
    count: int,
    *,
    num_frames: int = 49,
    seed: int = 0,
    any_color: bool = False,
) -> dict[str, float]:
    """PSNR in dB of fresh clips, encoded to the posterior's mode and decoded: mean and lowest.

    Args:
        vae: What is measured.
        count: Clips.
        num_frames: Of a clip, 8n + 1.
        seed: Of the clips.
        any_color: Shapes and backgrounds have colors of the whole cube, and not the known ones.
    """
    clips = MovingShapes(FRESH + seed, num_frames, combinations="all")
    source = np.random.default_rng(FRESH + seed)
    values = []
    for index in range(count):
        colors = random_colors(source) if any_color else None
        drawn = render(clips.clip(index), range(num_frames), colors)
        values.append(psnr(_decoded(vae, drawn), drawn, peak=2.0))
        logger.info("vae: %d of %d, %.1f dB", index + 1, count, values[-1])
    return {"psnr": float(np.mean(values)), "lowest_psnr": min(values), "clips": count}


def _decoded(vae: CausalVideoVAE, drawn: np.ndarray) -> np.ndarray:
    """A clip `[3, T, H, W]` in [-1, 1], encoded to the posterior's mode and decoded."""
    decoded: np.ndarray = through_vae(vae, torch.from_numpy(drawn)[None])[0].numpy()
    return decoded


def readings(
    vae: CausalVideoVAE, prompts: Sequence[str], *, num_frames: int = 49, seed: int = 0
) -> dict[str, Table]:
    """Verdicts on drawn clips, as they are and encoded and decoded.

    Args:
        vae: Encodes and decodes.
        prompts: What the clips show.
        num_frames: Of a clip, 8n + 1.
        seed: Of places, sizes and speeds.

    Returns:
        The tables, "drawn" and "through the VAE".
    """
    judged: dict[str, list[Judged]] = {"drawn": [], "through the VAE": []}
    for number, prompt in enumerate(prompts):
        clip = draw_clip(described(prompt), np.random.default_rng(FRESH + seed + number))
        drawn = render(clip, range(num_frames))
        for video, into in zip((drawn, _decoded(vae, drawn)), judged.values(), strict=True):
            frames = (video.transpose(1, 2, 3, 0) + 1) / 2
            into.append(Judged(prompt, judge(frames)))
        logger.info("vae: %d of %d read", number + 1, len(prompts))
    return {name: Table(tuple(clips)) for name, clips in judged.items()}


def _load_model(folder: Path | None, device: str, *, fast: bool) -> PyramidDiTForVideoGeneration:
    from pyramid_dit import PyramidDiTForVideoGeneration

    model = PyramidDiTForVideoGeneration.from_pretrained(folder, fast=fast, device=device)
    model.set_progress_bar_config(disable=True)
    return model


def _load_vae(folder: Path | None, device: str, *, fast: bool) -> CausalVideoVAE:
    from pyramid_dit.checkpoints.hub import open_checkpoint
    from pyramid_dit.checkpoints.weights import read_vae

    return read_vae(open_checkpoint(folder, fast=fast), dtype=torch.float32).to(device)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.evaluation",
        description="Measure how well a model draws moving shapes.",
    )
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the bundled one)")
    parser.add_argument(
        "--fast", action="store_true", help="measure its distilled transformer and light decoder"
    )
    parser.add_argument("--mode", choices=[*MODES, "all"], default="t2v")
    parser.add_argument("--num-frames", type=int, default=49, help="8n + 1; long clips have 97")
    parser.add_argument(
        "--prompts",
        type=int,
        default=100,
        help="how many of the known sentences, and of those with a new word; half held out",
    )
    parser.add_argument(
        "--new-word", choices=NEW_WORDS, help="measure sentences with this word, too"
    )
    parser.add_argument("--batch-size", type=int, default=10, help="clips generated at a time")
    parser.add_argument("--seed", type=int, default=0)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default_device)
    parser.add_argument("--output", type=Path, help="write rates and verdicts here, as json")
    parser.add_argument(
        "--contact-sheet", type=Path, help="write a picture of the clips; its name gets the mode"
    )
    options = parser.parse_args(argv)
    if options.num_frames % 8 != 1 or not 9 <= options.num_frames <= MAX_FRAMES:
        parser.error(f"--num-frames is {options.num_frames}, must be 8n + 1 in 9..{MAX_FRAMES}")
    if options.mode in ("extend", "all") and options.num_frames <= GIVEN_FRAMES:
        parser.error(
            f"--num-frames is {options.num_frames}, must be above {GIVEN_FRAMES} with --mode "
            f"{options.mode}: clips of {GIVEN_FRAMES} frames are extended"
        )
    most = len(combinations())
    if not 1 <= options.prompts <= most:
        parser.error(f"--prompts is {options.prompts}, must be in 1..{most}")
    if options.batch_size < 1:
        parser.error(f"--batch-size is {options.batch_size}, must be at least 1")
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}, must not be negative")
    if options.model and not options.model.is_dir():
        parser.error(f"--model {options.model} is not a folder")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a model; tables go to standard output, progress to the log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_freed_memory()
    options = _arguments(argv)
    modes = MODES if options.mode == "all" else (options.mode,)
    word: str | None = options.new_word
    results: dict[str, Any] = {}
    prompts: dict[str | None, list[str]] = {None: evaluation_prompts(options.prompts, options.seed)}
    if word is not None:
        count = min(options.prompts, len(combinations(word)))
        prompts[word] = evaluation_prompts(count, options.seed, word)
    if "vae" in modes:
        vae = _load_vae(options.model, options.device, fast=options.fast)
        common: dict[str, int] = {"num_frames": options.num_frames, "seed": options.seed}
        for name, any_color in (("vae", False), ("vae_any_color", True)):
            results[name] = reconstruction(vae, options.prompts, any_color=any_color, **common)
        for name, colors in (("vae", "the six colors"), ("vae_any_color", "any color")):
            figures = "{psnr:.2f} dB, lowest {lowest_psnr:.2f} dB".format(**results[name])
            sys.stdout.write(f"\nvae, {colors}: {figures}\n")
        if word is not None:
            tables = readings(vae, prompts[word], **common)
            results[f"vae_{word}"] = {name: table.as_dict() for name, table in tables.items()}
            for name, table in tables.items():
                sys.stdout.write(f"\n{word}, {name}\n\n{table.markdown()}")
    if drawn := [mode for mode in modes if mode != "vae"]:
        model = _load_model(options.model, options.device, fast=options.fast)
    for mode, new in itertools.product(drawn, prompts):
        name = mode if new is None else f"{mode}_{new}"
        table, glimpses = evaluate_model(
            WAYS[mode](model, MAX_FRAMES if mode in LONG else options.num_frames),
            prompts[new],
            batch_size=options.batch_size,
            seed=options.seed,
            last_frames=LAST_FRAMES if mode in LONG else None,
            name=name,
        )
        results[name] = table.as_dict()
        sys.stdout.write(f"\n{name}\n\n{table.markdown()}")
        if path := options.contact_sheet:
            contact_sheet(glimpses, table).save(path.with_stem(f"{path.stem}-{name}"))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
