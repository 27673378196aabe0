"""The mathematics of the pyramid's stages (section 3.2 of arXiv 2410.05954).

Stage k = 0 is the lowest resolution and the noisiest; sigma is the weight of the noise, so that
a point of a stage is `sigma * noise + (1 - sigma) * signal`. The paper counts stages downwards
and measures signal: its window [s_k, e_k] is [1 - start_sigma, 1 - end_sigma] here, and our
gamma is the paper's with its sign dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .latents import Generators, upsample_nearest
from .solvers import SOLVERS, TIMESTEP_SPACINGS, StageSchedule


class StagePosition(NamedTuple):
    """Where in a stage each training sample stands."""

    timestep: Tensor
    """Timestep input of the transformer, `[b]`, float32, 0 to `num_train_timesteps`."""
    ratio: Tensor
    """1 at the start of the stage, 0 at its end, `[b, 1, 1, 1, 1]`, float32."""


class StageFlow(NamedTuple):
    """A point on the straight path through a stage and the velocity there."""

    sample: Tensor
    velocity: Tensor


class PyramidFlowMatchEulerDiscreteScheduler(SchedulerMixin, ConfigMixin):
    """Flow matching in `stages` spatial stages, each with its own window of the noise level.

    Args:
        num_train_timesteps: N, the number of training positions in each stage.
        shift: Timestep shift, `sigma = shift * u / (1 + (shift - 1) * u)`.
        stages: K, the number of resolutions.
        stage_range: K + 1 ascending bounds of the stages on the time axis, from 0 to 1.
        gamma: The jump noise has covariance `-gamma` within a 2x2 block, in (0, 1/3].
        solver: How sampling steps through a stage, one of `solvers.SOLVERS`.
        timestep_spacing: Where the steps of `euler` begin, one of `solvers.TIMESTEP_SPACINGS`;
            `trailing` leaves out the reference's last step, which hardly moves the latents. Other
            solvers are always `trailing`.

    Attributes:
        start_sigmas, end_sigmas: Noise level at the two ends of each stage.
        ori_start_sigmas: Start of each stage before it is moved back for renoising; it is the
            end of the stage before.
        timestep_ratios: Share (from, to) of the training timesteps that each stage covers.
        timesteps_per_stage, sigmas_per_stage: N timesteps per stage, and N positions within the
            stage (1 at its start, 0 at its end: the end of a stage, not a clean latent).
        timesteps, sigmas: The global tables; after `set_timesteps`, those of a sampling run.

    Raises:
        ValueError: An argument is outside its range.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        stages: int = 3,
        stage_range: Sequence[float] = (0, 1 / 3, 2 / 3, 1),
        gamma: float = 1 / 3,
        solver: str = "euler",
        timestep_spacing: str = "linspace",
    ) -> None:
        _check_config(num_train_timesteps, shift, stages, stage_range, gamma)
        _check_word("solver", solver, SOLVERS)
        _check_word("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        # on the CPU, for not every default device has float64
        u = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float64, device="cpu")
        u = u / num_train_timesteps
        self.sigmas = (shift * u / (1 + (shift - 1) * u)).float()
        self.timesteps = num_train_timesteps * self.sigmas
        self._init_stage_sigmas(num_train_timesteps, stages, stage_range, gamma)
        self._init_stage_tables(num_train_timesteps)
        self._step_index: int | None = None
        self._previous: Tensor | None = None

    def _init_stage_sigmas(
        self, num_steps: int, stages: int, stage_range: Sequence[float], gamma: float
    ) -> None:
        bounds = [int(bound * num_steps) for bound in stage_range]
        sigma_at = [*self.sigmas.tolist(), 0.0]
        self.ori_start_sigmas = [sigma_at[bound] for bound in bounds[:-1]]
        self.end_sigmas = [sigma_at[bound] for bound in bounds[1:]]
        self.start_sigmas = [sigma_at[0]]
        for stage in range(1, stages):
            signal = 1 - self.ori_start_sigmas[stage]
            # A jump scales the signal by alpha, so this is where renoising can land (eq. 25).
            self.start_sigmas.append(1 - signal * _jump_alpha(signal, gamma))

        lengths = [s - e for s, e in zip(self.start_sigmas, self.end_sigmas, strict=True)]
        total = sum(lengths)
        edges = [0.0, *(sum(lengths[: k + 1]) / total for k in range(stages - 1)), 1.0]
        self.timestep_ratios = list(zip(edges[:-1], edges[1:], strict=True))

    def _init_stage_tables(self, num_steps: int) -> None:
        self.timesteps_per_stage = []
        self.sigmas_per_stage = []
        self._timestep_bounds = []
        for first, last in self.timestep_ratios:
            t_max = float(self.timesteps[int(first * num_steps)])
            t_min = float(self.timesteps[min(int(last * num_steps), num_steps - 1)])
            self._timestep_bounds.append((t_max, t_min))
            self.timesteps_per_stage.append(_linspace(t_max, t_min, num_steps + 1)[:-1])
            self.sigmas_per_stage.append(_linspace(1.0, 0.0, num_steps + 1)[:-1])

    # ---- sampling -------------------------------------------------------------------------

    def stage_schedule(
        self,
        num_inference_steps: int,
        stage: int,
        device: str | torch.device = "cpu",
        *,
        solver: str | None = None,
    ) -> StageSchedule:
        """Lay out `num_inference_steps` steps through `stage`.

        Args:
            num_inference_steps: Steps, each of which evaluates the velocity once.
            stage: The stage.
            device: Where `timesteps` lie.
            solver: How to step, by default as the config says.

        Raises:
            ValueError: Fewer than one step, or no such stage or solver.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        self._check_stage(stage)
        solver = self.config.solver if solver is None else solver
        _check_word("solver", solver, SOLVERS)
        if solver == "euler" and self.config.timestep_spacing == "linspace":
            timesteps, sigmas = self.timesteps_per_stage[stage], self.sigmas_per_stage[stage]
            steps = _linspace(float(timesteps[0]), float(timesteps[-1]), num_inference_steps)
            positions = _linspace(1.0, float(sigmas[-1]), num_inference_steps)
        else:
            steps = _linspace(*self._timestep_bounds[stage], num_inference_steps + 1)[:-1]
            positions = _linspace(1.0, 0.0, num_inference_steps + 1)[:-1]
        return StageSchedule(
            timesteps=steps.float().to(device),
            sigmas=torch.cat([positions, positions.new_zeros(1)]),
            solver=solver,
        )

    def set_timesteps(
        self,
        num_inference_steps: int,
        stage_index: int,
        device: str | torch.device | None = None,
    ) -> None:
        """Have `step` go through stage `stage_index`, as `stage_schedule` lays it out.

        Raises:
            ValueError: Fewer than one step, or no such stage.
        """
        schedule = self.stage_schedule(num_inference_steps, stage_index, device or "cpu")
        self.timesteps, self.sigmas, _ = schedule
        self._step_index = self._previous = None

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step along the predicted velocity (start minus end of the stage).

        Args:
            model_output: Velocity, of the shape of `sample`.
            timestep: The value of `timesteps` at hand; read at the first step of a run only.
            sample: Latents; the step is computed in float32.
            generator: Part of the diffusers signature; a step draws nothing.
            return_dict: `False` returns a tuple.

        Returns:
            `prev_sample`, in the dtype of `model_output`.

        Raises:
            ValueError: `set_timesteps` was not called, or all of its steps are taken.
        """
        if len(self.sigmas) != len(self.timesteps) + 1:
            raise ValueError("call set_timesteps before step")
        if self._step_index is None:
            self._step_index = int((self.timesteps - timestep).abs().argmin())
        index = self._step_index
        if index >= len(self.timesteps):
            raise ValueError(f"all {index} steps are taken, call set_timesteps again")
        self._step_index += 1

        schedule = StageSchedule(self.timesteps, self.sigmas, self.config.solver)
        prev_sample = schedule.step(index, model_output, sample, self._previous)
        self._previous = model_output
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    # ---- the jump between stages ----------------------------------------------------------

    def jump_coefficients(self, stage: int) -> tuple[float, float]:
        """alpha and beta of the jump into `stage` (1 to K - 1), x <- alpha Up(x) + beta n'.

        With s the signal weight at the end of the stage before, alpha =
        1 / (sqrt(1 + 1/gamma) (1 - s) + s) and beta = alpha (1 - s) / sqrt(gamma) (eq. 20, 27).

        Raises:
            ValueError: No jump leads into `stage`.
        """
        self._check_stage(stage)
        if stage == 0:
            raise ValueError("stage 0 starts from noise, no jump leads into it")
        gamma = self.config.gamma
        signal = 1 - self.ori_start_sigmas[stage]
        alpha = _jump_alpha(signal, gamma)
        return alpha, alpha * (1 - signal) / math.sqrt(gamma)

    def sample_block_noise(
        self,
        shape: Sequence[int],
        *,
        generator: Generators | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw n', Gaussian noise with covariance (1 + gamma) I - gamma 11^T in each 2x2 block.

        It is sqrt(1 + gamma) (z - c mean(z)) with z white and
        (1 - c)^2 = (1 - 3 gamma) / (1 + gamma): of the eigenvalues of the covariance, 1 + gamma
        stays and the one of the block's mean becomes 1 - 3 gamma, which may be 0.

        Args:
            shape: `[..., h, w]`, height and width even; `shape[0]` is the batch.
            generator: One generator, or a list with one per sample.
            device: Device of the result; a CPU generator may serve any device.
            dtype: Dtype of the result, drawn in float32 at least.

        Raises:
            ValueError: Odd height or width, or a list of generators that does not fit the batch.
        """
        shape = tuple(shape)
        if len(shape) < 2 or shape[-1] % 2 or shape[-2] % 2:
            raise ValueError(f"block noise needs an even height and width, got shape {shape}")
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}")
        dtype = dtype or torch.get_default_dtype()
        gamma = self.config.gamma
        c = 1 - math.sqrt((1 - 3 * gamma) / (1 + gamma))
        z = randn_tensor(
            shape,
            generator=generator,
            device=torch.device(device or "cpu"),
            dtype=torch.promote_types(dtype, torch.float32),
        )
        blocks = z.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # [..., h/2, 2, w/2, 2]
        blocks = math.sqrt(1 + gamma) * (blocks - c * blocks.mean((-3, -1), keepdim=True))
        return blocks.reshape(shape).to(dtype)

    def jump(self, sample: Tensor, stage: int, noise: Tensor) -> Tensor:
        """Enter `stage`: up-sample x2 and renoise, alpha Up(x) + beta n'.

        n' cancels the correlation that nearest up-sampling puts into the noise of a block, so
        that the result has the mean and the covariance of the start of `stage`.

        Args:
            sample: End of stage `stage - 1`, `[b, c, t, h, w]`.
            stage: The stage to enter, 1 to K - 1.
            noise: n' of `sample_block_noise`, `[b, c, t, 2h, 2w]`.

        Raises:
            ValueError: No jump leads into `stage`, or the shapes do not fit.
        """
        alpha, beta = self.jump_coefficients(stage)
        upsampled = upsample_nearest(sample)
        if noise.shape != upsampled.shape:
            raise ValueError(
                f"jump noise of shape {tuple(noise.shape)} for up-sampled latents of shape "
                f"{tuple(upsampled.shape)}"
            )
        return alpha * upsampled + beta * noise

    # ---- training -------------------------------------------------------------------------

    def stage_position(self, uniform: Tensor, stage: int) -> StagePosition:
        """Turn `uniform` `[b]`, drawn from U(0, 1), into positions in the tables of `stage`."""
        self._check_stage(stage)
        num_steps = self.config.num_train_timesteps
        # N * (1 - eps) may round up to N in float32
        index = (uniform * num_steps).long().clamp(max=num_steps - 1)

        def look_up(table: Tensor) -> Tensor:
            return table.float().to(uniform.device)[index]

        ratio = look_up(self.sigmas_per_stage[stage])
        return StagePosition(
            timestep=look_up(self.timesteps_per_stage[stage]), ratio=ratio.view(-1, 1, 1, 1, 1)
        )

    def stage_start(self, stage: int, noise: Tensor, coarser: Tensor | None = None) -> Tensor:
        """Start point of `stage`: noise, mixed with the up-sampled latent one stage below.

        Args:
            stage: Stage k.
            noise: n_k, `[b, c, t, h, w]`.
            coarser: Clean latents of stage k - 1, `[b, c, t, h/2, w/2]`; stage 0 has none.

        Raises:
            ValueError: `coarser` is missing above stage 0.
        """
        self._check_stage(stage)
        if stage == 0:
            return noise
        if coarser is None:
            raise ValueError(f"stage {stage} starts from the clean latents of stage {stage - 1}")
        sigma = self.start_sigmas[stage]
        return sigma * noise + (1 - sigma) * upsample_nearest(coarser)

    def stage_end(self, stage: int, noise: Tensor, clean: Tensor) -> Tensor:
        """End point of `stage`: the clean latents of its resolution with what noise is left."""
        self._check_stage(stage)
        sigma = self.end_sigmas[stage]
        return sigma * noise + (1 - sigma) * clean if sigma else clean

    def stage_flow(
        self,
        stage: int,
        noise: Tensor,
        clean: Tensor,
        *,
        coarser: Tensor | None = None,
        ratio: float | Tensor,
    ) -> StageFlow:
        """Point and velocity at `ratio` on the straight path through `stage` (eq. 9 to 11).

        The same noise is used at both ends, which is what keeps the path straight; the velocity
        is start minus end.

        Args:
            stage: Stage k.
            noise: n_k, `[b, c, t, h, w]`.
            clean: Clean latents of stage k, `[b, c, t, h, w]`.
            coarser: Clean latents of stage k - 1, `[b, c, t, h/2, w/2]`; stage 0 has none.
            ratio: Position in the stage, 1 at its start, broadcast against `noise`.
        """
        start = self.stage_start(stage, noise, coarser)
        end = self.stage_end(stage, noise, clean)
        velocity = start - end
        return StageFlow(sample=ratio * start + (1 - ratio) * end, velocity=velocity)

    def _check_stage(self, stage: int) -> None:
        if not 0 <= stage < self.config.stages:
            raise ValueError(f"stage must be 0 to {self.config.stages - 1}, got {stage}")


def _jump_alpha(signal: float, gamma: float) -> float:
    return 1 / (math.sqrt(1 + 1 / gamma) * (1 - signal) + signal)


def _linspace(start: float, stop: float, count: int) -> Tensor:
    return torch.linspace(start, stop, count, dtype=torch.float64, device="cpu")


def _check_word(name: str, value: str, words: Sequence[str]) -> None:
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}")


def _check_config(
    num_train_timesteps: int, shift: float, stages: int, stage_range: Sequence[float], gamma: float
) -> None:
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}")
    if shift <= 0:
        raise ValueError(f"shift must be above 0, got {shift}")
    if stages < 1 or len(stage_range) != stages + 1:
        raise ValueError(f"{stages} stages need one more bound, got stage_range {stage_range}")
    bounds = [int(bound * num_train_timesteps) for bound in stage_range]
    ascending = all(low < high for low, high in zip(bounds[:-1], bounds[1:], strict=True))
    if bounds[0] != 0 or bounds[-1] != num_train_timesteps or not ascending:
        raise ValueError(
            f"stage_range must ascend from 0 to 1, a training timestep apart at least, "
            f"got {stage_range}"
        )
    if not 0 < gamma <= 1 / 3:
        raise ValueError(f"gamma must lie in (0, 1/3], got {gamma}")
