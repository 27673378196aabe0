"""The command line: its options, their help, and every check that needs no model.

Nothing slow is imported here, so that help and most errors appear at once.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .. import __version__
from ..checks import SIDE, Number, OneOrMore, Whole, memory_size
from ..flow.sizes import added_temp_of, temp_of
from ..generation.arguments import DEFAULTS, OPTIONS

STAGES = 3
SIZE_MULTIPLE = 64  # 8 of the VAE, two halvings, 2x2 patches
MEMORY_PRESETS = ("auto", "max-speed", "12GB", "8GB", "6GB")
"""`auto` and the names of `memory_presets.PRESETS`, which takes PyTorch to import."""
COMMANDS = ("doctor", "page")
"""Subcommands, given as the first word instead of a prompt."""
FLAGS = {name: option for name, option in OPTIONS.items() if option.flag is not None}
"""Arguments that have an option on the command line, by name."""

DESCRIPTION = """\
Make a video from a prompt, or from an image and a prompt, by pyramidal flow matching.

Without --model, the small checkpoint that ships with this package is used. It draws one moving
colored shape and understands sentences of one form:
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
  pyramid-flow "a red circle moves up on a gray background" --live   type new prompts, Ctrl-C ends

  The released models need a GPU. They are downloaded from the Hugging Face Hub on first use:
  pyramid-flow --model rain1011/pyramid-flow-miniflux --variant 768p --seconds 5 \\
      "a side profile shot of a woman with fireworks exploding in the distance"
  pyramid-flow --model rain1011/pyramid-flow-miniflux --variant 384p --offload model \\
      --image city.jpg "FPV flying over the city"
  pyramid-flow --model rain1011/pyramid-flow-miniflux --variant 768p --gpus 4 "a lighthouse"

  pyramid-flow doctor checks this machine and a model (see pyramid-flow doctor --help)
  pyramid-flow page opens a page for the browser (see pyramid-flow page --help)

exit status: 0 success, 1 failure, 2 wrong options or input, 130 interrupted (Ctrl-C)
"""


DOCTOR = """\
Check whether this machine and a model can make videos, and print one screen to paste into a bug
report: versions, device and memory; whether the model's files are complete, its tokenizers and text
encoders match, a picture survives encoding and decoding by the VAE, latents match the checkpoint's
statistics, and steps of the transformer are finite.
"""


class UsageError(ValueError):
    """Options that are wrong or contradict each other."""


class OneLineParser(argparse.ArgumentParser):
    """Raises `UsageError` where `argparse` would print all options and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line.

    Returns:
        The options, and in `command` which of `COMMANDS` it is; None makes a video.

    Raises:
        UsageError: An option is unknown, malformed, or does not go with another.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["doctor"]:
        options = _doctor_parser().parse_args(arguments[1:])
        options.command = "doctor"
        return options
    parser = _build_parser()
    options, unknown = parser.parse_known_args(arguments)
    options.command = None
    if unknown:
        hint = "" if unknown[0].startswith("-") else "; put the prompt in quotes"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if options.prompt and options.named_prompt:
        parser.error(f"the prompt is given twice: {options.prompt!r} and {options.named_prompt!r}")
    options.prompt = options.prompt or options.named_prompt or ""
    _check_sources(parser, options)
    if options.image is not None and options.video_num_inference_steps is not None:
        parser.error("--video-steps does not go with --image, where --steps serves all frames")
    if options.live and not options.resume_latents and options.num_frames is None:
        options.seconds = math.inf if options.seconds is None else options.seconds
    if options.num_frames is not None:
        try:
            (temp_of if options.extend is None else added_temp_of)(options.num_frames)
        except ValueError as error:
            parser.error(f"argument --num-frames: {error}")
    check_model_options(parser, options)
    return options


