"""The loop that all trainers share: steps, averages, checkpoints, resume, signals, progress.

Every draw is a function of the seed, the number of the batch and the rank, so that a run that was
stopped goes on, bit for bit, as if it had not been.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from tqdm import tqdm

from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.files import replacing

from .average import MovingAverage
from .checkpoints import (
    Tensors,
    join_optimizer_state,
    newest_checkpoint,
    read_checkpoint,
    remove_leftovers,
    split_optimizer_state,
    thin_checkpoints,
    write_checkpoint,
)
from .log import Figures, Log
from .loop_config import LoopConfig, new_accelerator
from .optimization import Muon, learning_rate, parameter_groups

logger = logging.getLogger(__name__)

MOST_SKIPPED = 10
"""Updates in a row that may be left out as their gradients are not finite."""
SCALE_SEARCH = 16
"""So many more in float16, whose scale of the loss starts at 2^16 and is found by halving."""
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _is_divided(parameter: nn.Parameter) -> bool:
    """Whether every process has a part of it, as FSDP2 leaves it."""
    return hasattr(parameter, "full_tensor")


class TrainingLoop:
    """Trains modules on a loss that the caller computes.

    Args:
        config: How long and how hard.
        modules: What is trained, by name. Gradients are averaged over processes, by DDP, or by
            FSDP2 where the weights of a module are divided already.
        optimizer: By default AdamW as the config says; a given one has `learning_rate` as its lr.
        accelerator: By default one as the config says.
        place: Which of how many places this process is at, on which its draws depend; processes
            that share a batch are at one. By default its rank and the number of processes.

    Attributes:
        accelerator: Device, precision and processes.
        modules: The modules as accelerate wrapped them, to compute losses with.
        step: Steps done.
        skipped: Updates that were left out.

    Raises:
        FileNotFoundError: There is no such checkpoint to go on from.
        ValueError: The checkpoint is damaged, or one of another model.
        OSError: The output folder cannot be written.
    """

    def __init__(
        self,
        config: LoopConfig,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | None = None,
        accelerator: Accelerator | None = None,
        place: tuple[int, int] | None = None,
    ) -> None:
        keep_freed_memory()
        self.config = config
        self.accelerator = accelerator or new_accelerator(config)
        here = self.accelerator.process_index, self.accelerator.num_processes
        self._place: int
        self._places: int
        self._place, self._places = place or here
        self.on_main(self._prepare_output)
        optimizer = optimizer or torch.optim.AdamW(
            parameter_groups(modules.values(), config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
        )
        self._peaks = [group["lr"] / config.learning_rate for group in optimizer.param_groups]
        self._root = nn.ModuleDict(modules)
        self._optimizer = optimizer
        self._average: MovingAverage | None = None
        if config.ema_decay is not None:
            self._average = MovingAverage(
                {name: p for name, p in self._root.named_parameters() if p.requires_grad},
                config.ema_decay,
                warm_up=config.ema_warmup,
                on_cpu=config.ema_on_cpu,
            )
        self.modules = {name: self._wrapped(module) for name, module in modules.items()}
        if isinstance(optimizer, Muon) and not any(map(_is_divided, self._root.parameters())):
            optimizer.processes = self.accelerator.num_processes
        self.optimizer = self.accelerator.prepare(optimizer)
        self.step = self.skipped = self._skipped_in_row = 0
        self.log = Log(config, self.accelerator)
        self._received: int | None = None  # a signal, by this process
        self._ended_by: int | None = None  # a signal, by any
        self._saved: int | None = None
        self.resume()

    def _prepare_output(self) -> None:
        """Make the output folder, and see whether it can be written before any work."""
        output = self.config.output
        output.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output)
        with replacing(output / ".writable") as temporary:
            temporary.touch()
        (output / ".writable").unlink()

    def _wrapped(self, module: nn.Module) -> nn.Module:
        divided = any(map(_is_divided, module.parameters()))
        trained = any(p.requires_grad for p in module.parameters())
        return module if divided or not trained else self.accelerator.prepare(module)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self._root.parameters() if p.requires_grad]

    # ---- checkpoints ---------------------------------------------------------------------------

    def resume(self) -> None:
        """Go on from the config's checkpoint, or from the newest whole one of the output folder."""
        config = self.config
        newest = newest_checkpoint if config.auto_resume else lambda _: None
        found = self.on_main(lambda: config.resume or newest(config.output))
        if found is None:
            return
        tensors, state = read_checkpoint(found)
        model: Any = tensors["model"]
        optimizer = join_optimizer_state(tensors["optimizer"], state["optimizer"])
        try:
            self._set_weights(model)
            self._set_optimizer_state(optimizer)
            if self._average is not None and "average" in tensors:
                self._average.load(tensors["average"], state["average_updates"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{found} is a checkpoint of a different model: {reason}") from error
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped = state["step"], state["skipped"]
        self._saved = self.step if found.parent == config.output else None
        self.on_main(lambda: self.log.go_on_from(self.step))
        logger.info("resuming from %s", found)

    def _set_weights(self, weights: Tensors) -> None:
        """Take over what was saved, all of it and nothing else."""
        alone = self.config.trained_alone
        if alone and weights.keys() != self._weights().keys():
            odd = sorted(weights.keys() ^ self._weights().keys())[:3]
            raise ValueError(f"missing or additional trained weights: {', '.join(odd)}")
        options = StateDictOptions(full_state_dict=True, strict=not alone)
        set_model_state_dict(self._root, dict(weights), options=options)

    def _weights(self) -> Tensors:
        """What checkpoints hold, whole; all processes have to ask together."""
        alone = self.config.trained_alone
        options = dataclasses.replace(WHOLE, ignore_frozen_params=alone)
        weights: Any = get_model_state_dict(self._root, options=options)
        if not alone:
            return weights
        trained = {name for name, p in self._root.named_parameters() if p.requires_grad}
        return {name: value for name, value in weights.items() if name in trained}  # no buffers

    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take over what was saved; parameters that had no gradient yet have no state."""
        known = set(state["state"])
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_optimizer_state_dict(self._root, self._optimizer, state, options=options)
        for name, parameter in self._root.named_parameters():
            if name not in known:
                self._optimizer.state.pop(parameter, None)

    def save(self) -> None:
        """Write a checkpoint of the current step, unless there is one.

        Raises:
            FloatingPointError: A value is not finite; nothing is written.
            OSError: The disk is full, or the folder cannot be written.
        """
        if self._saved == self.step:
            return
        optimizer, rest = split_optimizer_state(
            get_optimizer_state_dict(self._root, self._optimizer, options=WHOLE)
        )
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "average_updates": self._average.updates if self._average else 0,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "optimizer": rest,
        }
        tensors = {"model": self._weights(), "optimizer": optimizer}
        if self._average is not None:
            tensors["average"] = self._average.state()

        def write() -> None:
            output = self.config.output
            write_checkpoint(output / f"checkpoint-{self.step}", tensors, state)
            thin_checkpoints(output, self.config.keep)

        self.on_main(write)
        self._saved = self.step

    def averaged(self, action: Callable[[], None]) -> None:
        """Run `action` with the moving average in place of the weights."""
        with self.average_in_place():
            action()

    def average_in_place(self) -> AbstractContextManager[None]:
        """Have the moving average, if there is one, in place of the weights meanwhile."""
        return nullcontext() if self._average is None else self._average.in_place()

    def adopt_average(self) -> None:
        """Put the moving average, if there is one, in the place of the weights for good."""
        if self._average is not None:
            self._average.adopt()

    def start_average(self, weights: Tensors, module: str) -> None:
        """Have the average start from whole `weights` of the module of that name.

        Raises:
            ValueError: No average is kept, or the weights are others.
        """
        if self._average is None:
            raise ValueError("no moving average is kept: --ema_update")
        state = self._average.state()
        given = {f"{module}.{name}": value for name, value in weights.items()}
        self._average.load(state | {k: v for k, v in given.items() if k in state}, 0)

    # ---- steps ---------------------------------------------------------------------------------

    def run(
        self,
        compute_loss: Callable[[Any], tuple[Tensor, Figures]],
        *,
        batches: Callable[[int], Iterator[Any]] = count,
        draw_sheet: Callable[[Path], None] | None = None,
        validate: Callable[[], Figures] | None = None,
    ) -> bool:
        """Train to the last step.

        SIGINT and SIGTERM let the step end and a checkpoint be written, then end the process with
        130 or 143; a second signal does so at once.

        Args:
            compute_loss: From a batch to a scalar loss and figures to log. PyTorch's global random
                numbers are seeded by the number of the batch and the rank before each.
            batches: From a number to the batches of this process from that one on; by default
                the numbers themselves, counted over steps and accumulation.
            draw_sheet: Draws a sample sheet into the given PNG, with averaged weights.
            validate: Figures of held-back samples, measured by all processes together.

        Returns:
            True if all steps are done, False if the time was up.

        Raises:
            FloatingPointError: The loss is not finite, or many gradients in a row are not; what
                was reached before has been saved.
            SystemExit: A signal came.
        """
        config, accelerator = self.config, self.accelerator
        coming = batches(self.step * config.accumulation)
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            disable=not accelerator.is_main_process,
            mininterval=10,
            desc=config.output.name,
        )
        with self.log.open(), self._signals(), bar:
            over = False
            while self.step < config.steps and not over:
                self._one_step(compute_loss, coming)
                bar.update()
                if self.step % config.log_every == 0:
                    counts = {"skipped": self.skipped} if self.skipped else {}
                    self.log.write(self.step, lr=self._optimizer.param_groups[0]["lr"], **counts)
                if self.step % config.save_every == 0:
                    self.save()
                if draw_sheet and config.sheet_every and self.step % config.sheet_every == 0:
                    self._draw(draw_sheet)
                if validate and config.validate_every and self.step % config.validate_every == 0:
                    with accelerator.autocast():
                        self.log.note(self.step, validate())
                over = self._stop_asked()
            self.save()
        if self._ended_by is not None:
            raise SystemExit(128 + self._ended_by)
        return self.step >= config.steps

    def _one_step(
        self, compute_loss: Callable[[Any], tuple[Tensor, Figures]], coming: Iterator[Any]
    ) -> None:
        """Go one step further."""
        config, accelerator = self.config, self.accelerator
        self._set_learning_rate()
        total = torch.zeros((), device=accelerator.device)
        for part in range(config.accumulation):
            with accelerator.accumulate(*self.modules.values()):
                with self.log.waiting():
                    batch = next(coming)
                self._seed(self.step * config.accumulation + part)
                with accelerator.autocast():
                    loss, figures = compute_loss(batch)
                accelerator.backward(loss)
                total += loss.detach() / config.accumulation
                self.log.add(figures)
                if accelerator.sync_gradients:
                    self._update(accelerator.reduce(total, reduction="mean").item())
        self.step += 1

    def _update(self, loss: float) -> None:
        """Change the weights by the gradients, unless these are no good."""
        config, accelerator = self.config, self.accelerator
        if not math.isfinite(loss):
            self.optimizer.zero_grad()
            self.save()
            raise FloatingPointError(f"the loss is {loss} at step {self.step + 1}")
        norm = accelerator.clip_grad_norm_(self._parameters(), config.clip or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        finite = bool(torch.isfinite(norm))
        scaler = accelerator.scaler
        if scaler is not None and not finite:
            self.optimizer.step()  # does not step then, but halves the scale
        elif not finite or loss >= config.skip_above:
            if scaler is not None:
                scaler.update()
        else:
            self.optimizer.step()
            self._skipped_in_row = 0
            if self._average is not None and (self.step + 1) % config.ema_every == 0:
                self._average.update()
            self.optimizer.zero_grad()
            return
        self.optimizer.zero_grad()
        self.skipped += 1
        why = f"the loss is {loss:.4g}" if finite else "its gradients are not finite"
        if accelerator.is_main_process:
            logger.warning(
                "skipping the update of step %d: %s (%d so far)",
                *(self.step + 1, why, self.skipped),
            )
        self._skipped_in_row += not finite
        if self._skipped_in_row >= MOST_SKIPPED + (SCALE_SEARCH if scaler is not None else 0):
            self.save()
            raise FloatingPointError(
                f"the gradients of {self._skipped_in_row} updates in a row were not finite, "
                f"the last at step {self.step + 1}"
            )

    def _set_learning_rate(self) -> None:
        config = self.config
        rate = learning_rate(
            self.step,
            steps=config.steps,
            peak=config.learning_rate,
            warmup=config.warmup,
            start=config.warmup_rate,
            least=config.least_rate,
            schedule=config.schedule,
            cooldown=config.cooldown,
        )
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = rate * peak

    def _seed(self, number: int) -> None:
        draws = number * self._places + self._place
        torch.manual_seed((self.config.seed << 40) + draws)

    # ---- what is around --------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Note the first SIGINT or SIGTERM, let the second end the process."""
        former: dict[int, Any] = {}

        def note(signum: int, frame: FrameType | None) -> None:
            self._received = signum
            for one, handler in former.items():
                signal.signal(one, handler)
            logger.warning("stopping after this step, with a checkpoint")

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                former[number] = signal.signal(number, note)
        except ValueError:  # not the main thread, which alone may handle signals
            pass
        try:
            yield
        finally:
            for one, handler in former.items():
                signal.signal(one, handler)

    def _stop_asked(self) -> bool:
        """Whether any process has run out of time or got a signal; all processes agree."""
        limit = self.config.max_minutes
        over = bool(limit) and self.log.seconds > 60 * limit
        flags = [float(over), float(self._received or 0)]
        flag = torch.tensor(flags, device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        self._ended_by = int(flag[1]) or None
        return bool(flag.any())

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Run `action` on the main process; all get what it returns, or the exception it raises."""
        outcome: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        if self.accelerator.num_processes > 1:
            outcome = broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _draw(self, draw_sheet: Callable[[Path], None]) -> None:
        path = self.config.output / f"sheet-{self.step:06d}.png"

        def draw() -> None:
            with replacing(path) as temporary:
                draw_sheet(temporary)

        with self.average_in_place():
            self.on_main(draw)
