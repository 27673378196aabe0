"""`CausalVideoVAELossWrapper` on a small checkpoint that was really written and read."""

import logging
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from video_vae import CausalVideoVAE, CausalVideoVAELossWrapper

CONFIG = {
    "encoder_out_channels": 4,
    "decoder_in_channels": 4,
    "encoder_block_out_channels": (8, 8, 16, 16),
    "decoder_block_out_channels": (8, 8, 16, 16),
    "encoder_layers_per_block": (1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "encoder_norm_num_groups": 4,
    "decoder_norm_num_groups": 4,
}


def small_vae(seed: int) -> CausalVideoVAE:
    torch.manual_seed(seed)
    return CausalVideoVAE(**CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("causal_video_vae")
    small_vae(0).save_pretrained(path)
    return path


@pytest.fixture
def wrapper(folder):
    return CausalVideoVAELossWrapper(folder)


def trainable(folder, **options) -> CausalVideoVAELossWrapper:
    options = {"perceptual_weight": 0, "add_discriminator": False, **options}
    return CausalVideoVAELossWrapper(folder, load_loss_module=True, **options)


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    expected = second.state_dict()
    return all(torch.equal(value, expected[key]) for key, value in first.state_dict().items())


# --- construction ----------------------------------------------------------------------------


def test_reads_the_folder(folder):
    wrapper = CausalVideoVAELossWrapper(str(folder), model_dtype="bf16", interpolate=False)
    assert wrapper.vae.dtype == torch.bfloat16
    assert wrapper.loss is None
    assert same_weights(wrapper.vae, small_vae(0).to(torch.bfloat16))


def test_takes_a_vae_to_train():
    vae = small_vae(3)
    assert CausalVideoVAELossWrapper(vae).vae is vae


def test_unknown_dtype_is_refused(folder):
    with pytest.raises(ValueError, match="fp32, bf16, fp16, got 'fp8'"):
        CausalVideoVAELossWrapper(folder, model_dtype="fp8")


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        CausalVideoVAELossWrapper(tmp_path)


# --- latents and pictures --------------------------------------------------------------------


def test_encode_latent(wrapper):
    video = torch.rand(2, 3, 9, 16, 24) * 2 - 1
    latent = wrapper.encode_latent(video)
    assert latent.shape == (2, 4, 2, 2, 3)
    assert not latent.requires_grad
    torch.testing.assert_close(latent, wrapper.vae.encode(video).latent_dist.mode())
    draws = [
        wrapper.encode_latent(video, sample=True, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_chunks_change_nothing(wrapper):
    video = torch.rand(1, 3, 17, 16, 16) * 2 - 1
    whole = wrapper.encode_latent(video)
    chunked = wrapper.encode_latent(video, temporal_chunk=True, window_size=8)
    torch.testing.assert_close(whole, chunked, rtol=1e-4, atol=1e-5)


def test_encode_and_decode_are_the_vae_s(wrapper):
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    posterior = wrapper.encode(video).latent_dist
    torch.testing.assert_close(posterior.mode(), wrapper.encode_latent(video))
    pixels = wrapper.decode(posterior.mode()).sample
    assert pixels.shape == video.shape and pixels.requires_grad
    (in_tuple,) = wrapper.encode(video, return_dict=False)
    assert torch.equal(in_tuple.parameters, posterior.parameters)
    (in_tuple,) = wrapper.decode(posterior.mode(), return_dict=False)
    assert torch.equal(in_tuple, pixels)
    assert wrapper.encode(video[:, :, 0]).latent_dist.mean.shape == (1, 4, 1, 2, 2)
    assert (wrapper.device.type, wrapper.dtype) == ("cpu", torch.float32)
    assert wrapper.get_last_layer() is wrapper.vae.decoder.conv_out.conv.weight


def test_arguments_by_position(folder):
    wrapper = CausalVideoVAELossWrapper(
        folder, "fp32", 7, -1.0, 1e-6, 2.0, 0.0, 0.1, load_loss_module=True
    )
    assert (wrapper.loss.disc_start, wrapper.loss.logvar.item()) == (7, -1.0)
    names = ("kl_weight", "pixelloss_weight", "perceptual_weight", "disc_weight")
    assert [getattr(wrapper.loss, name) for name in names] == [1e-6, 2.0, 0.0, 0.1]
    video = torch.rand(1, 3, 17, 16, 16) * 2 - 1
    whole = wrapper.encode_latent(video)
    chunked = wrapper.encode_latent(video, False, True, True, 8, 256)
    torch.testing.assert_close(whole, chunked, rtol=1e-4, atol=1e-5)
    assert len(wrapper.decode_latent(chunked, True, True, 1, 256)) == 17
    assert len(wrapper.reconstruct(video, False, False, True, True, 8, 256)) == 17


def test_image_makes_one_picture(wrapper):
    image = torch.rand(1, 3, 16, 24) * 2 - 1
    (picture,) = wrapper.decode_latent(wrapper.encode_latent(image))
    assert (picture.size, picture.mode) == ((24, 16), "RGB")


def test_half_precision_takes_float_pixels(folder):
    wrapper = CausalVideoVAELossWrapper(folder, "bf16")
    latent = wrapper.encode_latent(torch.rand(1, 3, 9, 16, 16))
    assert latent.dtype == torch.bfloat16
    assert len(wrapper.decode_latent(latent.float())) == 9


def test_reconstruct(wrapper):
    video = torch.rand(2, 3, 17, 16, 16) * 2 - 1
    pictures, latent = wrapper.reconstruct(
        video, return_latent=True, temporal_chunk=True, window_size=8
    )
    assert len(pictures) == 2 * 17
    torch.testing.assert_close(latent, wrapper.encode_latent(video), rtol=1e-4, atol=1e-5)
    alone = wrapper.reconstruct(video[1:])
    assert len(alone) == 17
    levels = [
        torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).int()
        for p in (pictures[17 + 4], alone[4])
    ]
    assert (levels[0] - levels[1]).abs().max() <= 1


def test_pictures_are_clamped_and_rounded(wrapper, monkeypatch):
    pixels = torch.tensor([-3.0, 0.0, 0.999, 7.0]).view(1, 1, 1, 1, 4).expand(1, 3, 1, 1, 4)
    monkeypatch.setattr(
        wrapper.vae, "decode", lambda *_, **__: type("Output", (), {"sample": pixels})
    )
    (picture,) = wrapper.decode_latent(torch.zeros(1, 4, 1, 1, 1))
    assert [picture.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 255]


# --- training --------------------------------------------------------------------------------


def test_a_few_steps_reduce_the_loss(folder):
    wrapper = trainable(folder, kl_weight=1e-6)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=3e-3)
    video = torch.rand(2, 3, 9, 16, 16) * 2 - 1
    losses = []
    for step in range(8):
        output = wrapper(video, step, generator=torch.Generator().manual_seed(0))
        losses.append(output.log["mse"].item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_both_losses_train_in_one_backward(folder):
    torch.manual_seed(0)
    wrapper = trainable(folder, add_discriminator=True, disc_start=5)
    video = torch.rand(1, 3, 1, 48, 48) * 2 - 1
    assert wrapper(video, 4).discriminator_loss is None
    loss, discriminator_loss, log = wrapper(video, 5)
    (loss + discriminator_loss).backward()
    assert all(parameter.grad is not None for parameter in wrapper.parameters())
    assert log["adversarial_weight"] > 0


def test_images_are_frames_of_their_own(folder):
    wrapper = trainable(folder)
    frames = torch.rand(2, 3, 4, 16, 16) * 2 - 1
    as_images = wrapper(frames, 0, ["image"], generator=torch.Generator().manual_seed(0))
    singles = frames.transpose(1, 2).flatten(0, 1)
    as_videos = wrapper(singles, 0, ["video"], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(as_images.loss, as_videos.loss)


def test_frozen_encoder_gets_no_gradient(folder):
    wrapper = trainable(folder, freeze_encoder=True)
    wrapper(torch.rand(1, 3, 9, 16, 16), 0).loss.backward()
    assert all(p.grad is None for p in wrapper.vae.encoder.parameters())
    assert all(p.grad is not None for p in wrapper.vae.decoder.parameters())


def test_training_says_that_lpips_is_missing(folder, caplog):
    with caplog.at_level(logging.WARNING):
        wrapper = trainable(folder, perceptual_weight=1.0)
    assert "without perceptual loss" in caplog.text
    assert wrapper(torch.rand(1, 3, 1, 16, 16), 0).loss.isfinite()


def test_bad_input_to_forward(folder, wrapper):
    with pytest.raises(RuntimeError, match="load_loss_module=True"):
        wrapper(torch.rand(1, 3, 1, 16, 16), 0)
    wrapper = trainable(folder)
    with pytest.raises(ValueError, match="got \\['audio'\\]"):
        wrapper(torch.rand(1, 3, 1, 16, 16), 0, ["audio"])
    with pytest.raises(ValueError, match="got a tensor of shape \\[3, 16, 16\\]"):
        wrapper(torch.rand(3, 16, 16), 0)


# --- checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_load_checkpoint(wrapper, tmp_path, suffix, prefix):
    other = small_vae(1)
    state = {prefix + key: value for key, value in other.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    wrapper.load_checkpoint(path)
    assert same_weights(wrapper.vae, other)


def test_load_checkpoint_takes_the_loss_too(folder, tmp_path):
    torch.manual_seed(5)
    trained = trainable(small_vae(1), add_discriminator=True, logvar_init=-2.0)
    torch.save(trained.state_dict(), tmp_path / "checkpoint.pth")
    fresh = trainable(folder, add_discriminator=True)
    fresh.load_checkpoint(tmp_path / "checkpoint.pth")
    assert same_weights(fresh, trained)
    without_loss = CausalVideoVAELossWrapper(folder)
    without_loss.load_checkpoint(tmp_path / "checkpoint.pth")
    assert same_weights(without_loss.vae, trained.vae)


def reference_checkpoint(wrapper: CausalVideoVAELossWrapper, path: Path) -> None:
    """What the reference's trainer saves: optimizers, its command line, and biases before norms."""
    state = wrapper.state_dict()
    for layer, channels in ((2, 128), (5, 256), (8, 512), (11, 512)):
        state[f"loss.discriminator.main.{layer}.bias"] = torch.randn(channels)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-4)
    content = {
        "model": state,
        "optimizer_d": optimizer.state_dict(),
        "optimizer_g": optimizer.state_dict(),
        "epoch": 3,
        "args": Namespace(lr=1e-4, output_dir="out", device="cuda", image_mix_ratio=0.1),
    }
    torch.save(content | {"ema": small_vae(7).state_dict()}, path)


def test_checkpoints_of_the_reference_s_trainer(folder, tmp_path):
    torch.manual_seed(5)
    trained = trainable(small_vae(1), add_discriminator=True, logvar_init=-2.0)
    path = tmp_path / "checkpoint-3.pth"
    reference_checkpoint(trained, path)
    fresh = trainable(folder, add_discriminator=True)
    fresh.load_checkpoint(path)
    assert same_weights(fresh, trained)
    fresh.load_checkpoint(path, model_key="ema")
    assert same_weights(fresh.vae, small_vae(7))

    with torch.serialization.safe_globals([Namespace]):
        state = torch.load(path, weights_only=True)["model"]
    again = trainable(folder, add_discriminator=True)
    again.load_state_dict(state)  # as strict as ever with everything else
    assert same_weights(again, trained) and "loss.discriminator.main.2.bias" in state
    with pytest.raises(RuntimeError, match="main.3.bias"):
        again.load_state_dict(state | {"loss.discriminator.main.3.bias": torch.zeros(1)})


def test_an_entry_that_is_not_there(wrapper, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": small_vae(1).state_dict(), "epoch": 3}, path)
    with pytest.raises(ValueError, match="its entry 'model' is a"):
        wrapper.load_checkpoint(path, "module")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint ran code",))


def test_load_checkpoint_runs_no_code(wrapper, tmp_path):
    path = tmp_path / "trap.pth"
    torch.save({"model": Trap()}, path)
    with pytest.raises(ValueError, match=r"cannot read weights from .*trap\.pth"):
        wrapper.load_checkpoint(path)
    torch.save({"model": small_vae(1).state_dict(), "args": Namespace(lr=Trap())}, path)
    with pytest.raises(ValueError, match=r"cannot read weights from .*trap\.pth"):
        wrapper.load_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ValueError, match=r"cannot read weights from .*trap\.pth"):
        wrapper.load_checkpoint(path)


def test_load_checkpoint_refuses_what_does_not_fit(wrapper, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        wrapper.load_checkpoint(tmp_path / "nowhere.pth")

    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.pth does not fit CausalVideoVAE"):
        wrapper.load_checkpoint(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="holds no state dict"):
        wrapper.load_checkpoint(path)
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="'step' is a int"):
        wrapper.load_checkpoint(path)

    cut = tmp_path / "cut.safetensors"
    save_file(small_vae(1).state_dict(), cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read weights from .*cut\.safetensors"):
        wrapper.load_checkpoint(cut)
