"""What the page says of the words that a checkpoint knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_server import PATIENCE, page_here
from page_visit import FakeStream, Visit, expect
from PIL import Image

from pyramid_dit.page.settings import ModelCard, Settings
from pyramid_dit.page.words import unknown_html

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

WORDS = "a red blue circle square moves left grows".split()
SENTENCE = [
    *("a", {"color": ["red", "blue"]}, {"shape": ["circle", "square"]}),
    {"motion": ["moves left", "grows"]},
]


@pytest.fixture(scope="module")
def knowing(card: ModelCard) -> ModelCard:
    return replace(
        card, defaults=replace(card.defaults, known_words=WORDS, known_sentence=SENTENCE)
    )


@pytest.fixture(scope="module")
def address(
    browser: Any, knowing: ModelCard, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with page_here(knowing, FakeStream, tmp_path_factory.mktemp("page")) as url:
        yield url


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, viewport={"width": 375, "height": 812})
    yield visit
    assert visit.errors == []
    visit.context.close()


def test_words_that_were_never_learned_are_named(visit: Visit, tmp_path: Path) -> None:
    prompt = visit.page.locator("#pf-modes textarea >> visible=true")
    prompt.fill("a red <b>cat</b> moves left")
    visit.make("text")
    expect(visit.details).to_contain_text("Never learned")
    expect(visit.details).to_contain_text("b, cat")
    prompt.fill("A blue square grows")
    visit.make("text")
    expect(visit.details).not_to_contain_text("Never learned")

    Image.new("RGB", (64, 64), "red").save(tmp_path / "in.png")
    visit.open_tab("Picture")
    visit.page.set_input_files("#pf-image input[type=file]", tmp_path / "in.png")
    visit.page.wait_for_selector("#pf-image-crop img")
    prompt.fill("a dog grows")
    visit.make("image")
    expect(visit.details).to_contain_text("dog")

    visit.page.click("#pf-go-on")
    visit.page.wait_for_selector("#pf-video-crop img")
    prompt.fill("a horse grows")
    visit.make("extend")
    expect(visit.details).to_contain_text("horse")

    visit.open_tab("Storyboard")
    visit.page.fill("#pf-scene-0 textarea", "a red house")
    visit.page.fill("#pf-scene-1 textarea", "a blue tree")
    visit.page.fill("#pf-start-1 input", "0.3")
    visit.make("storyboard")
    expect(visit.details).to_contain_text("house, tree")


def test_a_sentence_is_put_together(visit: Visit) -> None:
    prompt = visit.page.locator("#pf-modes textarea >> visible=true")
    for tab, mode in {"Picture": "image", "Extend": "extend", "Text": "text"}.items():
        visit.open_tab(tab)
        choose(visit, f"#pf-{mode}-motion", "grows")
        expect(prompt).to_have_value("a red circle grows")
        choose(visit, f"#pf-{mode}-color", "blue")
        expect(prompt).to_have_value("a blue circle grows")
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 375
    visit.open_tab("Storyboard")
    for index, shape in enumerate(("circle", "square", "circle")):
        choose(visit, "#pf-storyboard-shape", shape)
        visit.page.click("#pf-add-chosen")
        expect(visit.page.locator(f"#pf-scene-{index} textarea")).to_have_value(
            f"a red {shape} moves left"
        )
    for index in range(3, 6):
        visit.page.click("#pf-add-chosen")
        expect(visit.page.locator(f"#pf-scene-{index} textarea")).to_be_visible()
    visit.page.click("#pf-add-chosen")
    visit.wait_for_toast("All scenes have a prompt already")


def choose(visit: Visit, field: str, text: str) -> None:
    visit.page.click(f"{field} input")
    visit.page.click(f"{field} [role=option]:has-text('{text}')")


def test_clients_are_told(address: str, tmp_path: Path) -> None:
    client = gradio_client.Client(
        address, verbose=False, download_files=tmp_path, httpx_kwargs={"timeout": PATIENCE}
    )
    scenes = [{"start": 0, "prompt": "a cat"}, {"start": 0.3, "prompt": "a red dog"}]
    call = client.submit(scenes, seconds=1, api_name="/storyboard")
    _, about = call.result(PATIENCE)
    assert about["unknown_words"] == ["cat", "dog"]
    assert all(told["unknown_words"] == ["cat", "dog"] for _, told in call.outputs())
    _, about = client.predict("a red circle", api_name="/text_to_video")
    assert about["unknown_words"] == []
    client.close()


def test_the_notice_while_a_video_is_made(card: ModelCard, knowing: ModelCard) -> None:
    settings = Settings(mode="text", prompt="a <i>", width=64, height=64, model="m", options={})
    said = unknown_html(settings, knowing.defaults)
    assert "never learned the words: i." in said and "a, red, blue" in said
    assert unknown_html(replace(settings, prompt="a red"), knowing.defaults) == ""
    assert unknown_html(settings, replace(card.defaults, known_words=None)) == ""
