"""Moving shapes: a synthetic set of captioned clips, drawn on the fly.

Every clip shows one flat shape on a flat background, 24 frames a second, and is described
completely by its caption, ``a {color} {shape} {motion} on a {background} background``. The 504
combinations are numbered row-major over (color, shape, motion, background). Those whose number
is 3 modulo 10 are held out: a model that draws them has learned to compose. `NEW_COLORS` and
`NEW_SHAPES` are not among them: they are what a trained model can be taught.

Lengths are in pixels of a 128 x 128 frame and scale with the frame size. Continuous coordinates
put the center of pixel ``i`` at ``i + 0.5``; y points down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (30, 60, 220),
    "yellow": (250, 225, 30),
    "purple": (150, 40, 185),
    "orange": (250, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
NEW_COLORS: dict[str, tuple[int, int, int]] = {"cyan": (30, 200, 220)}
NEW_SHAPES = ("star",)
NEW_WORDS = (*NEW_SHAPES, *NEW_COLORS)
DIRECTIONS: dict[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}
MOTIONS = (*DIRECTIONS, "stays still", "grows", "shrinks")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
}
NUM_COMBINATIONS = len(COLORS) * len(SHAPES) * len(MOTIONS) * len(BACKGROUNDS)

FRAMES_PER_SECOND = 24
MAX_FRAMES = 97
REFERENCE_SIZE = 128
SPEED_RANGE = (8.0, 20.0)  # pixels a second
RADIUS_RANGE = (18.0, 34.0)  # half the extent of a shape of constant size
SCALING_RADIUS_RANGE = (16.0, 56.0)  # smallest and largest radius of a growing or shrinking one
SCALING_RANGE = (1.8, 3.0)  # largest over smallest radius of a clip of MAX_FRAMES
MARGIN = 1.0  # pixels that stay free along the frame's border
CROSS_ARM_WIDTH = 0.38  # of the extent
STAR_WAIST = 0.45  # inner radius of a star over its outer one
SMALLEST_STAR = 22.0  # smallest radius of a star; its points are lost in latents of smaller ones


@dataclass(frozen=True)
class Combination:
    """What a caption says."""

    color: str
    shape: str
    motion: str
    background: str

    @property
    def caption(self) -> str:
        return f"a {self.color} {self.shape} {self.motion} on a {self.background} background"

    @property
    def is_held_out(self) -> bool:
        """Whether it is kept out of training: see `is_held_out`, or one in three of a new word.

        These are chosen so that every two words, such as a color and a motion, are trained together
        in some other combination. A new color of a new shape is always held out.
        """
        new = (self.color in NEW_COLORS) + (self.shape in NEW_SHAPES)
        if not new:
            return is_held_out(combination_of(self.caption))
        places = ([*COLORS, *NEW_COLORS], [*SHAPES, *NEW_SHAPES], [*MOTIONS], [*BACKGROUNDS])
        words = (self.color, self.shape, self.motion, self.background)
        return new == 2 or sum(map(list.index, places, words)) % 3 == 0


@dataclass(frozen=True)
class ShapeClip(Combination):
    """One clip: what its caption says, and place, size and speed, which the caption leaves open.

    ``x, y`` is the center in frame 0 and ``radius`` half the extent there, in pixels;
    ``velocity`` is in pixels a second; ``scaling`` is the radius of frame 96 over that of frame 0.
    """

    x: float
    y: float
    radius: float
    velocity: tuple[float, float] = (0.0, 0.0)
    scaling: float = 1.0
    size: int = REFERENCE_SIZE

    def center_at(self, frame: int) -> tuple[float, float]:
        seconds = frame / FRAMES_PER_SECOND
        return self.x + self.velocity[0] * seconds, self.y + self.velocity[1] * seconds

    def radius_at(self, frame: int) -> float:
        return self.radius * self.scaling ** (frame / (MAX_FRAMES - 1))


def attributes_of(combination: int) -> Combination:
    """Color, shape, motion and background of combination number 0..503.

    Raises:
        ValueError: no such combination.
    """
    if not 0 <= combination < NUM_COMBINATIONS:
        raise ValueError(f"combination is {combination}, not in 0..{NUM_COMBINATIONS - 1}")
    rest, background = divmod(combination, len(BACKGROUNDS))
    rest, motion = divmod(rest, len(MOTIONS))
    color, shape = divmod(rest, len(SHAPES))
    return Combination(
        list(COLORS)[color], SHAPES[shape], MOTIONS[motion], list(BACKGROUNDS)[background]
    )


def caption_of(combination: int) -> str:
    """Caption of combination number 0..503."""
    return attributes_of(combination).caption


def combination_of(caption: str) -> int:
    """Number of the combination that a caption describes.

    Raises:
        ValueError: the caption is not one of the 504.
    """
    try:
        return _NUMBER_OF_CAPTION[caption]
    except KeyError:
        example = caption_of(0)
        raise ValueError(
            f"{caption!r} is not a caption of moving shapes such as {example!r}"
        ) from None


def described(caption: str) -> Combination:
    """What a caption says, one of the 504 or one with a new color or shape.

    Raises:
        ValueError: It is none of these.
    """
    try:
        return _DESCRIBED[caption]
    except KeyError:
        raise ValueError(
            f"{caption!r} is not a caption of moving shapes such as {caption_of(0)!r}"
        ) from None


def combinations(new_word: str | None = None) -> tuple[Combination, ...]:
    """All combinations of a new color with the known shapes, or of a new shape with known colors.

    Args:
        new_word: One of `NEW_WORDS`; None for the 504 without one, in the order of their numbers.

    Raises:
        ValueError: It is no new word.
    """
    if new_word is not None and new_word not in NEW_WORDS:
        raise ValueError(f"the new word is {new_word!r}, must be one of {NEW_WORDS}")
    colors = (new_word,) if new_word in NEW_COLORS else COLORS
    shapes = (new_word,) if new_word in NEW_SHAPES else SHAPES
    return tuple(_products(colors, shapes))


def _products(colors: Iterable[str], shapes: Iterable[str]) -> Iterator[Combination]:
    return itertools.starmap(Combination, itertools.product(colors, shapes, MOTIONS, BACKGROUNDS))


def is_held_out(combination: int) -> bool:
    """Whether a combination is kept out of training (number 3 modulo 10)."""
    return combination % 10 == 3


_DESCRIBED = {
    what.caption: what for what in _products((*COLORS, *NEW_COLORS), (*SHAPES, *NEW_SHAPES))
}
_NUMBER_OF_CAPTION = {caption_of(number): number for number in range(NUM_COMBINATIONS)}
SPLITS: dict[str, tuple[int, ...]] = {
    "train": tuple(n for n in range(NUM_COMBINATIONS) if not is_held_out(n)),
    "held_out": tuple(n for n in range(NUM_COMBINATIONS) if is_held_out(n)),
    "all": tuple(range(NUM_COMBINATIONS)),
}


def draw_clip(
    combination: int | Combination, rng: np.random.Generator, size: int = REFERENCE_SIZE
) -> ShapeClip:
    """Draw place, size and speed so that the shape stays in the frame for 97 frames."""
    what = attributes_of(combination) if isinstance(combination, int) else combination
    unit = size / REFERENCE_SIZE
    free = REFERENCE_SIZE - 2 * MARGIN
    velocity, scaling, travel = (0.0, 0.0), 1.0, np.zeros(2)
    least = SMALLEST_STAR if what.shape == "star" else 0.0
    if what.motion in ("grows", "shrinks"):
        smallest, largest = max(least, SCALING_RADIUS_RANGE[0]), SCALING_RADIUS_RANGE[1]
        scaling = rng.uniform(SCALING_RANGE[0], min(SCALING_RANGE[1], largest / smallest))
        radius = rng.uniform(smallest, largest / scaling)
        extent = 2 * radius * scaling
        if what.motion == "shrinks":
            radius, scaling = radius * scaling, 1 / scaling
    else:
        direction = np.array(DIRECTIONS.get(what.motion, (0, 0)))
        speed = rng.uniform(*SPEED_RANGE)
        travel = direction * speed * (MAX_FRAMES - 1) / FRAMES_PER_SECOND
        smallest, largest = max(least, RADIUS_RANGE[0]), RADIUS_RANGE[1]
        radius = rng.uniform(smallest, min(largest, (free - np.abs(travel).max()) / 2))
        extent = 2 * radius
        velocity = (float(direction[0] * speed * unit), float(direction[1] * speed * unit))
    # The start is drawn from the part of the frame that leaves room for the whole path.
    room = free - extent - np.abs(travel)
    x, y = MARGIN + extent / 2 + np.maximum(0, -travel) + rng.uniform(size=2) * room
    return ShapeClip(
        what.color,
        what.shape,
        what.motion,
        what.background,
        x=float(x) * unit,
        y=float(y) * unit,
        radius=float(radius) * unit,
        velocity=velocity,
        scaling=float(scaling),
        size=size,
    )


def _strip(offset: np.ndarray, half_width: float) -> np.ndarray:
    """Part of each pixel, 0..1, that lies within ``half_width`` of 0 along one axis (exact)."""
    overlap = np.minimum(offset + 0.5, half_width) - np.maximum(offset - 0.5, -half_width)
    return np.clip(overlap, 0, 1)


@dataclass(frozen=True)
class Star:
    """A star's outline: ``points`` on a circle, the first up and ``turn`` radians to its right.

    The dents between them lie at ``waist`` of the circle's radius.
    """

    points: int = 5
    waist: float = STAR_WAIST
    turn: float = 0.0

    def side(self, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
        """Signed distance of places from the sides, negative inside.

        The star lies on a circle of ``radius`` around 0. Beyond a point's tip it is the distance
        from the side's line.
        """
        sector = math.pi / self.points
        # The angle from the nearest point of the star, folded: one side serves for all.
        angle = np.arctan2(dx, -dy) - self.turn
        angle = np.abs((angle + sector) % (2 * sector) - sector)
        along, across = np.hypot(dx, dy) * (np.cos(angle), np.sin(angle))
        normal = np.array((self.waist * math.sin(sector), 1 - self.waist * math.cos(sector)))
        normal /= np.linalg.norm(normal)
        return (along - radius) * normal[0] + across * normal[1]


def _coverage(shape: str | Star, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Part of each pixel that a shape covers, ``[len(dy), len(dx)]`` in 0..1.

    ``dx`` and ``dy`` are the pixel centers relative to the shape's center. Boxes are exact; the
    others take the signed distance to the outline as the coverage of the pixels it crosses.
    """
    if shape == "circle":
        return np.clip(radius + 0.5 - np.sqrt(dx**2 + dy[:, None] ** 2), 0, 1)
    if shape == "triangle":  # apex (0, -r), base from (-r, r) to (r, r): sides of slope 2
        side = (2 * np.abs(dx) - dy[:, None] - radius) / np.float32(5**0.5)
        return np.clip(0.5 - np.maximum(side, (dy - radius)[:, None]), 0, 1)
    if shape == "square":
        return _strip(dx, radius) * _strip(dy, radius)[:, None]
    if shape == "star":
        shape = Star()
    if isinstance(shape, Star):
        return np.clip(0.5 - shape.side(dx, dy[:, None], radius), 0, 1)
    arm = CROSS_ARM_WIDTH * radius
    wide_x, wide_y = _strip(dx, radius), _strip(dy, radius)[:, None]
    arm_x, arm_y = _strip(dx, arm), _strip(dy, arm)[:, None]
    return wide_x * arm_y + arm_x * wide_y - arm_x * arm_y


