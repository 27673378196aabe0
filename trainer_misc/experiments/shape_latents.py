"""Latents of moving shapes in a folder of a few files, for the experiments.

Pictures and clips are drawn, encoded with the VAE of the default checkpoint, and kept as whole
numbers of `STEP`, an error of 2% of the latents' deviation. They are written in parts, which
several processes can make at once and whose names say kind, size and shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.checkpoints.hub import TOY_FOLDER
from pyramid_dit.files import replacing
from video_vae import CausalVideoVAE

from ..toy.moving_shapes import SPLITS, MovingShapes, attributes_of
from .arms import CLIPS, PICTURES, Arm

STEP = 1 / 16
PICTURE_SEED, CLIP_SEED = 30_000, 40_000
CLIP_FRAMES = 49
A_PART = {CLIPS: 125, PICTURES: 2_000}


@dataclass(frozen=True)
class Encoded:
    """Normalized latents and what they show.

    Attributes:
        latents: `[n, c, t, h, w]`, float32.
        combinations: Numbers of the combinations of moving shapes, `[n]`.
    """

    latents: Tensor
    combinations: Tensor

    def to(self, device: torch.device) -> Encoded:
        """On `device`."""
        return Encoded(self.latents.to(device), self.combinations.to(device))


def as_bytes(latents: Tensor) -> np.ndarray:
    """Normalized latents as whole numbers of `STEP`, int8."""
    whole = (latents.float() / STEP).round().clamp(-127, 127)
    return whole.to(torch.int8).cpu().numpy()


def from_bytes(whole: np.ndarray) -> Tensor:
    """What `as_bytes` was given, up to rounding."""
    return torch.from_numpy(whole).float() * STEP


@dataclass(frozen=True)
class Drawing:
    """What an arm is trained on.

    Attributes:
        kind: "pictures", or "clips" of 49 frames.
        pixels: Height and width.
        shapes: Those that there are.
    """

    kind: str
    pixels: int
    shapes: tuple[str, ...]

    @classmethod
    def of(cls, arm: Arm, device: str) -> Drawing:
        """That of the arm on a device."""
        return cls(arm.data, arm.pixels(device), arm.shapes(device))

    @property
    def name(self) -> str:
        """What the names of its files begin with, as in `pictures-64-circle-square`."""
        return "-".join((self.kind, str(self.pixels), *self.shapes))

    @property
    def combinations(self) -> list[int]:
        """Numbers of the combinations in it: all of its shapes that are not held out."""
        return [n for n in SPLITS["train"] if attributes_of(n).shape in self.shapes]


@dataclass(frozen=True)
class Part:
    """A file of latents: samples `start` to `stop` of a drawing."""

    drawing: Drawing
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.drawing.name}-{self.start:06d}-{self.stop:06d}.npz"


def parts(drawings: Iterable[Drawing], counts: Mapping[str, int]) -> list[Part]:
    """All parts of the drawings, clips first, which take longest.

    Args:
        drawings: Each counts once.
        counts: Samples of a drawing, by its kind.
    """
    return [
        Part(drawing, start, min(start + A_PART[drawing.kind], counts[drawing.kind]))
        for drawing in sorted(set(drawings), key=lambda drawing: drawing.name)
        for start in range(0, counts[drawing.kind], A_PART[drawing.kind])
    ]


def write_part(folder: Path, part: Part, device: torch.device) -> None:
    """Draw, encode and write a part, unless it is there."""
    path = folder / part.name
    if path.is_file():
        return
    vae = CausalVideoVAE.from_pretrained(TOY_FOLDER / "causal_video_vae")
    vae = vae.requires_grad_(False).eval().to(device)
    latents, numbers = zip(*_encoded(vae, part), strict=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, latents=as_bytes(torch.cat(latents)), combinations=np.concatenate(numbers)
        )


@torch.no_grad()
def _encoded(vae: CausalVideoVAE, part: Part) -> Iterator[tuple[Tensor, np.ndarray]]:
    statistics = CheckpointFolder.open(TOY_FOLDER, None).statistics
    seed, frames, batch = (
        (PICTURE_SEED, 1, 32) if part.drawing.kind == PICTURES else (CLIP_SEED, CLIP_FRAMES, 5)
    )
    data = MovingShapes(seed, frames, part.drawing.pixels, combinations=part.drawing.combinations)
    for start in range(part.start, part.stop, batch):
        items = [data[index] for index in range(start, min(start + batch, part.stop))]
        video = torch.stack([item["video"] for item in items]).to(vae.device)
        latents = vae.encode(video, temporal_chunk=frames > 17).latent_dist.mode()
        yield statistics.normalize(latents), np.array([item["combination"] for item in items])


def read_latents(folder: Path, drawing: Drawing) -> Encoded:
    """All parts of a drawing in a folder.

    Raises:
        FileNotFoundError: There are none.
        ValueError: A file is damaged.
    """
    paths = sorted(folder.glob(f"{drawing.name}-[0-9]*.npz"))
    if not paths:
        raise FileNotFoundError(f"no latents {drawing.name} in {folder}")
    latents, numbers = [], []
    for path in paths:
        try:
            with np.load(path) as arrays:
                latents.append(from_bytes(arrays["latents"]))
                numbers.append(torch.from_numpy(arrays["combinations"].astype(np.int64)))
        except (KeyError, ValueError, BadZipFile) as error:
            raise ValueError(f"{path} is not a file of latents: {error}") from error
    return Encoded(torch.cat(latents), torch.cat(numbers))
