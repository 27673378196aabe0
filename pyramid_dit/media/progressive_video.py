"""Files for frames that come a few at a time; what was made of a video is always kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..files import replacing
from .ffmpeg import (
    COMPLETE,
    FRAGMENTED,
    Encoder,
    file_name,
    run_ffmpeg,
)
from .video_files import (
    Frame,
    check_fps,
    even,
    frame_arrays,
    output_format,
    save_frames,
)


class ProgressiveVideo:
    """An mp4 that can be watched while its frames are still being made.

    Until `close` the frames are in `partial`, `NAME.partial.mp4` beside the target: fragmented
    mp4, of which every beginning plays; the newest frame comes with the one after it. `close`
    makes the target of it, without encoding anew; it does so too when an exception or Ctrl-C ends
    the `with` block, so that what was made is kept. Without a frame there is no file.

    Args:
        path: The file to write; its folder is made if it is not there.
        fps: Frames a second.

    Attributes:
        partial: Where the frames are until then.
        frames: Number of frames so far.

    Raises:
        ValueError: `fps` is not above 0.
    """

    def __init__(self, path: str | Path, fps: float = 24) -> None:
        check_fps(fps)
        self.path, self.fps = Path(path), fps
        self.partial = self.path.with_suffix(f".partial{self.path.suffix}")
        self.frames = 0
        self._encoder: Encoder | None = None
        self._size: tuple[int, ...] | None = None

    @property
    def preview(self) -> str:
        """How far it is, and where to watch it."""
        return f"{self.frames} frames, play {self.partial}"

    def write(self, frames: Iterable[Frame]) -> None:
        """Append frames.

        Raises:
            ValueError: A frame has another size than the first.
            TypeError: Something is not a frame.
            OSError: The file could not be written.
        """
        for array in frame_arrays(frames, first=self.frames, shape=self._size):
            if self._encoder is None:
                self._size = array.shape
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._encoder = Encoder(self.partial, even(array).shape, self.fps, FRAGMENTED)
            try:
                self._encoder.write(even(array))
            except OSError:
                self._encoder = None
                self.partial.unlink(missing_ok=True)
                raise
            self.frames += 1

    def close(self) -> None:
        """Give the file its name.

        Raises:
            OSError: The file could not be written; what `path` held before is still there.
        """
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        try:
            encoder.finish()
        except OSError:
            self.partial.unlink(missing_ok=True)
            raise
        self._complete()

    def rescue(self) -> bool:
        """Close for a process that died with the file open; `False` where there is nothing."""
        if not self.partial.is_file():
            return False
        self._complete()
        return True

    def _complete(self) -> None:
        try:
            with replacing(self.path) as temporary:
                arguments = ["-i", file_name(self.partial), "-c", "copy", *COMPLETE]
                run_ffmpeg([*arguments, file_name(temporary)])
        finally:
            self.partial.unlink(missing_ok=True)

    def __enter__(self) -> ProgressiveVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CollectedFrames:
    """Frames that are written together when all are there: a gif, or a folder of PNGs.

    Args:
        path: As for `save_frames`.
        fps: Frames a second.

    """

    def __init__(self, path: str | Path, fps: float = 24) -> None:
        self.path, self.fps = path, fps
        self._collected: list[np.ndarray] = []

    @property
    def frames(self) -> int:
        """Number of frames so far."""
        return len(self._collected)

    @property
    def preview(self) -> str:
        """How far it is."""
        return f"{self.frames} frames"

    def write(self, frames: Iterable[Frame]) -> None:
        """Append frames. Errors as for `ProgressiveVideo.write`."""
        shape = self._collected[0].shape if self._collected else None
        for array in frame_arrays(frames, first=self.frames, shape=shape):
            self._collected.append(array)

    def close(self) -> None:
        """Write the file, if there are frames. Errors as for `save_frames`."""
        collected, self._collected = self._collected, []
        if collected:
            save_frames(collected, self.path, self.fps)


def open_video(path: str | Path, fps: float = 24) -> ProgressiveVideo | CollectedFrames:
    """What writes frames to `path` as they come, in the format that its name asks for.

    Raises:
        ValueError: `fps` is not above 0, or there is no such format.
    """
    kind = ProgressiveVideo if output_format(path) == "mp4" else CollectedFrames
    return kind(path, fps)
