"""The ffmpeg program that ships with `imageio-ffmpeg`: nothing needs to be installed.

It is fed by a pipe, so that no copy of a whole clip is made.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

CRF = 16  # x264's quality: 0 is lossless, from about 18 on the eye sees the difference
# Index at the front, so that a browser can start before it has all of the file.
COMPLETE = ["-movflags", "+faststart", "-f", "mp4"]
# Every frame is a piece of its own and is written at once: the encoder may hold none back.
FRAGMENTED = ["-tune", "zerolatency", "-flush_packets", "1"]
FRAGMENTED += ["-movflags", "+empty_moov+default_base_moof+frag_every_frame", "-f", "mp4"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have SIGINT and SIGTERM wait for the end of the body, where they would raise within it.

    Else they could come when a program has been started that nobody has in hand yet to end it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal raises
        return
    came: dict[int, FrameType | None] = {}

    def restore(signum: int, handler: Callable[[int, FrameType | None], Any]) -> None:
        signal.signal(signum, handler)
        if signum in came:
            handler(signum, came[signum])

    with ExitStack() as stack:
        for signum in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(signum)):
                stack.callback(restore, signum, handler)
                signal.signal(signum, came.__setitem__)
        yield


class Encoder:
    """The ffmpeg program, fed with raw frames through a pipe; the first frame starts it.

    Args:
        path: The file to write.
        shape: Of the frames, (height, width, 3), even.
        fps: Frames a second.
        container: Options for the kind of mp4.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], fps: float, container: list[str]
    ) -> None:
        height, width = shape[:2]
        # Spelled out, for ffmpeg would convert by BT.601 and leave players to guess.
        to_yuv = "scale=out_color_matrix=bt709:out_range=tv"
        to_yuv += ":flags=bicubic+accurate_rnd+full_chroma_int"
        tags = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
        arguments = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        arguments += ["-framerate", str(fps), "-i", "pipe:0"]
        arguments += ["-vf", f"{to_yuv},format=yuv420p,{tags}"]
        arguments += ["-c:v", "libx264", "-crf", str(CRF), *container, file_name(path)]
        self._path, self._arguments = path, arguments
        # Messages go to a file: a pipe that nobody empties could block ffmpeg. A session of its
        # own keeps a Ctrl-C in the terminal from ffmpeg, which would then end the video early.
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, frame: np.ndarray) -> None:
        """Hand over a frame.

        Raises:
            OSError: ffmpeg has given up.
        """
        if self._process is None:
            with uninterrupted():
                self._process = subprocess.Popen(
                    [*_command(), *self._arguments],
                    stdin=subprocess.PIPE,
                    stderr=self._messages,
                    start_new_session=True,
                )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame.tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:
            self.finish()
            raise

    def finish(self) -> None:
        """Wait for the end of the file; without a frame there is none.

        Raises:
            OSError: It could not be written; the message is what ffmpeg said.
        """
        with self._messages:
            if self._process is None:
                return
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            status = self._process.wait()
            if status != 0:
                self._messages.seek(0)
                raise _error(status, self._messages.read().decode(errors="replace"), self._path)

    def kill(self) -> None:
        """Give up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._messages.close()


def file_name(path: str | Path) -> str:
    """The path as ffmpeg takes it: an absolute name is no option, protocol or pattern."""
    return str(Path(path).absolute())


def _command() -> list[str]:
    """How a command of ffmpeg starts."""
    from imageio_ffmpeg import get_ffmpeg_exe

    return [get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]


def run_ffmpeg(arguments: list[str]) -> None:
    """Run ffmpeg to its end; the last of `arguments` is the file that it writes.

    Raises:
        OSError: It could not be written; the message is what ffmpeg said.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with uninterrupted():
            process = subprocess.Popen(
                [*_command(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        said = process.communicate()[1].decode(errors="replace")
    except BaseException:
        if process is not None:
            process.kill()
            process.wait()
        raise
    if process.returncode != 0:
        raise _error(process.returncode, said, Path(arguments[-1]))


def _error(status: int, said: str, path: Path) -> OSError:
    if os.strerror(errno.ENOSPC) in said:
        return OSError(errno.ENOSPC, f"cannot write to {str(path.parent)!r}: no space left")
    if status == -getattr(signal, "SIGXFSZ", 0):
        return OSError(errno.EFBIG, f"cannot write to {str(path.parent)!r}: file size limit")
    last_line = (said.strip().splitlines() or [f"it ended with status {status}"])[-1]
    return OSError(errno.EIO, f"cannot write to {str(path.parent)!r}: ffmpeg: {last_line}")


_PATIENCE = 120.0  # seconds for what takes a fraction of one


def ffmpeg_says(
    arguments: list[str], patience: float | None = _PATIENCE
) -> subprocess.CompletedProcess[bytes]:
    """What ffmpeg has to say of a file.

    Args:
        arguments: Of ffmpeg.
        patience: Seconds that it may take, None for any time.

    Raises:
        ValueError: It takes much too long over it.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        return subprocess.run(
            [get_ffmpeg_exe(), "-hide_banner", "-nostdin", *arguments],
            capture_output=True,
            timeout=patience,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError("the video is damaged: its header cannot be read") from error
