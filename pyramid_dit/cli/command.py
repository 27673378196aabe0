"""The command `pyramid-flow`: a prompt goes in, a video file comes out.

The order matters: options, input files and the output's folder are checked before PyTorch is
imported, the model's folder before its weights are read, and the file is written last.
"""

from __future__ import annotations

import math
import queue
import re
import secrets
import signal
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from ..distributed.launcher import (
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
from .status import FAILED, exit_status, one_line, status_of

if TYPE_CHECKING:
    from ..checkpoints.folder import CheckpointFolder
    from ..media.progressive_video import CollectedFrames, ProgressiveVideo
    from ..pipelines.official import PyramidDiTForVideoGeneration
    from .sources import Sources


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; errors are printed as one line."""
    verbose, nothing = False, "no video was written"
    kept: list[str] = []
    problems: list[str] = []

    def work(received: list[int]) -> None:
        nonlocal verbose, nothing
        given = sys.argv[1:] if arguments is None else arguments
        options = parse_options(given)
        verbose = options.verbose
        if options.command == "doctor":
            nothing = "not all was looked at"
            from .doctor import run_doctor

            problems.extend(run_doctor(options))
            return
        _run(options, given, kept, received)

    def report(error: BaseException, received: list[int]) -> int:
        # An import that a signal breaks off may report something else in its stead.
        if received or isinstance(error, KeyboardInterrupt):
            message = f"interrupted, {'; '.join(kept) or nothing}"
            status = 128 + (received[0] if received else signal.SIGINT)
        else:
            if verbose:
                traceback.print_exception(error)
            message, status = "; ".join([one_line(error), *kept]), exit_status(error)
        if not leave_reason(message, status):
            _complain(message)
        return status

    status = status_of(work, report, once=True, to_the_end=arguments is None)
    return FAILED if problems and not status else status


def _run(
    options: Namespace, arguments: Sequence[str], kept: list[str], received: list[int]
) -> None:
    """Do what the options say; `kept` collects what is already written, for an early end.

    It also ends at the next step where `received` has a signal whose exception was lost.
    """
    started = time.perf_counter()
    launched = launched_process()
    is_main = launched is None or launched.rank == 0
    end_with_launcher()
    if options.shard and launched is None and options.gpus == 1:
        raise UsageError("--shard divides the weights among GPUs: add --gpus 2 or more")
    print_log(options, is_main=is_main)
    from ..media.progressive_video import open_video
    from ..media.video_files import check_folder, check_writable
    from .sources import Sources, check_apart, check_end

    sources = Sources.open(options)
    if is_main and sources.clip is not None and sources.clip.has_sound:
        _complain(f"--extend {options.extend!r} has sound, which is not kept")
    output = options.output or _name(sources.title(options))
    check_end(options.seconds, output)
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

    if launched is None and options.gpus > 1:
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
    with nullcontext() if launched is None else ended_by_signals():
        folder = open_model(options)
        model = load_model(options, folder, launched)
        if writer is not None:
            writer.fps = folder.defaults.frames_per_second
        try:
            size = _write(model, options, sources, folder, seed, writer, kept, received)
        except BaseException:
            with nullcontext() if launched is None else undisturbed():
                if writer is not None and options.partial is not None:
                    writer.leave()  # the process that started this one goes on from there
                elif writer is not None:
                    _close(writer, kept, complete=False)
            raise
        if writer is not None:
            with nullcontext() if launched is None else undisturbed():
                _close(writer, kept)
        if launched is not None:
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

    from .sources import check_end, skip

    def advance(*_: object) -> None:
        bar.update()
        if received:
            raise KeyboardInterrupt

    size = (0, 0)
    model.set_progress_bar_config(disable=True)
    copy = skip if writer is None else writer.write
    typed = queue.SimpleQueue[str]() if options.live else None
    stream = sources.stream(model, options, folder, seed, copy, advance, typed)
    endless = stream.total_steps == math.inf
    total = None if endless else stream.total_steps
    if writer is not None:
        check_end(math.inf if endless else None, str(writer.path))
    if typed is not None and writer is not None:
        _put_typed_lines(typed)
    with tqdm(total=total, disable=writer is None or options.quiet) as bar:
        try:
            for frames in stream:
                if writer is not None:
                    writer.write(frames)
                size = frames[0].size
                if writer is not None:
                    bar.set_postfix_str(writer.preview)
        except KeyboardInterrupt:
            if not (endless and size[0]):
                raise  # else this is how it ends
        finally:
            stream.close()
            if writer is not None and options.save_latents and stream.latents is not None:
                with nullcontext() if launched_process() is None else undisturbed():
                    stream.save_latents(options.save_latents)
                kept.append(f"--resume-latents {options.save_latents} goes on from there")
    return size


def _put_typed_lines(prompts: queue.SimpleQueue[str]) -> None:
    """Put the lines of the standard input into `prompts` as they come, but for blank ones."""

    def read() -> None:
        # a file of its own: the end of the process would wait for one that others know
        with suppress(OSError), open(0, errors="replace", closefd=False) as lines:
            for line in lines:
                if line.strip():
                    prompts.put(line.strip())

    threading.Thread(target=read, daemon=True, name="typed lines").start()


def _close(
    writer: ProgressiveVideo | CollectedFrames, kept: list[str], *, complete: bool = True
) -> None:
    """Close the file; `kept` gets the path of what was made."""
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


def _complain(message: str) -> None:
    sys.stderr.write(f"pyramid-flow: {message}\n")
