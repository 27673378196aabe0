"""Train a transformer of Pyramid Flow: `python -m trainer_misc.train_dit`, alone or by torchrun.

The flags are those of the reference's `train/train_pyramid_flow.py`. The loss is that of
`PyramidDiTForVideoGeneration`; weights are trained in float32 and computed with in `--model_dtype`.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.distributed.launcher import launched_process
from pyramid_dit.distributed.parallel import SERIAL, processes_at_work
from pyramid_dit.flow.history import WHOLE_HISTORY
from pyramid_dit.flow.objective import FlowObjective
from video_vae.checkpoint_file import read_state_dict
from video_vae.round_trip import psnr, through_vae

from .data import Batches
from .data.batches import Texts
from .data.latents import read_text_features, stack_text_features
from .distributed import init_distributed_mode, init_sequence_parallel_group
from .dit_data import Places, image_batches, open_batches
from .dit_options import GROUPS
from .dit_results import export, last_units, sample_sheet, validation
from .log import SAMPLES, Figures
from .loop import TrainingLoop
from .loop_config import LoopConfig, new_accelerator
from .lora import add_adapters, check_lora
from .optimization import Muon, hidden_matrices, muon_groups, parameter_groups
from .options import parse
from .quantized import adamw8bit, require_bitsandbytes
from .runs import first_step, log_to_people, numbered, run_or_say, say_skipped, schedule_of
from .sharding import divide_weights

logger = logging.getLogger(__name__)

LIMIT_CLIPS, LIMIT_FRAMES, GOOD_PSNR = 8, 17, 30.0
VAE_IS_THE_LIMIT = (
    "no training of the transformer makes these better: look at them, and train the VAE "
    "(train_vae) where it is the limit"
)


class Trainer:
    """A model, its data and the loop that trains it.

    Args:
        options: As `parse` gives them.
        batches: The data, by default those of `options.anno_file`.

    Attributes:
        model: What is trained.
        loop: How.

    Raises:
        FileNotFoundError: A file or a folder is missing.
        ValueError: Settings do not fit each other, or a file is damaged.
    """

    def __init__(self, options: Namespace, batches: Batches | None = None) -> None:
        check(options)
        self.options = options
        if options.dist_on_itp or launched_process() is not None:
            init_distributed_mode(options)
        if options.use_sequence_parallel:
            init_sequence_parallel_group(options)
        self.model = load_model(options)
        self.config = loop_config(options)
        accelerator = new_accelerator(self.config, cpu=options.device == "cpu")
        sharing = processes_at_work(guided=False) if options.use_sequence_parallel else SERIAL
        self.places = Places(
            accelerator.process_index,
            accelerator.num_processes,
            sharing=sharing.sequence,
            same_data=options.video_sync_group if options.sync_video_input else 1,
        )
        self.batches = batches or open_batches(options, self.places, self.model.latent_channels)
        self.objectives = objectives(options, self.model)
        self.empty_text = (
            stack_text_features([read_text_features(options.empty_text_feature)])
            if options.empty_text_feature
            else None
        )
        modules = self._place(accelerator.device)
        self.loop = TrainingLoop(
            self.config,
            modules,
            new_optimizer(options, modules),
            accelerator,
            place=(self.places.place, self.places.places),
        )
        for name, module in self.loop.modules.items():
            setattr(self.model, name, module)
        if options.load_ema_model is not None and self.loop.step == 0:
            self.loop.start_average(read_state_dict(options.load_ema_model), "dit")
        if self.loop.step == 0:
            self.loop.step = first_step(options)

    def _place(self, device: torch.device) -> dict[str, nn.Module]:
        """Put the models on `device`; those that are trained, by name."""
        options, model = self.options, self.model
        modules: dict[str, nn.Module] = {"dit": model.dit}
        if options.lora_rank:
            modules = add_adapters(model, options)
        elif options.train_text_encoder:
            modules["text_encoder"] = model.text_encoder.float().requires_grad_(True)
        for module in (model.dit, model.vae, model.text_encoder):
            if module is not None:
                module.to(device)
        if options.use_fsdp and launched_process() is not None:
            for module in modules.values():
                divide_weights(module, device, gather_again=options.fsdp_shard_strategy == "zero3")
        for module in modules.values():
            module.train()
        return modules

    def _as_it_was(self) -> PyramidDiTForVideoGeneration:
        """The model before the training, also where one is resumed; whole, on the CPU."""
        options = Namespace(**vars(self.options))
        options.load_text_encoder = options.train_text_encoder
        options.load_vae, options.vae_pretrained_weight = False, None
        return load_model(options)

    def run(self) -> None:
        """Train, and write what came out into `output_dir`."""
        if self.options.load_vae and self.loop.step == 0:
            self._say_limit()
        finished = self.loop.run(
            self.loss,
            batches=self._numbered,
            draw_sheet=self._sheet() if self.options.sample_steps else None,
            validate=self._validation() if self.options.validate_steps else None,
        )
        say_skipped(self.batches)
        if finished:
            texts = self.batches.texts() if isinstance(self.batches, Texts) else ()
            former = None
            if self.options.initial_share and self.loop.accelerator.is_main_process:
                former = self._as_it_was()
            export(self.model, self.loop, self.options, texts, former)

    def _say_limit(self) -> None:
        """Say how near to themselves some of the clips come back from the VAE."""
        if not self.loop.accelerator.is_main_process:
            return
        vae = self.model.vae
        assert vae is not None
        found: list[tuple[float, str]] = []
        for number in range(LIMIT_CLIPS):
            batch = self.batches[number]
            pixels = batch["video"][:LIMIT_CLIPS]
            pixels = pixels[:, :, None] if pixels.ndim == 4 else pixels[:, :, :LIMIT_FRAMES]
            back = through_vae(vae, pixels)
            for clip, expected, text in zip(back, pixels, batch["text"], strict=False):
                found.append((psnr(clip.numpy(), expected.numpy(), peak=2.0), text))
            if len(found) >= LIMIT_CLIPS:
                break
        mean = sum(psnr for psnr, _ in found) / len(found)
        lowest, text = min(found)
        logger.info(
            "through the VAE and back: %.1f dB PSNR, mean of %d clips; lowest %.1f dB (%r)%s",
            *(mean, len(found), lowest, text),
            "" if lowest >= GOOD_PSNR else f"; {VAE_IS_THE_LIMIT}",
        )

    def _numbered(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        return numbered(self.batches, start, self.options)

    def loss(self, batch: tuple[int, Mapping[str, Any]]) -> tuple[Tensor, Figures]:
        """The loss of a batch, by the model itself, and figures for the log."""
        number, entries = batch
        seed = torch.initial_seed()  # which the loop sets for every batch
        model = self.model
        model.accumulate_steps = entries.get("number", number)
        pictures = is_of_pictures(entries)
        model.objective = self.objectives[pictures]
        loss, log = model(
            entries["video"],
            entries["text"],
            [entries["identifier"]],
            self.options.use_temporal_pyramid,
            self.places,
            empty_text=self.empty_text,
            units=last_units(model, entries),
            generator=torch.Generator(self.loop.accelerator.device).manual_seed(seed),
        )
        samples = len(entries["video"]) / self.places.sharing
        kind = "image_" if pictures and self.options.image_anno is not None else ""
        figures = {f"{kind}{name}": value.item() for name, value in log.items()}
        return loss, figures | {SAMPLES: samples}

    def _sheet(self) -> Any:
        lines = self.options.sample_prompts.read_text(encoding="utf-8").splitlines()
        prompts = [line for line in lines if line.strip()]
        output, source = self.options.output_dir, self.options.model_path
        return lambda path: sample_sheet(
            *(self.model, prompts, path, source), str(output / f"sample-{self.loop.step:06d}")
        )

    def _validation(self) -> Any:
        channels = self.model.latent_channels
        held_back = open_batches(self.options, self.places, channels, validation=True)
        return lambda: validation(self.model, held_back, self.objectives[False], self.empty_text)


def is_of_pictures(entries: Mapping[str, Any]) -> bool:
    """Whether a batch has single frames, [b, 3, h, w], or their latents, [b, c, 1, h, w].

    The first unit of videos whose last unit is trained is none of these.
    """
    if entries.get("last_unit"):
        return False
    pixels_or_latents: Tensor = entries["video"]
    return pixels_or_latents.ndim == 4 or pixels_or_latents.shape[2] == 1


def check(options: Namespace) -> None:
    """Refuse what lacks a folder, and what `check_settings` refuses (ValueError)."""
    for name in ("model_path", "output_dir"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is needed")
    check_settings(options)


def check_settings(options: Namespace) -> None:
    """Refuse settings that do not fit each other, before anything is loaded (ValueError)."""
    options.load_text_encoder |= options.train_text_encoder
    check_lora(options)
    if options.task == "t2i" and not options.load_vae:
        raise ValueError("--task t2i reads pictures: --load_vae is needed")
    if options.device not in ("auto", "cuda", "cpu"):
        raise ValueError(f"--device must be auto, cuda or cpu, got {options.device!r}")
    if options.device == "cuda" and not torch.cuda.is_available():
        options.device = "auto"
        logger.warning("--device cuda: no GPU found, using the CPU")
    if options.opt == "adamw8bit":
        require_bitsandbytes()
        if options.use_fsdp:
            raise ValueError("--opt adamw8bit does not go with --use_fsdp, which divides the state")
    if options.half_weights and options.model_dtype == "fp16":
        raise ValueError("--half_weights with fp16 overflows: bf16 or fp32")
    if options.sample_steps:
        if not options.load_text_encoder or options.sample_prompts is None:
            raise ValueError("--sample_steps needs --sample_prompts and --load_text_encoder")
        if options.use_fsdp:
            raise ValueError("--sample_steps does not go with --use_fsdp: one process draws them")
    pictures = options.task == "t2i"
    if pictures and options.image_anno is not None:
        raise ValueError("--task t2i trains on pictures only: use --anno_file without --image_anno")
    if options.replay_image_anno is not None and options.image_anno is None:
        raise ValueError("--replay_image_anno needs --image_anno, with which it is mixed")
    for flag, size, ratios, taken in (
        ("batch_size", options.batch_size, options.sample_ratios, not pictures),
        ("image_batch_size", *image_batches(options), pictures or options.image_anno is not None),
    ):
        if taken and size % sum(ratios):
            raise ValueError(
                f"--{flag} {size} cannot be divided into the {sum(ratios)} columns of the sample "
                f"ratios {','.join(map(str, ratios))}"
            )
    sharing = options.sp_group_size if options.use_sequence_parallel else 1
    if sharing > 1 and launched_process() is None and not options.dist_on_itp:
        raise ValueError(
            f"--sp_group_size {sharing} needs that many processes: start with torchrun"
        )


def load_model(options: Namespace) -> PyramidDiTForVideoGeneration:
    """The model, with trained weights in float32 unless asked for otherwise.

    Raises:
        FileNotFoundError: A file or a folder is missing.
        ValueError: The folder holds another model, or a file is damaged.
    """
    model = PyramidDiTForVideoGeneration(
        options.model_path,
        options.model_dtype,
        options.model_name,
        use_gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_ratio=options.gradient_checkpointing_ratio,
        model_variant=options.model_variant,
        timestep_shift=options.schedule_shift,
        sample_ratios=options.sample_ratios,
        use_mixed_training=whole_masters(options),
        load_text_encoder=options.load_text_encoder,
        load_vae=options.load_vae,
        max_temporal_length=options.max_frames,
        frame_per_unit=options.frame_per_unit,
        use_temporal_causal=options.use_temporal_causal,
        corrupt_ratio=options.corrupt_ratio,
        interp_condition_pos=options.interp_condition_pos,
        video_sync_group=options.video_sync_group,
    )
    if options.dit_pretrained_weight is not None:
        model.load_checkpoint(options.dit_pretrained_weight)
    if options.vae_pretrained_weight is not None:
        model.load_vae_checkpoint(options.vae_pretrained_weight)
    if whole_masters(options) and model.dtype != torch.float32:
        raise ValueError(f"the transformer is in {model.dtype}: --half_weights trains it so")
    return model


def whole_masters(options: Namespace) -> bool:
    """Whether the transformer's weights are kept in float32: not where an adapter is trained, but
    FSDP divides no module with weights of two kinds."""
    if options.lora_rank:
        return options.use_fsdp
    return not options.half_weights


def objectives(
    options: Namespace, model: PyramidDiTForVideoGeneration
) -> dict[bool, FlowObjective]:
    """The objective of batches of pictures (True), and of all others."""
    whole = options.whole_history
    _, ratios_of_pictures = image_batches(options)
    return {
        pictures: FlowObjective(
            model.scheduler,
            sample_ratios=ratios_of_pictures if pictures else options.sample_ratios,
            frame_per_unit=options.frame_per_unit,
            max_temporal_length=options.max_frames,
            video_sync_group=options.video_sync_group,
            corrupt_ratio=options.corrupt_ratio,
            corrupt_frames=options.corrupt_frames,
            history=WHOLE_HISTORY if whole is None else WHOLE_HISTORY.without_end(whole),
        )
        for pictures in (True, False)
    }


def loop_config(options: Namespace) -> LoopConfig:
    """The options that the loop takes."""
    constant = options.lr_scheduler == "constant_with_warmup"
    common = schedule_of(options)
    if options.half_weights:
        common["mixed_precision"] = "no"
    return LoopConfig(
        output=options.output_dir,
        schedule="constant" if constant else options.lr_scheduler,
        betas=(options.opt_beta1, options.opt_beta2),
        eps=options.opt_eps,
        weight_decay=options.weight_decay,
        clip=options.clip_grad,
        skip_above=options.skip_loss,
        ema_decay=options.ema_decay if options.ema_update else None,
        ema_warmup=options.ema_warmup,
        ema_every=options.ema_every,
        ema_on_cpu=options.load_model_ema_to_cpu,
        trained_alone=bool(options.lora_rank),
        seed=options.seed,
        keep=options.keep,
        resume=options.resume,
        auto_resume=options.auto_resume,
        sheet_every=options.sample_steps,
        validate_every=options.validate_steps,
        log_every=options.print_freq,
        report_to=options.report_to,
        logging_dir=options.logging_dir,
        max_minutes=options.max_minutes,
        **common,
    )


def new_optimizer(
    options: Namespace, modules: Mapping[str, nn.Module]
) -> torch.optim.Optimizer | None:
    """Muon, for the matrices inside the blocks, or AdamW with a state of 8 bits; None is AdamW."""
    betas = options.opt_beta1, options.opt_beta2
    if options.opt == "adamw":
        return None
    if options.opt == "adamw8bit":
        groups = parameter_groups(modules.values(), options.weight_decay)
        return adamw8bit(groups, lr=options.lr, betas=betas, eps=options.opt_eps)
    hidden = hidden_matrices(modules["dit"])
    groups = muon_groups(hidden, modules.values(), options.weight_decay)
    return Muon(groups, options.lr, betas=betas, eps=options.opt_eps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    log_to_people()
    options = parse(__doc__, GROUPS, arguments)
    run_or_say(lambda: Trainer(options).run())


if __name__ == "__main__":
    main()
