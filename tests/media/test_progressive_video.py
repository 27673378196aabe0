"""Video files that grow, play while they do, and are kept whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyramid_dit.media.embedded_settings import write_comment
from pyramid_dit.media.progressive_video import CollectedFrames, ProgressiveVideo, open_video
from pyramid_dit.media.video_files import (
    export_to_video,
    read_video,
    save_frames,
    video_frames,
    video_size,
)

PATIENCE = 300  # seconds in which ffmpeg comes to write what it was given


def frames(count: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    shades = np.linspace(20, 230, count).astype(np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (count, *size, 3)).copy()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def length(path: Path) -> int:
    """Number of frames in a file or folder."""
    if path.is_dir():
        return len(list(path.iterdir()))
    return (
        getattr(Image.open(path), "n_frames", 0) if path.suffix == ".gif" else len(read_video(path))
    )


def playable(path: Path, count: int) -> np.ndarray:
    """The frames in a file that grows, once there are `count`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            there = read_video(path)
        except (FileNotFoundError, ValueError):  # for a moment there is but a header
            there = np.empty((0,))
        if len(there) >= count:
            return there
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come to have {count} frames")


def test_it_plays_while_it_grows(tmp_path: Path) -> None:
    clip = frames(20)
    video = ProgressiveVideo(tmp_path / "new" / "clip.mp4", fps=24)
    for start, stop in ((0, 1), (1, 9), (9, 17), (17, 20)):
        video.write(clip[start:stop])
        assert video.frames == stop and str(video.partial) in video.preview
        if stop == 1:
            continue
        there = playable(video.partial, stop - 1)
        assert np.abs(there.astype(int) - clip[: len(there)]).max() <= 4
    assert not video.path.exists()
    video.close()
    assert [path.name for path in video.path.parent.iterdir()] == ["clip.mp4"]
    whole = read_video(video.path)
    assert whole.shape == clip.shape and np.abs(whole.astype(int) - clip).max() <= 4
    content = video.path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat") and b"moof" not in content


