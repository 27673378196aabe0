"""The VAE's training losses against recorded ones of the reference."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_cases, load_golden
from torch import Tensor

from video_vae import CausalVideoVAE, CausalVideoVAELossWrapper
from video_vae.lpips import LPIPS

CASES = golden_cases("vae_loss", "cases")
LOG = {
    "logvar": "logvar",
    "kl_loss": "kl",
    "nll_loss": "nll",
    "rec_loss": "mse",
    "perception_loss": "lpips",
    "d_weight": "adversarial_weight",
    "g_loss": "adversarial",
    "disc_loss": "discriminator",
    "logits_real": "logits_real",
    "logits_fake": "logits_fake",
}
"""Names in the reference's log, and in ours."""
VALUE, GRADIENT = 1e-5, 3e-4
"""Relative tolerance of values, and of norms of gradients, which rounding moves further."""


def values_by_formula(count: int, number: int) -> np.ndarray:
    """`count` values in [-1, 1) of the tensor of that number, as vae_loss.json says."""
    x = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(7919 * number)
    for shift, factor in ((None, 0x9E3779B1), (16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        if shift is not None:
            x ^= x >> np.uint64(shift)
        if factor is not None:
            x = (x * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return x / 2.0**31 - 1


def weights_by_formula(description: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict of tensors of the names and shapes of `description`."""
    state = {}
    pairs = zip(description["keys"], description["shapes"], strict=True)
    for number, (name, shape) in enumerate(pairs):
        scale = 0.1 if len(shape) == 1 else (6 / prod(shape[1:])) ** 0.5
        values = values_by_formula(prod(shape), number) * scale
        values = np.abs(values) if "lin" in name else values
        state[name] = torch.from_numpy(values).float().view(shape)
    return state


@pytest.fixture(scope="module")
def networks() -> dict[str, dict[str, Tensor]]:
    """State dicts of LPIPS and of the discriminator, the latter with biases before norms."""
    description, _ = load_golden("vae_loss")
    lpips = LPIPS().state_dict() | weights_by_formula(description["lpips"])
    return {"lpips": lpips, "discriminator": weights_by_formula(description["discriminator"])}


def norm(module: torch.nn.Module) -> float:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return float(torch.stack([g.double().norm() for g in gradients]).norm())


@pytest.mark.parametrize(("index", "case"), CASES)
def test_losses_golden(
    index: int,
    case: dict[str, Any],
    networks: dict[str, dict[str, Tensor]],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    description, tensors = load_golden("vae_loss")
    vae = CausalVideoVAE(**description["vae_config"])
    prefix = "vae."
    vae.load_state_dict(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    )
    torch.save(networks["lpips"], tmp_path / "vgg_lpips.pth")
    weights = ("kl_weight", "pixelloss_weight", "perceptual_weight", "disc_weight")
    options = {name: case[name] for name in ("disc_start", "logvar_init", *weights)}
    wrapper = CausalVideoVAELossWrapper(
        vae,
        "fp32",
        **options,
        freeze_encoder=case.get("freeze_encoder", False),
        load_loss_module=True,
        lpips_ckpt=tmp_path / "vgg_lpips.pth",
    ).eval()
    assert wrapper.loss is not None and wrapper.loss.discriminator is not None
    wrapper.loss.discriminator.load_state_dict(networks["discriminator"])
    noise = tensors[f"{index}.posterior.noise"]
    monkeypatch.setattr("video_vae.posterior.randn_tensor", lambda shape, **_: noise.view(shape))

    loss, discriminator_loss, log = wrapper(tensors[f"{index}.input"], case["step"], [case["kind"]])
    loss.backward()

    result = case["result"]
    recorded = dict(result["log"])
    # the total holds the adversarial weight, a ratio of two norms of gradients
    adversarial = abs(recorded["d_weight"] * recorded["g_loss"])
    total_error = VALUE * abs(result["total"]) + GRADIENT * adversarial
    assert loss.item() == pytest.approx(result["total"], abs=total_error, rel=0)
    assert norm(vae) == pytest.approx(result["vae_grad_norm"], rel=GRADIENT)
    logvar = wrapper.loss.logvar
    assert logvar.grad is not None
    assert logvar.grad.item() == pytest.approx(result["logvar_grad"], rel=GRADIENT)
    if discriminator_loss is None:
        assert result["disc"] is None and result["disc_grad_norm"] is None
    else:
        discriminator_loss.backward()
        assert discriminator_loss.item() == pytest.approx(result["disc"], rel=VALUE)
        assert norm(wrapper.loss.discriminator) == pytest.approx(
            result["disc_grad_norm"], rel=GRADIENT
        )
    assert recorded.pop("total_loss") == result["total"] and log["loss"] == loss.detach()
    assert recorded.pop("disc_factor") == float(discriminator_loss is not None)
    assert recorded.keys() <= LOG.keys()
    for name, value in recorded.items():
        # before the discriminator starts, ours has no such entry, the reference a zero
        tolerance = GRADIENT if name == "d_weight" else VALUE
        assert float(log.get(LOG[name], 0.0)) == pytest.approx(value, rel=tolerance), name
