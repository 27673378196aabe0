"""Videos come in as a player shows them: upright, square pixels, right colors, the model's rate."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from pyramid_dit.media import video_files, video_header
from pyramid_dit.media.images import fit_video, video_pixels
from pyramid_dit.media.video_files import last_frames, video_frames, video_size
from pyramid_dit.media.video_header import UnsupportedVideoError, VideoHeader


def ffmpeg(*arguments: str | Path) -> None:
    command = [get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True)


def lavfi(path: Path, source: str, *options: str | Path) -> Path:
    """The video that ffmpeg makes of a `source`."""
    ffmpeg("-f", "lavfi", "-i", source, *options, path)
    return path


def disk(path: Path, pixel_aspect: str) -> Path:
    """A disk that is round where pixels have that aspect."""
    far = f"hypot((X-W/2)*{pixel_aspect},Y-H/2)"
    source = f"color=black:s=480x360:r=24:d=0.2,format=gray,geq=lum='if(lt({far},H/5),255,0)'"
    return lavfi(path, f"{source},format=yuv420p,setsar={pixel_aspect}", "-crf", "10")


def roundness(frame: np.ndarray) -> float:
    bright = frame[..., 1] > 128
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return float((columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1))


@pytest.mark.parametrize("aspect", ["4/3", "8/9", "1/1"])
def test_pixels_become_square(aspect: str, tmp_path: Path) -> None:
    path = disk(tmp_path / "disk.mp4", aspect)
    for size in ((128, 128), (256, 128), None):
        frame = next(iter(video_frames(path, size=size, fps=24)))
        assert size is None or frame.shape == (size[1], size[0], 3)
        assert abs(roundness(frame) - 1) < 0.05
    width, height = {"4/3": (640, 360), "8/9": (480, 405), "1/1": (480, 360)}[aspect]
    assert video_size(path) == (width, height)
    assert VideoHeader.read(path).aspect == pytest.approx(width / height)


def test_pixels_become_square_in_a_video_that_lies_on_its_side(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk.mp4", "4/3")
    ffmpeg("-display_rotation", "90", "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    assert video_size(tmp_path / "turned.mp4") == (360, 640)
    assert VideoHeader.read(tmp_path / "turned.mp4").aspect == pytest.approx(360 / 640)
    frame = next(iter(video_frames(tmp_path / "turned.mp4", size=(64, 128))))
    assert abs(roundness(frame) - 1) < 0.05


def hdr_white(path: Path, transfer: str, level: int) -> Path:
    tags = f"range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc={transfer}"
    source = f"color=gray:s=128x96:r=24:d=0.2,format=yuv420p10le,geq=lum={level}:cb=512:cr=512"
    said = f"log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    options = ["-c:v", "libx265", "-x265-params", said, "-crf", "4"]
    return lavfi(path, f"{source},setparams={tags}", *options)


# 10-bit luma: HLG 75 % and PQ 58 % are 203 cd/m², diffuse white; the peak of both is 1000 cd/m²
@pytest.mark.parametrize(
    ("transfer", "white", "peak"), [("arib-std-b67", 721, 940), ("smpte2084", 573, 723)]
)
def test_white_paper_in_hdr_is_white(
    transfer: str, white: int, peak: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hdr_white(tmp_path / "white.mp4", transfer, white)
    brightest = hdr_white(tmp_path / "peak.mp4", transfer, peak)
    for size in ((64, 64), None):
        pixel = next(iter(video_frames(path, size=size, fps=24)))[32, 32]
        assert 220 <= pixel.min() <= pixel.max() <= 248  # light sources are brighter than paper
        assert next(iter(video_frames(brightest, size=size)))[32, 32].min() >= 252
    monkeypatch.setattr(video_header, "_has_filters", lambda *_: False)
    with pytest.raises(UnsupportedVideoError, match="HDR .* convert the video to SDR"):
        next(iter(video_frames(path)))


@pytest.mark.parametrize(
    ("size", "matrix"), [("1280x720", "bt709"), ("720x576", "smpte170m"), ("720x1280", "bt709")]
)
@pytest.mark.parametrize("tagged", [True, False])
def test_untagged_videos_are_read_by_their_size(
    size: str, matrix: str, tagged: bool, tmp_path: Path
) -> None:
    color = f"color=0x00C040:s={size}:r=24:d=0.1,format=gbrp"
    convert = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p"
    named = matrix if tagged else "unknown"
    source = f"{color},{convert},setparams=colorspace={named}:color_primaries={named}"
    path = lavfi(tmp_path / "green.mp4", f"{source}:color_trc={named}", "-crf", "4")
    assert (VideoHeader.read(path).matrix == "unknown") is not tagged
    for frames in (video_frames(path), video_frames(path, size=(64, 64))):
        assert np.abs(next(frames)[32, 32].astype(int) - (0, 0xC0, 0x40)).max() <= 4
        frames.close()


def moving_bar(path: Path, rate: int, seconds: int, *options: str | Path) -> Path:
    """A bar that moves 48 pixels a second."""
    bar = "geq=lum='if(lt(abs(X-8-mod(48*T,100)),1.5),255,0)'"
    source = f"color=black:s=128x64:r={rate}:d={seconds},format=gray,{bar},format=yuv420p"
    return lavfi(path, source, *options)


@pytest.mark.parametrize("rate", [12, 30, 60])
def test_videos_are_read_at_the_models_rate(rate: int, tmp_path: Path) -> None:
    path = moving_bar(tmp_path / "clip.mp4", rate, 1, "-crf", "5")

    def motion(frames: np.ndarray) -> int:
        places = frames[..., 0].astype(float).sum(1).argmax(1)
        return int(places[-1] - places[0])

    pixels = video_pixels(path, 9, 1)[0].permute(1, 2, 3, 0).numpy() + 1
    assert len(pixels) == 9
    assert abs(motion(pixels) - 16) <= 4  # 8 steps of 2 pixels
    fitted = fit_video(str(path), 64, 128, 9)
    assert isinstance(fitted, np.ndarray)
    assert abs(motion(fitted) - 16) <= 4
    assert abs(motion(video_pixels(path, 9, 1, 12)[0].permute(1, 2, 3, 0).numpy() + 1) - 32) <= 4


def test_only_the_end_of_a_long_video_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = moving_bar(tmp_path / "long.mp4", 30, 9)
    whole = np.stack(list(video_frames(path, fps=24)))
    read = 0

    def counted(*args: object, **options: object) -> object:
        nonlocal read
        for frame in video_frames(*args, **options):  # type: ignore[arg-type]
            read += 1
            yield frame

    monkeypatch.setattr(video_files, "video_frames", counted)
    np.testing.assert_array_equal(last_frames(path, 33, fps=24), whole[-33:])
    assert read < 33 + 2 * 24
    np.testing.assert_array_equal(last_frames(path, 1000, fps=24), whole)


def test_the_end_of_the_picture_counts_where_the_sound_goes_on(tmp_path: Path) -> None:
    sound = ["-f", "lavfi", "-i", "sine=d=12", "-c:a", "aac"]
    path = moving_bar(tmp_path / "sound.mp4", 24, 2, *sound)
    header = VideoHeader.read(path)
    assert header.has_sound and header.seconds is not None and header.seconds > 11
    whole = np.stack(list(video_frames(path, fps=24)))
    np.testing.assert_array_equal(last_frames(path, 9, fps=24), whole[-9:])


@pytest.mark.parametrize("rate", ["24", "30000/1001", "12.5", "120"])
def test_the_header_says_how_many_frames_a_second(rate: str, tmp_path: Path) -> None:
    path = lavfi(tmp_path / "a.mp4", f"testsrc=size=64x64:rate={rate}:duration=1")
    expected = 30000 / 1001 if "/" in rate else float(rate)
    assert VideoHeader.read(path).frame_rate == pytest.approx(expected, abs=0.01)


def test_another_size_is_nothing_to_warn_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = lavfi(tmp_path / "a.mp4", "testsrc=size=64x64:rate=24:duration=0.2")
    assert next(video_frames(path, size=(32, 16))).shape == (16, 32, 3)
    assert not caplog.records
