"""The transformer of the default checkpoint: its recipe in small."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from golden import PROJECT_ROOT
from safetensors.torch import load_file
from tiny_checkpoint import VAE_CONFIG
from torch import Tensor
from training_files import run_two

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.video_io import video_frames
from trainer_misc import train_dit
from trainer_misc.data import MixedBatches
from trainer_misc.dit_options import GROUPS
from trainer_misc.options import parse
from trainer_misc.toy import start
from trainer_misc.toy.latents import write_latents
from trainer_misc.toy.text import write_text_encoders
from video_vae import CausalVideoVAE

BUNDLED = PROJECT_ROOT / "pyramid_dit" / "toy"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of a tiny VAE, and the checkpoint that a training of one small block starts from."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    vae = CausalVideoVAE(**VAE_CONFIG).eval().requires_grad_(False)
    write_latents(folder / "latents", vae, pictures=14, clips=4, frames=17)
    with pytest.MonkeyPatch.context() as patch:
        small = start.TOY_DIT | {"num_layers": 1, "num_single_layers": 1}
        patch.setattr(start, "TOY_DIT", small)
        statistics = start.measured_statistics(folder / "latents")
        start.write_start(folder / "start", vae, statistics)
    return folder


def arguments(files: Path, output: Path, *more: str) -> list[str]:
    given = {
        "config": PROJECT_ROOT / "trainer_misc" / "toy" / "dit.toml",
        "model_path": files / "start",
        "output_dir": output,
        "anno_file": files / "latents/clips.jsonl",
        "image_anno": files / "latents/pictures.jsonl",
        "sample_prompts": files / "latents/prompts.txt",
        "batch_size": 4,
        "image_batch_size": 7,
        "num_workers": 0,
        "print_freq": 1,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + [*more]


def test_latents_are_normalized_by_their_statistics(files: Path) -> None:
    statistics = start.measured_statistics(files / "latents")
    clips = [
        load_file(files / "latents" / json.loads(line)["latent"])["latent"].float()
        for line in (files / "latents/clips.jsonl").open()
    ]
    normalized = statistics.normalize(torch.cat(clips))[:, :, 1:]
    assert normalized.shape == (4, 4, 2, 16, 16)
    assert normalized.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
    torch.testing.assert_close(normalized.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=1e-2, rtol=0)


def test_the_start_has_the_form_of_the_bundled_checkpoint(files: Path) -> None:
    def content(folder: Path) -> set[str]:
        found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        kept = (path for path in found if not path.parts[0].endswith("_fast"))
        return {str(path) for path in kept if path.parts[0] not in ("README.md", "examples")}

    assert content(files / "start") == content(BUNDLED)
    own, bundled = (
        json.loads((folder / "model_index.json").read_text())
        for folder in (files / "start", BUNDLED)
    )
    own.pop("latent_statistics")
    bundled.pop("latent_statistics")
    bundled.pop("variants")
    assert own == bundled


def test_the_recipe_trains_everything_and_goes_on(files: Path, tmp_path: Path) -> None:
    train_dit.main(arguments(files, tmp_path, "--steps", "3", "--sample_steps", "0"))
    train_dit.main(arguments(files, tmp_path, "--steps", "5", "--sample_steps", "5"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    kinds = ["image_loss" in line for line in lines]
    assert set(kinds) == {True, False} and kinds == ["loss" not in line for line in lines]
    assert (tmp_path / "sheet-000005.png").stat().st_size > 1000
    prompts = (files / "latents/prompts.txt").read_text().splitlines()
    videos = sorted(tmp_path.glob("sample-000005-*.mp4"))
    assert len(videos) == len(prompts) and len(list(video_frames(videos[0]))) == 9
    for part in ("text_encoder", "text_encoder_2"):
        one, other = (
            load_file(folder / part / "model.safetensors")
            for folder in (files / "start", tmp_path / "model")
        )
        assert one.keys() == other.keys()
        assert any(not torch.equal(one[name], other[name]) for name in one)
    model = PyramidDiTForVideoGeneration.from_pretrained(tmp_path / "model")
    frames = model.generate(
        "a red circle grows on a white background",
        temp=2,
        num_inference_steps=1,
        video_num_inference_steps=1,
    )
    assert len(frames) == 9 and frames[0].size == (128, 128)


def test_pictures_and_clips_are_mixed_each_with_its_own_columns(
    files: Path, tmp_path: Path
) -> None:
    trainer = train_dit.Trainer(parse(None, GROUPS, arguments(files, tmp_path)))
    assert isinstance(trainer.batches, MixedBatches)
    kinds = {True: [], False: []}
    for number in range(20):
        batch = trainer.batches[number]
        pictures = train_dit.is_of_pictures(batch)
        kinds[pictures].append(batch["number"])
        assert tuple(batch["video"].shape[:3]) == ((7, 4, 1) if pictures else (4, 4, 3))
        columns = trainer.objectives[pictures].column_stages
        assert columns == ([0, 1, 1, 1, 1, 2, 2] if pictures else [0, 1, 1, 2])
    assert kinds == {True: list(range(14)), False: list(range(6))}
    assert trainer.objectives[False].max_units == 13


def replayed(files: Path, folder: Path) -> list[str]:
    """The same clips and pictures with another text, as what was learned before."""
    given = []
    for flag, name in (("anno", "clips.jsonl"), ("image_anno", "pictures.jsonl")):
        lines = [json.loads(line) for line in (files / "latents" / name).open()]
        old = [{"latent": str(files / "latents" / e["latent"]), "text": "old"} for e in lines]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in old))
        given += [f"--replay_{flag}", str(folder / name)]
    return given


def test_half_of_the_batches_can_be_of_what_was_learned_before(files: Path, tmp_path: Path) -> None:
    given = replayed(files, tmp_path)
    trainer = train_dit.Trainer(parse(None, GROUPS, arguments(files, tmp_path, *given)))
    batches = [trainer.batches[number] for number in range(40)]
    kinds = Counter(
        (train_dit.is_of_pictures(b), b["text"] == ["old"] * len(b["text"])) for b in batches
    )
    assert kinds == {(True, True): 14, (True, False): 14, (False, True): 6, (False, False): 6}
    assert "old" in set(trainer.batches.texts())
    trainer.options.image_anno = None
    with pytest.raises(ValueError, match="--replay_image_anno needs --image_anno"):
        train_dit.check(trainer.options)


def test_what_is_written_can_have_a_share_of_the_weights_before(
    files: Path, tmp_path: Path
) -> None:
    def written(*more: str) -> dict[str, dict[str, Tensor]]:
        given = ("--steps", "2", "--sample_steps", "0", "--lr", "0.01", *more)
        train_dit.main(arguments(files, tmp_path, *given))
        return weights(tmp_path / "model")

    def weights(folder: Path) -> dict[str, dict[str, Tensor]]:
        found = sorted(folder.glob("*/*.safetensors"))
        kept = [path for path in found if "vae" not in path.parent.name]
        return {path.parent.name: load_file(path) for path in kept}

    begun, trained, mixed = weights(files / "start"), written(), written("--initial_share", "0.25")
    assert mixed.keys() == begun.keys() and len(mixed) == 3
    for part, tensors in begun.items():
        assert any(not torch.equal(trained[part][name], value) for name, value in tensors.items())
        for name, value in tensors.items():
            expected = 0.75 * trained[part][name] + 0.25 * value
            torch.testing.assert_close(mixed[part][name], expected, rtol=1e-5, atol=1e-6)


def test_muon_takes_the_hidden_matrices_once_and_the_betas_that_are_given(
    files: Path, tmp_path: Path
) -> None:
    given = arguments(files, tmp_path, "--opt_beta2", "0.5", "--opt_eps", "1e-6")
    trainer = train_dit.Trainer(parse(None, GROUPS, given))
    groups = trainer.loop.optimizer.param_groups
    assert all(group["betas"] == (0.95, 0.5) and group["eps"] == 1e-6 for group in groups)
    assert [group["muon"] for group in groups] == [True, False, False]
    taken = [id(parameter) for group in groups for parameter in group["params"]]
    trained = [*trainer.model.dit.parameters(), *trainer.model.text_encoder.parameters()]
    assert len(set(taken)) == len(taken) and set(taken) == {id(p) for p in trained}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch_size", "6"], "--batch_size 6 cannot be divided into the 4 columns"),
        (["--image_batch_size", "4"], "--image_batch_size 4 cannot be divided into the 7 columns"),
        (["--task", "t2i", "--load_vae"], "pictures only: use --anno_file without --image_anno"),
    ],
)
def test_mixtures_that_do_not_fit_are_refused(
    given: list[str], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_dit.check(parse(None, GROUPS, arguments(files, tmp_path, *given)))


def test_two_processes_train_one_checkpoint(files: Path, tmp_path: Path) -> None:
    more = [*replayed(files, tmp_path), "--initial_share", "0.1"]
    run_two("-m", "trainer_misc.train_dit", *arguments(files, tmp_path, "--steps", "3", *more))
    configs = [path.read_text() for path in (tmp_path / "model").rglob("*.json")]
    assert configs and not any(
        str(place) in text for text in configs for place in (tmp_path, files)
    )


def test_text_encoders_of_a_seed_are_the_same(tmp_path: Path) -> None:
    for name in ("one", "other"):
        torch.manual_seed(3)
        (tmp_path / name).mkdir()
        write_text_encoders(tmp_path / name)
    one, other = (
        load_file(tmp_path / name / "text_encoder/model.safetensors") for name in ("one", "other")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
