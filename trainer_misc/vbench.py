"""Videos of a list of prompts, in folders and under names as VBench's evaluation wants them.

    python -m trainer_misc.vbench PROMPTS OUTPUT --model rain1011/pyramid-flow-miniflux

PROMPTS is a text file with a prompt in each line, or a folder of such files, as VBench has one for
each dimension; they do not come with this package. The videos of LIST.txt are
OUTPUT/LIST/PROMPT-INDEX.mp4, and OUTPUT/LIST.json has the settings and the seed of each. A prompt
is cut to 180 letters there, as VBench-2.0 does. Started again, the command makes what is missing.
Nothing is evaluated here.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyramid_dit.checks import Whole
from pyramid_dit.cli.options import (
    FLAGS,
    add_model_options,
    add_sampling_options,
    check_model_options,
)
from pyramid_dit.cli.status import exit_status, one_line, status_of
from pyramid_dit.files import check_name, replacing
from pyramid_dit.flow.sizes import temp_of
from pyramid_dit.json_files import read_json

if TYPE_CHECKING:
    from pyramid_dit.checkpoints.folder import CheckpointFolder
    from pyramid_dit.pipelines.official import PyramidDiTForVideoGeneration

NAME_LENGTH = 180
"""Letters of a prompt in the name of its videos: more than VBench's prompts have."""
PER_PROMPT = 5
_SOURCES = ("image", "extend", "storyboard", "resume_latents")  # of `pyramid-flow`, none here


@dataclass(frozen=True)
class Sample:
    """A video to make."""

    prompt: str
    index: int
    """Among the videos of the prompt, from 0 on."""
    seed: int
    path: Path


def samples_of(
    prompts: Path, output: Path, *, per_prompt: int = PER_PROMPT, seed: int = 0
) -> list[Sample]:
    """The videos of a list of prompts.

    Args:
        prompts: A text file with a prompt in each line; empty lines and repeated ones do not count.
        output: Where the folder of the videos is, which has the name of the file.
        per_prompt: Videos of each prompt.
        seed: Seeds are made of it, the prompt and the index: they do not depend on the list.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no prompts or is not UTF-8, or one cannot be in the name of a file.
    """
    try:
        lines = prompts.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{prompts} is not a text in UTF-8") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise ValueError(f"there are no prompts in {prompts}")
    names: dict[str, str] = {}
    for prompt in found:
        name = prompt[:NAME_LENGTH]
        if bad := re.search(r"[/\\\x00-\x1f]", name):
            raise ValueError(f"{prompts}: {bad[0]!r} cannot be in the name of a file: {prompt!r}")
        check_name(f"{name}-{per_prompt - 1}.mp4")
        if names.setdefault(name, prompt) != prompt:
            raise ValueError(f"{prompts}: two prompts begin with the same {NAME_LENGTH} letters")
    folder = output / prompts.stem
    return [
        Sample(prompt, i, _seed(seed, prompt, i), folder / f"{prompt[:NAME_LENGTH]}-{i}.mp4")
        for prompt in found
        for i in range(per_prompt)
    ]


def is_whole(path: Path) -> bool:
    """Whether a video is there, and has as many frames as its header says."""
    from pyramid_dit.media.video_files import video_frames
    from pyramid_dit.media.video_header import VideoHeader

    try:
        header = VideoHeader.read(path)
        count = sum(1 for _ in video_frames(path))
    except (OSError, ValueError):
        return False
    # the header rounds to hundredths of a second
    return count > (header.seconds or 0) * (header.frame_rate or 0) - 0.5


