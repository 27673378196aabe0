"""Images from real files: sizes, crops, orientation, and what fails."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer_misc.data.batches import loader
from trainer_misc.data.images import ImageBatches, StillBatches, covering
from trainer_misc.data.sizes import AREAS, aspect_sizes, closest_size, sizes_of

SMALL = [(32, 32), (24, 40), (40, 24)]
PICTURES = [(64, 64), (64, 60), (50, 90), (30, 50), (30, 80), (90, 50), (200, 60)]


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).astype(np.uint8))


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    lines = []
    for index, size in enumerate(PICTURES):
        gradient(*size).save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "text": str(index)}))
    (folder / "anno.jsonl").write_text("\n".join(lines))
    return folder / "anno.jsonl"


def batches_of(path: Path, **options: Any) -> ImageBatches:
    return ImageBatches(path, **{"batch_size": 2, "resolution": SMALL, **options})


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1000, 1000, (1024, 1024)),
        (1200, 1000, (1024, 1024)),
        (640, 480, (1280, 768)),
        (480, 640, (768, 1280)),
        (1920, 1080, (1280, 768)),
        (1080, 1920, (768, 1280)),
    ],
)
def test_the_size_that_cuts_off_least(width: int, height: int, expected: tuple[int, int]) -> None:
    assert closest_size(width, height, sizes_of("768p")) == expected


@pytest.mark.parametrize("name", AREAS)
def test_resolutions_of_any_shape(name: str) -> None:
    sizes = aspect_sizes(AREAS[name])
    assert {(height, width) for width, height in sizes} == set(sizes), "standing as well as lying"
    assert sizes_of(name) == sizes
    assert set(sizes_of(name.removesuffix("-any"))) <= set(sizes)
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert 0.75 * AREAS[name] < width * height <= AREAS[name]
    for ratio in np.geomspace(0.4, 2.4, 50):
        width, height = closest_size(1000 * ratio, 1000, sizes)
        assert abs(np.log(width / height / ratio)) < 0.22, "little is cut off of any"


def test_batches_of_one_size(annotations: Path) -> None:
    batches = batches_of(annotations)
    assert {size: len(found) for size, found in batches.buckets.items()} == {
        (24, 40): 3,
        (32, 32): 2,
        (40, 24): 2,
    }
    seen = set()
    for number in range(batches.batches_per_epoch):
        batch = batches[number]
        assert batch["identifier"] == "image" and batch["video"].dtype == torch.float32
        height, width = batch["video"].shape[2:]
        assert batch["video"].shape == (2, 3, height, width)
        assert batch["video"].amin() >= -1 and batch["video"].amax() <= 1
        for text in batch["text"]:
            assert closest_size(*PICTURES[int(text)], SMALL) == (width, height)
        seen |= set(batch["text"])
    assert seen == {str(index) for index in range(len(PICTURES))}


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_drawn_by_sample_and_epoch(annotations: Path, workers: int) -> None:
    batches = batches_of(annotations)
    count = batches.batches_per_epoch
    crops: dict[str, list[torch.Tensor]] = {}
    for number, batch in enumerate(islice(loader(batches, workers=workers), 2 * count)):
        assert torch.equal(batch["video"], batches_of(annotations)[number]["video"])
        for text, pixels in zip(batch["text"], batch["video"], strict=True):
            crops.setdefault(text, []).append(pixels)
    assert not torch.equal(*crops["6"][:2]), "of the very wide one, another part"


def test_the_part_covers_the_size() -> None:
    image = gradient(200, 60)
    left, right = (np.asarray(covering(image, (40, 24), (x, 0.5)))[..., 0] for x in (0, 1))
    assert left.min() == 1 and left.max() < 130 < right.max() == 254
    whole = np.asarray(covering(image, (50, 15), (0.3, 0.9)))[..., 0]
    assert whole.min() < 3 and whole.max() > 252


def test_pictures_are_upright_and_white_behind_transparency(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient(50, 30).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (30, 50)).save(tmp_path / "clear.png")
    lines = [json.dumps({"image": f, "text": f}) for f in ("turned.jpg", "clear.png")]
    (tmp_path / "anno.jsonl").write_text("\n".join(lines))
    batches = batches_of(tmp_path / "anno.jsonl")
    assert list(batches.buckets) == [(24, 40)]
    batch = batches[0]
    by_name = dict(zip(batch["text"], batch["video"], strict=True))
    assert (by_name["clear.png"] == 1).all()
    turned = by_name["turned.jpg"]
    assert turned[0, 0].mean() < -0.8 < 0.8 < turned[0, -1].mean(), "red grows downwards now"


def test_failures(annotations: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    data = (annotations.parent / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    names = ["none.png", "text.png", "cut.png", *[str(annotations.parent / "0.png")] * 3]
    lines = [json.dumps({"image": name, "text": name}) for name in names]
    (tmp_path / "anno.jsonl").write_text("\n".join(lines))
    batches = batches_of(tmp_path / "anno.jsonl", max_skipped=0.5)
    assert batches.skipped[0].kinds == {"missing file": 1, "unreadable file": 1}
    for number in range(batches.batches_per_epoch):
        assert set(batches[number]["text"]) == {names[-1]}
    assert batches.skipped[0].kinds == {"missing file": 1, "unreadable file": 2}


def test_wrong_arguments(annotations: Path) -> None:
    with pytest.raises(
        ValueError, match="resolution must be 384p, 768p, .* or sizes such .* got '480p'"
    ):
        batches_of(annotations, resolution="480p")
    with pytest.raises(ValueError, match="a side of resolution must be at least 1"):
        batches_of(annotations, resolution=[(0, 4)])
    with pytest.raises(ValueError, match="resolution has no sizes"):
        batches_of(annotations, resolution=[])


def test_no_other_program_is_run_for_a_picture(tmp_path: Path) -> None:
    """Pillow has Ghostscript run PostScript."""
    gradient(20, 20).save(tmp_path / "a.eps")
    (tmp_path / "anno.jsonl").write_text(json.dumps({"image": "a.eps"}))
    batches = StillBatches(tmp_path / "anno.jsonl", batch_size=1, resolution=16, max_skipped=1)
    with pytest.raises(ValueError, match="none of the samples"):
        batches[0]
    assert batches.skipped[0].kinds == {"unreadable file": 1}
