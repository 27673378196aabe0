"""The spatial pyramid, and the normalization of latents."""

from __future__ import annotations

import pytest
import torch

from pyramid_dit.checkpoints.architectures import ARCHITECTURES
from pyramid_dit.flow.latents import (
    FrameStatistics,
    LatentStatistics,
    halve_latents,
    halve_noise,
    latent_pyramid,
    noise_pyramid,
    upsample_nearest,
)


def test_halving_is_the_mean_of_each_block():
    x = torch.randn(2, 3, 5, 8, 12)
    blocks = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    torch.testing.assert_close(halve_latents(x), blocks.mean((-3, -1)))


def test_halving_undoes_upsampling():
    x = torch.randn(2, 3, 5, 8, 12)
    upsampled = upsample_nearest(x)
    assert upsampled.shape == (2, 3, 5, 16, 24)
    assert torch.equal(upsampled[..., ::2, 1::2], x)
    torch.testing.assert_close(halve_latents(upsampled), x)


def test_frames_are_independent():
    x = torch.randn(2, 3, 5, 8, 8)
    for function in (halve_latents, halve_noise, upsample_nearest):
        torch.testing.assert_close(function(x)[:, :, 1:3], function(x[:, :, 1:3]))


def test_pyramids_run_from_the_lowest_resolution_to_the_given_one():
    x = torch.randn(1, 2, 3, 16, 24)
    for pyramid in (latent_pyramid, noise_pyramid):
        levels = pyramid(x, 3)
        assert [tuple(level.shape[3:]) for level in levels] == [(4, 6), (8, 12), (16, 24)]
        assert levels[-1] is x
    torch.testing.assert_close(latent_pyramid(x, 3)[0], halve_latents(halve_latents(x)))


def test_halved_noise_stays_white():
    noise = torch.randn(1, 1, 1, 2048, 2048, generator=torch.Generator().manual_seed(0))
    level = noise_pyramid(noise, 3)[0].flatten(2)
    neighbors = torch.stack([level[..., :-1], level[..., 1:]]).reshape(2, -1)
    torch.testing.assert_close(torch.cov(neighbors), torch.eye(2), rtol=0, atol=0.01)


def test_arguments_are_not_modified():
    x = torch.randn(1, 2, 3, 8, 8)
    copy = x.clone()
    latent_pyramid(x, 2)
    noise_pyramid(x, 2)
    upsample_nearest(x)
    assert torch.equal(x, copy)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="must be even to be halved, got 6x5"):
        halve_latents(torch.zeros(1, 1, 1, 6, 5))
    with pytest.raises(ValueError, match="must be even"):
        latent_pyramid(torch.zeros(1, 1, 1, 6, 8), 3)
    with pytest.raises(ValueError, match=r"expected latents \[b, c, t, h, w\]"):
        upsample_nearest(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="stages must be at least 1, got 0"):
        latent_pyramid(torch.zeros(1, 1, 1, 8, 8), 0)


# ---- statistics -------------------------------------------------------------------------------

PER_CHANNEL = LatentStatistics(
    FrameStatistics(shift=[0.0, 1.0, -2.0], scale=2.0),
    FrameStatistics(shift=0.5, scale=[1.0, 0.5, 0.25]),
)


@pytest.mark.parametrize(
    "statistics", [PER_CHANNEL, *(entry.released_statistics for entry in ARCHITECTURES.values())]
)
@pytest.mark.parametrize("frames", [1, 4])
def test_normalization_is_undone(statistics: LatentStatistics, frames: int) -> None:
    z = torch.randn(2, 3, frames, 4, 5)
    copy = z.clone()
    x = statistics.normalize(z)
    torch.testing.assert_close(statistics.denormalize(x), z)
    assert torch.equal(z, copy)


def test_released_statistics() -> None:
    x = ARCHITECTURES["pyramid_flux"].released_statistics.normalize(torch.zeros(1, 16, 2, 1, 1))
    torch.testing.assert_close(x[0, 0, :, 0, 0], torch.tensor([0.04 / 1.8726, 0.2343 / 3.0986]))
    x = ARCHITECTURES["pyramid_mmdit"].released_statistics.normalize(torch.zeros(1, 16, 2, 1, 1))
    torch.testing.assert_close(x[0, 0, :, 0, 0], torch.tensor([-0.149 / 1.8415, 0.2343 / 3.0986]))


def test_statistics_of_another_number_of_channels() -> None:
    with pytest.raises(ValueError, match="3 channels for latents of 4"):
        PER_CHANNEL.normalize(torch.zeros(1, 4, 2, 1, 1))
