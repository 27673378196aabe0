"""Pyramidal flow matching for video (arXiv 2410.05954): transformers, scheduler, generation.

The public names are imported when they are first asked for, so that `import pyramid_dit` costs
nothing and the command line can answer `--help` without loading PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
    from .flux_modules import FluxSingleTransformerBlock, FluxTransformerBlock
    from .mmdit_modules import JointTransformerBlock
    from .models.flux import PyramidFluxTransformer
    from .models.mmdit import PyramidDiffusionMMDiT
    from .models.text_encoder import FluxTextEncoderWithMask, SD3TextEncoderWithMask
    from .pipelines.diffusers_pipeline import PyramidFlowPipeline
    from .pipelines.official import PyramidDiTForVideoGeneration

__version__ = "0.1.0"

_EXPORTS = {
    "FluxSingleTransformerBlock": "flux_modules",
    "FluxTextEncoderWithMask": "models.text_encoder",
    "FluxTransformerBlock": "flux_modules",
    "JointTransformerBlock": "mmdit_modules",
    "PyramidDiTForVideoGeneration": "pipelines.official",
    "PyramidDiffusionMMDiT": "models.mmdit",
    "PyramidFlowMatchEulerDiscreteScheduler": "flow.scheduler",
    "PyramidFlowPipeline": "pipelines.diffusers_pipeline",
    "PyramidFluxTransformer": "models.flux",
    "SD3TextEncoderWithMask": "models.text_encoder",
}
__all__ = [
    "FluxSingleTransformerBlock",
    "FluxTextEncoderWithMask",
    "FluxTransformerBlock",
    "JointTransformerBlock",
    "PyramidDiTForVideoGeneration",
    "PyramidDiffusionMMDiT",
    "PyramidFlowMatchEulerDiscreteScheduler",
    "PyramidFlowPipeline",
    "PyramidFluxTransformer",
    "SD3TextEncoderWithMask",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public class when it is first asked for (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
