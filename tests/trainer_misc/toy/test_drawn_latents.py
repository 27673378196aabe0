"""Latents of drawn shapes, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden import PROJECT_ROOT
from safetensors.torch import load_file

from trainer_misc.toy import latents

VAE = PROJECT_ROOT / "pyramid_dit/toy/causal_video_vae"


def test_clips_are_as_long_as_they_should_be(tmp_path: Path) -> None:
    given = ["--vae", str(VAE), "--output", str(tmp_path / "out"), "--device", "cpu"]
    latents.main([*given, "--pictures", "1", "--clips", "2", "--num-frames", "17"])
    for name, shapes in (("pictures", [(1, 8, 1, 16, 16)]), ("clips", [(1, 8, 3, 16, 16)] * 2)):
        lines = [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").open()]
        files = [load_file(tmp_path / "out" / line["latent"]) for line in lines]
        assert [tuple(file["latent"].shape) for file in files] == shapes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--pictures", "-1"], "--pictures must be"),
        (["--clips", "-1"], "--clips must be"),
        (["--pictures", "0", "--clips", "0"], "--pictures and --clips together must be"),
        (["--num-frames", "50"], "--num-frames is 50, must be 8n + 1 in 9..97"),
    ],
)
def test_wrong_settings_are_named(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        latents.main(["--vae", str(VAE), "--output", str(tmp_path / "out"), *given])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
