"""Parameter groups, learning-rate schedules and the optimizers that the trainers share."""

from __future__ import annotations

import functools
import math
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices are decayed, biases and 1-D ones are not."""
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def create_optimizer(args: Namespace, model: nn.Module) -> torch.optim.AdamW:
    """AdamW for the trainable parameters, by the options of the reference's trainers.

    Args:
        args: `lr` and `weight_decay`; where there are `opt`, `opt_eps`, and `opt_betas` or
            `opt_beta1` and `opt_beta2`, these too.
        model: What is trained. Biases and 1-D parameters are not decayed.

    Raises:
        ValueError: `opt` is not "adamw".
    """
    name = getattr(args, "opt", "adamw")
    if name.lower() != "adamw":
        raise ValueError(f"opt is {name!r}; 'adamw' is allowed")
    betas = getattr(args, "opt_betas", None)
    if betas is None:
        betas = (getattr(args, "opt_beta1", 0.9), getattr(args, "opt_beta2", 0.999))
    return torch.optim.AdamW(
        parameter_groups([model], args.weight_decay),
        lr=args.lr,
        betas=tuple(betas),
        eps=getattr(args, "opt_eps", 1e-8),
    )


def constant_scheduler(
    base_value: float,
    epochs: int,
    niter_per_ep: int,
    warmup_epochs: int = 0,
    start_warmup_value: float = 0.0,
    warmup_steps: int = -1,
) -> np.ndarray:
    """The value of every step `[epochs * niter_per_ep]`: a linear warm-up, then `base_value`.

    Args:
        base_value: After the warm-up.
        epochs: Their number.
        niter_per_ep: Steps of an epoch.
        warmup_epochs: Epochs of the warm-up.
        start_warmup_value: Where it begins.
        warmup_steps: Steps of it, in place of epochs where it is above 0.
    """
    return cosine_scheduler(
        base_value,
        base_value,
        epochs,
        niter_per_ep,
        warmup_epochs,
        start_warmup_value,
        warmup_steps,
    )


def cosine_scheduler(
    base_value: float,
    final_value: float,
    epochs: int,
    niter_per_ep: int,
    warmup_epochs: int = 0,
    start_warmup_value: float = 0.0,
    warmup_steps: int = -1,
) -> np.ndarray:
    """As `constant_scheduler`, with a half cosine down to `final_value` after the warm-up."""
    steps = epochs * niter_per_ep
    warmup = warmup_steps if warmup_steps > 0 else warmup_epochs * niter_per_ep
    schedule = functools.partial(
        learning_rate,
        steps=steps,
        peak=base_value,
        schedule="cosine",
        warmup=warmup,
        start=start_warmup_value,
        least=final_value,
    )
    return np.array([schedule(step) for step in range(steps)])


SCHEDULES = ("constant", "cosine", "trapezoid")


def learning_rate(
    step: int,
    *,
    steps: int,
    peak: float,
    schedule: str,
    warmup: int = 0,
    start: float = 0.0,
    least: float = 0.0,
    cooldown: int = 0,
) -> float:
    """Learning rate at `step`, counted from 0.

    Up in a straight line over `warmup` steps, of which the first has `start` and the last has
    `peak`; then "constant"; "cosine" down to `least` at `steps`; or "trapezoid", constant and then
    straight down to 0 over the last `cooldown` steps, so that a run can be lengthened or ended
    without planning it from the start.

    Raises:
        ValueError: If the schedule has another name.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if step < warmup:
        return start + (peak - start) * (step / (warmup - 1) if warmup > 1 else 1.0)
    if schedule == "trapezoid":
        return peak * min(1.0, max(0.0, (steps - step) / max(1, cooldown)))
    if schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return least + (peak - least) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak


UPDATE_RMS = 0.5


