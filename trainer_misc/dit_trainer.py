"""Train the default checkpoint's miniFLUX and its text encoders on a bank of latents.

Autoregressive with the temporal pyramid: each step trains the last unit of clips of one length,
with all shorter units as history, on every stage at once (`pyramid_dit.flow.objective`).
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyramid_dit.checkpoints.defaults import GenerationDefaults
from pyramid_dit.flow.latents import LatentStatistics
from pyramid_dit.flow.objective import FlowObjective
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from pyramid_dit.generation.components import Components
from pyramid_dit.generation.video_generator import VideoGenerator
from pyramid_dit.media.figures import evenly_spaced, picture_grid
from pyramid_dit.models.flux import PyramidFluxTransformer
from pyramid_dit.models.text_encoder import FluxTextEncoderWithMask
from video_vae.autoencoder import CausalVideoVAE

from .checkpoints import write_folder
from .loop import TrainingLoop
from .loop_config import LoopConfig
from .optimization import Muon, muon_groups
from .runs import run_or_say
from .toy.latent_bank import LatentBank
from .toy.moving_shapes import NUM_COMBINATIONS, caption_of
from .toy.text import CAPTION, TEXT_DIM, caption_words, write_text_encoders

logger = logging.getLogger(__name__)

VARIANT = "diffusion_transformer_128p"
HEADS = 4
TOY_DIT = {
    "num_layers": 3,
    "num_single_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT_DIM,
    "pooled_projection_dim": TEXT_DIM,
    "axes_dims_rope": (8, 12, 12),
}
DROPPED = NUM_COMBINATIONS  # the row of the empty prompt
DEFAULTS = GenerationDefaults(
    prompt_suffix="",
    negative_prompt="",
    height=128,
    width=128,
    num_frames=97,
    num_inference_steps=(8, 8, 8),
    video_num_inference_steps=(4, 4, 4),
    guidance_scale=3.0,
    video_guidance_scale=2.0,
    known_words=caption_words(),
    known_sentence=CAPTION,
)


@dataclass(frozen=True, kw_only=True)
class DitRecipe:
    """What a batch looks like.

    Attributes:
        first_columns: Columns of each stage in steps that train the first unit.
        later_columns: The same in steps that train a later unit.
        per_column: Samples per column and process.
        first_frame_share: Share of the steps that train the first unit, which has no history.
        drop: Share of the prompts replaced by the empty one.
    """

    first_columns: tuple[int, int, int] = (1, 4, 2)
    later_columns: tuple[int, int, int] = (1, 2, 1)
    per_column: int = 16
    first_frame_share: float = 0.7
    drop: float = 0.1


class TrainableDit(nn.Module):
    """The transformer and its text encoders as one module with one forward."""

    def __init__(self, dit: PyramidFluxTransformer, text: FluxTextEncoderWithMask) -> None:
        super().__init__()
        self.dit, self.text = dit, text
        self.clip_ids: Tensor
        self.t5_ids: Tensor
        self.t5_mask: Tensor
        captions = [caption_of(number) for number in range(NUM_COMBINATIONS)] + [""]
        clip, t5 = text.tokenizers["text_encoder"], text.tokenizers["text_encoder_2"]
        self.register_buffer("clip_ids", _tokens(clip, captions)["input_ids"], persistent=False)
        tokens = _tokens(t5, captions)
        self.register_buffer("t5_ids", tokens["input_ids"], persistent=False)
        self.register_buffer("t5_mask", tokens["attention_mask"], persistent=False)

    def encode(self, captions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [b, l, d], mask [b, l] and pooled [b, p] of caption numbers [b]."""
        clip, t5 = (
            self.text.get_submodule("text_encoder"),
            self.text.get_submodule("text_encoder_2"),
        )
        captions = captions.to(self.clip_ids.device)
        pooled = clip(self.clip_ids[captions]).pooler_output
        mask = self.t5_mask[captions]
        states = t5(self.t5_ids[captions], attention_mask=mask)
        return states.last_hidden_state, mask, pooled

    def forward(
        self, samples: list[list[Tensor]], captions: Tensor, timesteps: Tensor
    ) -> list[Tensor]:
        """Velocities of the last clips; row p::S of captions and timesteps is of column p."""
        return self.dit(samples, *self.encode(captions), timesteps)


