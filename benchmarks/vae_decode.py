"""Decoding 33 frames of 384x640 with random weights, the baseline's way and ours.

The decoder has 32, 64, 128 and 128 channels on a CPU, and the released ones on an accelerator.
The baseline's way is the reference's low-memory one, tiles of 256 pixels and one latent at a time.
With `--tiled` there is the same way with our convolutions too, which tells apart what the tiles
cost. A round takes minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.flow.latents import FrameStatistics, LatentStatistics
from pyramid_dit.generation.latent_codec import (
    DecodeSizes,
    decode_latents,
    to_bytes,
)

from .baseline.vae import TILE, BaselineDecoder
from .flops import decoder_flops
from .measure import (
    alternate,
    device_name,
    matmul_peak,
    speed_up,
)
from .report import (
    Bar,
    Report,
    finish,
    median,
    number,
    option_parser,
    rounds,
    spread,
)
from .setups import VAE_CONFIGS, random_vae

BASELINE, TILED, OURS = "baseline", "our kernels, its tiles", "ours"
CPU_BAR = 2.0
NOT_NORMALIZED = LatentStatistics(FrameStatistics(), FrameStatistics())


@torch.no_grad()
def measure(
    *,
    model: str,
    frames: int,
    height: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    tiled: bool = False,
) -> Report:
    """Time of decoding `frames` frames to bytes."""
    vae = random_vae(model, device, dtype)
    baseline = BaselineDecoder(vae)
    if device.type == "cpu":
        keep_freed_memory()  # for all
    channels, factor = vae.config.decoder_in_channels, vae.spatial_factor
    shape = (
        1,
        channels,
        (frames - 1) // vae.temporal_factor + 1,
        height // factor,
        width // factor,
    )
    latents = torch.randn(shape, device=device, dtype=dtype)
    chunks = {"temporal_chunk": True, "window_size": 1, "tile_sample_min_size": TILE}

    def decode_tiled() -> torch.Tensor:
        vae.enable_tiling()
        video = to_bytes(vae.decode(latents, **chunks).sample)
        vae.disable_tiling()
        return video

    def decode_ours() -> torch.Tensor:
        sizes = DecodeSizes.of(save_memory=True)
        return decode_latents(vae, NOT_NORMALIZED, latents, device=device, sizes=sizes)

    ways = {BASELINE: lambda: to_bytes(baseline.decode(latents))}
    ways |= {TILED: decode_tiled} if tiled else {}
    ways[OURS] = decode_ours
    for way in ways.values():  # a small warm-up: a whole one takes as long as a round
        whole, latents = latents, latents[:, :, :2, :8, :8]
        way()
        latents = whole
    times = alternate(ways, repeats=repeats, device=device, warm_up=False)
    matmul_flops = matmul_peak(device, dtype)
    needed = decoder_flops(vae, shape[2], height, width)
    return Report(
        benchmark="vae_decode",
        device=device_name(device),
        settings=(
            f"VAE `{model}` in {str(dtype).removeprefix('torch.')}, {frames} frames of "
            f"{width}x{height}, {rounds(repeats)}; a matrix product reaches "
            f"{matmul_flops / 1e12:.3g} TFLOP/s"
        ),
        rows=[
            {
                "way": way,
                "median, s": median(times[way]),
                "range, s": spread(times[way]),
                "speed-up": speed_up(times, BASELINE, way),
                "TFLOP needed": needed / 1e12,
                "% of matmul": 100 * needed / median(times[way]) / matmul_flops,
            }
            for way in ways
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = option_parser(__doc__, repeats=5)
    parser.add_argument("--model", choices=VAE_CONFIGS, help="default: by the device")
    parser.add_argument("--tiled", action="store_true", help="our convolutions in tiles too")
    options = parser.parse_args(arguments)
    on_cpu = options.device.type == "cpu"
    model = options.model or ("narrow" if on_cpu else "released")
    frames, height, width = (9, 64, 320) if options.tiny else (33, 384, 640)
    report = measure(
        model="tiny" if options.tiny else model,
        frames=frames,
        height=height,
        width=width,
        device=options.device,
        dtype=torch.float32 if on_cpu else torch.bfloat16,
        repeats=options.repeats,
        tiled=options.tiled,
    )
    if on_cpu and model == "narrow":
        value = number(report.rows[-1], "speed-up")
        report.bars = [Bar("speed-up of decoding", value, CPU_BAR, "x")]
    finish(report, options)


if __name__ == "__main__":
    main()
