"""Draw long clips of several scenes and write their latents, to train for videos without end.

    python -m trainer_misc.toy.long_clips FOLDER --model_path CHECKPOINT --count 800 --seconds 12

A clip shows one shape on one background, and one motion after another: each scene has a caption of
its own, and begins with a unit. A shape may come to the border of the frame, where it stops. The
folder contains `clips.jsonl`, whose lines name a file of latents and the caption from each unit on,
for `train_dit`.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pyramid_dit.checkpoints.folder import VAE_FOLDER
from pyramid_dit.checks import SEED, Number, Whole
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.devices.offload import chosen_device
from pyramid_dit.files import write_folder
from pyramid_dit.flow.sizes import TEMPORAL_FACTOR
from pyramid_dit.generation.latent_codec import encode_clip
from video_vae.autoencoder import CausalVideoVAE

from ..data.annotations import TEXTS
from .latents import CLIPS, write_annotated
from .moving_shapes import (
    DIRECTIONS,
    FRAMES_PER_SECOND,
    MARGIN,
    MAX_FRAMES,
    MOTIONS,
    NUM_COMBINATIONS,
    RADIUS_RANGE,
    REFERENCE_SIZE,
    SCALING_RADIUS_RANGE,
    SCALING_RANGE,
    SPEED_RANGE,
    ShapeClip,
    attributes_of,
    render_uint8,
)

SCENE_SECONDS = (1.3, 4.5)
DIRECTION_SHARE = 0.75
"""Part of the scenes in which the shape moves left, right, up or down."""
USUAL_RADIUS = 44.0
"""In pixels; a shape grows beyond only where the slowest growth does, for it has less room then."""
BEYOND = 0.15
"""A place is drawn from so much more than the free length at each end: some shapes touch it."""
SCALING_SECONDS = (MAX_FRAMES - 1) / FRAMES_PER_SECOND
"""In which a shape is scaled by the `scaling` of its clip."""
PACES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(DIRECTIONS, SPEED_RANGE),
    "stays still": (0.0, 0.0),
    **dict.fromkeys(
        ("grows", "shrinks"),
        (
            math.log(SCALING_RANGE[0]) / SCALING_SECONDS,
            math.log(SCALING_RANGE[1]) / SCALING_SECONDS,
        ),
    ),
}
"""Slowest and fastest pace: pixels a second, or change of the logarithm of the radius a second."""
CPU_BATCH, GPU_BATCH = 2, 16
"""Clips that are encoded at a time."""


@dataclass(frozen=True)
class BoundedClip(ShapeClip):
    """A clip of any length whose shape stops at the border, and at the largest and smallest radius.

    A radius stays in `SCALING_RADIUS_RANGE`, and grows no further than to where the shape touches
    the border.
    """

    def center_at(self, frame: int) -> tuple[float, float]:
        """Center in a frame, in pixels."""
        x, y = super().center_at(frame)
        nearest = MARGIN + self.radius_at(frame)
        return _within(x, nearest, self.size - nearest), _within(y, nearest, self.size - nearest)

    def radius_at(self, frame: int) -> float:
        """Half the extent in a frame, in pixels."""
        if self.scaling == 1:
            return self.radius
        smallest, largest = SCALING_RADIUS_RANGE
        return _within(super().radius_at(frame), smallest, min(largest, self.reach))

    @property
    def reach(self) -> float:
        """Pixels from the center in frame 0 to the nearest border, less the margin."""
        return min(self.x, self.y, self.size - self.x, self.size - self.y) - MARGIN


@dataclass(frozen=True)
class Scene:
    """Part of a long clip, from one caption to the next."""

    unit: int
    """The first, of which frame 0 alone is unit 0 and others have eight frames."""
    units: int
    clip: BoundedClip
    """What it shows; its frame 0 is the last frame before it, or the first frame of the video."""

    @property
    def frames(self) -> range:
        """Those of `clip` that the scene shows."""
        length = TEMPORAL_FACTOR * (self.units - (self.unit == 0))
        return range(0 if self.unit == 0 else 1, 1 + length)


class LongClips(Dataset[np.ndarray]):
    """Long clips of moving shapes, deterministic by `(seed, index)`.

    An item is uint8 `[frames, 128, 128, 3]`. Color, shape and background are those of the trained
    combinations in turn; no scene shows a combination that is held out.

    Args:
        count: How many.
        units: Of each, of eight frames but for the first, which is a frame.
        seed: Picks one of the sets.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, count: int, units: int, *, seed: int = 0) -> None:
        Whole(1)("count", count)
        Whole(2)("units", units)
        SEED("seed", seed)
        self.count, self.units, self.seed = count, units, seed

    def __len__(self) -> int:
        return self.count

    def scenes(self, index: int) -> list[Scene]:
        """What item `index` shows, scene by scene."""
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} is not in 0..{self.count - 1}")
        rng = np.random.default_rng((self.seed, index))
        clip = _start(rng)
        scenes: list[Scene] = []
        unit = 0
        while unit < self.units:
            shortest, longest = (
                round(s * FRAMES_PER_SECOND / TEMPORAL_FACTOR) for s in SCENE_SECONDS
            )
            length = min(int(rng.integers(shortest, longest)), self.units - unit)
            clip = _moving(clip, length * TEMPORAL_FACTOR / FRAMES_PER_SECOND, rng)
            scenes.append(Scene(unit, length, clip))
            unit += length
            end = scenes[-1].frames[-1]
            (x, y), radius = clip.center_at(end), clip.radius_at(end)
            clip = replace(clip, x=x, y=y, radius=radius)
        return scenes

    def texts(self, index: int) -> dict[str, str]:
        """Captions of item `index` by the first unit of their scene."""
        return {str(scene.unit): scene.clip.caption for scene in self.scenes(index)}

    def __getitem__(self, index: int) -> np.ndarray:
        return np.concatenate([render_uint8(s.clip, s.frames) for s in self.scenes(index)])


