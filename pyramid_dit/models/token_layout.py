"""The token sequence of one stage entry: its segments, positions and attention.

A sequence is [text ; clip 0 ; clip 1 ; ...], oldest clip first, tokens of a clip in the order
time, height, width. Text is packed to the right: the padding of a short prompt comes first, so
that the keys of every row are one slice without holes. (Text has no positions, so its order is
free.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

PATCH = 2  # patches are 2×2 in space


class Grid(NamedTuple):
    """Size of a clip in patches."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.frames * self.height * self.width


class Span(NamedTuple):
    """Queries `start..stop` see the keys `0..visible`."""

    start: int
    stop: int
    visible: int


class RowGroup(NamedTuple):
    """Consecutive rows of the batch whose text begins with the same number of padding tokens."""

    rows: int
    padding: int


@dataclass(frozen=True)
class TokenLayout:
    """Segments of a batch of sequences.

    Attributes:
        text_length: text tokens of a row, padding included.
        grids: the clips, oldest first; the last one is predicted.
        spans: block-causal visibility; one span when every token sees every token.
        row_groups: rows by padding, in the order of the batch.
        dense: no causality and no padding to care about: plain attention.
    """

    text_length: int
    grids: tuple[Grid, ...]
    spans: tuple[Span, ...]
    row_groups: tuple[RowGroup, ...]
    dense: bool

    @property
    def last_tokens(self) -> int:
        """Tokens of the last clip, the one that is predicted."""
        return self.grids[-1].tokens

    @property
    def history_tokens(self) -> int:
        """Tokens of all clips before the last."""
        return sum(grid.tokens for grid in self.grids[:-1])


def make_layout(
    grids: Sequence[Grid], text_length: int, paddings: Sequence[int], *, temporal_causal: bool
) -> TokenLayout:
    """Lay out a batch.

    Time of a token: 0 for text; frames count up from 0 through all clips. With
    `temporal_causal` a query sees the keys whose time is not later than its own, so text and
    frame 0 see each other and frame i sees the text and the frames up to i (paper, section 3.3).

    Args:
        grids: clips in patches, oldest first.
        text_length: text tokens of a row, padding included.
        paddings: padding tokens of every row; equal values must be neighbors to share a group.
        temporal_causal: block-causal over the frames, or all see all.
    """
    total = text_length + sum(grid.tokens for grid in grids)
    spans = [Span(0, total, total)]
    if temporal_causal:
        spans = []
        start, stop = 0, text_length
        for grid in grids:
            for _ in range(grid.frames):
                stop += grid.height * grid.width
                spans.append(Span(start, stop, stop))
                start = stop
    groups = tuple(RowGroup(len(list(rows)), padding) for padding, rows in groupby(paddings))
    dense = len(spans) == 1 and all(group.padding == 0 for group in groups)
    return TokenLayout(text_length, tuple(grids), tuple(spans), groups, dense)


def pack_text(states: Tensor, mask: Tensor) -> tuple[Tensor, list[int]]:
    """Trim the text to its longest real length, padding first and zeroed.

    Args:
        states: `[b, L, d]` embeddings of the prompts.
        mask: `[b, L]`, nonzero where a token is real; any arrangement of zeros will do.

    Returns:
        `[b, longest, d]` and the number of padding tokens of each row.
    """
    real = mask != 0
    lengths = real.sum(dim=1).tolist()
    longest = max(lengths)
    paddings = [longest - length for length in lengths]
    # A stable sort of the mask brings the padding to the front and keeps the order of the rest.
    order = real.int().argsort(dim=1, stable=True)[:, real.shape[1] - longest :]
    packed = states.gather(1, order[..., None].expand(-1, -1, states.shape[-1]))
    padded = ~real.gather(1, order)
    return packed.masked_fill(padded[..., None], 0), paddings


def grid_of(shape: Sequence[int]) -> Grid:
    """Grid of a clip of the shape `[b, C, t, h, w]`."""
    _, _, frames, height, width = shape
    return Grid(frames, height // PATCH, width // PATCH)


def clip_grid(clip: Tensor) -> Grid:
    """Grid of a clip `[b, C, t, h, w]`."""
    return grid_of(clip.shape)


def patchify(clip: Tensor) -> Tensor:
    """`[b, C, t, h, w]` → `[b, tokens, 4·C]`, channels of a token in the order (p1, p2, c)."""
    b, c, _, _, _ = clip.shape
    grid = clip_grid(clip)
    clip = clip.reshape(b, c, grid.frames, grid.height, PATCH, grid.width, PATCH)
    return clip.permute(0, 2, 3, 5, 4, 6, 1).reshape(b, grid.tokens, PATCH * PATCH * c)


def unpatchify(tokens: Tensor, grid: Grid) -> Tensor:
    """Inverse of `patchify`: `[b, tokens, 4·C]` → `[b, C, t, h, w]`."""
    b = tokens.shape[0]
    tokens = tokens.reshape(b, grid.frames, grid.height, grid.width, PATCH, PATCH, -1)
    clip = tokens.permute(0, 6, 1, 2, 4, 3, 5)
    return clip.reshape(b, -1, grid.frames, grid.height * PATCH, grid.width * PATCH)
