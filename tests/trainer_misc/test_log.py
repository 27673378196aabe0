"""The lines of a run's log, in the file and for trackers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import linear_run
import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer_misc.log import SAMPLES, Log
from trainer_misc.loop_config import LoopConfig

RANKS = """
import sys
from pathlib import Path
from trainer_misc.log import SAMPLES, Log
from trainer_misc.loop_config import LoopConfig, new_accelerator

config = LoopConfig(output=Path(sys.argv[1]), steps=1, learning_rate=1.0, report_to="tensorboard")
accelerator = new_accelerator(config, cpu=True)
rank = accelerator.process_index
log = Log(config, accelerator)
with log.open():
    log.add({"loss": 1.0 + rank, f"stage_{rank}": 5.0 + rank, SAMPLES: 4})
    log.write(1)
    log.note(1, {"validation_loss": 3.0 * rank})
log.note(2, {"afterwards": 4.0 * rank})  # as what is exported then is gathered from all
accelerator.end_training()
"""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def test_figures_are_means_over_steps_and_processes(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    subprocess.run([*command, "2", str(script), str(tmp_path)], check=True, timeout=300)
    step, validation, afterwards = lines(tmp_path)
    assert (step["loss"], step["stage_0"], step["stage_1"]) == (1.5, 5, 6)
    assert step["samples_per_second"] > 0 and validation["validation_loss"] == 1.5
    assert afterwards["afterwards"] == 2


def test_samples_and_waiting_are_those_since_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("trainer_misc.log.time.monotonic", lambda: now)
    log = Log(LoopConfig(output=tmp_path, steps=1, learning_rate=1.0), Accelerator(cpu=True))
    with log.open():
        for step, waited in ((1, 2.0), (2, 0.5)):
            for loss in (2.0, 4.0):
                with log.waiting():
                    now += waited / 2
                log.add({"loss": loss * step, SAMPLES: 3})
            now += 4.0 - waited
            log.note(step, {"validation_loss": 1.0})
            log.write(step, lr=0.5)
    first, second = (line for line in lines(tmp_path) if "lr" in line)
    assert first == {
        **{"step": 1, "seconds": 4.0, "loss": 3.0, "lr": 0.5},
        **{"samples_per_second": 1.5, "waiting": 0.5},
    }
    assert second["seconds"] == 8.0 and second["waiting"] == 0.125 and second["loss"] == 6.0


def test_figures_reach_the_tracker(tmp_path: Path) -> None:
    loop = linear_run.new_loop(tmp_path, 3, report_to="tensorboard")
    linear_run.train(loop)
    (events,) = (tmp_path / "log").glob("*/events.out.*")
    found = EventAccumulator(str(events.parent)).Reload().Scalars("error")
    expected = [line["error"] for line in lines(tmp_path)]
    assert [entry.step for entry in found] == [1, 2, 3]
    torch.testing.assert_close(
        torch.tensor([entry.value for entry in found]), torch.tensor(expected)
    )
