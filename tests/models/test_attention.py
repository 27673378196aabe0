"""Attention by spans against plain attention under a dense mask."""

import pytest
import torch
import torch.nn.functional as F

from pyramid_dit.models.attention import attend
from pyramid_dit.models.token_layout import (
    Grid,
    clip_grid,
    make_layout,
    pack_text,
    patchify,
    unpatchify,
)

HEADS, HEAD_DIM = 2, 8
GRIDS = {
    "one frame": (Grid(1, 2, 3),),
    "one clip": (Grid(4, 2, 2),),
    "history": (Grid(3, 1, 2), Grid(1, 2, 4), Grid(1, 4, 8)),
    "long last clip": (Grid(2, 1, 2), Grid(1, 2, 2), Grid(3, 2, 2)),
}
PADDINGS = {"none": (0, 0, 0), "some": (0, 0, 3), "all differ": (0, 2, 4), "shared": (3, 3, 3)}
TEXT = 5


def dense_mask(grids, paddings, *, causal):
    """True where a query (second to last axis) sees a key: the rule, token by token."""
    times = [0] * TEXT
    for frame, tokens in enumerate(g.height * g.width for g in grids for _ in range(g.frames)):
        times += [frame] * tokens
    times = torch.tensor(times)
    visible = times[None, :] <= times[:, None] if causal else torch.ones(len(times), len(times))
    real = torch.arange(len(times)) >= torch.tensor(paddings)[:, None]
    return visible.bool()[None, None] & real[:, None, None, :], real


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("paddings", PADDINGS.values(), ids=PADDINGS.keys())
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
def test_equals_attention_under_a_dense_mask(grids, paddings, causal):
    generator = torch.Generator().manual_seed(0)
    length = TEXT + sum(grid.tokens for grid in grids)
    shape = (len(paddings), length, HEADS, HEAD_DIM)
    q, k, v, weight = (torch.randn(shape, generator=generator) for _ in range(4))
    mask, real = dense_mask(grids, paddings, causal=causal)
    weight = weight * real[:, :, None, None]  # padding has no defined output

    results = []
    layout = make_layout(grids, TEXT, paddings, temporal_causal=causal)
    for run in (
        lambda q, k, v: attend(q, k, v, layout),
        lambda q, k, v: F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        ).transpose(1, 2),
    ):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        output = run(*inputs) * weight
        results.append((output, *torch.autograd.grad(output.sum(), inputs)))
    for ours, oracle in zip(*results, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", [None, 0, 2], ids=["none", "queries", "values"])
@pytest.mark.parametrize("grids", [GRIDS["one frame"], GRIDS["history"]], ids=["dense", "parts"])
def test_gradients_are_not_left_to_cudnn(monkeypatch, grids, trained):
    # seen on an H200: its backward pass reads memory that is not there
    seen, attention = [], F.scaled_dot_product_attention

    def watched(*args, **kwargs):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    length = TEXT + sum(grid.tokens for grid in grids)
    inputs = [torch.randn(1, length, HEADS, HEAD_DIM) for _ in range(3)]
    if trained is not None:
        inputs[trained].requires_grad_()
    attend(*inputs, make_layout(grids, TEXT, [0], temporal_causal=True))
    assert seen == [trained is None] * len(seen)
    assert seen
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_single_frame_without_padding_needs_no_parts():
    assert make_layout([Grid(1, 4, 4)], TEXT, [0, 0], temporal_causal=True).dense
    assert make_layout([Grid(3, 4, 4)], TEXT, [0, 0], temporal_causal=False).dense
    assert not make_layout([Grid(1, 4, 4)], TEXT, [0, 1], temporal_causal=True).dense
    assert not make_layout([Grid(2, 4, 4)], TEXT, [0, 0], temporal_causal=True).dense


def test_text_is_packed_to_the_right():
    states = torch.arange(1.0, 11.0).reshape(2, 5, 1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 0, 0]])
    packed, paddings = pack_text(states, mask)
    assert packed[..., 0].tolist() == [[1, 2, 3], [0, 0, 7]]
    assert paddings == [0, 2]


def test_padding_is_zeroed_even_where_it_was_nan():
    states = torch.full((2, 3, 1), torch.nan)
    states[0, :2], states[1, :1] = 1, 1
    packed, _ = pack_text(states, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert packed[..., 0].tolist() == [[1, 1], [0, 1]]


def test_patchify_and_back():
    clip = torch.randn(2, 3, 4, 6, 8)
    tokens = patchify(clip)
    assert tokens.shape == (2, 4 * 3 * 4, 12)
    assert tokens[1, 5].tolist() == clip[1, :, 0, 2:4, 2:4].permute(1, 2, 0).flatten().tolist()
    assert torch.equal(unpatchify(tokens, clip_grid(clip)), clip)
