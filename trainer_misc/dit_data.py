"""The data of a training of the transformer, by its options."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from pyramid_dit.flow.sizes import frames_of

from .data import Batches, ImageBatches, LatentBatches, MixedBatches, TextVideoBatches


class Places:
    """Which process this is, as accelerate has it, and what that means for draws and data.

    Attributes:
        process_index: Rank.
        num_processes: Number of processes.
        place, places: Which of how many; processes that share the tokens of a batch have one.
        sharing: How many share one.
        data_rank, data_world: What the data depend on: with `--sync_video_input` the places of a
            group see the same clips.
    """

    def __init__(self, rank: int, world: int, *, sharing: int, same_data: int) -> None:
        self.process_index, self.num_processes = rank, world
        self.place, self.places, self.sharing = rank // sharing, math.ceil(world / sharing), sharing
        group = min(same_data, self.places)
        self.data_rank, self.data_world = self.place // group, math.ceil(self.places / group)


def image_batches(options: Namespace) -> tuple[int, tuple[int, ...]]:
    """Samples of a batch of pictures, and the columns of each stage that they are dealt to."""
    size = options.image_batch_size or options.batch_size
    return size, options.image_sample_ratios or options.sample_ratios


def open_batches(
    options: Namespace, places: Places, channels: int, *, validation: bool = False
) -> Batches:
    """The data that the options name; `channels` are those of latents.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line cannot be understood.
    """
    file = options.validation_file if validation else options.anno_file
    if file is None:
        raise ValueError(f"--{'validation' if validation else 'anno'}_file is needed")
    common: dict[str, Any] = {
        "seed": options.seed,
        "rank": places.data_rank,
        "world": places.data_world,
        "max_skipped": options.max_skipped,
        "skipped_to": options.output_dir,
    }

    def opened(source: Path, pictures: bool) -> Batches:
        size = image_batches(options)[0] if pictures else options.batch_size
        given = {"batch_size": size, **common}
        if not options.load_vae:
            longest = 1 if pictures else options.max_frames
            features = not options.load_text_encoder
            given |= {"channels": channels, "text_features": features}
            given |= {"frame_per_unit": options.frame_per_unit}
            return LatentBatches(source, max_frames=longest, **given)
        if pictures:
            return ImageBatches(source, resolution=options.resolution, **given)
        return TextVideoBatches(source, options.resolution, frames_of(options.max_frames), **given)

    def with_replay(source: Path, replay: Path | None, pictures: bool) -> Batches:
        new = opened(source, pictures)
        if replay is None or validation:
            return new
        share = options.replay_share
        return MixedBatches(new, opened(replay, pictures), share, seed=options.seed)

    batches = with_replay(file, options.replay_anno, options.task == "t2i")
    if validation or options.image_anno is None:
        return batches
    images = with_replay(options.image_anno, options.replay_image_anno, True)
    return MixedBatches(batches, images, options.image_mix_ratio, seed=options.seed)