def test_every_beginning_of_the_file_plays(tmp_path: Path) -> None:
    video = ProgressiveVideo(tmp_path / "clip.mp4")
    video.write(np.random.default_rng(0).integers(0, 256, (9, 48, 64, 3), np.uint8))
    playable(video.partial, 8)
    content = video.partial.read_bytes()
    video.close()
    cut = tmp_path / "cut.mp4"
    lengths = []
    for share in (0.5, 0.8, 1.0):
        cut.write_bytes(content[: int(share * len(content))])
        lengths.append(len(read_video(cut)))
    assert 0 < lengths[0] <= lengths[1] <= lengths[2] == 8


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_made_gets_the_name_if_that_is_free(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    with pytest.raises(error), open_video(tmp_path / name) as video:
        video.write(frames(9))
        raise error
    assert video.kept == tmp_path / name and left_in(tmp_path) == [name]
    assert length(tmp_path / name) == 9


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_a_part_replaces_no_whole_video(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / name
    save_frames(frames(3), target)
    with pytest.raises(KeyboardInterrupt), open_video(target) as video:
        video.write(frames(9))
        raise KeyboardInterrupt
    assert video.kept == video.partial and left_in(tmp_path) == [name, video.partial.name]
    assert length(target) == 3 and length(video.partial) == 9
    assert str(video.partial) in caplog.text
    with open_video(target) as video:
        video.write(frames(5))
    assert video.kept == target and length(target) == 5


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_a_file_that_overwrites_none_is_numbered(tmp_path: Path, name: str) -> None:
    both = [open_video(tmp_path / name, overwrite=False) for _ in range(2)]
    for video, count in zip(both, (3, 5), strict=True):
        video.write(frames(count))
    for video in both:
        video.close()
    stem, _, ending = name.partition(".")
    second = f"{stem}-2.{ending}" if ending else f"{stem}-2"
    assert [video.kept for video in both] == [tmp_path / name, tmp_path / second]
    assert left_in(tmp_path) == sorted([name, second])
    assert [length(tmp_path / name), length(tmp_path / second)] == [3, 5]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_temporary_names_are_not_the_users(tmp_path: Path, name: str) -> None:
    stem, _, ending = name.partition(".")
    own = tmp_path / f"{stem}.partial.{ending or 'mp4'}"
    own.write_bytes(b"the user's")
    videos = [open_video(tmp_path / name) for _ in range(20)]
    assert len({video.partial for video in videos}) == 20
    with open_video(tmp_path / name) as video:
        video.write(frames(2))
        assert len(os.fsencode(video.partial.name)) < 70
    assert own.read_bytes() == b"the user's" and left_in(tmp_path) == sorted([name, own.name])


@pytest.mark.parametrize("ending", [".mp4", ".gif", ""])
def test_names_have_up_to_255_bytes(tmp_path: Path, ending: str) -> None:
    name = ("é" * 200).encode()[: 254 - len(ending)].decode() + ending
    with open_video(tmp_path / name) as video:
        video.write(frames(2))
    assert left_in(tmp_path) == [name]
    for write in (open_video, lambda path: save_frames(frames(2), path)):
        with pytest.raises(ValueError, match="a name may have 255 bytes"):
            write(tmp_path / f"{'é' * 126}xyzzy{ending}")
    assert left_in(tmp_path) == [name]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_a_full_disk_keeps_what_was_made(tmp_path: Path, name: str) -> None:
    """On a real file system of 200 KiB, where this machine lets a test mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(tmp_path)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting is not allowed here")
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 96, 3), np.uint8)
    try:
        with (
            pytest.raises(OSError, match="(?i)no space left"),
            open_video(tmp_path / name) as video,
        ):
            for frame in noise:
                video.write(frame[None])
        assert video.kept == video.partial and left_in(tmp_path) == [video.partial.name]
        assert 3 < length(video.partial) < 60
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_without_frames_there_is_no_file(tmp_path: Path) -> None:
    with ProgressiveVideo(tmp_path / "clip.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_what_a_dead_process_left_is_kept(tmp_path: Path, name: str) -> None:
    parent = open_video(tmp_path / name)
    parent.rescue()
    assert parent.kept is None
    child = open_video(tmp_path / name, partial=parent.partial)
    child.write(frames(9))
    if isinstance(child, ProgressiveVideo):
        playable(child.partial, 8)
    parent.rescue()
    assert parent.kept == tmp_path / name and left_in(tmp_path) == [name]
    assert length(tmp_path / name) >= 8


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps must be"):
        ProgressiveVideo(tmp_path / "clip.mp4", fps=0)
    with ProgressiveVideo(tmp_path / "clip.mp4") as video:
        video.write(frames(2))
        with pytest.raises(ValueError, match="frame 2 is 32x32"):
            video.write(frames(1, (32, 32)))
    assert len(read_video(tmp_path / "clip.mp4")) == 2


@pytest.mark.parametrize(
    "name", ["scene:1.mp4", "-take2.mp4", "file:x.mp4", "pipe:1.mp4", "%d.mp4"]
)
def test_a_name_is_no_option_protocol_or_pattern_of_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    export_to_video(frames(3), name)
    assert os.listdir() == [name] and read_video(name).shape == (3, 48, 64, 3)
    with ProgressiveVideo(name) as video:
        video.write(frames(4))
    write_comment(name, "a comment")
    assert os.listdir() == [name] and read_video(name).shape == (4, 48, 64, 3)
    assert video_size(name) == (64, 48)


@pytest.mark.parametrize("name", ["clip.gif", "frames"])
def test_other_formats_are_written_at_the_end(tmp_path: Path, name: str) -> None:
    video = open_video(tmp_path / name, 24)
    assert isinstance(video, CollectedFrames)
    video.write(frames(2))
    video.write(frames(3))
    assert not (tmp_path / name).exists() and video.frames == 5
    video.close()
    assert (tmp_path / name).exists()
    assert isinstance(open_video(tmp_path / "clip.mp4"), ProgressiveVideo)


def test_frames_are_read_in_another_size_and_at_another_rate(tmp_path: Path) -> None:
    clip = frames(12, (48, 100))
    clip[:, :, :20] = 0  # is cropped
    name = export_to_video(clip, tmp_path / "clip.mp4", fps=12)
    assert video_size(name) == (100, 48)
    read = np.stack(list(video_frames(name, size=(64, 64), fps=24)))
    assert read.shape == (24, 64, 64, 3)
    assert abs(int(read[0].min()) - 20) <= 6
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        video_size(tmp_path / "nowhere.mp4")
