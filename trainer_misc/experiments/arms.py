"""Arms of the experiments: one TOML file each, in the folder `arms`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pyramid_dit.checks import Number, OneOf, Whole
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from pyramid_dit.flow.sizes import size_multiple

from ..dit_options import names, numbers
from ..options import Flag, read_settings
from ..toy.moving_shapes import NUM_COMBINATIONS, SHAPES

ARMS = Path(__file__).parent / "arms"
PICTURES, CLIPS = "pictures", "clips"
LATENT_FRAMES = 7
SHARES = {
    PICTURES: (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0),
    CLIPS: (1 / 4, 1 / 2, 3 / 4, 1.0),
}
QUICK_SHARES = (1 / 2, 1.0)
"""Shares of an arm's training at which it is sampled and judged."""
QUICK_STEPS, QUICK_GFLOPS, QUICK_SAMPLES, QUICK_FRAMES = 4, 3.0, 2, 2


def _shapes(name: str, value: tuple[str, ...]) -> None:
    """Reject what is not some of the known shapes, each once; ValueError."""
    if not value or len(set(value)) < len(value) or not set(value) <= set(SHAPES):
        raise ValueError(
            f"{name} must be some of {', '.join(SHAPES)}, each once, got {list(value)}"
        )


_FLAGS = [
    Flag("data", PICTURES, choices=(PICTURES, CLIPS)),
    Flag("stages", 3, check=Whole(1, 4)),
    Flag("gamma", 1 / 3, check=Number(0, 1 / 3, above=True)),
    Flag("sample_ratios", (1, 2, 1), kind=numbers),
    Flag("use_temporal_pyramid", False),
    Flag("use_temporal_causal", False),
    Flag("corrupt_ratio", 1 / 3, check=Number(0, 1)),
    Flag("max_frames", LATENT_FRAMES, check=Whole(1, LATENT_FRAMES)),
    Flag("lr", 2e-3, check=Number(0, 1, above=True)),
    Flag("warmup_steps", 50, check=Whole(0)),
    Flag("gpu_pixels", 128, check=Whole(32, 256)),
    Flag("gpu_shapes", SHAPES, kind=names, check=_shapes),
    Flag("gpu_steps", 0, check=Whole(0)),
    Flag("gpu_step_gflops", 0.0, check=Number(0, 1e6)),
    Flag("cpu_pixels", 64, check=Whole(32, 256)),
    Flag("cpu_shapes", ("circle", "square"), kind=names, check=_shapes),
    Flag("cpu_steps", 0, check=Whole(0)),
    Flag("cpu_step_gflops", 0.0, check=Number(0, 1e6)),
    Flag("inference_steps", (6, 6, 6), kind=numbers),
    Flag("guidance_scale", 2.0, check=Number(1, 20)),
    Flag("frames", 1, check=Whole(1, LATENT_FRAMES)),
    Flag("last_frames", 0, check=Whole(0, 13)),
    Flag("samples", 192, check=Whole(1, NUM_COMBINATIONS)),
]


