"""The VAE of the default checkpoint: its recipe in small, and what the recipe is made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import PROJECT_ROOT
from tiny_checkpoint import VAE_CONFIG
from torch import Tensor, nn

from pyramid_dit.checkpoints.hub import TOY_FOLDER
from pyramid_dit.flow.latents import FrameStatistics, LatentStatistics
from pyramid_dit.generation.latent_codec import FrameDecoder, pixels_for
from pyramid_dit.json_files import read_json
from trainer_misc import train_vae
from trainer_misc.optimization import parameter_groups
from trainer_misc.options import parse
from trainer_misc.toy.evaluation import reconstruction
from trainer_misc.toy.moving_shapes import BACKGROUNDS, COLORS, MovingShapes, Star
from trainer_misc.toy.shape_batches import ShapeBatches
from trainer_misc.vae_options import GROUPS
from trainer_misc.vae_weights import inflate, initialize, with_new_decoder
from video_vae import CausalVideoVAE, CausalVideoVAELossWrapper
from video_vae.training_latents import coarsen, fix_posterior

RECIPE = PROJECT_ROOT / "trainer_misc" / "toy"


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has a VAE's config and no weights."""
    folder = tmp_path_factory.mktemp("sizes")
    CausalVideoVAE(**VAE_CONFIG).save_config(folder)
    return folder


