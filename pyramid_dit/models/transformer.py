"""What the two diffusion transformers share: the forward contract and the way through it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from video_vae.single_file import FromSingleFile, Shapes

from ..distributed.parallel import SERIAL, Serial
from .attention import AttentionContext, HistoryCache, last_tokens
from .blocks import JointBlock, SingleBlock
from .layers import AdaLayerNorm, AdaLayerNormContinuous, TimestepTextEmbedding, residual_dtype
from .lora import LoraAdapters, lora_scale
from .token_layout import (
    PATCH,
    Grid,
    TokenLayout,
    clip_grid,
    grid_of,
    make_layout,
    pack_text,
    unpatchify,
)

Clips = Sequence[Tensor]


@dataclass(frozen=True)
class StageContext:
    """What stays the same over the steps of a stage; made by `prepare`, for `denoise`.

    Attributes:
        attention: Layout and rotations of all tokens.
        text: Packed and projected text `[B, T, D]`; of this and of the history a process has its
            part.
        pooled: Embedding of the pooled text `[B, D]`.
        history: Embedded history `[B, H, D]`, H may be 0.
        positions: What is added to the tokens of the last clip, if there is anything.
        order: The rows in which the batch is worked on; rows of equal text length are neighbors.
        name: Tells the contexts of a stage apart for diffusers' caches.
    """

    attention: AttentionContext
    text: Tensor
    pooled: Tensor
    history: Tensor
    positions: Tensor | None
    order: list[int] | None
    name: str


_CONTEXTS = itertools.count()
WORKING_CACHES = ("FirstBlockCacheConfig", "MagCacheConfig", "TaylorSeerCacheConfig")
"""Of diffusers' caches. The others look for attention modules of diffusers, for one long forward
call or for a text that is encoded anew at every step, none of which there is."""
_CACHES = threading.RLock()
"""Held by a thread whose context is that of diffusers' caches, of which there is one at a time."""


