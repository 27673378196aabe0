"""What the command line says: the options, their help, and every check that needs no model.

Only the standard library is imported here, so that help and most complaints come at once.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from .. import __version__

STAGES = 3
SIZE_MULTIPLE = 64  # 8 of the VAE, two halvings, 2x2 patches
FRAME_MULTIPLE = 8
MEMORY_PRESETS = ("auto", "max-speed", "12GB", "8GB", "6GB")
"""The names of `memory_presets.PRESETS`, which takes PyTorch to import."""
OF_THE_FIRST_RUN = (
    "storyboard",
    "seconds",
    "num_frames",
    "size",
    "seed",
    "steps",
    "video_steps",
    "guidance",
    "video_guidance",
    "negative_prompt",
    "prompt_suffix",
)
"""Options that a run which is resumed has its own values of."""

DESCRIPTION = """\
Make a video from a prompt, or from an image and a prompt, by pyramidal flow matching.

Without --model a small checkpoint that comes with this package is used. It draws one colored
shape that moves, and it understands sentences of one form:
  a {red|green|blue|yellow|purple|orange} {circle|square|triangle|cross}
  {moves left|moves right|moves up|moves down|stays still|grows|shrinks}
  on a {white|black|gray} background
"""

EXAMPLES = """\
examples:
  pyramid-flow "a red circle moves left on a white background"
  pyramid-flow "a blue cross grows on a gray background" --seconds 2 --seed 7 -o cross.gif
  pyramid-flow "a green square moves up on a black background" --image square.png
  pyramid-flow "a green square grows on a black background" --extend square.mp4 --seconds 2

  The released models want a GPU. They are fetched from the Hugging Face hub when first used:
  pyramid-flow --model rain1011/pyramid-flow-miniflux --variant 768p --seconds 5 \\
      "a side profile shot of a woman with fireworks exploding in the distance"
  pyramid-flow --model rain1011/pyramid-flow-miniflux --variant 384p --offload model \\
      --image city.jpg "FPV flying over the city"
  pyramid-flow --model rain1011/pyramid-flow-miniflux --variant 768p --gpus 4 "a lighthouse"

exit status: 0 done, 1 it could not be done, 2 wrong options or input, 130 interrupted (Ctrl-C)
"""


class UsageError(ValueError):
    """Options that cannot be meant."""


class OneLineParser(argparse.ArgumentParser):
    """Raises what `argparse` would print below a dump of all options."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        UsageError: An option is unknown, malformed, or does not go with another.
    """
    parser = _build_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        hint = "" if unknown[0].startswith("-") else "; put the prompt in quotes"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    options.prompt = options.prompt or ""
    _check_sources(parser, options)
    if options.image is not None and options.video_steps is not None:
        parser.error("--video-steps does not go with --image, where --steps serves all frames")
    if options.extend is None:
        _check_num_frames(parser, options.num_frames)
    elif options.num_frames is not None and options.num_frames % FRAME_MULTIPLE:
        parser.error(
            f"argument --num-frames: with --extend, it must be a multiple of {FRAME_MULTIPLE}, "
            f"not {options.num_frames}"
        )
    check_model_options(parser, options)
    return options


def _check_sources(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what does not go with what the video starts from and is led by."""
    told = {
        "a prompt": options.prompt or None,
        **{f"--{name.replace('_', '-')}": getattr(options, name) for name in OF_THE_FIRST_RUN},
    }
    if options.resume_latents is not None:
        for name, value in told.items():
            if value is not None:
                parser.error(f"{name} does not go with --resume-latents, which has its own")
    elif options.storyboard is not None:
        if options.prompt:
            parser.error("a prompt does not go with --storyboard, which has its own")
    elif not options.prompt.strip() and options.image is None and options.extend is None:
        parser.error("the prompt is empty: say what the video should show")


