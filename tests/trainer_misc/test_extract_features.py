"""Latents and features of texts, from files to what a training reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import PROJECT_ROOT
from safetensors.torch import load_file
from tiny_checkpoint import write_tiny_checkpoint
from training_files import VARIANT, run_two

from pyramid_dit import FluxTextEncoderWithMask
from pyramid_dit.video_io import export_to_video
from trainer_misc import extract_features, train_dit
from trainer_misc.data import LatentBatches, TextVideoBatches, videos
from trainer_misc.data.latents import read_text_features
from trainer_misc.extract_features import GROUPS, extract
from trainer_misc.options import parse
from video_vae import CausalVideoVAE

TEXTS = ["a red circle", "a blue square", "black", "white on white"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint and four videos of 20 frames."""
    folder = tmp_path_factory.mktemp("source")
    write_tiny_checkpoint(folder / "model", variant=VARIANT)
    rng = np.random.default_rng(0)
    for number in range(len(TEXTS)):
        frames = rng.integers(0, 256, (20, 1, 1, 3), np.uint8).repeat(64, 1).repeat(80, 2)
        export_to_video(list(frames), folder / f"{number}.mp4", 24)
    return folder


@pytest.fixture
def annotations(source: Path, tmp_path: Path) -> Path:
    records = [
        {
            "video": str(source / f"{number}.mp4"),
            "text": text,
            "latent": str(tmp_path / f"latents/{number}.{'pt' if number % 2 else 'safetensors'}"),
            "text_fea": str(tmp_path / f"texts/{number}.{'safetensors' if number % 2 else 'pt'}"),
        }
        for number, text in enumerate(TEXTS)
    ]
    records[2]["frames"] = list(range(9))
    return write(tmp_path / "clips.jsonl", records)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def arguments(what: str, source: Path, annotations: Path, *more: str) -> list[str]:
    given = {
        "what": what,
        "model_path": source / "model",
        "model_dtype": "fp32",
        "anno_file": annotations,
        "width": 64,
        "height": 48,
        "num_frames": 17,
        "batch_size": 3,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + [*more]


def run(*given: Any) -> extract_features.Extraction:
    return extract(parse(None, GROUPS, arguments(*given)))


def test_latents_are_those_that_training_would_make(source: Path, annotations: Path) -> None:
    found = run("latents", source, annotations)
    assert (found.made, found.done) == (4, 0)
    vae = CausalVideoVAE.from_pretrained(source / "model/causal_video_vae").eval()
    batches = LatentBatches(
        annotations, batch_size=1, max_frames=3, text_features=False, channels=4
    )
    assert sorted(batches.buckets) == [(2, 6, 8), (3, 6, 8)]
    raw = TextVideoBatches(annotations, [(64, 48)], 17, batch_size=1)
    clips = {batch["text"][0]: batch["video"] for batch in (raw[number] for number in range(4))}
    for number, text in enumerate(TEXTS):
        pixels = clips[text]
        assert pixels.shape == (1, 3, 9 if number == 2 else 17, 48, 64)
        noise = torch.Generator().manual_seed(number)
        with torch.no_grad():
            expected = vae.encode(pixels).latent_dist.sample([noise])
        path = annotations.parent / f"latents/{number}.{'pt' if number % 2 else 'safetensors'}"
        stored = torch.load(path, weights_only=True) if number % 2 else load_file(path)["latent"]
        torch.testing.assert_close(stored, expected, atol=1e-5, rtol=1e-5)


def test_features_are_those_of_the_encoders(source: Path, annotations: Path) -> None:
    found = run("text", source, annotations)
    assert (found.made, found.done) == (4, 0)
    encoder = FluxTextEncoderWithMask(source / "model")
    names = ("prompt_embed", "prompt_attention_mask", "pooled_prompt_embed")
    folder = annotations.parent
    for number, text in [*enumerate(TEXTS), (-1, "")]:
        path = folder / f"texts/{number}.{'safetensors' if number % 2 else 'pt'}"
        path = folder / "empty_text_feature.pt" if number < 0 else path
        stored = load_file(path) if path.suffix != ".pt" else torch.load(path, weights_only=True)
        for name, expected in zip(names, encoder([text]), strict=True):
            torch.testing.assert_close(stored[name], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("what", ["latents", "text"])
def test_what_is_whole_is_left_and_what_is_damaged_made_again(
    what: str, source: Path, annotations: Path
) -> None:
    run(what, source, annotations)
    folder = annotations.parent / ("latents" if what == "latents" else "texts")
    files = sorted(folder.iterdir())
    content = [path.read_bytes() for path in files]
    times = [path.stat().st_mtime_ns for path in files]
    os.truncate(files[1], 100)
    files[2].unlink()
    found = run(what, source, annotations)
    assert (found.made, found.done) == (2, 2)
    for path, before in zip(files, content, strict=True):
        if path.suffix == ".safetensors":
            assert path.read_bytes() == before
    assert [path.stat().st_mtime_ns for path in (files[0], files[3])] == [times[0], times[3]]


def test_another_size_is_made_again(source: Path, annotations: Path) -> None:
    run("latents", source, annotations)
    found = run("latents", source, annotations, "--height", "64")
    assert (found.made, found.done) == (4, 0)


def test_latents_of_shorter_clips_are_made_again(source: Path, annotations: Path) -> None:
    assert run("latents", source, annotations, "--num_frames", "9").made == 4
    found = run("latents", source, annotations, "--num_frames", "17")
    assert (found.made, found.done) == (3, 1), "the one has no more than 9 frames listed"
    found = run("latents", source, annotations, "--num_frames", "25")
    assert (found.made, found.done) == (0, 4), "the videos have 20"
    assert run("latents", source, annotations, "--num_frames", "9").made == 3


def test_a_video_is_decoded_once_for_several_pictures_of_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [[3], [0], None, list(range(17, 0, -2)), [3, 3, 19], [30]]
    read: list[str] = []

    def read_clip(path: Path, *more: Any, **given: Any) -> np.ndarray:
        read.append(path.name)
        return videos.read_clip(path, *more, **given)

    monkeypatch.setattr(extract_features, "read_clip", read_clip)

    def latents(name: str, lines: int, batch_size: int) -> list[torch.Tensor]:
        """As many as there are."""
        files = [tmp_path / name / f"{number}.safetensors" for number in range(lines)]
        records = [
            {"video": str(source / ("0.mp4" if frames else "1.mp4")), "latent": str(file)}
            | ({"frames": frames} if frames else {})
            for frames, file in zip(listed, files, strict=False)
        ]
        annotations = write(tmp_path / f"{name}.jsonl", records)
        run("latents", source, annotations, "--batch_size", str(batch_size), "--max_skipped", "0.2")
        return [load_file(file)["latent"] for file in files if file.exists()]

    together = latents("together", 5, 5)
    assert sorted(read) == ["0.mp4", "1.mp4"]
    assert [latent.shape[2] for latent in together] == [1, 1, 3, 2, 1]
    for others in (latents("alone", 5, 1), latents("without the last", 6, 6)):
        assert len(others) == 5
        for latent, other in zip(together, others, strict=True):
            torch.testing.assert_close(latent, other, atol=1e-4, rtol=0)


def test_what_cannot_be_used_is_counted(
    source: Path, annotations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [json.loads(line) for line in annotations.open()]
    records[1]["video"] = "nowhere.mp4"
    (tmp_path / "text.mp4").write_text("no video")
    records[3]["video"] = str(tmp_path / "text.mp4")
    records += [
        {"video": records[0]["video"]},
        records[0] | {"frames": [19, 20], "latent": "new.pt"},
    ]
    broken = write(tmp_path / "broken.jsonl", records)
    with pytest.raises(ValueError, match="1 of 6 samples cannot be used .missing file: 1"):
        run("latents", source, broken)
    with caplog.at_level("WARNING"):
        found = run("latents", source, broken, "--max_skipped", "0.7")
    assert found.made + found.done == 2
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "skipped.jsonl").open()]
    assert sorted(kinds) == ["missing column", "missing file", "too short", "unreadable file"]
    assert "4 of 6 samples were skipped (" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num_frames", "16"], "number of frames must be 8n + 1, got 16"),
        (["--width", "63"], "--width must be a multiple of 8, got 63"),
        (["--model_path", "nowhere"], "nowhere"),
        (["--anno_file", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_settings_are_said_in_one_line(
    given: list[str], message: str, source: Path, annotations: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        extract_features.main(arguments("latents", source, annotations, *given))
    text = str(caught.value.code)
    assert message in text and text.startswith("error: ") and "\n" not in text


def test_two_processes_go_on_after_a_kill(source: Path, annotations: Path) -> None:
    given = ["-m", "trainer_misc.extract_features"]
    given += arguments("latents", source, annotations, "--batch_size", "1")
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
    latents = annotations.parent / "latents"
    process = subprocess.Popen([sys.executable, *given], env=environment)
    while not (latents.exists() and any(not p.name.startswith(".") for p in latents.iterdir())):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    run_two(*given)
    whole = run("latents", source, annotations)
    assert (whole.made, whole.done) == (0, 4)


def test_a_training_reads_what_was_made(source: Path, annotations: Path, tmp_path: Path) -> None:
    """The way of the reference: both features, then the autoregressive training."""
    for what in ("latents", "text"):
        run(what, source, annotations, "--height", "64")
    for number in range(4):
        read_text_features(next((tmp_path / "texts").glob(f"{number}.*")))
    given = {
        "model_path": source / "model",
        "anno_file": annotations,
        "empty_text_feature": tmp_path / "empty_text_feature.pt",
        "output_dir": tmp_path / "run",
        "max_frames": 3,
        "steps": 2,
        "num_workers": 0,
        "warmup_steps": 1,
    }
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    train_dit.main([*flags, "--use_temporal_pyramid"])
    assert (tmp_path / f"run/model/{VARIANT}/config.json").is_file()
