"""The comparison with the official code, beside a stand-in that has its names and little else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import against_official
from benchmarks.against_official import TASKS, make_job
from benchmarks.report import Report, number

LOG = """
import json, pathlib
def log(**entry):
    with pathlib.Path({path!r}).open("a") as file:
        file.write(json.dumps(entry) + "\\n")
"""
TRANSFORMER = """
import torch
from log import log
print("libraries print, too")
class PyramidFluxTransformer(torch.nn.Module):
    def __init__(self, in_channels, num_layers, joint_attention_dim, use_flash_attn=False):
        super().__init__()
        self.layer = torch.nn.Linear(in_channels, in_channels)
    def forward(self, sample, encoder_hidden_states, encoder_attention_mask,
                pooled_projections, timestep_ratio):
        log(what="step", clips=[list(clip.shape) for clip in sample[0]],
            text=list(encoder_hidden_states.shape), tokens=encoder_attention_mask.sum(1).tolist(),
            pooled=list(pooled_projections.shape), timestep=timestep_ratio.tolist(),
            autocast=torch.is_autocast_enabled("cpu"), grad=torch.is_grad_enabled())
        return sample[0][-1]
"""
VAE = """
import torch, types
from log import log
class CausalVideoVAE(torch.nn.Module):
    tiling = False
    def __init__(self, decoder_in_channels, decoder_block_out_channels):
        super().__init__()
    def enable_tiling(self):
        self.tiling = True
    def decode(self, z, temporal_chunk, window_size, tile_sample_min_size):
        log(what="decode", shape=list(z.shape), window=window_size, tile=tile_sample_min_size,
            tiling=self.tiling, temporal_chunk=temporal_chunk)
        return types.SimpleNamespace(sample=z)
"""
PIPELINE = """
import torch
from log import log
def build_pyramid_dit(*arguments, **options):
    raise FileNotFoundError
build_text_encoder = build_pyramid_dit
class CausalVideoVAE:
    from_pretrained = build_pyramid_dit
class PyramidDiTForVideoGeneration:
    def __init__(self, model_path, model_dtype, model_name):
        self.dit = build_pyramid_dit(model_name, model_path, torch.float32)
        self.text_encoder = build_text_encoder(model_name, model_path, torch.float32)
        self.vae = CausalVideoVAE.from_pretrained(model_path)
    def generate(self, prompt, height, width, temp, num_inference_steps, video_num_inference_steps,
                 guidance_scale, video_guidance_scale, output_type, save_memory):
        embeds, mask, pooled = self.text_encoder([prompt], "cpu")
        singular = torch.eye(4) * (4 / 3) - 1 / 3
        torch.distributions.MultivariateNormal(torch.zeros(4), singular).sample()
        log(what="video", size=[width, height], temp=temp, tiling=self.vae.tiling,
            steps=[num_inference_steps, video_num_inference_steps], embeds=list(embeds.shape))
        return ["frame"] * (8 * (temp - 1) + {extra})
"""


def write_stand_in(folder: Path, *, extra: int = 1) -> Path:
    """Write packages with the names that the official repository has; returns their log."""
    files = {
        "log.py": LOG.format(path=str(folder / "log.jsonl")),
        "pyramid_dit/__init__.py": "from .pyramid_dit_for_video_gen_pipeline import *",
        "pyramid_dit/flux_modules.py": TRANSFORMER,
        "pyramid_dit/pyramid_dit_for_video_gen_pipeline.py": PIPELINE.replace(
            "{extra}", str(extra)
        ),
        "video_vae/__init__.py": "",
        "video_vae/modeling_causal_vae.py": VAE,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "log.jsonl"


def run(reference: Path, *arguments: str) -> None:
    command = ["--tiny", "--reference", str(reference), "--python", sys.executable]
    against_official.main([*command, "--repeats", "1", *arguments])


def test_both_sides_do_all_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_stand_in(tmp_path / "official")
    path = tmp_path / "found.json"
    run(log.parent, "--bf16", "--json", str(path))
    found = Report.load(path)
    assert found.markdown() in capsys.readouterr().out
    assert len(found.rows) == 2 * len(TASKS)
    for official, ours in zip(found.rows[::2], found.rows[1::2], strict=True):
        assert (official["way"], ours["way"]) == ("official", "ours")
        assert official["what"] == ours["what"]
        ratio = number(official, "median, s") / number(ours, "median, s")
        assert number(ours, "speed-up") == pytest.approx(ratio)

    job = make_job(tiny=True, bf16=True)
    warm_up, small, large, decode, video = map(json.loads, log.read_text().splitlines())
    for step, name in ((warm_up, "warm-up"), (small, "384p"), (large, "768p")):
        assert step["clips"] == job["steps"][name]
        assert (step["text"], step["pooled"]) == ([2, 128, 24], [2, 16])
        assert (step["tokens"], step["timestep"]) == ([48, 60], [500, 500])
        assert (step["autocast"], step["grad"]) == (name != "warm-up", False)
    assert small["clips"] == [[2, 4, 13, 2, 2], [2, 4, 1, 4, 4], [2, 4, 1, 8, 8], [2, 4, 1, 8, 8]]
    assert decode["shape"] == [1, 4, 2, 8, 8]
    assert (decode["window"], decode["tile"], decode["tiling"]) == (1, 256, True)
    assert video["size"] == [128, 128] and video["temp"] == 2 and video["tiling"]
    assert video["steps"] == [[1, 1, 1]] * 2


@pytest.mark.slow
def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    log = write_stand_in(tmp_path / "long", extra=7)
    with pytest.raises(RuntimeError, match=r"(?s)official side failed.*15 frames, not 9"):
        run(log.parent, "--only", "video")
    log = write_stand_in(tmp_path / "incomplete")
    (log.parent / "video_vae" / "modeling_causal_vae.py").write_text("import no_such_library")
    with pytest.raises(RuntimeError, match=r"(?s)official side failed.*no_such_library"):
        run(log.parent)


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert f"{tmp_path} has no folder pyramid_dit" in capsys.readouterr().err
    write_stand_in(tmp_path)
    for arguments, message in (
        (["--python", "no-such-python"], "there is no interpreter no-such-python"),
        (["--device", "cuda"], "compared on the CPU"),
    ):
        with pytest.raises(SystemExit):
            run(tmp_path, *arguments)
        assert message in capsys.readouterr().err
