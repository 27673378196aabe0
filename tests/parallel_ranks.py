"""Run by torchrun: compute together what each process also computes alone, and compare.

Each process writes `rank<r>.json` into the folder given: the largest relative error of each case.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from golden import relative_error
from PIL import Image
from tiny_checkpoint import DIT_CONFIGS
from torch import Tensor

from benchmarks.cost_model import BYTES, Architecture, pass_cost
from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.distributed.parallel import (
    Parallel,
    form_groups,
    leave_processes,
    processes_at_work,
    split_sizes,
)
from pyramid_dit.models.flux import PyramidFluxTransformer
from pyramid_dit.models.token_layout import clip_grid, make_layout
from pyramid_dit.models.transformer import PyramidTransformer
from trainer_misc import (
    get_rank,
    get_sequence_parallel_group,
    get_sequence_parallel_group_rank,
    get_sequence_parallel_rank,
    get_sequence_parallel_world_size,
    init_distributed_mode,
    init_sequence_parallel_group,
    is_sequence_parallel_initialized,
)

T = TypeVar("T")

PROMPT = "a red circle moves left on a white background"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def summed(x: Tensor | None, like: Tensor) -> Tensor:
    total = torch.zeros_like(like) if x is None else x.clone()
    dist.all_reduce(total)
    return total


def of_first(compute: Callable[[], T]) -> T:
    """What process 0 computes, alone; the others wait, as the cores are few."""
    results: list[Any] = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(results, src=0)
    return results[0]


def exchanges(parallel: Parallel) -> dict[str, float]:
    """Tokens to heads and back, for lengths and heads that do not divide, and for nothing."""
    found = {}
    rank, count = parallel.sequence_rank, parallel.sequence
    for batch, heads, lengths in [(1, 4, (1, 7, 9)), (2, 5, (6, 0, 5)), (2, 7, (3, 2, 2))]:
        x = random(batch, sum(lengths), heads, 3).double().requires_grad_()
        segments = x.split(lengths, dim=1)
        own = torch.cat([parallel.shard(segment) for segment in segments], dim=1)
        mine, squares = parallel.to_heads([own, own * own], lengths)
        back = parallel.to_tokens(mine * mine + squares, lengths, heads)
        parts = back.split([split_sizes(length, count)[rank] for length in lengths], dim=1)
        pairs = zip(parts, lengths, strict=True)
        whole = torch.cat([parallel.gather(part, length) for part, length in pairs], dim=1)
        weights = random(*x.shape, seed=1).double()
        (whole * weights).sum().backward()
        name = f"exchange of {lengths} tokens, {heads} heads"
        x.requires_grad_(False)
        found[name] = relative_error(mine, x.tensor_split(count, dim=2)[rank])
        found[f"{name}, and back"] = relative_error(whole, 2 * x * x)
        found[f"{name}, gradient"] = relative_error(summed(x.grad, x), 4 * x * weights)
    return found


def dit_inputs(dit: PyramidTransformer) -> dict[str, Any]:
    """A batch with two stages, history at lower resolution, and texts of several lengths."""
    config = dit.config
    channels = config.in_channels // (4 if isinstance(dit, PyramidFluxTransformer) else 1)
    mask = torch.ones(4, 5, dtype=torch.long)
    mask[1, 2:] = mask[2, 1:] = 0
    return {
        "sample": [
            [random(2, channels, 1, 4, 4), random(2, channels, 1, 8, 8)],
            [random(2, channels, 1, 2, 2), random(2, channels, 1, 6, 4)],
        ],
        "encoder_hidden_states": random(4, 5, config.joint_attention_dim),
        "encoder_attention_mask": mask,
        "pooled_projections": random(4, config.pooled_projection_dim),
        "timestep_ratio": torch.tensor([100.0, 300.0, 500.0, 900.0]),
    }


def forward_and_gradients(dit: PyramidTransformer, parallel: Parallel) -> dict[str, float]:
    inputs = dit_inputs(dit)
    parameters = dict(dit.named_parameters())

    def run(**kwargs: Any) -> tuple[list[Tensor], dict[str, Tensor | None]]:
        outputs = dit(**inputs, **kwargs)
        loss = sum((out * random(*out.shape, seed=1)).sum() for out in outputs)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return [out.detach() for out in outputs], dict(zip(parameters, gradients, strict=True))

    alone, expected = of_first(run)
    together, partial = run(parallel=parallel)
    errors = [relative_error(*pair) for pair in zip(together, alone, strict=True)]
    found = {"forward": max(errors), "gradients": 0.0}
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, gradient in expected.items():
        if gradient is not None:
            difference = summed(partial[name], gradient) - gradient
            # a key's bias changes nothing: its gradient is rounding
            scale = max(float(gradient.abs().max()), 1e-3 * largest)
            found["gradients"] = max(found["gradients"], float(difference.abs().max()) / scale)
    with torch.no_grad():  # the last block then works for the last clip alone
        pairs = zip(dit(**inputs, parallel=parallel), alone, strict=True)
        found["forward, no gradients"] = max(relative_error(*pair) for pair in pairs)
    return found


@torch.no_grad()
def exchanged(dit: PyramidTransformer, parallel: Parallel) -> dict[str, float]:
    """The cost model counts the numbers that are really sent by process 0, which has the most."""
    config, sent = dit.config, []
    exchange = parallel._exchange

    def counted(x: Tensor, received: list[int], counts: list[int]) -> Tensor:
        sent.append(sum(counts) - counts[parallel.sequence_rank])
        return exchange(x, received, counts)

    inputs = dit_inputs(dit)
    history, clip = (clip[:1] for clip in inputs.pop("sample")[0])
    inputs = {name: value[:1] for name, value in inputs.items()}
    parallel._exchange = counted
    try:
        dit(sample=[[history, clip]], parallel=parallel, **inputs)
    finally:
        parallel._exchange = exchange
    layout = make_layout([clip_grid(history), clip_grid(clip)], 5, [0], temporal_causal=True)
    width = config.num_attention_heads * config.attention_head_dim
    model = Architecture(width, config.num_attention_heads, dit._num_blocks, 0, 0)
    cost = pass_cost(layout, model, parallel.sequence)
    return {
        "numbers sent": abs(sum(sent) * BYTES / cost.sent - 1) if parallel.rank == 0 else 0.0,
        "exchanges": float(len(sent) - cost.exchanges),
    }


def make_video(
    pipeline: PyramidDiTForVideoGeneration,
    case: str,
    output_type: str,
    *,
    together: bool,
    seed: int = 0,
) -> Tensor:
    settings = {
        "prompt": PROMPT,
        "num_inference_steps": [1, 2, 1],
        "generator": torch.Generator().manual_seed(seed),
        "output_type": output_type,
        "inference_multigpu": together,
    }
    if case == "image to video":
        image = Image.new("RGB", (64, 64), "red")
        return torch.as_tensor(pipeline.generate_i2v(input_image=image, temp=2, **settings))
    settings |= {"height": 64, "width": 64, "video_num_inference_steps": [1, 1, 2]}
    scale = 0.0 if case == "without guidance" else 2.0
    return torch.as_tensor(pipeline.generate(temp=3, guidance_scale=scale, **settings))


def both_ways(pipeline: PyramidDiTForVideoGeneration, *which: str) -> tuple[Tensor, Tensor]:
    """A video made together, and by one process alone."""
    together = make_video(pipeline, *which, together=True)
    return together, of_first(lambda: make_video(pipeline, *which, together=False))


def videos(pipeline: PyramidDiTForVideoGeneration) -> dict[str, float]:
    """Whole videos: relative error of the latents, mean difference of the pixels within 0 to 1."""
    found = {}
    for case in ("text to video", "without guidance", "image to video"):
        found[f"{case}, latents"] = relative_error(*both_ways(pipeline, case, "latent"))
    together, alone = both_ways(pipeline, "text to video", "np")
    # of the pixels the mean, as one may fall to the other side of where it is cut to a byte
    found["text to video, pixels"] = float((together - alone).abs().mean())
    return found


def live(pipeline: PyramidDiTForVideoGeneration) -> dict[str, float]:
    """Without end, and with the words that the first process says."""

    def make(*, together: bool) -> Tensor:
        first = dist.get_rank() == 0 or not together
        words = {2: "a blue square"} if first else {1: "a green cross"}
        settings: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 1}
        settings |= {"video_num_inference_steps": 1, "seed": 1, "output_type": "latent"}
        settings |= {"next_prompt": words.get, "inference_multigpu": together}
        with pipeline.live(PROMPT, **settings) as stream:
            return torch.cat([*islice(stream, 4)], dim=2)

    together = make(together=True)
    return {"live, latents": relative_error(together, of_first(lambda: make(together=False)))}


def fast_mode(pipeline: PyramidDiTForVideoGeneration) -> dict[str, float]:
    """What is kept from step to step is kept alike."""
    pipeline.enable_fast_mode(history_cache=2, guidance_interval=(0.0, 0.7))
    pair = both_ways(pipeline, "text to video", "latent")
    pipeline.disable_fast_mode()
    return {"fast mode, latents": relative_error(*pair)}


def sharded_weights(pipeline: PyramidDiTForVideoGeneration) -> dict[str, float]:
    """The same video with a part of the weights in each process, and the share of a process."""
    alone = make_video(pipeline, "text to video", "latent", together=True)
    whole = sum(p.numel() for p in pipeline.dit.parameters())
    pipeline.shard_weights("cpu")
    own = sum(p.to_local().numel() for p in pipeline.dit.parameters())
    together = make_video(pipeline, "text to video", "latent", together=True)
    # Parts of small weights are padded to equal sizes.
    excess = own / whole - 1 / dist.get_world_size()
    return {
        "sharded, latents": relative_error(together, alone),
        "sharded, excess of the own part": 0.0 if excess < 0.1 else excess,
    }


def same_everywhere(pipeline: PyramidDiTForVideoGeneration) -> dict[str, float]:
    """Processes whose random numbers differ still make one video."""
    rank = dist.get_rank()
    found = {}
    for name, generator in (
        ("no generator", None),
        ("other generators", torch.Generator().manual_seed(rank)),
    ):
        torch.manual_seed(rank)
        video = pipeline.generate(
            PROMPT,
            height=64,
            width=64,
            temp=1,
            num_inference_steps=1,
            generator=generator,
            output_type="latent",
            inference_multigpu=True,
        )
        videos = [torch.empty_like(video) for _ in range(dist.get_world_size())]
        dist.all_gather(videos, video)
        found[f"same everywhere, {name}"] = max(float((v - video).abs().max()) for v in videos)
    return found


def a_video_a_pair(pipeline: PyramidDiTForVideoGeneration) -> dict[str, float]:
    """Four processes, two videos at a time."""
    form_groups(2)
    seed = dist.get_rank() // 2
    together, alone = (
        make_video(pipeline, "text to video", "np", together=many, seed=seed)
        for many in (True, False)
    )
    form_groups()
    return {"a video a pair, pixels": float((together - alone).abs().mean())}


def ways_to_ask(before: bool) -> dict[str, float]:
    """What the reference's names say of groups of one process, of all, and of two."""
    world, rank = dist.get_world_size(), dist.get_rank()
    found = {"groups before they are formed": float(before)}
    for size in {1, world, 2 if world == 4 else 1}:
        form_groups(size)
        answers = (
            get_rank(),
            is_sequence_parallel_initialized(),
            get_sequence_parallel_rank(),
            get_sequence_parallel_world_size(),
            get_sequence_parallel_group_rank(),
        )
        expected = (rank, size > 1, rank % size, size, rank // size)
        if size > 1:
            answers += (dist.get_world_size(get_sequence_parallel_group()),)
            expected += (size,)
        found[f"groups of {size}"] = float(answers != expected)
    form_groups()
    return found


def refused() -> dict[str, float]:
    """Groups that cannot be: 0 where the error says what is wrong."""
    world = dist.get_world_size()
    found = {}
    for name, arguments, word in (
        ("groups that do not divide", (world + 1,), "divided"),
        ("too many processes", (1, world + 1), "cannot be used"),
    ):
        try:
            form_groups(*arguments)
        except ValueError as error:
            found[name] = float(word not in str(error))
        else:
            found[name] = 1.0
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    args = Namespace(sp_group_size=0, use_sequence_parallel=True, sp_proc_num=-1)
    init_distributed_mode(args)
    args.sp_group_size = args.world_size
    before = is_sequence_parallel_initialized()
    init_sequence_parallel_group(args)
    found: dict[str, float] = {}
    parallel = processes_at_work(guided=False)
    assert isinstance(parallel, Parallel)
    found |= exchanges(parallel)
    for name in DIT_CONFIGS:
        pipeline = PyramidDiTForVideoGeneration(folder / name, "fp32", name)
        results = forward_and_gradients(pipeline.dit, parallel)
        results |= exchanged(pipeline.dit, parallel)
        pipeline.dit.requires_grad_(False)
        if name == "pyramid_flux":  # both are sampled alike
            results |= videos(pipeline) | same_everywhere(pipeline) | fast_mode(pipeline)
            results |= live(pipeline)
            if args.world_size == 4:
                results |= a_video_a_pair(pipeline)
        else:
            results |= sharded_weights(pipeline)
        found |= {f"{name}: {case}": error for case, error in results.items()}
    found |= ways_to_ask(before)
    found |= refused()
    (folder / f"rank{args.rank}.json").write_text(json.dumps(found))
    leave_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
