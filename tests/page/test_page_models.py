"""Several models behind one page: what is offered, and which is in memory when."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_server import PATIENCE, at_work, running_page
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.checkpoints.hub import TOY_FOLDER
from pyramid_dit.cli.options import UsageError
from pyramid_dit.page.command import parse_options
from pyramid_dit.page.examples import examples_for
from pyramid_dit.page.models import Models, cards_of, find_models
from pyramid_dit.page.settings import ModelCard
from pyramid_dit.page.visitors import Form
from pyramid_dit.page.words import status_html
from pyramid_dit.page.worker import Job, State, Worker

VARIANTS = ["diffusion_transformer_384p", "diffusion_transformer_768p"]
PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two checkpoints, of which the second has two variants and makes larger videos."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_checkpoint(folder / "one", index=QUICK_INDEX)
    index = QUICK_INDEX | {"width": 128, "frames_per_second": 12}
    for seed, variant in enumerate(VARIANTS):
        write_tiny_checkpoint(folder / "two", variant=variant, index=index, seed=seed)
    (folder / "notes").mkdir()
    return folder


def names(*options: str) -> list[str]:
    return [card.name for card in cards_of(find_models(parse_options(options)))]


def test_what_is_offered(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default variant first; `notes` is no checkpoint."""
    one, two = str(models / "one"), str(models / "two")
    assert names() == ["the default checkpoint, 128p", "the default checkpoint, 128p fast"]
    assert names("--model", two) == ["two, 768p", "two, 384p"]
    assert names("--model", two, "--variant", "384p") == ["two, 384p"]
    assert names("--model", two, "--model", one) == ["two, 768p", "two, 384p", "one, 768p"]
    assert names("--model", str(models)) == ["one, 768p", "two, 768p", "two, 384p"]
    assert names("--model", two, "--gpus", "2") == ["two, 768p"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("single", [["--gpus", "2"], ["--lora", "some.safetensors"]])
def test_where_only_one_model_can_be_meant(models: Path, single: list[str]) -> None:
    with pytest.raises(UsageError, match=f"{single[0]} needs exactly one model"):
        names("--model", str(models), *single)


def test_an_incomplete_variant_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    (folder / "diffusion_transformer_image").mkdir()
    capsys.readouterr()
    assert names("--model", str(folder)) == ["model, 768p"]
    assert capsys.readouterr().err.startswith("Not offered: diffusion_transformer_image: ")


def test_a_student_is_one_of_the_models(tmp_path: Path) -> None:
    fast = VARIANTS[1] + "_fast"
    entries = {"guidance_scale": 0, "video_guidance_scale": 0, "guidance_in_weights": True}
    index = QUICK_INDEX | {"variants": {fast: entries | {"num_inference_steps": [2, 2, 2]}}}
    for variant in (VARIANTS[1], fast):
        write_tiny_checkpoint(tmp_path / "model", variant=variant, index=index)
    usual, student = cards_of(find_models(parse_options(["--model", str(tmp_path / "model")])))
    assert (usual.name, student.name) == ("model, 768p", "model, 768p fast")
    assert (usual.settings().options["guidance"], usual.settings().options["steps"]) == (2.0, 1)
    assert (student.settings().options["guidance"], student.settings().options["steps"]) == (0, 2)


def test_checkpoints_of_one_name_are_told_apart(models: Path, tmp_path: Path) -> None:
    other = tmp_path / "one"
    other.symlink_to(models / "one")
    found = names("--model", str(models / "one"), "--model", str(other))
    assert found == [f"{models / 'one'}, 768p", f"{other}, 768p"]


# ---- one at a time ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cards(models: Path) -> list[ModelCard]:
    return cards_of(find_models(parse_options(["--model", str(models)])))


def form(card: ModelCard, **changes: Any) -> Form:
    options = dict(card.settings().options) | {"seed": 7, "seconds": 0.4}
    size = f"{card.width}x{card.height}"
    return Form(mode="text", prompt=PROMPT, size=size, model=card.name, options=options | changes)


def test_jobs_get_their_models_one_at_a_time(
    models: Path, cards: list[ModelCard], tmp_path: Path
) -> None:
    """Each waiting job is made with the model it was asked of; a model that fails fails alone."""
    one, two, other = cards
    alive: list[Any] = []
    shown: list[str] = []

    def loader(folder: str, variant: str) -> Any:
        def load() -> PyramidDiTForVideoGeneration:
            assert not any(reference() for reference in alive)  # the one before is gone
            if variant == VARIANTS[0]:
                raise OSError("no such file")
            model = PyramidDiTForVideoGeneration.from_pretrained(models / folder, variant)
            alive.append(weakref.ref(model.dit))
            return model

        return load

    parts = [("one", VARIANTS[1]), ("two", VARIANTS[1]), ("two", VARIANTS[0])]
    loaders = {card.name: loader(*part) for card, part in zip(cards, parts, strict=True)}
    several = Models(loaders)

    def start(job: Job) -> Any:
        def loading() -> None:
            job.load()
            shown.append(status_html(job))

        model = several.get(job.request.settings.model, loading)
        return job.request.stream(model, **job.callbacks(model))

    asked = [one, one, two, other, one]
    worker = Worker(start, folder=tmp_path)
    jobs = [worker.submit(form(card).request(card)) for card in asked]
    with at_work(worker):
        assert jobs[-1].wait(PATIENCE)
    assert [job.state for job in jobs] == [
        *[State.DONE] * 3,
        State.FAILED,
        State.DONE,
    ]
    assert len(alive) == 3 and [job.loading for job in jobs] == [False] * 5
    said = [card.name for card in (one, two, other, one)]
    for words, name in zip(shown, said, strict=True):
        assert f"Loading the model {name} …" in words
    first, _, wide, _, last = (job.path for job in jobs)
    assert first is not None and last is not None and wide is not None
    assert first.read_bytes() == last.read_bytes() != wide.read_bytes()
    assert jobs[2].request.frames_per_second == 12


# ---- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("page") / "log"
    with running_page("--model", str(models), "--threads", "1", log=log) as (url, _):
        yield url
    assert "Traceback" not in log.read_text()


def test_a_visitor_chooses_a_model(browser: Any, address: str) -> None:
    from page_visit import Visit, expect

    visit = Visit(browser, address)
    page = visit.page
    size = page.locator("#pf-size input")
    expect(size).to_have_value("Square 64 × 64")
    page.click("#pf-model input")
    page.locator("[role=option]", has_text="two, 384p").click()
    expect(size).to_have_value("Landscape 128 × 64")
    page.fill("#pf-modes textarea >> nth=0", PROMPT)
    visit.set_seconds(0.7)
    visit.make("text")
    expect(visit.details).to_contain_text("two, 384p")
    expect(visit.details).to_contain_text("128 × 64")
    page.click("#pf-model input")
    page.locator("[role=option]", has_text="one, 768p").click()
    expect(size).to_have_value("Square 64 × 64")
    page.click("#pf-use")  # the settings of the video, and its model
    expect(page.locator("#pf-model input")).to_have_value("two, 384p")
    expect(size).to_have_value("Landscape 128 × 64")
    assert visit.errors == []
    visit.context.close()


def test_clients_choose_a_model(address: str, tmp_path: Path) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(
        address, verbose=False, download_files=tmp_path, httpx_kwargs={"timeout": PATIENCE}
    )
    asked = {"seconds": 0.4, "size": "64x64", "api_name": "/text_to_video"}
    for given, name in (({"model": "two, 768p"}, "two, 768p"), ({}, "one, 768p")):
        _, about = client.predict(PROMPT, **given, **asked)
        assert about["settings"]["model"] == name, json.dumps(about)
    client.close()


def test_examples_are_what_the_model_can_make(tmp_path: Path) -> None:
    shapes = ModelCard.of(CheckpointFolder.open(TOY_FOLDER), "shapes")
    shown = examples_for(shapes, tmp_path)
    assert len(shown.pictures) == 3 and not shapes.defaults.unknown_words(shown.prompts)
    for words in (["a", "red", "circle"], None):  # fewer words, or any
        defaults = replace(shapes.defaults, known_words=words)
        other = examples_for(replace(shapes, defaults=defaults), tmp_path)
        assert not other.pictures and other.prompts != shown.prompts
