"""Encode and decode a video over the ranks of a process group, each rank a part of the time.

What a convolution needs of the frames before comes from the rank in front (`Neighbours`), so the
result is that of one rank, to float rounding, and each rank does its share of the work. All ranks
call these functions with the same arguments, and all get the whole result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from .posterior import DiagonalGaussian
from .temporal_context import Neighbours, TemporalContext
from .tiling import map_tiles

if TYPE_CHECKING:
    from .autoencoder import CausalVideoVAE

Spans = list[list[tuple[int, int]]]
LATENTS_TO_TRAIN = 2
"""Latent frames that every rank needs where gradients cross the ranks."""


def plan_rounds(latents: int, ranks: int, window: int | None = None) -> list[list[int]]:
    """How many latents each rank takes in each round, `[rounds][ranks]`.

    A rank takes `window` latents a round; rank 0 has one more in the first round, as the first
    latent makes a single frame. The last round is spread evenly; ranks that have nothing in a
    round come last.

    Args:
        latents: Latent frames of the video.
        ranks: Size of the group.
        window: Most latents that a rank takes at a time; None is no limit: one round.

    Raises:
        ValueError: `window` is below 1.
    """
    if window is not None and window < 1:
        raise ValueError(f"the window is {window} latents; it must be at least 1")
    plan: list[list[int]] = []
    left = latents - 1
    while left or not plan:
        taken = left if window is None else min(left, ranks * window)
        share, more = divmod(taken, ranks)
        plan.append([share + (rank < more) for rank in range(ranks)])
        left -= taken
    plan[0][0] += 1
    return plan


@dataclass(frozen=True)
class ClipShare:
    """The part of a clip that a rank trains on, where the ranks of a group share clips.

    A rank's loss is such that the mean over the ranks is the loss of the clip, and so are then
    gradients that are averaged over the ranks.

    Attributes:
        group: The ranks.
        ranks: How many.
        latents: Which latent frames are this rank's.
        frames: Which frames are.
        all_latents: How many latent frames the clip has.
        weight: Of means over frames: its share of the clip's frames, times `ranks`.
    """

    group: dist.ProcessGroup
    ranks: int
    latents: slice
    frames: slice
    all_latents: int
    weight: float

    @property
    def latent_weight(self) -> float:
        """Of means over latent frames, as `weight` is of those over frames."""
        return self.ranks * (self.latents.stop - self.latents.start) / self.all_latents

    @classmethod
    def of(cls, frames: int, factor: int, group: dist.ProcessGroup) -> ClipShare:
        """That of this rank in a clip of so many frames.

        Args:
            frames: 8n+1, or with another temporal `factor` in place of 8.
            factor: Frames of a latent.
            group: The ranks.

        Raises:
            ValueError: There are too few frames for so many ranks.
        """
        ranks = dist.get_world_size(group)
        check_training_share(frames, factor, ranks)
        all_latents = 1 + (frames - 1) // factor
        plan = plan_rounds(all_latents, ranks)
        rank = dist.get_rank(group)
        latents = slice(*_spans(plan)[0][rank])
        own = slice(*_spans(plan, factor=factor)[0][rank])
        weight = ranks * (own.stop - own.start) / frames
        return cls(group, ranks, latents, own, all_latents, weight)

    def context(self) -> Neighbours:
        """What one pass through an encoder or a decoder needs."""
        return Neighbours(self.group, [self.ranks])

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of `tensor` over the ranks."""
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total / self.ranks


def check_training_share(frames: int, factor: int, ranks: int) -> None:
    """Refuse clips that are too short to be trained on by so many ranks (ValueError)."""
    least = LATENTS_TO_TRAIN * factor * ranks + 1
    if ranks > 1 and frames < least:
        raise ValueError(
            f"a clip of {frames} frames is too short for {ranks} ranks: at least {least}"
        )


@torch.no_grad()
def decode_over_ranks(
    vae: CausalVideoVAE,
    z: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    window_size: int | None = None,
    tile_sample_min_size: int | None = None,
    finish: Callable[[Tensor], Tensor] = lambda pixels: pixels,
) -> Tensor:
    """Decode a video over the ranks of a group.

    Args:
        vae: The VAE.
        z: Latents [b, c, n+1, h, w], not normalized.
        group: The ranks; None is all of them.
        window_size: Most latents that a rank decodes at a time, which bounds the memory; None is
            all of its share.
        tile_sample_min_size: Decode larger pictures in tiles of this extent in pixels; None is
            whole pictures, whether tiling is enabled or not.
        finish: Applied to a rank's own pixels [b, 3, t, 8h, 8w] (t may be 0) before they are
            sent, for example to send bytes; it keeps the number of frames on axis 2.

    Returns:
        `finish` of the pixels [b, 3, 8n+1, 8h, 8w].

    Raises:
        ValueError: `z` has the wrong shape, or another one on another rank, or a window or tile
            does not fit.
    """
    vae.check_latents(z)
    plan = plan_rounds(z.shape[2], dist.get_world_size(group), window_size)
    _check_agreement(z, group)
    spans = _spans(plan)
    frames = _spans(plan, factor=vae.temporal_factor)

    def run(tile: Tensor) -> Tensor:
        height, width = (vae.spatial_factor * extent for extent in tile.shape[3:])
        size = (vae.config["decoder_out_channels"], height, width)
        return _run_share(vae.decode_chunk, tile, spans, group, out_size=size)

    out_tile = vae.tile_extent(tile_sample_min_size) if tile_sample_min_size else 0
    tile = out_tile // vae.spatial_factor

    def whole(clip: Tensor) -> Tensor:
        if 0 < tile < max(z.shape[-2:]):
            return map_tiles(clip, run, tile=tile, out_tile=out_tile)
        return run(clip)

    return _gather(finish(vae.map_slices(z, whole)), frames, group)