def _check_sources(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that contradict what the video starts from or its prompts."""
    if options.resume_latents is not None:
        own = {"a prompt": options.prompt or None, "--storyboard": options.storyboard}
        own["--size"] = options.size
        own |= {f"{o.flag}": getattr(options, name) for name, o in FLAGS.items() if not o.resumes}
        for name, value in own.items():
            if value is not None:
                parser.error(f"{name} does not go with --resume-latents, which has its own")
    elif options.storyboard is not None:
        for name, given in (("a prompt", options.prompt), ("--live", options.live)):
            if given:
                parser.error(f"{name} does not go with --storyboard, which has its own prompts")
        if options.seconds == math.inf:
            parser.error("--seconds inf does not go with --storyboard: use --live")
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
        help="what the video should show, in quotes; optional with --image and --extend",
    )
    parser.add_argument(
        "--prompt",
        dest="named_prompt",
        metavar="TEXT",
        help=f"the same, for a prompt that is just the word {' or '.join(COMMANDS)}, which is "
        "otherwise a command",
    )

    video = parser.add_argument_group("the video")
    video.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="file to write: NAME.mp4, NAME.gif, or NAME without an extension (or ending in /) "
        "for a folder of PNGs; an existing one is replaced when the new one is complete "
        "(default: an mp4 in this folder named after the prompt, which replaces nothing)",
    )
    # which file a process among several writes to while it works
    video.add_argument("--partial", help=argparse.SUPPRESS)
    start = video.add_mutually_exclusive_group()
    start.add_argument(
        "--image", metavar="FILE", help="image to start from; it is scaled and cropped to fit"
    )
    start.add_argument(
        "--extend",
        metavar="FILE",
        help="video to extend; it is scaled and cropped to fit, and --seconds or --num-frames say "
        "how much to add",
    )
    start.add_argument(
        "--resume-latents",
        metavar="FILE",
        help="resume a run that was stopped, from the file written by its --save-latents",
    )
    video.add_argument(
        "--storyboard",
        metavar="FILE",
        help='JSON file with the prompt that starts at each unit: {"0": "a dog sits", "8": '
        '"the dog runs"}; unit 0 is the first frame, every later unit has 8 frames; a value may '
        'also be {"prompt": ..., "guidance": ...}',
    )
    video.add_argument(
        "--live",
        action="store_true",
        help="each line that is typed while it runs is the new prompt; without a length the video "
        "goes on until Ctrl-C",
    )
    video.add_argument(
        "--save-latents",
        metavar="FILE",
        help="also write the file that --resume-latents needs, at the end or when the run is "
        "stopped",
    )
    add_sampling_options(parser, video)
    model = add_model_options(parser)
    model.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    model.add_argument(
        "--verbose", action="store_true", help="log each step, and show where an error came from"
    )
    return parser


def add_sampling_options(parser: argparse.ArgumentParser, video: argparse._ArgumentGroup) -> None:
    """Add size, length and seed to the group `video`, and a group that says how it is sampled."""
    video.add_argument(
        "--size",
        type=parse_size,
        metavar="WxH",
        help=f"width and height in pixels, multiples of {SIZE_MULTIPLE} (default: the model's)",
    )
    length = video.add_mutually_exclusive_group()
    _add_from_record(length, "seconds", "num_frames")
    _add_from_record(video, "seed", default="random, printed at the end")
    sampling = parser.add_argument_group("sampling (default: what the model recommends)")
    rest = [name for name in FLAGS if name not in ("seconds", "num_frames", "seed")]
    _add_from_record(sampling, *rest, default="")


def _add_from_record(
    group: argparse._ActionsContainer, *names: str, default: str = "the model's"
) -> None:
    """Add the options that the record of arguments has under these names."""
    for name in names:
        option = FLAGS[name]
        words = f"{option.help[0].lower()}{option.help[1:].rstrip('.')}"
        default = default if DEFAULTS[name] is None else str(DEFAULTS[name])
        group.add_argument(
            str(option.flag),
            dest=name,
            type=_reader(option.check, several="," in str(option.metavar)),
            metavar=option.metavar,
            help=f"{words} (default: {default})" if default else words,
        )


def _reader(check: Any, *, several: bool) -> Callable[[str], Any]:
    """What turns the word on the command line into a value that `check` allows."""
    one = check.check if isinstance(check, OneOrMore) else check

    def read(text: str) -> Any:
        if not hasattr(one, "parse"):
            return text
        try:
            values = [one.parse(part) for part in (text.split(",") if several else [text])]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if len(values) not in (1, STAGES):
            raise argparse.ArgumentTypeError(
                f"must be one number or {STAGES}, one for each stage, not {len(values)}: {text}"
            )
        return values if len(values) > 1 else values[0]

    return read


def _doctor_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="pyramid-flow doctor",
        description=DOCTOR,
        epilog="exit status: 0 no problem found, 1 at least one problem, 2 wrong options",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_single_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--verbose", action="store_true", help="show the messages of the libraries while they load"
    )
    return parser


def _add_single_model_options(
    parser: argparse.ArgumentParser, *, several: bool = False
) -> argparse._ArgumentGroup:
    """Add the options for a model in this process alone, and return their group."""
    model = parser.add_argument_group("the model and the machine")
    words = "folder of a checkpoint, or a repository on the Hugging Face Hub (default: the "
    words += "checkpoint that ships with this package)"
    if several:
        model.add_argument(
            "--model",
            dest="models",
            action="append",
            default=[],
            metavar="MODEL",
            help=f"{words}; or a folder of several checkpoints; may be given several times: "
            "visitors choose one from a list",
        )
    else:
        model.add_argument("--model", metavar="MODEL", help=words)
    default = "all, to choose from" if several else "the model's"
    model.add_argument(
        "--variant",
        metavar="NAME",
        help=f"which transformer of the model, such as 384p, 768p or image (default: {default})",
    )
    if not several:
        model.add_argument(
            "--fast",
            action="store_true",
            help="take the student that was distilled from the model, where it comes with one: few "
            "steps, guidance in the weights, and a seed gives another video; see docs/distill.md",
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
        "--memory",
        type=_memory,
        metavar="SIZE",
        help="fit into this much memory of the GPU (or of the computer without one), such as 16GB, "
        f"or into the free memory (auto); presets are {', '.join(MEMORY_PRESETS[1:])}; see "
        "docs/memory.md",
    )
    model.add_argument(
        "--threads",
        type=_reader(Whole(), several=False),
        metavar="N",
        help="CPU threads (default: all cores)",
    )
    return model


def add_model_options(
    parser: argparse.ArgumentParser, *, several: bool = False
) -> argparse._ArgumentGroup:
    """Add the options that say which model runs where, and return their group.

    With `several`, `--model` may be given several times, and is the list `models`.
    """
    model = _add_single_model_options(parser, several=several)
    model.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="LoRA to apply: a file, a folder or a repository on the Hub, and its strength "
        "(default: 1); may be given several times",
    )
    model.add_argument(
        "--offload",
        choices=("model", "layer"),
        help="save GPU memory by keeping weights in the computer's memory and moving one model, "
        "or one layer (slow), to the GPU at a time",
    )
    model.add_argument(
        "--gpus",
        type=_reader(Whole(), several=False),
        default=1,
        metavar="N",
        help="split the work across N GPUs, one process each; with --device cpu, across N "
        "processes on the CPU",
    )
    model.add_argument(
        "--shard",
        action="store_true",
        help="with --gpus, keep only part of the weights on each GPU, for models that do not fit "
        "on one",
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
        parser.error("--shard does not go with --offload: both say where weights are kept")


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in `1280x768`.

    Raises:
        argparse.ArgumentTypeError: It is written otherwise, or a side is no multiple of 64.
    """
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"must look like 1280x768 (width x height), not {text!r}")
    try:
        width, height = (SIDE.parse(side) for side in match.groups())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"width and height: {error}") from error
    if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE:
        fits = "x".join(
            str(max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE) for side in (width, height)
        )
        raise argparse.ArgumentTypeError(
            f"width and height must be multiples of {SIZE_MULTIPLE}, not {text}; {fits} would do"
        )
    return width, height


def _lora(text: str) -> tuple[str, float]:
    """What and how strongly, of `FILE[:SCALE]`; a colon may be in a name too."""
    source, colon, scale = text.rpartition(":")
    try:
        return (source, Number(-10, 10).parse(scale)) if colon and source else (text, 1.0)
    except ValueError as error:
        if re.fullmatch(r"[-+\d.]+", scale):
            raise argparse.ArgumentTypeError(f"the scale of {source}: {error}") from error
        return text, 1.0


def _memory(text: str) -> str:
    if text in MEMORY_PRESETS:
        return text
    try:
        memory_size(text)
    except ValueError as error:
        names = ", ".join(MEMORY_PRESETS)
        raise argparse.ArgumentTypeError(f"must be one of {names}, or {error}") from error
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"[a-z]+(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be like auto, cpu, cuda or cuda:1, not {text!r}")
    return text
