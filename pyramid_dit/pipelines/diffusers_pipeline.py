"""`PyramidFlowPipeline`: Pyramid Flow with the conventions of diffusers' video pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from video_vae import CausalVideoVAE

from ..checkpoints.architectures import (
    Architecture,
    architecture_of,
    architecture_of_encoders,
)
from ..checkpoints.defaults import GenerationDefaults
from ..checkpoints.settings import Settings, Source
from ..devices.offload import accelerator_device, module_device, moved_to
from ..devices.precision import float32_for_float16, float32_layers
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..flow.sizes import size_multiple
from ..generation.arguments import StepCallback, takes
from ..generation.components import Components
from ..generation.memory_presets import apply_preset, check_preset
from ..generation.video_generator import VideoGenerator
from ..models.flux import PyramidFluxTransformer
from ..models.lora import lora_scale, require_peft
from ..models.mmdit import PyramidDiffusionMMDiT
from ..models.text_encoder import TextEncoderWithMask
from ..sampling.fast_mode import FastMode
from ..sampling.prompts import Prompts
from .delegation import Part, delegated
from .pipeline_arguments import CALLBACK_TENSORS, PipelineArguments
from .pipeline_loading import (
    TEXT_ENCODERS,
    Dtype,
    Quantization,
    check_names,
    component_settings,
    load_components,
    one_device,
    one_dtype,
)
from .pipeline_lora import TransformerLoraLoaderMixin
from .pipeline_output import PyramidFlowPipelineOutput
from .registration import public_place, register
from .video_processor import PyramidVideoProcessor


class PyramidFlowPipeline(DiffusionPipeline, TransformerLoraLoaderMixin):
    """Text, images and videos to videos by pyramidal flow matching.

    The work is done by a `VideoGenerator`, the same that `PyramidDiTForVideoGeneration` is; as
    `video_generator` it is at hand, for what diffusers has no convention for, such as streams.

    Args:
        transformer: The transformer; without it, there is `encode_prompt` alone.
        scheduler: The mathematics of the stages.
        vae: The VAE; without it, ask for `output_type="latent"`.
        text_encoder: CLIP. Without text encoders, pass encoded prompts (`prompt_embeds` etc.).
        tokenizer: Its tokenizer.
        text_encoder_2: T5 of miniFLUX, the second CLIP of SD3.
        tokenizer_2: Its tokenizer.
        text_encoder_3: T5 of SD3.
        tokenizer_3: Its tokenizer.
        latent_statistics: Normalization of the VAE's latents, `first_frame` and `later_frames`,
            each with `shift` and `scale`; where nothing says it, that of the released models.
        generation_defaults: What to do where a caller does not say, as in `GenerationDefaults`.
        frame_per_unit: Latent frames of an autoregressive unit, by default 1.

    What is not given of the last three is as the configs of the VAE (the statistics) and of the
    transformer (the others) say.

    Attributes:
        fast_mode: Approximations, see `enable_fast_mode`.
        batched_guidance: Whether both branches of the guidance are computed as one batch; None
            decides by the memory that is free.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->transformer->vae"
    _callback_tensor_inputs = [*CALLBACK_TENSORS]
    _optional_components = [
        *("transformer", "vae"),
        *("text_encoder", "tokenizer"),
        *("text_encoder_2", "tokenizer_2"),
        *("text_encoder_3", "tokenizer_3"),
    ]

    transformer: PyramidFluxTransformer | PyramidDiffusionMMDiT | None
    scheduler: PyramidFlowMatchEulerDiscreteScheduler
    vae: CausalVideoVAE | None

    def __init__(
        self,
        transformer: PyramidFluxTransformer | PyramidDiffusionMMDiT | None,
        scheduler: PyramidFlowMatchEulerDiscreteScheduler,
        vae: CausalVideoVAE | None = None,
        text_encoder: CLIPTextModel | CLIPTextModelWithProjection | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder_2: T5EncoderModel | CLIPTextModelWithProjection | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        text_encoder_3: T5EncoderModel | None = None,
        tokenizer_3: PreTrainedTokenizerBase | None = None,
        latent_statistics: dict | None = None,
        generation_defaults: dict | None = None,
        frame_per_unit: int | None = None,
    ) -> None:
        super().__init__()
        self._video_generator: VideoGenerator | None = None
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
        )
        self.register_to_config(
            latent_statistics=latent_statistics,
            generation_defaults=generation_defaults,
            frame_per_unit=frame_per_unit,
        )
        self._memory_preset: tuple[str, torch.device] | None = None
        self._interrupt = False
        self._guidance_scale = self.defaults.guidance_scale
        self._num_timesteps = 0
        self._current_timestep: float | None = None

    def register_to_config(self, **entries: Any) -> None:
        """As of all pipelines; the classes of this project are written by their packages."""
        super().register_to_config(**{k: public_place(v) for k, v in entries.items()})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None = None,
        variant: str | None = None,
        *,
        fast: bool = False,
        torch_dtype: Dtype | None = None,
        dtype: Dtype | None = None,
        device_map: str | torch.device | Mapping[str, str | torch.device] | None = None,
        memory: str | None = None,
        quantization_config: Quantization | None = None,
        subfolder: str | None = None,
        use_safetensors: bool | None = None,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **components: Any,
    ) -> PyramidFlowPipeline:
        """Load a pipeline from a folder or the hub, in the released layout or in diffusers' own.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the hub such as
                `rain1011/pyramid-flow-miniflux`, of which only what is needed is fetched. None is
                the small checkpoint that comes with this package.
            variant: In the released layout the transformer, `diffusion_transformer_768p` or in
                short `768p`; by default what `model_index.json` names, else `768p`, else the only
                one there is. In diffusers' layout the variant of the files, such as `fp16`, which
                is found without being named.
            fast: In the released layout, take the transformer that was distilled from it, and the
                VAE that goes with it (docs/distill.md).
            torch_dtype: `bf16`, `fp16`, `fp32` or a dtype; by default what the weights of the
                transformer are stored in. Also a dictionary of them by component, with `default`
                for the others. A VAE in float16 becomes float32, as its range is too small.
            dtype: The same, as diffusers calls it of late.
            device_map: One device, where all models are put; by default the CPU. With `memory`
                what they compute on, by default the accelerator. `{"": device}` is the same.
            memory: `auto`, `max-speed`, `12GB`, `8GB` or `6GB`, or another size: where the
                weights are kept while they are not at work, see `memory_presets`.
            quantization_config: A `PipelineQuantizationConfig`, or a dictionary of configs by
                component (of diffusers for the transformer, of transformers for text encoders),
                or a config for the transformer alone. GGUF files diffusers reads of its own models
                only.
            subfolder: Where the checkpoint lies in the folder or repository.
            use_safetensors: True takes weights in safetensors only, False pickled ones only; by
                default safetensors where there are any.
            revision: Branch, tag or commit on the hub.
            cache_dir: Where to keep what is fetched from the hub.
            token: For repositories that are not public; by default that of `hf auth login`.
            local_files_only: Take what the cache holds, and do not ask the hub.
            force_download: Fetch again what the cache holds.
            components: Arguments of the constructor, in place of what the checkpoint has; None
                leaves a component out.

        Raises:
            TypeError: There is no such argument, or it is one of diffusers' that would have no
                effect here.
            FileNotFoundError: No such folder, repository, variant or file.
            ConnectionError: The hub cannot be reached.
            ValueError: The variant is ambiguous, or a file is damaged or does not fit.
        """
        expected, optional = cls._get_signature_keys(cls)
        check_names(components, [*expected, *optional])
        asked_dtype = one_dtype(torch_dtype, dtype, expected)
        device = one_device(device_map)
        if memory is not None:
            check_preset(memory)
        folder, loaded = load_components(
            pretrained_model_name_or_path,
            variant,
            fast=fast,
            dtype=asked_dtype,
            given=components,
            quantization=quantization_config,
            subfolder=subfolder,
            use_safetensors=use_safetensors,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        pipeline = cls(**loaded)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path or folder.path))
        if memory is not None:
            pipeline.enable_memory_preset(memory, device)
            return pipeline
        return pipeline if device is None else pipeline.to(device)

    @takes(PipelineArguments)
    def __call__(self, arguments: PipelineArguments) -> PyramidFlowPipelineOutput | tuple[Any]:
        """Generate videos, or with `num_frames=1` images.

        Where an argument is None, the checkpoint's `generation_defaults` decide. A guidance of 1
        is none. The callback is called as `callback(pipeline, step, timestep, tensors)`, and ends
        the call by `pipeline._interrupt = True`: then what is complete is returned.

        Returns:
            The videos as `.frames`, or in a tuple.

        Raises:
            TypeError: An argument is of the wrong kind.
            FileNotFoundError: There is no such file.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        defaults, asked = self.defaults, arguments.guidance_scale
        record = arguments.translated(defaults, self._step_callback(arguments))
        self._guidance_scale = defaults.guidance_scale if asked is None else asked
        self._interrupt = False
        try:
            generator = self.video_generator
            stream = generator.start(record, as_they_come=False)
            self._num_timesteps = int(stream.total_steps)
            with lora_scale(generator.components.dit, arguments.attention_kwargs):
                frames = stream.join()
        finally:
            self._current_timestep = None
            self.maybe_free_model_hooks()
        if isinstance(frames, list) and not (frames and isinstance(frames[0], list)):
            frames = [frames]  # encoded prompts of a single video
        return PyramidFlowPipelineOutput(frames=frames) if arguments.return_dict else (frames,)

    def _step_callback(self, arguments: PipelineArguments) -> StepCallback:
        """What a `VideoGenerator` calls after each step, for a callback of diffusers' kind."""
        callback, names = arguments.callback_on_step_end, arguments.callback_tensors

        def on_step(
            generator: VideoGenerator, step: int, timestep: float, values: dict[str, Any]
        ) -> dict[str, Any]:
            self._current_timestep = timestep
            self._guidance_scale = values["guidance_scale"]
            changed: Mapping[str, Any] = {}
            if callback is not None:
                handed = {name: values.get(name) for name in names}  # None without guidance
                changed = callback(self, step, timestep, handed) or {}
            if self._interrupt:
                generator.stop()
            given = {name: value for name, value in changed.items() if value is not None}
            return given | {"guidance_scale": self._guidance_scale}

        return on_step

    def to(self, *args: Any, **kwargs: Any) -> PyramidFlowPipeline:
        """Move or cast the models, as of all of diffusers' pipelines.

        What would be cast to float16 though its range is too small, becomes float32: the VAE, and
        the layers that T5 names.

        Raises:
            RuntimeError: Weights are offloaded, one part at a time; the message says what to call.
        """
        self._check_weights_are_here()
        wide: list[nn.Module] = [] if self.vae is None else [self.vae]
        for encoder in (self.text_encoder, self.text_encoder_2, self.text_encoder_3):
            wide += [] if encoder is None else float32_layers(encoder)
        with float32_for_float16(wide):
            super().to(*args, **kwargs)
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write the components, as of all of diffusers' pipelines; RuntimeError as for `to`."""
        self._check_weights_are_here()
        super().save_pretrained(*args, **kwargs)

    def _check_weights_are_here(self) -> None:
        for name, part in self.components.items():
            if isinstance(part, nn.Module) and any(p.is_meta for p in part.parameters()):
                raise RuntimeError(
                    f"the weights of {name} are offloaded: call remove_all_hooks() first, or "
                    "enable_memory_preset('max-speed')"
                )

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | PathLike[str] | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA of the transformer, as of all of diffusers' pipelines.

        Args:
            pretrained_model_name_or_path_or_dict: A folder, a file, a repository on the hub, or
                the weights, by the names of peft, of diffusers before it, or of kohya.
            adapter_name: What to call it.
            hotswap: Put it in the place of the adapter of this name.
            kwargs: As of diffusers' loaders, for example `weight_name`.

        Raises:
            ImportError: There is no `peft`.
            ValueError: The weights are none of a LoRA for this transformer.
        """
        require_peft()
        if self._memory_preset is not None:  # diffusers would put hooks of its own in their place
            self.remove_all_hooks()
        try:
            weights, metadata = self.lora_state_dict(
                pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
            )
            self.load_lora_into_transformer(
                weights,
                self.transformer,
                adapter_name,
                metadata=metadata,
                hotswap=hotswap,
                _pipeline=self,
            )
        finally:
            if self._memory_preset is not None:
                self.enable_memory_preset(*self._memory_preset)

    @property
    def defaults(self) -> GenerationDefaults:
        """What is done where a caller does not say."""
        return self._settings.generation_defaults

    @property
    def _settings(self) -> Settings:
        own: Source = (self.config, "the pipeline's config")
        return Settings.of(own, *component_settings(self.vae, self.transformer))

    @property
    def _architecture(self) -> Architecture:
        if self.transformer is not None:
            return architecture_of(self.transformer)
        encoders = {name: getattr(self, name) for name in sorted(TEXT_ENCODERS)}
        present = {k: type(v).__name__ for k, v in encoders.items() if v is not None}
        return architecture_of_encoders(present)

    @property
    def text_encoder_with_mask(self) -> TextEncoderWithMask | None:
        """The text encoders as the transformer wants them, None where one is missing."""
        kind = self._architecture.text_encoder
        pairs = [(getattr(self, p.encoder), getattr(self, p.tokenizer)) for p in kind.parts()]
        if any(part is None for pair in pairs for part in pair):
            return None
        return kind.of(pairs)

    @property
    def video_generator(self) -> VideoGenerator:
        """What makes the videos, of these components, with its `generate`, `stream` and so on."""
        if self.transformer is None:
            raise ValueError("this pipeline has no transformer")
        settings, architecture = self._settings, self._architecture
        components = Components(
            self.transformer,
            self.scheduler,
            settings.latent_statistics or architecture.released_statistics,
            vae=self.vae,
            text_encoder=self.text_encoder_with_mask,
            defaults=settings.generation_defaults,
            frame_per_unit=settings.frame_per_unit,
        )
        if self._video_generator is None:
            self._video_generator = VideoGenerator(components)
        self._video_generator.components = components
        self._video_generator.set_progress_bar_config(
            **getattr(self, "_progress_bar_config", {"disable": None})
        )
        return self._video_generator

    @property
    def video_processor(self) -> PyramidVideoProcessor:
        """What turns images into pixels for the VAE, and decoded pixels into what a call returns.

        Sizes become multiples of what the pyramid takes, 64 pixels for three stages.
        """
        return PyramidVideoProcessor(vae_scale_factor=size_multiple(self.scheduler.config.stages))

    @property
    def guidance_scale(self) -> float:
        """Guidance of the step at work, or of the last one.

        A callback that sets `_guidance_scale` changes it for the rest of the call.
        """
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the step at work is guided, or the last one was."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Steps of the call at work, or of the last one, over the whole video."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> float | None:
        """The last timestep input of the transformer, None between calls."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether the call at work is to end; a callback sets `_interrupt`."""
        return self._interrupt

    fast_mode = Part[FastMode]()
    batched_guidance = Part["bool | None"]()
    enable_fast_mode = delegated(VideoGenerator.enable_fast_mode)
    disable_fast_mode = delegated(VideoGenerator.disable_fast_mode)

    def enable_memory_preset(
        self, name: str = "auto", device: str | torch.device | None = None
    ) -> None:
        """Keep weights where the preset `name` says while they are not at work.

        Args:
            name: `auto`, `max-speed`, `12GB`, `8GB` or `6GB`, or another size, see
                `memory_presets`.
            device: What to compute on; by default the accelerator, else the CPU.

        Raises:
            ValueError: There is no such preset.
        """
        target = torch.device(device or accelerator_device() or "cpu")
        self._memory_preset = apply_preset(self.video_generator, name, target), target

    def enable_vae_tiling(self) -> None:
        """Let the VAE work in tiles where pictures whole do not fit in the free memory."""
        self._the_vae().enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Have the VAE work on whole pictures (the default)."""
        self._the_vae().disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Let the VAE work on one video of a batch at a time."""
        self._the_vae().enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Have the VAE work on all videos of a batch at once (the default)."""
        self._the_vae().disable_slicing()

    def _the_vae(self) -> CausalVideoVAE:
        if self.vae is None:
            raise ValueError("this pipeline has no VAE")
        return self.vae

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        prompt_suffix: str | None = None,
        max_sequence_length: int = 128,
    ) -> dict[str, Tensor]:
        """Encode prompts once, for several calls or before the text encoders are dropped.

        Args:
            prompt: One prompt or a list of them.
            negative_prompt: One for all or one per prompt; by default that of the checkpoint.
            do_classifier_free_guidance: Encode the negative prompts too.
            prompt_suffix: What is appended to the prompts; by default that of the checkpoint.
            max_sequence_length: Tokens that T5 reads of a prompt.

        Returns:
            Arguments of a call: `prompt_embeds` `[b, L, d]`, `prompt_attention_mask` `[b, L]`,
            `pooled_prompt_embeds` `[b, p]`, and with guidance their `negative_` counterparts.

        Raises:
            TypeError: A prompt is not a string.
            ValueError: There is no prompt, the numbers do not fit, or a text encoder is missing.
        """
        encoder = self.text_encoder_with_mask
        if encoder is None:
            raise ValueError("a text encoder is missing")
        defaults = self.defaults
        prompts = Prompts.checked(
            prompt,
            defaults.negative_prompt if negative_prompt is None else negative_prompt,
            suffix=defaults.prompt_suffix if prompt_suffix is None else prompt_suffix,
            guided=do_classifier_free_guidance,
            allow_empty=True,
        )
        with moved_to(encoder, module_device(encoder)):
            text = prompts.encode(encoder, max_sequence_length)
        if self.transformer is None:
            return text.arguments()
        return text.to(module_device(self.transformer), self.transformer.dtype).arguments()


register(PyramidFlowPipeline, PyramidFluxTransformer, PyramidDiffusionMMDiT, CausalVideoVAE)
register(PyramidFlowMatchEulerDiscreteScheduler)
