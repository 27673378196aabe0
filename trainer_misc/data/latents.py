"""Batches of latents that were encoded beforehand, with their texts or what encodes them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyramid_dit.checks import FLAG, LATENT_FRAMES, Whole

from .annotations import TEXTS, texts_by_unit
from .batches import BucketedBatches
from .folders import Record
from .skipped import SampleError
from .tensor_files import read_tensor, read_tensors, tensor_shape

STORED = ("prompt_embed", "prompt_attention_mask", "pooled_prompt_embed")
"""Names in a file of text features."""

Bucket: TypeAlias = tuple[int, int, int]
"""Length, height and width of latents."""
Features: TypeAlias = dict[str, Tensor]


@dataclass(eq=False, repr=False)
class LatentBatches(BucketedBatches):
    """Batches of `{"video", "text", "latent", "text_fea"}`, one size of latents each.

    Files are of safetensors or PyTorch's, read without running code in them. A batch has

    - `video`: latents `[b, c, t, h, w]`, float32, as they were stored;
    - `text`: the features `prompt_embeds` `[b, l, d]`, `prompt_attention_mask` `[b, l]` and
      `pooled_prompt_embeds` `[b, p]`, where shorter texts than the longest are filled up with
      zeros that the mask leaves out; or the texts;
    - `identifier`: "video".

    A line may have a storyboard `texts`, the text from each unit on, in place of `text`. A batch
    with such a clip in it is cut after a unit that is drawn by its number and the seed, for all its
    clips alike; it has the text in force there, and

    - `last_unit`: True, for that unit is what the text describes.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        max_frames: Latent frames; of longer latents the beginning is taken.
        frame_per_unit: Latent frames of every unit but unit 0.
        text_features: Whether `text_fea` is read, or else `text` given out.
        channels: Of the latents.
    """

    _: KW_ONLY
    max_frames: int
    text_features: bool = True
    channels: int = 16
    frame_per_unit: int = 1

    def __post_init__(self) -> None:
        LATENT_FRAMES("max_frames", self.max_frames)
        FLAG("text_features", self.text_features)
        Whole(1)("channels", self.channels)
        Whole(1)("frame_per_unit", self.frame_per_unit)
        super().__post_init__()

    def _columns(self) -> list[str]:
        return ["latent", "text_fea" if self.text_features else TEXTS]

    def _bucket(self, record: Record) -> Bucket:
        with self._annotations.file(record, "latent") as path:
            shape = tensor_shape(path, "latent")
            bucket = self._cut(path, shape)
        if not self.text_features:
            units, begins = self._units_of(shape[-3]), [*texts_by_unit(record)]
            if begins[-1] >= units:
                raise SampleError(
                    "wrong storyboard",
                    f"{path} has {units} units from 0 on, its {TEXTS!r} begin at {begins}",
                )
        return bucket

    def _cut(self, path: Path, shape: tuple[int, ...]) -> Bucket:
        single = shape[1:] if len(shape) == 5 and shape[0] == 1 else shape
        if len(single) != 4 or single[0] != self.channels or 0 in single:
            raise SampleError(
                "wrong shape",
                f"{path} must have shape [1, {self.channels}, t, h, w], got {list(shape)}",
            )
        return min(single[1], self.max_frames), single[2], single[3]

    def _sample(
        self, record: Record, bucket: Bucket, source: np.random.Generator
    ) -> tuple[Tensor, Features | dict[int, str]]:
        with self._annotations.file(record, "latent") as path:
            stored = read_tensor(path, "latent", self.max_frames)
            if self._cut(path, tuple(stored.shape)) != bucket:
                raise SampleError("wrong shape", f"{path} has changed: it had {list(bucket)}")
            latents = stored.float().reshape(self.channels, *bucket)
            if not latents.isfinite().all():
                raise SampleError("not finite", f"{path} has NaN or infinity in it")
        if not self.text_features:
            return latents, texts_by_unit(record)
        with self._annotations.file(record, "text_fea") as path:
            return latents, read_text_features(path)

    def _batch(
        self, samples: list[tuple[Tensor, Any]], bucket: Bucket, number: int
    ) -> dict[str, Any]:
        video = torch.stack([latents for latents, _ in samples])
        texts: Any = [text for _, text in samples]
        batch = {"video": video, "identifier": "video"}
        if self.text_features:
            return batch | {"text": stack_text_features(texts)}
        units = self._units_of(bucket[0])
        if units == 1 or all(len(text) == 1 for text in texts):
            return batch | {"text": [text[0] for text in texts]}
        last = int(np.random.default_rng([self.seed, number, 1]).integers(units))
        return batch | {
            "video": video[:, :, : 1 + last * self.frame_per_unit].clone(),
            "text": [text[max(unit for unit in text if unit <= last)] for text in texts],
            "last_unit": True,
        }

    def _units_of(self, length: int) -> int:
        return 1 + (length - 1) // self.frame_per_unit


def read_text_features(path: Path) -> Features:
    """The features of one text, `STORED`: float32 `[l, d]`, the mask as it is `[l]`, `[p]`.

    Raises:
        SampleError: The file is not there, is damaged, lacks one, or has others.
    """
    stored = read_tensors(path, STORED)
    found = {}
    for name, axes in zip(STORED, (2, 1, 1), strict=True):
        value = stored[name]
        single = value[0] if value.ndim == axes + 1 and len(value) == 1 else value
        if single.ndim != axes or single.numel() == 0:
            raise SampleError("wrong shape", f"{name} of {path} has shape {list(value.shape)}")
        if not single.isfinite().all():
            raise SampleError("not finite", f"{name} of {path} has NaN or infinity in it")
        found[name] = single if name == "prompt_attention_mask" else single.float()
    if len(found["prompt_attention_mask"]) != len(found["prompt_embed"]):
        raise SampleError(
            "wrong shape",
            f"{path} has a mask of {len(found['prompt_attention_mask'])} for a text of "
            f"{len(found['prompt_embed'])}",
        )
    return found


def stack_text_features(texts: list[Features]) -> Features:
    """Features of several texts as `prompt_embeds`, `prompt_attention_mask`, ... of a batch.

    Raises:
        ValueError: They come from different text encoders.
    """
    for name in ("prompt_embed", "pooled_prompt_embed"):
        widths = {features[name].shape[-1] for features in texts}
        if len(widths) > 1:
            raise ValueError(
                f"{name} of different text encoders are mixed: widths {sorted(widths)}"
            )
    longest = max(len(features["prompt_embed"]) for features in texts)
    embeds, masks = [], []
    for features in texts:
        missing = longest - len(features["prompt_embed"])
        embeds.append(pad(features["prompt_embed"], (0, 0, 0, missing)))
        masks.append(pad(features["prompt_attention_mask"], (0, missing)))
    return {
        "prompt_embeds": torch.stack(embeds),
        "prompt_attention_mask": torch.stack(masks),
        "pooled_prompt_embeds": torch.stack([text["pooled_prompt_embed"] for text in texts]),
    }
