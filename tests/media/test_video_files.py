"""Writing frames: real files through the real ffmpeg, read back, and what failures leave behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from pyramid_dit.media.images import pictures_of
from pyramid_dit.media.progressive_video import open_video
from pyramid_dit.media.video_files import (
    check_writable,
    export_to_gif,
    export_to_png_folder,
    export_to_video,
    frame_arrays,
    output_format,
    read_video,
    save_frames,
)

WRITERS = {
    "clip.mp4": export_to_video,
    "clip.gif": export_to_gif,
    "clip": export_to_png_folder,
}
# A file size limit that the kernel enforces, for a writer in a process of its own.
LIMITED_WRITER = """
import resource, sys
import numpy as np
from pyramid_dit.video_io import save_frames
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
try:
    save_frames(noise, sys.argv[1])
except OSError as error:
    sys.exit(f"OSError: {error}")
"""


def moving_disc(frames: int = 17, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """A red disc that moves right on white: saturated color with an edge."""
    rows, columns = np.mgrid[:height, :width]
    clip = []
    for index in range(frames):
        inside = (rows - height // 2) ** 2 + (columns - 20 - index) ** 2 < 15**2
        frame = np.full((height, width, 3), 255, np.uint8)
        frame[inside] = (220, 20, 30)
        clip.append(frame)
    return clip


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def probe(path: Path) -> str:
    """What ffmpeg says about a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_mp4_keeps_frames_and_colors(tmp_path: Path) -> None:
    clip = moving_disc()
    path = tmp_path / "new" / "clip.mp4"
    assert export_to_video(clip, path) == str(path)
    back = read_video(path)
    assert back.dtype == np.uint8 and back.shape == (17, 64, 96, 3)
    error = np.abs(back.astype(int) - np.stack(clip))
    assert error.mean() < 2
    assert error[:, 4, 4].max() <= 2  # white
    assert error[0, 32, 20].max() <= 6 and error[16, 32, 36].max() <= 6  # red, first and last


