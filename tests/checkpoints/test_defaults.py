"""What a checkpoint prefers: the one rule for size, length and guidance, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from golden import PROJECT_ROOT
from tiny_checkpoint import write_tiny_checkpoint

from pyramid_dit.checkpoints.defaults import GenerationDefaults
from pyramid_dit.checkpoints.folder import CheckpointFolder
from trainer_misc.toy.moving_shapes import combination_of


def of_variant(variant: str, **index: Any) -> GenerationDefaults:
    return GenerationDefaults.of(index, f"diffusion_transformer_{variant}")


@pytest.mark.parametrize(
    ("variant", "size", "frames"),
    [("384p", (640, 384), 121), ("768p", (1280, 768), 121), ("image", (1024, 1024), 1)],
)
def test_a_silent_checkpoint_prefers_what_its_variant_was_released_for(
    variant: str, size: tuple[int, int], frames: int
) -> None:
    defaults = of_variant(variant)
    assert defaults.size() == size
    assert defaults.frames() == frames
    assert (defaults.guidance_scale, defaults.frames_per_second) == (7.0, 24)
    assert defaults.num_inference_steps == defaults.video_num_inference_steps == 28


def test_what_the_checkpoint_says_comes_before_the_variant() -> None:
    defaults = of_variant("image", width=96, height=64, num_frames=17)
    assert (defaults.size(), defaults.frames()) == ((96, 64), 17)


def test_a_checkpoint_that_says_no_size() -> None:
    defaults = of_variant("of_mine")
    assert defaults.frames() == 121
    with pytest.raises(ValueError, match="does not say which size"):
        defaults.size()
    with pytest.raises(ValueError, match="does not say which size"):
        of_variant("768p", height=64).size()  # half a size is not completed by another


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (None, (640, 384)),
        ((1920, 1080), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((500, 500), (640, 384)),
    ],
)
def test_the_size_lies_or_stands_as_what_the_video_starts_from(
    start: tuple[int, int] | None, size: tuple[int, int]
) -> None:
    assert of_variant("384p").size(start) == size


@pytest.mark.parametrize(("num_frames", "added"), [(None, 120), (97, 96), (9, 8), (1, 8)])
def test_a_video_goes_on_by_a_whole_length_but_its_first_frame(
    num_frames: int | None, added: int
) -> None:
    assert GenerationDefaults(num_frames=num_frames).added_frames() == added


def test_guidance_of_later_frames_by_what_a_video_starts_from() -> None:
    released = GenerationDefaults()
    assert [released.video_guidance(mode) for mode in ("text", "image", "extend")] == [7, 4, 4]
    said = GenerationDefaults(video_guidance_scale=0.0)
    assert [said.video_guidance(mode) for mode in ("text", "image", "extend")] == [0, 0, 0]


def test_what_is_saved_is_read_again() -> None:
    defaults = of_variant("384p", num_inference_steps=[4, 5, 6], prompt_suffix="", guidance_scale=3)
    assert GenerationDefaults.of(json.loads(json.dumps(asdict(defaults)))) == defaults


def test_entries_that_are_no_defaults_are_left_alone() -> None:
    assert GenerationDefaults.of({"_class_name": "Other", "min_guidance": 2}) == (
        GenerationDefaults()
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_inference_steps", "many", "num_inference_steps must be an integer, got 'many'"),
        ("num_inference_steps", True, "num_inference_steps must be an integer, got True"),
        ("video_num_inference_steps", [4, 0, 4], "video_num_inference_steps must be at least 1"),
        ("guidance_scale", float("nan"), "guidance_scale must be a number, got nan"),
        ("guidance_scale", None, "guidance_scale must be a number, got None"),
        ("video_guidance_scale", float("inf"), "video_guidance_scale must be at most 100, got inf"),
        ("height", 64.5, "height must be an integer, got 64.5"),
        ("width", 0, "width must be at least 1, got 0"),
        ("num_frames", 10**6, "num_frames must be at most 100,000, got 1000000"),
        ("frames_per_second", 0, "frames_per_second must be above 0, got 0"),
        ("prompt_suffix", 7, "prompt_suffix must be a string, got 7"),
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_bad_values_are_refused_with_file_key_and_value(
    tmp_path: Path, key: str, value: Any, message: str, saved: bool
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    index: dict[str, Any] = {key: value}
    if saved:  # in the layout of diffusers
        (folder / "diffusion_transformer_768p").rename(folder / "transformer")
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text("{}")
        index = {"_class_name": "PyramidFlowPipeline", "generation_defaults": index}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError) as refused:
        CheckpointFolder.open(folder)
    assert str(refused.value).startswith(f"{folder / 'model_index.json'}: {message}")


def test_words_that_a_checkpoint_never_learned() -> None:
    some = GenerationDefaults.of({"known_words": ["a", "red", "Circle"]})
    assert some.unknown_words(["A red circle, a CAT", "a cat on the beach"]) == [
        *("cat", "on", "the", "beach")
    ]
    assert GenerationDefaults().unknown_words(["a cat"]) == []
    for value in ("a red circle", [1], 3):
        with pytest.raises(TypeError, match="known_words must be a list of words"):
            GenerationDefaults.of({"known_words": value})


def test_the_sentence_that_a_checkpoint_knows() -> None:
    parts = ["a", {"color": ["red", "blue"]}, "circle", {"motion": ["grows", "moves left"]}]
    some = GenerationDefaults.of({"known_sentence": parts})
    assert some.choices() == {"color": ["red", "blue"], "motion": ["grows", "moves left"]}
    assert some.sentence({"color": "red", "motion": "moves left"}) == "a red circle moves left"
    assert GenerationDefaults().choices() == {}
    for value in (
        "a",
        3,
        [3],
        [{}],
        [{"a": "b"}],
        [{"a": []}],
        [{"a": [1]}],
        [{"a": "b", "c": []}],
    ):
        with pytest.raises(TypeError, match="known_sentence must be a list of texts and of cho"):
            GenerationDefaults.of({"known_sentence": value})
    with pytest.raises(ValueError, match="name each choice differently, got a, a"):
        GenerationDefaults.of({"known_sentence": [{"a": ["b"]}, {"a": ["c"]}]})


def test_the_bundled_checkpoint_knows_the_captions_that_it_was_trained_on() -> None:
    defaults = CheckpointFolder.open(PROJECT_ROOT / "pyramid_dit" / "toy").defaults
    choices = defaults.choices()
    assert list(choices) == ["color", "shape", "motion", "background"]
    sentences = [
        defaults.sentence(dict(zip(choices, chosen, strict=True)))
        for chosen in product(*choices.values())
    ]
    assert [combination_of(sentence) for sentence in sentences] == list(range(504))
    assert defaults.unknown_words(sentences) == []
