"""Properties of the causal video VAE: contract, causality, streams, tiles, saving."""

import json

import pytest
import torch
import torch.nn.functional as F
from golden import PROJECT_ROOT, golden_dir
from torch import nn

from video_vae import CausalVideoVAE
from video_vae.causal_conv import CausalConv3d
from video_vae.posterior import DiagonalGaussian
from video_vae.temporal_context import Stream, WholeClip
from video_vae.tiling import map_tiles

SMALL = {
    "encoder_layers_per_block": [1, 1, 1, 1],
    "encoder_block_out_channels": [4, 4, 8, 8],
    "encoder_norm_num_groups": 2,
    "decoder_layers_per_block": [1, 1, 1, 1],
    "decoder_block_out_channels": [4, 4, 8, 8],
    "decoder_norm_num_groups": 2,
}


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return CausalVideoVAE(**SMALL).eval().requires_grad_(False)


def video(frames, height=32, width=32, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1


def latents(frames, height=4, width=4, *, seed=2):
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(seed))


def test_keys_and_shapes_of_the_released_architecture():
    folder = golden_dir()
    path = (folder.parent if folder else PROJECT_ROOT / "../shared") / "manifest.json"
    if not path.is_file():
        pytest.skip("no manifest of the released checkpoints")
    released = json.loads(path.read_text())["CausalVideoVAE"]
    with torch.device("meta"):
        model = CausalVideoVAE.from_config(released["config"])
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == released["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == released["parameters"]


def test_a_video_of_8n_plus_1_frames_has_n_plus_1_latents(vae):
    posterior = vae.encode(video(17, 32, 48)).latent_dist
    assert posterior.mode().shape == (1, 4, 3, 4, 6)
    assert vae.decode(posterior.mode()).sample.shape == (1, 3, 17, 32, 48)


def test_an_image_is_the_first_frame_of_a_video(vae):
    whole = video(9)
    alone = vae.encode(whole[:, :, :1]).latent_dist.parameters
    torch.testing.assert_close(alone, vae.encode(whole).latent_dist.parameters[:, :, :1])


def test_encoding_is_causal(vae):
    before = video(17)
    after = before.clone()
    after[:, :, 9:] += 1.0
    old, new = (vae.encode(x).latent_dist.parameters for x in (before, after))
    torch.testing.assert_close(old[:, :, :2], new[:, :, :2], rtol=0, atol=0)
    assert not torch.allclose(old[:, :, 2:], new[:, :, 2:])


def test_decoding_is_causal(vae):
    before = latents(4)
    after = before.clone()
    after[:, :, 2:] += 1.0
    old, new = vae.decode(before).sample, vae.decode(after).sample
    torch.testing.assert_close(old[:, :, :9], new[:, :, :9], rtol=0, atol=0)
    assert not torch.allclose(old[:, :, 9:], new[:, :, 9:])


@pytest.mark.parametrize(("frames", "window"), [(17, 8), (33, 8), (33, 16), (41, 16), (9, 24)])
def test_encoding_in_chunks_is_encoding_whole(vae, frames, window):
    clip = video(frames)
    whole = vae.encode(clip).latent_dist.parameters
    chunked = vae.encode(clip, temporal_chunk=True, window_size=window).latent_dist.parameters
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_init_image", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_decoding_in_chunks_is_decoding_whole(vae, window, is_init_image):
    z = latents(6)
    whole = vae.decode(z, is_init_image=is_init_image).sample
    assert whole.shape[2] == (41 if is_init_image else 48)
    chunked = vae.decode(z, is_init_image, temporal_chunk=True, window_size=window).sample
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)


def test_two_videos_decoded_in_turn_are_each_as_decoded_alone(vae):
    videos = [latents(3, seed=3), latents(3, seed=4)]
    streams, pieces = [Stream(), Stream()], [[], []]
    for frame in range(3):
        for z, stream, out in zip(videos, streams, pieces, strict=True):
            out.append(vae.decode_chunk(z[:, :, frame : frame + 1], stream))
            stream.advance()
    for z, out in zip(videos, pieces, strict=True):
        alone = vae.decode(z).sample
        torch.testing.assert_close(torch.cat(out, dim=2), alone, rtol=1e-5, atol=1e-5)


def test_tiles_of_a_constant_field_are_the_field():
    field = torch.full((1, 2, 1, 40, 56), 0.7)
    out = map_tiles(field, lambda tile: tile * 2, tile=16, out_tile=16)
    torch.testing.assert_close(out, field * 2)


def test_a_pointwise_map_does_not_show_its_tiles():
    picture = torch.rand(1, 3, 1, 50, 34, generator=torch.Generator().manual_seed(0))
    out = map_tiles(picture, torch.square, tile=16, out_tile=16)
    torch.testing.assert_close(out, picture.square())


@torch.no_grad()
def test_tiled_decoding_of_a_constant_field_is_whole_decoding():
    torch.manual_seed(0)
    model = CausalVideoVAE(**SMALL).eval()
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv3d) and m.padding[1]):
        conv.weight[..., [0, 2], :] = 0  # without reach in space there are no borders to see
        conv.weight[..., [0, 2]] = 0
    z = torch.full((1, 4, 2, 24, 20), 0.3)
    whole = model.decode(z).sample
    model.enable_tiling()
    tiled = model.decode(z, tile_sample_min_size=64).sample
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-4)


