"""What a command line asks for: the files that it names, and the video that follows from them."""

from __future__ import annotations

import math
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..checks import shown
from ..distributed.launcher import launched_process
from ..json_files import read_json
from ..media.image_files import open_image
from ..media.video_files import (
    HISTORY_FRAMES,
    Frame,
    output_format,
    video_frames,
    video_size,
)
from ..media.video_header import UnsupportedVideoError, VideoHeader
from .options import FLAGS, SIZE_MULTIPLE, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..checkpoints.folder import CheckpointFolder
    from ..generation.arguments import NextPrompt
    from ..generation.stream import VideoStream
    from ..pipelines.official import PyramidDiTForVideoGeneration

Write: TypeAlias = Callable[[Iterable[Frame]], None]


def read_image(path: str) -> Image:
    """Read a picture.

    Raises:
        OSError: It cannot be read.
        UsageError: It is none, or too small or too large.
    """
    try:
        return open_image(path, least_side=SIZE_MULTIPLE)
    except OSError as error:
        raise type(error)(f"cannot read --image {path!r}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--image {path!r} {error}") from error


@dataclass(frozen=True)
class Clip:
    """A video to go on from."""

    path: Path
    size: tuple[int, int]
    """Width and height."""
    has_sound: bool
    """Which is not kept."""

    @classmethod
    def open(cls, path: str) -> Clip:
        """Look into a video.

        Raises:
            FileNotFoundError: There is no such file.
            UsageError: It is no video.
        """
        try:
            return cls(Path(path), video_size(path), VideoHeader.read(path).has_sound)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"cannot read --extend {path!r}: no such file") from error
        except UnsupportedVideoError as error:
            raise UsageError(f"--extend {path!r}: {error}") from error
        except ValueError as error:
            raise UsageError(f"--extend {path!r} is not a video that can be read") from error

    def copy(self, write: Write, size: tuple[int, int], fps: float) -> np.ndarray:
        """Hand all its frames to `write`, and return the last of them, bytes `[t, h, w, 3]`.

        Args:
            write: Goes through an iterable of frames.
            size: Width and height that they are brought to.
            fps: Frames a second that they are brought to.
        """
        last: deque[np.ndarray] = deque(maxlen=HISTORY_FRAMES)

        def passing() -> Iterator[Frame]:
            for frame in video_frames(self.path, size=size, fps=fps):
                last.append(frame)
                yield frame

        write(passing())
        return np.stack(last)


def check_apart(options: Namespace, output: str) -> None:
    """Refuse to save latents onto what the run reads, or onto the video.

    Raises:
        UsageError: That is asked for.
    """
    latents = Path(options.save_latents).resolve()
    files = {
        name: getattr(options, name.removeprefix("--").replace("-", "_"))
        for name in ("--image", "--extend", "--storyboard", "--resume-latents")
    }
    for name, file in {**files, "--output": output}.items():
        if file is None:
            continue
        path = Path(file).resolve()
        same = latents.exists() and path.exists() and latents.samefile(path)
        if same or latents == path or latents in path.parents or path in latents.parents:
            raise UsageError(
                f"--save-latents {options.save_latents!r} is or is in {name} {file!r}: "
                "name another file"
            )
    model = options.model
    if model is not None and latents.exists() and Path(model).resolve() in latents.parents:
        raise UsageError(
            f"--save-latents {options.save_latents!r} is a file of --model {model!r}: "
            "name another file"
        )


def check_end(seconds: float | None, output: str) -> None:
    """Refuse to write a video without end to what is complete only in the end.

    Raises:
        UsageError: That is asked for.
    """
    if seconds == math.inf and output_format(output) != "mp4":
        raise UsageError(
            f"--output {output!r}: a video that has no end (--seconds inf, --live) must be an mp4"
        )


def skip(frames: Iterable[Frame]) -> None:
    """Go through `frames`, and do nothing."""
    deque(frames, maxlen=0)


