"""One side of `against_official`: the official code or ours, whichever Python finds first.

    python official_run.py official|ours JOB

JOB, in JSON, has the configs of the models and the shapes of their inputs. For each line with the
name of a task on its input, the task is done once and `done` is printed. Both sides share no
module, as their packages have the same names.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

TEXT_LENGTH, TEXT_TOKENS = 128, (48, 60)
"""Length of the padded text, and real tokens of the negative and of the positive prompt."""
WARM_UP = "warm-up"
PROMPT = "a red circle moves left on a white background"


class Inputs:
    """Random numbers in the shapes that a job asks for."""

    def __init__(self, job: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.clips = {
            name: [draw(*shape) for shape in shapes] for name, shapes in job["steps"].items()
        }
        """History and noisy clip of a step, by its name."""
        config = job["transformer"]
        self.mask = torch.zeros(2, TEXT_LENGTH, dtype=torch.long)
        for row, count in zip(self.mask, TEXT_TOKENS, strict=True):
            row[:count] = 1
        self.embeds = draw(2, TEXT_LENGTH, config["joint_attention_dim"])
        self.pooled = draw(2, config["pooled_projection_dim"])
        self.timestep = torch.full((2,), 500.0)
        self.latents = draw(*job["latents"])
        """What is decoded."""


def model(model_class: type[Any], config: dict[str, Any]) -> Any:
    """A model for inference, its matrices random: some are zero at first.

    Entries of `config` that the class does not know are left out.
    """
    names = inspect.signature(model_class.__init__).parameters
    made = model_class(**{name: value for name, value in config.items() if name in names})
    for parameter in made.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    return made.eval()


# ---- the two sides -----------------------------------------------------------------------------


def official_tasks(job: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What a job asks for, done by the official code."""
    from pyramid_dit import PyramidDiTForVideoGeneration
    from pyramid_dit import pyramid_dit_for_video_gen_pipeline as pipeline
    from pyramid_dit.flux_modules import PyramidFluxTransformer
    from video_vae.modeling_causal_vae import CausalVideoVAE

    inputs = Inputs(job)

    def step(name: str) -> object:
        return transformer(
            sample=[inputs.clips[name]],
            encoder_hidden_states=inputs.embeds,
            encoder_attention_mask=inputs.mask,
            pooled_projections=inputs.pooled,
            timestep_ratio=inputs.timestep,
        )

    def decode() -> object:
        vae.enable_tiling()
        options = {"temporal_chunk": True, "window_size": 1, "tile_sample_min_size": 256}
        return vae.decode(inputs.latents, **options).sample.float().clamp(-1, 1)

    def video() -> object:
        whole.vae.enable_tiling()
        frames = whole.generate(prompt=PROMPT, output_type="pil", save_memory=True, **job["video"])
        return _of_length(frames, job)

    transformer = model(PyramidFluxTransformer, job["transformer"])
    vae = model(CausalVideoVAE, job["vae"])
    own_transformer = model(PyramidFluxTransformer, job["video_transformer"])
    own_vae = model(CausalVideoVAE, job["video_vae"])
    # The constructor reads a folder; here it gets models that are at hand.
    pipeline.build_pyramid_dit = lambda *_, **__: own_transformer
    pipeline.build_text_encoder = lambda *_, **__: RandomText(job["video_transformer"])
    pipeline.CausalVideoVAE = SimpleNamespace(from_pretrained=lambda *_, **__: own_vae)
    whole: Any = PyramidDiTForVideoGeneration("", model_dtype="fp32", model_name="pyramid_flux")
    accept_singular_covariance()
    return _tasks(job, step, decode, video)


def our_tasks(job: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What a job asks for, done by this project, with the reference's solver."""
    from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFluxTransformer
    from pyramid_dit.checkpoints.architectures import ARCHITECTURES
    from pyramid_dit.devices.cpu import keep_freed_memory
    from pyramid_dit.generation.latent_codec import DecodeSizes, decode_latents
    from video_vae import CausalVideoVAE

    keep_freed_memory()  # as the command line does
    inputs = Inputs(job)

    def step(name: str) -> object:
        *history, latents = inputs.clips[name]
        # once a stage, but here a step has to pay for all of it
        context = transformer.prepare(
            history, latents.shape, inputs.embeds, inputs.mask, inputs.pooled
        )
        return transformer.denoise(latents, inputs.timestep, context)

    def decode() -> object:
        sizes = DecodeSizes.of(save_memory=True)
        device = torch.device("cpu")
        return decode_latents(vae, statistics, inputs.latents, device=device, sizes=sizes)

    def video() -> object:
        return _of_length(whole.generate(PROMPT, solver="euler", **job["video"]), job)

    transformer = model(PyramidFluxTransformer, job["transformer"])
    vae = model(CausalVideoVAE, job["vae"])
    vae.enable_tiling()
    statistics = ARCHITECTURES["pyramid_flux"].released_statistics
    whole = PyramidDiTForVideoGeneration.from_pretrained()
    whole.set_progress_bar_config(disable=True)
    return _tasks(job, step, decode, video)


def _tasks(
    job: dict[str, Any],
    step: Callable[[str], object],
    decode: Callable[[], object],
    video: Callable[[], object],
) -> dict[str, Callable[[], object]]:
    steps = {name: (lambda name=name: step(name)) for name in job["steps"]}
    return {**steps, "decoding": decode, "video": video}


def _of_length(frames: Any, job: dict[str, Any]) -> Any:
    expected = 8 * (job["video"]["temp"] - 1) + 1
    if len(frames) != expected:
        raise RuntimeError(f"the video has {len(frames)} frames, not {expected}")
    return frames


class RandomText(nn.Module):
    """A text encoder that says anything, in the shapes of the official one.

    Args:
        config: Of the transformer that takes it up.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.widths = config["joint_attention_dim"], config["pooled_projection_dim"]

    def forward(self, prompt: Any, device: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Token embeddings, mask and pooled vector of one prompt, as short as ours is."""
        mask = torch.zeros(1, TEXT_LENGTH, dtype=torch.long)
        mask[:, : len(PROMPT.split()) + 1] = 1
        return torch.randn(1, TEXT_LENGTH, self.widths[0]), mask, torch.randn(1, self.widths[1])


def accept_singular_covariance() -> None:
    """Have the official noise of the jumps accepted, as earlier releases of PyTorch did."""
    distribution: Any = torch.distributions.MultivariateNormal
    begin = distribution.__init__

    def lifted(self: Any, loc: Tensor, covariance_matrix: Tensor, **options: Any) -> None:
        lift = 1e-6 * torch.eye(covariance_matrix.shape[-1])
        begin(self, loc, covariance_matrix + lift, **options)

    distribution.__init__ = lifted


# ---- the process -------------------------------------------------------------------------------


def main() -> None:
    """Prepare, and do as the lines of the input say."""
    side, job = sys.argv[-2], json.loads(sys.argv[-1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    tasks = {"official": official_tasks, "ours": our_tasks}[side](job)
    tasks[WARM_UP]()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=job["bf16"]):
            tasks[line.strip()]()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