def _tokens(tokenizer: Any, captions: list[str]) -> Any:
    return tokenizer(captions, padding="longest", return_tensors="pt")


def new_dit(latent_channels: int) -> PyramidFluxTransformer:
    """A fresh toy transformer whose text embedders start at full size.

    The usual deviation of 0.02 is meant for widths in the thousands; at 128 it would leave the
    text without effect for long.
    """
    dit = PyramidFluxTransformer(in_channels=4 * latent_channels, **TOY_DIT)
    embed = dit.time_text_embed
    for linear in (
        embed.text_embedder.linear_1,
        embed.text_embedder.linear_2,
        embed.timestep_embedder.linear_2,
        dit.context_embedder,
    ):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    return dit


class DitObjective:
    """Loss of a batch drawn from the bank.

    Args:
        model: `TrainableDit`, or what accelerate made of it.
        bank: Latents and what they show.
        statistics: How latents are normalized.
        recipe: What a batch looks like.
        rank: Of this process.
        world: Number of processes.
        seed: Of the draws.
        device: Where the bank is kept and the loss computed.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: LatentBank,
        statistics: LatentStatistics,
        recipe: DitRecipe,
        *,
        rank: int,
        world: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.recipe = model, recipe
        self.rank, self.world, self.seed = rank, world, seed
        self.images = statistics.first_frame.normalize(bank.images.to(device, torch.float32))
        self.clips = statistics.normalize(bank.clips.to(device, torch.float32))
        self.image_combinations, self.clip_combinations = (
            bank.image_combinations,
            bank.clip_combinations,
        )
        self.max_units = bank.clips.shape[2]
        self.first, self.later = (
            FlowObjective(
                PyramidFlowMatchEulerDiscreteScheduler(),
                sample_ratios=columns,
                max_temporal_length=self.max_units,
            )
            for columns in (recipe.first_columns, recipe.later_columns)
        )

    def __call__(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of batch `number`; all processes train one length at a time."""
        units = self._units(torch.Generator().manual_seed(self.seed + number))
        rng = torch.Generator().manual_seed(self.seed + number * self.world + self.rank + (1 << 40))
        objective = self.first if units == 1 else self.later
        latents, captions = self._draw(units, len(objective.column_stages), rng)
        batch = objective.prepare(latents, units=(units,) * 3, generator=rng)
        dropped = torch.rand(len(captions), generator=rng) < self.recipe.drop
        captions = captions.masked_fill(dropped, DROPPED)
        velocities = self.model(batch.samples, captions, batch.timesteps)
        loss, log = objective.loss(velocities, batch.targets)
        kind = "first" if units == 1 else "later"
        return loss, {f"{kind}_{k.removeprefix('loss_')}": float(v) for k, v in log.items()}

    def _units(self, rng: torch.Generator) -> int:
        """Number of units to train on: the first frame alone, or any longer length."""
        share, length = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        if share < self.recipe.first_frame_share:
            return 1
        # Short histories cost less and come first, so they are seen more often.
        return 2 + int(length**2 * (self.max_units - 1))

    def _draw(self, units: int, columns: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normalized latents [b, c, t, h, w] and caption numbers [b]."""
        batch = columns * self.recipe.per_column
        source, combinations = self.images, self.image_combinations
        if units > 1:
            source, combinations = self.clips, self.clip_combinations
        chosen = torch.randint(len(source), (batch,), generator=rng)
        return source[chosen.to(source.device), :, :units], combinations[chosen]


def model_index(statistics: LatentStatistics) -> dict[str, Any]:
    """`model_index.json` of the checkpoint."""
    return {
        "_class_name": "PyramidDiTForVideoGeneration",
        "model_name": "pyramid_flux",
        "model_variant": VARIANT,
        "model_dtype": "fp32",
        "latent_statistics": asdict(statistics),
        **asdict(DEFAULTS),
    }


def write_checkpoint(
    folder: Path, model: TrainableDit, vae: CausalVideoVAE, statistics: LatentStatistics
) -> None:
    """Write everything in the released layout, whole or not at all."""

    def write(target: Path) -> None:
        model.dit.save_pretrained(target / VARIANT)
        vae.register_to_config(_name_or_path="")  # else the config names the trainer's folder
        vae.save_pretrained(target / "causal_video_vae")
        for name, tokenizer in model.text.tokenizers.items():
            encoder: Any = model.text.get_submodule(name)
            encoder.save_pretrained(target / name)
            tokenizer.save_pretrained(target / name.replace("text_encoder", "tokenizer"))
        text = json.dumps(model_index(statistics), indent=2)
        (target / "model_index.json").write_text(text + "\n")

    write_folder(folder, write)


def sample_sheet(
    model: TrainableDit, vae: CausalVideoVAE, statistics: LatentStatistics, path: Path
) -> None:
    """Generate short videos of fixed prompts with the weights as they are."""
    components = Components(
        model.dit,
        PyramidFlowMatchEulerDiscreteScheduler(),
        statistics,
        vae=vae,
        text_encoder=model.text,
        defaults=DEFAULTS,
    )
    generator = VideoGenerator(components)
    generator.set_progress_bar_config(disable=True)
    prompts = [caption_of(number) for number in range(3, NUM_COMBINATIONS, 42)]
    seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    videos = generator.generate(prompts, temp=3, generator=seeds)
    picture_grid([evenly_spaced(video, 4) for video in videos], row_labels=prompts).save(
        path, "PNG"
    )


def train_dit(
    vae: CausalVideoVAE, bank: LatentBank, config: LoopConfig, recipe: DitRecipe | None = None
) -> None:
    """Train from nothing, or from where the run stopped, and write `config.output/checkpoint`.

    Args:
        vae: The trained VAE, for sample sheets and the checkpoint.
        bank: Its latents.
        config: How long and how hard.
        recipe: What a batch looks like.
    """
    recipe = recipe or DitRecipe()
    torch.manual_seed(config.seed)
    statistics = bank.statistics()
    with tempfile.TemporaryDirectory() as text_folder:
        write_text_encoders(Path(text_folder))
        text = FluxTextEncoderWithMask(text_folder)

    dit = new_dit(bank.images.shape[1])
    model = TrainableDit(dit, text).train()
    hidden = [
        p
        for blocks in (dit.transformer_blocks, dit.single_transformer_blocks)
        for name, p in blocks.named_parameters()
        if p.ndim == 2 and "norm" not in name
    ]
    groups = muon_groups(hidden, [model], config.weight_decay)
    loop = TrainingLoop(config, {"dit": model}, Muon(groups, config.learning_rate))
    accelerator = loop.accelerator
    objective = DitObjective(
        loop.modules["dit"],
        bank,
        statistics,
        recipe,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        seed=config.seed,
        device=accelerator.device,
    )
    sheet = functools.partial(sample_sheet, model, vae, statistics)
    loop.run(objective, draw_sheet=sheet)
    if accelerator.is_main_process:
        loop.averaged(
            lambda: write_checkpoint(config.output / "checkpoint", model, vae, statistics)
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument("--bank", type=Path, required=True, help="latents made by latent_bank")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument(
        "--cooldown", type=int, default=2000, help="steps of the descent at the end"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--per-column", type=int, default=16, help="samples per column and process")
    parser.add_argument("--max-minutes", type=float, default=0.0, help="stop after so long")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = LoopConfig(
        output=options.output,
        steps=options.steps,
        learning_rate=options.learning_rate,
        schedule="trapezoid",
        cooldown=options.cooldown,
        weight_decay=0.01,
        seed=options.seed,
        mixed_precision=options.mixed_precision,
        max_minutes=options.max_minutes,
        save_every=200,
        sheet_every=500,
        log_every=20,
    )

    def train() -> None:
        vae = CausalVideoVAE.from_pretrained(options.vae).requires_grad_(False).eval()
        recipe = DitRecipe(per_column=options.per_column)
        train_dit(vae, LatentBank.load(options.bank), config, recipe)

    run_or_say(train)


if __name__ == "__main__":
    main()
