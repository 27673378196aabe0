"""The command line, as a user meets it: mostly in processes of its own, on a tiny checkpoint."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from progress import STEPS_MADE, wait_for
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit.cli.command import main
from pyramid_dit.cli.options import MEMORY_PRESETS, parse_options
from pyramid_dit.generation.memory_presets import AUTO, PRESETS
from pyramid_dit.generation.saved_latents import SavedLatents
from pyramid_dit.media.ffmpeg import run_ffmpeg
from pyramid_dit.media.video_files import export_to_video, read_video

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle moves left on a white background"
SLOW = ["--device", "cpu", "--size", "512x512", "--steps", "1000"]  # a minute, on any machine
TIMEOUT = 600  # generous: importing the libraries takes long on a busy machine

BAD_OPTIONS = {
    "no prompt": ([], "prompt is empty"),
    "empty prompt": ([""], "prompt is empty"),
    "blank prompt": (["  "], "prompt is empty"),
    "a prompt without quotes": (PROMPT.split(), "put the prompt in quotes"),
    "unknown option": ([PROMPT, "--faster"], "--faster"),
    "size without x": ([PROMPT, "--size", "128"], "1280x768"),
    "size that does not fit": ([PROMPT, "--size", "100x128"], "multiples of 64"),
    "size zero": ([PROMPT, "--size", "0x64"], "at least 1"),
    "frames that do not fit": ([PROMPT, "--num-frames", "50"], "49 and 57"),
    "no frames": ([PROMPT, "--num-frames", "0"], "at least 1"),
    "no time": ([PROMPT, "--seconds", "0"], "above 0"),
    "no number": ([PROMPT, "--seconds", "nan"], "not a number"),
    "endless gif": ([PROMPT, "--seconds", "inf", "-o", "a.gif"], "has no end"),
    "endless folder": ([PROMPT, "--live", "-o", "a/"], "has no end"),
    "endless story": (["--storyboard", "a.json", "--seconds", "inf"], "--seconds inf"),
    "a story that is live": (["--storyboard", "a.json", "--live"], "--live"),
    "both lengths": ([PROMPT, "--seconds", "1", "--num-frames", "9"], "not allowed with"),
    "no steps": ([PROMPT, "--steps", "0"], "at least 1"),
    "steps for two stages": ([PROMPT, "--steps", "10,10"], "3, one for each stage"),
    "half a step": ([PROMPT, "--video-steps", "1.5"], "whole number"),
    "video steps with an image": ([PROMPT, "--image", "a.png", "--video-steps", "2"], "--steps"),
    "negative guidance": ([PROMPT, "--guidance", "-1"], "at least 0"),
    "unknown solver": ([PROMPT, "--solver", "heun"], "euler, ab2"),
    "negative seed": ([PROMPT, "--seed", "-1"], "at least 0"),
    "unknown dtype": ([PROMPT, "--dtype", "int8"], "bf16"),
    "unknown device": ([PROMPT, "--device", "c/d"], "cuda:1"),
    "unknown preset": ([PROMPT, "--memory", "much"], "12GB"),
    "two ways to save memory": ([PROMPT, "--memory", "8GB", "--offload", "model"], "--offload"),
    "no threads": ([PROMPT, "--threads", "0"], "at least 1"),
    "unknown format": ([PROMPT, "--output", "a.avi"], ".mp4"),
    "model that is not there": ([PROMPT, "--model", "./nowhere/at/all"], "nowhere"),
    "image that is not there": ([PROMPT, "--image", "nowhere.png"], "nowhere.png"),
    "video that is not there": ([PROMPT, "--extend", "nowhere.mp4"], "nowhere.mp4"),
    "story that is not there": (["--storyboard", "nowhere.json"], "nowhere.json"),
    "latents that are not there": (["--resume-latents", "nowhere"], "nowhere"),
    "two starts": ([PROMPT, "--image", "a.png", "--extend", "a.mp4"], "not allowed with"),
    "two prompts to follow": ([PROMPT, "--storyboard", "a.json"], "has its own"),
    "a new prompt for an old run": ([PROMPT, "--resume-latents", "a"], "has its own"),
    "a length to add that does not fit": (
        [PROMPT, "--extend", "a.mp4", "--num-frames", "17"],
        "multiple of 8",
    ),
    "latents in no folder": ([PROMPT, "--save-latents", "/proc/latents"], "takes no files"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_tiny_checkpoint(folder, "pyramid_flux", index=QUICK_INDEX)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def start(*arguments: str | Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pyramid_dit", *map(str, arguments)]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit status and what went to stdout and stderr."""
    process = start(*arguments)
    output, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, output, errors


