"""What a training keeps for its backward pass, counted on tensors that have shapes and no values.

The models themselves run, so that nothing is left to estimate: neither what PyTorch keeps of an
operation, nor what autocast and adapters add to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

WHOLE_BLOCKS = 3
"""Blocks of a kind that are run: the first, the last, and one that stands for all between."""


class Shapes(FakeTensorMode):
    """Makes tensors without values meanwhile.

    Args:
        number: What a tensor says that is asked for a value: the models ask for lengths of texts.
    """

    def __init__(self, number: int) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._number = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or tell the number."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._number
        return super().__torch_dispatch__(func, types, args, kwargs)


def without_values(module: nn.Module) -> None:
    """Give a module that is `meta` tensors of the mode that is at work, on the CPU.

    Its weights could not be changed in kind afterwards, so that adapters come before.
    """
    known: dict[Tensor, Tensor] = {}  # a weight may be in two places
    for part in module.modules():
        for name, old in part.named_parameters(recurse=False):
            if old not in known:
                new = torch.empty(old.shape, dtype=old.dtype)
                known[old] = nn.Parameter(new, requires_grad=old.requires_grad)
            part._parameters[name] = known[old]  # type: ignore[assignment]
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class AutocastOfGpus(TorchFunctionMode):
    """Has autocast compute layer norms in float32, as it does on GPUs and not on CPUs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of PyTorch."""
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@dataclass
class Block:
    """Bytes of one pass through one block."""

    inputs: int
    """What it is handed, which is all that is kept where it is computed again."""
    saved: int = 0
    """What it keeps otherwise, inputs included."""


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass leaves behind.

    Attributes:
        around: Of what is before, between and behind the blocks.
        passes: The blocks, in their order, of every pass through all of them: columns of a batch
            whose shapes differ take one each.
    """

    around: int
    passes: Sequence[Sequence[Block]]

    def kept(self, checkpointed: float = 0.0) -> int:
        """What is there when the backward pass begins.

        Args:
            checkpointed: Share of the blocks, from the first on, that are computed again.
        """
        return self.around + sum(
            block.inputs if again else block.saved
            for blocks in self.passes
            for block, again in _which(blocks, checkpointed)
        )

    def peak(self, checkpointed: float = 0.0) -> int:
        """The most that is there during the backward pass: a block is computed again when those
        behind it are done."""
        more = [0]
        for blocks in self.passes:
            which = list(_which(blocks, checkpointed))
            freed = sum(block.saved for block, again in which if not again)
            largest = max((b.saved - b.inputs for b, again in which if again), default=0)
            more.append(largest - freed)
        return self.kept(checkpointed) + max(more)


def _which(blocks: Sequence[Block], share: float) -> Iterator[tuple[Block, bool]]:
    """Blocks, and whether each is computed again, as `PyramidTransformer` has it."""
    last = round(share * len(blocks))
    return ((block, index < last) for index, block in enumerate(blocks))


class _Counter:
    """Counts what is kept, each storage once, by the block in which it is kept first."""

    def __init__(self, module: nn.Module) -> None:
        tensors = [*module.parameters(), *module.buffers()]
        self._seen = {tensor.untyped_storage()._cdata for tensor in tensors}
        self._alive: list[Any] = []  # so that no storage takes the place of another
        self._current: Block | None = None
        self.around = 0
        self.blocks: dict[nn.Module, list[Block]] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        if storage._cdata not in self._seen and not _is_copied_weight(tensor):
            self._seen.add(storage._cdata)
            if self._current is None:
                self.around += storage.nbytes()
            else:
                self._current.saved += storage.nbytes()
        return tensor

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        streams = [value for value in args[:2] if isinstance(value, Tensor)]  # video and text
        self._current = Block(sum(value.numel() * value.element_size() for value in streams))
        self.blocks.setdefault(module, []).append(self._current)

    def leave(self, *_: Any) -> None:
        self._current = None


def _is_copied_weight(tensor: Tensor) -> bool:
    """Whether it is a weight that autocast has brought into the dtype that is computed in."""
    node: Any = tensor.grad_fn
    while node is not None and node.name() in ("TBackward0", "ToCopyBackward0"):
        node = node.next_functions[0][0]
    return node is not None and node.name().endswith("AccumulateGrad")


@contextmanager
def _counted(module: nn.Module, blocks: Sequence[nn.Module] = ()) -> Iterator[_Counter]:
    counter = _Counter(module)
    hooks = [block.register_forward_pre_hook(counter.enter) for block in blocks]
    hooks += [block.register_forward_hook(counter.leave) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor):
        yield counter
    for hook in hooks:
        hook.remove()


def saved_bytes(module: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that `run` leaves for the backward pass, beside the weights of `module`."""
    with _counted(module) as counter:
        run()
    return counter.around


def saved_by_blocks(dit: Any, layers: Sequence[int], run: Callable[[], object]) -> Activations:
    """What `run`, which calls a transformer, leaves for the backward pass.

    Args:
        dit: The transformer, without gradient checkpointing; it may have fewer blocks of each kind
            than it is counted for, `WHOLE_BLOCKS` at least, or as many.
        layers: How many blocks of each kind it is counted for.
        run: What calls it.
    """
    kinds = [list(module) for module in dit.children() if isinstance(module, nn.ModuleList)]
    with _counted(dit, [block for kind in kinds for block in kind]) as counter:
        run()
    standing = [
        kind[_stands_for(index, count, len(kind))]
        for kind, count in zip(kinds, layers, strict=True)
        for index in range(count)
    ]
    passes = zip(*(counter.blocks[block] for block in standing), strict=True)
    return Activations(counter.around, list(passes))


def _stands_for(index: int, count: int, there: int) -> int:
    """Which of the blocks that are `there` stands for block number `index` of `count`."""
    return there - 1 if index == count - 1 else min(index, max(there - 2, 0))
