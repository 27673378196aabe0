"""Normalization of latents, bytes, and the checks of sizes and lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pyramid_dit.inputs import (
    check_size,
    fit_image,
    frames_of,
    rgb_image,
    temp_of,
    temp_of_seconds,
)
from pyramid_dit.latent_codec import (
    RELEASED_STATISTICS,
    FrameStatistics,
    LatentStatistics,
    images_to_pixels,
    to_bytes,
)

PER_CHANNEL = LatentStatistics(
    FrameStatistics(shift=[0.0, 1.0, -2.0], scale=2.0),
    FrameStatistics(shift=0.5, scale=[1.0, 0.5, 0.25]),
)


@pytest.mark.parametrize("statistics", [PER_CHANNEL, *RELEASED_STATISTICS.values()])
@pytest.mark.parametrize("frames", [1, 4])
def test_normalization_is_undone(statistics: LatentStatistics, frames: int) -> None:
    z = torch.randn(2, 3, frames, 4, 5)
    copy = z.clone()
    x = statistics.normalize(z)
    torch.testing.assert_close(statistics.denormalize(x), z)
    assert torch.equal(z, copy)


def test_released_statistics() -> None:
    x = RELEASED_STATISTICS["pyramid_flux"].normalize(torch.zeros(1, 16, 2, 1, 1))
    torch.testing.assert_close(x[0, 0, :, 0, 0], torch.tensor([0.04 / 1.8726, 0.2343 / 3.0986]))
    x = RELEASED_STATISTICS["pyramid_mmdit"].normalize(torch.zeros(1, 16, 2, 1, 1))
    torch.testing.assert_close(x[0, 0, :, 0, 0], torch.tensor([-0.149 / 1.8415, 0.2343 / 3.0986]))


def test_statistics_of_another_number_of_channels() -> None:
    with pytest.raises(ValueError, match="3 channels for latents of 4"):
        PER_CHANNEL.normalize(torch.zeros(1, 4, 2, 1, 1))


def test_bytes_are_truncated_and_clamped() -> None:
    values = torch.tensor([-2.0, -1.0, -0.001, 0.0, 0.9999, 1.0, 7.0])
    video = values.view(1, 1, -1, 1, 1).expand(1, 3, -1, 1, 1)
    assert to_bytes(video)[0, :, 0, 0, 0].tolist() == [0, 0, 127, 127, 254, 255, 255]


def test_images_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    video = images_to_pixels([Image.fromarray(pixels)])
    assert video.shape == (1, 3, 1, 8, 16)
    assert np.abs(to_bytes(video)[0, 0].numpy().astype(int) - pixels).max() <= 1


def test_frames_and_latent_frames() -> None:
    assert [frames_of(temp) for temp in (1, 16, 31)] == [1, 121, 241]
    assert [temp_of(frames) for frames in (1, 121, 241)] == [1, 16, 31]
    assert [temp_of_seconds(seconds) for seconds in (0.01, 5, 10, 4)] == [1, 16, 31, 13]
    with pytest.raises(ValueError, match="49 and 57"):
        temp_of(50)
    for bad in (0, -7):
        with pytest.raises(ValueError, match="at least 1"):
            temp_of(bad)
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0"):
            temp_of_seconds(seconds)


def test_released_sizes_fit() -> None:
    for width, height in ((640, 384), (1280, 768), (768, 1280), (1024, 1024)):
        check_size(height, width, 64)
    check_size(int(np.int64(64)), np.int64(128), 64)


def test_what_is_transparent_shows_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert [rgb_image(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_fitting_an_image() -> None:
    image = Image.new("L", (300, 100), 0)
    image.paste(200, (100, 0, 200, 100))
    fitted = fit_image(image, 64, 64)
    assert (fitted.size, fitted.mode) == ((64, 64), "RGB")
    assert np.asarray(fitted)[:, 2:-2].min() > 190
    turned = Image.new("RGB", (64, 128))
    turned.getexif()[0x0112] = 6  # the camera was held upright
    assert fit_image(turned, 128, 64).size == (128, 64)
