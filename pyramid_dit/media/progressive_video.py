"""Files for frames that come a few at a time; what was made of a video is always kept.

Until they are closed the frames are in a partial file (or folder) beside the target, whose name
is short and its own. It gets the target's name when all is there. After an error or Ctrl-C it
gets that name only where it is free; else, and where there is no room for more, it stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from PIL import Image

from ..files import beside, check_name, numbered, part_of, remove, rename_to_free, replace
from .ffmpeg import (
    COMPLETE,
    FRAGMENTED,
    Encoder,
    file_name,
    run_ffmpeg,
)
from .video_files import (
    PNG_NAME,
    Frame,
    check_fps,
    check_replaceable,
    even,
    export_to_gif,
    frame_arrays,
    output_format,
    video_frames,
)

logger = logging.getLogger(__name__)


class ProgressiveVideo:
    """An mp4 that can be watched while its frames are still being made.

    Until `close` the frames are in `partial`: fragmented mp4, of which every beginning plays; the
    newest frame comes with the one after it. `close` makes the target of it, without encoding
    anew. When an exception or Ctrl-C ends the `with` block it does so where the target's name is
    free, and else leaves the partial file. Without a frame there is no file.

    Args:
        path: The file to write; its folder is made if it is not there.
        fps: Frames a second.
        overwrite: Whether the target may replace an earlier file; if not, and its name is taken
            when the video is there, it is numbered: `NAME-2.mp4`.
        partial: Where the frames are until then; by default a name that is nobody's.

    Attributes:
        partial: Where the frames are until then.
        frames: Number of frames so far.
        kept: After `close`, or a write that failed: the file that the frames are in.

    Raises:
        ValueError: `fps` is not above 0, or the name is longer than a file may have.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float = 24,
        *,
        overwrite: bool = True,
        partial: str | Path | None = None,
    ) -> None:
        check_fps(fps)
        check_name(path)
        self.path, self.fps, self.overwrite = Path(path), fps, overwrite
        self.partial = part_of(path, ".mp4") if partial is None else Path(partial)
        self.frames = 0
        self.kept: Path | None = None
        self._encoder: Encoder | None = None
        self._size: tuple[int, ...] | None = None
        self._failed: OSError | None = None

    @property
    def preview(self) -> str:
        """How far it is, and where to watch it."""
        return f"{self.frames} frames, play {self.partial}"

    def write(self, frames: Iterable[Frame]) -> None:
        """Append frames.

        Raises:
            ValueError: A frame has another size than the first.
            TypeError: Something is not a frame.
            OSError: The file could not be written. What was written before stays.
        """
        if self._failed is not None:
            raise self._failed
        for array in frame_arrays(frames, first=self.frames, shape=self._size):
            if self._encoder is None:
                self._size = array.shape
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._encoder = Encoder(self.partial, even(array).shape, self.fps, FRAGMENTED)
            try:
                self._encoder.write(even(array))
            except OSError as error:
                self._encoder, self._failed = None, error
                self._keep_part()
                raise
            self.frames += 1

    def close(self, *, complete: bool = True) -> None:
        """Give the file its name.

        Args:
            complete: Whether all frames are there. If not, an earlier file is left as it is.

        Raises:
            OSError: The file could not be written; what `path` held before is still there, and
                the partial file too. Not where `complete` is false.
        """
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        try:
            encoder.finish()
            self.kept = self._named(complete=complete)
        except OSError:
            self._keep_part()
            if complete:
                raise
        except BaseException:  # ffmpeg may still be writing
            self.kept = self.partial
            raise

    def leave(self) -> None:
        """Complete the partial file, and leave it to another process to close."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            with suppress(OSError):  # what was written stays
                encoder.finish()

    def rescue(self) -> None:
        """Close for a process that died with the file open, if there is one."""
        if not self.partial.exists():
            return
        try:
            self.kept = self._named(complete=False)
        except OSError:
            self._keep_part()

    def _named(self, *, complete: bool) -> Path:
        temporary = beside(self.path)
        try:
            arguments = ["-i", file_name(self.partial), "-c", "copy", *COMPLETE]
            run_ffmpeg([*arguments, file_name(temporary)])
            target = _place(temporary, self.path, overwrite=self.overwrite, complete=complete)
        finally:
            remove(temporary)
        self.partial.unlink(missing_ok=True)
        return target

    def _keep_part(self) -> None:
        """Leave the partial file, if there is a frame in it."""
        if not self.partial.exists():
            return
        try:
            frames = video_frames(self.partial)
            next(frames)
            frames.close()
        except ValueError:
            self.partial.unlink(missing_ok=True)
        else:
            self.kept = self.partial

    def __enter__(self) -> ProgressiveVideo:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType) -> None:
        _leave(self, complete=kind is None)


class CollectedFrames:
    """Frames of which a gif, or a folder of PNGs, is made when all are there.

    Until `close` they are PNGs in the folder `partial`. Arguments and attributes are those of
    `ProgressiveVideo`; `FileExistsError` is raised for a folder that holds anything but the frames
    of an earlier run.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float = 24,
        *,
        overwrite: bool = True,
        partial: str | Path | None = None,
    ) -> None:
        check_fps(fps)
        check_name(path)
        self.path, self.fps, self.overwrite = Path(path), fps, overwrite
        self.is_gif = output_format(path) == "gif"
        if not self.is_gif:
            check_replaceable(self.path)
        self.partial = part_of(path, "") if partial is None else Path(partial)
        self.frames = 0
        self.kept: Path | None = None
        self._size: tuple[int, ...] | None = None

    @property
    def preview(self) -> str:
        """How far it is, and where to look at it."""
        return f"{self.frames} frames, see {self.partial}"

    def write(self, frames: Iterable[Frame]) -> None:
        """Append frames. Errors as for `ProgressiveVideo.write`."""
        for array in frame_arrays(frames, first=self.frames, shape=self._size):
            self._size = array.shape
            self.partial.mkdir(parents=True, exist_ok=True)
            picture = self._picture(self.frames)
            try:
                Image.fromarray(array).save(picture)
            except BaseException:
                picture.unlink(missing_ok=True)
                self._keep_part()
                raise
            self.frames += 1

    def close(self, *, complete: bool = True) -> None:
        """Give the folder its name, or write the gif. Errors as for `ProgressiveVideo.close`."""
        if self.kept is not None or not self.frames:
            return
        try:
            self.kept = self._named(complete=complete)
        except BaseException as error:
            self._keep_part()
            if complete or not isinstance(error, OSError):
                raise

    def leave(self) -> None:
        """Leave the frames to another process, which closes."""

    def rescue(self) -> None:
        """Close for a process that died, if it left frames."""
        if self.partial.is_dir():
            self.frames = len(list(self.partial.iterdir()))
            last = self._picture(self.frames - 1)
            try:
                with Image.open(last) as picture:
                    picture.load()
            except OSError:  # it was being written
                last.unlink(missing_ok=True)
                self.frames -= 1
            self.close(complete=False)
            self._keep_part()

    def _named(self, *, complete: bool) -> Path:
        options = {"overwrite": self.overwrite, "complete": complete}
        if not self.is_gif:
            check_replaceable(self.path)
            return _place(self.partial, self.path, **options)
        temporary = beside(self.path)
        try:
            pictures = (Image.open(self._picture(number)) for number in range(self.frames))
            export_to_gif(pictures, temporary, self.fps)
            target = _place(temporary, self.path, **options)
        finally:
            remove(temporary)
        remove(self.partial)
        return target

    def _picture(self, number: int) -> Path:
        return self.partial / PNG_NAME.format(number)

    def _keep_part(self) -> None:
        """Leave the partial folder, if there is a frame in it."""
        if self._picture(0).exists():
            self.kept = self.partial
        elif self.partial.exists():
            remove(self.partial)

    def __enter__(self) -> CollectedFrames:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType) -> None:
        _leave(self, complete=kind is None)