def _seed(seed: int, prompt: str, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/{prompt}".encode()).digest()[:4], "big")


def _write_record(record: Path, settings: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Write the settings and the seeds of a list.

    Raises:
        ValueError: Its videos were made with other settings.
    """
    content = json.loads(json.dumps({"settings": settings}))  # tuples are lists there
    if record.is_file():
        former = read_json(record).get("settings")
        former = former if isinstance(former, dict) else {}
        for name, value in content["settings"].items():
            if former.get(name) != value:
                raise ValueError(
                    f"{record}: the videos there were made with {name} {former.get(name)!r}, not "
                    f"{value!r}: name another folder for OUTPUT"
                )
    content["seeds"] = {sample.path.name: sample.seed for sample in samples}
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _make(
    model: PyramidDiTForVideoGeneration,
    options: Namespace,
    folder: CheckpointFolder,
    sample: Sample,
) -> None:
    """Make a video, whose file is written when all of it is there."""
    from pyramid_dit.cli.sources import Sources, skip
    from pyramid_dit.media.video_files import export_to_video

    options.prompt = sample.prompt
    sources = Sources(None, None, None)
    stream = sources.stream(model, options, folder, sample.seed, skip, lambda *_: None)
    with stream:
        frames = itertools.chain.from_iterable(stream)
        export_to_video(frames, sample.path, folder.defaults.frames_per_second)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.vbench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("prompts", type=Path, help="text file, or folder of text files")
    parser.add_argument("output", type=Path, help="folder of the videos")
    parser.add_argument(
        "--per-prompt",
        type=_count,
        default=PER_PROMPT,
        metavar="N",
        help="videos of each prompt; VBench takes 5, and 25 for temporal_flickering "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--part",
        type=_part,
        default=(1, 1),
        metavar="K/N",
        help="make only every N-th video, from the K-th on, while other processes make the others "
        "in the same OUTPUT (default: 1/1)",
    )
    add_sampling_options(parser, parser.add_argument_group("the videos"))
    model = add_model_options(parser)
    model.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(verbose=False, **dict.fromkeys(_SOURCES))
    return parser


def _count(text: str) -> int:
    try:
        return Whole().parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be like 1/4, the first of four, not {text!r}")
    return int(match[1]), int(match[2])


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    check_model_options(parser, options)
    if options.gpus > 1 or options.shard:
        parser.error("--gpus and --shard share one video: start a process for each GPU with --part")
    if options.num_frames is not None:
        try:
            temp_of(options.num_frames)
        except ValueError as error:
            parser.error(f"argument --num-frames: {error}")
    return options


def _lists(prompts: Path) -> list[Path]:
    if not prompts.is_dir():
        return [prompts]
    lists = sorted(prompts.glob("*.txt"))
    if not lists:
        raise ValueError(f"there are no text files in {prompts}")
    return lists


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the videos, and return the exit status; errors are printed as one line."""
    made = 0

    def work(received: list[int]) -> None:
        nonlocal made
        options = _options(arguments)
        seed = options.seed or 0
        lists = {
            path.stem: samples_of(path, options.output, per_prompt=options.per_prompt, seed=seed)
            for path in _lists(options.prompts)
        }
        from tqdm import tqdm

        from pyramid_dit.cli.model import check_sources, load_model, open_model, print_log
        from pyramid_dit.media.video_files import check_folder

        print_log(options, is_main=True)
        check_sources(options)
        check_folder(options.output)
        folder = open_model(options)
        names = [name for name in FLAGS if name != "seed"]
        settings = {name: getattr(options, name) for name in ("model", "dtype", "size", "lora")}
        settings |= {name: getattr(options, name) for name in names}
        settings |= {"variant": folder.variant, "seed": seed}
        for name, samples in lists.items():
            _write_record(options.output / f"{name}.json", settings, samples)
        wanted = list(itertools.chain(*lists.values()))[options.part[0] - 1 :: options.part[1]]
        missing = [sample for sample in wanted if not is_whole(sample.path)]
        if missing:
            model = load_model(options, folder, None)
            model.set_progress_bar_config(disable=True)
        for sample in tqdm(missing, "videos", disable=options.quiet):
            _make(model, options, folder, sample)
            made += 1
        before = len(wanted) - len(missing)
        sys.stdout.write(f"{options.output}: {made} made, {before} were there\n")

    def report(error: BaseException, received: list[int]) -> int:
        stopped = received or isinstance(error, KeyboardInterrupt)
        message = f"interrupted, {made} made" if stopped else one_line(error)
        sys.stderr.write(f"trainer_misc.vbench: {message}\n")
        return 128 + (received or [signal.SIGINT])[0] if stopped else exit_status(error)

    return status_of(work, report)


if __name__ == "__main__":
    sys.exit(main())