def orthogonalize(matrices: Tensor, *, iterations: int = 5) -> Tensor:
    """Bring the singular values of `matrices` [k, m, n] near 1 (quintic Newton-Schulz).

    The coefficients are those that Muon's author published: fast rather than exact, singular
    values end between about 0.7 and 1.2. In the matrices' own dtype: PyTorch's Muon goes to
    bfloat16, which is many times slower on a CPU without instructions for it.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalize_together(matrices: Tensor, processes: int) -> Tensor:
    """`orthogonalize`, with an equal part of the `matrices` [k, m, n] for each of the processes.

    All processes of the group call this with the same matrices.
    """
    if processes == 1:
        return orthogonalize(matrices)
    count = len(matrices)
    share = -(-count // processes)
    whole = matrices.new_zeros(share * processes, *matrices.shape[1:])
    own = matrices[dist.get_rank() * share :][:share]
    part = torch.zeros_like(whole[:share])
    part[: len(own)] = orthogonalize(own)
    dist.all_gather_into_tensor(whole, part)
    return whole[:count]


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum for the matrices of hidden layers, AdamW for all else.

    A group of parameters with `"muon": True` takes Nesterov momentum whose update is orthogonalized
    and brought to a root mean square of `UPDATE_RMS` times the learning rate, so that one learning
    rate serves both kinds (after Liu et al., arXiv 2502.16982, who take 0.2). Its parameters are
    matrices, and kernels of convolutions: matrices with a row for each output channel.

    Args:
        groups: Parameter groups; `muon` and `weight_decay` are read from each.
        lr: Learning rate.
        betas: AdamW's; the first is also the momentum's decay.
        eps: AdamW's.

    Attributes:
        processes: How many processes take the same step with the same gradients. They share the
            work of orthogonalizing and send each other what they made; by default 1.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.95, 0.99),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "muon": False}
        super().__init__(groups, defaults)
        self.processes = 1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(parameters, group)
            else:
                self._adam(parameters, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta = group["betas"][0]
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in parameters:
            by_shape.setdefault(p.shape, []).append(p)
        for shape, same in by_shape.items():
            gradients = torch.stack([p.grad for p in same if p.grad is not None])
            momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in same]
            torch._foreach_lerp_(momenta, gradients.unbind(), 1 - beta)
            updates = gradients.lerp(torch.stack(momenta), beta).flatten(2)
            scale = UPDATE_RMS * max(updates.shape[1:]) ** 0.5
            updates = orthogonalize_together(updates, self.processes)
            directions = [update.view(shape) for update in updates]
            torch._foreach_add_(same, directions, alpha=-group["lr"] * scale)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        by_step: dict[int, list[Tensor]] = {}
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            by_step.setdefault(state["step"], []).append(p)
        for step, same in by_step.items():
            gradients = [p.grad for p in same if p.grad is not None]
            means = [self.state[p]["mean"] for p in same]
            squares = [self.state[p]["square"] for p in same]
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
            deviations = torch._foreach_sqrt(squares)
            torch._foreach_div_(deviations, math.sqrt(1 - beta2**step))
            torch._foreach_add_(deviations, group["eps"])
            scale = group["lr"] / (1 - beta1**step)
            torch._foreach_addcdiv_(same, means, deviations, -scale)


def hidden_matrices(transformer: nn.Module) -> list[nn.Parameter]:
    """The matrices in a transformer's blocks, but for those that make modulations of the norms."""
    return [
        parameter
        for name, parameter in transformer.named_parameters()
        if "blocks." in name and parameter.ndim == 2 and "norm" not in name
    ]


def muon_groups(
    hidden: Iterable[nn.Parameter], modules: Iterable[nn.Module], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for `Muon`: the `hidden` matrices, and the other parameters of `modules`."""
    hidden = list(hidden)
    taken = {id(p) for p in hidden}
    others = parameter_groups(modules, weight_decay)
    for group in others:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    return [{"params": hidden, "weight_decay": weight_decay, "muon": True}, *others]
