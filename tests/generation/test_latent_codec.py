"""Bytes, decoding and encoding, and the checks of sizes and lengths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import LATENT_CHANNELS, VAE_CONFIG
from torch import Tensor

from pyramid_dit.checkpoints.architectures import ARCHITECTURES
from pyramid_dit.checks import check_size
from pyramid_dit.flow.sizes import frames_of, temp_of, temp_of_seconds
from pyramid_dit.generation.latent_codec import (
    DecodeSizes,
    FrameDecoder,
    can_stream,
    decode_latents,
    encode_clip,
    to_bytes,
    to_floats,
)
from pyramid_dit.media.images import fit_image, image_pixels
from pyramid_dit.media.rgb import rgb_image
from video_vae import CausalVideoVAE
from video_vae.memory import decode_memory


def test_bytes_are_truncated_and_clamped() -> None:
    values = torch.tensor([-2.0, -1.0, -0.001, 0.0, 0.9999, 1.0, 7.0])
    video = values.view(1, 1, -1, 1, 1).expand(1, 3, -1, 1, 1)
    assert to_bytes(video)[0, :, 0, 0, 0].tolist() == [0, 0, 127, 127, 254, 255, 255]


def test_images_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    video = image_pixels([Image.fromarray(pixels)])
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


def neighbors_of_whole_levels() -> Tensor:
    """Every float32 near a pixel that is a whole number of 255ths, and noise."""
    levels = torch.arange(-2, 258, dtype=torch.float64)
    pixels = [((levels - 127.5) / 127.5).float()]
    for direction in (-2.0, 2.0):
        near = pixels[0]
        for _ in range(4):
            near = torch.nextafter(near, torch.tensor(direction))
            pixels.append(near)
    noise = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    return torch.cat([*pixels, noise, torch.tensor([0.0, 1.0, -1.0, 7.0, -7.0])])


def test_floats_are_truncated_to_the_very_bytes() -> None:
    pixels = neighbors_of_whole_levels()
    video = pixels[None, None, None, None, :].expand(1, 3, 17, 1, -1)
    floats, bytes = to_floats(video), to_bytes(video)
    assert floats.dtype == torch.float32 and floats.shape == bytes.shape
    assert floats.min() == 0 and floats.max() == 1
    expected = ((pixels.double() + 1) / 2).clamp(0, 1)[:, None]
    assert (floats[0, 0, 0].double() - expected).abs().max() < 1e-6
    for values in (floats, floats.double()):
        assert torch.equal((values * 255).to(torch.uint8), bytes)
        assert np.array_equal((values.numpy() * 255).astype(np.uint8), bytes.numpy())
    with pytest.raises(FloatingPointError, match="not finite"):
        to_floats(video * torch.nan)


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


# ---- decoding ---------------------------------------------------------------------------------

CPU = torch.device("cpu")
STATISTICS = ARCHITECTURES["pyramid_flux"].released_statistics
SMALL = DecodeSizes(window=1, tile=64)


@pytest.fixture
def vae() -> CausalVideoVAE:
    torch.manual_seed(0)
    return CausalVideoVAE(**VAE_CONFIG).eval().requires_grad_(False)


def normalized(frames: int, height: int = 4, width: int = 4, *, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, LATENT_CHANNELS, frames, height, width, generator=generator)


def whole(vae: CausalVideoVAE, latents: Tensor) -> Tensor:
    return to_bytes(vae.decode(STATISTICS.denormalize(latents)).sample)


def assert_same_bytes(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape and got.dtype == torch.uint8
    difference = (got.int() - expected.int()).abs()
    assert difference.max() <= 1 and (difference == 0).float().mean() > 0.999


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What is said to be free, in bytes."""
    said = [0.0]
    monkeypatch.setattr("pyramid_dit.generation.latent_codec.free_memory", lambda device: said[0])
    yield said


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("units", [[1, 1, 1, 1], [1, 3, 3], [2, 1], [5]], ids=str)
def test_frames_come_as_latents_go(vae: CausalVideoVAE, units: list[int], window: int) -> None:
    latents = normalized(sum(units), batch=2)
    copy = latents.clone()
    decoder = FrameDecoder(vae, STATISTICS, device=CPU, window=window)
    pieces = [decoder.push(unit) for unit in latents.split(units, dim=2)]
    assert [piece.shape[1] for piece in pieces] == [
        8 * unit - 7 * (index == 0) for index, unit in enumerate(units)
    ]

    assert_same_bytes(torch.cat(pieces, dim=1), whole(vae, latents))
    assert torch.equal(latents, copy)


def test_tiling_is_a_permission(vae: CausalVideoVAE, free: list[float]) -> None:
    latents = normalized(2, 12, 10)
    need = decode_memory(vae.config, latents=1, height=12, width=10)
    pictures = whole(vae, latents)
    vae.enable_tiling()
    tiles = to_bytes(vae.decode(STATISTICS.denormalize(latents), tile_sample_min_size=64).sample)
    assert not torch.equal(pictures, tiles)

    def decode() -> Tensor:
        return decode_latents(vae, STATISTICS, latents, device=CPU, sizes=SMALL)

    free[0] = 2 * need
    assert_same_bytes(decode(), pictures)
    free[0] = need
    assert_same_bytes(decode(), tiles)
    vae.enable_tiling(force=True)
    free[0] = 2 * need
    assert_same_bytes(decode(), tiles)
    vae.disable_tiling()
    free[0] = 0
    assert_same_bytes(decode(), pictures)


def test_images_are_encoded_whole_where_they_fit(vae: CausalVideoVAE, free: list[float]) -> None:
    image = torch.rand(1, 3, 1, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = vae.encode(image).latent_dist.parameters
    vae.enable_tiling()
    tiles = vae.encode(image, tile_sample_min_size=64).latent_dist.parameters
    assert not torch.allclose(picture, tiles)
    for bytes, force, expected in (
        (1 << 40, False, picture),
        (0, False, tiles),
        (1 << 40, True, tiles),
    ):
        free[0] = bytes
        vae.enable_tiling(force=force)
        moments = encode_clip(vae, image, device=CPU, tile=64).parameters
        torch.testing.assert_close(moments, expected)


def test_when_to_decode_beside_the_transformer(vae: CausalVideoVAE, free: list[float]) -> None:
    shape = (2, LATENT_CHANNELS, 9, 12, 10)
    need = decode_memory(vae.config, latents=1, height=12, width=10, batch=2)
    for bytes, streams in ((2 * need, True), (1.4 * need, False)):
        free[0] = bytes
        assert can_stream(vae, shape, device=CPU, sizes=SMALL) == streams
    free[0] = 2 * need
    vae.enable_tiling()
    assert can_stream(vae, shape, device=CPU, sizes=SMALL)
    vae.enable_tiling(force=True)
    assert not can_stream(vae, shape, device=CPU, sizes=SMALL)
    assert can_stream(vae, shape, device=CPU, sizes=DecodeSizes(window=1, tile=96))


def test_weights_in_half_precision_are_not_widened_by_autocast(vae: CausalVideoVAE) -> None:
    vae.to(torch.bfloat16)
    latents = normalized(2)
    seen = set()
    for module in vae.modules():
        module.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        decode_latents(vae, STATISTICS, latents, device=CPU, sizes=SMALL)
    assert seen == {torch.bfloat16}
