"""Prompts, pictures and videos to begin with."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from ..media.video_files import export_to_gif, video_frames
from .media_checks import read_settings
from .preview import reduced
from .settings import ModelCard, Settings

logger = logging.getLogger(__name__)

MADE_FOLDER = "examples"
"""Of a checkpoint: videos that the page made with it."""
MAX_MADE = 6
MADE_RATE = 12  # frames a second of those that play by themselves, for which GIFs are made
MADE_SECONDS = 4  # that are shown of each
_COLORS = {"green": (30, 170, 50), "purple": (150, 40, 185), "blue": (30, 60, 220)}
_GROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}


class PictureExample(NamedTuple):
    """A picture and what could happen in it."""

    path: Path
    prompt: str


class MadeExample(NamedTuple):
    """A video that the model made, and from what."""

    path: Path
    """A GIF."""
    settings: Settings


class Examples(NamedTuple):
    """What the page offers for one model."""

    prompts: list[str]
    storyboard: list[tuple[float, str]]
    """Pairs of a second and a prompt."""
    pictures: list[PictureExample]
    made: list[MadeExample]


SHAPES = [
    "a red circle moves left on a white background",
    "a blue cross grows on a gray background",
    "a yellow triangle shrinks on a black background",
    "a purple square moves up on a white background",
]


def examples_for(card: ModelCard, folder: Path) -> Examples:
    """What the model of a card can make; pictures are drawn to `folder`."""
    defaults = card.defaults
    if defaults.known_words is not None and not defaults.unknown_words(SHAPES):
        return shape_examples(folder)
    return general_examples()


def shape_examples(folder: Path) -> Examples:
    """For the default checkpoint, which knows shapes that move; pictures are drawn to `folder`."""
    storyboard = [
        (0.0, "a green square moves right on a black background"),
        (1.4, "a green square moves up on a black background"),
    ]
    pictures = [
        _draw(folder, "green", "square", "moves up", "black"),
        _draw(folder, "purple", "circle", "moves right", "white"),
        _draw(folder, "blue", "triangle", "grows", "gray"),
    ]
    return Examples(SHAPES, storyboard, pictures, [])


def general_examples() -> Examples:
    """For models that were trained on the world."""
    prompts = [
        "A lighthouse in a storm, waves breaking on the rocks",
        "Fireworks over a city at night, seen from a rooftop",
        "A red vintage car follows a coast road at sunset",
    ]
    storyboard = [
        (0.0, "A quiet harbor at dawn, boats on still water"),
        (2.5, "The sun rises over the harbor, the water begins to glitter"),
    ]
    return Examples(prompts, storyboard, [], [])


def made_examples(checkpoint: Path, card: ModelCard, folder: Path) -> list[MadeExample]:
    """Videos in the folder `examples` of a checkpoint, which carry the settings of the page.

    Args:
        checkpoint: The folder of the checkpoint.
        card: The model; what another variant made is left out.
        folder: Where GIFs of them go.
    """
    found = []
    for path in sorted((checkpoint / MADE_FOLDER).glob("*.mp4")):
        try:
            settings = read_settings(path)
            if settings.mode not in ("text", "storyboard") or settings.variant != card.variant:
                continue
            settings.check(card.max_area)
            frames = islice(video_frames(path, fps=MADE_RATE), MADE_SECONDS * MADE_RATE)
            small = (reduced(Image.fromarray(frame)) for frame in frames)
            target = export_to_gif(small, folder / f"{path.stem}.gif", MADE_RATE)
        except (ValueError, OSError) as error:
            logger.warning("%s cannot be used as an example: %s", path, error)
            continue
        found.append(MadeExample(Path(target), settings))
        if len(found) == MAX_MADE:
            break
    return found


def _draw(folder: Path, color: str, shape: str, motion: str, ground: str) -> PictureExample:
    """A first frame as the default checkpoint knows them, four times as large."""
    image = Image.new("RGB", (512, 512), _GROUNDS[ground])
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((176, 176, 336, 336), _COLORS[color])
    elif shape == "square":
        draw.rectangle((176, 176, 336, 336), _COLORS[color])
    else:
        draw.polygon([(256, 166), (346, 326), (166, 326)], _COLORS[color])
    path = folder / f"{color}-{shape}.png"
    folder.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return PictureExample(path, f"a {color} {shape} {motion} on a {ground} background")