def test_mp4_is_h264_yuv420p_with_its_index_in_front(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    export_to_video(moving_disc(), path, fps=24)
    told = probe(path)
    assert "Video: h264" in told and "yuv420p(tv, bt709" in told
    assert "96x64" in told and "24 fps" in told and "00:00:00.7" in told
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_mp4_of_an_odd_size_repeats_the_edge(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    export_to_video(moving_disc(5, 33, 51), path)
    back = read_video(path).astype(int)
    assert back.shape == (5, 34, 52, 3)
    assert np.abs(back[:, 33] - back[:, 32]).max() < 8


def test_every_kind_of_frame_gives_the_same_video(tmp_path: Path) -> None:
    clip = moving_disc(3)
    kinds = {
        "array": np.stack(clip),
        "pil": [Image.fromarray(frame) for frame in clip],
        "float": [(frame / 255).astype(np.float32) for frame in clip],
        "generator": (frame for frame in clip),
    }
    for name, frames in kinds.items():
        export_to_video(frames, tmp_path / f"{name}.mp4")
    videos = [read_video(tmp_path / f"{name}.mp4") for name in kinds]
    for video in videos[1:]:
        np.testing.assert_array_equal(video, videos[0])


@pytest.mark.parametrize("fps", [24, 10, 30])
def test_gif_keeps_the_length_of_the_clip(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "clip.gif"
    export_to_gif(moving_disc(25), path, fps=fps)
    milliseconds = 0
    with Image.open(path) as gif:
        assert gif.n_frames == 25 and gif.size == (96, 64) and gif.info["loop"] == 0
        for index in range(gif.n_frames):
            gif.seek(index)
            milliseconds += gif.info["duration"]
    assert milliseconds == pytest.approx(25_000 / fps, abs=10)


@pytest.mark.parametrize("fps", [60, 100, 51.5, 240])
def test_gif_of_many_frames_a_second_is_thinned(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "clip.gif"
    grays = np.linspace(0, 240, 121).astype(np.uint8)
    export_to_gif([np.full((8, 8, 3), gray, np.uint8) for gray in grays], path, fps=fps)
    begin = 0
    with Image.open(path) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            assert gif.info["duration"] >= 20  # viewers show shorter ones for 100
            gray = int(np.asarray(gif.convert("RGB"))[0, 0, 0])
            assert abs(gray / 2 - begin * fps / 1000) <= 1  # each at its time
            begin += gif.info["duration"]
    assert begin == pytest.approx(121_000 / fps, abs=10)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames/"])
@pytest.mark.parametrize("value", [128.0, -0.01, 1.01, float("nan"), float("inf")])
def test_floats_that_are_no_picture_are_refused(tmp_path: Path, name: str, value: float) -> None:
    clip = [np.full((64, 64, 3), 0.5, np.float32) for _ in range(3)]
    clip[2][40, 7, 1] = value
    with pytest.raises(ValueError, match=rf"frame 2 holds {value:g}: floats must be in \[0, 1\]"):
        save_frames(clip, tmp_path / name)
    video = open_video(tmp_path / name)
    with pytest.raises(ValueError, match=f"frame 2 holds {value:g}"):  # at once, not at the end
        video.write(clip)
    assert video.frames == 2
    video.close()
    with pytest.raises(ValueError, match=f"an image holds {value:g}"):
        pictures_of(clip[2])


def test_rounding_errors_of_floats_are_clipped(tmp_path: Path) -> None:
    for kind in (np.float16, np.float32, np.float64):
        array = np.array([[[-0.0035, 0.5, 1.0035]] * 2] * 2, kind)
        (frame,) = frame_arrays([array])
        assert frame[0, 0].tolist() in ([0, 127, 255], [0, 128, 255])
    with pytest.raises(TypeError, match="uint8 or of floats"):
        pictures_of(np.full((64, 64, 3), 128))


def test_png_folder_is_exact_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    export_to_png_folder(moving_disc(9), folder)
    clip = moving_disc(5)
    export_to_png_folder(clip, folder)
    assert left_in(folder) == [f"frame_{index:04d}.png" for index in range(5)]
    for index, frame in enumerate(clip):
        np.testing.assert_array_equal(
            np.asarray(Image.open(folder / left_in(folder)[index])), frame
        )
    assert left_in(tmp_path) == ["frames"]


def test_png_folder_never_touches_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for attempt in (
        lambda: export_to_png_folder(moving_disc(2), tmp_path),
        lambda: check_writable(tmp_path),
    ):
        with pytest.raises(FileExistsError, match=r"thesis\.txt"):
            attempt()
    assert left_in(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_midway_leaves_nothing(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from moving_disc(8)
        raise error

    with pytest.raises(error):
        WRITERS[name](failing(), tmp_path / name)
    assert left_in(tmp_path) == []


def test_a_failure_midway_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    export_to_video(moving_disc(3), path)
    before = path.read_bytes()

    def failing() -> Iterator[np.ndarray]:
        yield from moving_disc(8)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        export_to_video(failing(), path)
    assert path.read_bytes() == before and left_in(tmp_path) == ["clip.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", LIMITED_WRITER, str(tmp_path / name)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stderr.startswith("OSError: "), run.stderr
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str) -> None:
    """On a real file system of 64 KiB, where this machine lets a test mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting is not allowed here")
    try:
        noise = np.random.default_rng(0).integers(0, 256, (24, 96, 96, 3), np.uint8)
        with pytest.raises(OSError, match="(?i)no space left"):
            save_frames(noise, tmp_path / name)
        assert left_in(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([], ValueError),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], ValueError),
        ([np.zeros((4, 4), np.uint8)], TypeError),
        ([np.zeros((4, 4, 3), np.int64)], TypeError),
        (["frame"], TypeError),
    ],
)
@pytest.mark.parametrize("name", WRITERS)
def test_bad_frames(
    tmp_path: Path, name: str, frames: list[np.ndarray], error: type[Exception]
) -> None:
    with pytest.raises(error):
        WRITERS[name](frames, tmp_path / name)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_bad_fps(tmp_path: Path, fps: float) -> None:
    for writer in (export_to_video, export_to_gif):
        with pytest.raises(ValueError, match="fps"):
            writer(moving_disc(2), tmp_path / "clip.mp4", fps)


def test_the_name_decides_the_format(tmp_path: Path) -> None:
    assert output_format("a.mp4") == "mp4"
    assert output_format("b/a.GIF") == "gif"
    assert output_format("frames") == output_format("run.v2/") == output_format(tmp_path) == "png"
    for name in ("a.avi", "a.png", "run.v2"):
        with pytest.raises(ValueError, match="mp4"):
            output_format(name)
    for name in WRITERS:
        save_frames(moving_disc(2), tmp_path / name)
    assert left_in(tmp_path) == sorted(WRITERS)


def test_check_writable_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "there" / "yet.mp4")
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for path, error in {
        "file": FileExistsError,
        "folder.mp4": IsADirectoryError,
        "file/clip.mp4": NotADirectoryError,
        "clip.avi": ValueError,
    }.items():
        with pytest.raises(error):
            check_writable(tmp_path / path)
    assert left_in(tmp_path) == ["file", "folder.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write to")
def test_check_writable_names_a_folder_that_takes_no_files() -> None:
    with pytest.raises(OSError, match="/proc"):  # holds for root too
        check_writable("/proc/clip.mp4")


def test_reading_what_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        read_video(tmp_path / "absent.mp4")
    whole = tmp_path / "clip.mp4"
    export_to_video(moving_disc(), whole)
    cases: dict[str, Callable[[], bytes]] = {
        "text.mp4": lambda: b"this is not a video",
        "truncated.mp4": lambda: whole.read_bytes()[:700],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content())
        with pytest.raises(ValueError, match=name):
            read_video(tmp_path / name)
