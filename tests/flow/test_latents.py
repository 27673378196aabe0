"""The spatial pyramid."""

from __future__ import annotations

import pytest
import torch

from pyramid_dit.flow.latents import (
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
