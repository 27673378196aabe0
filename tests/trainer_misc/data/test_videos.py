"""Clips from real files: which frames, how they are cut, mixed with images, and what fails."""

from __future__ import annotations

import json
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from pyramid_dit.media.video_files import export_to_video
from trainer_misc.data.batches import MixedBatches, loader
from trainer_misc.data.images import StillBatches
from trainer_misc.data.skipped import SampleError
from trainer_misc.data.videos import TextVideoBatches, VideoBatches, read_clip


def write_video(path: Path, frames: int, fps: float, width: int = 96, height: int = 64) -> Path:
    """Frame i has the gray 2 i in the middle; the quarters left and right are black and white."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip += 2 * np.arange(frames, dtype=np.uint8)[:, None, None, None]
    clip[:, :, : width // 6] = 0
    clip[:, :, -width // 6 :] = 255
    export_to_video(clip, path, fps)
    return path


def numbers(clip: np.ndarray | torch.Tensor) -> list[int]:
    """Which frames of `write_video` these are, bytes `[t, h, w, 3]` or pixels `[3, t, h, w]`."""
    if isinstance(clip, torch.Tensor):
        clip = ((clip.movedim(0, -1) + 1) * 127.5).numpy()
    middle = clip.shape[2] // 2
    return [round(float(frame[:, middle - 2 : middle + 2].mean()) / 2) for frame in clip]


def near(found: list[int], expected: list[int]) -> bool:
    """Equal but for what coding does to gray."""
    return len(found) == len(expected) and all(
        abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "24.mp4", 100, 24)
    write_video(folder / "60.mp4", 100, 60)
    write_video(folder / "8.mp4", 20, 8)
    write_video(folder / "short.mp4", 5, 24)
    write_video(folder / "tall.mp4", 30, 24, width=48, height=96)
    Image.new("RGB", (50, 40), "red").save(folder / "red.png")
    return folder


def write_lines(folder: Path, name: str, records: list[Any]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# ---- clips ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place", "expected"),
    [
        ("24.mp4", 0, range(0, 9)),
        ("24.mp4", 0.5, range(46, 55)),
        ("24.mp4", 0.9999, range(91, 100)),
        ("60.mp4", 0, range(0, 18, 2)),
        ("60.mp4", 0.9999, range(82, 100, 2)),
        ("8.mp4", 0.9999, range(11, 20)),
        ("short.mp4", 0.9999, range(5)),
    ],
)
def test_windows(folder: Path, name: str, place: float, expected: range) -> None:
    clip = read_clip(folder / name, 9, size=(64, 64), place=place)
    assert clip.shape == (len(expected), 64, 64, 3) and clip.dtype == np.uint8
    assert near(numbers(clip), list(expected))


def test_the_rate_of_movies(tmp_path: Path) -> None:
    clip = read_clip(write_video(tmp_path / "a.mp4", 30, 48000 / 1001), 5, size=(32, 32))
    assert near(numbers(clip), [0, 2, 4, 6, 8])


def test_listed_frames(folder: Path) -> None:
    def read(indices: list[int], **options: Any) -> list[int]:
        return numbers(read_clip(folder / "24.mp4", 3, size=(32, 32), indices=indices, **options))

    assert near(read([40, 50, 60, 70]), [40, 50, 60])
    assert near(read([40, 50, 60, 70], place=0.9), [50, 60, 70])
    assert near(read([9, 5, 5]), [9, 5, 5])
    with pytest.raises(SampleError, match="has no frame 100"):
        read([0, 100])


def test_a_window_in_the_sound_after_the_picture(tmp_path: Path, folder: Path) -> None:
    sound = ["-f", "lavfi", "-i", "sine=duration=8", "-c:v", "copy", tmp_path / "long.mp4"]
    command = [get_ffmpeg_exe(), "-v", "error", "-i", folder / "24.mp4", *sound]
    subprocess.run([str(word) for word in command], check=True)
    size = (32, 32)
    ends = read_clip(tmp_path / "long.mp4", 9, size=size, place=0.52)
    assert near(numbers(ends), list(range(91, 100)))
    assert near(numbers(read_clip(tmp_path / "long.mp4", 9, size=size, place=0.99)), [*range(9)])


# ---- for the VAE ------------------------------------------------------------------------------


def test_squares_of_one_length(folder: Path) -> None:
    names = ["24.mp4", "60.mp4", "short.mp4", "tall.mp4"]
    path = write_lines(folder, "vae.jsonl", [{"video": name} for name in names])
    batches = VideoBatches(path, batch_size=4, max_frames=9, resolution=32)
    batch = batches[0]
    assert batch["video"].shape == (4, 3, 9, 32, 32) and batch["identifier"] == "video"
    assert batch["video"].dtype == torch.float32 and batch["video"].abs().max() <= 1
    repeated = [*range(5), *range(4)]
    assert sum(near(numbers(clip), repeated) for clip in batch["video"]) == 1
    firsts = {tuple(numbers(clip)) for n in range(4) for clip in batches[n]["video"]}
    assert len(firsts) > 8, "windows differ from epoch to epoch"


def test_frames_in_an_annotation(folder: Path) -> None:
    path = write_lines(folder, "listed.jsonl", [{"video": "24.mp4", "frames": [3, 13, 23]}])
    clip = VideoBatches(path, batch_size=1, max_frames=3, resolution=32)[0]["video"][0]
    assert near(numbers(clip), [3, 13, 23])


@pytest.mark.parametrize("frames", [[], [-1], [1.5], "3", [True]])
def test_frames_that_are_no_indices(folder: Path, frames: Any) -> None:
    path = write_lines(folder, "wrong.jsonl", [{"video": "24.mp4", "frames": frames}])
    with pytest.raises(ValueError, match="line 1: 'frames' must be a list of indices"):
        VideoBatches(path, batch_size=1, max_frames=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_among_videos(folder: Path, workers: int) -> None:
    options: dict[str, Any] = {"batch_size": 2, "max_frames": 3, "resolution": 32}
    videos = VideoBatches(
        write_lines(folder, "v.jsonl", [{"video": "short.mp4"}, {"video": "24.mp4"}]), **options
    )
    images = StillBatches(
        write_lines(folder, "i.jsonl", [{"image": "red.png"}]), batch_size=2, resolution=32
    )
    mixed = MixedBatches(videos, images, 0.25, seed=3)
    found = list(islice(loader(mixed, workers=workers), 8))
    kinds = [batch["identifier"] for batch in found]
    assert kinds.count("image") == 2 and kinds[:4] == kinds[4:]
    image = found[kinds.index("image")]["video"]
    assert image.shape == (2, 3, 32, 32)
    assert image[0, :, 0, 0].tolist() == [1, -1, -1]
    rest = list(islice(loader(mixed, start=3, workers=workers), 5))
    for one, other in zip(found[3:], rest, strict=True):
        assert torch.equal(one["video"], other["video"])
    taken = [batch["video"] for batch in found if batch["identifier"] == "video"]
    for number, video in enumerate(taken):
        assert torch.equal(video, videos[number]["video"]), "none is left out"


@pytest.mark.parametrize(("share", "expected"), [(0, 0), (1, 1000), (0.1, 100), (1 / 3, 333)])
def test_the_share_of_images(share: float, expected: int) -> None:
    class Numbers:
        def __init__(self, kind: str) -> None:
            self.kind = kind

        def __getitem__(self, number: int) -> dict[str, Any]:
            return {"kind": self.kind, "number": number}

    mixed = MixedBatches(Numbers("video"), Numbers("image"), share)
    found = [mixed[number] for number in range(1000)]
    for kind in ("video", "image"):
        of_kind = [batch["number"] for batch in found if batch["kind"] == kind]
        assert of_kind == list(range(len(of_kind)))
    assert abs(sum(batch["kind"] == "image" for batch in found) - expected) <= 1


# ---- with texts -------------------------------------------------------------------------------


def test_videos_with_texts(folder: Path) -> None:
    names = ["24.mp4", "60.mp4", "tall.mp4"]
    path = write_lines(folder, "t.jsonl", [{"video": name, "text": name} for name in names])
    batches = TextVideoBatches(path, [(48, 32)], 17, batch_size=3, seed=1)
    batch = batches[0]
    assert batch["video"].shape == (3, 3, 17, 32, 48) and batch["identifier"] == "video"
    assert set(batch["text"]) == set(names)
    for text, clip in zip(batch["text"], batch["video"], strict=True):
        step = 2 if text == "60.mp4" else 1
        assert near(numbers(clip), [step * index for index in range(17)])


def test_buckets_of_sizes_and_lengths(folder: Path, tmp_path: Path) -> None:
    names = ["24.mp4", "60.mp4", "8.mp4", "tall.mp4", "turned.mp4", "short.mp4"]
    turn = ["-display_rotation", "90", "-i", str(folder / "24.mp4"), "-c", "copy"]
    command = [get_ffmpeg_exe(), "-v", "error", *turn, str(tmp_path / "turned.mp4")]
    subprocess.run(command, check=True)
    records = [
        {"video": str((tmp_path if name == "turned.mp4" else folder) / name), "text": name}
        for name in names
    ]
    records.append({"video": records[0]["video"], "text": "listed", "frames": [*range(70, 88)]})
    path = write_lines(tmp_path, "a.jsonl", records)
    batches = TextVideoBatches(path, "96x64,64x96", 33, batch_size=2, seed=1, max_skipped=0.2)
    found: dict[str, tuple[int, ...]] = {}
    for number in range(batches.batches_per_epoch):
        batch = batches[number]
        for text, clip in zip(batch["text"], batch["video"], strict=True):
            found[text] = tuple(clip.shape[1:])
            if text == "listed":
                assert near(numbers(clip), [*range(70, 87)])
    assert found == {
        "24.mp4": (33, 64, 96),
        "60.mp4": (33, 64, 96),
        "8.mp4": (17, 64, 96),
        "tall.mp4": (25, 96, 64),
        "turned.mp4": (33, 96, 64),
        "listed": (17, 64, 96),
    }
    assert batches.skipped[0].kinds == {"too short": 1}


def test_a_batch_is_as_long_as_what_there_is(tmp_path: Path) -> None:
    """The sound is longer than the picture, and the header tells the longer of both."""
    for name, sound in (("a", 1.1), ("b", 1), ("c", 0.1)):
        short = write_video(tmp_path / "short.mp4", 33 if name == "b" else 20, 24)
        tone = ["-f", "lavfi", "-i", f"sine=duration={sound}", "-c:v", "copy"]
        command = [get_ffmpeg_exe(), "-v", "error", "-i", short, *tone, tmp_path / f"{name}.mp4"]
        subprocess.run([str(word) for word in command], check=True)
    records = [{"video": f"{name}.mp4", "text": name} for name in "ac"]
    batches = TextVideoBatches(
        write_lines(tmp_path, "1.jsonl", records), [(32, 32)], 41, batch_size=1
    )
    assert {batches[number]["video"].shape[2] for number in range(2)} == {17}
    records = [{"video": f"{name}.mp4", "text": name} for name in "ab"]
    batches = TextVideoBatches(
        write_lines(tmp_path, "2.jsonl", records), [(32, 32)], 25, batch_size=2
    )
    assert list(batches.buckets) == [(25, (32, 32))]
    clips = batches[0]["video"]
    assert clips.shape[2] == 17
    assert all(near(numbers(clip), [*range(17)]) for clip in clips)


def test_failures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    good = str(folder / "24.mp4")
    names = ["none.mp4", "text.mp4", str(folder / "short.mp4"), good, good]
    path = write_lines(tmp_path, "a.jsonl", [{"video": name, "text": name} for name in names])
    batches = TextVideoBatches(path, [(32, 32)], 9, batch_size=2, max_skipped=0.7)
    for number in range(batches.batches_per_epoch):
        assert batches[number]["text"] == [good, good]
    assert batches.skipped[0].kinds == {"missing file": 1, "unreadable file": 1, "too short": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_frames": 0}, "max_frames must be at least 1"),
        ({"resolution": 10**6}, "resolution must be at most 8,192"),
        ({"fps": 0}, "fps must be above 0"),
    ],
)
def test_wrong_arguments(folder: Path, options: dict[str, Any], message: str) -> None:
    path = write_lines(folder, "one.jsonl", [{"video": "24.mp4"}])
    with pytest.raises(ValueError, match=message):
        VideoBatches(path, **{"batch_size": 1, "max_frames": 3, **options})
