"""The command `pyramid-flow`: a prompt goes in, a video file comes out.

The order matters: options, input files and the output's folder are checked before PyTorch is
imported, the model's folder before its weights are read, and the file is written last.
"""

from __future__ import annotations

import re
import secrets
import signal
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

from ..distributed.launcher import (
    ProcessesFailed,
    Stopped,
    end_with_launcher,
    ended_by_signals,
    launched_process,
    leave_reason,
    run_processes,
    undisturbed,
)
from .model import (
    check_processes,
    check_sources,
    load_model,
    open_model,
    print_log,
)
from .options import UsageError, parse_options

if TYPE_CHECKING:
    from ..checkpoints.folder import CheckpointFolder
    from ..media.progressive_video import CollectedFrames, ProgressiveVideo
    from ..pipelines.official import PyramidDiTForVideoGeneration
    from .sources import Sources

FAILED, BAD_INPUT = 1, 2
_BAD_INPUT_ERRORS = (
    ValueError,
    TypeError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; errors are printed as one line."""
    verbose = False
    kept: list[str] = []

    def work(received: list[int]) -> None:
        nonlocal verbose
        given = sys.argv[1:] if arguments is None else arguments
        options = parse_options(given)
        verbose = options.verbose
        _run(options, given, kept, received)

    def report(error: BaseException, received: list[int]) -> int:
        # An import that a signal breaks off may report something else in its stead.
        if received or isinstance(error, KeyboardInterrupt):
            message = f"interrupted, {'; '.join(kept) or 'no video was written'}"
            status = 128 + (received[0] if received else signal.SIGINT)
        else:
            if verbose:
                traceback.print_exception(error)
            message, status = "; ".join([one_line(error), *kept]), exit_status(error)
        if not leave_reason(message, status):
            _complain(message)
        return status

    return status_of(work, report, once=True, to_the_end=arguments is None)


def status_of(
    work: Callable[[list[int]], object],
    report: Callable[[BaseException, list[int]], int],
    *,
    once: bool = False,
    to_the_end: bool = False,
) -> int:
    """Do `work` and return the exit status: 0, or what `report` returns for what was raised.

    Both get the signals that were received. One that comes when the work has ended already, well
    or not, changes nothing.

    Args:
        work: What a SIGINT or SIGTERM interrupts.
        report: Says what became of it.
        once: See `signals_raise`.
        to_the_end: See `signals_raise`.

    Raises:
        SystemExit: By `work`, after --help and the like.
    """
    status: int | None = None
    received: list[int] = []
    try:
        with signals_raise(once=once, to_the_end=to_the_end) as received:
            try:
                work(received)
                status = 0
            except SystemExit:
                raise
            except BaseException as error:
                status = report(error, received)
    except KeyboardInterrupt as late:
        status = report(late, received) if status is None else status
    assert status is not None
    return status


def exit_status(error: BaseException) -> int:
    """What the command exits with: 2 for wrong input, 1 for what could not be done."""
    if isinstance(error, ProcessesFailed):
        return error.status
    return BAD_INPUT if isinstance(error, _BAD_INPUT_ERRORS) else FAILED


@contextmanager
def signals_raise(*, once: bool = False, to_the_end: bool = False) -> Iterator[list[int]]:
    """Have SIGINT and SIGTERM raise `KeyboardInterrupt`; hand out the list of those received.

    SIGINT too, which does so anyway, for a shell starts background jobs deaf to it.

    Args:
        once: Whether only the first does: another would break off what saves what was made.
        to_the_end: Whether this process ends afterwards, which others then cannot disturb either.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if not once or len(received) == 1:
            raise KeyboardInterrupt

    former = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in former.items():
            signal.signal(signum, signal.SIG_IGN if received and to_the_end else handler)


def _run(
    options: Namespace, arguments: Sequence[str], kept: list[str], received: list[int]
) -> None:
    """Do what the options say; `kept` collects what is already written, for an early end.

    It also ends at the next step where `received` has a signal whose exception was lost.
    """
    started = time.perf_counter()
    here = launched_process()
    is_main = here is None or here.rank == 0
    end_with_launcher()
    if options.shard and here is None and options.gpus == 1:
        raise UsageError("--shard divides the weights among GPUs: add --gpus 2 or more")
    print_log(options, is_main=is_main)
    from ..media.progressive_video import open_video
    from ..media.video_files import check_folder, check_writable
    from .sources import Sources, check_apart

    sources = Sources.open(options)
    if is_main and sources.clip is not None and sources.clip.has_sound:
        _complain(f"--extend {options.extend!r} has sound, which is not kept")
    output = options.output or _name(sources.title(options))
    if is_main:
        check_writable(output)
        if options.save_latents is not None:
            check_folder(options.save_latents)
            check_apart(options, output)
    check_sources(options)
    writer = None
    if is_main:
        named = options.output is not None
        writer = open_video(output, overwrite=named, partial=options.partial)

    if here is None and options.gpus > 1:
        check_processes(options, options.guidance_scale)
        assert writer is not None
        try:
            partial = f"--partial={writer.partial}"
            run_processes(["-m", "pyramid_dit", *arguments, partial], options.gpus)
        except BaseException as error:
            if isinstance(error, Stopped):
                received.append(error.signum)
            writer.rescue()
            if writer.kept is not None and str(writer.kept) not in str(error):
                kept.append(f"what was made is kept in {writer.kept}")
            raise
        return
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    with nullcontext() if here is None else ended_by_signals():
        folder = open_model(options)
        model = load_model(options, folder, here)
        if writer is not None:
            writer.fps = folder.defaults.frames_per_second
        try:
            size = _write(model, options, sources, folder, seed, writer, kept, received)
        except BaseException:
            with nullcontext() if here is None else undisturbed():
                if writer is not None and options.partial is not None:
                    writer.leave()  # the process that started this one goes on from there
                elif writer is not None:
                    _close(writer, kept, complete=False)
            raise
        if writer is not None:
            with nullcontext() if here is None else undisturbed():
                _close(writer, kept)
        if here is not None:
            from ..distributed.parallel import leave_processes

            leave_processes()
    if writer is None:
        return
    made, rate = writer.frames, writer.fps
    origin = "" if options.resume_latents else f" (seed {seed})"
    sys.stdout.write(
        f"{writer.kept}: {_count(made)} of {size[0]}x{size[1]}, {made / rate:.1f} s of video "
        f"made in {time.perf_counter() - started:.1f} s{origin}\n"
    )


def _write(
    model: PyramidDiTForVideoGeneration,
    options: Namespace,
    sources: Sources,
    folder: CheckpointFolder,
    seed: int,
    writer: ProgressiveVideo | CollectedFrames | None,
    kept: list[str],
    received: list[int],
) -> tuple[int, int]:
    """Write frames as they are made, and show how far that is; return their width and height.

    Without a `writer` this process only helps the one that has it.
    """
    from tqdm import tqdm

    from .sources import skip

    def advance(*_: object) -> None:
        bar.update()
        if received:
            raise KeyboardInterrupt

    size = (0, 0)
    model.set_progress_bar_config(disable=True)
    copy = skip if writer is None else writer.write
    stream = sources.stream(model, options, folder, seed, copy, advance)
    with tqdm(total=stream.total_steps, disable=writer is None or options.quiet) as bar:
        try:
            for frames in stream:
                size = frames[0].size
                if writer is not None:
                    writer.write(frames)
                    bar.set_postfix_str(writer.preview)
        finally:
            stream.close()
            if writer is not None and options.save_latents and stream.latents is not None:
                with nullcontext() if launched_process() is None else undisturbed():
                    stream.save_latents(options.save_latents)
                kept.append(f"--resume-latents {options.save_latents} goes on from there")
    return size


def _close(
    writer: ProgressiveVideo | CollectedFrames, kept: list[str], *, complete: bool = True
) -> None:
    """Close the file; `kept` is told where what was made is."""
    try:
        writer.close(complete=complete)
    finally:
        if writer.kept is not None:
            kept.insert(0, f"{_count(writer.frames)} kept in {writer.kept}")


def _count(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"


def _name(title: str) -> str:
    """A name for an mp4 in the current folder that is made of the title."""
    words = re.sub(r"[^\w]+", "-", title.lower()).strip("-_")[:60].rstrip("-")
    return f"{words or 'video'}.mp4"


def one_line(error: BaseException) -> str:
    """An error as one line for people."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename!r}" if error.filename else error.strerror
    text = " ".join(text.split())
    if not text or not isinstance(error, (*_BAD_INPUT_ERRORS, OSError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    if "OutOfMemory" in type(error).__name__:
        text += " (--offload model or a smaller --size needs less)"
    return text if len(text) <= 500 else f"{text[:497]}..."


def _complain(message: str) -> None:
    sys.stderr.write(f"pyramid-flow: {message}\n")
