"""The judge is right about drawn clips, and hard on everything else; tables and prompts."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from trainer_misc.toy import evaluation
from trainer_misc.toy.evaluation import WAYS, evaluation_prompts, readings
from trainer_misc.toy.judge import ATTRIBUTES, judge
from trainer_misc.toy.moving_shapes import (
    MOTIONS,
    SHAPES,
    attributes_of,
    caption_of,
    combination_of,
    combinations,
    described,
    draw_clip,
    is_held_out,
    render_uint8,
)
from trainer_misc.toy.tables import contact_sheet, evaluate_frames
from trainer_misc.toy.ways import former_sentence
from video_vae.round_trip import psnr

SOME = range(2, 504, 11)  # every attribute and most pairs


def drawn(number, frames=range(49), seed=0):
    """Frames and caption of a clip, of a combination or its number."""
    what = attributes_of(number) if isinstance(number, int) else number
    clip = draw_clip(what, np.random.default_rng([seed, *what.caption.encode()]))
    return render_uint8(clip, frames), clip.caption


def spoiled(frames, sigma=8.0):
    """Blur by a pixel and add noise, as a mediocre autoencoder does."""
    rng = np.random.default_rng(0)
    soft = [np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(1))) for f in frames]
    return (np.stack(soft) + rng.normal(0, sigma, frames.shape)).clip(0, 255).astype(np.uint8)


def test_drawn_clips_are_judged_right():
    wrong = {caption for frames, caption in map(drawn, SOME) if not judge(frames).matches(caption)}
    assert not wrong


def test_blurred_and_noisy_clips_are_judged_right():
    wrong = {
        caption
        for frames, caption in map(drawn, SOME[::3])
        if not judge(spoiled(frames)).matches(caption)
    }
    assert not wrong


@pytest.mark.parametrize("word", ["star", "cyan"])
def test_new_words_are_judged_right(word):
    some = combinations(word)[::5]
    wrong = {c for frames, c in map(drawn, some) if not judge(frames).matches(c)}
    wrong |= {c for frames, c in map(drawn, some[::4]) if not judge(spoiled(frames)).matches(c)}
    assert not wrong


def test_a_polygon_between_star_and_circle_has_no_shape():
    y, x = np.mgrid[:128, :128] - 63.5
    sides = [np.cos(turn) * x + np.sin(turn) * y < 30 for turn in np.arange(5) * 2 * np.pi / 5]
    frame = np.where(np.all(sides, 0)[..., None], (220, 30, 30), 255).astype(np.uint8)
    assert judge(np.stack([frame] * 3)).shape not in ("star", "square", "triangle", "cross")


def test_one_second_is_enough_and_pil_frames_will_do():
    for number in SOME[::4]:
        frames, caption = drawn(number, range(72, 97))
        assert judge([Image.fromarray(frame) for frame in frames]).matches(caption)
        assert judge(frames.astype(np.float32) / 255).matches(caption)


def test_other_sizes_are_judged_alike():
    for number in SOME[::4]:
        clip = draw_clip(number, np.random.default_rng(number), 192)
        assert judge(render_uint8(clip, range(0, 25))).matches(clip.caption)


def test_only_the_caption_shown_agrees():
    number = combination_of("a blue triangle moves up on a gray background")
    verdict = judge(drawn(number)[0])
    assert [n for n in range(504) if verdict.matches(caption_of(n))] == [number]
    other = verdict.agreement("a blue cross moves up on a black background")
    assert other == {"color": True, "background": False, "motion": True, "shape": False}


def test_blank_frames_show_nothing_but_a_background():
    verdict = judge(np.full((17, 128, 128, 3), 255, np.uint8))
    assert verdict.background == "white"
    assert verdict.color is verdict.shape is verdict.motion is None


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (9, 128, 128, 3)).astype(np.uint8)
    assert judge(noise).shape is None
    assert judge(noise).color is None


def test_several_objects_have_no_shape():
    for shape in range(len(SHAPES)):
        frames, _ = drawn(shape * 21 + 12)
        half = frames[:, ::2, ::2]
        two = np.full_like(frames, 255)
        two[:, :64, :64] = two[:, 64:, 64:] = half
        assert judge(two).shape is None


def test_a_ring_and_a_strip_have_no_shape():
    y, x = np.mgrid[:128, :128] - 63.5
    ring = (np.hypot(x, y) < 30) & (np.hypot(x, y) > 15)
    strip = (np.abs(x) < 30) & (np.abs(y) < 15)
    for mask in (ring, strip):
        frame = np.where(mask[..., None], (220, 30, 30), 255).astype(np.uint8)
        verdict = judge(np.stack([frame] * 9))
        assert verdict.shape is None
        assert (verdict.color, verdict.motion) == ("red", "stays still")


def test_two_colors_are_no_color():
    frames, _ = drawn(combination_of("a red square stays still on a black background"))
    middle = int(np.flatnonzero((frames[0, ..., 0] > 100).any(0)).mean())
    frames[:, :, middle:] = frames[:, :, middle:, ::-1]
    verdict = judge(frames)
    assert verdict.color is None
    assert verdict.shape == "square"


def test_a_colored_background_has_no_name():
    frames, _ = drawn(0)
    frames[..., 2] //= 4
    assert judge(frames).background is None


@pytest.mark.parametrize("motion", range(len(MOTIONS)), ids=MOTIONS)
def test_motion_is_seen_in_the_order_of_the_frames(motion):
    backward = {"moves left": "moves right", "moves up": "moves down", "grows": "shrinks"}
    backward |= {value: key for key, value in backward.items()} | {"stays still": "stays still"}
    frames, _ = drawn(motion * 3 + 1)
    assert judge(frames[::-1]).motion == backward[MOTIONS[motion]]
    assert judge(np.repeat(frames[:1], 49, 0)).motion == "stays still"


def test_jumps_are_no_motion():
    frames, _ = drawn(combination_of("a green circle moves right on a white background"))
    frames = np.concatenate([frames[:1].repeat(24, 0), np.roll(frames[:1], 30, 2).repeat(24, 0)])
    assert judge(frames).motion is None


def test_an_object_that_comes_and_goes_has_no_motion():
    frames, _ = drawn(combination_of("a green circle stays still on a white background"))
    frames[::3] = 255
    verdict = judge(frames)
    assert verdict.motion is None
    assert verdict.shape == "circle"


def test_frames_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"\(9, 128, 128\)"):
        judge(np.zeros((9, 128, 128), np.uint8))


def test_table_counts_trained_and_held_out_apart():
    blank = np.full((9, 128, 128, 3), 255, np.uint8)
    held_out, trained = caption_of(3), caption_of(0)  # both on white
    table = evaluate_frames(
        [(drawn(3)[0], held_out), (blank, held_out), (drawn(0)[0], trained), (blank, trained)] * 2
        + [(drawn(0)[0], trained)] * 2
    )
    assert table.rate("held-out", "background") == 1
    assert table.rate("held-out", "shape") == 0.5
    assert table.rate("trained", "all") == pytest.approx(4 / 6)
    assert table.rate("all clips", "color") == pytest.approx(6 / 10)
    lines = table.markdown().splitlines()
    assert lines[0] == "| clips | number | color | background | motion | shape | all four |"
    assert lines[2] == "| trained | 6 | 67% | 100% | 67% | 67% | 67% |"
    assert lines[3].startswith("| held-out | 4 | 50% | 100% |")
    assert lines[4].startswith("| all clips | 10 | 60% |")
    with pytest.raises(ValueError, match="'none'"):
        table.rate("none", "color")


def test_table_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no clips"):
        evaluate_frames([])


def test_prompts_are_half_held_out_and_spread():
    prompts = evaluation_prompts()
    assert prompts == evaluation_prompts()
    assert prompts != evaluation_prompts(seed=1)
    assert len(set(prompts)) == 100
    numbers = [combination_of(prompt) for prompt in prompts]
    assert sum(map(is_held_out, numbers)) == 50
    for split in (True, False):
        chosen = [attributes_of(number) for number in numbers if is_held_out(number) == split]
        for attribute in ATTRIBUTES:
            counts = np.unique([getattr(what, attribute) for what in chosen], return_counts=True)[1]
            values = {"color": 6, "background": 3, "motion": 7, "shape": 4}[attribute]
            assert len(counts) == values
            assert counts.min() >= 0.6 * 50 / values
    few = evaluation_prompts(7)
    assert len(set(few)) == 7
    with pytest.raises(ValueError, match="count is 505"):
        evaluation_prompts(505)


def test_prompts_may_have_some_shapes_only():
    prompts = evaluation_prompts(192, shapes=("circle", "square"))
    assert {described(prompt).shape for prompt in prompts} == {"circle", "square"}
    assert len({*prompts}) == 192
    assert evaluation_prompts(shapes=SHAPES) == evaluation_prompts()
    with pytest.raises(ValueError, match=r"1\.\.252"):
        evaluation_prompts(253, shapes=("circle", "square"))


@pytest.mark.parametrize(("word", "count", "held_out"), [("star", 100, 42), ("cyan", 84, 28)])
def test_prompts_with_a_new_word_have_it_and_are_held_out_as_far_as_possible(word, count, held_out):
    prompts = evaluation_prompts(count, new_word=word)
    assert len(set(prompts)) == count and all(f" {word} " in prompt for prompt in prompts)
    assert sum(described(prompt).is_held_out for prompt in prompts) == held_out
    assert [described(p).is_held_out for p in evaluation_prompts(6, new_word=word)] == [0, 1] * 3
    with pytest.raises(ValueError, match="'pink'"):
        evaluation_prompts(1, new_word="pink")


def test_psnr():
    zeros = np.zeros((4, 8, 8, 3), np.uint8)
    assert psnr(zeros + 255, zeros) == pytest.approx(0)
    assert psnr(zeros + 1, zeros) == pytest.approx(48.13, abs=0.01)
    assert psnr(zeros, zeros) == float("inf")
    one = np.zeros((2, 2), np.float32)
    assert psnr(one + 0.1, one, peak=1.0) == pytest.approx(20)
    with pytest.raises(ValueError, match="shape"):
        psnr(one, one[:1])


class PerfectPipeline:
    """Draws what the prompt says, in place of a model."""

    def clips(self, prompt, temp, generator):
        frames = range(8 * (temp - 1) + 1)
        rngs = [np.random.default_rng(g.initial_seed()) for g in generator]
        return [
            render_uint8(draw_clip(described(text), rng), frames)
            for text, rng in zip(prompt, rngs, strict=True)
        ]

    def generate(self, prompt=None, *, temp, generator, output_type, prompts=None):
        assert output_type == "np"
        if prompts is None:
            return self.clips(prompt, temp, generator)
        (start, before), (unit, after) = sorted(prompts.items())
        assert start == 0 and before == [former_sentence(text) for text in after]
        frames = 8 * unit - 7
        parts = [self.clips(texts, temp, generator) for texts in (before, after)]
        return [np.concatenate([a[:frames], b[frames:]]) for a, b in zip(*parts, strict=True)]

    def generate_v2v(self, prompt, *, video, temp, generator, output_type):
        assert output_type == "np" and video.shape == (25, 128, 128, 3)
        return [clip[1:] for clip in self.clips(prompt, temp + 1, generator)]

    def generate_i2v(self, prompt, *, input_image, temp, generator, output_type):
        assert len(input_image) == len(prompt)
        assert {image.size for image in input_image} == {(128, 128)}
        return self.clips(prompt, temp, generator)


def test_command_line_measures_a_perfect_model(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(evaluation, "_load_model", lambda *_, fast: PerfectPipeline())
    monkeypatch.setattr(evaluation, "_load_vae", lambda *_, fast: IdentityVAE())
    output, sheet = tmp_path / "table.json", tmp_path / "sheet.png"
    arguments = ["--prompts", "6", "--batch-size", "4", "--num-frames", "41", "--mode", "all"]
    arguments += ["--new-word", "star"]
    evaluation.main([*arguments, "--output", str(output), "--contact-sheet", str(sheet)])
    result = json.loads(output.read_text())
    clips = {mode + word for mode in WAYS for word in ("", "_star")}
    assert set(result) == clips | {"vae", "vae_any_color", "vae_star"}
    for table in result["vae_star"].values():
        assert table["rates"]["held-out"] == dict.fromkeys((*ATTRIBUTES, "all"), 1.0)
    for mode in clips:
        assert result[mode]["rates"]["all clips"]["all"] == 1
        assert len(result[mode]["clips"]) == 6
        assert Image.open(tmp_path / f"sheet-{mode}.png").width > 300
    assert result["vae"]["psnr"] > 45 and result["vae_any_color"]["psnr"] > 45
    assert "6 of 6" in caplog.text


def test_what_a_vae_loses_shows_in_the_readings():
    prompts = [
        "a red star grows on a white background",
        "a blue star moves up on a gray background",
    ]
    tables = readings(RedVAE(), prompts, num_frames=17)
    assert tables["drawn"].rate("all clips", "all") == 1
    lost = tables["through the VAE"]
    assert (lost.rate("all clips", "color"), lost.rate("all clips", "shape")) == (0.5, 1)


class IdentityVAE:
    """An autoencoder without a bottleneck, but for a small offset."""

    device, dtype = torch.device("cpu"), torch.float32

    def encode(self, video, **_):
        self.video = video
        return type("Output", (), {"latent_dist": self})

    def mode(self):
        return self.video

    def decode(self, latents, **_):
        return type("Output", (), {"sample": latents + 0.004})


class RedVAE(IdentityVAE):
    """Red and blue change places where they differ much."""

    def decode(self, latents, **_):
        return type(
            "Output",
            (),
            {
                "sample": torch.where(
                    (latents[:, 2:] - latents[:, :1]) > 0.5, latents.flip(1), latents
                )
            },
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-frames", "50"], "num-frames is 50"),
        (["--num-frames", "25", "--mode", "extend"], "num-frames is 25, must be above 25"),
        (["--num-frames", "9", "--mode", "all"], "num-frames is 9, must be above 25"),
        (["--prompts", "0"], "prompts is 0"),
        (["--batch-size", "0"], "batch-size is 0"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_command_line_names_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_contact_sheet_shows_every_clip():
    clips = [drawn(number, range(9)) for number in (0, 100)]
    table = evaluate_frames(clips)
    sheet = contact_sheet([frames for frames, _ in clips], table, columns=3)
    assert sheet.width > 3 * 64 and sheet.height > 2 * 64
