"""What a video was made from: the record that a result carries and that the page fills in again."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from ..checkpoints.defaults import GenerationDefaults, Mode, Steps
from ..checkpoints.folder import CheckpointFolder
from ..cli.options import SIZE_MULTIPLE, parse_size

MODES = ("text", "image", "extend", "storyboard")
"""Text to video, image to video, a video that goes on, several prompts at chosen times."""
MAX_SECONDS = 10.0
MAX_STEPS = 100
MAX_GUIDANCE = 20.0
MAX_SEED = 2**32 - 1  # what a browser's number holds without rounding, and no more than needed
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a video but an image or a video that it starts from."""

    mode: str
    prompt: str = ""
    scenes: tuple[Scene, ...] = ()
    """Of a storyboard, in place of `prompt`."""
    negative_prompt: str
    width: int
    height: int
    seconds: float
    """Length; of a video that goes on, how much longer it gets."""
    seed: int
    steps: int
    """Steps of the first frame, in each stage."""
    video_steps: int
    """Steps of the later frames, in each stage."""
    guidance: float
    video_guidance: float
    model: str

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps({"pyramid_flow": FORMAT} | asdict(self))

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
        try:
            given["scenes"] = tuple(Scene(**scene) for scene in given.get("scenes", ()))
            settings = cls(**given)
        except TypeError as error:
            raise ValueError("the settings in the file are incomplete") from error
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
        texts = [self.prompt, self.negative_prompt, self.model]
        _check_scenes(self.scenes)
        for text in (*texts, *(scene.prompt for scene in self.scenes)):
            _check_text(text)
        for name, side in (("width", self.width), ("height", self.height)):
            _check_number(name, side, SIZE_MULTIPLE, 2**14, whole=True)
            if side % SIZE_MULTIPLE:
                raise ValueError(f"{name} must be a multiple of {SIZE_MULTIPLE} pixels, not {side}")
        if max_area is not None and self.width * self.height > max_area:
            raise ValueError(
                f"{self.width} x {self.height} is too large: this page makes at most "
                f"{max_area:,} pixels a frame"
            )
        _check_number("the length in seconds", self.seconds, 0, MAX_SECONDS)
        _check_number("the seed", self.seed, 0, MAX_SEED, whole=True)
        _check_number("the number of steps", self.steps, 1, MAX_STEPS, whole=True)
        _check_number("the number of steps", self.video_steps, 1, MAX_STEPS, whole=True)
        _check_number("guidance", self.guidance, 0, MAX_GUIDANCE)
        _check_number("guidance", self.video_guidance, 0, MAX_GUIDANCE)


@dataclass(frozen=True)
class ModelCard:
    """What the page needs to know of a model before any weight is read."""

    name: str
    defaults: GenerationDefaults
    width: int
    height: int
    seconds: float

    @classmethod
    def of(cls, folder: CheckpointFolder, name: str) -> ModelCard:
        """Describe the checkpoint in `folder`."""
        variant, defaults = folder.variant.rpartition("_")[2], folder.defaults
        seconds = round(defaults.frames() / defaults.frames_per_second, 1)
        seconds = min(max(seconds, 0.1), MAX_SECONDS)
        return cls(f"{name}, {variant}", defaults, *defaults.size(), seconds)

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
        return Settings(
            mode=mode,
            negative_prompt=defaults.negative_prompt,
            width=self.width,
            height=self.height,
            seconds=self.seconds,
            seed=0,
            steps=_most(defaults.num_inference_steps),
            video_steps=_most(defaults.video_num_inference_steps),
            guidance=defaults.guidance_scale,
            video_guidance=defaults.video_guidance(starts.get(mode, "text")),
            model=self.name,
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
    late = [scene.start for scene in settings.scenes if scene.start >= settings.seconds]
    if late:
        raise ValueError(
            f"the scene at {late[0]:g} s would begin after the end of the video at "
            f"{settings.seconds:g} s"
        )
    return units


def size_of(text: str | None) -> tuple[int, int]:
    """Width and height in `1280x768`.

    Raises:
        ValueError: It is written otherwise, or a side is no multiple of 64.
    """
    spaced = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text or "")
    try:
        return parse_size("x".join(spaced.groups()) if spaced else text or "")
    except argparse.ArgumentTypeError as error:
        said = str(error)
        raise ValueError(f"the size {said}" if said.startswith("must") else said) from error


def _check_scenes(scenes: tuple[Scene, ...]) -> None:
    if len(scenes) > MAX_SCENES:
        raise ValueError(f"a storyboard has at most {MAX_SCENES} scenes, not {len(scenes)}")
    for scene in scenes:
        _check_number("the start of a scene", scene.start, 0, MAX_SECONDS)


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"a prompt must be text, not {text!r}")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"a prompt has at most {MAX_PROMPT} characters, not {len(text)}")


def _check_number(
    name: str, value: object, least: float, most: float, *, whole: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g}, not {value:g}")


def _multiple(side: float) -> int:
    return max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE


def _most(steps: Steps) -> int:
    """One number for all stages; where a model recommends several, the largest."""
    return steps if isinstance(steps, int) else max(steps)