def open_video(
    path: str | Path,
    fps: float = 24,
    *,
    overwrite: bool = True,
    partial: str | Path | None = None,
) -> ProgressiveVideo | CollectedFrames:
    """What writes frames to `path` as they come, in the format that its name asks for.

    Raises:
        ValueError: `fps` is not above 0, or there is no such format.
    """
    kind = ProgressiveVideo if output_format(path) == "mp4" else CollectedFrames
    return kind(path, fps, overwrite=overwrite, partial=partial)


def _place(made: Path, target: Path, *, overwrite: bool, complete: bool) -> Path:
    """Give what was made its name, and return the name.

    Raises:
        FileExistsError: The name is taken, and an incomplete file replaces nothing.
    """
    if overwrite and complete:
        replace(made, target)
        return target
    for name in [target] if overwrite else numbered(target):
        if overwrite:
            rename_to_free(made, name)
            return name
        with suppress(FileExistsError):
            rename_to_free(made, name)
            return name
    raise AssertionError("numbers have no end")


def _leave(video: ProgressiveVideo | CollectedFrames, *, complete: bool) -> None:
    """Close at the end of a `with` block, and say what is left elsewhere than was asked for."""
    try:
        video.close(complete=complete)
    finally:
        if video.kept not in (None, video.path):
            logger.warning("what was made is kept in %s", video.kept)
