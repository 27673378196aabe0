"""Names what a clip shows - color, shape, motion, background - from its frames alone.

The judge knows what the words mean, not how the training clips are drawn: hues for colors, five
filled outlines for shapes, pixels a second for motions. It takes frames one by one, finds the
background at the border, the object by its distance from the background, and lets the frames
vote; motion comes from the object's place and size over time. Whatever is not clearly one of the
names (no object, several, an odd outline, a jump) is None and thereby wrong.

Lengths are in units of 1/128 of the frame's size, so that they are pixels for 128 x 128 clips.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .moving_shapes import FRAMES_PER_SECOND, Star, described

ATTRIBUTES = ("color", "background", "motion", "shape")

# Hue ranges in degrees end halfway between the pure hues 0 red, 30 orange, 55 yellow, 120 green,
# 180 cyan, 230 blue, 285 purple and 360 red again.
HUE_NAMES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple")
HUE_ENDS = (15.0, 42.5, 87.5, 150.0, 205.0, 257.5, 322.5)
BRIGHTNESS = {"white": 255, "gray": 128, "black": 0}
BRIGHTNESS_TOLERANCE = 48  # bytes
MAX_GRAY_CHROMA = 50  # largest minus smallest channel of something without color, in bytes
MIN_SATURATION = 0.35
MIN_VALUE = 60  # bytes
MIN_CONTRAST = 60  # distance of the object from the background in RGB bytes
MIN_COLOR_SHARE = 0.75  # of the object's pixels that bear its name
AREA_RANGE = (0.01, 0.9)  # share of the frame that an object covers
MIN_LARGEST_SHARE = 0.9  # of the foreground that is the largest blob, else there are several
MIN_IOU = 0.85
MAX_ASPECT = 4 / 3
CROSS_ARM_WIDTHS = (0.3, 0.38, 0.46)  # of the extent
STAR_WAISTS = (0.38, 0.45, 0.52)  # inner radius over the outer one

# The slowest clips of the set; half of that tells motion from rest.
SLOWEST_SPEED = 8.0  # lengths a second
SLOWEST_SCALING = math.log(1.8) / 4  # rate of the logarithm of the radius, per second
MIN_DOMINANCE = 2.0  # the motion named is at least this many times any other motion
MAX_PLACE_JITTER = 4.0  # root mean square around a steady motion, in lengths
MAX_SCALING_JITTER = 0.15  # the same for the logarithm of the radius
MIN_PRESENCE = 0.8  # share of the frames that show an object, to speak of its motion


@dataclass(frozen=True)
class Verdict:
    """What a clip shows; None where that is none of the names."""

    color: str | None
    shape: str | None
    motion: str | None
    background: str | None

    def agreement(self, caption: str) -> dict[str, bool]:
        """Whether each attribute is what the caption says.

        Raises:
            ValueError: the caption is not one of the set.
        """
        wanted = described(caption)
        return {name: getattr(self, name) == getattr(wanted, name) for name in ATTRIBUTES}

    def matches(self, caption: str) -> bool:
        """Whether all four attributes are what the caption says."""
        return all(self.agreement(caption).values())


@dataclass(frozen=True)
class _Sight:
    """What one frame shows. ``place`` is (x, y, log radius) of the object, if there is one."""

    background: str | None
    color: str | None = None
    shape: str | None = None
    place: tuple[float, float, float] | None = None


def as_frames(frames: np.ndarray | Sequence[Image.Image]) -> np.ndarray:
    """A clip as uint8 ``[T, H, W, 3]``, from that, from floats in 0..1, or from PIL images.

    Raises:
        ValueError: the clip has another shape.
    """
    if not isinstance(frames, np.ndarray):
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames have shape {frames.shape}, must be [T, H, W, 3]")
    if frames.dtype != np.uint8:
        frames = np.round(frames.clip(0, 1) * 255).astype(np.uint8)
    return frames


def judge(frames: np.ndarray | Sequence[Image.Image], fps: float = FRAMES_PER_SECOND) -> Verdict:
    """Judge a clip (see :func:`as_frames` for its forms) shown at ``fps`` frames a second."""
    sights = [_look(frame) for frame in as_frames(frames)]
    return Verdict(
        color=_vote(sight.color for sight in sights),
        shape=_vote(sight.shape for sight in sights),
        motion=_motion([sight.place for sight in sights], fps),
        background=_vote(sight.background for sight in sights),
    )


def place_of(frame: np.ndarray) -> tuple[float, float, float] | None:
    """Center in lengths and logarithm of the radius of the object in a frame, uint8 `[h, w, 3]`.

    None if there is no object.
    """
    return _look(frame).place


def _vote(names: Iterable[str | None]) -> str | None:
    """The name that more than half of the frames give."""
    counts = Counter(names)
    name, votes = counts.most_common(1)[0]
    return name if votes > counts.total() / 2 else None


def _look(frame: np.ndarray) -> _Sight:
    """Judge one frame, uint8 ``[H, W, 3]``."""
    pixels = frame.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(border, axis=0)
    background = _background_name(ground)

    distance = np.sqrt(((pixels - ground) ** 2).sum(-1))
    area_range = [share * distance.size for share in AREA_RANGE]
    if (distance > MIN_CONTRAST).sum() < area_range[0]:
        return _Sight(background)
    # An edge lies where the object covers half a pixel, thus half its contrast is left.
    contrast = float(np.median(distance[distance > MIN_CONTRAST]))
    mask = _majority(distance > contrast / 2)
    blob = _largest_blob(mask)
    area = int(blob.sum())
    if not area_range[0] <= area <= area_range[1]:
        return _Sight(background)

    rows, columns = np.flatnonzero(blob.any(1)), np.flatnonzero(blob.any(0))
    unit = math.sqrt(distance.size) / 128
    place = (
        float(columns[0] + columns[-1]) / 2 / unit,
        float(rows[0] + rows[-1]) / 2 / unit,
        math.log(area) / 2,
    )
    shape = None
    if area >= MIN_LARGEST_SHARE * mask.sum():
        shape = _shape_name(blob[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return _Sight(background, _color_name(pixels[blob & (distance > 0.8 * contrast)]), shape, place)


def _background_name(color: np.ndarray) -> str | None:
    if np.ptp(color) > MAX_GRAY_CHROMA:
        return None
    off = {name: abs(float(color.mean()) - level) for name, level in BRIGHTNESS.items()}
    nearest = min(off, key=lambda name: off[name])
    return nearest if off[nearest] <= BRIGHTNESS_TOLERANCE else None


def _color_name(pixels: np.ndarray) -> str | None:
    """The hue that most of the pixels ``[N, 3]`` have."""
    if not len(pixels):
        return None
    pixels = pixels[:: max(1, len(pixels) // 500)]
    value, chroma = pixels.max(1), np.ptp(pixels, axis=1)
    vivid = (value >= MIN_VALUE) & (chroma >= MIN_SATURATION * value)
    red, green, blue = pixels[vivid].T
    # The hue's angle in the plane of equal brightness.
    hue = np.degrees(np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    votes = np.bincount(np.searchsorted(HUE_ENDS, hue) % len(HUE_NAMES))
    if not len(votes) or votes.max() < MIN_COLOR_SHARE * len(pixels):
        return None
    return HUE_NAMES[votes.argmax()]


def _majority(mask: np.ndarray) -> np.ndarray:
    """Majority of each pixel's 3 x 3 neighborhood: removes specks, keeps edges."""
    padded = np.pad(mask, 1).astype(np.uint8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] > 4


