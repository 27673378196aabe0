"""The reference's path of SD3's networks."""

from .models.blocks import JointBlock as JointTransformerBlock
from .models.mmdit import PyramidDiffusionMMDiT
from .models.text_encoder import SD3TextEncoderWithMask

__all__ = ["JointTransformerBlock", "PyramidDiffusionMMDiT", "SD3TextEncoderWithMask"]
