"""Small transformers of both kinds, every weight of which matters, and inputs for them."""

import pytest
import torch
from torch import nn

from pyramid_dit.models.flux import PyramidFluxTransformer
from pyramid_dit.models.mmdit import PyramidDiffusionMMDiT

CHANNELS, TEXT_DIM, POOLED_DIM = 4, 6, 5
SMALL = {
    PyramidFluxTransformer: {
        "in_channels": 4 * CHANNELS,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 3,
        "joint_attention_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED_DIM,
        "axes_dims_rope": [4, 2, 2],
    },
    PyramidDiffusionMMDiT: {
        "sample_size": 16,
        "in_channels": CHANNELS,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 3,
        "caption_projection_dim": 24,
        "joint_attention_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED_DIM,
        "pos_embed_max_size": 12,
    },
}
both_models = pytest.mark.parametrize("model_class", SMALL, ids=lambda model: model.__name__)


def small_model(model_class, **changes):
    """A model whose every weight matters: a fresh one predicts zeros."""
    model = model_class(**SMALL[model_class] | changes)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_scale = name.endswith(".weight") and parameter.ndim == 1
        nn.init.normal_(parameter, mean=float(is_scale), std=0.2, generator=generator)
    return model


def small_inputs(*, batch=2, text_length=5, entries=None, seed=1):
    """One stage entry with a history of two clips by default."""
    generator = torch.Generator().manual_seed(seed)
    entries = entries or [[(2, 2, 4), (1, 4, 8), (1, 4, 8)]]
    rows = batch * len(entries)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "sample": [[normal(batch, CHANNELS, *clip) for clip in clips] for clips in entries],
        "encoder_hidden_states": normal(rows, text_length, TEXT_DIM),
        "encoder_attention_mask": torch.ones(rows, text_length, dtype=torch.long),
        "pooled_projections": normal(rows, POOLED_DIM),
        "timestep_ratio": torch.rand(rows, generator=generator) * 1000,
    }
