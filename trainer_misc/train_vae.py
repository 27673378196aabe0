"""Train a causal video VAE: `python -m trainer_misc.train_vae`, alone or by torchrun.

The flags are those of the reference's `train/train_video_vae.py`. The loss is that of
`CausalVideoVAELossWrapper`; weights are trained in float32 and computed with in `--model_dtype`.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyramid_dit.distributed.launcher import launched_process
from pyramid_dit.files import write_folder
from pyramid_dit.generation.latent_codec import to_bytes, to_output
from pyramid_dit.json_files import read_json
from pyramid_dit.media.figures import evenly_spaced, picture_grid
from video_vae import CausalVideoVAE, CausalVideoVAELossWrapper
from video_vae.context_parallel import check_training_share
from video_vae.training_latents import fix_posterior

from .data import Batches, MixedBatches, StillBatches, VideoBatches
from .distributed import init_distributed_mode
from .log import SAMPLES, Figures
from .loop import TrainingLoop
from .loop_config import LoopConfig, new_accelerator
from .optimization import Muon, muon_groups, parameter_groups
from .options import parse
from .runs import first_step, log_to_people, numbered, run_or_say, say_skipped, schedule_of
from .toy.shape_batches import ShapeBatches
from .vae_options import GROUPS
from .vae_weights import hidden_kernels, inflate, initialize, with_new_decoder

logger = logging.getLogger(__name__)

FRAMES_OF_LATENT = 8


class Trainer:
    """A VAE with its loss, its data and the loop that trains it.

    Args:
        options: As `parse` gives them.
        batches: The data, by default those of the annotations.

    Attributes:
        wrapper: What is trained, with the loss.
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
        torch.manual_seed(options.seed)  # of the discriminator's weights
        self.wrapper = load_wrapper(options)
        config = loop_config(options)
        accelerator = new_accelerator(
            config, cpu=options.device == "cpu", unused=options.add_discriminator
        )
        self.group = context_group(options)
        self.sharing = 1 if self.group is None else options.context_size
        rank, world = accelerator.process_index, accelerator.num_processes
        place = rank // self.sharing, world // self.sharing
        self.batches = batches or open_batches(options, *place)
        self.wrapper.to(accelerator.device).train()
        self.former = load_former(options, self.wrapper.vae)
        self.full_decoder = load_full_decoder(options, self.wrapper.vae)
        self.loop = TrainingLoop(
            config,
            {"vae": self.wrapper},
            new_optimizer(options, self.wrapper),
            accelerator,
            place=place,
        )
        if self.loop.step == 0:
            self.loop.step = first_step(options)

    def run(self) -> None:
        """Train, and write the VAE to `output_dir/causal_video_vae`."""
        sheet = self._sheet if self.options.sheet_steps else None
        finished = self.loop.run(self.loss, batches=self._numbered, draw_sheet=sheet)
        say_skipped(self.batches)
        if finished:
            self.export()

    def _numbered(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        return numbered(self.batches, start, self.options)

    def loss(self, batch: tuple[int, Mapping[str, Any]]) -> tuple[Tensor, Figures]:
        """The loss of a batch, the VAE's and the discriminator's together, and figures."""
        _, entries = batch
        pixels = entries["video"].to(self.loop.accelerator.device)
        former = {}
        if self.former is not None:
            latents, kept = self.former.encode_latent(pixels), entries.get("kept")
            weight = self.options.former_weight
            former = {"former": latents, "kept": kept, "former_weight": weight}
        output = self.loop.modules["vae"](
            pixels,
            self.loop.step,
            [entries["identifier"]],
            group=self.group,
            coarse=self.options.coarse,
            like=self.full_decoder,
            like_weight=self.options.full_decoder_weight,
            **former,
        )
        loss = output.loss
        if output.discriminator_loss is not None:
            loss = loss + output.discriminator_loss
        samples = {SAMPLES: len(pixels) / self.sharing}
        return loss, {name: value.item() for name, value in output.log.items()} | samples

    @torch.no_grad()
    def _sheet(self, path: Path) -> None:
        """Clips of the first batches above their reconstructions."""
        vae, rows = self.wrapper.vae, []
        for number in range(2):
            pixels = self.batches[number]["video"][:2].to(vae.device)
            pixels = pixels.unsqueeze(2) if pixels.ndim == 4 else pixels
            for shown in (pixels, vae.decode(vae.encode(pixels).latent_dist.mode()).sample):
                rows += [evenly_spaced(images, 7) for images in to_output(to_bytes(shown), "pil")]
        picture_grid(rows).save(path, "PNG")

    def export(self) -> None:
        """Write the VAE, the moving average of its weights if there is one."""
        target = self.options.output_dir / "causal_video_vae"
        vae = self.wrapper.vae
        vae.register_to_config(_name_or_path="")
        with self.loop.average_in_place():
            self.loop.on_main(lambda: write_folder(target, vae.save_pretrained))


def check(options: Namespace) -> None:
    """Refuse settings that do not fit each other, before anything is loaded (ValueError)."""
    for name in ("model_path", "output_dir"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is needed")
    if options.drawn_shapes:
        if options.video_anno is not None or options.image_anno is not None:
            raise ValueError("--drawn_shapes takes the place of --video_anno and --image_anno")
    elif options.video_anno is None and options.image_anno is None:
        raise ValueError("--video_anno, --image_anno or --drawn_shapes is needed")
    for name in ("any_color", "any_outline"):
        if getattr(options, name) and not options.drawn_shapes:
            raise ValueError(f"--{name} needs --drawn_shapes")
    if options.use_image_video_mixed_training and None in (options.video_anno, options.image_anno):
        raise ValueError("--use_image_video_mixed_training needs --video_anno and --image_anno")
    check_context(options)
    check_new_decoder(options)
    if options.resolution % 8:
        raise ValueError(f"--resolution must be a multiple of 8, got {options.resolution}")
    if any(options.coarse) and options.resolution % 32:
        raise ValueError(
            f"--resolution must be a multiple of 32 with --coarse, got {options.resolution}"
        )
    for folder in (options.model_path, options.former_vae):
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"no folder at {folder}")


def check_new_decoder(options: Namespace) -> None:
    """Refuse what does not go with `--new_decoder`, or needs it (ValueError)."""
    if options.new_decoder is None:
        if options.full_decoder_weight:
            raise ValueError("--full_decoder_weight needs --new_decoder")
        return
    if not options.new_decoder.is_file():
        raise FileNotFoundError(f"--new_decoder: there is no file {options.new_decoder}")
    if not options.freeze_encoder:
        raise ValueError(
            "--new_decoder needs --freeze_encoder: the latents are to stay as they are"
        )
    for name in ("fresh", "inflate"):
        if getattr(options, name):
            raise ValueError(f"--{name} does not go with --new_decoder, which starts the decoder")
    if options.full_decoder_weight and options.use_context_parallel:
        raise ValueError("--full_decoder_weight does not go with --use_context_parallel")


def check_context(options: Namespace) -> None:
    """Refuse what does not go with `--use_context_parallel` (ValueError)."""
    ranks = options.context_size if options.use_context_parallel else 1
    if ranks == 1:
        return
    flag = f"--use_context_parallel --context_size {ranks}"
    started = launched_process()
    if started is None and not options.dist_on_itp:
        raise ValueError(f"{flag} needs that many processes: start with torchrun")
    if started is not None and started.processes % ranks:
        raise ValueError(f"{flag} does not divide the {started.processes} processes")
    no_videos = options.video_anno is None and not options.drawn_shapes
    if no_videos or options.use_image_video_mixed_training:
        raise ValueError(f"{flag} works with videos only: use --video_anno, without pictures")
    try:
        check_training_share(frames_of(options), FRAMES_OF_LATENT, ranks)
    except ValueError as error:
        raise ValueError(f"{flag} with --max_frames {options.max_frames}: {error}") from None


def frames_of(options: Namespace) -> int:
    """Frames of a clip: the most of 8n+1 that `--max_frames` allows."""
    return 1 + (options.max_frames - 1) // FRAMES_OF_LATENT * FRAMES_OF_LATENT


def context_group(options: Namespace) -> dist.ProcessGroup | None:
    """The processes that share a clip with this one, which are neighbours; None if none does."""
    if not options.use_context_parallel or options.context_size == 1:
        return None
    group, _ = dist.new_subgroups(options.context_size)
    return group


def load_wrapper(options: Namespace) -> CausalVideoVAELossWrapper:
    """The VAE in float32 with its loss.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The folder holds no VAE, or a file is damaged.
    """
    if options.fresh:
        vae = CausalVideoVAE.from_config(CausalVideoVAE.load_config(options.model_path))
        initialize(vae)
    else:
        vae = CausalVideoVAE.from_pretrained(options.model_path)
    if options.inflate:
        inflate(vae)
    if options.new_decoder is not None:
        vae = with_new_decoder(vae, read_json(options.new_decoder))
    wrapper = CausalVideoVAELossWrapper(
        vae,
        "fp32",
        disc_start=options.disc_start,
        logvar_init=options.logvar_init,
        kl_weight=options.kl_weight,
        pixelloss_weight=options.pixelloss_weight,
        perceptual_weight=options.perceptual_weight,
        disc_weight=options.disc_weight,
        add_discriminator=options.add_discriminator,
        freeze_encoder=options.freeze_encoder,
        load_loss_module=True,
        lpips_ckpt=options.lpips_ckpt,
    )
    if options.pretrained_vae_weight is not None:
        wrapper.load_checkpoint(options.pretrained_vae_weight)
    if options.posterior_std is not None:
        fix_posterior(vae, options.posterior_std)
    assert wrapper.loss is not None
    wrapper.loss.logvar.requires_grad_(options.learn_logvar)
    return wrapper


def load_former(options: Namespace, vae: CausalVideoVAE) -> CausalVideoVAELossWrapper | None:
    """The VAE whose latents stay where they are, if there is one, where `vae` is.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: Its latents are of another shape than those of `vae`.
    """
    if options.former_vae is None:
        return None
    former = CausalVideoVAELossWrapper(options.former_vae)
    shape, wanted = (
        (one.config["encoder_out_channels"], one.spatial_factor, one.temporal_factor)
        for one in (former.vae, vae)
    )
    if shape != wanted:
        raise ValueError(
            f"the latents of {options.former_vae} do not fit: their channels, and the pixels and "
            f"frames that one stands for, are {shape}, not {wanted}"
        )
    return former.to(vae.device).eval().requires_grad_(False)


def load_full_decoder(options: Namespace, vae: CausalVideoVAE) -> CausalVideoVAE | None:
    """The VAE whose decoder a new one is to be like, if it is, where `vae` is."""
    if not options.full_decoder_weight:
        return None
    full: CausalVideoVAE = CausalVideoVAE.from_pretrained(options.model_path)
    return full.to(vae.device).eval().requires_grad_(False)


def open_batches(options: Namespace, rank: int, world: int) -> Batches:
    """The data that the options name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line cannot be understood.
    """
    if options.drawn_shapes:
        return ShapeBatches(
            options.batch_size,
            frames=frames_of(options),
            crop=options.resolution,
            any_color=options.any_color,
            any_outline=options.any_outline,
            seed=options.seed,
            rank=rank,
            world=world,
        )
    common: dict[str, Any] = {
        "batch_size": options.batch_size,
        "resolution": options.resolution,
        "seed": options.seed,
        "rank": rank,
        "world": world,
        "max_skipped": options.max_skipped,
        "skipped_to": options.output_dir,
    }
    if options.video_anno is None:
        return StillBatches(options.image_anno, **common)
    videos = VideoBatches(options.video_anno, max_frames=frames_of(options), **common)
    if not options.use_image_video_mixed_training:
        return videos
    images = StillBatches(options.image_anno, **common)
    return MixedBatches(videos, images, options.image_mix_ratio, seed=options.seed)


def new_optimizer(options: Namespace, wrapper: CausalVideoVAELossWrapper) -> torch.optim.Optimizer:
    """AdamW or Muon, with a learning rate of its own for the discriminator."""
    loss = wrapper.loss
    assert loss is not None
    muon = options.opt == "muon"
    if muon:
        hidden = hidden_kernels(wrapper.vae)
        groups = muon_groups(hidden, [wrapper.vae], options.weight_decay)
    else:
        groups = parameter_groups([wrapper.vae], options.weight_decay)
    if loss.logvar.requires_grad:
        groups.append({"params": [loss.logvar], "weight_decay": 0.0})
    if loss.discriminator is not None:
        for group in parameter_groups([loss.discriminator], options.weight_decay):
            groups.append(group | {"lr": options.lr_disc})
    groups = [group for group in groups if group["params"]]
    kind = Muon if muon else torch.optim.AdamW
    return kind(
        groups, lr=options.lr, betas=tuple(options.opt_betas or (0.9, 0.95)), eps=options.opt_eps
    )


def loop_config(options: Namespace) -> LoopConfig:
    """The options that the loop takes."""
    return LoopConfig(
        output=options.output_dir,
        schedule=options.lr_scheduler,
        betas=options.opt_betas,
        eps=options.opt_eps,
        weight_decay=options.weight_decay,
        clip=options.clip_grad,
        ema_decay=options.ema_decay if options.ema_update else None,
        seed=options.seed,
        keep=options.keep,
        resume=options.resume,
        auto_resume=options.auto_resume,
        sheet_every=options.sheet_steps,
        log_every=options.print_freq,
        report_to=options.report_to,
        max_minutes=options.max_minutes,
        **schedule_of(options),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    log_to_people()
    options = parse(__doc__, GROUPS, arguments)
    run_or_say(lambda: Trainer(options).run())


if __name__ == "__main__":
    main()
