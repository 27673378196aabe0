"""Latents of moving shapes: their files, and that what they show can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer_misc.experiments.arms import CLIPS, PICTURES, Arm
from trainer_misc.experiments.sampling import Judge
from trainer_misc.experiments.shape_latents import (
    Drawing,
    Part,
    parts,
    read_latents,
    write_part,
)
from trainer_misc.toy.moving_shapes import SHAPES, SPLITS, attributes_of, caption_of

SMALL = ("circle", "square")
CPU = torch.device("cpu")


def test_drawings_are_those_of_the_device() -> None:
    arm = Arm.named("pictures-3-stages")
    assert Drawing.of(arm, "cpu").name == "pictures-64-circle-square"
    assert Drawing.of(arm, "cuda").name == "pictures-128-circle-square-triangle-cross"
    assert Drawing.of(arm, "cuda").combinations == list(SPLITS["train"])
    few = [attributes_of(number) for number in Drawing.of(arm, "cpu").combinations]
    assert {what.shape for what in few} == set(SMALL)
    assert len(few) == 227 and not any(what.is_held_out for what in few)


def test_parts_are_of_each_drawing_once() -> None:
    pictures, clips = (Drawing(kind, 64, SMALL) for kind in (PICTURES, CLIPS))
    found = parts([pictures, clips, pictures], {PICTURES: 2_001, CLIPS: 125})
    assert found == [Part(clips, 0, 125), Part(pictures, 0, 2_000), Part(pictures, 2_000, 2_001)]
    assert found[0].name == "clips-64-circle-square-000000-000125.npz"


def test_sizes_and_shapes_do_not_mix_in_a_folder(tmp_path: Path) -> None:
    drawings = [
        Drawing(PICTURES, pixels, shapes)
        for pixels, shapes in ((64, SMALL), (128, SMALL), (64, SHAPES))
    ]
    for number, drawing in enumerate(drawings):
        write_part(tmp_path, Part(drawing, 0, 2 + number), CPU)
    shapes = [read_latents(tmp_path, drawing).latents.shape for drawing in drawings]
    assert shapes == [(2, 8, 1, 8, 8), (3, 8, 1, 16, 16), (4, 8, 1, 8, 8)]
    with pytest.raises(FileNotFoundError, match="no latents clips-64-circle"):
        read_latents(tmp_path, Drawing(CLIPS, 64, SMALL))


@pytest.mark.parametrize(("kind", "count"), [(PICTURES, 200), (CLIPS, 20)])
def test_drawings_of_cpus_can_be_read(tmp_path: Path, kind: str, count: int) -> None:
    arm = Arm.named({PICTURES: "pictures-3-stages", CLIPS: "clips-autoregressive"}[kind])
    drawing = Drawing.of(arm, "cpu")
    write_part(tmp_path, Part(drawing, 0, count), CPU)
    data = read_latents(tmp_path, drawing)
    prompts = [caption_of(int(number)) for number in data.combinations]
    assert Judge(CPU).rates(data.latents, prompts, arm.frames)["all"] >= 0.95
