"""Private names of other libraries that this one reads: a release may move them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import nn


def hooked_module(register: Callable[[nn.Module], object]) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    register(module)
    return module


def with_accelerate() -> Any:
    from accelerate.hooks import CpuOffload, add_hook_to_module

    hook = CpuOffload(torch.device("cpu"))
    return hooked_module(lambda module: add_hook_to_module(module, hook))._hf_hook.execution_device


def with_diffusers() -> Any:
    from diffusers.hooks import apply_group_offloading

    module = hooked_module(
        lambda module: apply_group_offloading(
            module,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
        )
    )
    registry = module[0]._diffusers_hook  # type: ignore[index]
    return registry.get_hook("group_offloading").config.onload_device


def caches_of_diffusers() -> Any:
    from diffusers.hooks.first_block_cache import FBCSharedBlockState
    from diffusers.hooks.hooks import CacheContext, StateManager

    manager = StateManager(FBCSharedBlockState)
    manager.set_context(CacheContext("stage 0"))
    manager.get_state()
    return manager._state_cache["stage 0"]


def blocks_of_diffusers() -> Any:
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    return TransformerBlockRegistry.register, TransformerBlockMetadata(
        return_hidden_states_index=1, return_encoder_hidden_states_index=0
    )


def casting_patterns() -> Any:
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    return [str(pattern) for pattern in DEFAULT_SKIP_MODULES_PATTERN]


def quantization_of_diffusers() -> Any:
    from diffusers.quantizers import PipelineQuantizationConfig

    return PipelineQuantizationConfig._resolve_quant_config


def arguments_of_diffusers() -> Any:
    from pyramid_dit import PyramidFlowPipeline

    expected, optional = PyramidFlowPipeline._get_signature_keys(PyramidFlowPipeline)
    return "transformer" in expected and "frame_per_unit" in optional


def wide_layers_of_t5() -> Any:
    from transformers import T5EncoderModel

    return "wo" in T5EncoderModel._keep_in_fp32_modules


def checkpointing_of_diffusers() -> Any:
    from diffusers.models.modeling_utils import ModelMixin

    class Model(ModelMixin):
        _supports_gradient_checkpointing = True

        def __init__(self) -> None:
            super().__init__()
            self.gradient_checkpointing = False

    model = Model()
    model.enable_gradient_checkpointing()
    return model.gradient_checkpointing and model._gradient_checkpointing_func


def progress_bars_of_diffusers() -> Any:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline._progress_bar_config == {"disable": True}


def parameters_of_torch() -> Any:
    return nn.Linear(2, 2)._parameters


def group_timeouts_of_torch() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._set_pg_timeout


def convolution_of_torch() -> Any:
    convolution = nn.Conv3d(1, 1, 1)
    result = convolution._conv_forward(torch.ones(1, 1, 1, 1, 1), convolution.weight, None)
    return result.shape == (1, 1, 1, 1, 1)


def compiled_module_of_torch() -> Any:
    module = nn.Linear(2, 2)
    return torch.compile(module)._orig_mod is module


def queue_of_gradio() -> Any:
    gradio = pytest.importorskip("gradio")
    with gradio.Blocks() as blocks:
        pass
    blocks.queue()
    return blocks._queue.sleep_when_free and blocks._queue.progress_update_sleep_when_free


READ: list[tuple[str, str, str, Callable[[], Any]]] = [
    ("_set_pg_timeout", "torch", "distributed/parallel.py", group_timeouts_of_torch),
    ("_hf_hook.execution_device", "accelerate", "devices/offload.py", with_accelerate),
    ("_diffusers_hook, config.onload_device", "diffusers", "devices/offload.py", with_diffusers),
    ("StateManager._state_cache", "diffusers", "models/transformer.py", caches_of_diffusers),
    ("hooks._helpers", "diffusers", "models/transformer.py", blocks_of_diffusers),
    (
        "DEFAULT_SKIP_MODULES_PATTERN",
        "diffusers",
        "generation/memory_presets.py",
        casting_patterns,
    ),
    ("_orig_mod", "torch", "pipelines/official.py", compiled_module_of_torch),
    ("_gradient_checkpointing_func", "diffusers", "models", checkpointing_of_diffusers),
    (
        "_resolve_quant_config",
        "diffusers",
        "pipelines/pipeline_loading.py",
        quantization_of_diffusers,
    ),
    (
        "_get_signature_keys",
        "diffusers",
        "pipelines/diffusers_pipeline.py",
        arguments_of_diffusers,
    ),
    (
        "_progress_bar_config",
        "diffusers",
        "pipelines/diffusers_pipeline.py",
        progress_bars_of_diffusers,
    ),
    ("Module._parameters", "torch", "devices/offload.py", parameters_of_torch),
    ("Conv3d._conv_forward", "torch", "video_vae/causal_conv.py", convolution_of_torch),
    ("_keep_in_fp32_modules", "transformers", "devices/precision.py", wide_layers_of_t5),
    ("Blocks._queue.sleep_when_free", "gradio", "page/serve.py", queue_of_gradio),
]


@pytest.mark.parametrize(
    ("name", "library", "where", "read"), READ, ids=[entry[0] for entry in READ]
)
def test_it_is_where_it_was(name: str, library: str, where: str, read: Callable[[], Any]) -> None:
    try:
        found = read()
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        pytest.fail(f"{library} {version(library)} moved {name}, which {where} reads: {error!r}")
    assert found, f"{library} {version(library)}: {name}, which {where} reads, is empty"
