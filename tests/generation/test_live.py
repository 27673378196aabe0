"""A video that is steered while it is made."""

from __future__ import annotations

import itertools
import math
import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.generation.stream import VideoStream

CIRCLE, SQUARE = "a red circle", "a blue square"
OPTIONS: dict[str, Any] = {"seed": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PyramidDiTForVideoGeneration:
    index = QUICK_INDEX | {"num_frames": 33, "known_words": [*CIRCLE.split(), *SQUARE.split()]}
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=index)
    model = PyramidDiTForVideoGeneration.from_pretrained(folder)
    model.set_progress_bar_config(disable=True)
    return model


def units(stream: VideoStream, count: int) -> list[torch.Tensor]:
    return list(itertools.islice(stream, count))


def first_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> int:
    pairs = enumerate(zip(one, other, strict=True))
    return next(unit for unit, (a, b) in pairs if not torch.equal(a, b))


def test_a_function_is_asked_before_each_unit(model: PyramidDiTForVideoGeneration) -> None:
    asked: list[int] = []

    def ask(unit: int) -> str | None:
        asked.append(unit)
        return {2: SQUARE, 4: CIRCLE}.get(unit)

    live = units(model.live(CIRCLE, next_prompt=ask, **OPTIONS), 6)
    assert asked == [0, 1, 2, 3, 4, 5]
    plain = units(model.stream(CIRCLE, seconds=math.inf, **OPTIONS), 6)
    assert first_difference(live, plain) == 2
    # where both have an end, it is the storyboard with the same prompts
    story = {0: CIRCLE, 2: SQUARE, 4: CIRCLE}
    told = model.generate(prompts=story, temp=6, **OPTIONS)
    steered = model.generate(CIRCLE, next_prompt=ask, temp=6, **OPTIONS)
    assert torch.equal(told, steered)


@pytest.mark.parametrize("kind", [queue.Queue, queue.SimpleQueue])
def test_a_queue_changes_the_next_unit_and_its_newest_prompt_counts(
    model: PyramidDiTForVideoGeneration, kind: Any
) -> None:
    prompts = kind()
    plain = units(model.stream(CIRCLE, seconds=math.inf, **OPTIONS), 4)
    stream = model.live(CIRCLE, next_prompt=prompts, **OPTIONS)
    made = units(stream, 2)
    prompts.put("a red square")
    prompts.put(SQUARE)
    made += units(stream, 2)
    assert prompts.empty() and first_difference(made, plain) == 2
    told = units(model.live(CIRCLE, next_prompt={2: SQUARE}.get, **OPTIONS), 4)
    assert all(torch.equal(a, b) for a, b in zip(made, told, strict=True))


def test_a_word_put_in_while_a_unit_is_made_shows_in_the_next(
    model: PyramidDiTForVideoGeneration,
) -> None:
    prompts: queue.Queue[str] = queue.Queue()

    def on_step(_: Any, step: int, *__: Any) -> None:
        if step == 3:  # the first of unit 1
            prompts.put(SQUARE)

    plain = units(model.stream(CIRCLE, seconds=math.inf, **OPTIONS), 4)
    live = model.live(CIRCLE, next_prompt=prompts, callback_on_step_end=on_step, **OPTIONS)
    assert first_difference(units(live, 4), plain) == 2


def test_several_videos_follow_one_prompt_or_one_each(model: PyramidDiTForVideoGeneration) -> None:
    both = {"seed": [3, 4], "output_type": "latent", "num_images_per_prompt": 1}
    pair = [CIRCLE, SQUARE]
    for said, expected in ((SQUARE, [SQUARE, SQUARE]), (pair[::-1], pair[::-1])):
        made = units(model.live(pair, next_prompt={1: said}.get, **both), 2)[1]
        told = units(model.live(pair, next_prompt={1: expected}.get, **both), 2)[1]
        assert torch.equal(made, told)
    with pytest.raises(ValueError, match="each of 2 videos, got 3"):
        units(model.live(pair, next_prompt=lambda unit: [*pair, CIRCLE], **both), 1)


@pytest.mark.parametrize(("said", "error"), [("  ", ValueError), (3, TypeError)])
def test_what_is_no_prompt_is_refused(
    model: PyramidDiTForVideoGeneration, said: Any, error: type[Exception]
) -> None:
    stream = model.live(CIRCLE, next_prompt={1: said}.get, **OPTIONS)
    units(stream, 1)
    with pytest.raises(error, match="prompt"):
        next(stream)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "next_prompt is needed"),
        ({"next_prompt": SQUARE}, TypeError, "a function or a queue, got 'a blue square'"),
        ({"next_prompt": print, "temp": 3}, TypeError, "temp"),
        ({"next_prompt": print, "seconds": -1}, ValueError, "seconds must be above 0"),
        ({"next_prompt": print, "prompt": None}, ValueError, "a prompt is needed"),
    ],
)
def test_what_live_takes(
    model: PyramidDiTForVideoGeneration, arguments: dict[str, Any], error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        model.live(**{"prompt": CIRCLE} | arguments)
    with pytest.raises(ValueError, match="either prompts or next_prompt"):
        model.stream(prompts={0: CIRCLE}, next_prompt=print, temp=2)


def test_words_that_were_never_learned_are_told(
    model: PyramidDiTForVideoGeneration, caplog: pytest.LogCaptureFixture
) -> None:
    units(model.live(CIRCLE, next_prompt={1: "a blue whale"}.get, **OPTIONS), 2)
    assert [r.getMessage().partition(" (")[0] for r in caplog.records] == [
        "the checkpoint never learned the words: whale"
    ]


def test_a_live_video_resumes_with_its_last_prompt(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    steer = {1: SQUARE, 7: CIRCLE}.get
    whole = units(model.live(CIRCLE, next_prompt=steer, **OPTIONS), 9)
    stream = model.live(CIRCLE, next_prompt=steer, **OPTIONS)
    units(stream, 6)
    stream.save_latents(tmp_path / "run")
    resumed = model.stream_v2v(resume=tmp_path / "run", next_prompt=steer, output_type="latent")
    rest = units(resumed, 4)[1:]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[6:], strict=True))


def test_a_live_video_may_have_an_end(model: PyramidDiTForVideoGeneration) -> None:
    made = list(model.live(CIRCLE, next_prompt=print, seconds=1, seed=3))
    assert [len(frames) for frames in made] == [1, 8, 8, 8]


def test_without_a_text_encoder_there_are_no_new_words(
    model: PyramidDiTForVideoGeneration,
) -> None:
    with torch.no_grad():
        text = model.text_encoder([CIRCLE, ""])
    names = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
    encoded: dict[str, Any] = {name: x[:1] for name, x in zip(names, text, strict=True)}
    encoded |= {f"negative_{name}": x[1:] for name, x in zip(names, text, strict=True)}
    made = units(model.live(**encoded, next_prompt={1: SQUARE}.get, **OPTIONS), 2)
    told = units(model.live(CIRCLE, negative_prompt="", next_prompt={1: SQUARE}.get, **OPTIONS), 2)
    assert first_difference(made, [*told[:1], made[1] + 1]) == 1 and torch.equal(*made[1:], told[1])
    encoder, model.text_encoder = model.text_encoder, None
    try:
        with pytest.raises(ValueError, match="no text encoder"):
            model.live(**encoded, next_prompt=print, **OPTIONS)
    finally:
        model.text_encoder = encoder
