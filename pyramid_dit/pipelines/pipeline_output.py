"""What a `PyramidFlowPipeline` returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from PIL.Image import Image
from torch import Tensor


@dataclass
class PyramidFlowPipelineOutput(BaseOutput):
    """What a `PyramidFlowPipeline` returns.

    Attributes:
        frames: Videos: a list of images for each ("pil"), an array `[b, t, h, w, 3]` ("np") or a
            tensor `[b, t, 3, h, w]` ("pt"), float32 in [0, 1]; or normalized latents
            `[b, c, t, h/8, w/8]` ("latent").
    """

    frames: list[list[Image]] | np.ndarray | Tensor