class PyramidTransformer(ModelMixin, ConfigMixin, CacheMixin, LoraAdapters, FromSingleFile):
    """Backbone of both transformers.

    Subclasses make `transformer_blocks` (and what else they have) between `_make_stem` and
    `_finish`, and say how clips become tokens (`_embed_clip`), where tokens are
    (`_clip_positions`, `_clip_rotations`) and what the blocks do (`_run_blocks`).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["JointBlock", "SingleBlock"]
    _repeated_blocks = ["JointBlock", "SingleBlock"]
    _single_file_prefixes = ("dit.", "model.diffusion_model.")

    transformer_blocks: nn.ModuleList
    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable[..., Any]

    def _make_stem(self, *, dim: int, text_dim: int, pooled_dim: int, out_channels: int) -> None:
        """Make the embedders of the conditioning and the output layers."""
        self.gradient_checkpointing = False
        self.time_text_embed = TimestepTextEmbedding(dim, pooled_dim)
        self.context_embedder = nn.Linear(text_dim, dim)
        self.norm_out = AdaLayerNormContinuous(dim)
        self.proj_out = nn.Linear(dim, PATCH * PATCH * out_channels)

    @classmethod
    def _config_of_shapes(cls, shapes: Shapes) -> dict[str, Any]:
        dim, text_dim = shapes["context_embedder.weight"]
        head_dim = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
        return {
            "num_layers": shapes.number("transformer_blocks"),
            "attention_head_dim": head_dim,
            "num_attention_heads": dim // head_dim,
            "joint_attention_dim": text_dim,
            "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        }

    @property
    def _num_blocks(self) -> int:
        return sum(len(m) for m in self.children() if isinstance(m, nn.ModuleList))

    def _finish(self) -> None:
        """Initialize the weights and apply what the config says about checkpointing."""
        share = self.config.gradient_checkpointing_ratio
        if not 0 <= share <= 1:
            raise ValueError(f"gradient_checkpointing_ratio must be within 0..1, not {share}")
        initialize_weights(self)
        if self.config.use_gradient_checkpointing:
            self.enable_gradient_checkpointing()

    def _embed_clip(self, clip: Tensor) -> Tensor:
        raise NotImplementedError

    def _clip_positions(self, grid: Grid, last: Grid) -> Tensor | None:
        """What to add to the tokens of a clip `[1, tokens, D]`, if anything."""
        return None

    def _clip_rotations(self, grid: Grid, first_frame: int, last: Grid) -> Tensor:
        raise NotImplementedError

    def _run_blocks(
        self,
        text: Tensor | None,
        video: Tensor,
        conditioning: Tensor,
        context: AttentionContext,
        keep: int | None,
    ) -> Tensor:
        """The last `keep` video tokens, or all of them, after all blocks."""
        raise NotImplementedError

    def forward(
        self,
        sample: Sequence[Clips],
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor,
        timestep_ratio: Tensor,
        *,
        parallel: Serial = SERIAL,
        attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool | None = None,
    ) -> list[Tensor] | tuple[list[Tensor]] | Transformer2DModelOutput:
        """Velocity of the last clip of every stage entry.

        Args:
            sample: one entry for each pyramid stage of the batch (S entries), each a list of
                clips `[b, C, t, h, w]`, oldest first; the last one is noisy and predicted, those
                before it are its history.
            encoder_hidden_states: `[b·S, L, joint]` text; row p::S belongs to entry p.
            encoder_attention_mask: `[b·S, L]`, 1 for real tokens.
            pooled_projections: `[b·S, P]`.
            timestep_ratio: `[b·S]`, 0..1000.
            parallel: processes that share the tokens; all of them call this with equal arguments.
            attention_kwargs: `{"scale": s}` makes all LoRAs s times as strong.
            return_dict: as of diffusers' models, True returns a record and False a tuple; by
                default the list itself, as in the official code.

        Returns:
            A tensor `[b, C, t, h, w]` for each entry: in a list, in a tuple with that list, or
            with the list as `.sample`.

        Raises:
            TypeError: `attention_kwargs` is no dictionary.
            ValueError: no entry or no clip, odd sizes, rows that do not match the sample, another
                entry in `attention_kwargs`, or a scale there beside gradient checkpointing.
        """
        conditions = {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "pooled_projections": pooled_projections,
            "timestep_ratio": timestep_ratio,
        }
        _check_inputs(sample, conditions)
        self._check_lora_scale(attention_kwargs)
        count = len(sample)
        by_entry: dict[int, Tensor] = {}
        with lora_scale(self, attention_kwargs):
            for entries in _entries_of_equal_shape(sample):
                columns = zip(*(sample[p] for p in entries), strict=True)
                clips = [_concat(column) for column in columns]
                rows = [_concat([x[p::count] for p in entries]) for x in conditions.values()]
                *texts, timestep = rows
                context = self.prepare(clips[:-1], clips[-1].shape, *texts, parallel=parallel)
                predictions = self.denoise(clips[-1], timestep, context).chunk(len(entries))
                self.forget_cached(context)
                by_entry.update(zip(entries, predictions, strict=True))
        velocities = [by_entry[p] for p in range(count)]
        if return_dict is None:
            return velocities
        return Transformer2DModelOutput(sample=velocities) if return_dict else (velocities,)

    def prepare(
        self,
        history: Clips,
        shape: Sequence[int],
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor,
        *,
        refresh_history: int = 1,
        parallel: Serial = SERIAL,
    ) -> StageContext:
        """Compute what does not change between the steps of a stage.

        Args:
            history: clips `[b, C, t, h, w]`, oldest first.
            shape: shape of the clip to predict, `[b, C, t, h, w]`.
            encoder_hidden_states: `[b, L, joint]`.
            encoder_attention_mask: `[b, L]`, 1 for real tokens.
            pooled_projections: `[b, P]`.
            refresh_history: steps between two computations of text and history. With 1 the
                result is exact, with more it is approximate and cheaper.
            parallel: processes that share the tokens; all of them call this with equal arguments.

        Returns:
            What `denoise` takes.

        Raises:
            ValueError: `refresh_history` is below 1, or above it without temporal causality or
                while one of diffusers' caches is enabled; or there are more processes than heads,
                or they share tokens while one of diffusers' caches is enabled, which each process
                would decide on by its own tokens.
        """
        parallel.check_heads(self.config.num_attention_heads)
        if parallel.sequence > 1 and self.is_cache_enabled:
            raise ValueError("diffusers' caches do not work where processes share the tokens")
        text, mask = encoder_hidden_states, encoder_attention_mask
        if not self.config.get("use_t5_mask", True):
            mask = torch.ones_like(mask)
        text, paddings = pack_text(text, mask)
        order: list[int] | None = sorted(range(len(paddings)), key=paddings.__getitem__)
        if order == list(range(len(paddings))):
            order = None
        else:
            paddings.sort()
        last = grid_of(shape)
        grids = [*map(clip_grid, history), last]
        causal = self.config.use_temporal_causal
        layout = make_layout(grids, text.shape[1], paddings, temporal_causal=causal)
        if refresh_history > 1 and self.is_cache_enabled:
            raise ValueError("history_cache does not work together with one of diffusers' caches")
        if refresh_history > 1 and not causal:
            raise ValueError("without temporal causality the history sees the clip being made")
        clips = [
            self._position(self._embed_clip(clip.to(self.dtype)), self._clip_positions(grid, last))
            for clip, grid in zip(history, grids, strict=False)
        ]
        pooled = self.time_text_embed.text_embedder(pooled_projections.to(self.dtype))
        text = self.context_embedder(text.to(self.dtype)).to(residual_dtype(self.dtype))
        past = _concat(clips, dim=1).to(text.dtype) if clips else text[:, :0]
        cache = None
        if clips and refresh_history != 1:
            cache = HistoryCache(every=refresh_history, last_tokens=last.tokens)
        return StageContext(
            attention=AttentionContext(
                layout,
                (layout.text_length, layout.history_tokens, layout.last_tokens),
                self._rotations(layout).to(text.device),
                cache,
                parallel,
            ),
            text=parallel.shard(_reorder(text, order)),
            pooled=_reorder(pooled, order),
            history=parallel.shard(_reorder(past, order)),
            positions=self._clip_positions(last, last),
            order=order,
            name=f"stage {next(_CONTEXTS)}",
        )

    def denoise(self, latents: Tensor, timestep: Tensor, context: StageContext) -> Tensor:
        """Velocity of a clip at one step.

        Args:
            latents: the noisy clip `[b, C, t, h, w]`.
            timestep: `[b]`, 0..1000.
            context: what `prepare` made for this stage.

        Returns:
            `[b, C, t, h, w]`, in the dtype of `latents`.
        """
        timestep = _reorder(timestep, context.order)
        tokens = self._embed_clip(_reorder(latents, context.order).to(self.dtype))
        parallel = context.attention.parallel
        tokens = parallel.shard(self._position(tokens, context.positions).to(context.text.dtype))
        embed = self.time_text_embed
        conditioning = F.silu(embed.embed_timestep(timestep, self.dtype) + context.pooled)

        attention = context.attention
        text: Tensor | None = context.text
        own = tokens.shape[1]
        keep: int | None = own
        if attention.cache is not None:
            attention.cache.begin_step()
        if attention.cache is not None and attention.cache.reusing:
            text = None
            last = attention.lengths[-1]
            rotations = attention.rotations[-last:]
            attention = replace(attention, lengths=(last,), rotations=rotations)
        else:
            tokens = _concat([context.history, tokens], dim=1)
        if self.is_cache_enabled:
            keep = None  # diffusers' caches take differences of the blocks' inputs and outputs
        with self._cached_as(context.name):
            tokens = self._run_blocks(text, tokens, conditioning, attention, keep)
            velocity = self.proj_out(self.norm_out(last_tokens(tokens, own), conditioning))
        grid = attention.layout.grids[-1]
        velocity = parallel.gather(velocity, grid.tokens)
        velocity = unpatchify(velocity, grid).to(latents.dtype)
        return velocity if context.order is None else velocity[_inverse(context.order)]

    def _check_lora_scale(self, attention_kwargs: Mapping[str, Any] | None) -> None:
        recomputed = self.gradient_checkpointing and torch.is_grad_enabled()
        if attention_kwargs and recomputed:
            raise ValueError(
                "attention_kwargs do not go together with gradient checkpointing, which would "
                "recompute blocks with LoRAs of another strength: use set_adapters"
            )

    @staticmethod
    def _position(tokens: Tensor, positions: Tensor | None) -> Tensor:
        # a table that is offloaded lies elsewhere
        return tokens if positions is None else tokens + positions.to(tokens.device)

    @contextmanager
    def _cached_as(self, name: str) -> Iterator[None]:
        """Let diffusers' caches, where one is enabled, keep what they need under `name`."""
        if not self.is_cache_enabled:
            yield
            return
        with _CACHES, self.cache_context(name):
            yield

    def enable_cache(self, config: Any) -> None:
        """Skip work from step to step as one of diffusers' caches does: approximate.

        Args:
            config: `FirstBlockCacheConfig`, `MagCacheConfig` or `TaylorSeerCacheConfig`. Each
                stage of each unit starts anew, so steps are counted within a stage.

        Raises:
            ValueError: A cache is enabled already, or it is one that finds nothing to skip here.
        """
        if type(config).__name__ not in WORKING_CACHES:
            raise ValueError(
                f"{type(config).__name__} has no effect on this model; of diffusers' caches "
                f"{', '.join(WORKING_CACHES)} have"
            )
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

        for block in (JointBlock, SingleBlock):
            outputs = TransformerBlockMetadata(
                return_hidden_states_index=1, return_encoder_hidden_states_index=0
            )
            TransformerBlockRegistry.register(block, outputs)
        super().enable_cache(config)

    def forget_cached(self, context: StageContext) -> None:
        """Drop what diffusers' caches keep of a stage that is over."""
        if not self.is_cache_enabled:
            return
        with _CACHES:
            for module in self.modules():
                registry = getattr(module, "_diffusers_hook", None)
                for hook in () if registry is None else registry.hooks.values():
                    if (manager := getattr(hook, "state_manager", None)) is not None:
                        manager._state_cache.pop(context.name, None)

    def _rotations(self, layout: TokenLayout) -> Tensor:
        """Rotations of [text ; clips], complex64 `[L, head_dim / 2]`; text stays at 0."""
        parts, frame = [], 0
        for grid in layout.grids:
            parts.append(self._clip_rotations(grid, frame, layout.grids[-1]))
            frame += grid.frames
        still = parts[0].new_ones(layout.text_length, parts[0].shape[1])
        return torch.cat([still, *parts])

    def _run(self, index: int, block: nn.Module, *args: Any) -> Any:
        """Run the block number `index` of all, with its activations kept or recomputed."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            share = self.config.gradient_checkpointing_ratio
            if index < round(share * self._num_blocks):
                return self._gradient_checkpointing_func(block, *args)
        return block(*args)


def _check_inputs(sample: Sequence[Clips], conditions: dict[str, Tensor]) -> None:
    if not sample or not all(len(clips) for clips in sample):
        raise ValueError("`sample` needs at least one entry, and each entry at least one clip")
    batch = sample[0][0].shape[0]
    for clip in (clip for clips in sample for clip in clips):
        if (
            clip.ndim != 5
            or clip.shape[0] != batch
            or clip.shape[3] % PATCH
            or clip.shape[4] % PATCH
        ):
            raise ValueError(
                f"clips must be [b, C, t, h, w] with b = {batch} and even h and w, "
                f"not {tuple(clip.shape)}"
            )
    rows = batch * len(sample)
    for name, value in conditions.items():
        if value.shape[:1] != (rows,):
            raise ValueError(f"`{name}` must have {rows} rows, not the shape {tuple(value.shape)}")
    states, mask = conditions["encoder_hidden_states"], conditions["encoder_attention_mask"]
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"`encoder_attention_mask` must be {tuple(states.shape[:2])}, not {tuple(mask.shape)}"
        )


def _concat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that copies nothing when there is only one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _reorder(rows: Tensor, order: list[int] | None) -> Tensor:
    return rows if order is None else rows[order]


def _inverse(order: list[int]) -> list[int]:
    """The permutation that undoes `order`."""
    return sorted(range(len(order)), key=order.__getitem__)


def _entries_of_equal_shape(sample: Sequence[Clips]) -> list[list[int]]:
    """Numbers of the entries that can run as one batch."""
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for index, clips in enumerate(sample):
        groups.setdefault(tuple(clip.shape for clip in clips), []).append(index)
    return list(groups.values())


def initialize_weights(model: PyramidTransformer) -> None:
    """Fresh weights: every block starts as the identity and the velocity as zero.

    Xavier-uniform linears (a convolution counts as one over its flattened kernel) with zero
    bias; normal of deviation 0.02 for the embedders of time and text; zero for the AdaLN linears
    and the output. The pre-only text norm in the last block of the MMDiT keeps its Xavier
    weights: it feeds the attention and gates nothing.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embed = model.time_text_embed
    for mlp in (embed.timestep_embedder, embed.text_embedder):
        nn.init.normal_(mlp.linear_1.weight, std=0.02)
        nn.init.normal_(mlp.linear_2.weight, std=0.02)
    nn.init.normal_(model.context_embedder.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, AdaLayerNorm):
            nn.init.zeros_(module.linear.weight)
    nn.init.zeros_(model.norm_out.linear.weight)
    nn.init.zeros_(model.proj_out.weight)