def test_tiling_is_left_alone_where_everything_fits(vae):
    z = latents(2, 8, 8)
    whole = vae.decode(z).sample
    vae.enable_tiling()
    try:
        assert torch.equal(vae.decode(z, tile_sample_min_size=64).sample, whole)
        assert not torch.equal(vae.decode(z, tile_sample_min_size=32).sample, whole)
    finally:
        vae.disable_tiling()


def test_tiling_is_forced_only_while_enabled(vae):
    for arguments, expected in (((), (True, False)), ((False,), (False, False))):
        vae.enable_tiling(*arguments)
        assert (vae.use_tiling, vae.force_tiling) == expected
    vae.enable_tiling(force=True)
    assert (vae.use_tiling, vae.force_tiling) == (True, True)
    vae.disable_tiling()
    assert (vae.use_tiling, vae.force_tiling) == (False, False)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = CausalVideoVAE(**SMALL).train()
        if enabled:
            model.enable_gradient_checkpointing()
        _, output = model(video(9), sample_posterior=False)
        output.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@pytest.mark.parametrize(
    ("kernel", "stride"), [(3, (1, 1, 1)), (3, (2, 1, 1)), (3, (1, 2, 2)), (1, (1, 1, 1))]
)
def test_gradients_of_a_lone_clip_are_those_of_a_plain_convolution(frames, kernel, stride):
    torch.manual_seed(0)
    conv = CausalConv3d(3, 4, kernel_size=kernel, stride=stride)
    clip = torch.randn(1, 3, frames, 6, 8, requires_grad=True)
    weight, bias = conv.conv.weight, conv.conv.bias
    extended = F.pad(clip, (0, 0, 0, 0, kernel - 1, 0))
    expected = F.conv3d(extended, weight, bias, stride, (0, kernel // 2, kernel // 2))
    out = conv(clip, WholeClip())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(out)
    gradients = torch.autograd.grad((out * direction).sum(), (clip, weight, bias))
    plain = torch.autograd.grad((expected * direction).sum(), (clip, weight, bias))
    for gradient, reference in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "saving", [{}, {"safe_serialization": False}, {"max_shard_size": "20KB"}], ids=str
)
def test_saved_weights_come_back(vae, tmp_path, saving):
    vae.save_pretrained(tmp_path, **saving)
    back = CausalVideoVAE.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert back.dtype == torch.bfloat16
    for name, tensor in vae.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor.bfloat16()), name


@torch.no_grad()
def test_weights_may_lie_channels_last(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    model = CausalVideoVAE.from_pretrained(tmp_path)
    model.to(memory_format=torch.channels_last_3d)
    assert model.decoder.conv_in.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    z = latents(3)
    torch.testing.assert_close(model.decode(z).sample, vae.decode(z).sample, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = CausalVideoVAE.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in vae.state_dict().items())


def test_weights_may_be_offloaded_for_images_too(vae, tmp_path):
    """accelerate swaps the weights of each layer in; the shortcut of a lone frame must not
    read them from outside."""
    from accelerate import cpu_offload

    image = video(1)
    expected = vae.encode(image).latent_dist.mode()
    vae.save_pretrained(tmp_path)
    offloaded = CausalVideoVAE.from_pretrained(tmp_path).requires_grad_(False)
    cpu_offload(offloaded, torch.device("cpu"))
    torch.testing.assert_close(offloaded.encode(image).latent_dist.mode(), expected)


def test_posterior_clamps_draws_and_measures():
    mean, logvar = torch.full((1, 2, 1, 2, 2), 0.5), torch.full((1, 2, 1, 2, 2), -100.0)
    posterior = DiagonalGaussian(torch.cat([mean, logvar], dim=1))
    assert torch.equal(posterior.mode(), mean)
    assert torch.equal(posterior.logvar, torch.full_like(logvar, -30.0))
    first, again = (posterior.sample(torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    standard = DiagonalGaussian(torch.zeros(1, 4, 1, 2, 2))
    assert torch.equal(standard.kl(), torch.zeros(1, 2))
    shifted = DiagonalGaussian(
        torch.cat([torch.ones(1, 2, 1, 2, 2), torch.zeros(1, 2, 1, 2, 2)], 1)
    )
    torch.testing.assert_close(shifted.kl(), torch.full((1, 2), 0.5 * 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_act_fn": "relu"}, "encoder_act_fn is 'relu'"),
        ({"encoder_layers_per_block": [1, 1]}, "encoder_layers_per_block is .*4 values"),
        ({"decoder_up_block_types": ["Other"] * 4}, "decoder_up_block_types"),
    ],
)
def test_unsupported_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CausalVideoVAE(**SMALL | changes)


def test_sizes_that_do_not_fit_are_refused(vae):
    with pytest.raises(ValueError, match="10 frames; 8n\\+1"):
        vae.encode(video(10))
    with pytest.raises(ValueError, match="36x32 pixels.*multiples of 8"):
        vae.encode(video(1, 36, 32))
    with pytest.raises(ValueError, match="window_size is 12.*multiple of 8"):
        vae.encode(video(17), temporal_chunk=True, window_size=12)
    with pytest.raises(ValueError, match=r"latents have shape \[1, 3, 1, 4, 4\]"):
        vae.decode(latents(1)[:, :3])
    with pytest.raises(ValueError, match="window_size is 0"):
        vae.decode(latents(2), temporal_chunk=True, window_size=0)
    vae.enable_tiling()
    try:
        with pytest.raises(ValueError, match="tile_sample_min_size is 100.*multiple of 32"):
            vae.decode(latents(1, 32, 32), tile_sample_min_size=100)
    finally:
        vae.disable_tiling()
