"""The VAE's training loss: each term against a calculation by hand."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from video_vae.discriminator import PatchDiscriminator
from video_vae.losses import (
    VideoVAELoss,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from video_vae.lpips import LPIPS
from video_vae.posterior import DiagonalGaussian


def random_lpips() -> LPIPS:
    torch.manual_seed(0)
    lpips = LPIPS()
    for index in range(5):
        lpips.get_parameter(f"lin{index}.model.1.weight").abs_()  # trained weights are positive
    return lpips


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "vgg_lpips.pth"
    torch.save(random_lpips().state_dict(), path)
    return path


def standard_posterior(batch: int = 2, channels: int = 4) -> DiagonalGaussian:
    return DiagonalGaussian(torch.zeros(batch, 2 * channels, 1, 2, 2))


# --- hinge -----------------------------------------------------------------------------------


def test_hinge_values():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_discriminator_loss(real, fake) == pytest.approx(0.5 * (2.5 / 3 + 3.0 / 3))
    assert hinge_generator_loss(fake) == pytest.approx(2.0 / 3)
    assert hinge_discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0])) == 0


# --- adaptive weight -------------------------------------------------------------------------


def test_adaptive_weight_by_hand():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    nll = (torch.tensor([3.0, 4.0]) * layer).sum()  # gradient of length 5
    adversarial = 0.5 * layer[0] - 1.0  # gradient of length 0.5
    weight = adaptive_weight(nll, adversarial, layer, scale=0.5)
    assert weight == pytest.approx(0.5 * 5.0 / (0.5 + 1e-4))
    assert not weight.requires_grad


def test_adaptive_weight_is_clamped():
    layer = torch.tensor(1.0, requires_grad=True)
    assert adaptive_weight(1e9 * layer, 1e-3 * layer, layer, scale=0.5) == 1e4


def test_adaptive_weight_is_zero_without_gradients():
    layer = torch.tensor(1.0)
    assert adaptive_weight(2 * layer, 3 * layer, layer, scale=0.5) == 0


# --- the whole loss --------------------------------------------------------------------------


def test_reconstruction_and_prior_by_hand():
    loss = VideoVAELoss(
        pixelloss_weight=2.0,
        kl_weight=0.1,
        perceptual_weight=0,
        logvar_init=0.3,
        add_discriminator=False,
    )
    moments = torch.randn(2, 8, 3, 2, 2)
    mean, logvar = moments.chunk(2, dim=1)
    kl = (0.5 * (mean**2 + logvar.exp() - 1 - logvar)).sum(dim=(2, 3, 4)).mean()
    inputs, outputs = torch.randn(2, 3, 5, 16, 16), torch.randn(2, 3, 5, 16, 16)
    mse = ((inputs - outputs) ** 2).mean()

    result = loss(inputs, outputs, DiagonalGaussian(moments), step=0, last_layer=outputs)

    expected = 2.0 * mse / torch.tensor(0.3).exp() + 0.3 + 0.1 * kl
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.log["kl"], kl)
    assert result.discriminator_loss is None
    assert all(not value.requires_grad for value in result.log.values())


def test_logvar_settles_at_the_log_of_the_distortion():
    loss = VideoVAELoss(perceptual_weight=0, kl_weight=0, add_discriminator=False)
    inputs = torch.zeros(1, 3, 1, 8, 8)
    outputs = inputs + 0.1
    with torch.no_grad():
        loss.logvar.fill_(torch.log(torch.tensor(10.0 * 0.01)))
    loss(inputs, outputs, standard_posterior(1), step=0, last_layer=outputs).loss.backward()
    assert loss.logvar.grad == pytest.approx(0.0, abs=1e-5)


def test_discriminator_starts_at_its_step_and_losses_do_not_mix():
    torch.manual_seed(0)
    loss = VideoVAELoss(disc_start=10, perceptual_weight=0, disc_weight=0.5)
    layer = nn.Conv3d(3, 3, 1)
    inputs = torch.randn(1, 3, 2, 48, 48)
    arguments = {"posterior": standard_posterior(1), "last_layer": layer.weight}

    assert loss(inputs, layer(inputs), step=9, **arguments).discriminator_loss is None
    result = loss(inputs, layer(inputs), step=10, **arguments)

    log = result.log
    torch.testing.assert_close(
        log["loss"], log["nll"] + 1e-12 * log["kl"] + log["adversarial_weight"] * log["adversarial"]
    )
    result.loss.backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in loss.discriminator.parameters())
    from_loss = layer.weight.grad.clone()
    result.discriminator_loss.backward()
    assert all(parameter.grad is not None for parameter in loss.discriminator.parameters())
    assert torch.equal(layer.weight.grad, from_loss)


def test_adversarial_gradient_is_half_that_of_the_reconstruction():
    torch.manual_seed(0)
    loss = VideoVAELoss(disc_start=0, perceptual_weight=0, disc_weight=0.5)
    layer = nn.Conv3d(3, 3, 1)
    inputs = torch.randn(1, 3, 1, 48, 48)
    outputs = layer(inputs)

    result = loss(inputs, outputs, standard_posterior(1), step=0, last_layer=layer.weight)

    nll = 10 * F.mse_loss(outputs, inputs)
    (nll_gradient,) = torch.autograd.grad(nll, layer.weight, retain_graph=True)
    adversarial = -loss.discriminator(outputs.transpose(1, 2).flatten(0, 1)).mean()
    (gradient,) = torch.autograd.grad(adversarial, layer.weight)
    expected = 0.5 * nll_gradient.norm() / (gradient.norm() + 1e-4)
    torch.testing.assert_close(result.log["adversarial_weight"], expected)


def test_validation_without_gradients():
    loss = VideoVAELoss(disc_start=0, perceptual_weight=0)
    inputs = torch.randn(1, 3, 1, 48, 48)
    with torch.no_grad():
        result = loss(inputs, inputs, standard_posterior(1), step=0, last_layer=inputs)
    assert result.log["adversarial_weight"] == 0
    assert result.log["mse"] == 0


@pytest.mark.parametrize("name", ["pixelloss_weight", "kl_weight", "disc_start"])
def test_negative_weight_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} .* -1"):
        VideoVAELoss(**{name: -1})


# --- LPIPS -----------------------------------------------------------------------------------


def test_lpips_keys_are_those_of_the_file():
    keys = set(LPIPS().state_dict())
    convolutions = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
    expected = {
        f"net.slice{block}.{index}.{kind}"
        for block, indices in convolutions.items()
        for index in indices
        for kind in ("weight", "bias")
    }
    expected |= {f"lin{index}.model.1.weight" for index in range(5)}
    expected |= {"scaling_layer.shift", "scaling_layer.scale"}
    assert keys == expected


def test_lpips_by_hand():
    lpips = random_lpips()
    weights = lpips.state_dict()
    first, second = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1

    def features(x):
        x = (x - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
        for block, indices in enumerate(
            [(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)], start=1
        ):
            if block > 1:
                x = F.max_pool2d(x, 2)
            for index in indices:
                name = f"net.slice{block}.{index}"
                x = F.relu(
                    F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
                )
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    expected = sum(
        ((f - g) ** 2 * weights[f"lin{index}.model.1.weight"]).sum(1).mean((1, 2))
        for index, (f, g) in enumerate(zip(features(first), features(second), strict=True))
    )
    torch.testing.assert_close(lpips(first, second), expected)
    assert lpips(first, first).abs().max() == 0


def test_lpips_gradient_is_finite_and_leaves_the_weights_alone():
    lpips = random_lpips()
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    lpips(image, torch.ones(1, 3, 16, 16)).sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().max() > 0
    assert all(not parameter.requires_grad for parameter in lpips.parameters())


def test_lpips_refuses_tiny_images():
    with pytest.raises(ValueError, match="at least 16 pixels .* 8x32"):
        LPIPS()(torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32))


def test_perceptual_term_comes_from_the_file(lpips_file):
    options = {"pixelloss_weight": 0, "kl_weight": 0, "add_discriminator": False}
    loss = VideoVAELoss(lpips_ckpt=lpips_file, perceptual_weight=3.0, **options)
    inputs, outputs = torch.randn(1, 3, 2, 16, 16), torch.randn(1, 3, 2, 16, 16)
    result = loss(inputs, outputs, standard_posterior(1), step=0, last_layer=outputs)
    frames = [x.transpose(1, 2).flatten(0, 1) for x in (outputs, inputs)]
    torch.testing.assert_close(result.loss, 3.0 * random_lpips()(*frames).mean())


@pytest.mark.parametrize("missing", [None, "nowhere/vgg_lpips.pth"])
def test_perceptual_term_is_off_without_the_file_and_says_so(missing, caplog):
    with caplog.at_level(logging.WARNING, logger="video_vae.losses"):
        loss = VideoVAELoss(lpips_ckpt=missing, add_discriminator=False)
    assert loss.perceptual_loss is None
    assert "without perceptual loss" in caplog.text
    inputs = torch.randn(1, 3, 1, 8, 8)
    result = loss(inputs, inputs, standard_posterior(1), step=0, last_layer=inputs)
    assert result.log["lpips"] == 0


def test_no_warning_where_the_perceptual_term_is_not_wanted(caplog):
    VideoVAELoss(perceptual_weight=0, add_discriminator=False)
    assert not caplog.records


def test_wrong_lpips_file_is_refused(tmp_path):
    path = tmp_path / "vgg_lpips.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="vgg_lpips.pth does not fit LPIPS"):
        VideoVAELoss(lpips_ckpt=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot read weights from .*vgg_lpips.pth"):
        VideoVAELoss(lpips_ckpt=path)


# --- discriminator ---------------------------------------------------------------------------


def test_discriminator_is_the_patch_gan_of_four_layers():
    discriminator = PatchDiscriminator()
    convolutions = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 512, 1]
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 2, 1, 1]
    assert {c.kernel_size for c in convolutions} == {(4, 4)}
    slopes = {m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}
    assert discriminator(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 2, 4)


def test_discriminator_judges_each_frame_by_itself():
    discriminator = PatchDiscriminator(base_channels=8)
    frames = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(discriminator(frames)[1:2], discriminator(frames[1:2]))


def test_discriminator_learns_to_tell_frames_apart():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8, num_layers=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    for _ in range(20):
        real, fake = torch.randn(4, 3, 24, 24), torch.full((4, 3, 24, 24), 0.5)
        loss = hinge_discriminator_loss(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7  # undecided is 1


@pytest.mark.parametrize(("layers", "size"), [(1, 6), (2, 12), (4, 48)])
def test_smallest_frame_of_the_discriminator(layers, size):
    discriminator = PatchDiscriminator(base_channels=2, num_layers=layers)
    assert discriminator(torch.zeros(1, 3, size, size)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"{size}x{size - 1} pixels .* at least {size}"):
        discriminator(torch.zeros(1, 3, size, size - 1))
