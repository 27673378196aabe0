"""What a `PyramidFlowPipeline` consists of, and what can be done with its parts."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import CogVideoXLoraLoaderMixin
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from video_vae import CausalVideoVAE

from ..checkpoints.folder import GenerationDefaults, read_defaults, read_statistics
from ..devices.offload import accelerator_device, module_device, moved_to
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..generation.memory_presets import apply_preset
from ..generation.video_generator import VideoGenerator
from ..models.flux import PyramidFluxTransformer
from ..models.lora import require_peft
from ..models.mmdit import PyramidDiffusionMMDiT
from ..models.text_encoder import TEXT_ENCODERS, TextEncoderWithMask
from ..sampling.fast_mode import EXACT, FastMode
from ..sampling.prompts import TENSOR_NAMES, Prompts
from .official import TRANSFORMERS


# The LoRA loader of CogVideoX is the plain one: all adapters are the transformer's.
class PyramidFlowComponents(DiffusionPipeline, CogVideoXLoraLoaderMixin):
    """The components of a `PyramidFlowPipeline`, which documents the arguments."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->transformer->vae"
    _callback_tensor_inputs = ["latents"]
    _optional_components = [
        "vae",
        *("text_encoder", "tokenizer"),
        *("text_encoder_2", "tokenizer_2"),
        *("text_encoder_3", "tokenizer_3"),
    ]

    transformer: PyramidFluxTransformer | PyramidDiffusionMMDiT
    scheduler: PyramidFlowMatchEulerDiscreteScheduler
    vae: CausalVideoVAE | None

    def __init__(
        self,
        transformer: PyramidFluxTransformer | PyramidDiffusionMMDiT,
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
        frame_per_unit: int = 1,
    ) -> None:
        super().__init__()
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
        self.fast_mode = EXACT
        self.batched_guidance: bool | None = None
        self._memory_preset: tuple[str, torch.device] | None = None
        self._interrupt = False
        self._guidance_scale = self.defaults.guidance_scale
        self._num_timesteps = 0
        self._current_timestep: float | None = None

    def to(self, *args: Any, **kwargs: Any) -> PyramidFlowComponents:
        """Move or cast the models, as of all of diffusers' pipelines.

        What would be cast to float16 though its range is too small, becomes float32: the VAE, and
        the layers that T5 names.
        """
        tensors = [
            t for module in self._wide_modules() for t in (*module.parameters(), *module.buffers())
        ]
        before = [tensor.data for tensor in tensors]
        super().to(*args, **kwargs)
        for tensor, data in zip(tensors, before, strict=True):
            if tensor.dtype == torch.float16:
                tensor.data = data.to(tensor.device, torch.float32)
        return self

    def _wide_modules(self) -> list[nn.Module]:
        """What float16 does not do for."""
        wide: list[nn.Module] = [] if self.vae is None else [self.vae]
        for encoder in (self.text_encoder, self.text_encoder_2, self.text_encoder_3):
            if encoder is not None:
                names = encoder._keep_in_fp32_modules or ()
                parts = encoder.named_modules()
                wide += [part for name, part in parts if name.rpartition(".")[2] in names]
        return wide

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
                the weights, whose names start with `transformer.`.
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
            super().load_lora_weights(
                pretrained_model_name_or_path_or_dict, adapter_name, hotswap, **kwargs
            )
        finally:
            if self._memory_preset is not None:
                self.enable_memory_preset(*self._memory_preset)

    @classmethod
    def load_lora_into_transformer(
        cls, state_dict: dict[str, Tensor], transformer: Any, **kwargs: Any
    ) -> None:
        """Add the adapter of `state_dict`; weights of another component are a ValueError."""
        foreign = [key for key in state_dict if not key.startswith("transformer.")]
        if foreign or not state_dict:
            raise ValueError(
                "the names of a LoRA's weights must start with 'transformer.', "
                f"got {', '.join(sorted(foreign)[:3]) or 'no weights at all'}"
            )
        super().load_lora_into_transformer(state_dict, transformer, **kwargs)

    # ---- what there is --------------------------------------------------------------------

    @property
    def defaults(self) -> GenerationDefaults:
        """What is done where a caller does not say."""
        return read_defaults(self.config.generation_defaults or {})

    @property
    def text_encoder_with_mask(self) -> TextEncoderWithMask | None:
        """The text encoders as the transformer wants them, None where one is missing."""
        kind = TEXT_ENCODERS[self._model_name]
        pairs = [(getattr(self, p.encoder), getattr(self, p.tokenizer)) for p in kind.parts()]
        if any(part is None for pair in pairs for part in pair):
            return None
        return kind.of(pairs)

    @property
    def video_generator(self) -> VideoGenerator:
        """A `VideoGenerator` of these components, with its `generate`, `stream` and so on."""
        index = {"latent_statistics": self.config.latent_statistics}
        generator = VideoGenerator(
            self.transformer,
            self.scheduler,
            read_statistics(index, self._model_name, "the config"),
            vae=self.vae,
            text_encoder=self.text_encoder_with_mask,
            defaults=self.defaults,
            frame_per_unit=self.config.frame_per_unit,
        )
        generator.fast_mode = self.fast_mode
        generator.batched_guidance = self.batched_guidance
        if hasattr(self, "_progress_bar_config"):
            generator.set_progress_bar_config(**self._progress_bar_config)
        return generator

    @property
    def _model_name(self) -> str:
        return next(
            name for name, kind in TRANSFORMERS.items() if isinstance(self.transformer, kind)
        )

    @property
    def guidance_scale(self) -> float:
        """Guidance of the first unit in the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call was guided."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Euler steps that were made so far in the call at work, or in the last one."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> float | None:
        """What the transformer was told last, None between calls."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether the call at work is to end; a callback sets `_interrupt`."""
        return self._interrupt

    def enable_fast_mode(self, **options: Any) -> None:
        """Trade some quality for speed, as the arguments of `FastMode` say.

        Raises:
            TypeError: There is no such option.
            ValueError: A value is outside its range.
        """
        self.fast_mode = FastMode(**options)

    def disable_fast_mode(self) -> None:
        """Compute everything exactly (the default)."""
        self.fast_mode = EXACT

    def enable_memory_preset(
        self, name: str = "auto", device: str | torch.device | None = None
    ) -> None:
        """Keep weights where the preset `name` says while they are not at work.

        Args:
            name: `auto`, `max-speed`, `12GB`, `8GB` or `6GB`, see `memory_presets`.
            device: What to compute on; by default the accelerator, else the CPU.

        Raises:
            ValueError: There is no such preset.
        """
        target = torch.device(device or accelerator_device() or "cpu")
        engine = self.video_generator
        self._memory_preset = apply_preset(engine, name, target), target
        self.batched_guidance = engine.batched_guidance

    def enable_vae_tiling(self) -> None:
        """Let the VAE work in tiles where pictures whole do not fit in the free memory."""
        self._the_vae().enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Have the VAE work on whole pictures (the default)."""
        self._the_vae().disable_tiling()

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
    ) -> dict[str, Tensor]:
        """Encode prompts once, for several calls or before the text encoders are dropped.

        Args:
            prompt: One prompt or a list of them.
            negative_prompt: One for all or one a prompt; by default that of the checkpoint.
            do_classifier_free_guidance: Encode the negative prompts too.
            prompt_suffix: What is appended to the prompts; by default that of the checkpoint.

        Returns:
            Arguments of a call: `prompt_embeds` `[b, L, d]`, `prompt_attention_mask` `[b, L]`,
            `pooled_prompt_embeds` `[b, p]`, and with guidance their `negative_` twins.

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
            encoded=(None, None, None),
            encoded_negative=(None, None, None),
            suffix=defaults.prompt_suffix if prompt_suffix is None else prompt_suffix,
            guided=do_classifier_free_guidance,
            allow_empty=True,
        )
        with moved_to(encoder, module_device(encoder)):
            text = prompts.encode(encoder)
        text = text.to(module_device(self.transformer), self.transformer.dtype)
        encoded: dict[str, Tensor] = {}
        for prefix, condition in (("", text.prompt), ("negative_", text.negative)):
            if condition is not None:
                tensors = (condition.embeds, condition.mask, condition.pooled)
                names = [f"{prefix}{name}" for name in TENSOR_NAMES]
                encoded |= zip(names, tensors, strict=True)
        return encoded
