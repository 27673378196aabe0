"""Attention: one function that runs it, the modules of joint and single blocks, and their cache.

Legend: B batch, L tokens of [text ; video], H heads, D channels of a head.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..distributed.parallel import SERIAL, Serial
from .layers import ResidualLinear, RMSNorm
from .rope import apply_rotations
from .token_layout import TokenLayout

WITH_GRADIENTS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class HistoryCache:
    """Keys and values of text and history, kept over the steps of a stage (approximate).

    The history of a unit is clean and does not change within a stage, and by causality neither
    text nor history sees the clip that is being made. Their tokens still change a little from
    step to step, through the timestep in the modulations. Whoever accepts that may compute them
    every n-th step only.

    Args:
        every: Steps from one computation of the history to the next; 1 computes it at each step.
        last_tokens: Tokens of the last clip, which are always computed.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, *, every: int, last_tokens: int) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.last_tokens = last_tokens
        self.reusing = False
        self._step = 0
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def begin_step(self) -> None:
        """Decide for the step that begins whether what is kept will serve (`reusing`)."""
        self.reusing = self._step % self.every != 0
        self._step += 1

    def complete(self, attention: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens `[B, L, H, D]`.

        Args:
            attention: Whose keys and values they are.
            k: Keys of the last clip where the cache is `reusing`, else of all tokens.
            v: Values of the same tokens.
        """
        if self.reusing:
            past_k, past_v = self._kept[attention]
            return torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
        past = k.shape[1] - self.last_tokens
        # Copies, lest the keys of the last clip stay alive too.
        self._kept[attention] = (k[:, :past].clone(), v[:, :past].clone())
        return k, v


@dataclass(frozen=True)
class AttentionContext:
    """What every attention of a forward pass needs to know about the tokens.

    Attributes:
        layout: Segments of the whole sequence.
        lengths: Tokens that pass through the blocks: of text, history and last clip, or of the
            last clip alone.
        rotations: Of these tokens, complex64 `[L, head_dim / 2]`.
        cache: Keys and values of text and history from an earlier step, or where to keep them.
        parallel: Who has which of the tokens; each of `lengths` is split on its own.
    """

    layout: TokenLayout
    lengths: tuple[int, ...]
    rotations: Tensor
    cache: HistoryCache | None = None
    parallel: Serial = SERIAL


def attend(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, layout: TokenLayout) -> Tensor:
    """Block-causal attention over frames, exact, without a mask.

    Every span of queries (text with frame 0, then each later frame) attends to its prefix of the
    keys; the last frame sees all of them. So any backend of diffusers' attention dispatch will
    do, for none is asked for a mask. Padding tokens are left out of queries and keys, and their
    outputs are 0.

    Args:
        q_BLHD: queries of the last tokens of [text ; video], or of all, after norm and rotation.
        k_BLHD: keys of all tokens.
        v_BLHD: values of all tokens.
        layout: segments of the sequence.

    Returns:
        A tensor like `q_BLHD`.
    """
    if layout.dense:
        return _attention(q_BLHD, k_BLHD, v_BLHD)
    return _attend_by_parts(q_BLHD, k_BLHD, v_BLHD, layout)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of all `q` to all `k`; with gradients, not by cuDNN.

    The backward pass of PyTorch 2.11 with cuDNN ended with an illegal memory access in training at
    the released size on an H200; PyTorch's other kernels trained.
    """
    trained = any(x.requires_grad for x in (q, k, v))
    with sdpa_kernel(WITH_GRADIENTS) if trained else nullcontext():
        output: Tensor = dispatch_attention_fn(q, k, v)
    return output


# The parts depend on the lengths of the prompts: compiled, each new set of them would be a new
# program.
@torch.compiler.disable
def _attend_by_parts(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout) -> Tensor:
    rows = [group.rows for group in layout.row_groups]
    groups = zip(q.split(rows), k.split(rows), v.split(rows), layout.row_groups, strict=True)
    outputs = [_attend_group(q, k, v, group.padding, layout) for q, k, v, group in groups]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_group(q: Tensor, k: Tensor, v: Tensor, padding: int, layout: TokenLayout) -> Tensor:
    absent = k.shape[1] - q.shape[1]  # first tokens, whose queries nobody asks for
    first = max(absent, padding)
    outputs = [torch.zeros_like(q[:, : first - absent])] if first > absent else []
    for span in layout.spans:
        if span.stop > first:
            query = q[:, max(span.start, first) - absent : span.stop - absent]
            visible = slice(padding, span.visible)
            outputs.append(_attention(query, k[:, visible], v[:, visible]))
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

    def _project(self, x_BLC: Tensor, keep: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the last `keep` tokens, keys and values `[B, L, H, D]`, not yet rotated."""
        q = self.norm_q(self._heads(self.to_q(last_tokens(x_BLC, keep))))
        k = self.norm_k(self._heads(self.to_k(x_BLC)))
        return q, k, self._heads(self.to_v(x_BLC))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, *, last_only: bool
    ) -> Tensor:
        """Rotate, attend, and put the heads side by side: `[B, L, C]`.

        With `last_only` there are queries of the last clip alone.
        """
        parallel, lengths = context.parallel, context.lengths
        wanted = lengths
        if last_only:
            wanted = lengths[-1:]
            (q,) = parallel.to_heads([q], wanted)
            k, v = parallel.to_heads([k, v], lengths)
        else:
            q, k, v = parallel.to_heads([q, k, v], lengths)
        q = apply_rotations(q, context.rotations[-q.shape[1] :])
        k = apply_rotations(k, context.rotations)
        if context.cache is not None:
            k, v = context.cache.complete(self, k, v)
        output = attend(q, k, v, context.layout)
        return parallel.to_tokens(output, wanted, self.num_heads).flatten(-2)


class SingleAttention(Attention):
    """Attention of a single block: text and video share all weights; no output projection."""

    def forward(self, x_BLC: Tensor, context: AttentionContext, keep: int | None = None) -> Tensor:
        """Attend within the sequence [text ; video]; outputs of the last `keep` tokens."""
        return self._attend(*self._project(x_BLC, keep), context, last_only=keep is not None)


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
        self.to_out = nn.ModuleList([ResidualLinear(dim, dim)])
        self.to_add_out = ResidualLinear(dim, dim) if text_output else None

    def _project_text(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norm_q = self.get_submodule(f"{self.added_norm}_q")
        q = norm_q(self._heads(self.add_q_proj(text)))
        return q, *self._text_keys(text)

    def _text_keys(self, text: Tensor) -> tuple[Tensor, Tensor]:
        norm_k = self.get_submodule(f"{self.added_norm}_k")
        return norm_k(self._heads(self.add_k_proj(text))), self._heads(self.add_v_proj(text))

    def forward(
        self,
        video: Tensor,
        text: Tensor | None,
        context: AttentionContext,
        keep: int | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Attend within [text ; video].

        Args:
            video: `[B, V, C]`.
            text: `[B, T, C]`; None where `context.cache` knows its keys and values.
            context: what is where.
            keep: only so many of the last outputs of the video are wanted, and none of the text.

        Returns:
            The outputs of text and video. That of text is None where it is not wanted, and
            nobody's where the text has no output projection.
        """
        q, k, v = self._project(video, keep)
        text_output = None
        if text is not None and keep is not None:
            text_k, text_v = self._text_keys(text)
            k, v = torch.cat([text_k, k], dim=1), torch.cat([text_v, v], dim=1)
        elif text is not None:
            pairs = zip(self._project_text(text), (q, k, v), strict=True)
            q, k, v = (torch.cat(pair, dim=1) for pair in pairs)
        output = self._attend(q, k, v, context, last_only=keep is not None)
        if text is not None and keep is None:
            text_output, output = output.tensor_split([text.shape[1]], dim=1)
            if self.to_add_out is not None:
                text_output = self.to_add_out(text_output)
        return text_output, self.to_out[0](output)


def last_tokens(x: Tensor, keep: int | None) -> Tensor:
    """The last `keep` tokens of `x` `[B, L, C]`, or all."""
    return x if keep is None else x[:, x.shape[1] - keep :]
