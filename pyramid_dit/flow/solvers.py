"""Solvers of the flow within a stage: where they evaluate the velocity, and how they step.

A stage is the differential equation dx = v(x, r) dr from r = 1, its start, to r = 0, its end,
where the velocity v is start minus end (eq. 9 to 11 of arXiv 2410.05954). A jump between two stages
brings fresh noise, so what a solver remembers ends with the stage.

PyTorch is not imported here: the command line names the solvers in its help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

SOLVERS = ("euler", "ab2")
"""`euler` is the reference's. `ab2` is the Adams-Bashforth method of two steps: of second order,
at one evaluation a step; the first step of a stage is Euler's."""

TIMESTEP_SPACINGS = ("linspace", "trailing")
"""Where n steps begin. `linspace`, the reference's: n positions evenly from the first to the last
entry of the table of N training positions, whose last step goes from 1/N to 0 and hardly moves the
latents. `trailing`: at 1 - i/n, so that every step is an n-th of the stage."""


class StageSchedule(NamedTuple):
    """The steps of a stage; it stays as it is, so any number of runs may share it."""

    timesteps: Tensor
    """The timestep passed to the transformer at each step, `[n]`, float32."""
    sigmas: Tensor
    """Position in the stage before each step and after the last, `[n + 1]`, on the CPU so that a
    step never waits for the device."""
    solver: str = "euler"
    """One of `SOLVERS`."""

    def step(
        self, index: int, velocity: Tensor, sample: Tensor, previous: Tensor | None = None
    ) -> Tensor:
        """Step `index` from `sample`, computed in float32.

        Euler's step is x + h v, with h the difference of the positions. The Adams-Bashforth method
        puts v + h / (2 h') (v - v') in the place of v, where v' is the velocity at the step before
        and h' the length of that step: the line through both, in the middle of the step.

        Args:
            index: Number of the step, from 0.
            velocity: Velocity (start minus end of the stage) at `sample`.
            sample: Latents.
            previous: Velocity at the step before, in this stage; without it the step is Euler's.

        Returns:
            The next sample, in the dtype of `velocity`.
        """
        delta = float(self.sigmas[index + 1] - self.sigmas[index])
        direction = velocity.float()
        if self.solver == "ab2" and previous is not None and index > 0:
            before = float(self.sigmas[index] - self.sigmas[index - 1])
            direction = direction + delta / (2 * before) * (direction - previous.float())
        return (sample.float() + delta * direction).to(velocity.dtype)