def check_complaint(errors: str, *, about: str) -> None:
    """Exactly one line, ours, that says what is wrong."""
    assert errors.count("\n") == 1 and errors.startswith("pyramid-flow: "), errors
    assert about in errors, errors


def files_here() -> list[str]:
    return sorted(path.name for path in Path.cwd().rglob("*"))


# ---- before any model is needed ---------------------------------------------------------------


def test_help_explains_every_option() -> None:
    status, text, errors = run("--help")
    assert (status, errors) == (0, "")
    for option in (
        "--output --image --seconds --num-frames --size --seed --steps --video-steps --guidance "
        "--video-guidance --negative-prompt --model --variant --device --dtype --offload --threads "
        "--gpus --shard"
    ).split():
        assert option in text
    assert "examples:" in text and PROMPT in text and "pyramid-flow-miniflux" in text


def test_version() -> None:
    status, text, _ = run("--version")
    assert status == 0 and re.fullmatch(r"pyramid-flow \d+\.\d+\.\d+\n", text)


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, about = BAD_OPTIONS[case]
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    check_complaint(errors, about=about)
    assert files_here() == []


def test_complaints_and_help_do_not_wait_for_pytorch() -> None:
    code = (
        "import sys\n"
        "from pyramid_dit.cli import main\n"
        f"for arguments in {[arguments for arguments, _ in BAD_OPTIONS.values()]!r}:\n"
        "    assert main(arguments) == 2, arguments\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def test_values_of_options() -> None:
    options = parse_options([PROMPT, "--size", "128x64", "--steps", "4", "--video-steps", "1,2,3"])
    assert options.size == (128, 64)
    steps = options.num_inference_steps, options.video_num_inference_steps
    assert steps == (4, [1, 2, 3])
    assert parse_options(["--image", "a.png"]).prompt == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write to")
def test_an_output_folder_that_takes_no_files() -> None:
    status, _, errors = run(PROMPT, "-o", "/proc/video.mp4")
    assert status == 2
    check_complaint(errors, about="/proc")


def test_an_output_folder_without_permission(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("root may write anywhere")
    status, _, errors = run(PROMPT, "-o", locked / "video.mp4")
    assert status == 2
    check_complaint(errors, about="locked")


def test_an_output_folder_that_holds_other_things() -> None:
    Path("diary.txt").touch()
    status, _, errors = run(PROMPT, "-o", ".")
    assert status == 2
    check_complaint(errors, about="diary.txt")


@pytest.mark.parametrize(
    ("make", "about"),
    [
        (lambda path: Image.new("RGB", (1, 1)).save(path), "at least 64"),
        (lambda path: Image.new("RGB", (640, 32)).save(path), "640x32"),
        (lambda path: path.write_bytes(b"no picture"), "not a picture"),
        (lambda path: path.mkdir(), "picture.png"),
    ],
)
def test_bad_images(
    make: Callable[[Path], object], about: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    make(path)
    assert main([PROMPT, "--image", str(path)]) == 2
    check_complaint(capsys.readouterr().err, about=about)


def test_a_truncated_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:9000])
    assert main([PROMPT, "--image", str(path)]) == 2
    check_complaint(capsys.readouterr().err, about="damaged")


# ---- models -----------------------------------------------------------------------------------


def damage(name: str) -> Callable[[Path], object]:
    def truncate(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return truncate


@pytest.mark.parametrize(
    ("spoil", "options", "about"),
    [
        (lambda folder: None, ["--variant", "384p"], "384p"),
        (lambda folder: (folder / "causal_video_vae/config.json").unlink(), [], "causal_video_vae"),
        (lambda folder: (folder / "text_encoder_2/model.safetensors").unlink(), [], "encoder_2"),
        (damage("diffusion_transformer_768p/diffusion_pytorch_model.safetensors"), [], "truncated"),
        (damage("diffusion_transformer_768p/config.json"), [], "config.json"),
        (damage("model_index.json"), [], "model_index.json"),
    ],
)
def test_bad_model_folders(
    spoil: Callable[[Path], object],
    options: list[str],
    about: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", index=QUICK_INDEX)
    capsys.readouterr()
    spoil(folder)
    assert main([PROMPT, "--model", str(folder), *options]) == 2
    check_complaint(capsys.readouterr().err, about=about)
    assert files_here() == []


def test_a_folder_that_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert main([PROMPT, "--model", "empty"]) == 2
    check_complaint(capsys.readouterr().err, about="empty")


def test_a_device_that_is_not_there(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("cuda:99", "xpu", "warp"):
        assert main([PROMPT, "--model", str(checkpoint), "--device", device]) == 2
        check_complaint(capsys.readouterr().err, about=device)


def test_a_hub_out_of_reach(tmp_path: Path) -> None:
    status, _, errors = run(PROMPT, "--model", "nobody/no-such-model-anywhere")
    assert status == 1
    check_complaint(errors, about="nobody/no-such-model-anywhere")


# ---- generating -------------------------------------------------------------------------------


def generate(checkpoint: Path, *options: str | Path, prompt: str = PROMPT) -> None:
    arguments = [prompt, "--model", checkpoint, "--device", "cpu", "--quiet", *options]
    assert main([str(argument) for argument in arguments]) == 0


def frames_in(folder: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).iterdir())])


def test_the_whole_command(checkpoint: Path) -> None:
    """Says where the video is, how long it took, and shows a progress bar, nothing else."""
    status, output, errors = run(PROMPT, "--model", checkpoint, "--device", "cpu", "--seed", "5")
    assert status == 0, errors
    name = "a-red-circle-moves-left-on-a-white-background.mp4"
    assert files_here() == [name]
    assert re.fullmatch(
        rf"{name}: 9 frames of 64x64, 0\.4 s of video made in [\d.]+ s \(seed 5\)\n", output
    )
    assert read_video(name).shape == (9, 64, 64, 3)
    lines = [line for line in re.split(r"[\r\n]", errors) if line.strip()]
    assert lines and all("%|" in line for line in lines), errors


def test_the_default_name_is_never_taken(checkpoint: Path) -> None:
    for _ in range(2):
        generate(checkpoint, prompt="A circle, red!")
    assert files_here() == ["a-circle-red-2.mp4", "a-circle-red.mp4"]


def test_length_size_and_formats(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(checkpoint, "--num-frames", "1", "--size", "128x64", "-o", "still/")
    assert frames_in("still").shape == (1, 64, 128, 3)
    generate(checkpoint, "--seconds", "0.7", "-o", "new/clip.gif")
    with Image.open("new/clip.gif") as gif:
        assert gif.size == (64, 64)
    assert "17 frames" in capsys.readouterr().out.splitlines()[-1]


def test_a_seed_gives_the_same_video(checkpoint: Path) -> None:
    for name, seed in {"a": "3", "b": "3", "c": "4"}.items():
        generate(checkpoint, "--seed", seed, "-o", name)
    np.testing.assert_array_equal(frames_in("a"), frames_in("b"))
    assert not np.array_equal(frames_in("a"), frames_in("c"))


def test_sampling_options_arrive(checkpoint: Path) -> None:
    generate(checkpoint, "--threads", "2", "--num-frames", "1")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    base = ["--seed", "3"]
    generate(checkpoint, *base, "-o", "base")
    for name, options in {
        "steps": ["--steps", "2,1,1", "--video-steps", "1"],
        "video_steps": ["--video-steps", "1,1,3"],
        "guidance": ["--guidance", "6"],
        "no_guidance": ["--guidance", "0"],
        "video_guidance": ["--video-guidance", "6"],
        "negative_prompt": ["--negative-prompt", "a blue square"],
    }.items():
        generate(checkpoint, *base, *options, "-o", name)
        assert not np.array_equal(frames_in("base"), frames_in(name)), name


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_image_to_video(checkpoint: Path, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGBA", (70, 200), (200, 30, 30, 255)).convert(mode).save(path)
    generate(checkpoint, "--image", path, "-o", "clip.mp4")
    assert read_video("clip.mp4").shape == (9, 64, 64, 3)
    generate(checkpoint, "--image", path, "--size", "64x128", "-o", "tall.mp4", prompt="")
    assert read_video("tall.mp4").shape == (9, 128, 64, 3)


def test_released_folders_name_no_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_checkpoint(tmp_path / "a", variant="diffusion_transformer_odd")
    capsys.readouterr()
    assert main([PROMPT, "--model", str(folder)]) == 2
    check_complaint(capsys.readouterr().err, about="--size")


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow above `size` bytes, as a full disk would."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("output", ["clip.mp4", "clip.gif", "frames"])
def test_a_write_that_fails(
    checkpoint: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [PROMPT, "--model", str(checkpoint), "--device", "cpu", "--quiet"]
    with no_file_above(1500):
        assert main([*arguments, "--size", "128x128", "-o", output]) == 1
    check_complaint(capsys.readouterr().err, about="")
    assert files_here() == []


# ---- Ctrl-C -----------------------------------------------------------------------------------


def check_interrupted(
    process: subprocess.Popen[str], signum: signal.Signals, *, kept: str = "no video was written"
) -> None:
    process.send_signal(signum)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signum, errors
    assert output == "" and "Traceback" not in errors
    assert errors.endswith(f"pyramid-flow: interrupted, {kept}\n"), errors


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_importing(checkpoint: Path, signum: signal.Signals) -> None:
    process = start(PROMPT, "--model", checkpoint, *SLOW)
    maps = Path(f"/proc/{process.pid}/maps")
    while "torch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    check_interrupted(process, signum)
    assert files_here() == []


def test_interrupted_while_generating(checkpoint: Path) -> None:
    process = start(PROMPT, "--model", checkpoint, *SLOW)
    wait_for(STEPS_MADE, process)
    check_interrupted(process, signal.SIGINT)
    assert files_here() == []


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_what_was_made_before_an_interruption_is_kept_and_can_be_resumed(
    checkpoint: Path, signum: signal.Signals
) -> None:
    options = ["--seed", "3", "--video-steps", "1000", "--num-frames", "17"]
    options += ["-o", "clip.mp4", "--save-latents", "clip.latents"]
    process = start(PROMPT, "--model", checkpoint, *SLOW, "--steps", "1", *options)
    wait_for("1 frames, play clip.partial-", process)
    kept = "1 frame kept in clip.mp4; --resume-latents clip.latents goes on from there"
    check_interrupted(process, signum, kept=kept)
    assert files_here() == ["clip.latents", "clip.mp4"]
    assert read_video("clip.mp4").shape == (1, 512, 512, 3)


@pytest.mark.parametrize(
    "number", [*(pytest.param(number, marks=pytest.mark.slow) for number in (0, 1, 2)), 3]
)
def test_a_second_interruption_loses_nothing(checkpoint: Path, number: int) -> None:
    """At any moment of what follows the first."""
    Path("clip.mp4").write_bytes(b"an earlier video")
    options = ["--video-steps", "1000", "--num-frames", "17", "-o", "clip.mp4"]
    process = start(PROMPT, "--model", checkpoint, *SLOW, "--steps", "1", *options)
    wait_for("1 frames, play clip.partial-", process)
    for _ in range(2 + number):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03 * number)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    (partial,) = set(files_here()) - {"clip.mp4"}
    assert errors.endswith(f"pyramid-flow: interrupted, 1 frame kept in {partial}\n"), errors
    assert len(read_video(partial)) == 1
    assert Path("clip.mp4").read_bytes() == b"an earlier video"


def end_of_endless(process: subprocess.Popen[str], name: str) -> int:
    """Press Ctrl-C, and return how many frames the video has, all of which can be read."""
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    frames = len(read_video(name))
    assert output.startswith(f"{name}: {frames} frames of 64x64, "), output
    return frames


def test_a_live_video_follows_typed_lines_until_ctrl_c_and_resumes(tmp_path: Path) -> None:
    index = QUICK_INDEX | {"num_frames": 25, "known_words": PROMPT.split()}
    model = ["--model", write_tiny_checkpoint(tmp_path / "words", index=index), "--live"]
    Path("clip.mp4").write_bytes(b"an earlier video")
    files = ["-o", "clip.mp4", "--save-latents", "run"]
    process = start(PROMPT, *model, *files, "--seed", "3", stdin=subprocess.PIPE)
    wait_for(" 9 frames, play clip.partial-", process)
    assert process.stdin is not None
    process.stdin.write("\n  a blue whale \n")
    process.stdin.close()  # the last prompt holds
    wait_for("never learned the words: blue whale", process)
    wait_for(r" [2-9]\d frames, play", process)
    process.stdin = None
    assert end_of_endless(process, "clip.mp4") >= 25
    saved = SavedLatents.load("run")
    assert saved.endless and saved.texts[0].prompts == ["a blue whale"]
    assert saved.latents.shape[2] == 3

    assert main(["--resume-latents", "run", *map(str, model), "-o", "rest.gif"]) == 2
    stdin, keyboard = os.pipe()  # at which nobody types
    process = start("--resume-latents", "run", *model, "-o", "rest.mp4", stdin=stdin)
    wait_for(" 8 frames, play rest.partial-", process)
    assert end_of_endless(process, "rest.mp4") % 8 == 0
    os.close(stdin)
    os.close(keyboard)
    assert files_here() == ["clip.mp4", "rest.mp4", "run"]


@pytest.mark.parametrize("latents", ["clip.mp4", "./start.png", "frames/x", "link"])
def test_latents_are_saved_onto_nothing_of_the_run(
    checkpoint: Path, latents: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save("start.png")
    Path("link").symlink_to("start.png")
    output = "frames" if latents.startswith("frames") else "clip.mp4"
    there = files_here()
    options = ["--image", "start.png", "-o", output, "--save-latents", latents]
    assert main([PROMPT, "--model", str(checkpoint), *options]) == 2
    check_complaint(capsys.readouterr().err, about=f"--save-latents {latents!r} is or is in")
    assert files_here() == there


def test_a_name_that_is_too_long(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "z" * 256
    for options in (["-o", f"{long}.mp4"], ["-o", f"{long}/a.mp4"], ["--save-latents", long]):
        assert main([PROMPT, "--model", str(checkpoint), *options]) == 2
        check_complaint(capsys.readouterr().err, about="a name may have 255 bytes")
    assert files_here() == []


def test_a_run_goes_on_from_its_latents(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where all of it is there: the same frames come out again."""
    generate(checkpoint, "--seed", "3", "-o", "first", "--save-latents", "run")
    capsys.readouterr()
    model = ["--model", str(checkpoint), "--device", "cpu", "-o", "second", "--quiet"]
    assert main(["--resume-latents", "run", *model]) == 0
    assert "seed" not in capsys.readouterr().out
    np.testing.assert_array_equal(frames_in("first"), frames_in("second"))
    assert main(["--resume-latents", "run", *model, "--seed", "3"]) == 2
    check_complaint(capsys.readouterr().err, about="--seed")
    Path("text").write_text("no latents")
    assert main(["--resume-latents", "text", *model]) == 2
    check_complaint(capsys.readouterr().err, about="no saved latents")


# ---- steering ---------------------------------------------------------------------------------


def test_a_video_is_extended(checkpoint: Path) -> None:
    """The file has the frames that were given and those that were added."""
    clip = np.random.default_rng(0).integers(0, 256, (12, 100, 80, 3), np.uint8)
    export_to_video(clip, "start.mp4", fps=24)
    base = ["--extend", "start.mp4", "--size", "64x64", "--seed", "3"]
    generate(checkpoint, *base, "--num-frames", "16", "-o", "more.mp4")
    assert read_video("more.mp4").shape == (28, 64, 64, 3)
    generate(checkpoint, *base, "-o", "frames", prompt="")
    assert frames_in("frames").shape == (20, 64, 64, 3)


def test_sound_that_is_not_kept_is_said(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_to_video(np.zeros((24, 64, 64, 3), np.uint8), "silent.mp4")
    sound = ["-f", "lavfi", "-i", "sine=d=1", "-c:v", "copy", "-c:a", "aac"]
    run_ffmpeg(["-i", str(Path("silent.mp4").absolute()), *sound, "sound.mp4"])
    for name, said in (("silent.mp4", False), ("sound.mp4", True)):
        generate(checkpoint, "--extend", name, "--num-frames", "8", "-o", f"longer-{name}")
        assert (f"{name!r} has sound, which is not kept" in capsys.readouterr().err) == said


def test_a_storyboard(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(checkpoint), "--device", "cpu", "--quiet", "--seed", "3"]
    scenes = {"0": PROMPT, "1": {"prompt": "a blue square", "guidance": 5}}
    Path("story.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(scenes).encode())
    assert main(["--storyboard", "story.json", *model, "-o", "story"]) == 0
    generate(checkpoint, "--seed", "3", "-o", "plain")
    story, plain = frames_in("story"), frames_in("plain")
    np.testing.assert_array_equal(story[0], plain[0])
    assert not np.array_equal(story[1:], plain[1:])
    capsys.readouterr()
    for content, complaint in {
        "no json": "no valid JSON",
        "[1]": "an object",
        '{"1": "a"}': "unit 0",
        '{"0": "a", "x": "b"}': "'x'",
        '{"0": {"prompt": "a", "steps": 3}}': "'steps': 3",
        '{"0": "a", "2": {"guidance": true}}': "a number",
        '{"0": "a", "0": "b"}': "twice",
        '{"0": "a", "00": "b"}': "are the same unit",
        '{"0": {"prompt": "a", "guidance": NaN}}': "got nan",
        '{"0": {"prompt": "a", "guidance": 1' + 400 * "0" + "}}": "at most 100",
        '{"0": "a", "2": "b"}': "after the end: the last unit is 1",
    }.items():
        Path("bad.json").write_text(content)
        assert main(["--storyboard", "bad.json", *model]) == 2
        check_complaint(capsys.readouterr().err, about=complaint)


def test_presets_of_memory_are_those_there_are(checkpoint: Path) -> None:
    assert [AUTO, *PRESETS] == list(MEMORY_PRESETS)
    for preset in ("auto", "8GB"):
        generate(checkpoint, "--seed", "3", "--memory", preset, "-o", preset)
    generate(checkpoint, "--seed", "3", "-o", "plain")
    np.testing.assert_array_equal(frames_in("plain"), frames_in("auto"))


def test_the_suffix_of_the_prompt(checkpoint: Path) -> None:
    for name, suffix in {"with": ", sharp", "without": ""}.items():
        generate(checkpoint, "--seed", "3", "--prompt-suffix", suffix, "-o", name)
    assert not np.array_equal(frames_in("with"), frames_in("without"))