Color = Sequence[float]  # red, green, blue in 0..255


def random_colors(rng: np.random.Generator) -> tuple[Color, Color]:
    """Colors of a shape and its background, each uniform in the cube."""
    shape, background = rng.uniform(0, 255, (2, 3)).tolist()
    return shape, background


def random_outline(rng: np.random.Generator) -> Star:
    """A star of 3 to 8 points, from slender to convex, turned by any angle."""
    points = int(rng.integers(3, 9))
    return Star(points, rng.uniform(0.35, 1.0), rng.uniform(0, 2 * math.pi / points))


def render(
    clip: ShapeClip,
    frames: Sequence[int],
    colors: tuple[Color, Color] | None = None,
    outline: Star | None = None,
) -> np.ndarray:
    """Draw frames of a clip: float32 ``[3, len(frames), size, size]`` in [-1, 1].

    Args:
        clip: What is drawn.
        frames: Their numbers.
        colors: Of the shape and the background, in place of those that the caption names.
        outline: In place of the shape that the caption names.
    """
    color, ground = colors or ((COLORS | NEW_COLORS)[clip.color], BACKGROUNDS[clip.background])
    background = np.array(ground, np.float32) / 127.5 - 1
    contrast = np.array(color, np.float32) / 127.5 - 1 - background
    video = np.empty((3, len(frames), clip.size, clip.size), np.float32)
    video[:] = background[:, None, None, None]
    grid = np.arange(clip.size, dtype=np.float32) + 0.5
    for i, frame in enumerate(frames):
        (x, y), radius = clip.center_at(frame), clip.radius_at(frame)
        columns, rows = (slice(max(0, int(c - radius) - 1), int(c + radius) + 2) for c in (x, y))
        cover = _coverage(outline or clip.shape, grid[columns] - x, grid[rows] - y, radius)
        for channel in range(3):
            video[channel, i, rows, columns] += contrast[channel] * cover
    return video


