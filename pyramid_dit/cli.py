"""The command `pyramid-flow`: a prompt goes in, a video file comes out.

The order matters: options, input files and the output's folder are checked before PyTorch is
imported, the model's folder before its weights are read, and the file is written last.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from .cli_model import (
    check_model_name,
    check_processes,
    default_num_frames,
    default_size,
    load_model,
    open_model,
)
from .cli_options import FRAME_MULTIPLE, SIZE_MULTIPLE, UsageError, parse_options
from .launcher import (
    ProcessesFailed,
    Stopped,
    ended_by_signals,
    leave_reason,
    place,
    run_processes,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from .folder import CheckpointFolder

logger = logging.getLogger(__name__)

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
    """Run the command and return its exit status; errors are told in one line."""
    verbose = False
    with _signals_raise() as received:
        try:
            arguments = sys.argv[1:] if arguments is None else arguments
            options = parse_options(arguments)
            verbose = options.verbose
            _run(options, arguments)
        except SystemExit:  # --help and --version
            raise
        except BaseException as error:
            # An import that a signal breaks off may report something else in its stead.
            if isinstance(error, Stopped):
                received.append(error.signum)
            if received or isinstance(error, KeyboardInterrupt):
                message = "interrupted, no video was written"
                status = 128 + (received[0] if received else signal.SIGINT)
            else:
                if verbose:
                    traceback.print_exc()
                message, status = one_line(error), exit_status(error)
            if not leave_reason(message, status):
                _complain(message)
            return status
    return 0


def exit_status(error: BaseException) -> int:
    """What the command exits with: 2 for wrong input, 1 for what could not be done."""
    if isinstance(error, ProcessesFailed):
        return error.status
    return BAD_INPUT if isinstance(error, _BAD_INPUT_ERRORS) else FAILED


@contextmanager
def _signals_raise() -> Iterator[list[int]]:
    """Have SIGINT and SIGTERM raise `KeyboardInterrupt`; hand out the list of those received.

    SIGINT too, which does so anyway, for a shell starts background jobs deaf to it.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise KeyboardInterrupt

    former = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def _run(options: Namespace, arguments: Sequence[str]) -> None:
    started = time.perf_counter()
    here = place()
    is_main = here is None or here.rank == 0
    if options.shard and here is None and options.gpus == 1:
        raise UsageError("--shard divides the weights among GPUs: add --gpus 2 or more")
    logging.basicConfig(
        level=logging.INFO if options.verbose and is_main else logging.WARNING, format="%(message)s"
    )
    from .video_io import check_writable, save_frames

    output = options.output or _free_name(options.prompt)
    if is_main:
        check_writable(output)
    image = None if options.image is None else _open_image(options.image)
    check_model_name(options.model)

    if here is None and options.gpus > 1:
        check_processes(options, options.guidance)
        run_processes(["-m", "pyramid_dit", *arguments], options.gpus)
        return
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    with nullcontext() if here is None else ended_by_signals():
        folder = open_model(options)
        pipeline = load_model(options, folder, here)
        pipeline.set_progress_bar_config(disable=options.quiet or not is_main)
        generate = pipeline.generate if image is None else pipeline.generate_i2v
        frames = generate(
            options.prompt,
            inference_multigpu=here is not None,
            **_generate_arguments(options, folder, image, seed),
        )
        if here is not None:
            from .parallel import leave_processes

            leave_processes()
    if not is_main:
        return

    rate = folder.defaults.frames_per_second
    path = save_frames(frames, output, rate)
    width, height = frames[0].size
    count = "1 frame" if len(frames) == 1 else f"{len(frames)} frames"
    sys.stdout.write(
        f"{path}: {count} of {width}x{height}, {len(frames) / rate:.1f} s of video "
        f"made in {time.perf_counter() - started:.1f} s (seed {seed})\n"
    )


def _free_name(prompt: str) -> str:
    """A name for an mp4 in the current folder that is made of the prompt and not yet taken."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:60].rstrip("-") or "video"
    number, name = 1, f"{words}.mp4"
    while os.path.lexists(name):
        number += 1
        name = f"{words}-{number}.mp4"
    return name


def _open_image(path: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
        image.load()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise type(error)(f"cannot read --image {path!r}: {error.strerror}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"--image {path!r} is not a picture, or it is damaged") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"--image {path!r} is too large: {error}") from error
    if min(image.size) < SIZE_MULTIPLE:
        raise UsageError(
            f"--image {path!r} is too small, {image.width}x{image.height}: "
            f"both sides must be at least {SIZE_MULTIPLE} pixels"
        )
    return image


def _generate_arguments(
    options: Namespace, folder: CheckpointFolder, image: Image | None, seed: int
) -> dict[str, Any]:
    """What `generate`, or with an image `generate_i2v`, is called with; None is its default."""
    import torch

    from .inputs import fit_image

    arguments: dict[str, Any] = {
        "temp": _latent_frames(options, folder),
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "video_guidance_scale": options.video_guidance,
        "negative_prompt": options.negative_prompt,
        # on the CPU, so that a seed means the same on every device
        "generator": torch.Generator().manual_seed(seed),
        "cpu_offloading": options.offload == "model",
    }
    size = options.size or default_size(folder, image)
    if image is not None:
        return arguments | {"input_image": fit_image(image, *size)}
    video_steps = options.steps if options.video_steps is None else options.video_steps
    width, height = size
    return arguments | {"width": width, "height": height, "video_num_inference_steps": video_steps}


def _latent_frames(options: Namespace, folder: CheckpointFolder) -> int:
    from .inputs import temp_of_seconds

    if options.seconds is not None:
        return temp_of_seconds(options.seconds, folder.defaults.frames_per_second)
    frames = options.num_frames or default_num_frames(folder)
    return (frames - 1) // FRAME_MULTIPLE + 1


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
