"""`PyramidDiTForVideoGeneration`: a checkpoint folder loaded for generation and for training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from video_vae import CausalVideoVAE
from video_vae.checkpoint_file import MODEL_KEY
from video_vae.posterior import DiagonalGaussian

from ..checkpoints.architectures import ARCHITECTURES
from ..checkpoints.defaults import GenerationDefaults
from ..checkpoints.folder import DEFAULT_VARIANT, CheckpointFolder
from ..checkpoints.hub import open_checkpoint
from ..checkpoints.weights import load_weights, read_transformer, read_vae, resolve_dtype
from ..devices.offload import accelerator_device, module_device, moved_to
from ..distributed.parallel import (
    SERIAL,
    groups_are_formed,
    processes_at_work,
    scaled_gradient,
)
from ..flow.latents import Generators, LatentStatistics
from ..flow.objective import FlowObjective
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..flow.sizes import SPATIAL_FACTOR
from ..generation.arguments import (
    Arguments,
    ImageToVideo,
    LiveVideo,
    TextToVideo,
    VideoToVideo,
    takes,
)
from ..generation.components import Components
from ..generation.latent_codec import DecodeSizes, decode_latents, to_output
from ..generation.memory_presets import MAX_SPEED, apply_preset, check_preset
from ..generation.stream import VideoStream
from ..generation.video_generator import VideoGenerator
from ..json_files import read_json
from ..models.flux import PyramidFluxTransformer
from ..models.lora import require_peft
from ..models.mmdit import PyramidDiffusionMMDiT
from ..models.text_condition import TextCondition
from ..sampling.fast_mode import FastMode
from .delegation import Part, delegated

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

logger = logging.getLogger(__name__)

PROMPT_DROPOUT = 0.1

A = TypeVar("A", bound=Arguments)


class PyramidDiTForVideoGeneration:
    """Text-to-video, image-to-video and text-to-image by pyramidal flow matching.

    Scripts that generate with the reference run unchanged. Weights are loaded onto the CPU;
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
        use_mixed_training: The transformer's weights are float32 whatever `model_dtype` says,
            for training under autocast: weights in half precision swallow small updates.
        use_flash_attn: Taken from the reference's scripts, without effect: PyTorch picks the
            attention kernel.
        load_text_encoder: Without it, pass encoded prompts (`prompt_embeds` etc.).
        load_vae: Without it, ask for `output_type="latent"`.
        max_temporal_length: In training, latent frames of the longest clip.
        frame_per_unit: Latent frames of an autoregressive unit; by default as the checkpoint says,
            else 1.
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
        frame_per_unit: int | None = None,
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
        folder = _open_folder(model_path, model_variant, model_name)
        scheduler = PyramidFlowMatchEulerDiscreteScheduler(
            shift=timestep_shift,
            stages=len(stages),
            stage_range=list(stage_range),
            gamma=scheduler_gamma,
            **folder.stepping,
        )
        unit = folder.settings.frame_per_unit if frame_per_unit is None else frame_per_unit
        self.objective = FlowObjective(
            scheduler,
            sample_ratios=sample_ratios,
            frame_per_unit=unit,
            max_temporal_length=max_temporal_length,
            video_sync_group=video_sync_group,
            corrupt_ratio=corrupt_ratio,
        )
        self.return_log = return_log
        self.accumulate_steps = 0
        self._warnings: set[str] = set()

        text_encoder_class = folder.architecture.text_encoder
        text_parts = text_encoder_class.parts() if load_text_encoder else ()
        folder.check_files(text_parts, vae=load_vae)
        dit = read_transformer(
            folder,
            dtype=torch.float32 if use_mixed_training else dtype,
            use_gradient_checkpointing=use_gradient_checkpointing,
            gradient_checkpointing_ratio=gradient_checkpointing_ratio,
            use_temporal_causal=use_temporal_causal,
            interp_condition_pos=interp_condition_pos,
        )
        vae = text_encoder = None
        if load_vae:
            vae = read_vae(folder, dtype=dtype)
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
            frame_per_unit=unit,
            name=folder.transformer_title,
        )
        self.video_generator = VideoGenerator(components)
        self._training_dit: nn.Module = dit
        self._memory_preset: tuple[str, torch.device] | None = None

    @property
    def dit(self) -> PyramidFluxTransformer | PyramidDiffusionMMDiT:
        """The transformer, or what it was replaced by, such as `accelerator.prepare(model.dit)`.

        Training calls that; attributes and generation are those of the module inside.
        """
        inner: Any = self.video_generator.components.dit
        around: Any = self._training_dit
        return around if _unwrapped(around) is inner else inner

    @dit.setter
    def dit(self, module: Any) -> None:
        self.video_generator.components.dit = _unwrapped(module)
        self._training_dit = module

    vae = Part[CausalVideoVAE | None]()
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

    @takes(LiveVideo, like=VideoGenerator.live)
    def live(self, arguments: LiveVideo) -> VideoStream:
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
        fast: bool = False,
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
            fast: Take the transformer that was distilled from it, one or two evaluations a stage
                without guidance, and the VAE that goes with it (docs/distill.md).
            model_dtype: `bf16`, `fp16`, `fp32` or a dtype; by default what `model_index.json`
                names, else the half precision that the weights are stored in, else `bf16` for
                an accelerator and `fp32` for the CPU.
            device: Where to put the models, by default the CPU; with `memory` what they compute
                on, by default the accelerator.
            memory: `auto`, `max-speed`, `12GB`, `8GB` or `6GB`, or another size: where the
                weights are kept while they are not at work, see `memory_presets`.
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
            fast=fast,
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
            target = torch.device(device or "cpu")
            pipeline._memory_preset = apply_preset(pipeline.video_generator, memory, target), target
        elif device is not None:
            for module in (pipeline.dit, pipeline.vae, pipeline.text_encoder):
                if module is not None:
                    module.to(device)
        return pipeline

    def load_checkpoint(
        self, checkpoint_path: str | PathLike[str], model_key: str = MODEL_KEY
    ) -> None:
        """Load the transformer's weights from a file, as `weights.load_weights` does."""
        transformer = self.video_generator.components.dit
        load_weights(transformer, checkpoint_path, part="dit", model_key=model_key)

    def load_vae_checkpoint(
        self, vae_checkpoint_path: str | PathLike[str], model_key: str = MODEL_KEY
    ) -> None:
        """Load the VAE's weights from a file, as `weights.load_weights` does.

        Raises:
            ValueError: No VAE is loaded.
        """
        if self.vae is None:
            raise ValueError("no VAE is loaded: construct with load_vae=True")
        load_weights(self.vae, vae_checkpoint_path, part="vae", model_key=model_key)

    def load_lora_weights(
        self, source: Any, adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Add a LoRA to the transformer, as `PyramidFlowPipeline.load_lora_weights` does.

        Args:
            source: A folder, a file, a repository on the hub, or the weights.
            adapter_name: What to call it; `dit.set_adapters` weighs it, `dit.unload_lora` takes
                all away.
            kwargs: As of diffusers' loaders, for example `weight_name`.

        Raises:
            ImportError: There is no `peft`.
            ValueError: The weights are none of a LoRA for this transformer.
        """
        require_peft()
        from .pipeline_lora import TransformerLoraLoaderMixin as Loader

        weights, metadata = Loader.lora_state_dict(source, return_lora_metadata=True, **kwargs)
        if self._memory_preset is not None:  # whose hooks would not know the adapters
            apply_preset(self.video_generator, MAX_SPEED, torch.device("cpu"))
        try:
            Loader.load_lora_into_transformer(
                weights,
                self.dit,
                adapter_name,
                text_encoders=dict(self.text_encoder.named_children()) if self.text_encoder else {},
                metadata=metadata,
            )
        finally:
            if self._memory_preset is not None:
                apply_preset(self.video_generator, *self._memory_preset)

    # ---- steps of generation, for those who take them by themselves -------------------------

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        temp: int,
        height: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Initial noise `[batch_size, c, temp, height/8, width/8]` of videos of a size in pixels.

        `generate` takes it as `latents`. It lies on `device`, by default the transformer's.
        """
        size = (height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)
        shape = (batch_size, num_channels_latents, temp, *size)
        device = torch.device(device or self.device)
        return randn_tensor(shape, generator=generator, device=device, dtype=dtype)

    def sample_block_noise(
        self,
        bs: int,
        ch: int,
        temp: int,
        height: int,
        width: int,
        *,
        generator: Generators | None = None,
    ) -> Tensor:
        """Noise of a jump `[bs, ch, temp, height, width]`, float32, on the transformer's device."""
        shape = (bs, ch, temp, height, width)
        return self.scheduler.sample_block_noise(
            shape, generator=generator, device=self.device, dtype=torch.float32
        )

    def decode_latent(
        self, latents: Tensor, save_memory: bool = True, inference_multigpu: bool = False
    ) -> list[Image]:
        """Decode what `generate` gives as `output_type="latent"`.

        Args:
            latents: Normalized latents `[b, c, t, h, w]`.
            save_memory: Decode less at a time.
            inference_multigpu: All processes that make a video together call this.

        Returns:
            The pictures, sample after sample in one list.

        Raises:
            ValueError: No VAE is loaded.
        """
        if self.vae is None:
            raise ValueError("no VAE is loaded: construct with load_vae=True")
        with moved_to(self.vae, module_device(self.vae)) as device:
            frames = decode_latents(
                self.vae,
                self.statistics,
                latents,
                device=device,
                sizes=DecodeSizes.of(save_memory=save_memory),
                parallel=processes_at_work(guided=False) if inference_multigpu else SERIAL,
            )
        return [image for sample in to_output(frames, "pil") for image in sample]

    # ---- training -------------------------------------------------------------------------

    def __call__(
        self,
        video: Tensor,
        text: Sequence[str] | Mapping[str, Tensor] | TextCondition,
        identifier: Sequence[str] = ("video",),
        use_temporal_pyramid: bool = True,
        accelerator: Accelerator | None = None,
        *,
        empty_text: Mapping[str, Tensor] | TextCondition | None = None,
        units: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of a batch (the objective is `flow.objective`).

        Args:
            video: With a VAE, pixels `[B, 3, 8n + 1, h, w]` in [-1, 1]; without, its latents
                `[B, c, n + 1, h/8, w/8]`, not normalized. B is a multiple of the columns. Images
                may lack the axis of time: `[B, 3, h, w]`, and latents `[B, c, h/8, w/8]`.
            text: Prompts, or their features `prompt_embeds`, `prompt_attention_mask` and
                `pooled_prompt_embeds`. A tenth is replaced by the empty text, for guidance.
            identifier: `["video"]` or `["image"]`, the kind of the batch.
            use_temporal_pyramid: Train the last unit of clips with history; `False` noises all
                frames alike. Images have no history.
            accelerator: Says which process this is; clip lengths differ between processes.
            empty_text: Features of the empty prompt, one row; without it no features of `text`
                are replaced.
            units: Units of the clips that each stage trains on, lowest resolution first; by
                default all lengths in turn.
            generator: Source of all random numbers.

        Processes that share the tokens of a batch (`init_sequence_parallel_group`) all call this
        with the same batch; draws are those of the group's first. The gradients are made such that
        their mean over all processes, which DDP and FSDP take, is that of the whole batch.

        Returns:
            The loss, and figures for the log (none without `return_log`).

        Raises:
            ValueError: The batch does not fit, or a model is missing.
        """
        kind = identifier[0] if identifier else None
        if kind not in ("video", "image"):
            raise ValueError(f"identifier must be ['video'] or ['image'], got {identifier!r}")
        if kind == "image" and video.ndim == 4:
            video = video.unsqueeze(2)
        if video.ndim != 5:
            raise ValueError(f"{identifier!r} of shape {tuple(video.shape)}: a batch has 5 axes")
        self._warn_of_half_precision()
        parallel = processes_at_work(guided=False) if groups_are_formed() else SERIAL
        if parallel.size > 1:
            common = parallel.common_generator(generator)
            generator = common if isinstance(common, torch.Generator) else None
        latents = self._training_latents(video, generator)
        condition = self._training_text(text, empty_text, generator)
        condition = condition.to(self.device, self.dtype)
        if condition.batch != latents.shape[0]:
            raise ValueError(f"{condition.batch} texts for {latents.shape[0]} videos")
        self.accumulate_steps += 1
        batch = self.objective.prepare(
            latents,
            step=self.accumulate_steps,
            rank=accelerator.process_index // parallel.size if accelerator else 0,
            world_size=-(-accelerator.num_processes // parallel.size) if accelerator else 1,
            units=units,
            use_temporal_pyramid=use_temporal_pyramid and kind == "video",
            generator=generator,
        )
        predictions = self.dit(
            sample=batch.samples,
            encoder_hidden_states=condition.prompt_embeds,
            encoder_attention_mask=condition.prompt_attention_mask,
            pooled_projections=condition.pooled_prompt_embeds,
            timestep_ratio=batch.timesteps,
            parallel=parallel,
        )
        predictions = [scaled_gradient(x, parallel.size) for x in predictions]
        return self.calculate_loss(predictions, batch.targets)

    def calculate_loss(
        self, model_preds_list: Sequence[Tensor], targets_list: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of velocities `[b, c, t, h, w]`, one per column; the rest as for a call."""
        loss, log = self.objective.loss(model_preds_list, targets_list)
        return loss, log if self.return_log else {}

    def _training_latents(self, video: Tensor, generator: torch.Generator | None) -> Tensor:
        """Normalized latents `[B, c, t, h, w]`, float32."""
        latents = video
        if self.vae is not None:
            pixels = video.to(self.vae.device, self.vae.dtype)
            # clip by clip and in windows: a batch at once takes hundreds of gigabytes at 384p
            encoded = [
                self.vae.encode(clip, temporal_chunk=True).latent_dist.parameters
                for clip in pixels.split(1)
            ]
            latents = DiagonalGaussian(torch.cat(encoded)).sample(generator)
        return self.statistics.normalize(latents.to(self.device, torch.float32))

    def _training_text(
        self,
        text: Sequence[str] | Mapping[str, Tensor] | TextCondition,
        empty_text: Mapping[str, Tensor] | TextCondition | None,
        generator: torch.Generator | None,
    ) -> TextCondition:
        """The condition `[B, ...]`, a tenth of it dropped."""
        if isinstance(text, Mapping | TextCondition):
            condition = _features(text)
            if empty_text is None:
                self._warn_once(
                    "features of text without empty_text=: none is dropped, so that guidance is "
                    "not learned unless some of them are the empty prompt's"
                )
                return condition
            empty = _features(empty_text)
            if empty.batch != 1:
                raise ValueError(f"empty_text must have one row, got {empty.batch}")
            embeds, mask, pooled = condition
            empty = TextCondition(empty[0].to(embeds), empty[1].to(mask), empty[2].to(pooled))
            dropped = _dropped(condition.batch, generator)
            rows = [condition.batch if drop else row for row, drop in enumerate(dropped)]
            return TextCondition(*(tensor[rows] for tensor in condition.followed_by(empty)))
        if self.text_encoder is None:
            raise ValueError("no text encoder is loaded: pass the features of the text")
        dropped = _dropped(len(text), generator)
        prompts = ["" if drop else entry for entry, drop in zip(text, dropped, strict=True)]
        reads_padding = not self.video_generator.components.dit.config.get("use_t5_mask", True)
        return TextCondition(*self.text_encoder(prompts, padded=reads_padding))

    def _warn_of_half_precision(self) -> None:
        dtypes = {p.dtype for p in self.dit.parameters() if p.requires_grad}
        if self.dit.training and dtypes & {torch.bfloat16, torch.float16}:
            self._warn_once(
                "the transformer is trained with weights in half precision, which updates at "
                "usual learning rates leave as they are: load it with use_mixed_training=True, "
                "and compute under torch.autocast or with accelerate's mixed_precision"
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            logger.warning(message)


def _unwrapped(module: Any) -> Any:
    """The module inside of those that DDP, FSDP and `torch.compile` put around it."""
    while isinstance(inner := getattr(module, "module", None), nn.Module) or isinstance(
        inner := getattr(module, "_orig_mod", None), nn.Module
    ):
        module = inner
    return module


def _features(text: Mapping[str, Tensor] | TextCondition) -> TextCondition:
    """The features of texts, by our names or by those of the reference's extracted files."""
    given = text._asdict() if isinstance(text, TextCondition) else text
    singular = {name: name.replace("embeds", "embed") for name in TextCondition._fields}
    condition = TextCondition.checked(*(given.get(n, given.get(s)) for n, s in singular.items()))
    if condition is None:
        raise ValueError(f"the features of the text must have {', '.join(singular)}")
    return condition


def _dropped(count: int, generator: torch.Generator | None) -> list[bool]:
    """Which of the texts are replaced by the empty one."""
    source = generator.device if generator is not None else None
    return (torch.rand(count, generator=generator, device=source) < PROMPT_DROPOUT).tolist()


def _saved_arguments(folder: CheckpointFolder) -> dict[str, Any]:
    """Arguments of the constructor that a pipeline in diffusers' layout was saved with."""
    config = folder.scheduler_config
    encoders = {part.encoder for part in folder.architecture.text_encoder.parts()}
    saved: dict[str, Any] = {
        "load_vae": "vae" not in folder.absent,
        "load_text_encoder": not encoders & folder.absent,
    }
    names = {"timestep_shift": "shift", "stage_range": "stage_range", "scheduler_gamma": "gamma"}
    saved |= {name: config[entry] for name, entry in names.items() if entry in config}
    if "stages" in config:
        saved["stages"] = [2**stage for stage in range(config["stages"])]
    return saved


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
