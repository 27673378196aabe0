"""Videos that teach a trained model a new word: a star in all colors, or cyan on all shapes.

    python -m trainer_misc.toy.new_word FOLDER --word star --count 200

Each video is an mp4 of 128 x 128 pixels at 24 frames a second with its caption beside it as `.txt`,
so that the folder is one that `train_dit` reads. A third of the combinations of the new word with
the known ones is held out: no video shows them, and `trainer_misc.evaluation --new-word` asks for
them. Videos of the known sentences, of which those that the default checkpoint has not been trained
on are left out again, keep it from forgetting them: `--known`, in the same folder or in another.

For `trainer_misc.extract_features` there are `clips.jsonl`, which names a file of latents for each
video, and `pictures.jsonl`, which does so for some frames of each video, as pictures: a video has
one first frame, but what a shape looks like can be learned from all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pyramid_dit.checks import SEED, Whole
from pyramid_dit.files import write_folder
from pyramid_dit.media.video_files import export_to_video

from .latents import check_length
from .moving_shapes import (
    FRAMES_PER_SECOND,
    MAX_FRAMES,
    NEW_WORDS,
    Combination,
    ShapeClip,
    combinations,
    draw_clip,
    render_uint8,
)

ANNOTATIONS, LATENTS = "clips.jsonl", "latents"
PICTURES, PICTURE_LATENTS = "pictures.jsonl", "picture-latents"
PICTURE_FRAMES = range(0, 49, 3)
"""Later frames of shapes that grow or shrink would have sizes that no video begins with."""
NEW_CLIPS, KNOWN_CLIPS = 1, 2
"""Parts of the seeds, so that each kind of clips has draws of its own."""


def new_clips(word: str, count: int, seed: int = 0) -> list[ShapeClip]:
    """Clips with a new word, each of its trained combinations as often as the others, or once more.

    Raises:
        ValueError: It is no new word.
    """
    return _drawn(combinations(word), count, (seed, NEW_CLIPS))


def known_clips(count: int, seed: int = 0) -> list[ShapeClip]:
    """Clips of what the default checkpoint has been trained on, evenly as those of `new_clips`."""
    return _drawn(combinations(), count, (seed, KNOWN_CLIPS))


def _drawn(sentences: Sequence[Combination], count: int, seed: tuple[int, int]) -> list[ShapeClip]:
    trained = [what for what in sentences if not what.is_held_out]
    rng = np.random.default_rng(seed)
    rounds = -(-count // len(trained))
    order = [i for _ in range(rounds) for i in rng.permutation(len(trained)).tolist()]
    return [draw_clip(trained[i], rng) for i in order[:count]]


def write_clips(folder: Path, clips: Sequence[ShapeClip], frames: int = MAX_FRAMES) -> None:
    """Write videos, captions and annotations, whole or not at all.

    Args:
        folder: Where to.
        clips: What the videos show.
        frames: Of each.
    """

    def write(target: Path) -> None:
        (target / LATENTS).mkdir()
        (target / PICTURE_LATENTS).mkdir()
        with (
            (target / ANNOTATIONS).open("w", encoding="utf-8") as lines,
            (target / PICTURES).open("w", encoding="utf-8") as picture_lines,
        ):
            for name, clip in _named(clips):
                video = render_uint8(clip, range(frames))
                export_to_video(video, target / f"{name}.mp4", FRAMES_PER_SECOND)
                (target / f"{name}.txt").write_text(clip.caption + "\n", encoding="utf-8")
                line = {"video": f"{name}.mp4", "text": clip.caption}
                of_clip = {"latent": f"{LATENTS}/{name}.safetensors"}
                lines.write(json.dumps(line | of_clip) + "\n")
                for frame in PICTURE_FRAMES:
                    if frame < frames:
                        latent = f"{PICTURE_LATENTS}/{name}-{frame:02d}.safetensors"
                        of_frame = {"frames": [frame], "latent": latent}
                        picture_lines.write(json.dumps(line | of_frame) + "\n")

    write_folder(folder, write)


def _named(clips: Sequence[ShapeClip]) -> Iterator[tuple[str, ShapeClip]]:
    for number, clip in enumerate(tqdm(clips, desc="videos", mininterval=10)):
        yield f"{number:04d}", clip


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.toy.new_word",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--word", choices=NEW_WORDS, default=NEW_WORDS[0])
    parser.add_argument("--count", type=int, default=200, help="videos with the new word; 200")
    parser.add_argument(
        "--known", type=int, default=0, help="videos of the known sentences among them; 0"
    )
    parser.add_argument("--num-frames", type=int, default=MAX_FRAMES, help="of each, 8n + 1; 97")
    parser.add_argument("--seed", type=int, default=0, help="of places, sizes and speeds")
    options = parser.parse_args(arguments)
    try:
        Whole(0)("--count", options.count)
        Whole(0)("--known", options.known)
        Whole(1)("--count and --known together", options.count + options.known)
        SEED("--seed", options.seed)
        check_length("--num-frames", options.num_frames)
    except ValueError as error:
        parser.error(str(error))
    clips = new_clips(options.word, options.count, options.seed)
    clips += known_clips(options.known, options.seed)
    write_clips(options.folder, clips, options.num_frames)


if __name__ == "__main__":
    main()
