"""The estimate of memory against what a process really takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from golden import PROJECT_ROOT

from video_vae.memory import decode_memory, encode_memory

SMALL = {
    "encoder_in_channels": 3,
    "encoder_out_channels": 4,
    "encoder_layers_per_block": [1, 1, 1, 1],
    "encoder_block_out_channels": [16, 16, 32, 32],
    "encoder_norm_num_groups": 4,
    "encoder_spatial_down_sample": [True, True, True, False],
    "encoder_temporal_down_sample": [True, True, True, False],
    "decoder_in_channels": 4,
    "decoder_out_channels": 3,
    "decoder_layers_per_block": [1, 1, 1, 2],
    "decoder_block_out_channels": [16, 16, 32, 32],
    "decoder_norm_num_groups": 4,
    "decoder_spatial_up_sample": [True, True, True, False],
    "decoder_temporal_up_sample": [True, True, True, False],
}
SIDE = 192
MEASURE = f"""
import sys
import torch
from video_vae import CausalVideoVAE
from video_vae.temporal_context import Stream

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return 1024 * int(line.split()[1])

torch.set_num_threads(1)
vae = CausalVideoVAE(**{SMALL}).requires_grad_(False)
chunk, run = {{
    "decode": (torch.randn(1, 4, 1, {SIDE // 8}, {SIDE // 8}), vae.decode_chunk),
    "encode": (torch.randn(1, 3, 8, {SIDE}, {SIDE}), vae.encode_chunk),
}}[sys.argv[1]]
run(chunk[..., :8, :8], Stream())  # what is set up once
stream = Stream(starts_video=False)
before = status("VmSize")
run(chunk, stream)
run(chunk, stream)
print(status("VmPeak") - before)
"""


@pytest.mark.parametrize(
    ("estimate", "sizes"),
    [(decode_memory, {"latents": 2}), (encode_memory, {"frames": 16})],
    ids=["decode", "encode"],
)
def test_estimates_grow_with_pictures_videos_and_bytes(
    estimate: Callable[..., int], sizes: dict[str, int]
) -> None:
    one = estimate(SMALL, height=64, width=64, **sizes)
    for times, more in ((6, {"height": 128, "width": 192}), (3, {"batch": 3})):
        larger = estimate(SMALL, **{"height": 64, "width": 64} | more, **sizes)
        # what is decoded in pieces of time takes less
        assert one < larger < times * one if estimate is decode_memory else larger == times * one
    assert estimate(SMALL, height=64, width=64, dtype=torch.bfloat16, **sizes) == one // 2
    (name, frames), *_ = sizes.items()
    longer = estimate(SMALL, height=64, width=64, **{name: 2 * frames})
    assert one < longer < 2 * one  # what is carried over does not grow


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the size of a process is read from Linux"
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "estimate"),
    [
        ("decode", decode_memory(SMALL, latents=1, height=SIDE // 8, width=SIDE // 8)),
        ("encode", encode_memory(SMALL, frames=8, height=SIDE, width=SIDE)),
    ],
)
def test_estimates_are_what_is_taken_to_within_a_quarter(work: str, estimate: int) -> None:
    # Every tensor is a mapping of its own, given back at once. So the size of the process follows
    # what is allocated, whether the system keeps it in memory or not.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, work],
        cwd=PROJECT_ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 0.8 < int(done.stdout) / estimate < 1.25
