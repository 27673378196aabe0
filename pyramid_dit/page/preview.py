"""Frames for a browser to show while a video is made, and what shows them there."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

LONGEST_SIDE = 384  # pixels, of a frame that is shown
QUALITY = 82  # of a JPEG

SCRIPT = (Path(__file__).parent / "preview.js").read_text(encoding="utf-8")
TEMPLATE = (Path(__file__).parent / "preview.html").read_text(encoding="utf-8")
LIVE_SCRIPT = (Path(__file__).parent / "live.js").read_text(encoding="utf-8")
LIVE_TEMPLATE = (Path(__file__).parent / "live.html").read_text(encoding="utf-8")


@dataclass(frozen=True)
class FrameStrip:
    """A few frames, one below the other in a JPEG."""

    count: int
    source: str
    """A data URI."""

    @classmethod
    def of(cls, frames: Sequence[PILImage]) -> FrameStrip:
        """Shrink `frames`, which have one size, and join them."""
        small = [reduced(frame) for frame in frames]
        width, height = small[0].size
        strip = Image.new("RGB", (width, height * len(frames)))
        for index, frame in enumerate(small):
            strip.paste(frame, (0, index * height))
        data = io.BytesIO()
        strip.save(data, "JPEG", quality=QUALITY)
        encoded = base64.b64encode(data.getvalue()).decode()
        return cls(len(frames), f"data:image/jpeg;base64,{encoded}")


def reduced(frame: PILImage) -> PILImage:
    """The frame, scaled down if it is larger than what is shown."""
    scale = min(1.0, LONGEST_SIDE / max(frame.size))
    if scale == 1.0:
        return frame
    width, height = (max(1, round(side * scale)) for side in frame.size)
    return frame.resize((width, height), Image.Resampling.BILINEAR)
