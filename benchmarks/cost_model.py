"""What a video costs each of 1 to 64 processes: arithmetic, exchange, memory. A model, no timing.

Everything is counted from the token layouts that the sampler uses, for the process that has the
most to do (tokens and heads are dealt out as by `torch.tensor_split`), with guidance, in bf16:

- PFLOP: linear layers of its tokens and attention of its heads, for the whole video.
- share: of the processes' arithmetic, how much is not waiting for the busiest one.
- exchanged: what a process sends to others around the attention, for the whole video.
- memory: weights, and in the last step of the video activations and the keys and values of a
  block.
- time: PFLOP by the rate, exchange by the bandwidth and the latency that the options give, nothing
  overlapped.

Numbers of processes that the heads do not suffice for are left out, and so are the text encoders
and the VAE.
"""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pyramid_dit import PyramidDiffusionMMDiT, PyramidFluxTransformer
from pyramid_dit.distributed.parallel import BRANCHES, mesh_shape, split_sizes
from pyramid_dit.flow.sizes import SPATIAL_FACTOR, temp_of_seconds
from pyramid_dit.flow.temporal_pyramid import history_plan
from pyramid_dit.generation.memory_estimates import STEP_WIDTHS
from pyramid_dit.models.token_layout import (
    PATCH,
    Grid,
    TokenLayout,
    make_layout,
)

from .report import Cell, markdown_table

SIZES = {"384p": (384, 640), "768p": (768, 1280)}
STAGES = 3
MODELS = {"miniflux": PyramidFluxTransformer, "sd3": PyramidDiffusionMMDiT}
FIRST_STEPS, LATER_STEPS = 20, 10
"""Steps per stage, as in the released models' examples."""
TEXT_TOKENS = 128
BYTES = 2
"""Of a number in bf16."""
EXCHANGES = 2
"""In a block: queries, keys and values together, and the output."""
FRAME_RATE = 24
PEERS = 8
"""GPUs of a machine."""


@dataclass(frozen=True)
class Architecture:
    """The figures of a transformer that its cost depends on."""

    width: int
    heads: int
    blocks: int
    parameters: int
    block_parameters: int
    """Of its largest block."""

    @classmethod
    def of(cls, name: str) -> Architecture:
        """Of a released architecture, whose figures are the defaults of its class."""
        with torch.device("meta"):
            model = MODELS[name]()
        blocks = [b for m in model.children() if isinstance(m, torch.nn.ModuleList) for b in m]
        heads = model.config.num_attention_heads
        return cls(
            width=heads * model.config.attention_head_dim,
            heads=heads,
            blocks=len(blocks),
            parameters=sum(p.numel() for p in model.parameters()),
            block_parameters=max(sum(p.numel() for p in b.parameters()) for b in blocks),
        )


@dataclass(frozen=True)
class Cost:
    """What one process does for a video."""

    flops: float = 0.0
    sent: float = 0.0
    """Bytes."""
    exchanges: int = 0

    def __add__(self, other: Cost) -> Cost:
        exchanges = self.exchanges + other.exchanges
        return Cost(self.flops + other.flops, self.sent + other.sent, exchanges)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.sent * times, self.exchanges * times)


