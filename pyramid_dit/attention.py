"""Attention: one function that runs it, and the modules of joint and single blocks.

Legend: B batch, L tokens of [text ; video], H heads, D channels of a head.
"""

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from .normalization import RMSNorm
from .rope import apply_rotations
from .token_layout import TokenLayout


def attend(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, layout: TokenLayout) -> Tensor:
    """Block-causal attention over frames, exact, without a mask.

    Every span of queries (text with frame 0, then each later frame) attends to its prefix of the
    keys; the last frame sees all of them. Padding tokens are left out of queries and keys, and
    their outputs are 0.

    Args:
        q_BLHD: queries of [text ; video], after norm and rotation.
        k_BLHD: keys.
        v_BLHD: values.
        layout: segments of the sequence.

    Returns:
        `[B, L, H, D]`.
    """
    if layout.dense:
        return dispatch_attention_fn(q_BLHD, k_BLHD, v_BLHD)
    return _attend_by_parts(q_BLHD, k_BLHD, v_BLHD, layout)


# The parts depend on the lengths of the prompts: compiled, each new set of them would be a new
# program.
@torch.compiler.disable
def _attend_by_parts(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout) -> Tensor:
    rows = [group.rows for group in layout.row_groups]
    groups = zip(q.split(rows), k.split(rows), v.split(rows), layout.row_groups, strict=True)
    outputs = [_attend_group(q, k, v, group.padding, layout) for q, k, v, group in groups]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_group(q: Tensor, k: Tensor, v: Tensor, padding: int, layout: TokenLayout) -> Tensor:
    lengths = [span.stop - span.start for span in layout.spans]
    lengths[0] -= padding
    skipped, *queries = q.split([padding, *lengths], dim=1)
    outputs = [torch.zeros_like(skipped)] if padding else []
    for query, span in zip(queries, layout.spans, strict=True):
        visible = slice(padding, span.visible)
        outputs.append(dispatch_attention_fn(query, k[:, visible], v[:, visible]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


class Attention(nn.Module):
    """What joint and single blocks share: projections, RMS-normalized heads, rotation."""

    def __init__(self, dim: int, num_heads: int, *, eps: float) -> None:
        """Make the projections; `eps` of the RMS norms."""
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim // num_heads, eps)
        self.norm_k = RMSNorm(dim // num_heads, eps)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _project(self, x_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, L, H, D]`, not yet rotated."""
        q = self.norm_q(self._heads(self.to_q(x_BLC)))
        k = self.norm_k(self._heads(self.to_k(x_BLC)))
        return q, k, self._heads(self.to_v(x_BLC))

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, layout: TokenLayout) -> Tensor:
        """Rotate, attend, and put the heads side by side: `[B, L, C]`."""
        q, k = apply_rotations(q, rotations), apply_rotations(k, rotations)
        return attend(q, k, v, layout).flatten(-2)


class SingleAttention(Attention):
    """Attention of a single block: text and video share all weights; no output projection."""

    def forward(self, x_BLC: Tensor, rotations: Tensor, layout: TokenLayout) -> Tensor:
        """Attend within the sequence [text ; video] `[B, L, C]`."""
        return self._attend(*self._project(x_BLC), rotations, layout)


class JointAttention(Attention):
    """Attention of a joint block: the text has projections and norms of its own."""

    def __init__(
        self, dim: int, num_heads: int, *, eps: float, added_norm: str, text_output: bool = True
    ) -> None:
        """Make both sets of projections.

        Args:
            dim: width.
            num_heads: heads.
            eps: of the RMS norms.
            added_norm: name of the text norms in checkpoints, without their `_q`, `_k`.
            text_output: whether the text has an output projection.
        """
        super().__init__(dim, num_heads, eps=eps)
        self.add_q_proj = nn.Linear(dim, dim)
        self.add_k_proj = nn.Linear(dim, dim)
        self.add_v_proj = nn.Linear(dim, dim)
        self.added_norm = added_norm
        self.add_module(f"{added_norm}_q", RMSNorm(dim // num_heads, eps))
        self.add_module(f"{added_norm}_k", RMSNorm(dim // num_heads, eps))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.to_add_out = nn.Linear(dim, dim) if text_output else None

    def _project_text(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norm_q = self.get_submodule(f"{self.added_norm}_q")
        norm_k = self.get_submodule(f"{self.added_norm}_k")
        q = norm_q(self._heads(self.add_q_proj(text)))
        k = norm_k(self._heads(self.add_k_proj(text)))
        return q, k, self._heads(self.add_v_proj(text))

    def forward(
        self, text: Tensor, video: Tensor, rotations: Tensor, layout: TokenLayout
    ) -> tuple[Tensor | None, Tensor]:
        """Attend within [text ; video]; returns the outputs of text (or None) and video."""
        pairs = zip(self._project_text(text), self._project(video), strict=True)
        q, k, v = (torch.cat(pair, dim=1) for pair in pairs)
        output = self._attend(q, k, v, rotations, layout)
        text, video = output.split([text.shape[1], video.shape[1]], dim=1)
        return self.to_add_out(text) if self.to_add_out else None, self.to_out[0](video)
