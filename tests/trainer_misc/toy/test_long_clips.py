"""Long clips of several scenes: what they show, and a training for videos without end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import PROJECT_ROOT
from safetensors.torch import load_file

from pyramid_dit.flow.history import WHOLE_HISTORY
from trainer_misc import train_dit
from trainer_misc.dit_options import GROUPS
from trainer_misc.dit_results import VALIDATION_BATCHES
from trainer_misc.options import parse
from trainer_misc.toy import latents, long_clips
from trainer_misc.toy.judge import judge
from trainer_misc.toy.long_clips import LongClips, Scene
from trainer_misc.toy.moving_shapes import (
    DIRECTIONS,
    MARGIN,
    MAX_FRAMES,
    SCALING_RADIUS_RANGE,
    SCALING_RANGE,
    SPEED_RANGE,
    ShapeClip,
)
from video_vae import CausalVideoVAE

TOY = PROJECT_ROOT / "pyramid_dit/toy"
UNITS = 37


def scenes_of(count: int = 200, seed: int = 3) -> list[list[Scene]]:
    clips = LongClips(count, UNITS, seed=seed)
    return [clips.scenes(index) for index in range(count)]


def place(scene: Scene, frame: int) -> tuple[float, float, float]:
    return *scene.clip.center_at(frame), scene.clip.radius_at(frame)


def test_shapes_stay_in_the_frame_and_go_on_where_they_were() -> None:
    touching = 0
    for scenes in scenes_of():
        for scene in scenes:
            for frame in scene.frames:
                x, y, radius = place(scene, frame)
                free = min(x, y, 128 - x, 128 - y) - radius
                assert free >= MARGIN - 1e-9
                assert SCALING_RADIUS_RANGE[0] <= radius <= SCALING_RADIUS_RANGE[1]
            touching += free < MARGIN + 1e-9
        for before, after in zip(scenes, scenes[1:], strict=False):
            assert place(after, 0) == pytest.approx(place(before, before.frames[-1]))
    assert touching > 200, "the border is no rare place"


def test_scenes_begin_with_units_and_last_as_long_as_they_should() -> None:
    lengths: Counter[int] = Counter()
    for scenes in scenes_of():
        assert [scene.unit for scene in scenes] == [
            sum(scene.units for scene in scenes[:number]) for number in range(len(scenes))
        ]
        assert sum(scene.units for scene in scenes) == UNITS
        assert sum(len(scene.frames) for scene in scenes) == 1 + 8 * (UNITS - 1)
        assert scenes[0].frames[0] == 0 and all(scene.frames[0] == 1 for scene in scenes[1:])
        lengths.update(scene.units for scene in scenes[:-1])
    assert set(lengths) == set(range(4, 14)), "1.3 to 4.5 seconds, three units each"
    assert min(lengths.values()) > max(lengths.values()) / 2


def test_scenes_show_trained_combinations_of_one_shape_in_changing_motion() -> None:
    motions: Counter[str] = Counter()
    for scenes in scenes_of():
        assert len({(s.clip.color, s.clip.shape, s.clip.background) for s in scenes}) == 1
        assert not any(scene.clip.is_held_out for scene in scenes)
        assert all(
            one.clip.motion != other.clip.motion
            for one, other in zip(scenes, scenes[1:], strict=False)
        )
        motions.update(scene.clip.motion for scene in scenes)
    assert len(motions) == 7
    share = sum(motions[motion] for motion in DIRECTIONS) / motions.total()
    assert share == pytest.approx(long_clips.DIRECTION_SHARE, abs=0.05)


def test_motions_have_the_usual_pace_and_end_at_the_border_alone() -> None:
    stopped = 0
    for scenes in scenes_of():
        for scene in scenes:
            clip, end = scene.clip, scene.frames[-1]
            speed = sum(map(abs, clip.velocity))
            pace = max(clip.scaling, 1 / clip.scaling)
            assert speed == 0 or SPEED_RANGE[0] <= speed <= SPEED_RANGE[1]
            assert pace == 1 or SCALING_RANGE[0] - 1e-9 <= pace <= SCALING_RANGE[1] + 1e-9
            free = ShapeClip.center_at(clip, end)
            if place(scene, end)[:2] != pytest.approx(free):
                stopped += 1
                assert speed == SPEED_RANGE[0], "it is faster only where there is room"
    assert stopped > 20


def test_the_judge_sees_what_the_captions_say() -> None:
    clips = LongClips(8, UNITS, seed=1)
    judged = 0
    for index in range(len(clips)):
        frames, begin = clips[index], 0
        assert frames.shape == (1 + 8 * (UNITS - 1), 128, 128, 3) and frames.dtype == np.uint8
        for scene in clips.scenes(index):
            stop = begin + len(scene.frames)
            seen = judge(frames[begin:stop])
            begin = stop
            wanted = scene.clip.caption
            assert seen.agreement(wanted) | {"motion": True} == dict.fromkeys(
                ("color", "shape", "background", "motion"), True
            )
            way = np.subtract(place(scene, scene.frames[-1]), place(scene, 0))
            steady = np.abs(way[:2]).sum() > 0.9 * len(scene.frames) / 24 * SPEED_RANGE[0]
            if scene.units > 4 and scene.clip.motion in DIRECTIONS and steady:
                judged += 1
                assert seen.matches(wanted)
    assert judged > 10


def test_a_clip_depends_on_seed_and_index_alone() -> None:
    one, other = LongClips(4, 9, seed=5), LongClips(2, 9, seed=5)
    assert one.scenes(1) == other.scenes(1) and np.array_equal(one[1], other[1])
    assert one.scenes(0) != one.scenes(1)
    assert one.scenes(1) != LongClips(4, 9, seed=6).scenes(1)
    with pytest.raises(IndexError, match=r"index 2 is not in 0\.\.1"):
        other.scenes(2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--count", "0"], "count must be at least 1, got 0"),
        (["--seconds", "0.1"], "--seconds must be at least 0.4"),
        (["--num_workers", "-1"], "--num_workers must be at least 0"),
        (["--seed", "-1"], "seed must be"),
    ],
)
def test_wrong_settings_are_named(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        long_clips.main([str(tmp_path / "x"), "--model_path", str(TOY), *given])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long clips and usual ones."""
    folder = tmp_path_factory.mktemp("clips")
    long_clips.main(
        [str(folder / "long"), "--model_path", str(TOY), "--count", "3", "--seconds", "4.7"]
        + ["--device", "cpu", "--num_workers", "1"]
    )
    latents.main(
        ["--vae", str(TOY / "causal_video_vae"), "--output", str(folder / "usual")]
        + ["--pictures", "7", "--clips", "2", "--device", "cpu"]
    )
    return folder


