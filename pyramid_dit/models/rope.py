"""Rotary position embeddings over (time, height, width).

Legend: B batch, L tokens, H heads, D channels of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

THETA = 10_000.0


def axis_rotations(positions: Tensor, dim: int, theta: float = THETA) -> Tensor:
    """Unit complex numbers e^(i·p·theta^(-2j/dim)) for one axis.

    Angles are computed in float64 on the CPU: float32 loses digits at large positions, and some
    accelerators have no float64.

    Args:
        positions: `[n]`, real-valued positions.
        dim: channels of the head that this axis owns (even).
        theta: base of the frequencies.

    Returns:
        complex64 `[n, dim / 2]`.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim
    angles = positions.to("cpu", torch.float64)[:, None] * theta**-exponents
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def frame_positions(first: int, count: int) -> Tensor:
    """Positions `[count]` of frames, `first` and those after it; float64, on the CPU."""
    return torch.arange(first, first + count, dtype=torch.float64, device="cpu")


def grid_rotations(axes: Sequence[Tensor]) -> Tensor:
    """Rotations of every token of a grid, from the rotations of its axes.

    Args:
        axes: one complex tensor `[n_a, dim_a / 2]` an axis, slowest first (time, height, width).

    Returns:
        complex `[n_0·n_1·..., sum(dim_a) / 2]`, tokens in row-major order.
    """
    sizes = [len(axis) for axis in axes]
    expanded = []
    for index, axis in enumerate(axes):
        shape = [1] * len(sizes) + [axis.shape[1]]
        shape[index] = sizes[index]
        expanded.append(axis.view(shape).expand(*sizes, -1))
    return torch.cat(expanded, dim=-1).flatten(0, -2)


def apply_rotations(x_BLHD: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the channel pairs (2j, 2j + 1) of every head by its token's angles, in float32.

    Args:
        x_BLHD: queries or keys `[B, L, H, D]`.
        rotations: complex64 `[L, D / 2]`.

    Returns:
        The rotated tensor, of the shape and dtype of `x_BLHD`.
    """
    pairs = torch.view_as_complex(x_BLHD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations[:, None]).flatten(-2).to(x_BLHD.dtype)
