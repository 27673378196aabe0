"""The `video_processor` of a `PyramidFlowPipeline`."""

from __future__ import annotations

import numpy as np
from diffusers.video_processor import VideoProcessor
from PIL.Image import Image
from torch import Tensor

from ..checks import OneOf
from ..generation.latent_codec import pixels_for, to_output


class PyramidVideoProcessor(VideoProcessor):
    """Between images and what the VAE takes and gives, as of diffusers' video pipelines.

    `preprocess_video` is diffusers' own.
    """

    def postprocess_video(
        self, video: Tensor, output_type: str = "np"
    ) -> list[list[Image]] | np.ndarray | Tensor:
        """Make of decoded pixels what a call of the pipeline returns, bit for bit.

        Args:
            video: `[b, 3, t, h, w]` in [-1, 1]; what is beyond is cut off.
            output_type: `pil`, `np` or `pt`.

        Returns:
            A list of images for each video, an array `[b, t, h, w, 3]`, or a tensor
            `[b, t, 3, h, w]`; numbers are float32 in [0, 1]. Images are truncated to bytes as in
            the official code, where diffusers rounds.

        Raises:
            ValueError: There is no such type.
            FloatingPointError: The pixels are not finite.
        """
        OneOf(("pil", "np", "pt"))("output_type", output_type)
        return to_output(pixels_for(output_type)(video), output_type)
