"""Split a large picture into overlapping tiles, and blend what becomes of them.

Tiles start at every 3/4 of their extent and overlap by a quarter, over which the later tile is
faded in linearly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _fade_in(tile: Tensor, before: Tensor, extent: int, *, dim: int) -> Tensor:
    """Cross-fade from the end of `before` into the start of `tile` along `dim`."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    shape = [1] * tile.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, device=tile.device, dtype=tile.dtype) / extent).view(shape)
    tail = before.narrow(dim, before.shape[dim] - extent, extent)
    head = tile.narrow(dim, 0, extent)
    rest = tile.narrow(dim, extent, tile.shape[dim] - extent)
    return torch.cat([tail * (1 - weight) + head * weight, rest], dim=dim)


def map_tiles(
    picture: Tensor, transform: Callable[[Tensor], Tensor], *, tile: int, out_tile: int
) -> Tensor:
    """Apply `transform` tile by tile and join the results.

    Args:
        picture: [..., h, w].
        transform: Takes [..., tile, tile] (less at the far edges) to [..., out_tile, out_tile].
        tile: Extent of a tile of the input.
        out_tile: Extent of what a whole tile becomes.
    """
    stride, overlap = tile * 3 // 4, out_tile // 4
    kept = out_tile - overlap
    height, width = picture.shape[-2:]
    above: list[Tensor] = []
    rows = []
    for top in range(0, height, stride):
        row: list[Tensor] = []
        for column, left in enumerate(range(0, width, stride)):
            out = transform(picture[..., top : top + tile, left : left + tile])
            if above:
                out = _fade_in(out, above[column], overlap, dim=-2 % out.ndim)
            if row:
                out = _fade_in(out, row[-1], overlap, dim=-1 % out.ndim)
            row.append(out)
        rows.append(torch.cat([out[..., :kept, :kept] for out in row], dim=-1))
        above = row
    return torch.cat(rows, dim=-2)
