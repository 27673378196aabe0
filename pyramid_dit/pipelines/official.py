"""`PyramidDiTForVideoGeneration`: a checkpoint folder loaded for generation and for training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from video_vae import CausalVideoVAE

from ..checkpoints.architectures import ARCHITECTURES
from ..checkpoints.defaults import GenerationDefaults
from ..checkpoints.folder import DEFAULT_VARIANT, CheckpointFolder
from ..checkpoints.hub import open_checkpoint
from ..checkpoints.weights import (
    load_model,
    load_weights,
    resolve_dtype,
    vae_dtype,
)
from ..devices.offload import accelerator_device
from ..flow.latents import LatentStatistics
from ..flow.objective import FlowObjective
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..generation.arguments import Arguments, ImageToVideo, TextToVideo, VideoToVideo, takes
from ..generation.components import Components
from ..generation.memory_presets import apply_preset, check_preset
from ..generation.stream import VideoStream
from ..generation.video_generator import VideoGenerator
from ..json_files import read_json
from ..models.flux import PyramidFluxTransformer
from ..models.mmdit import PyramidDiffusionMMDiT
from ..models.text_condition import TextCondition
from ..sampling.fast_mode import FastMode
from .delegation import Part, delegated

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

PROMPT_DROPOUT = 0.1

A = TypeVar("A", bound=Arguments)


class PyramidDiTForVideoGeneration:
    """Text-to-video, image-to-video and text-to-image by pyramidal flow matching.

    The reference's scripts run against this class unchanged. Weights are loaded onto the CPU;
    move `.dit`, `.vae` and `.text_encoder` where you want them. As there, `generate` and
    `generate_i2v` have `temp=1`, a still image, where neither caller nor checkpoint says a length.

    Args:
        model_path: Checkpoint folder in the released layout; `from_pretrained` also takes a
            repository of the hub.
        model_dtype: `bf16`, `fp16` or `fp32`.
        model_name: `pyramid_flux` or `pyramid_mmdit`, the architecture in the folder.
        use_gradient_checkpointing: Recompute activations in training.
        return_log: Return figures beside the training loss.
        model_variant: Name of the transformer's folder, for example
            `diffusion_transformer_768p`, or in short `768p`.
        timestep_shift: Shift of the timesteps.
        stage_range: Bounds of the stages on the time axis.
        sample_ratios: In training, how many columns of a batch each stage has.
        scheduler_gamma: Correlation of the noise at the jumps between stages.
        use_mixed_training: Taken from the reference's scripts, without effect: `identifier`
            says of each batch whether it holds images or videos.
        use_flash_attn: Taken from the reference's scripts, without effect: PyTorch picks the
            attention kernel.
        load_text_encoder: Without it, pass encoded prompts (`prompt_embeds` etc.).
        load_vae: Without it, ask for `output_type="latent"`.
        max_temporal_length: In training, latent frames of the longest clip.
        frame_per_unit: Latent frames of an autoregressive unit.
        use_temporal_causal: Frames see no later frames.
        corrupt_ratio: In training, greatest share of noise in the history.
        interp_condition_pos: Positions of a coarser clip are those of the finest, resized.
        stages: Factors of the resolutions; their number is the number of stages.
        video_sync_group: In training, ranks among which the clip lengths are spread.
        gradient_checkpointing_ratio: Share of the blocks whose activations are recomputed.
        kwargs: Other arguments are ignored, with a warning.

    Attributes:
        video_generator: What makes videos; its attributes and those of its components are at hand
            here too, as `dit`, `vae`, `text_encoder`, `scheduler` and so on.
        objective: The training objective.
        accumulate_steps: Number of training calls so far, which sets the clip lengths.

    Raises:
        FileNotFoundError: The folder, the variant in it, or a file is missing.
        ValueError: An argument is none of the allowed ones, the folder holds another
            architecture, or a file is truncated or does not fit.
    """

    def __init__(
        self,
        model_path: str | PathLike[str],
        model_dtype: str | torch.dtype = "bf16",
        model_name: str = "pyramid_mmdit",
        use_gradient_checkpointing: bool = False,
        return_log: bool = True,
        model_variant: str | None = DEFAULT_VARIANT,
        timestep_shift: float = 1.0,
        stage_range: Sequence[float] = (0, 1 / 3, 2 / 3, 1),
        sample_ratios: Sequence[int] = (1, 1, 1),
        scheduler_gamma: float = 1 / 3,
        use_mixed_training: bool = False,
        use_flash_attn: bool = False,
        load_text_encoder: bool = True,
        load_vae: bool = True,
        max_temporal_length: int = 31,
        frame_per_unit: int = 1,
        use_temporal_causal: bool = True,
        corrupt_ratio: float = 1 / 3,
        interp_condition_pos: bool = True,
        stages: Sequence[int] = (1, 2, 4),
        video_sync_group: int = 8,
        gradient_checkpointing_ratio: float = 0.6,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            logger.warning("arguments without effect: %s", ", ".join(kwargs))
        dtype = resolve_dtype(model_dtype)
        scheduler = PyramidFlowMatchEulerDiscreteScheduler(
            shift=timestep_shift,
            stages=len(stages),
            stage_range=list(stage_range),
            gamma=scheduler_gamma,
        )
        self.objective = FlowObjective(
            scheduler,
            sample_ratios=sample_ratios,
            frame_per_unit=frame_per_unit,
            max_temporal_length=max_temporal_length,
            video_sync_group=video_sync_group,
            corrupt_ratio=corrupt_ratio,
        )
        self.return_log = return_log
        self.accumulate_steps = 0

        folder = _open_folder(model_path, model_variant, model_name)
        text_encoder_class = folder.architecture.text_encoder
        text_parts = text_encoder_class.parts() if load_text_encoder else ()
        folder.check_files(text_parts, vae=load_vae)
        dit = load_model(
            folder.architecture.transformer,
            folder.path / folder.variant,
            dtype=dtype,
            variant=folder.file_variant,
            use_gradient_checkpointing=use_gradient_checkpointing,
            gradient_checkpointing_ratio=gradient_checkpointing_ratio,
            use_temporal_causal=use_temporal_causal,
            interp_condition_pos=interp_condition_pos,
        )
        vae = text_encoder = None
        if load_vae:
            vae = load_model(
                CausalVideoVAE,
                folder.path / folder.vae_folder,
                dtype=vae_dtype(dtype),
                variant=folder.file_variant,
            )
            vae.requires_grad_(False)
        if load_text_encoder:
            text_encoder = text_encoder_class(
                folder.path, torch_dtype=dtype, variant=folder.file_variant
            )
            text_encoder.requires_grad_(False)
        components = Components(
            dit,
            scheduler,
            folder.statistics,
            vae=vae,
            text_encoder=text_encoder,
            defaults=folder.defaults,
            frame_per_unit=frame_per_unit,
            name=folder.transformer_title,
        )
        self.video_generator = VideoGenerator(components)

    dit = Part[PyramidFluxTransformer | PyramidDiffusionMMDiT]()
    vae = Part["CausalVideoVAE | None"]()
    text_encoder = Part[Any]()
    scheduler = Part[PyramidFlowMatchEulerDiscreteScheduler]()
    statistics = Part[LatentStatistics]()
    defaults = Part[GenerationDefaults]()
    frame_per_unit = Part[int]()
    device = Part[torch.device]()
    dtype = Part[torch.dtype]()
    latent_channels = Part[int]()
    size_multiple = Part[int]()
    fast_mode = Part[FastMode]()
    batched_guidance = Part["bool | None"]()

    stop = delegated(VideoGenerator.stop)
    set_progress_bar_config = delegated(VideoGenerator.set_progress_bar_config)
    enable_fast_mode = delegated(VideoGenerator.enable_fast_mode)
    disable_fast_mode = delegated(VideoGenerator.disable_fast_mode)
    compile = delegated(VideoGenerator.compile)
    enable_sequential_cpu_offload = delegated(VideoGenerator.enable_sequential_cpu_offload)
    shard_weights = delegated(VideoGenerator.shard_weights)

    @takes(TextToVideo, like=VideoGenerator.generate)
    def generate(self, arguments: TextToVideo) -> Any:
        return self._start(self._reference_length(arguments, 1), as_they_come=False).join()

    @takes(ImageToVideo, like=VideoGenerator.generate_i2v)
    def generate_i2v(self, arguments: ImageToVideo) -> Any:
        arguments = self._reference_length(arguments, self.frame_per_unit)
        return self._start(arguments, as_they_come=False).join()

    @takes(VideoToVideo, like=VideoGenerator.generate_v2v)
    def generate_v2v(self, arguments: VideoToVideo) -> Any:
        return self._start(arguments, as_they_come=False).join()

    @takes(TextToVideo, like=VideoGenerator.stream)
    def stream(self, arguments: TextToVideo) -> VideoStream:
        return self._start(arguments)

    @takes(ImageToVideo, like=VideoGenerator.stream_i2v)
    def stream_i2v(self, arguments: ImageToVideo) -> VideoStream:
        return self._start(arguments)

    @takes(VideoToVideo, like=VideoGenerator.stream_v2v)
    def stream_v2v(self, arguments: VideoToVideo) -> VideoStream:
        return self._start(arguments)

    def _start(self, arguments: Arguments, *, as_they_come: bool = True) -> VideoStream:
        return self.video_generator.start(arguments, as_they_come=as_they_come, caller=self)

    def _reference_length(self, arguments: A, temp: int) -> A:
        said = (arguments.temp, arguments.num_frames, arguments.seconds, self.defaults.num_frames)
        return replace(arguments, temp=temp) if said == (None,) * 4 else arguments

    @property
    def _interrupt(self) -> bool:
        """Callbacks that were written for diffusers set it, to end the work."""
        return False

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        if value:
            self.stop()

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | PathLike[str] | None = None,
        variant: str | None = None,
        *,
        model_dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        memory: str | None = None,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> PyramidDiTForVideoGeneration:
        """Load a checkpoint, its architecture, variant and dtype detected.

        Args:
            folder_or_hub_id: A checkpoint folder, or a repository on the hub such as
                `rain1011/pyramid-flow-miniflux`, of which only what is needed is fetched. None
                is the small checkpoint that comes with this package.
            variant: `diffusion_transformer_768p`, or in short `768p`; by default what
                `model_index.json` names, else `768p`, else the only one there is.
            model_dtype: `bf16`, `fp16`, `fp32` or a dtype; by default what `model_index.json`
                names, else the half precision that the weights are stored in, else `bf16` for
                an accelerator and `fp32` for the CPU.
            device: Where to put the models, by default the CPU; with `memory` what they compute
                on, by default the accelerator.
            memory: `auto`, `max-speed`, `12GB`, `8GB` or `6GB`: where the weights are kept
                while they are not at work, see `memory_presets`.
            revision: Branch, tag or commit on the hub.
            cache_dir: Where to keep what is fetched from the hub.
            kwargs: Arguments of the constructor.

        Raises:
            FileNotFoundError: No such folder, repository, variant or file.
            ConnectionError: The hub cannot be reached.
            ValueError: As for the constructor, or the variant is ambiguous.
        """
        if memory is not None:
            check_preset(memory)
            device = device or accelerator_device() or "cpu"
        folder = open_checkpoint(
            folder_or_hub_id,
            variant,
            revision=revision,
            cache_dir=cache_dir,
            vae=kwargs.get("load_vae", True),
            text_encoder=kwargs.get("load_text_encoder", True),
        )
        for name, value in _saved_arguments(folder).items():
            kwargs.setdefault(name, value)
        config = read_json(folder.path / folder.variant / "config.json")
        for name in ("use_temporal_causal", "interp_condition_pos"):
            kwargs.setdefault(name, config.get(name, True))
        if model_dtype is None:
            on_cpu = device is None or torch.device(device).type == "cpu"
            model_dtype = folder.model_dtype or ("fp32" if on_cpu else "bf16")
        pipeline = cls(
            folder.path,
            model_dtype,
            folder.architecture.name,
            model_variant=folder.variant,
            **kwargs,
        )
        if memory is not None:
            apply_preset(pipeline.video_generator, memory, torch.device(device or "cpu"))
        elif device is not None:
            for module in (pipeline.dit, pipeline.vae, pipeline.text_encoder):
                if module is not None:
                    module.to(device)
        return pipeline

    def load_checkpoint(self, checkpoint_path: str | PathLike[str]) -> None:
        """Load the transformer's weights from a file, as `weights.load_weights` does."""
        load_weights(self.dit, checkpoint_path, part="dit")

    def load_vae_checkpoint(self, vae_checkpoint_path: str | PathLike[str]) -> None:
        """Load the VAE's weights from a file, as `weights.load_weights` does.

        Raises:
            ValueError: No VAE is loaded.
        """
        if self.vae is None:
            raise ValueError("no VAE is loaded: construct with load_vae=True")
        load_weights(self.vae, vae_checkpoint_path, part="vae")

    # ---- training -------------------------------------------------------------------------

    def __call__(
        self,
        video: Tensor,
        text: Sequence[str] | Mapping[str, Tensor],
        identifier: Sequence[str] = ("video",),
        use_temporal_pyramid: bool = True,
        accelerator: Accelerator | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of a batch (the objective is `flow.objective`).

        Args:
            video: With a VAE, pixels `[B, 3, 8n + 1, h, w]` in [-1, 1]; without, its latents
                `[B, c, n + 1, h/8, w/8]`, not normalized. B is a multiple of the columns.
            text: Prompts, of which a tenth is dropped for guidance; or their features
                `prompt_embeds`, `prompt_attention_mask` and `pooled_prompt_embeds`, as they are.
            identifier: `["video"]` or `["image"]`, the kind of the batch.
            use_temporal_pyramid: Train the last unit of clips with history; `False` noises all
                frames alike. Images have no history.
            accelerator: Says which process this is; clip lengths differ between processes.
            generator: Source of all random numbers.

        Returns:
            The loss, and figures for the log (none without `return_log`).

        Raises:
            ValueError: The batch does not fit, or a model is missing.
        """
        kind = identifier[0] if identifier else None
        if kind not in ("video", "image"):
            raise ValueError(f"identifier must be ['video'] or ['image'], got {identifier!r}")
        latents = self._training_latents(video, generator)
        condition = self._training_text(text, generator).to(self.device, self.dtype)
        if condition.batch != latents.shape[0]:
            raise ValueError(f"{condition.batch} texts for {latents.shape[0]} videos")
        self.accumulate_steps += 1
        batch = self.objective.prepare(
            latents,
            step=self.accumulate_steps,
            rank=accelerator.process_index if accelerator else 0,
            world_size=accelerator.num_processes if accelerator else 1,
            use_temporal_pyramid=use_temporal_pyramid and kind == "video",
            generator=generator,
        )
        predictions = self.dit(
            sample=batch.samples,
            encoder_hidden_states=condition.prompt_embeds,
            encoder_attention_mask=condition.prompt_attention_mask,
            pooled_projections=condition.pooled_prompt_embeds,
            timestep_ratio=batch.timesteps,
        )
        loss, log = self.objective.loss(predictions, batch.targets)
        return loss, log if self.return_log else {}

    def _training_latents(self, video: Tensor, generator: torch.Generator | None) -> Tensor:
        """Normalized latents `[B, c, t, h, w]`, float32."""
        latents = video
        if self.vae is not None:
            pixels = video.to(self.vae.device, self.vae.dtype)
            latents = self.vae.encode(pixels).latent_dist.sample(generator)
        return self.statistics.normalize(latents.to(self.device, torch.float32))

    def _training_text(
        self, text: Sequence[str] | Mapping[str, Tensor], generator: torch.Generator | None
    ) -> TextCondition:
        if isinstance(text, Mapping):
            names = TextCondition._fields
            condition = TextCondition.checked(*(text.get(name) for name in names))
            if condition is None:
                raise ValueError(f"the features of the text must have {', '.join(names)}")
            return condition
        if self.text_encoder is None:
            raise ValueError("no text encoder is loaded: pass the features of the text")
        source = generator.device if generator is not None else None
        draws = torch.rand(len(text), generator=generator, device=source)
        dropped = (draws < PROMPT_DROPOUT).tolist()
        prompts = ["" if drop else entry for entry, drop in zip(text, dropped, strict=True)]
        return TextCondition(*self.text_encoder(prompts))


def _saved_arguments(folder: CheckpointFolder) -> dict[str, Any]:
    """Arguments of the constructor that a pipeline in diffusers' layout was saved with."""
    if not folder.scheduler_config:
        return {}
    config = folder.scheduler_config
    encoders = {part.encoder for part in folder.architecture.text_encoder.parts()}
    return {
        "timestep_shift": config["shift"],
        "stage_range": config["stage_range"],
        "scheduler_gamma": config["gamma"],
        "stages": [2**stage for stage in range(config["stages"])],
        "frame_per_unit": folder.frame_per_unit,
        "load_vae": "vae" not in folder.absent,
        "load_text_encoder": not encoders & folder.absent,
    }


def _open_folder(
    path: str | PathLike[str], variant: str | None, model_name: str
) -> CheckpointFolder:
    """Look into a checkpoint folder that should hold the architecture `model_name`."""
    if model_name not in ARCHITECTURES:
        raise ValueError(
            f"model_name must be one of {', '.join(ARCHITECTURES)}, got {model_name!r}"
        )
    folder = CheckpointFolder.open(path, variant)
    if folder.architecture.name != model_name:
        raise ValueError(
            f"{folder.path / folder.variant} holds a {folder.architecture.name}, "
            f"model_name says {model_name}"
        )
    return folder
