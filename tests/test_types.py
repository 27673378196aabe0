"""What mypy says of a user's script: arguments that do not exist, or are of the wrong kind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from golden import PROJECT_ROOT

pytest.importorskip("mypy")

LIBRARIES = "diffusers huggingface_hub numpy PIL safetensors torch tqdm transformers".split()
"""Followed, their imports would take a minute; here they are `Any`."""

HEAD = """\
from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline

def use(model: PyramidDiTForVideoGeneration, pipe: PyramidFlowPipeline) -> None:
"""
COMMON_RIGHT = [
    'prompts={0: "a", 3: "b"}, guidance_scales={3: 5.0}, prompt_suffix=""',
    '"a", num_inference_steps=[4, 4, 4], guidance_scale=7, output_type="np", save_memory=False',
    "prompt_embeds=None, latents=None",
]
COMMON_WRONG = [
    '"a", secnds=2',
    '"a", output_type=3',
    '"a", prompts="b"',
    '"a", prompt_suffix=1',
    '"a", guidance_scale="high"',
]
OPTIONS_RIGHT = ['"a", seed=1, seconds=2.0', '["a", "b"], seed=[1, 2], temp=3', '"a", num_frames=9']
OPTIONS_WRONG = ['"a", seed="x"', '"a", seconds="2"', '"a", temp=1.5']


CALLS = [
    f"model.{name}"
    for start in ("generate", "stream")
    for name in (start, f"{start}_i2v", f"{start}_v2v")
] + ["pipe"]


def test_mypy_reports_wrong_calls_and_no_others(tmp_path: Path) -> None:
    lines, expected = HEAD.splitlines(), set()
    for call in CALLS:
        by_option = call != "pipe"  # which follows diffusers: a generator, and a number of frames
        right = COMMON_RIGHT + (OPTIONS_RIGHT if by_option else ['"a", num_frames=9'])
        wrong = COMMON_WRONG + (OPTIONS_WRONG if by_option else ['"a", num_frames="9"'])
        lines += [f"    {call}({given})" for given in right]
        expected |= {*range(len(lines) + 1, len(lines) + 1 + len(wrong))}
        lines += [f"    {call}({given})" for given in wrong]
    script = tmp_path / "script.py"
    script.write_text("\n".join(lines) + "\n")
    config = tmp_path / "mypy.ini"
    skipped = ",".join(f"{name}.*" for name in LIBRARIES)
    config.write_text(
        f"[mypy]\nmypy_path = {PROJECT_ROOT}\nignore_missing_imports = True\n"
        f"[mypy-{skipped}]\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(config)]
    command += ["--cache-dir", str(tmp_path / "cache"), str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    reported = {int(line) for line in re.findall(r"^script\.py:(\d+): error", done.stdout, re.M)}
    assert reported == expected, done.stdout