def _largest_blob(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected component of a mask, found by joining runs of successive rows."""
    width = mask.shape[1] + 2
    flat = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8).ravel()
    steps = np.diff(flat)
    starts = (np.flatnonzero(steps == 1) + 1).tolist()
    ends = (np.flatnonzero(steps == -1) + 1).tolist()
    parent = list(range(len(starts)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    above = 0
    for run, (start, end) in enumerate(zip(starts, ends, strict=True)):
        while ends[above] + width <= start:  # ends left of this run, a row above
            above += 1
        other = above
        while other < run and starts[other] + width < end:
            parent[root(other)] = root(run)
            other += 1
    sizes: Counter[int] = Counter()
    for run, (start, end) in enumerate(zip(starts, ends, strict=True)):
        sizes[root(run)] += end - start
    largest = max(sizes, key=lambda run: sizes[run], default=-1)
    blob = np.zeros_like(flat, dtype=bool)
    for run, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if root(run) == largest:
            blob[start:end] = True
    return blob.reshape(-1, width)[:, 1:-1]


def _shape_name(blob: np.ndarray) -> str | None:
    """The outline that overlaps a blob ``[h, w]`` best.

    Outlines fill the blob's bounding box, but for stars: their tips are soon lost, and the box with
    them, so they have the blob's area and lie around its centroid.
    """
    height, width = blob.shape
    if max(height, width) > MAX_ASPECT * min(height, width):
        return None
    y = (np.arange(height, dtype=np.float32)[:, None] * 2 + 1) / height - 1  # -1..1
    x = np.abs((np.arange(width, dtype=np.float32) * 2 + 1) / width - 1)
    outlines = [
        ("circle", x**2 + y**2 <= 1),
        ("square", np.ones_like(blob)),
        ("triangle", 2 * x <= y + 1),
        *(("cross", (x <= arm) | (np.abs(y) <= arm)) for arm in CROSS_ARM_WIDTHS),
    ]
    overlap = [
        (float((blob & outline).sum() / (blob | outline).sum()), name) for name, outline in outlines
    ]
    best, name = max(*overlap, (_star_overlap(blob), "star"))
    return name if best >= MIN_IOU else None


def _star_overlap(blob: np.ndarray) -> float:
    """Intersection over union of a blob and the star that fits it best."""
    rows, columns = np.nonzero(blob)
    area = len(rows)
    y, x = (np.arange(n) - v.mean() for n, v in zip(blob.shape, (rows, columns), strict=True))
    shared = 0
    for waist in STAR_WAISTS:
        radius = math.sqrt(area / (5 * waist * math.sin(math.pi / 5)))
        inside = Star(waist=waist).side(x, y[:, None], radius) <= 0
        shared = max(shared, int((blob & inside).sum()))
    return shared / (2 * area - shared)


def _motion(places: Sequence[tuple[float, float, float] | None], fps: float) -> str | None:
    """The steady motion that the object's places (x, y, log radius) over time make, if any."""
    seen = [(frame / fps, *place) for frame, place in enumerate(places) if place is not None]
    if len(seen) < max(2, MIN_PRESENCE * len(places)):
        return None
    time, track = np.split(np.array(seen), [1], axis=1)
    time, track = time - time.mean(), track - track.mean(0)
    rate = (time * track).sum(0) / (time**2).sum()
    jitter = np.sqrt(((track - time * rate) ** 2).mean(0))
    if math.hypot(jitter[0], jitter[1]) > MAX_PLACE_JITTER or jitter[2] > MAX_SCALING_JITTER:
        return None

    pace = rate / (SLOWEST_SPEED, SLOWEST_SPEED, SLOWEST_SCALING)
    _, second, first = np.argsort(np.abs(pace))
    if abs(pace[first]) < 0.5:
        return "stays still"
    if abs(pace[first]) < MIN_DOMINANCE * abs(pace[second]):
        return None
    names = (("moves left", "moves right"), ("moves up", "moves down"), ("shrinks", "grows"))
    return names[first][int(pace[first] > 0)]