@dataclass(frozen=True)
class Storyboard:
    """What each part of a video shows, by its first unit."""

    prompts: Mapping[int, str]
    guidance_scales: Mapping[int, float]

    @classmethod
    def read(cls, path: str) -> Storyboard:
        """Read a JSON file, whose form `--help` describes.

        Raises:
            FileNotFoundError: There is no such file.
            UsageError: It has another form.
        """
        try:
            content = read_json(path)
        except OSError as error:
            reason = error.strerror or "no such file"
            raise type(error)(f"cannot read --storyboard {path!r}: {reason}") from error
        except ValueError as error:
            raise UsageError(f"--storyboard {error}") from error
        prompts: dict[int, str] = {}
        scales: dict[int, float] = {}
        seen: dict[int, str] = {}
        for key, value in content.items():
            scene = {"prompt": value} if isinstance(value, str) else value
            if not key.isdecimal() or not isinstance(scene, dict) or not scene:
                raise UsageError(
                    f"--storyboard {path!r}: {key!r}: {shown(value)} is not a prompt for a unit"
                )
            unit = int(key)
            if unit in seen:
                raise UsageError(
                    f"--storyboard {path!r}: {seen[unit]!r} and {key!r} are the same unit"
                )
            seen[unit] = key
            for name, entry in scene.items():
                if name == "prompt" and isinstance(entry, str):
                    prompts[unit] = entry
                elif name == "guidance" and type(entry) in (int, float):
                    scales[unit] = entry
                else:
                    raise UsageError(
                        f"--storyboard {path!r}: unit {key} has {name!r}: {shown(entry)}; "
                        'allowed are "prompt", a text, and "guidance", a number'
                    )
        if 0 not in prompts:
            raise UsageError(f"--storyboard {path!r} does not say what unit 0 shows")
        return cls(prompts, scales)


@dataclass(frozen=True)
class Sources:
    """What the video starts from, and its prompts."""

    image: Image | None
    clip: Clip | None
    story: Storyboard | None

    @classmethod
    def open(cls, options: Namespace) -> Sources:
        """Look into the files that the options name, but for saved latents.

        Raises:
            OSError: A file cannot be read.
            UsageError: A file is not what it should be.
        """
        if options.resume_latents is not None and not Path(options.resume_latents).is_file():
            raise FileNotFoundError(
                f"cannot read --resume-latents {options.resume_latents!r}: no such file"
            )
        return cls(
            None if options.image is None else read_image(options.image),
            None if options.extend is None else Clip.open(options.extend),
            None if options.storyboard is None else Storyboard.read(options.storyboard),
        )

    def title(self, options: Namespace) -> str:
        """What to name the video after."""
        if options.resume_latents is not None:
            return Path(options.resume_latents).stem
        return options.prompt if self.story is None else self.story.prompts[0]

    def stream(
        self,
        model: PyramidDiTForVideoGeneration,
        options: Namespace,
        folder: CheckpointFolder,
        seed: int,
        write: Write,
        on_step: Callable[..., None],
        next_prompt: NextPrompt | None = None,
    ) -> VideoStream:
        """The video that is asked for.

        Args:
            model: The models.
            options: What the command line says.
            folder: The checkpoint.
            seed: Of the random numbers.
            write: Gets the frames of a video to go on from, before any is made.
            on_step: Called after each step.
            next_prompt: Asked before each unit.
        """
        common: dict[str, Any] = {
            "cpu_offloading": options.offload == "model",
            "inference_multigpu": launched_process() is not None,
            "callback_on_step_end": on_step,
            "next_prompt": next_prompt,
        }
        if options.resume_latents is not None:
            return model.stream_v2v(resume=options.resume_latents, **common)
        common |= {name: getattr(options, name) for name in FLAGS}
        common = {name: value for name, value in common.items() if value is not None}
        common["seed"] = seed
        if self.story is None:
            common["prompt"] = options.prompt
        else:
            common["prompts"] = self.story.prompts
            common["guidance_scales"] = self.story.guidance_scales
        width, height = options.size or folder.defaults.size(self._shape)
        if self.clip is not None:
            end = self.clip.copy(write, (width, height), folder.defaults.frames_per_second)
            return model.stream_v2v(video=end, **common)
        if self.image is not None:
            from ..media.images import fit_image

            return model.stream_i2v(input_image=fit_image(self.image, width, height), **common)
        if "num_inference_steps" in common:
            common.setdefault("video_num_inference_steps", common["num_inference_steps"])
        return model.stream(width=width, height=height, **common)

    @property
    def _shape(self) -> tuple[int, int] | None:
        """Width and height of what the video starts from."""
        if self.image is not None:
            return self.image.size
        return None if self.clip is None else self.clip.size
