"""The training tools: optimizers, the words of the default checkpoint, its model card."""

import json

import pytest
import torch
from tiny_checkpoint import VAE_CONFIG
from torch import nn

from trainer_misc.optimization import (
    Muon,
    learning_rate,
    muon_groups,
    orthogonalize,
    parameter_groups,
)
from trainer_misc.toy import model_card
from trainer_misc.toy.moving_shapes import NUM_COMBINATIONS, caption_of
from trainer_misc.toy.text import caption_words, write_text_encoders
from video_vae import CausalVideoVAE

# ---- optimization ---------------------------------------------------------------------------


def test_schedules_warm_up_and_come_down():
    def rates(schedule, **options):
        options = {"steps": 100, "peak": 2.0, "warmup": 10, "cooldown": 20} | options
        return [learning_rate(s, schedule=schedule, **options) for s in (0, 3, 9, 50, 90, 100)]

    third = pytest.approx(2 / 3)
    assert rates("constant") == [0, third, 2, 2, 2, 2]
    assert rates("constant", start=1.0)[:3] == [1, pytest.approx(4 / 3), 2]
    assert rates("constant", warmup=1)[0] == 2
    assert rates("trapezoid") == [0, third, 2, 2, 1, 0]
    cosine = rates("cosine")
    assert cosine[:3] == [0, third, 2] and cosine[3] > cosine[4] > cosine[5] == pytest.approx(0)
    assert rates("cosine", least=0.5)[5] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="constant, cosine, trapezoid, got 'linear'"):
        learning_rate(50, steps=100, peak=1.0, schedule="linear")


def test_only_matrices_are_decayed():
    matrices, vectors = parameter_groups([nn.Linear(3, 2), nn.LayerNorm(4)], 0.1)
    assert [p.ndim for p in matrices["params"]] == [2] and matrices["weight_decay"] == 0.1
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1] and vectors["weight_decay"] == 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 12), (1, 12, 4), (3, 5, 7)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.5 and values.max() < 1.3


def test_muon_fits_a_linear_map():
    torch.manual_seed(0)
    model, target = nn.Linear(6, 6), nn.Linear(6, 6)
    optimizer = Muon(muon_groups([model.weight], [model], 0.0), lr=0.05)
    x = torch.randn(64, 6)
    losses = []
    for _ in range(150):
        loss = (model(x) - target(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_what_is_no_hidden_matrix_is_trained_as_by_adamw():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    betas = (0.9, 0.99)
    ours = Muon(muon_groups([], [models[0]], 0.1), lr=0.02, betas=betas)
    reference = torch.optim.AdamW(parameter_groups([models[1]], 0.1), lr=0.02, betas=betas)
    for step in range(4):
        x = torch.randn(16, 4)
        for model, optimizer in zip(models, (ours, reference), strict=True):
            optimizer.zero_grad()
            loss = model(x).sin().square().mean()
            loss.backward()
            if step == 0:  # gets its first gradient later, and counts its own steps
                model[0].bias.grad = None
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)


# ---- text and the model card --------------------------------------------------------------


def test_the_tokenizers_know_every_word_of_the_captions(tmp_path):
    from transformers import AutoTokenizer

    write_text_encoders(tmp_path)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        for word in caption_words():
            assert len(tokenizer.tokenize(word)) == 1, (name, word)
        ids = {tuple(tokenizer(caption_of(n))["input_ids"]) for n in range(NUM_COMBINATIONS)}
        assert len(ids) == NUM_COMBINATIONS
        assert tokenizer("A RED CIRCLE")["input_ids"] == tokenizer("a red circle")["input_ids"]


def test_the_model_card_tells_the_measured_figures(tmp_path):
    vae = CausalVideoVAE(**VAE_CONFIG)
    vae.save_pretrained(tmp_path / "causal_video_vae")
    rates = {"color": 1.0, "background": 0.99, "motion": 0.5, "shape": 0.25, "all": 0.125}
    scores = {
        "vae": {"psnr": 33.333, "lowest_psnr": 30.0, "clips": 7},
        "vae_any_color": {"psnr": 31.25, "lowest_psnr": 28.0, "clips": 7},
        "t2v": {"rates": {"trained": rates}, "clips": [{}] * 3},
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    model_card.main(
        ["--checkpoint", str(tmp_path), "--scores", str(tmp_path / "scores.json")]
        + ["--training", "On a laptop."]
    )
    card = (tmp_path / "README.md").read_text()
    assert (
        "33.3 dB PSNR on 7 fresh clips" in card
        and "In any colors: 31.2 dB" in card
        and "On a laptop." in card
    )
    assert "Text to video, 49 frames, 3 clips" in card
    assert "| trained |" in card and " 25% |" in card and "12% |" in card
    parameters = sum(p.numel() for p in vae.parameters()) / 1e6
    assert f"| `causal_video_vae` | causal video VAE | {parameters:.2f} million |" in card
