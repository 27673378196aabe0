"""What goes through a VAE and comes back: PSNR, and the experiment on real video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import write_tiny_checkpoint

from pyramid_dit.video_io import export_to_video
from trainer_misc import round_trip
from trainer_misc.experiments import real_video
from trainer_misc.round_trip import measured
from video_vae import CausalVideoVAE
from video_vae.round_trip import psnr, through_vae


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model")) / "causal_video_vae"


def moving(frames: int) -> np.ndarray:
    """A texture that moves."""
    texture = np.random.default_rng(0).integers(40, 216, (64, 64 + frames, 3)).astype(np.uint8)
    return np.stack([texture[:, i : i + 64] for i in range(frames)])


def test_psnr_of_known_noise() -> None:
    """A deviation of 1/10 of the range is 20 dB."""
    clip = np.zeros((3, 9, 32, 32))
    noise = 0.2 * np.random.default_rng(0).standard_normal(clip.shape)
    assert psnr(clip + noise, clip, peak=2.0) == pytest.approx(20, abs=0.1)


def test_in_pieces_as_whole(vae: Path) -> None:
    model = CausalVideoVAE.from_pretrained(vae)
    pixels = torch.rand(1, 3, 33, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        whole = model.decode(model.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    torch.testing.assert_close(through_vae(model, pixels), whole, rtol=1e-4, atol=1e-4)


def test_the_command(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_to_video(moving(20), tmp_path / "a.mp4", 24)
    lines = [{"video": "a.mp4"}, {"video": "a.mp4", "frames": list(range(3, 13))}]
    annotations = tmp_path / "a.jsonl"
    annotations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    round_trip.main([str(vae), str(annotations), "--resolution", "64"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("a.mp4: 17 frames, PSNR ")
    assert second.startswith("a.mp4: 9 frames, PSNR ")
    found = list(measured(CausalVideoVAE.from_pretrained(vae), annotations, resolution=64))
    assert f"{found[0]['psnr']:.2f} dB" in first
    annotations.write_text('{"video": "b.mp4"}\n')
    with pytest.raises(SystemExit):
        round_trip.main([str(vae), str(annotations)])
    assert "there is no file" in capsys.readouterr().err


def test_the_experiment_on_real_video(
    vae: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On drawn clips in the place of those that pip fetches; no frame is in both halves."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in real_video.CLIPS:
        export_to_video(moving(44), videos / f"{name}.mp4", 24)
    monkeypatch.setattr(real_video, "RESOLUTION", 64)
    monkeypatch.setattr(real_video, "RECIPE", [*real_video.RECIPE, "--resolution", "64"])
    real_video.main([str(tmp_path), "--quick", "--vae", str(vae)])
    halves = [
        [json.loads(line)["frames"] for line in (videos / file).read_text().splitlines()]
        for file in (real_video.TRAINED, real_video.HELD_BACK)
    ]
    for trained, held_back in zip(*halves, strict=True):
        assert max(trained) < min(held_back) and min(len(trained), len(held_back)) >= 17
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result) == ["before", "stage 1"]
    shown = capsys.readouterr().out
    for name in result:
        assert f"| {name} | {result[name][0]['psnr']:.1f} dB" in shown
