"""What a video was made from: the record that a result carries and that the page fills in again."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..checkpoints.defaults import GenerationDefaults, Mode, Steps
from ..checkpoints.folder import VARIANT_PREFIX, CheckpointFolder
from ..checks import Check, Number, check_size
from ..cli.options import SIZE_MULTIPLE, parse_size
from ..generation.arguments import DEFAULTS, OPTIONS

MODES = ("text", "image", "extend", "storyboard", "live")
"""Text to video, image to video, a video that goes on, several prompts at chosen times, live."""
ON_PAGE = {option.key: name for name, option in OPTIONS.items() if option.label is not None}
"""Arguments that visitors may set, by the name of the field."""
DEFAULT_NAME = "the default checkpoint"
MAX_PROMPT = 2000  # characters; the text encoders read fewer
MAX_SCENES = 6
AREA_FACTOR = 4
"""A video may have so many times the pixels of the model's own size."""
MAX_RECORD = 200_000  # characters of the record in files, more than it can have
FORMAT = 1
"""Version of the record in files."""


@dataclass(frozen=True)
class Scene:
    """A prompt of a storyboard and the second from which on it holds."""

    start: float
    prompt: str


SCENE_START = Number(0, 10)
"""Seconds, as long as a video may be."""


def offered(key: str) -> Check:
    """What visitors may choose for the field `key`."""
    option = OPTIONS[ON_PAGE[key]]
    return option.offered or option.check


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a video but an image or a video that it starts from."""

    mode: str
    prompt: str = ""
    scenes: tuple[Scene, ...] = ()
    """Of a storyboard, in place of `prompt`."""
    width: int
    height: int
    model: str
    options: Mapping[str, Any]
    """What the record of arguments has for the page, by the name of the field. `seconds` of a
    video that goes on are how much longer it gets."""

    @property
    def variant(self) -> str:
        """Which transformer of the model."""
        return self.model.rpartition(", ")[2]

    @property
    def prompts(self) -> list[str]:
        """The prompt, or that of each scene."""
        return [scene.prompt for scene in self.scenes] or [self.prompt]

    def entries(self) -> dict[str, Any]:
        """All of it, flat, for JSON."""
        entries = asdict(self)
        return entries | entries.pop("options")

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps({"pyramid_flow": FORMAT} | self.entries())

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The record that `to_json` wrote; nothing in `text` is trusted.

        Raises:
            ValueError: It is no such record, or a value is outside what the page offers.
        """
        try:
            entries = json.loads(text[:MAX_RECORD])
        except (ValueError, RecursionError) as error:
            raise ValueError("the file has a comment, but no settings of this page") from error
        if not isinstance(entries, Mapping) or entries.get("pyramid_flow") != FORMAT:
            raise ValueError("the file has a comment, but no settings of this page")
        given = {f.name: entries[f.name] for f in fields(cls) if f.name in entries}
        # of a record that is older than an option, what held then
        options = {key: entries.get(key, _formerly(name)) for key, name in ON_PAGE.items()}
        try:
            given["scenes"] = tuple(Scene(**scene) for scene in given.get("scenes", ()))
            settings = cls(**given | {"options": options})
        except TypeError as error:
            raise ValueError("the settings in the file are incomplete") from error
        if None in options.values():
            raise ValueError("the settings in the file are incomplete")
        settings.check()
        return settings

    def check(self, max_area: int | None = None) -> None:
        """Refuse what the page does not offer.

        Args:
            max_area: Pixels of a frame at most.

        Raises:
            ValueError: A value is of the wrong kind, or outside its range.
        """
        if self.mode not in MODES:
            raise ValueError(f"the mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if len(self.scenes) > MAX_SCENES:
            raise ValueError(
                f"a storyboard has at most {MAX_SCENES} scenes, not {len(self.scenes)}"
            )
        try:
            for scene in self.scenes:
                SCENE_START("the start of a scene", scene.start)
            check_size(self.height, self.width, SIZE_MULTIPLE)
            for key, value in self.options.items():
                offered(key)(str(OPTIONS[ON_PAGE[key]].label).lower(), value)
        except TypeError as error:
            raise ValueError(str(error)) from error
        texts = [self.prompt, self.model, *(scene.prompt for scene in self.scenes)]
        texts += [value for value in self.options.values() if isinstance(value, str)]
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a prompt must be text, not {text!r}")
            if len(text) > MAX_PROMPT:
                raise ValueError(f"a prompt has at most {MAX_PROMPT} characters, not {len(text)}")
        if max_area is not None and self.width * self.height > max_area:
            raise ValueError(
                f"{self.width} x {self.height} is too large: this page makes at most "
                f"{max_area:,} pixels a frame"
            )

    def arguments(self, frames_per_second: float) -> dict[str, Any]:
        """Arguments of `stream`, `stream_i2v` or `stream_v2v`, but for what the video starts from.

        Raises:
            ValueError: The scenes do not fit the video.
        """
        values = {ON_PAGE[key]: value for key, value in self.options.items()}
        if self.mode in ("image", "extend"):  # all frames are later ones
            values["num_inference_steps"] = values.pop("video_num_inference_steps")
        else:
            values |= {"width": self.width, "height": self.height}
        if self.mode == "storyboard":
            return values | {"prompts": scene_units(self, frames_per_second)}
        if self.mode == "live":
            values["seconds"] = math.inf
        return values | {"prompt": self.prompt}


@dataclass(frozen=True)
class ModelCard:
    """What the page needs to know of a model before any weight is read."""

    name: str
    defaults: GenerationDefaults
    width: int
    height: int
    seconds: float
    solver: str

    @classmethod
    def of(cls, folder: CheckpointFolder, name: str, words: Iterable[str] = ()) -> ModelCard:
        """Describe the checkpoint in `folder`, to which LoRAs taught `words`."""
        variant = folder.variant.removeprefix(VARIANT_PREFIX).replace("_", " ")
        defaults = folder.defaults.with_words(words)
        seconds = round(defaults.frames() / defaults.frames_per_second, 1)
        seconds = min(max(seconds, 0.1), SCENE_START.most)
        solver = folder.stepping.get("solver", "euler")
        return cls(f"{name}, {variant}", defaults, *defaults.size(), seconds, solver)

    @property
    def variant(self) -> str:
        """Which transformer of the model."""
        return self.settings().variant

    @property
    def max_area(self) -> int:
        """Pixels of a frame at most."""
        return AREA_FACTOR * self.width * self.height

    @property
    def sizes(self) -> list[tuple[str, str]]:
        """Sizes to choose from, as pairs of what is shown and `WIDTHxHEIGHT`."""
        short, long = sorted((self.width, self.height))
        if short == long:
            long = _multiple(1.5 * short)
            square = short
        else:
            square = _multiple((short + long) / 2)
        shapes = {
            "Square": (square, square),
            "Landscape": (long, short),
            "Portrait": (short, long),
        }
        own = next(name for name, size in shapes.items() if size == (self.width, self.height))
        names = [own, *(name for name in shapes if name != own)]
        return [
            (f"{name} {shapes[name][0]} × {shapes[name][1]}", "{}x{}".format(*shapes[name]))
            for name in names
        ]

    def settings(self, mode: str = "text") -> Settings:
        """What the model recommends."""
        defaults = self.defaults
        starts: dict[str, Mode] = {"image": "image", "extend": "extend"}
        preferred = {
            "negative_prompt": defaults.negative_prompt,
            "seconds": self.seconds,
            "seed": 0,
            "steps": _most(defaults.num_inference_steps),
            "video_steps": _most(defaults.video_num_inference_steps),
            "guidance": defaults.guidance_scale,
            "video_guidance": defaults.video_guidance(starts.get(mode, "text")),
            "solver": self.solver,
        }
        options = {key: preferred.get(key, DEFAULTS[name]) for key, name in ON_PAGE.items()}
        return Settings(
            mode=mode, width=self.width, height=self.height, model=self.name, options=options
        )


def scene_units(settings: Settings, frames_per_second: float) -> dict[int, str]:
    """The prompts of a storyboard by the unit from which on they hold.

    Unit 0 is the first frame, unit i > 0 the frames 8 i - 7 to 8 i: a scene begins with the unit
    that begins nearest to it.

    Raises:
        ValueError: There is no scene at the start, two begin with one unit, or one begins after
            the video has ended.
    """
    units: dict[int, str] = {}
    for scene in settings.scenes:
        unit = round((scene.start * frames_per_second - 1) / 8) + 1 if scene.start else 0
        unit = max(unit, 1 if scene.start else 0)
        if unit in units:
            raise ValueError(
                f"the scene at {scene.start:g} s is too close to another: scenes begin every "
                f"{8 / frames_per_second:.2g} s"
            )
        units[unit] = scene.prompt
    if 0 not in units:
        raise ValueError("a storyboard needs a scene at 0 s: say what the video begins with")
    late = [scene.start for scene in settings.scenes if scene.start >= settings.options["seconds"]]
    if late:
        raise ValueError(
            f"the scene at {late[0]:g} s would begin after the end of the video at "
            f"{settings.options['seconds']:g} s"
        )
    return units


def size_of(text: str | None) -> tuple[int, int]:
    """Width and height in `1280x768`.

    Raises:
        ValueError: It is written otherwise, or a side is no multiple of 64.
    """
    text = "" if text is None else str(text)
    spaced = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
    try:
        return parse_size("x".join(spaced.groups()) if spaced else text)
    except argparse.ArgumentTypeError as error:
        said = str(error)
        raise ValueError(f"the size {said}" if said.startswith("must") else said) from error


def _formerly(name: str) -> Any:
    former = OPTIONS[name].formerly
    return DEFAULTS[name] if former is None else former


def _multiple(side: float) -> int:
    return max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE


def _most(steps: Steps) -> int:
    """One number for all stages; where a model recommends several, the largest."""
    return steps if isinstance(steps, int) else max(steps)
