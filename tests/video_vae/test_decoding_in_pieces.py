"""A stream's frames are taken up the decoder in pieces: the same pixels, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_checkpoint import VAE_CONFIG
from torch import Tensor, nn

from video_vae import CausalVideoVAE
from video_vae.memory import decode_memory
from video_vae.temporal_context import Stream

FRAME = 8 * 64 * 48
"""Values of a frame at full resolution: channels, height, width."""


@pytest.fixture
def vae() -> CausalVideoVAE:
    torch.manual_seed(0)
    model = CausalVideoVAE(**VAE_CONFIG).requires_grad_(False)
    for parameter in model.parameters():  # what starts at zero would hide mistakes
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(1, 4, 4, 8, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("window", [1, 2, 9])
@pytest.mark.parametrize("values", [1, FRAME // 4, 2 * FRAME, 3 * FRAME])
@torch.no_grad()
def test_pieces_change_nothing(
    values: int, window: int, vae: CausalVideoVAE, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = vae.decode(latents).sample
    most: list[int] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        most.append(inputs[0].shape[2])

    vae.decoder.up_blocks[-1].register_forward_pre_hook(note)
    monkeypatch.setattr("video_vae.encoder_decoder.PIECE_VALUES", values)
    pixels = vae.decode(latents, temporal_chunk=True, window_size=window).sample
    torch.testing.assert_close(pixels, expected, rtol=1e-4, atol=1e-5)
    assert max(most) == max(1, values // FRAME)
    assert sum(most) == pixels.shape[2] == 25


@torch.no_grad()
def test_a_first_frame_meets_one_tap_in_time(vae: CausalVideoVAE, latents: Tensor) -> None:
    seen: list[bool] = []

    def note(module: nn.Module, args: Any, options: dict[str, Any]) -> None:
        seen.append(options["alone"])

    for module in vae.decoder.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(note, with_kwargs=True)
    stream = Stream()
    first = vae.decode_chunk(latents[:, :, :1], stream)
    assert first.shape[2] == 1 and all(seen)
    stream.advance()
    seen.clear()
    vae.decode_chunk(latents[:, :, 1:2], stream)
    carried = [kernel for kernel in seen if not kernel]
    assert len(carried) > 0.8 * len(seen)  # all but those of extent one
    torch.testing.assert_close(first, vae.decode(latents[:, :, :1]).sample)


def test_the_estimate_knows_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(values: int) -> int:
        monkeypatch.setattr("video_vae.encoder_decoder.PIECE_VALUES", values)
        return decode_memory(VAE_CONFIG_FULL, latents=2, height=64, width=48)

    whole = estimate(2**40)
    assert estimate(2 * 64 * FRAME) < whole
    assert estimate(1) < 0.5 * whole


VAE_CONFIG_FULL = dict(CausalVideoVAE(**VAE_CONFIG).config)
