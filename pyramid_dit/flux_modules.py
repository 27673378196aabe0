"""The reference's path of miniFLUX's networks."""

from .models.blocks import JointBlock as FluxTransformerBlock
from .models.blocks import SingleBlock as FluxSingleTransformerBlock
from .models.flux import PyramidFluxTransformer
from .models.text_encoder import FluxTextEncoderWithMask

__all__ = [
    "FluxSingleTransformerBlock",
    "FluxTextEncoderWithMask",
    "FluxTransformerBlock",
    "PyramidFluxTransformer",
]