def stage_layouts(size: str, temp: int) -> Iterator[tuple[TokenLayout, int]]:
    """The layout of every stage of every unit, one sample, with the steps it is used for."""
    height, width = SIZES[size]

    def grid(stage: int, frames: int) -> Grid:
        side = SPATIAL_FACTOR * PATCH * 2 ** (STAGES - 1 - stage)
        return Grid(frames, height // side, width // side)

    for unit in range(temp):
        for stage in range(STAGES):
            history = [grid(c.stage, c.stop - c.start) for c in history_plan(unit, stage)]
            grids = [*history, grid(stage, 1)]
            layout = make_layout(grids, TEXT_TOKENS, [0], temporal_causal=True)
            yield layout, LATER_STEPS if unit else FIRST_STEPS


def own_tokens(layout: TokenLayout, parts: int) -> list[int]:
    """Of text, history and last clip, what the first of `parts` processes has."""
    segments = (layout.text_length, layout.history_tokens, layout.last_tokens)
    return [split_sizes(length, parts)[0] for length in segments]


def pass_cost(layout: TokenLayout, model: Architecture, parts: int) -> Cost:
    """One sample, one step: the first of `parts` processes that share the tokens."""
    own = own_tokens(layout, parts)
    tokens, last = sum(own), own[-1]
    total = layout.spans[-1].visible
    head_width = model.width // model.heads
    own_width = head_width * split_sizes(model.heads, parts)[0]
    pairs = sum((span.stop - span.start) * span.visible for span in layout.spans)

    # Both kinds of block have 12 D^2 weights for a token. The last block needs queries, outputs
    # and MLP for the last clip alone: 10 D^2, and keys and values (2 D^2) for all tokens.
    width = model.width
    block = 24 * width**2 * tokens + 4 * own_width * pairs
    last_block = 20 * width**2 * last + 4 * width**2 * tokens
    last_block += 4 * own_width * layout.last_tokens * total
    flops = (model.blocks - 1) * block + last_block

    # There: q, k, v of the own tokens for the heads of others. Back: the own heads' output for
    # the tokens of others.
    others_width = width - own_width
    sent = 3 * tokens * others_width + own_width * (total - tokens)
    sent_last = (2 * tokens + last) * others_width + own_width * (layout.last_tokens - last)
    exchanges = EXCHANGES * model.blocks + 1 if parts > 1 else 0  # the last block's q goes alone
    return Cost(flops, BYTES * ((model.blocks - 1) * sent + sent_last), exchanges)


def video_cost(layouts: Sequence[tuple[TokenLayout, int]], model: Architecture, ranks: int) -> Cost:
    """All of a video, for the busiest of `ranks` processes."""
    cfg, parts = mesh_shape(ranks, guided=True)
    passes = [pass_cost(layout, model, parts) * steps for layout, steps in layouts]
    total = sum(passes, Cost())
    batch = BRANCHES // cfg
    return Cost(total.flops * batch, total.sent * batch, total.exchanges)


def memory(
    layout: TokenLayout, model: Architecture, ranks: int, *, shard: bool
) -> tuple[float, ...]:
    """Bytes of weights, of activations, and of keys and values in a step.

    Divided weights come with two whole blocks: the one that runs and the next.
    """
    cfg, parts = mesh_shape(ranks, guided=True)
    batch = BRANCHES // cfg
    weights = model.parameters
    if shard and ranks > 1:
        weights = model.parameters / ranks + 2 * model.block_parameters
    activations = STEP_WIDTHS * model.width * sum(own_tokens(layout, parts)) * batch
    own_heads = split_sizes(model.heads, parts)[0]
    kept = 2 * layout.spans[-1].visible * own_heads * (model.width // model.heads) * batch
    return BYTES * weights, BYTES * activations, BYTES * kept


@dataclass(frozen=True)
class Machine:
    """What the model assumes of the hardware."""

    rate: float
    """FLOP/s of a GPU, as it is reached."""
    near: float
    """Bytes/s that a GPU sends to others of its machine."""
    far: float
    """The same to other machines."""
    latency: float
    """Seconds that an exchange takes however small it is."""

    def seconds(self, cost: Cost, parts: int) -> float:
        """Time for `cost` where `parts` processes share the tokens."""
        bandwidth = self.near if parts <= PEERS else self.far
        waiting = cost.sent / bandwidth + cost.exchanges * self.latency
        return cost.flops / self.rate + waiting


def table(
    name: str, size: str, seconds: float, ranks: Sequence[int], machine: Machine
) -> list[dict[str, Cell]]:
    """A row for each number of processes; those that the heads do not suffice for are left out.

    Args:
        name: Of `MODELS`.
        size: Of `SIZES`.
        seconds: Length of the video.
        ranks: Numbers of processes.
        machine: What they run on.
    """
    model = Architecture.of(name)
    layouts = list(stage_layouts(size, temp_of_seconds(seconds, FRAME_RATE)))
    alone = video_cost(layouts, model, 1)
    rows: list[dict[str, Cell]] = []
    for count in ranks:
        cfg, parts = mesh_shape(count, guided=True)
        if parts > model.heads:
            continue
        cost = video_cost(layouts, model, count)
        weights, activations, kept = memory(layouts[-1][0], model, count, shard=False)
        divided, *_ = memory(layouts[-1][0], model, count, shard=True)
        time = machine.seconds(cost, parts)
        rows.append(
            {
                "ranks": count,
                "cfg x sequence": f"{cfg} x {parts}",
                "PFLOP": cost.flops / 1e15,
                "share %": 100 * alone.flops / (count * cost.flops),
                "exchanged GB": cost.sent / 1e9,
                "weights GB": weights / 1e9,
                "with --shard GB": divided / 1e9,
                "activations GB": activations / 1e9,
                "keys, values GB": kept / 1e9,
                "time s": time,
                "speed-up": machine.seconds(alone, 1) / time,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="miniflux")
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 10.0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 16, 32, 60, 64])
    parser.add_argument("--tflops", type=float, default=400.0, help="of a GPU, as it is reached")
    parser.add_argument(
        "--near", type=float, default=300.0, help="GB/s from a GPU to others of its machine"
    )
    parser.add_argument("--far", type=float, default=40.0, help="GB/s to other machines")
    parser.add_argument("--latency", type=float, default=25.0, help="microseconds an exchange")
    options = parser.parse_args(arguments)
    machine = Machine(
        options.tflops * 1e12, options.near * 1e9, options.far * 1e9, options.latency * 1e-6
    )
    for size in options.sizes:
        for seconds in options.seconds:
            rows = table(options.model, size, seconds, options.ranks, machine)
            title = f"{options.model}, {size}, {seconds:g} s"
            sys.stdout.write(f"### {title}\n\n{markdown_table(rows)}\n\n")


if __name__ == "__main__":
    main()
