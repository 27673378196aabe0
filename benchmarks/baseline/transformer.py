"""The transformers in the reference's way: dense mask, padded text, everything at each step.

At each call and for each sample of the batch it builds the mask `[L, L]`, the positions and the
rotations, projects text and history, expands the modulations to every token, and carries all
tokens through the last layer.

Legend: B batch, T text tokens with padding, V video tokens, L = T + V, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyramid_dit import PyramidDiffusionMMDiT, PyramidFluxTransformer
from pyramid_dit.models.layers import timestep_sinusoid
from pyramid_dit.models.token_layout import clip_grid, patchify, unpatchify

from .weights import Weights

THETA = 10_000.0
NORM_EPS = 1e-6


class BaselineTransformer:
    """What both architectures share.

    Args:
        dit: Whose parameters are used, as they are at the time.
    """

    rms_eps: float
    added_norm: str

    def __init__(self, dit: PyramidFluxTransformer | PyramidDiffusionMMDiT) -> None:
        self.weights = Weights(dit.state_dict())
        self.config = dit.config

    def predict(
        self, clips: Sequence[Tensor], text: Tensor, mask: Tensor, pooled: Tensor, timestep: Tensor
    ) -> Tensor:
        """Velocity of the last clip.

        Args:
            clips: `[B, C, t, h, w]`, oldest first; the last one is noisy.
            text: `[B, T, joint]`, padded.
            mask: `[B, T]`, 1 for real tokens.
            pooled: `[B, P]`.
            timestep: `[B]`, 0 to 1000.

        Returns:
            `[B, C, t, h, w]`.
        """
        weights, dtype = self.weights, text.dtype
        embed = weights.at("time_text_embed")
        temb = _mlp(embed.at("timestep_embedder"), timestep_sinusoid(timestep).to(dtype))
        temb = F.silu(temb + _mlp(embed.at("text_embedder"), pooled))

        text_length = text.shape[1]
        rotations = self._rotations(clips, text_length)
        visible = attention_mask(mask, clips, causal=self.config.use_temporal_causal)
        text = weights.linear("context_embedder", text)
        video = torch.cat([self._embed(clip.to(dtype), clips[-1]) for clip in clips], dim=1)

        video = self._run_blocks(text, video, temb, rotations, visible)

        scale, shift = _modulations(weights, "norm_out", temb, video, 2)
        tokens = weights.linear("proj_out", _modulate(video, shift, scale))
        last = clip_grid(clips[-1])
        return unpatchify(tokens[:, -last.tokens :], last).to(clips[-1].dtype)

    def _embed(self, clip: Tensor, last: Tensor) -> Tensor:
        raise NotImplementedError

    def _rotations(self, clips: Sequence[Tensor], text_length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every token of every sample, `[B, L, 1, head_dim / 2]`."""
        raise NotImplementedError

    def _run_blocks(
        self,
        text: Tensor,
        video: Tensor,
        temb: Tensor,
        rotations: tuple[Tensor, Tensor],
        visible: Tensor,
    ) -> Tensor:
        raise NotImplementedError

    def _joint_block(
        self,
        name: str,
        text: Tensor,
        video: Tensor,
        temb: Tensor,
        rotations: tuple[Tensor, Tensor],
        visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        block = self.weights.at(name)
        updates_text = "ff_context.net.2.weight" in block
        shift, scale, gate, *mlp = _modulations(block, "norm1", temb, video, 6)
        normed = _modulate(video, shift, scale)
        if updates_text:
            text_shift, text_scale, text_gate, *text_mlp = _modulations(
                block, "norm1_context", temb, text, 6
            )
        else:
            text_scale, text_shift = _modulations(block, "norm1_context", temb, text, 2)
        normed_text = _modulate(text, text_shift, text_scale)

        attention = block.at("attn")
        parts = zip(
            self._project(attention, normed_text, "add_{}_proj", f"{self.added_norm}_{{}}"),
            self._project(attention, normed, "to_{}", "norm_{}"),
            strict=True,
        )
        q, k, v = (torch.cat(pair, dim=1) for pair in parts)
        mixed = _attend(q, k, v, rotations, visible)
        update = attention.linear("to_out.0", mixed[:, text.shape[1] :])
        video = video + gate * update
        video = _feed_forward(block.at("ff"), video, *mlp)
        if updates_text:
            update = attention.linear("to_add_out", mixed[:, : text.shape[1]])
            text = text + text_gate * update
            text = _feed_forward(block.at("ff_context"), text, *text_mlp)
        return text, video

    def _single_block(
        self,
        name: str,
        x: Tensor,
        temb: Tensor,
        rotations: tuple[Tensor, Tensor],
        visible: Tensor,
    ) -> Tensor:
        block = self.weights.at(name)
        shift, scale, gate = _modulations(block, "norm", temb, x, 3)
        normed = _modulate(x, shift, scale)
        projections = self._project(block.at("attn"), normed, "to_{}", "norm_{}")
        mixed = _attend(*projections, rotations, visible)
        mlp = F.gelu(block.linear("proj_mlp", normed), approximate="tanh")
        return x + gate * block.linear("proj_out", torch.cat([mixed, mlp], dim=2))

    def _project(
        self, attention: Weights, x: Tensor, linear: str, norm: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, L, H, head_dim]`, not yet rotated."""
        heads = (self.config.num_attention_heads, self.config.attention_head_dim)
        q, k, v = (attention.linear(linear.format(n), x).unflatten(-1, heads) for n in "qkv")
        q = _rms_norm(q, attention[f"{norm.format('q')}.weight"], self.rms_eps)
        k = _rms_norm(k, attention[f"{norm.format('k')}.weight"], self.rms_eps)
        return q, k, v


class BaselineFlux(BaselineTransformer):
    """`PyramidFluxTransformer` in the reference's way."""

    rms_eps = 1e-6
    added_norm = "norm_added"

    def _embed(self, clip: Tensor, last: Tensor) -> Tensor:
        return self.weights.linear("x_embedder", patchify(clip))

    def _rotations(self, clips: Sequence[Tensor], text_length: int) -> tuple[Tensor, Tensor]:
        last, frame = clip_grid(clips[-1]), 0
        parts = []
        for grid in map(clip_grid, clips):
            reference = last if self.config.interp_condition_pos else grid
            axes = (
                torch.arange(frame, frame + grid.frames, dtype=torch.float64),
                _resampled(grid.height, reference.height),
                _resampled(grid.width, reference.width),
            )
            parts.append(torch.cartesian_prod(*axes))
            frame += grid.frames
        positions = F.pad(torch.cat(parts), (0, 0, text_length, 0))  # [L, 3]
        positions = positions.expand(len(clips[-1]), -1, -1)
        dims = self.config.axes_dims_rope
        angles = [_angles(positions[..., axis], dim) for axis, dim in enumerate(dims)]
        return _cos_sin(torch.cat(angles, dim=-1), clips[-1].device)

    def _run_blocks(
        self,
        text: Tensor,
        video: Tensor,
        temb: Tensor,
        rotations: tuple[Tensor, Tensor],
        visible: Tensor,
    ) -> Tensor:
        for index in range(self.config.num_layers):
            name = f"transformer_blocks.{index}"
            text, video = self._joint_block(name, text, video, temb, rotations, visible)
        x = torch.cat([text, video], dim=1)
        for index in range(self.config.num_single_layers):
            x = self._single_block(
                f"single_transformer_blocks.{index}", x, temb, rotations, visible
            )
        return x[:, text.shape[1] :]


class BaselineMMDiT(BaselineTransformer):
    """`PyramidDiffusionMMDiT` in the reference's way."""

    rms_eps = 1e-5
    added_norm = "norm_add"

    def _embed(self, clip: Tensor, last: Tensor) -> Tensor:
        embed, grid = self.weights.at("pos_embed"), clip_grid(clip)
        frames = clip.transpose(1, 2).flatten(0, 1)
        frames = F.conv2d(frames, embed["proj.weight"], embed["proj.bias"], stride=2)
        source = clip_grid(last if self.config.interp_condition_pos else clip)
        side = self.config.pos_embed_max_size
        top, left = (side - source.height) // 2, (side - source.width) // 2
        table = embed["pos_embed"].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        crop = table[:, :, top : top + source.height, left : left + source.width]
        size = (grid.height, grid.width)
        crop = F.interpolate(crop, size=size, mode="bilinear", align_corners=False)
        tokens = (frames + crop.to(frames.dtype)).flatten(2).transpose(1, 2)
        return tokens.reshape(len(clip), grid.tokens, -1)

    def _rotations(self, clips: Sequence[Tensor], text_length: int) -> tuple[Tensor, Tensor]:
        times = F.pad(_frame_numbers(clips), (text_length, 0)).expand(len(clips[-1]), -1)
        return _cos_sin(_angles(times, self.config.attention_head_dim), clips[-1].device)

    def _run_blocks(
        self,
        text: Tensor,
        video: Tensor,
        temb: Tensor,
        rotations: tuple[Tensor, Tensor],
        visible: Tensor,
    ) -> Tensor:
        for index in range(self.config.num_layers):
            name = f"transformer_blocks.{index}"
            text, video = self._joint_block(name, text, video, temb, rotations, visible)
        return video


def baseline_transformer(
    dit: PyramidFluxTransformer | PyramidDiffusionMMDiT,
) -> BaselineTransformer:
    """The baseline with the architecture and the weights of `dit`."""
    return BaselineFlux(dit) if isinstance(dit, PyramidFluxTransformer) else BaselineMMDiT(dit)


def attention_mask(mask: Tensor, clips: Sequence[Tensor], *, causal: bool) -> Tensor:
    """Attention mask, dense: `[B, 1, L, L]` bool.

    Padding sees padding only, so that no row is empty; a token sees those not later than itself.

    Args:
        mask: `[B, T]`, 1 for real text tokens.
        clips: `[B, C, t, h, w]`, oldest first.
        causal: Whether time matters.
    """
    times = F.pad(_frame_numbers(clips), (mask.shape[1], 0)).to(mask.device)
    real = F.pad(mask.bool(), (0, len(times) - mask.shape[1]), value=True)
    visible = real[:, :, None] == real[:, None, :]
    if causal:
        visible = visible & (times[:, None] >= times[None, :])
    return visible[:, None]


def _frame_numbers(clips: Sequence[Tensor]) -> Tensor:
    """Number of the frame of every video token, counted through the clips, `[V]`."""
    parts, frame = [], 0
    for grid in map(clip_grid, clips):
        numbers = torch.arange(frame, frame + grid.frames, dtype=torch.float64)
        parts.append(numbers.repeat_interleave(grid.height * grid.width))
        frame += grid.frames
    return torch.cat(parts)


def _resampled(size: int, reference: int) -> Tensor:
    """Positions 0 to `reference - 1`, linearly resampled to `size` values."""
    ramp = torch.arange(reference, dtype=torch.float64)[None, None]
    return F.interpolate(ramp, size=size, mode="linear")[0, 0]


def _angles(positions: Tensor, dim: int) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    return positions[..., None] * THETA**-exponents


def _cos_sin(angles: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Float32 tables `[B, L, 1, head_dim / 2]` of angles `[B, L, head_dim / 2]`."""
    angles = angles[:, :, None]
    return angles.cos().float().to(device), angles.sin().float().to(device)


def _rotate(x: Tensor, rotations: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotations
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, rotations: tuple[Tensor, Tensor], visible: Tensor
) -> Tensor:
    q, k = _rotate(q, rotations), _rotate(k, rotations)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible).transpose(1, 2).flatten(2)


def _modulations(
    block: Weights, name: str, temb: Tensor, x: Tensor, count: int
) -> tuple[Tensor, ...]:
    """The `count` modulations, each expanded to the tokens of `x`: `[B, L, D]`."""
    modulations = block.linear(f"{name}.linear", temb)
    return modulations[:, None].repeat(1, x.shape[1], 1).chunk(count, dim=-1)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def _feed_forward(
    weights: Weights, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor
) -> Tensor:
    hidden = F.gelu(weights.linear("net.0.proj", _modulate(x, shift, scale)), approximate="tanh")
    return x + gate * weights.linear("net.2", hidden)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def _mlp(weights: Weights, x: Tensor) -> Tensor:
    return weights.linear("linear_2", F.silu(weights.linear("linear_1", x)))
