"""What the reference's training scripts take from `trainer_misc`, beside its processes."""

from __future__ import annotations

import builtins
import logging
from argparse import Namespace
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import trainer_misc
from trainer_misc import (
    constant_scheduler,
    cosine_scheduler,
    create_optimizer,
    setup_for_distributed,
)

REPLACED = {
    "NativeScalerWithGradNormCount": "trainer_misc.train_dit",
    "all_to_all": "to_heads",
    "auto_load_model": "trainer_misc.train_dit",
    "save_model": "trainer_misc.train_vae",
    "train_one_epoch": "trainer_misc.train_vae",
    "train_one_epoch_with_fsdp": "trainer_misc.train_dit",
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_has_another_place_says_where(name: str) -> None:
    with pytest.raises(ImportError, match=REPLACED[name]) as error:
        exec(f"from trainer_misc import {name}")
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_name_of_nobody_s() -> None:
    assert not hasattr(trainer_misc, "nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from trainer_misc import nothing")


# ---- optimizer and schedules ------------------------------------------------------------------


def test_optimizer_of_the_command_line() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
    model[2].requires_grad_(False)
    args = Namespace(
        opt="adamw", lr=5e-5, weight_decay=1e-4, opt_eps=1e-6, opt_beta1=0.9, opt_beta2=0.95
    )
    optimizer = create_optimizer(args, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    matrices, others = optimizer.param_groups
    assert [p.shape for p in matrices["params"]] == [(3, 2)] and matrices["weight_decay"] == 1e-4
    assert len(others["params"]) == 3 and others["weight_decay"] == 0
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (5e-5, (0.9, 0.95), 1e-6)
    args.opt_betas = [0.5, 0.6]
    assert create_optimizer(args, model).defaults["betas"] == (0.5, 0.6)
    args = Namespace(lr=1e-4, weight_decay=0.0, opt_betas=None)
    assert create_optimizer(args, model).defaults["betas"] == (0.9, 0.999)
    with pytest.raises(ValueError, match="opt is 'sgd'; 'adamw' is allowed"):
        create_optimizer(Namespace(opt="sgd", lr=1.0, weight_decay=0.0), model)


def test_schedules() -> None:
    constant = constant_scheduler(5e-5, 3, 10, warmup_epochs=1, start_warmup_value=1e-6)
    assert constant.shape == (30,) and constant[0] == 1e-6
    np.testing.assert_allclose(np.diff(constant[:10], 2), 0, atol=1e-12)  # a straight line
    np.testing.assert_allclose(constant[9:], 5e-5)
    steps = constant_scheduler(1.0, 3, 10, warmup_epochs=1, warmup_steps=5)
    np.testing.assert_allclose(steps[:6], [0, 0.25, 0.5, 0.75, 1, 1])

    cosine = cosine_scheduler(2.0, 1.0, 4, 10)
    assert cosine.shape == (40,) and cosine[0] == 2 and cosine[20] == pytest.approx(1.5)
    assert (np.diff(cosine) < 0).all() and cosine[-1] == pytest.approx(1.0, abs=2e-3)
    warmed = cosine_scheduler(2.0, 1.0, 4, 10, 1, 0.5)
    assert warmed[0] == 0.5 and warmed[9] == 2 and warmed[10] == 2 and warmed[25] == 1.5
    assert cosine_scheduler(2.0, 1.0, 1, 10, warmup_steps=100).shape == (10,)


# ---- output of many processes -----------------------------------------------------------------


@pytest.fixture
def speaking() -> Iterator[None]:
    printing = builtins.print
    yield
    builtins.print = printing
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("speaking")
def test_one_process_speaks(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("trainer_misc.test")
    setup_for_distributed(False)
    print("hidden")
    print("forced", "text", sep="-", force=True)  # type: ignore[call-overload]
    logger.info("hidden")
    logger.warning("a warning")
    assert capsys.readouterr().out == "forced-text\n"
    assert caplog.messages == ["a warning"]
    setup_for_distributed(True)  # once more
    print("shown")
    print("forced", force=True)  # type: ignore[call-overload]
    logger.info("shown")
    assert capsys.readouterr().out == "shown\nforced\n" and caplog.messages[-1] == "shown"
