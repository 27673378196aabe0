"""The text encoders against `transformers` used by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import POOLED_DIM, TEXT_DIM, write_tiny_checkpoint

from pyramid_dit import FluxTextEncoderWithMask, SD3TextEncoderWithMask
from pyramid_dit.models.text_encoder import T5_LENGTH, TextPart, _tokenize

ENCODERS = {"pyramid_flux": FluxTextEncoderWithMask, "pyramid_mmdit": SD3TextEncoderWithMask}
CLIPS = {"pyramid_flux": [""], "pyramid_mmdit": ["", "_2"]}
T5 = {"pyramid_flux": "_2", "pyramid_mmdit": "_3"}
PROMPTS = ["a red circle", "a blue square moves left on a white background"]
LONG_PROMPT = "a red circle " * 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("text")
    return {name: write_tiny_checkpoint(folder / name, name) for name in ENCODERS}


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_embeddings_and_pooled(name: str, folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection
    from transformers import T5EncoderModel as T5Model

    folder = folders[name]
    embeds, mask, pooled = ENCODERS[name](folder)(PROMPTS, "cpu")

    expected = []
    for suffix in CLIPS[name]:
        tokenizer = AutoTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        tokens = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
        path = folder / f"text_encoder{suffix}"
        if name == "pyramid_flux":
            expected.append(CLIPTextModel.from_pretrained(path)(tokens.input_ids).pooler_output)
        else:
            model = CLIPTextModelWithProjection.from_pretrained(path)
            expected.append(model(tokens.input_ids).text_embeds)
    torch.testing.assert_close(pooled, torch.cat(expected, dim=1))
    assert pooled.shape == (2, POOLED_DIM * len(expected))

    assert embeds.shape == (2, T5_LENGTH, TEXT_DIM) and mask.shape == (2, T5_LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(folder / f"tokenizer{T5[name]}")
    model = T5Model.from_pretrained(folder / f"text_encoder{T5[name]}")
    for row, prompt in enumerate(PROMPTS):  # alone and without padding
        tokens = tokenizer(prompt, return_tensors="pt").input_ids
        length = tokens.shape[1]
        assert mask[row].tolist() == [1] * length + [0] * (T5_LENGTH - length)
        torch.testing.assert_close(embeds[row, :length], model(tokens).last_hidden_state[0])


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_text_without_padding_is_the_same_text(name: str, folders: dict[str, Path]) -> None:
    encoder = ENCODERS[name](folders[name])
    embeds, mask, pooled = encoder([*PROMPTS, ""], padded=False)
    whole_embeds, whole_mask, whole_pooled = encoder([*PROMPTS, ""])
    longest = int(whole_mask.sum(dim=1).max())
    assert mask.shape == (3, longest) and longest < T5_LENGTH
    assert torch.equal(mask, whole_mask[:, :longest]) and torch.equal(pooled, whole_pooled)
    real = mask.bool()
    torch.testing.assert_close(embeds[real], whole_embeds[:, :longest][real])


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_empty_and_long_prompts(name: str, folders: dict[str, Path]) -> None:
    encoder = ENCODERS[name](folders[name])
    embeds, mask, pooled = encoder(["", LONG_PROMPT])
    assert mask[0].sum() >= 1  # the end of the text
    assert mask[1].all()
    assert all(tensor.isfinite().all() for tensor in (embeds, pooled))
    single = encoder("")
    torch.testing.assert_close(single.pooled_prompt_embeds, pooled[:1])


def test_dtype(folders: dict[str, Path]) -> None:
    encoder = FluxTextEncoderWithMask(folders["pyramid_flux"], torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert not encoder.training or not any(module.training for module in encoder.children())


def test_gradients_reach_both_encoders(folders: dict[str, Path]) -> None:
    encoder = FluxTextEncoderWithMask(folders["pyramid_flux"])
    embeds, mask, pooled = encoder(PROMPTS)
    (embeds[mask.bool()].square().sum() + pooled.square().sum()).backward()
    for part in (encoder.text_encoder, encoder.text_encoder_2):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_a_missing_part(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="text_encoder"):
        FluxTextEncoderWithMask(tmp_path)


def test_a_prompt_that_t5_cuts_is_said_to_be_cut(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = FluxTextEncoderWithMask(folders["pyramid_flux"])
    with torch.no_grad():
        encoder(PROMPTS)
        assert caplog.text == ""
        encoder([PROMPTS[0], LONG_PROMPT])
    (record,) = caplog.records
    tokens = len(encoder.tokenizers["text_encoder_2"](LONG_PROMPT)["input_ids"])
    assert f"a prompt of {tokens} tokens is cut to {T5_LENGTH}" in record.getMessage()


GOLDEN = Path(
    os.environ.get(
        "PYRAMID_FLOW_GOLDEN", Path(__file__).resolve().parents[2].parent / "shared/golden"
    ),
    "tokenizers",
)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden data")
def test_token_ids_are_the_references() -> None:
    golden = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
    for case in golden["cases"]:
        folder = GOLDEN / case["folder"]
        part = TextPart("", folder.name, "")
        tokens = _tokenize(part.load_tokenizer(folder.parent), golden["prompts"], case["length"])
        assert tokens["input_ids"].tolist() == case["input_ids"], case["folder"]
        assert tokens["attention_mask"].tolist() == case["attention_mask"], case["folder"]
