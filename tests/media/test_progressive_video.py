"""Video files that grow, play while they do, and are kept whatever happens."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from pyramid_dit.media.embedded_settings import write_comment
from pyramid_dit.media.progressive_video import CollectedFrames, ProgressiveVideo, open_video
from pyramid_dit.media.video_files import (
    export_to_video,
    read_video,
    video_frames,
    video_size,
)

PATIENCE = 300  # seconds in which ffmpeg comes to write what it was given


def frames(count: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    shades = np.linspace(20, 230, count).astype(np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (count, *size, 3)).copy()


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_made_is_kept(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"an earlier video")
    with pytest.raises(error), ProgressiveVideo(target) as video:
        video.write(frames(9))
        assert target.read_bytes() == b"an earlier video"
        raise error
    assert read_video(target).shape == (9, 48, 64, 3)
    assert list(tmp_path.iterdir()) == [target]


def test_without_frames_there_is_no_file(tmp_path: Path) -> None:
    with ProgressiveVideo(tmp_path / "clip.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_dead_process_left_is_completed(tmp_path: Path) -> None:
    video = ProgressiveVideo(tmp_path / "clip.mp4")
    assert not video.rescue()
    video.write(frames(9))
    playable(video.partial, 8)
    (tmp_path / "left.partial.mp4").write_bytes(video.partial.read_bytes())
    video.close()
    assert ProgressiveVideo(tmp_path / "left.mp4").rescue()
    assert len(read_video(tmp_path / "left.mp4")) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "left.mp4"]


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