def arguments(part: str, start: Path, output: Path, *more: str) -> list[str]:
    given: dict[str, Any] = {
        "config": RECIPE / f"vae-{part}.toml",
        "model_path": start,
        "output_dir": output,
        "batch_size": 2,
        "resolution": 32,
        "num_workers": 0,
        "print_freq": 1,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + [*more]


def latents_of(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    return CausalVideoVAE.from_pretrained(folder).encode(pixels).latent_dist.mode().detach()


# ---- the recipe -------------------------------------------------------------------------------


def test_the_recipe_goes_from_nothing_to_a_vae(sizes: Path, tmp_path: Path) -> None:
    folders, start = [], sizes
    for part in ("1-pictures", "2-clips", "3-decoder"):
        train_vae.main(arguments(part, start, tmp_path / part, "--steps", "2"))
        start = tmp_path / part / "causal_video_vae"
        folders.append(start)
    clip = torch.rand(1, 3, 9, 16, 16)
    pictures, clips, last = (latents_of(folder, clip) for folder in folders)
    assert not torch.equal(pictures, clips) and torch.equal(clips, last)
    made = [CausalVideoVAE.from_pretrained(folder).decode(last).sample for folder in folders[1:]]
    assert not torch.equal(*made)
    std = CausalVideoVAE.from_pretrained(folders[-1]).encode(clip).latent_dist.std
    torch.testing.assert_close(std, torch.full_like(std, 0.1))


@pytest.mark.parametrize(("part", "places"), [("1-pictures", 64), ("2-clips", 128)])
def test_the_divergence_weighs_squared_latents(part: str, places: int, tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    torch.manual_seed(0)
    CausalVideoVAE(**VAE_CONFIG).save_pretrained(folder)
    options = parse(None, GROUPS, arguments(part, folder, tmp_path, "--coarse", "0,0"))
    options.fresh, options.resolution = False, 64
    trainer = train_vae.Trainer(options)
    batch = trainer.batches[0]
    torch.manual_seed(1)
    loss, figures = trainer.loss((0, batch))
    squared = trainer.wrapper.encode_latent(batch["video"]).square().mean().item()
    constant = 0.5 * options.kl_weight * places * (0.1**2 - 1 - 2 * np.log(0.1))
    assert loss.item() == pytest.approx(figures["mse"] + 2e-4 * squared + constant, rel=1e-5)


def test_latents_of_a_former_vae_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    CausalVideoVAE(**VAE_CONFIG).save_pretrained(tmp_path / "former")
    distances = {}
    for weight in ("0", "100"):
        output = tmp_path / weight
        more = ["--former_vae", str(tmp_path / "former"), "--former_weight", weight]
        more += ["--any_color", "0", "--steps", "12", "--lr", "1e-2", "--warmup_steps", "1"]
        train_vae.main(arguments("2-clips", tmp_path / "former", output, *more))
        lines = [json.loads(line) for line in (output / "log.jsonl").open()]
        distances[weight] = [line["latent_distance"] for line in lines]
    assert distances["0"][0] == distances["100"][0] == 0
    assert 0 < 3 * distances["100"][-1] < distances["0"][-1]


def test_only_kept_samples_stay_near_a_former_vae() -> None:
    torch.manual_seed(0)
    vae = CausalVideoVAE(**VAE_CONFIG)
    wrapper = CausalVideoVAELossWrapper(vae, add_discriminator=False, load_loss_module=True)
    pixels = torch.rand(2, 3, 1, 16, 16)
    former = wrapper.encode_latent(pixels) + torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1)

    def added(**more: Any) -> float:
        with_it, without = (
            wrapper(pixels, 0, generator=torch.Generator().manual_seed(0), **given).loss.item()
            for given in ({"former": former, **more}, {})
        )
        return with_it - without

    assert added() == pytest.approx(2.5, rel=1e-4)
    assert added(kept=torch.tensor([False, True])) == pytest.approx(4, rel=1e-4)
    assert added(kept=torch.tensor([True, False]), former_weight=3.0) == pytest.approx(3, rel=1e-4)
    assert added(kept=torch.tensor([False, False])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--video_anno", "a.jsonl"], "--drawn_shapes takes the place of --video_anno"),
        (["--resolution", "40"], "a multiple of 32 with --coarse, got 40"),
        (["--resolution", "160"], "crop must be at most 128, got 160"),
        (["--max_frames", "105"], "frames must be at most 97, got 105"),
        (["--former_vae", "nowhere"], "no folder at nowhere"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    given: list[str], message: str, sizes: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        train_vae.main(arguments("1-pictures", sizes, tmp_path / "run", *given))
    text = str(caught.value.code)
    assert message in text and text.startswith("error: ") and "\n" not in text


def test_a_former_vae_has_latents_of_the_same_shape(sizes: Path, tmp_path: Path) -> None:
    other = VAE_CONFIG | {"encoder_out_channels": 6, "decoder_in_channels": 6}
    CausalVideoVAE(**other).save_pretrained(tmp_path / "other")
    more = ["--former_vae", str(tmp_path / "other")]
    with pytest.raises(SystemExit, match=r"other do not fit: .* are \(6, 8, 8\), not \("):
        train_vae.main(arguments("1-pictures", sizes, tmp_path / "run", *more))


def test_shares_of_coarse_latents_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(None, GROUPS, ["--coarse", "0.7,0.4"])
    assert "coarse must be two shares, together at most 1" in capsys.readouterr().err


# ---- the data ---------------------------------------------------------------------------------


def test_batches_of_shapes_are_crops_of_clips() -> None:
    batches = ShapeBatches(3, frames=9, crop=128, seed=5)
    batch = batches[2]
    assert batch["video"].shape == (3, 3, 9, 128, 128) and batch["kept"].all()
    clips = MovingShapes(seed=5)
    for item, video in enumerate(batch["video"]):
        whole = clips[2 * 3 + item]["video"]
        starts = [i for i in range(89) if torch.equal(whole[:, i : i + 9], video)]
        assert starts
    small = ShapeBatches(3, frames=9, crop=40, seed=5)
    assert small[2]["video"].shape == (3, 3, 9, 40, 40)
    assert torch.equal(small[2]["video"], ShapeBatches(3, frames=9, crop=40, seed=5)[2]["video"])
    other = ShapeBatches(3, frames=9, crop=40, seed=5, rank=1, world=2)
    assert torch.equal(other[0]["video"], small[1]["video"])


def test_a_share_of_the_clips_has_any_colors() -> None:
    batch = ShapeBatches(200, frames=1, crop=128, any_color=0.5)[0]
    assert 70 < batch["kept"].sum() < 130
    corners = ((batch["video"][:, :, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    known = [tuple(color) in BACKGROUNDS.values() for color in corners]
    assert known == batch["kept"].tolist()
    drawn = np.array([c for c, kept in zip(corners, batch["kept"], strict=True) if not kept])
    assert (drawn.min(0) < 30).all() and (drawn.max(0) > 225).all()
    assert all(tuple(color) not in COLORS.values() for color in drawn)


def test_a_share_of_the_clips_has_other_outlines() -> None:
    usual = ShapeBatches(40, frames=1, crop=128, seed=3)[0]["video"]
    batch = ShapeBatches(40, frames=1, crop=128, seed=3, any_outline=0.5)[0]
    changed = [not torch.equal(*pair) for pair in zip(usual, batch["video"], strict=True)]
    assert 10 < sum(changed) < 30
    assert batch["kept"].all()  # the colors are those of the captions
    corner = (slice(None), slice(None), slice(None), 0, 0)
    assert torch.equal(usual[corner], batch["video"][corner])


def test_stars_have_their_points_where_they_are_turned() -> None:
    star = Star(points=4, waist=0.5, turn=math.pi / 4)
    tip = 10 / math.sqrt(2)
    x, y = np.array([tip, tip, -tip, -tip, 0]), np.array([-tip, tip, tip, -tip, -5])
    assert star.side(x, y, 10) == pytest.approx(0, abs=1e-6)  # the last one is a dent
    beyond, center = star.side(np.zeros(2), np.array([-9.0, 0.0]), 10)
    assert beyond > 0 > center


def test_reconstruction_is_measured_in_any_color() -> None:
    torch.manual_seed(0)
    vae = CausalVideoVAE(**VAE_CONFIG).eval()
    known, any_color = (reconstruction(vae, 2, num_frames=9, any_color=a) for a in (False, True))
    assert known["psnr"] != any_color["psnr"] and any_color["clips"] == 2


# ---- weights and latents ----------------------------------------------------------------------


def test_an_inflated_image_model_shows_a_still_clip_as_its_image() -> None:
    torch.manual_seed(0)
    vae = CausalVideoVAE(**VAE_CONFIG).eval().requires_grad_(False)
    initialize(vae)
    inflate(vae)
    image = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    _, alone = vae(image, sample_posterior=False)
    _, clip = vae(image.expand(-1, -1, 9, -1, -1), sample_posterior=False)
    torch.testing.assert_close(clip, alone.expand_as(clip), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def values_written(vae: CausalVideoVAE, latents: Tensor) -> int:
    """By all convolutions of the decoder: what their time goes with, at so few channels."""
    found = 0

    def note(conv: nn.Conv3d, inputs: Any, output: Tensor) -> None:
        nonlocal found
        found += output.numel()

    convs = [module for module in vae.decoder.modules() if isinstance(module, nn.Conv3d)]
    hooks = [conv.register_forward_hook(note) for conv in convs]
    vae.decode(latents)
    for hook in hooks:
        hook.remove()
    return found


def test_the_light_decoder_reads_the_latents_of_the_full_one_unit_by_unit() -> None:
    full = CausalVideoVAE.from_pretrained(TOY_FOLDER / "causal_video_vae").eval()
    torch.manual_seed(0)
    light = with_new_decoder(full, read_json(RECIPE / "light-decoder.json")).eval()
    for parameter in light.decoder.parameters():  # residual branches start at 0
        torch.nn.init.normal_(parameter, std=0.1)
    pixels = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = full.encode(pixels).latent_dist.mode()
        assert torch.equal(light.encode(pixels).latent_dist.mode(), latents)
        whole = light.decode(latents).sample
    assert whole.shape == pixels.shape
    plain = LatentStatistics(FrameStatistics(), FrameStatistics())
    decoder = FrameDecoder(
        light, plain, device=torch.device("cpu"), window=1, finish=pixels_for("pt")
    )
    pieces = torch.cat([decoder.push(unit) for unit in latents.split(1, dim=2)], dim=1)
    expected = ((whole + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(pieces, expected, rtol=1e-4, atol=1e-4)
    assert values_written(light, latents) < 0.5 * values_written(full, latents)


def test_a_new_decoder_starts_from_what_it_shares_with_the_old_one() -> None:
    full = CausalVideoVAE.from_pretrained(TOY_FOLDER / "causal_video_vae")
    light = with_new_decoder(full, read_json(RECIPE / "light-decoder.json"))
    shared = {"conv_in.conv.weight", "up_blocks.1.resnets.2.conv2.conv.weight"}
    own, old = light.decoder.state_dict(), full.decoder.state_dict()
    assert all(torch.equal(own[name], old[name]) for name in shared)
    assert own["conv_out.conv.weight"].shape[0] == 4 * old["conv_out.conv.weight"].shape[0]


def test_a_new_decoder_has_to_fit_its_encoder() -> None:
    vae = CausalVideoVAE(**VAE_CONFIG)
    with pytest.raises(ValueError, match="encoder_out_channels is no size of a decoder"):
        with_new_decoder(vae, {"encoder_out_channels": 8})
    two = {"decoder_spatial_up_sample": [True, True, False, False]}
    with pytest.raises(ValueError, match="doubles 2 times what the encoder halves 3 times"):
        with_new_decoder(vae, two)
    with pytest.raises(ValueError, match="3 times, with decoder_patch_size 4"):
        with_new_decoder(vae, two | {"decoder_patch_size": 4})
    with pytest.raises(ValueError, match="0 resnets cannot make 12 channels of 8"):
        sizes = {"decoder_block_out_channels": [12, 8, 8, 8], "decoder_norm_num_groups": 1}
        with_new_decoder(vae, sizes | {"decoder_layers_per_block": [1, 1, 1, 0]})


def test_a_fixed_posterior_stays_fixed_in_training() -> None:
    vae = CausalVideoVAE(**VAE_CONFIG)
    fix_posterior(vae, 0.1)
    pixels = torch.rand(1, 3, 1, 16, 16)
    optimizer = torch.optim.AdamW(parameter_groups([vae], weight_decay=0.1), lr=0.1)
    before = vae.encode(pixels).latent_dist.mode()
    posterior, _ = vae(pixels)
    (posterior.kl().sum() + posterior.logvar.sum()).backward()
    optimizer.step()
    after = vae.encode(pixels).latent_dist
    torch.testing.assert_close(after.std, torch.full_like(after.std, 0.1))
    assert not torch.allclose(after.mode(), before)
    with pytest.raises(ValueError, match="std must be above 0, got 0"):
        fix_posterior(vae, 0.0)


def test_coarse_latents_are_constant_over_blocks() -> None:
    latents = torch.randn(64, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mixed = coarsen(latents, (0.5, 0.25), torch.Generator().manual_seed(1))

    def constant(x: torch.Tensor, size: int) -> bool:
        blocks = x.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
        return bool((blocks == blocks[..., :1, :, :1]).all())

    kinds = [4 if constant(x, 4) else 2 if constant(x, 2) else 1 for x in mixed]
    assert 5 < kinds.count(4) < 30 and 15 < kinds.count(2) < 50 and kinds.count(1) > 5
    assert all(torch.equal(m, z) for m, z, k in zip(mixed, latents, kinds, strict=True) if k == 1)
