"""Between pixels and the latents the transformer works on.

The VAE's latents are normalized, `(z - shift) * scale`, with statistics of their own for the
first frame, which the VAE encodes as an image, and for all later ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from video_vae.context_parallel import decode_over_ranks
from video_vae.memory import decode_memory, encode_memory
from video_vae.posterior import DiagonalGaussian
from video_vae.temporal_context import Stream
from video_vae.tiling import map_tiles

from ..devices.memory import free_memory
from ..distributed.parallel import SERIAL, Parallel, Serial
from ..flow.latents import LatentStatistics

if TYPE_CHECKING:
    from PIL.Image import Image

    from video_vae import CausalVideoVAE


@dataclass(frozen=True)
class DecodeSizes:
    """How much of a video is decoded at a time."""

    window: int
    """Latent frames."""
    tile: int
    """Extent of a tile in pixels, where tiles are needed."""

    @classmethod
    def of(cls, *, save_memory: bool) -> DecodeSizes:
        """One latent frame and tiles of 256 pixels to save memory, else two and 512."""
        return cls(window=1, tile=256) if save_memory else cls(window=2, tile=512)


class FrameDecoder:
    """Decodes a video while it is made: latents go in as they come, frames come out.

    Args:
        vae: The VAE.
        statistics: The normalization of its latents.
        device: What the VAE computes on.
        window: Most latent frames to decode at a time.
        tile: Extent in pixels of the tiles that larger pictures are decoded in; None decodes
            them whole, whether tiling is enabled or not.
        finish: What becomes of the pixels, `to_bytes` or `to_floats`.
    """

    def __init__(
        self,
        vae: CausalVideoVAE,
        statistics: LatentStatistics,
        *,
        device: torch.device,
        window: int,
        tile: int | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.vae = vae
        self.finish = finish or to_bytes
        self.statistics = statistics
        self.device = device
        self.window = window
        self.tile = tile
        self._streams: list[Stream] = []  # of each tile, of each video where they take turns
        self._started = False
        _use_fast_layout(vae)

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Decode the next normalized latents `[b, c, t, h, w]` to frames `[b, t', 8h, 8w, 3]`.

        The first latent frame of the video makes one frame, every other eight.
        """
        later = self.statistics.later_frames
        normalization = later if self._started else self.statistics
        self._started = True
        z = normalization.denormalize(latents).to(self.device, self.vae.dtype)
        with _own_precision(self.vae, self.device):
            frames = [self.finish(self._decode(chunk)) for chunk in z.split(self.window, dim=2)]
        return torch.cat(frames, dim=1)

    def _decode(self, chunk: Tensor) -> Tensor:
        """Pixels of the next latents."""
        order = itertools.count()

        def decode(tile: Tensor) -> Tensor:
            index = next(order)
            if index == len(self._streams):
                self._streams.append(Stream())
            pixels = self.vae.decode_chunk(tile, self._streams[index])
            self._streams[index].advance()
            return pixels

        def whole(clips: Tensor) -> Tensor:
            if self.tile is None or not _exceeds(self.vae, chunk.shape[-2:], self.tile):
                return decode(clips)
            extent = self.vae.tile_extent(self.tile)
            return map_tiles(clips, decode, tile=extent // self.vae.spatial_factor, out_tile=extent)

        return self.vae.map_slices(chunk, whole)


def can_stream(
    vae: CausalVideoVAE, latents: Sequence[int], *, device: torch.device, sizes: DecodeSizes
) -> bool:
    """Whether a video may be decoded by a `FrameDecoder` while the transformer is at work.

    That takes no tiles. Between units the decoder keeps no more than the frames that it carries
    over, so the two take turns with the rest of the memory; a third of what is free is left for
    the transformer's growing history.

    Args:
        vae: The VAE.
        latents: Shape `(b, c, t, h, w)` of the latents of the video.
        device: What the VAE computes on.
        sizes: How much is to be decoded at a time.
    """
    if vae.force_tiling and _exceeds(vae, latents[-2:], sizes.tile):
        return False
    return _fits(_decode_bytes(vae, latents, sizes.window), device, share=2 / 3)


@torch.no_grad()
def decode_latents(
    vae: CausalVideoVAE,
    statistics: LatentStatistics,
    latents: Tensor,
    *,
    device: torch.device,
    sizes: DecodeSizes,
    parallel: Serial = SERIAL,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Decode normalized latents `[b, c, t, h, w]` to frames `[b, 8(t-1)+1, 8h, 8w, 3]`.

    The pixels become what `finish` makes of them, by default bytes.

    Enabled tiling is a permission: tiles are blended over their borders and cost almost twice the
    work, so pictures are decoded whole where the memory suffices. Forced tiling is obeyed.
    Processes that share the work each decode a part of the time, and all get all of it.
    """
    finish = finish or to_bytes
    _use_fast_layout(vae)
    need = _decode_bytes(vae, latents.shape, sizes.window)
    tiled = parallel.any(_tiles_needed(vae, latents.shape[-2:], sizes.tile, need, device))
    if isinstance(parallel, Parallel):
        z = statistics.denormalize(latents).to(device, vae.dtype)
        with _own_precision(vae, device):
            video = decode_over_ranks(
                vae,
                z,
                parallel.group,
                window_size=sizes.window,
                tile_sample_min_size=sizes.tile if tiled else None,
                finish=lambda pixels: finish(pixels).movedim(-1, 1),
            )
        return video.movedim(1, -1)
    tile = sizes.tile if tiled else None
    decoder = FrameDecoder(
        vae, statistics, device=device, window=sizes.window, tile=tile, finish=finish
    )
    return decoder.push(latents)


@torch.no_grad()
def encode_clip(
    vae: CausalVideoVAE, pixels: Tensor, *, device: torch.device, tile: int = 256, window: int = 16
) -> DiagonalGaussian:
    """Posterior of clips `[b, 3, 8n + 1, h, w]` in [-1, 1], an image being a clip of one frame.

    `window` frames are encoded at a time, in tiles as for `decode_latents`.
    """
    _use_fast_layout(vae)
    b, _, frames, height, width = pixels.shape
    need = encode_memory(
        vae.config,
        frames=min(frames, window + 1),
        height=height,
        width=width,
        batch=_at_a_time(vae, b),
        dtype=vae.dtype,
    )
    latent_size = [side // vae.spatial_factor for side in (height, width)]
    tiled = _tiles_needed(vae, latent_size, tile, need, device)
    pixels = pixels.to(device, vae.dtype)
    with _own_precision(vae, device):
        return vae.encode(
            pixels,
            temporal_chunk=True,
            window_size=window,
            tile_sample_min_size=tile if tiled else None,
        ).latent_dist


def to_bytes(video: Tensor) -> Tensor:
    """Pixels `[b, 3, t, h, w]` in [-1, 1] to bytes `[b, t, h, w, 3]`, truncated, not rounded.

    Raises:
        FloatingPointError: They are not finite.
    """
    return _in_pieces(video, lambda levels: levels.to(torch.uint8))


def to_floats(video: Tensor) -> Tensor:
    """Pixels `[b, 3, t, h, w]` in [-1, 1] to float32 in [0, 1] `[b, t, h, w, 3]`.

    Truncated, `(255 x).to(uint8)`, they are the bytes of `to_bytes`: where rounding would carry
    a value over a whole number of 255ths, it is the last one on its own side.

    Raises:
        FloatingPointError: They are not finite.
    """
    lowest, highest = (limits.to(video.device) for limits in _float_limits())

    def convert(levels: Tensor) -> Tensor:
        byte = levels.int()
        low, high = (
            limits.index_select(0, byte.flatten()).view_as(byte) for limits in (lowest, highest)
        )
        return torch.clamp(levels / 255, low, high)

    return _in_pieces(video, convert)


def _in_pieces(video: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """`convert` of the levels, float32 in [0, 255], `[b, t, h, w, 3]`."""
    if not video.is_meta and not video.isfinite().all():
        raise FloatingPointError("the frames that the VAE decoded are not finite")
    # a few frames at a time: a long clip in float32 takes gigabytes
    pieces = [
        convert(frames.float().mul(127.5).add_(127.5).clamp_(0, 255))
        for frames in video.split(8, dim=2)
    ]
    return torch.cat(pieces, dim=2).permute(0, 2, 3, 4, 1)


@functools.cache
def _float_limits() -> tuple[Tensor, Tensor]:
    """Of each byte, the least and the greatest float32 that 255 times is truncated to it."""
    byte = np.arange(256)
    lowest = (byte / 255).astype(np.float32)
    below = lowest.astype(np.float64) * 255 < byte
    lowest[below] = np.nextafter(lowest[below], np.float32(2))
    highest = np.minimum((byte + 1) / 255, 1).astype(np.float32)
    while (above := (highest * np.float32(255)).astype(np.int64) > byte).any():
        highest[above] = np.nextafter(highest[above], np.float32(0))
    return torch.from_numpy(lowest), torch.from_numpy(highest)


def pixels_for(output_type: str) -> Callable[[Tensor], Tensor]:
    """What decoded pixels become: bytes for "pil", floats for "np" and "pt"."""
    return to_bytes if output_type == "pil" else to_floats


def to_output(video: Tensor, output_type: str) -> list[list[Image]] | np.ndarray | Tensor:
    """Frames `[b, t, h, w, 3]` of `pixels_for` as "pil" (one list of images a sample), "np", "pt".

    Arrays are `[b, t, h, w, 3]` and tensors `[b, t, 3, h, w]`, float32 in [0, 1].
    """
    if output_type == "pt":
        return video.movedim(-1, 2)
    frames = video.cpu().numpy()
    if output_type == "np":
        return frames

    from PIL import Image

    return [[Image.fromarray(frame) for frame in sample] for sample in frames]


def _decode_bytes(vae: CausalVideoVAE, latents: Sequence[int], window: int) -> int:
    """Memory to decode a window of latents of shape `(b, c, t, h, w)` whole."""
    batch, _, frames, height, width = latents
    return decode_memory(
        vae.config,
        latents=min(window, frames),
        height=height,
        width=width,
        batch=_at_a_time(vae, batch),
        dtype=vae.dtype,
    )


def _at_a_time(vae: CausalVideoVAE, batch: int) -> int:
    return 1 if vae.use_slicing else batch


def _tiles_needed(
    vae: CausalVideoVAE, latent_size: Sequence[int], tile: int, need: int, device: torch.device
) -> bool:
    if not vae.use_tiling or not _exceeds(vae, latent_size, tile):
        return False
    return vae.force_tiling or not _fits(need, device, share=0.8)


def _exceeds(vae: CausalVideoVAE, latent_size: Sequence[int], tile: int) -> bool:
    return max(latent_size) * vae.spatial_factor > tile


def _fits(need: int, device: torch.device, *, share: float) -> bool:
    """Whether `need` bytes are within a share of what is free."""
    return need <= share * free_memory(device)


def _own_precision(vae: CausalVideoVAE, device: torch.device) -> AbstractContextManager[object]:
    """Keep a caller's autocast from widening the activations of weights in half precision.

    Weights in float32 follow it, but not into float16: the activations are beyond its range.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    narrows = torch.get_autocast_dtype(kind) == torch.float16
    if vae.dtype == torch.float32 and not narrows:
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _use_fast_layout(vae: CausalVideoVAE) -> None:
    """Have weights on a GPU lie channels last, as activations do: no copies at convolutions."""
    if next(vae.parameters()).is_cuda:
        vae.to(memory_format=torch.channels_last_3d)