def test_latents_and_captions_are_written(files: Path) -> None:
    lines = [json.loads(line) for line in (files / "long/clips.jsonl").open()]
    clips = LongClips(3, 15)
    assert [line["texts"] for line in lines] == [clips.texts(index) for index in range(3)]
    assert list(lines[0]["texts"])[0] == "0" and len({*map(str, lines)}) == 3
    stored = load_file(files / "long" / lines[2]["latent"])["latent"]
    assert stored.shape == (1, 8, 15, 16, 16)
    vae = CausalVideoVAE.from_pretrained(TOY / "causal_video_vae").eval()
    video = torch.from_numpy(clips[2][:41]).movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(stored[:, :, :6].float(), expected, rtol=2e-3, atol=2e-3)


def test_the_recipe_trains_long_clips_usual_ones_and_pictures(files: Path, tmp_path: Path) -> None:
    given = {
        "config": PROJECT_ROOT / "trainer_misc/toy/endless.toml",
        "model_path": TOY,
        "output_dir": tmp_path,
        "anno_file": files / "long/clips.jsonl",
        "replay_anno": files / "usual/clips.jsonl",
        "image_anno": files / "usual/pictures.jsonl",
        "validation_file": files / "long/clips.jsonl",
        **{"batch_size": 4, "image_batch_size": 7, "num_workers": 0, "print_freq": 1},
        **{
            "steps": 3,
            "cooldown_steps": 1,
            "warmup_steps": 1,
            "validate_steps": 3,
            "device": "cpu",
        },
    }
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    trainer = train_dit.Trainer(parse(None, GROUPS, arguments))
    kinds: Counter[str] = Counter()
    units = set()
    for number in range(60):
        batch = trainer.batches[number]
        if train_dit.is_of_pictures(batch):
            kinds["pictures"] += 1
        elif batch.get("last_unit"):
            kinds["long"] += 1
            units.add(batch["video"].shape[2])
        else:
            kinds["usual"] += 1
            assert batch["video"].shape[2] == 13
    assert 1 not in {*kinds.values()} and set(kinds) == {"pictures", "long", "usual"}
    assert units > {2, 14}, "units with the whole history and with a part of it"
    for objective in trainer.objectives.values():
        assert objective.history == WHOLE_HISTORY.without_end(MAX_FRAMES // 8 + 1)
        assert objective.corrupt_frames
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert sum("image_loss" in line for line in lines) in (1, 2)
    validated = {
        name for line in lines for name in line if name.startswith("validation_loss_units")
    }
    assert 1 <= len(validated) <= VALIDATION_BATCHES, "of each batch the last unit alone"
    losses = [line[name] for line in lines for name in ("loss", "image_loss") if name in line]
    assert len(losses) == 3 and all(0 < loss < 1 for loss in losses)
    assert (tmp_path / "model/model_index.json").is_file()
