"""Videos of a new word: what is held out, what is written, and that a training takes it."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations as pairs
from pathlib import Path

import numpy as np
import pytest
from golden import PROJECT_ROOT
from safetensors.torch import load_file

from pyramid_dit.media.video_files import read_video
from pyramid_dit.media.video_header import VideoHeader
from trainer_misc import extract_features, train_dit
from trainer_misc.data.annotations import Annotations
from trainer_misc.toy import new_word
from trainer_misc.toy.judge import judge
from trainer_misc.toy.moving_shapes import (
    MOTIONS,
    NEW_WORDS,
    Combination,
    attributes_of,
    combinations,
    described,
    draw_clip,
    is_held_out,
    render_uint8,
)

BUNDLED = PROJECT_ROOT / "pyramid_dit" / "toy"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of a star and two known ones."""
    folder = tmp_path_factory.mktemp("new") / "clips"
    new_word.main([str(folder), "--count", "2", "--known", "2", "--num-frames", "9"])
    return folder


@pytest.mark.parametrize("word", NEW_WORDS)
def test_a_third_is_held_out_and_every_two_words_are_trained_together(word: str) -> None:
    everything = combinations(word)
    trained = [what for what in everything if not what.is_held_out]
    assert len(set(everything)) == len(everything) in (4 * 7 * 3, 6 * 7 * 3)
    assert 3 * len(trained) == 2 * len(everything)
    for one, other in pairs(("color", "shape", "motion", "background"), 2):
        together = [
            {(getattr(what, one), getattr(what, other)) for what in some}
            for some in (everything, trained)
        ]
        assert together[0] == together[1]


def test_known_combinations_are_held_out_as_before_and_new_pairs_always() -> None:
    known = combinations()
    assert known == tuple(attributes_of(number) for number in range(504))
    assert [what.is_held_out for what in known] == [is_held_out(number) for number in range(504)]
    assert all(
        described(Combination("cyan", "star", motion, "white").caption).is_held_out
        for motion in MOTIONS
    )
    with pytest.raises(ValueError, match="'a pink star grows on a white background'"):
        described("a pink star grows on a white background")
    with pytest.raises(ValueError, match="'pink'"):
        combinations("pink")


def test_stars_have_the_area_that_geometry_says_and_stay_in_the_frame() -> None:
    for seed, what in enumerate(combinations("star")[::7]):
        clip = draw_clip(what, np.random.default_rng(seed))
        frames = render_uint8(clip, [0, 48, 96]).astype(int)
        background = frames[0, 0, 0]
        assert all((frames[:, [0, -1]] == background).ravel())
        assert all((frames[:, :, [0, -1]] == background).ravel())
        contrast = np.abs(frames[0, int(clip.y), int(clip.x)] - background).sum()
        area = np.abs(frames[0] - background).sum() / contrast
        # ten triangles between a tip, a dent and the center
        assert area == pytest.approx(5 * 0.45 * np.sin(np.pi / 5) * clip.radius**2, rel=0.02)


@pytest.mark.parametrize(("word", "known"), [("star", 0), ("cyan", 5)])
def test_clips_are_spread_evenly_trained_alone_and_the_same_for_a_seed(
    word: str, known: int
) -> None:
    clips = new_word.new_clips(word, 130, seed=3) + new_word.known_clips(known, seed=3)
    assert clips == new_word.new_clips(word, 130, seed=3) + new_word.known_clips(known, seed=3)
    assert clips != new_word.new_clips(word, 130, seed=4) + new_word.known_clips(known, seed=4)
    assert not any(clip.is_held_out for clip in clips)
    times = Counter(clip.caption for clip in clips[:130])
    assert set(times) == {what.caption for what in combinations(word) if not what.is_held_out}
    assert max(times.values()) - min(times.values()) <= 1
    assert all(word not in clip.caption for clip in clips[130:])


def test_videos_show_what_the_captions_beside_them_say(clips: Path) -> None:
    source = Annotations.open(clips, "video")
    assert len(source) == 4
    for number in range(4):
        record = source[number]
        assert ("star" in record["text"]) == (number < 2)
        video = read_video(record["video"])
        assert video.shape == (9, 128, 128, 3)
        assert VideoHeader.read(Path(record["video"])).frame_rate == 24
        verdict, said = judge(video), described(record["text"])
        assert (verdict.color, verdict.shape) == (said.color, said.shape)
    lines = [json.loads(line) for line in (clips / new_word.ANNOTATIONS).open()]
    assert [line["text"] for line in lines] == [source[number]["text"] for number in range(4)]
    assert all((clips / line["video"]).is_file() for line in lines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--count", "0"], "--count and --known together"),
        (["--count", "-1"], "--count must"),
        (["--known", "-1"], "--known"),
        (["--num-frames", "10"], "--num-frames"),
        (["--num-frames", "105"], "--num-frames"),
        (["--word", "pink"], "--word"),
    ],
)
def test_wrong_settings_are_named(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        new_word.main([str(tmp_path / "clips"), *given])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trained(output: Path, *given: str) -> bool:
    """Whether a step of training changed the text encoder, too."""
    common = ["--model_path", str(BUNDLED), "--output_dir", str(output), "--num_workers", "0"]
    config = PROJECT_ROOT / "trainer_misc" / "toy" / "new-word.toml"
    steps = ["--steps", "1", "--report_to", "none", "--warmup_lr", "1e-4", "--device", "cpu"]
    before = contents(BUNDLED)
    train_dit.main(["--config", str(config), *common, *steps, *given])
    assert contents(BUNDLED) == before
    name = "text_encoder_2/model.safetensors"
    one, other = load_file(BUNDLED / name), load_file(output / "model" / name)
    return any((one[key] != other[key]).any() for key in one)


def test_a_training_takes_the_folder(clips: Path, tmp_path: Path) -> None:
    sizes = ["--batch_size", "4", "--resolution", "64x64", "--max_frames", "2"]
    assert trained(tmp_path, *sizes, "--anno_file", str(clips), "--load_vae")


def test_a_training_takes_its_latents_as_clips_and_as_pictures(clips: Path, tmp_path: Path) -> None:
    common = ["--model_path", str(BUNDLED), "--device", "cpu", "--model_dtype", "fp32"]
    common += ["--width", "128", "--height", "128"]
    annotations = []
    for lines, folder, frames, count in (
        (new_word.ANNOTATIONS, new_word.LATENTS, 9, 4),
        (new_word.PICTURES, new_word.PICTURE_LATENTS, 1, 12),
    ):
        annotations.append(str(clips / lines))
        extract_features.main(
            ["--anno_file", annotations[-1], "--num_frames", str(frames), *common]
        )
        latents = [load_file(path)["latent"] for path in (clips / folder).iterdir()]
        assert [tuple(x.shape) for x in latents] == [(1, 8, 1 + frames // 8, 16, 16)] * count
    sizes = ["--batch_size", "4", "--image_batch_size", "9"]
    anno, pictures = annotations
    assert trained(tmp_path, *sizes, "--anno_file", anno, "--image_anno", pictures)


def test_pictures_are_frames_of_the_videos(clips: Path) -> None:
    lines = [json.loads(line) for line in (clips / new_word.PICTURES).open()]
    assert [(line["video"], line["frames"]) for line in lines] == [
        (f"{number:04d}.mp4", [frame]) for number in range(4) for frame in (0, 3, 6)
    ]
    captions = {f"{path.stem}.mp4": path.read_text().strip() for path in clips.glob("*.txt")}
    assert all(line["text"] == captions[line["video"]] for line in lines)
    assert len({line["latent"] for line in lines}) == len(lines)
