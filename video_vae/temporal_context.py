"""Where a causal convolution finds the frames before the ones it is handed.

A context is made by whoever runs the network and is passed down the forward. Nothing is kept on
modules, so any number of videos can be encoded or decoded in turn by one network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WholeClip:
    """The clip is complete: there is nothing before it but zeros.

    Args:
        starts_video: The first frame stands alone, so temporal up-samplers drop the first of the
            two frames they make of it.
    """

    carries = False

    def __init__(self, *, starts_video: bool = True) -> None:
        self.starts_video = starts_video

    def extend(self, conv: nn.Module, frames: Tensor, *, kernel: int, stride: int) -> Tensor:
        """Put `kernel - 1` zero frames in front of `frames` [b, c, t, h, w]."""
        return F.pad(frames, (0, 0, 0, 0, kernel - 1, 0))


class Stream:
    """A clip that arrives in chunks: each convolution carries its own last frames over.

    A convolution of stride 1 carries `kernel - 1` frames, one of stride s everything from the
    place where its next window starts. Call `advance()` after each chunk.

    Args:
        starts_video: As in `WholeClip`, for the first chunk.
    """

    carries = True

    def __init__(self, *, starts_video: bool = True) -> None:
        self.starts_video = starts_video
        self._carried: dict[nn.Module, Tensor] = {}

    def extend(self, conv: nn.Module, frames: Tensor, *, kernel: int, stride: int) -> Tensor:
        """Put the frames carried for `conv` (zeros at the start) in front of `frames`."""
        carried = self._carried.get(conv)
        if carried is None:
            extended = F.pad(frames, (0, 0, 0, 0, kernel - 1, 0))
        else:
            extended = torch.cat([carried, frames], dim=2)
        windows = (extended.shape[2] - kernel) // stride + 1
        # A copy, lest two carried frames keep a whole chunk alive.
        self._carried[conv] = extended[:, :, windows * stride :].clone()
        return extended

    def advance(self) -> None:
        """The chunk is done: what comes next continues the video."""
        self.starts_video = False


TemporalContext = WholeClip | Stream