def render_uint8(clip: ShapeClip, frames: Sequence[int]) -> np.ndarray:
    """Draw frames of a clip as an RGB preview: uint8 ``[len(frames), size, size, 3]``."""
    video = render(clip, frames)
    return np.round((video + 1) * 127.5).astype(np.uint8).transpose(1, 2, 3, 0)


def first_frame(clip: ShapeClip) -> Image.Image:
    """Frame 0 as an image, to start image-to-video from."""
    return Image.fromarray(np.ascontiguousarray(render_uint8(clip, [0])[0]))


class MovingShapes(Dataset[dict[str, Any]]):
    """Captioned clips of moving shapes, deterministic by ``(seed, index)``.

    An item is ``{"video": float32 [3, num_frames, size, size] in [-1, 1], "text": caption,
    "combination": number}``. Item ``index`` is the same clip whatever ``num_frames`` is: shorter
    videos are prefixes of longer ones.

    Args:
        seed: Non-negative; picks one of the sets.
        num_frames: 8n + 1, at most 97.
        size: Height and width in pixels; lengths and speeds scale with it.
        combinations: ``"train"``, ``"held_out"``, ``"all"``, or combination numbers to draw from.
        length: Number of items, ``len`` of the set.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        seed: int = 0,
        num_frames: int = MAX_FRAMES,
        size: int = REFERENCE_SIZE,
        *,
        combinations: str | Sequence[int] = "train",
        length: int = 1_000_000,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}, must not be negative")
        if num_frames % 8 != 1 or not 1 <= num_frames <= MAX_FRAMES:
            raise ValueError(f"num_frames is {num_frames}, must be 8n + 1 and at most {MAX_FRAMES}")
        if size < 8:
            raise ValueError(f"size is {size}, must be at least 8 pixels")
        if isinstance(combinations, str):
            if combinations not in SPLITS:
                raise ValueError(f"combinations is {combinations!r}, must be one of {[*SPLITS]}")
            combinations = SPLITS[combinations]
        if not combinations:
            raise ValueError("combinations is empty")
        self.seed, self.num_frames, self.size, self.length = seed, num_frames, size, length
        self.combinations = tuple(combinations)

    def __len__(self) -> int:
        return self.length

    def clip(self, index: int) -> ShapeClip:
        """The description that item ``index`` is drawn from."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is not in 0..{self.length - 1}")
        rng = np.random.default_rng((self.seed, index))
        return draw_clip(self.combinations[rng.integers(len(self.combinations))], rng, self.size)

    def sample(self, index: int, frames: slice | Sequence[int] | None = None) -> dict[str, Any]:
        """Item ``index`` with only some of its frames drawn (all if ``frames`` is None)."""
        chosen: Sequence[int] = range(self.num_frames)
        if isinstance(frames, slice):
            chosen = chosen[frames]
        elif frames is not None:
            chosen = [chosen[frame] for frame in frames]
        clip = self.clip(index)
        return {
            "video": torch.from_numpy(render(clip, chosen)),
            "text": clip.caption,
            "combination": combination_of(clip.caption),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index)