@dataclass(frozen=True)
class Arm:
    """How a small transformer is trained and sampled.

    Attributes:
        name: Of its file.
        data: "pictures", latents of one frame, or "clips".
        stages: K, of the spatial pyramid.
        gamma: Of the noise at its jumps.
        sample_ratios: Shares of the stages in the steps of the training, lowest first.
        use_temporal_pyramid: Train the last unit of each clip with the temporal pyramid as
            history, and sample unit by unit; otherwise all frames at once.
        use_temporal_causal: Whether attention is blockwise causal.
        corrupt_ratio: Largest noise level in the history.
        max_frames: Latent frames of the clips that are trained on.
        lr: Learning rate, constant after the warm-up.
        warmup_steps: Steps of the warm-up.
        gpu_pixels, cpu_pixels: Height and width of pictures and clips, on a GPU and on a CPU.
        gpu_shapes, cpu_shapes: Shapes that they show and prompts ask for.
        gpu_steps, cpu_steps: Optimizer steps of the training, on a GPU and on a CPU.
        gpu_step_gflops, cpu_step_gflops: Floating point operations of a step, which say how large
            its batch is, in units of 10^9.
        inference_steps: Steps of each stage, of second order.
        guidance_scale: Of the guidance.
        frames: Latent frames of what is sampled.
        last_frames: The same at the end of the training, if it is not 0.
        samples: Number of samples that are judged.
    """

    name: str
    data: str
    stages: int
    gamma: float
    sample_ratios: tuple[int, ...]
    use_temporal_pyramid: bool
    use_temporal_causal: bool
    corrupt_ratio: float
    max_frames: int
    lr: float
    warmup_steps: int
    gpu_pixels: int
    gpu_shapes: tuple[str, ...]
    gpu_steps: int
    gpu_step_gflops: float
    cpu_pixels: int
    cpu_shapes: tuple[str, ...]
    cpu_steps: int
    cpu_step_gflops: float
    inference_steps: tuple[int, ...]
    guidance_scale: float
    frames: int
    last_frames: int
    samples: int

    @classmethod
    def read(cls, path: Path) -> Arm:
        """The arm of a TOML file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It has another setting, a bad value, or values that do not go together.
        """
        settings = read_settings(path, {flag.name: flag for flag in _FLAGS})
        every = {flag.name: settings.get(flag.name, flag.default) for flag in _FLAGS}
        for flag in _FLAGS:
            if flag.check is not None:
                try:
                    flag.check(flag.name, every[flag.name])
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{path}: {error}") from error
        for name in ("sample_ratios", "inference_steps"):
            if len(every[name]) != every["stages"] or min(every[name]) < 1:
                raise ValueError(
                    f"{path}: {name} must be {every['stages']} numbers of at least 1, one for each "
                    f"stage, got {list(every[name])}"
                )
        multiple = size_multiple(every["stages"])
        for name in ("gpu_pixels", "cpu_pixels"):
            if every[name] % multiple:
                raise ValueError(
                    f"{path}: {name} must be a multiple of {multiple} with {every['stages']} "
                    f"stages, got {every[name]}"
                )
        shapes = min(len(every[name]) for name in ("gpu_shapes", "cpu_shapes"))
        prompts = NUM_COMBINATIONS // len(SHAPES) * shapes
        if every["samples"] > prompts:
            raise ValueError(
                f"{path}: samples must be at most {prompts}, the prompts of {shapes} shapes, "
                f"got {every['samples']}"
            )
        if every["data"] == PICTURES and (every["frames"] != 1 or every["last_frames"]):
            raise ValueError(f"{path}: pictures have frames = 1 and no last_frames")
        if every["last_frames"] and not every["use_temporal_pyramid"]:
            raise ValueError(f"{path}: last_frames need use_temporal_pyramid")
        return cls(name=path.stem, **every)

    @classmethod
    def named(cls, name: str) -> Arm:
        """The arm of that name in the package.

        Raises:
            ValueError: There is none.
        """
        OneOf(tuple(path.stem for path in sorted(ARMS.glob("*.toml"))))("arm", name)
        return cls.read(ARMS / f"{name}.toml")

    def pixels(self, device: str) -> int:
        """Height and width on a "cpu", or on another device."""
        return self.cpu_pixels if device == "cpu" else self.gpu_pixels

    def shapes(self, device: str) -> tuple[str, ...]:
        """Shapes on that device."""
        return self.cpu_shapes if device == "cpu" else self.gpu_shapes

    def steps(self, device: str) -> int:
        """Optimizer steps on a "cpu", or on another device."""
        return self.cpu_steps if device == "cpu" else self.gpu_steps

    def step_flops(self, device: str) -> float:
        """Floating point operations that a step on that device should have."""
        return 1e9 * (self.cpu_step_gflops if device == "cpu" else self.gpu_step_gflops)

    def quick(self) -> Arm:
        """As a test has it: a few steps and samples."""
        return replace(
            self,
            max_frames=min(self.max_frames, QUICK_FRAMES),
            gpu_steps=QUICK_STEPS,
            cpu_steps=QUICK_STEPS,
            gpu_step_gflops=QUICK_GFLOPS,
            cpu_step_gflops=QUICK_GFLOPS,
            inference_steps=(1,) * self.stages,
            frames=min(self.frames, QUICK_FRAMES),
            last_frames=min(self.last_frames, QUICK_FRAMES + 1),
            samples=QUICK_SAMPLES,
        )

    def scheduler(self) -> PyramidFlowMatchEulerDiscreteScheduler:
        """Its stages, of even windows."""
        return PyramidFlowMatchEulerDiscreteScheduler(
            stages=self.stages,
            stage_range=[stage / self.stages for stage in range(self.stages + 1)],
            gamma=self.gamma,
        )

    def as_dict(self, device: str) -> dict[str, Any]:
        """Its settings that hold on that device, ready for JSON."""
        others = "gpu_" if device == "cpu" else "cpu_"
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if not name.startswith(others)
        }