def _start(rng: np.random.Generator) -> BoundedClip:
    """A shape before its first motion."""
    what = attributes_of(int(rng.integers(NUM_COMBINATIONS)))
    radius = float(rng.uniform(*RADIUS_RANGE))
    free = REFERENCE_SIZE - 2 * (MARGIN + radius)
    x, y = MARGIN + radius + free * rng.uniform(-BEYOND, 1 + BEYOND, size=2).clip(0, 1)
    return BoundedClip(
        what.color, what.shape, "", what.background, x=float(x), y=float(y), radius=radius
    )


def _moving(clip: BoundedClip, seconds: float, rng: np.random.Generator) -> BoundedClip:
    """A shape from where `clip` begins, with another motion for so many seconds.

    Its pace is one that the room suffices for, or the slowest. It can be told to move where there
    is no room, but grows or shrinks only where there is some for it.
    """
    others = [motion for motion in MOTIONS if motion != clip.motion]
    motions = [motion for motion in others if not replace(clip, motion=motion).is_held_out]
    directions = [motion for motion in motions if motion in DIRECTIONS]
    rest = [
        motion
        for motion in motions
        if motion not in DIRECTIONS and _room(clip, motion) >= PACES[motion][0] * seconds / 2
    ]
    wanted = directions if not rest or rng.random() < DIRECTION_SHARE else rest
    motion = str(rng.choice(wanted))
    slowest, fastest = PACES[motion]
    most = max(slowest, min(fastest, _room(clip, motion) / seconds))
    pace = float(rng.uniform(slowest, most))
    clip = replace(clip, motion=motion, velocity=(0.0, 0.0), scaling=1.0)
    if motion in DIRECTIONS:
        x, y = DIRECTIONS[motion]
        return replace(clip, velocity=(x * pace, y * pace))
    sign = {"grows": 1, "shrinks": -1}.get(motion, 0)
    return replace(clip, scaling=math.exp(sign * pace * SCALING_SECONDS))


def _room(clip: BoundedClip, motion: str) -> float:
    """How far a motion can go, in what `PACES` counts a second of it in."""
    if motion in DIRECTIONS:
        x, y = DIRECTIONS[motion]
        place = clip.x if x else clip.y
        return (place if x + y < 0 else clip.size - place) - MARGIN - clip.radius
    if motion == "grows":
        return math.log(min(USUAL_RADIUS, clip.reach) / clip.radius)
    return math.log(clip.radius / SCALING_RADIUS_RANGE[0]) if motion == "shrinks" else 0.0


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)


def write_long_clips(
    folder: Path, vae: CausalVideoVAE, clips: LongClips, *, batch: int, workers: int = 0
) -> None:
    """Write latents and captions of clips, whole or not at all.

    Args:
        folder: Where to.
        vae: Encodes them.
        clips: What they show.
        batch: Clips that are encoded at a time.
        workers: Processes that draw.
    """
    texts = ({TEXTS: clips.texts(index)} for index in range(len(clips)))

    def write(target: Path) -> None:
        latents = _encoded(vae, clips, batch, workers)
        write_annotated(target / CLIPS, zip(latents, texts, strict=True))

    write_folder(folder, write)


@torch.no_grad()
def _encoded(vae: CausalVideoVAE, clips: LongClips, batch: int, workers: int) -> Iterator[Tensor]:
    """Latents `[1, c, t, h, w]` of clips, not normalized, float16."""
    drawn = iter(DataLoader(clips, batch_size=None, num_workers=workers))
    with tqdm(total=len(clips), desc="clips", mininterval=5) as bar:
        while several := [*itertools.islice(drawn, batch)]:
            levels = torch.stack(several).to(vae.device)
            video = levels.movedim(-1, 1).float() / 127.5 - 1
            latents = encode_clip(vae, video, device=vae.device).mode()
            yield from latents.half().cpu().split(1)
            bar.update(len(several))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and encode."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.toy.long_clips",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument(
        *("--model_path", "--model-path"), type=Path, required=True, help="checkpoint with the VAE"
    )
    parser.add_argument("--count", type=int, default=800, help="number of clips; 800")
    parser.add_argument("--seconds", type=float, default=12.0, help="of a clip; 12")
    parser.add_argument("--seed", type=int, default=0, help="of what the clips show")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        *("--num_workers", "--num-workers"), type=int, default=4, help="processes that draw; 4"
    )
    options = parser.parse_args(arguments)
    try:
        Number(0.4, 3600)("--seconds", options.seconds)
        Whole(0)("--num_workers", options.num_workers)
        units = 1 + round(options.seconds * FRAMES_PER_SECOND / TEMPORAL_FACTOR)
        clips = LongClips(options.count, units, seed=options.seed)
    except ValueError as error:
        parser.error(str(error))
    keep_freed_memory()
    device = chosen_device(options.device)
    vae = CausalVideoVAE.from_pretrained(options.model_path / VAE_FOLDER)
    vae.requires_grad_(False).eval().to(device)
    batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    write_long_clips(options.folder, vae, clips, batch=batch, workers=options.num_workers)


if __name__ == "__main__":
    main()
