"""Transformer blocks: joint (two streams, one attention) and single (one stream).

Legend: B batch, T text tokens, V video tokens, L = T + V, D width. The names of the arguments are
those by which diffusers' caches know a block's inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import (
    AttentionContext,
    JointAttention,
    SingleAttention,
    last_tokens,
)
from .layers import AdaLayerNorm, AdaLayerNormContinuous, ResidualLinear, modulate

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
        self.net = nn.Sequential(
            GELUProjection(dim, hidden), nn.Identity(), ResidualLinear(hidden, dim)
        )

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
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        conditioning: Tensor,
        context: AttentionContext,
        keep: int | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """One block.

        Args:
            hidden_states: video `[B, V, D]`.
            encoder_hidden_states: text `[B, T, D]`; None where the cache of `context` serves.
            conditioning: SiLU(temb) `[B, D]`.
            context: what is where in the sequence.
            keep: only so many of the last video tokens are wanted, and nothing of the text.

        Returns:
            Text (as it came, where it is not updated) and video.
        """
        video, text = hidden_states, encoder_hidden_states
        shift, scale, gate, *mlp = self.norm1(conditioning)
        normed = modulate(video, shift, scale)
        normed_text = None
        if text is not None and self.context_pre_only:
            normed_text = self.norm1_context(text, conditioning)
        elif text is not None:
            text_shift, text_scale, text_gate, *text_mlp = self.norm1_context(conditioning)
            normed_text = modulate(text, text_shift, text_scale)

        text_update, update = self.attn(normed, normed_text, context, keep)

        video = torch.addcmul(last_tokens(video, keep), gate, update)
        video = _mlp_update(video, self.ff, *mlp)
        if text is not None and text_update is not None and self.ff_context is not None:
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
        self.proj_out = ResidualLinear((1 + MLP_RATIO) * dim, dim)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        conditioning: Tensor,
        context: AttentionContext,
        keep: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One block.

        Args:
            hidden_states: [text ; video] `[B, L, D]`, or the video alone where the text is given
                apart or where the cache of `context` serves.
            encoder_hidden_states: text `[B, T, D]`, for caches that keep the streams apart.
            conditioning: SiLU(temb) `[B, D]`.
            context: what is where in the sequence.
            keep: only so many of the last tokens are wanted.

        Returns:
            What was given, updated: one tensor, or text and video.
        """
        x = hidden_states
        if encoder_hidden_states is not None:
            x = torch.cat([encoder_hidden_states, x], dim=1)
        shift, scale, gate = self.norm(conditioning)
        normed = modulate(x, shift, scale)
        attention = self.attn(normed, context, keep)
        mlp = F.gelu(self.proj_mlp(last_tokens(normed, keep)), approximate="tanh")
        update = self.proj_out(torch.cat([attention, mlp], dim=-1))
        x = torch.addcmul(last_tokens(x, keep), gate, update)
        if encoder_hidden_states is None:
            return x
        text, video = x.tensor_split([encoder_hidden_states.shape[1]], dim=1)
        return text, video
