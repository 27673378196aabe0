"""The VAE against recorded moments and reconstructions of the reference, loaded strictly."""

import pytest
import torch
from golden import golden_cases, load_golden, relative_error

from video_vae import CausalVideoVAE

CASES = golden_cases("vae", "cases")


@pytest.mark.parametrize(("index", "case"), CASES)
def test_encode_and_decode_golden(index, case):
    description, tensors = load_golden("vae")
    vae = CausalVideoVAE(**description["config"])
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    vae.load_state_dict(weights, strict=True)
    vae.enable_tiling(case.get("tiling", False))
    chunked = case.get("temporal_chunk", False)
    tile = case.get("tile_sample_min_size", 256)

    with torch.no_grad():
        posterior = vae.encode(
            tensors[f"{index}.input"],
            temporal_chunk=chunked,
            window_size=case.get("encode_window", 16),
            tile_sample_min_size=tile,
        ).latent_dist
        reconstruction = vae.decode(
            posterior.mode(),
            temporal_chunk=chunked,
            window_size=case.get("decode_window", 2),
            tile_sample_min_size=tile,
        ).sample

    assert relative_error(posterior.parameters, tensors[f"{index}.moments"]) < 2e-5
    assert relative_error(reconstruction, tensors[f"{index}.recon"]) < 2e-5