def _build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="pyramid-flow",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pyramid-flow {__version__}")
    parser.add_argument(
        "prompt",
        nargs="?",
        help="what the video should show, in quotes; may be left out with --image and --extend",
    )

    video = parser.add_argument_group("the video")
    video.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="file to write: NAME.mp4, NAME.gif, or a NAME without an ending (or with a / at its "
        "end) for a folder of PNGs; an earlier one is replaced (default: an mp4 in this folder, "
        "named after the prompt)",
    )
    start = video.add_mutually_exclusive_group()
    start.add_argument(
        "--image", metavar="FILE", help="picture to start from; it is scaled and cropped to fit"
    )
    start.add_argument(
        "--extend",
        metavar="FILE",
        help="video to go on from; it is scaled and cropped to fit, and --seconds and --num-frames "
        "are what is added to it",
    )
    start.add_argument(
        "--resume-latents",
        metavar="FILE",
        help="go on with a run that was stopped, from what its --save-latents wrote",
    )
    video.add_argument(
        "--storyboard",
        metavar="FILE",
        help='prompts by unit, as JSON: {"0": "a dog sits", "8": "the dog runs"}; unit 0 is the '
        "first frame, every other one 8 frames; a value may also be "
        '{"prompt": ..., "guidance": ...}',
    )
    video.add_argument(
        "--save-latents",
        metavar="FILE",
        help="also write what --resume-latents needs, at the end or when the run is stopped",
    )
    length = video.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        type=_positive,
        metavar="S",
        help="length of the video, put to the nearest possible one (default: the model's)",
    )
    length.add_argument(
        "--num-frames",
        type=_positive_integer,
        metavar="N",
        help="length in frames: 8n+1, such as 1 (a still), 49, 97, 121 or 241; with --extend, 8n",
    )
    video.add_argument(
        "--size",
        type=parse_size,
        metavar="WxH",
        help=f"width and height in pixels, multiples of {SIZE_MULTIPLE} (default: the model's)",
    )
    video.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="the same seed gives the same video (default: a new one, told at the end)",
    )

    sampling = parser.add_argument_group("how it is made (default: what the model recommends)")
    sampling.add_argument(
        "--steps",
        type=_steps,
        metavar="N[,N,N]",
        help="steps for the first frame: one number, or three for the stages from coarse to fine; "
        "more is slower and better",
    )
    sampling.add_argument(
        "--video-steps",
        type=_steps,
        metavar="N[,N,N]",
        help="the same for all later frames (default: the model's, or --steps if that is given)",
    )
    sampling.add_argument(
        "--guidance",
        type=_guidance,
        metavar="G",
        help="how closely the first frame follows the prompt; 0 turns guidance off",
    )
    sampling.add_argument(
        "--video-guidance", type=_guidance, metavar="G", help="the same for all later frames"
    )
    sampling.add_argument(
        "--negative-prompt", metavar="TEXT", help="what the video should not look like"
    )
    sampling.add_argument(
        "--prompt-suffix",
        metavar="TEXT",
        help='what is appended to the prompt, "" for nothing (default: what the model was trained '
        "with)",
    )

    model = add_model_options(parser)
    model.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    model.add_argument(
        "--verbose", action="store_true", help="tell what is done, and where an error came from"
    )
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that say which model runs where, and return their group."""
    model = parser.add_argument_group("the model and the machine")
    model.add_argument(
        "--model",
        metavar="MODEL",
        help="folder of a checkpoint, or a repository on the Hugging Face hub (default: the "
        "checkpoint that comes with this package)",
    )
    model.add_argument(
        "--variant",
        metavar="NAME",
        help="which transformer of the model, such as 384p, 768p or image (default: the model's)",
    )
    model.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="auto, cpu, cuda, cuda:1, mps, ... (default: auto, a GPU if there is one)",
    )
    model.add_argument(
        "--dtype",
        choices=("bf16", "fp16", "fp32"),
        help="precision of the weights (default: the model's, else bf16 on a GPU, fp32 on the CPU)",
    )
    model.add_argument(
        "--offload",
        choices=("model", "layer"),
        help="save GPU memory by keeping weights in the computer's and bringing over one model, "
        "or one layer (slow), at a time",
    )
    model.add_argument(
        "--memory",
        choices=MEMORY_PRESETS,
        help="fit into so much GPU memory, or into what is free (auto): what that takes is in "
        "docs/memory.md",
    )
    model.add_argument(
        "--gpus",
        type=_positive_integer,
        default=1,
        metavar="N",
        help="share the work among N GPUs, one process each; with --device cpu, among N processes "
        "on the CPU",
    )
    model.add_argument(
        "--shard",
        action="store_true",
        help="with --gpus, keep only a part of the weights on each GPU, for models that do not "
        "fit on one",
    )
    model.add_argument(
        "--threads", type=_positive_integer, metavar="N", help="CPU threads (default: all cores)"
    )
    return model


def check_model_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options of `add_model_options` that do not go with each other.

    Raises:
        UsageError: Two of them do not.
    """
    if options.gpus > 1 and ":" in options.device:
        parser.error(f"--gpus {options.gpus} does not go with --device {options.device}, one GPU")
    if options.memory and (options.offload or options.shard):
        other = "--shard" if options.shard else "--offload"
        parser.error(f"--memory does not go with {other}: both say where weights are kept")
    if options.shard and options.offload:
        parser.error("--shard does not go with --offload, which keeps the weights elsewhere")


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in `1280x768`.

    Raises:
        argparse.ArgumentTypeError: It is written otherwise, or a side is no multiple of 64.
    """
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"must look like 1280x768 (width x height), not {text!r}")
    width, height = int(match[1]), int(match[2])
    if not width or not height or width % SIZE_MULTIPLE or height % SIZE_MULTIPLE:
        fits = "x".join(
            str(max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE) for side in (width, height)
        )
        raise argparse.ArgumentTypeError(
            f"width and height must be multiples of {SIZE_MULTIPLE}, not {text}; {fits} would do"
        )
    return width, height


def _number(kind: Callable[[str], float], text: str, meaning: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
    return value


def _positive_integer(text: str) -> int:
    value = _number(int, text, "a whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return int(value)


def _positive(text: str) -> float:
    value = _number(float, text, "a number")
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _guidance(text: str) -> float:
    value = _number(float, text, "a number")
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be below 0, which turns it off, not {text}")
    return value


def _seed(text: str) -> int:
    value = int(_number(int, text, "a whole number"))
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2^63 - 1, not {text}")
    return value


def _check_num_frames(parser: argparse.ArgumentParser, frames: int | None) -> None:
    if frames is None:
        return
    below = (frames - 1) // FRAME_MULTIPLE * FRAME_MULTIPLE + 1
    if frames != below:
        parser.error(
            f"argument --num-frames: must be 8n+1, not {frames}; the nearest are {below} and "
            f"{below + FRAME_MULTIPLE}"
        )


def _steps(text: str) -> int | list[int]:
    numbers = [_positive_integer(part) for part in text.split(",")]
    if len(numbers) not in (1, STAGES):
        raise argparse.ArgumentTypeError(
            f"must be one number or {STAGES}, one for each stage, not {len(numbers)}: {text}"
        )
    return numbers if len(numbers) > 1 else numbers[0]


def _device(text: str) -> str:
    if not re.fullmatch(r"[a-z]+(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be like auto, cpu, cuda or cuda:1, not {text!r}")
    return text
