"""What a checkpoint prefers where a caller does not say, the one rule for all doors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

from ..checks import (
    FLAG,
    FRAME_RATE,
    FRAMES,
    GUIDANCE,
    SIDE,
    STEPS,
    TEXT,
    Check,
    OneOrMore,
    Sentence,
    Words,
)
from ..flow.sizes import TEMPORAL_FACTOR

Steps: TypeAlias = int | Sequence[int]
Mode: TypeAlias = Literal["text", "image", "extend"]
"""What a video starts from: nothing, an image, a video."""

RELEASED_SIZES = {"384p": (640, 384), "768p": (1280, 768), "image": (1024, 1024)}
"""Width and height that the released variants are made for."""
RELEASED_NUM_FRAMES = 121  # 5 seconds
RELEASED_VIDEO_GUIDANCE = {"text": 7.0, "image": 4.0, "extend": 4.0}


@dataclass(frozen=True)
class GenerationDefaults:
    """What a checkpoint says of its generation; what it does not say is as released.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: A value is outside its range.
    """

    prompt_suffix: str = ", hyper quality, Ultra HD, 8K"
    negative_prompt: str = (
        "cartoon style, worst quality, low quality, blurry, absolute black, absolute white, "
        "low res, extra limbs, extra digits, misplaced objects, mutated anatomy, monochrome, horror"
    )
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    frames_per_second: int = 24
    num_inference_steps: Steps = 28
    video_num_inference_steps: Steps = 28
    guidance_scale: float = 7.0
    video_guidance_scale: float | None = None
    guidance_in_weights: bool = False
    """Whether the transformer was distilled from guided velocities: its guidance is then 0, and
    cannot be changed."""
    known_words: Sequence[str] | None = None
    """All words that the checkpoint has learned, where they are few."""
    known_sentence: Sequence[str | Mapping[str, Sequence[str]]] | None = None
    """The one form of sentence that it has learned: texts and choices, such as
    `["a", {"color": ["red", "blue"]}, "circle"]`."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not entry.default:
                _CHECKS[entry.name](entry.name, value)
        if self.guidance_in_weights and (self.guidance_scale or self.video_guidance_scale != 0):
            raise ValueError("guidance_in_weights needs guidance_scale and video_guidance_scale 0")

    @classmethod
    def of(cls, index: Mapping[str, Any], variant: str = "") -> GenerationDefaults:
        """Those that `index` says; where it is silent on size and stills, the variant's name does.

        Args:
            index: What `model_index.json` says.
            variant: Name of the transformer's folder, such as `diffusion_transformer_768p`.
        """
        said = stated(index, variant)
        return cls(**{entry.name: said[entry.name] for entry in fields(cls) if entry.name in said})

    def size(self, start: tuple[int, int] | None = None) -> tuple[int, int]:
        """Width and height of a video.

        Args:
            start: Width and height of what the video starts from; the size stands or lies as it
                does.

        Raises:
            ValueError: Nothing says which size the checkpoint is made for.
        """
        if self.width is None or self.height is None:
            raise ValueError(
                "the checkpoint does not say which size it is made for: height and width are "
                "needed, in pixels (--size)"
            )
        size = self.width, self.height
        if start is not None and (start[0] < start[1]) != (size[0] < size[1]):
            return size[1], size[0]
        return size

    def unknown_words(self, prompts: Iterable[str]) -> list[str]:
        """The words in `prompts` that the checkpoint never learned, each once, in their order."""
        if self.known_words is None:
            return []
        known = {word.casefold() for word in self.known_words}
        words = [word for text in prompts for word in _WORD.findall(text.casefold())]
        return [word for word in dict.fromkeys(words) if word not in known]

    def with_words(self, words: Iterable[str]) -> GenerationDefaults:
        """These, where `words` are known too; where nothing tells the known ones, they stay so."""
        if self.known_words is None or not (new := set(words) - set(self.known_words)):
            return self
        return replace(self, known_words=[*self.known_words, *sorted(new)])

    def choices(self) -> dict[str, Sequence[str]]:
        """What there is to choose in the known sentence, by name; empty where none is known."""
        parts = self.known_sentence or ()
        return {
            name: texts
            for part in parts
            if not isinstance(part, str)
            for name, texts in part.items()
        }

    def sentence(self, chosen: Mapping[str, str]) -> str:
        """The known sentence with what was chosen by name."""
        parts = self.known_sentence or ()
        return " ".join(p if isinstance(p, str) else chosen[next(iter(p))] for p in parts)

    def frames(self) -> int:
        """Length of a video."""
        return self.num_frames or RELEASED_NUM_FRAMES

    def added_frames(self) -> int:
        """By how much a video goes on."""
        return max(TEMPORAL_FACTOR, self.frames() - 1)

    def video_guidance(self, mode: Mode) -> float:
        """Guidance of all frames but the first."""
        said = self.video_guidance_scale
        return RELEASED_VIDEO_GUIDANCE[mode] if said is None else said


def stated(index: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """`index`, and where it is silent on size and stills, what the name of the variant says."""
    said = dict(index)
    kind = variant.rpartition("_")[2]
    if kind in RELEASED_SIZES and said.get("height") is None and said.get("width") is None:
        said["width"], said["height"] = RELEASED_SIZES[kind]
    if kind == "image" and said.get("num_frames") is None:
        said["num_frames"] = 1
    return said


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_CHECKS: dict[str, Check] = {
    "prompt_suffix": TEXT,
    "negative_prompt": TEXT,
    "height": SIDE,
    "width": SIDE,
    "num_frames": FRAMES,
    "frames_per_second": FRAME_RATE,
    "num_inference_steps": OneOrMore(STEPS),
    "video_num_inference_steps": OneOrMore(STEPS),
    "guidance_scale": GUIDANCE,
    "video_guidance_scale": GUIDANCE,
    "guidance_in_weights": FLAG,
    "known_words": Words(),
    "known_sentence": Sentence(),
}