@torch.no_grad()
def encode_over_ranks(
    vae: CausalVideoVAE,
    x: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    window_size: int | None = None,
    tile_sample_min_size: int | None = None,
) -> DiagonalGaussian:
    """Encode a video over the ranks of a group.

    Args:
        vae: The VAE.
        x: Pixels [b, 3, 8n+1, 8h, 8w] in [-1, 1].
        group: The ranks; None is all of them.
        window_size: Most frames that a rank encodes at a time, a multiple of 8; None is all of
            its share.
        tile_sample_min_size: As for `decode_over_ranks`.

    Returns:
        The posterior over latents [b, c, n+1, h, w].

    Raises:
        ValueError: `x` has the wrong shape, or another one on another rank, or a window or tile
            does not fit.
    """
    vae.check_pixels(x)
    window = None if window_size is None else vae.latent_window(window_size)
    latents = (x.shape[2] - 1) // vae.temporal_factor + 1
    plan = plan_rounds(latents, dist.get_world_size(group), window)
    _check_agreement(x, group)
    spans = _spans(plan, factor=vae.temporal_factor)

    def run(tile: Tensor) -> Tensor:
        height, width = (extent // vae.spatial_factor for extent in tile.shape[3:])
        size = (2 * vae.config["encoder_out_channels"], height, width)
        return _run_share(vae.encode_chunk, tile, spans, group, out_size=size)

    tile = vae.tile_extent(tile_sample_min_size) if tile_sample_min_size else 0

    def whole(clip: Tensor) -> Tensor:
        if 0 < tile < max(x.shape[-2:]):
            return map_tiles(clip, run, tile=tile, out_tile=tile // vae.spatial_factor)
        return run(clip)

    return DiagonalGaussian(_gather(vae.map_slices(x, whole), _spans(plan), group))


def _spans(plan: list[list[int]], *, factor: int | None = None) -> Spans:
    """First and end of the frames of each rank in each round: latents, with `factor` pixels."""
    ends = [0, *accumulate(chain.from_iterable(plan))]
    if factor is not None:
        ends = [factor * (end - 1) + 1 if end else 0 for end in ends]
    flat = list(pairwise(ends))
    ranks = len(plan[0])
    return [flat[start : start + ranks] for start in range(0, len(flat), ranks)]


def _run_share(
    step: Callable[[Tensor, TemporalContext], Tensor],
    clip: Tensor,
    spans: Spans,
    group: dist.ProcessGroup | None,
    *,
    out_size: tuple[int, int, int],
) -> Tensor:
    """Run `step` over this rank's part of `clip` [b, c, t, h, w].

    Returns:
        [b, c', t', h', w'] in the dtype of `clip`, where `out_size` is (c', h', w').
    """
    rank = dist.get_rank(group)
    workers = [sum(stop > start for start, stop in round_spans) for round_spans in spans]
    context = Neighbours(group, workers)
    channels, height, width = out_size
    pieces = [clip.new_empty(clip.shape[0], channels, 0, height, width)]
    for round_spans in spans:
        start, stop = round_spans[rank]
        if stop > start:
            pieces.append(step(clip[:, :, start:stop], context).to(clip.dtype))
        context.advance()
    return torch.cat(pieces, dim=2)


def _gather(part: Tensor, spans: Spans, group: dist.ProcessGroup | None) -> Tensor:
    """Join the parts [b, c, t, h, w] of all ranks, t the sum of a rank's spans, in their order."""
    by_rank = [[stop - start for start, stop in of_rank] for of_rank in zip(*spans, strict=True)]
    longest = max(sum(counts) for counts in by_rank)
    b, c, own, h, w = part.shape
    padded = part.new_empty(b, c, longest, h, w)
    padded[:, :, :own] = part
    parts = [torch.empty_like(padded) for _ in by_rank]
    # As bytes, which all backends carry.
    dist.all_gather([p.view(torch.uint8) for p in parts], padded.view(torch.uint8), group=group)
    split = [
        p[:, :, : sum(counts)].split(counts, dim=2)
        for p, counts in zip(parts, by_rank, strict=True)
    ]
    return torch.cat([piece for in_round in zip(*split, strict=True) for piece in in_round], dim=2)


def _check_agreement(clip: Tensor, group: dist.ProcessGroup | None) -> None:
    """Compare shapes over the ranks, where a difference would leave ranks waiting.

    Being a collective of all ranks, it also sets up the communicator for those to come, in which
    some ranks may not take part.

    Raises:
        ValueError: They differ.
    """
    mine = torch.tensor(clip.shape, device=clip.device)
    shapes = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shapes, mine, group=group)
    lists = [shape.tolist() for shape in shapes]
    if any(shape != lists[0] for shape in lists):
        raise ValueError(f"the ranks have clips of different shapes: {lists}")
