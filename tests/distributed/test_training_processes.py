"""Training with accelerate's DDP and with FSDP, in processes that torchrun starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from golden import PROJECT_ROOT
from tiny_checkpoint import DIT_CONFIGS, write_tiny_checkpoint

PROCESSES = 2
TIMEOUT = 600  # generous: importing the libraries takes long on a busy machine


def test_loss_and_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    for name in DIT_CONFIGS:
        write_tiny_checkpoint(tmp_path / name, name)
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    done = subprocess.run(
        [sys.executable, *command, str(PROJECT_ROOT / "tests/training_ranks.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(PROCESSES)]
    assert len(reports[0]) == 20
    for errors in reports:
        assert {case: error for case, error in errors.items() if not error < 1e-5} == {}
