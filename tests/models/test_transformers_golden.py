"""Both transformers against recorded outputs of the reference, strict loading included."""

import pytest
import torch
from golden import golden_cases, load_golden, relative_error

from pyramid_dit.models.flux import PyramidFluxTransformer
from pyramid_dit.models.mmdit import PyramidDiffusionMMDiT

MODELS = {model.__name__: model for model in (PyramidFluxTransformer, PyramidDiffusionMMDiT)}
CASES = [
    (topic, index, case)
    for topic in ("flux", "mmdit")
    for index, case in golden_cases(topic, "cases")
]


@pytest.mark.parametrize(("topic", "index", "case"), CASES)
def test_forward_golden(topic, index, case):
    description, tensors = load_golden(topic)
    model = MODELS[description["class"]](**description["config"] | case.get("override", {}))
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if "pos_embed.pos_embed" in weights:
        fresh = model.pos_embed.pos_embed
        assert relative_error(fresh, weights["pos_embed.pos_embed"]) < 1e-6
    model.load_state_dict(weights, strict=True)

    sample = [
        [tensors[f"{index}.sample.{p}.{c}"] for c in range(len(clips))]
        for p, clips in enumerate(case["clips"])
    ]
    with torch.no_grad():
        outputs = model(
            sample,
            tensors[f"{index}.encoder_hidden_states"],
            tensors[f"{index}.encoder_attention_mask"],
            tensors[f"{index}.pooled_projections"],
            timestep_ratio=tensors[f"{index}.timestep"],
        )
    assert len(outputs) == len(case["clips"])
    for p, output in enumerate(outputs):
        assert relative_error(output, tensors[f"{index}.output.{p}"]) < 2e-5
