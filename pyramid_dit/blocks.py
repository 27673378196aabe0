"""Transformer blocks: joint (two streams, one attention) and single (one stream).

Legend: B batch, L tokens, D width; rotations are complex `[L, head_dim / 2]` over [text ; video].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import JointAttention, SingleAttention
from .normalization import AdaLayerNorm, AdaLayerNormContinuous, modulate
from .token_layout import TokenLayout

MLP_RATIO = 4


class GELUProjection(nn.Module):
    """Linear and GELU (tanh)."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Make the linear."""
        super().__init__()
        self.proj = nn.Linear(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` → `[..., hidden]`."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """The MLP of a joint block."""

    def __init__(self, dim: int) -> None:
        """Make both layers; the identity keeps the place of a dropout in checkpoint names."""
        super().__init__()
        hidden = MLP_RATIO * dim
        self.net = nn.Sequential(GELUProjection(dim, hidden), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` → `[..., dim]`."""
        return self.net(x)


class JointBlock(nn.Module):
    """Double-stream block: text and video with weights of their own and a joint attention.

    With `context_pre_only` (last block of the MMDiT) the text is only read.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        eps: float,
        added_norm: str,
        context_pre_only: bool = False,
    ) -> None:
        """Make the block; `eps` and `added_norm` as in `JointAttention`."""
        super().__init__()
        self.context_pre_only = context_pre_only
        self.norm1 = AdaLayerNorm(dim, 6)
        self.norm1_context: nn.Module
        if context_pre_only:
            self.norm1_context = AdaLayerNormContinuous(dim)
        else:
            self.norm1_context = AdaLayerNorm(dim, 6)
        self.attn = JointAttention(
            dim, num_heads, eps=eps, added_norm=added_norm, text_output=not context_pre_only
        )
        self.ff = FeedForward(dim)
        self.ff_context = None if context_pre_only else FeedForward(dim)

    def forward(
        self,
        text: Tensor,
        video: Tensor,
        conditioning: Tensor,
        rotations: Tensor,
        layout: TokenLayout,
    ) -> tuple[Tensor, Tensor]:
        """One block; text `[B, T, D]`, video `[B, V, D]`, conditioning SiLU(temb) `[B, D]`."""
        shift, scale, gate, *mlp = self.norm1(conditioning)
        normed = modulate(video, shift, scale)
        if self.context_pre_only:
            normed_text = self.norm1_context(text, conditioning)
        else:
            text_shift, text_scale, text_gate, *text_mlp = self.norm1_context(conditioning)
            normed_text = modulate(text, text_shift, text_scale)

        text_update, update = self.attn(normed_text, normed, rotations, layout)

        video = torch.addcmul(video, gate, update)
        video = _mlp_update(video, self.ff, *mlp)
        if self.ff_context is not None:
            text = torch.addcmul(text, text_gate, text_update)
            text = _mlp_update(text, self.ff_context, *text_mlp)
        return text, video


def _mlp_update(x: Tensor, mlp: nn.Module, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x, gate, mlp(modulate(x, shift, scale)))


class SingleBlock(nn.Module):
    """Single-stream block on [text ; video]: attention and MLP side by side."""

    def __init__(self, dim: int, num_heads: int, *, eps: float) -> None:
        """Make the block; `eps` of the RMS norms."""
        super().__init__()
        self.norm = AdaLayerNorm(dim, 3)
        self.attn = SingleAttention(dim, num_heads, eps=eps)
        self.proj_mlp = nn.Linear(dim, MLP_RATIO * dim)
        self.proj_out = nn.Linear((1 + MLP_RATIO) * dim, dim)

    def forward(
        self, x: Tensor, conditioning: Tensor, rotations: Tensor, layout: TokenLayout
    ) -> Tensor:
        """One block; `x` `[B, L, D]`, conditioning SiLU(temb) `[B, D]`."""
        shift, scale, gate = self.norm(conditioning)
        normed = modulate(x, shift, scale)
        attention = self.attn(normed, rotations, layout)
        mlp = F.gelu(self.proj_mlp(normed), approximate="tanh")
        return torch.addcmul(x, gate, self.proj_out(torch.cat([attention, mlp], dim=-1)))
