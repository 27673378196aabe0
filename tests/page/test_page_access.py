"""The page by keyboard, by paste and for eyes that see less."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_server import page_here
from page_visit import CONTRAST, NAMELESS, PROMPT, SETTLED, FakeStream, Visit, expect
from PIL import Image

from pyramid_dit.checkpoints.hub import open_checkpoint
from pyramid_dit.media.embedded_settings import write_comment
from pyramid_dit.media.video_files import export_to_video
from pyramid_dit.page.examples import MADE_FOLDER, made_examples
from pyramid_dit.page.settings import DEFAULT_NAME, ModelCard, Scene
from pyramid_dit.page.worker import Job

pytest.importorskip("gradio")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}
TABS = ["Text", "Picture", "Extend", "Storyboard", "Live"]
CLIPPED = """(zone) => {
  const box = zone.getBoundingClientRect();
  const label = zone.querySelector("[data-testid=block-label]").getBoundingClientRect();
  const words = document.createRange();
  words.selectNodeContents(zone.querySelector("[data-testid=upload-text]"));
  return [...words.getClientRects()].filter((one) => one.width > 1).filter((one) =>
    one.top < label.bottom || one.bottom > box.bottom || one.left < box.left
      || one.right > box.right || label.right > box.right).length;
}"""
PASTE = """([target, kinds]) => {
  const data = new DataTransfer();
  for (const [kind, content] of kinds) {
    if (kind === "text/plain") data.setData(kind, content);
    else data.items.add(new File([Uint8Array.from(content)], "image.png", { type: kind }));
  }
  const options = { clipboardData: data, bubbles: true, cancelable: true };
  const event = new ClipboardEvent("paste", options);
  document.querySelector(target).dispatchEvent(event);
  return event.defaultPrevented;
}"""


@pytest.fixture(scope="module")
def steps() -> threading.Semaphore:
    """Lets one step of a video be made each time that it is released."""
    return threading.Semaphore(0)


@pytest.fixture(scope="module")
def address(
    browser: Any,
    card: ModelCard,
    steps: threading.Semaphore,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    sentence = ["a", {"color": ["red", "blue"]}, {"shape": ["circle", "square"]}]
    words = "a red blue circle square".split()
    knowing = replace(card.defaults, known_words=words, known_sentence=sentence)

    def start(job: Job) -> FakeStream:
        return FakeStream(job, steps)

    knowing_card = replace(card, defaults=knowing)
    folder = tmp_path_factory.mktemp("page")
    write_examples(knowing_card, folder / "checkpoint")
    with page_here(knowing_card, start, folder, folder / "checkpoint") as url:
        yield url


def write_examples(card: ModelCard, checkpoint: Path) -> None:
    """Two that can be shown, and three that cannot."""
    usual = card.settings()
    made = {
        "1": replace(usual, prompt="a red circle", options={**usual.options, "seed": 11}),
        "2": replace(usual, mode="storyboard", scenes=(Scene(0, "a blue square"),)),
        "3": replace(usual, model="tiny, another"),
        "4": replace(usual, mode="image"),
    }
    for name, settings in made.items():
        path = checkpoint / "examples" / f"{name}.mp4"
        export_to_video(
            [Image.new("RGB", (64, 64), c) for c in ("red", "red", "blue", "blue")], path
        )
        write_comment(path, settings.to_json())
    (checkpoint / "examples" / "0.mp4").write_text("this is no video")


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, viewport=DESKTOP)
    yield visit
    assert visit.errors == []
    visit.context.close()


def finish(visit: Visit, steps: threading.Semaphore) -> None:
    for _ in range(7):
        steps.release()
    visit.wait_for("done")
    visit.video()


def make_by_key(visit: Visit, steps: threading.Semaphore) -> None:
    visit.page.keyboard.press("Control+Enter")
    visit.wait_for("run")
    finish(visit, steps)


def test_lists_by_keyboard(visit: Visit) -> None:
    page = visit.page
    size, options = page.locator("#pf-size input"), page.locator("[role=option]")

    def is_closed() -> None:
        expect(size).to_have_attribute("aria-expanded", "false")
        expect(options).to_have_count(0)

    prompt = page.locator("#pf-modes textarea >> visible=true")
    prompt.focus()
    for _ in range(20):  # the words of the sentence lie between, and examples
        page.keyboard.press("Tab")
        if size.evaluate("one => one === document.activeElement"):
            break
    expect(size).to_be_focused()
    page.evaluate(SETTLED)
    is_closed()
    expect(prompt).to_have_value("")  # nothing was chosen on the way
    page.keyboard.press("ArrowDown")
    expect(size).to_have_attribute("aria-expanded", "true")
    expect(options.first).to_be_visible()
    page.keyboard.press("Escape")
    is_closed()
    expect(size).to_be_focused()
    for key in ("Tab", "Shift+Tab", "Shift+Tab"):
        page.keyboard.press(key)
        page.evaluate(SETTLED)
        is_closed()

    page.keyboard.press("Tab")
    expect(size).to_be_focused()
    size.click()  # opens the list of a field that has the focus already
    expect(options.first).to_be_visible()
    page.keyboard.press("Escape")
    before = size.input_value()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(size).not_to_have_value(before)
    is_closed()

    page.locator("#pf-text-shape input").focus()
    for key in ("ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(prompt).to_have_value("a red square")


def test_tabs_by_keyboard(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    for key, name in (
        ("ArrowRight", "Picture"),
        ("ArrowLeft", "Text"),
        ("ArrowLeft", "Live"),
        ("ArrowRight", "Text"),
        ("End", "Live"),
        ("Home", "Text"),
    ):
        page.keyboard.press(key)
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(tab).to_be_focused()
        panel = page.locator(f"#{tab.get_attribute('aria-controls')}")
        expect(panel).to_be_visible()


def test_a_video_by_keyboard(visit: Visit, steps: threading.Semaphore) -> None:
    page = visit.page
    page.fill("#pf-modes textarea >> nth=0", PROMPT)
    make_by_key(visit, steps)
    assert page.input_value("#pf-modes textarea >> nth=0") == PROMPT
    page.fill("#pf-size input", "64x192")  # and nothing that would end the typing
    make_by_key(visit, steps)
    expect(visit.details).to_contain_text("64 × 192")
    page.get_by_role("tab", name="Storyboard").focus()
    page.keyboard.press("Enter")
    page.fill("#pf-scene-0 textarea", "a scene by itself")
    page.keyboard.press("Meta+Enter")
    visit.wait_for("run")
    finish(visit, steps)
    expect(visit.details).to_contain_text("a scene by itself")


def test_an_error_goes_when_the_next_run_starts(visit: Visit, steps: threading.Semaphore) -> None:
    page = visit.page
    page.click("#pf-make-text")
    assert "prompt is empty" in visit.wait_for("failed")
    visit.wait_for_toast("prompt is empty")
    page.hover(".toast-body.error")  # which stops the time after which it would go by itself
    page.fill("#pf-modes textarea >> nth=0", PROMPT)
    page.keyboard.press("Control+Enter")
    visit.wait_for("run")
    expect(page.locator("[data-state=failed], .toast-body.error")).to_have_count(0)
    finish(visit, steps)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Any, address: str, scheme: str, steps: threading.Semaphore) -> None:
    visit = Visit(browser, address, viewport=DESKTOP, color_scheme=scheme)
    page = visit.page

    def measure(state: str) -> None:
        page.evaluate(SETTLED)
        measured, faint = page.evaluate(CONTRAST)
        assert len(measured) > 20
        assert faint == [], state

    for box in ("#pf-more", "#pf-restore-box"):
        page.click(f"{box} button >> nth=0")
    for tab in TABS:
        visit.open_tab(tab)
        measure(tab)
    visit.open_tab("Text")
    page.click("#pf-size input")
    page.locator("[role=option]").first.hover()
    measure("an open list")
    page.keyboard.press("Escape")
    page.click("#pf-make-text")
    visit.wait_for_toast("prompt is empty")
    page.hover("#pf-make-text")
    measure("an error")
    page.fill("#pf-modes textarea >> nth=0", "a red <b>cat</b>")
    page.click("#pf-make-text")
    visit.wait_for_frames(0)
    page.hover("#pf-stop")
    measure("at work")
    finish(visit, steps)
    measure("a video")
    assert visit.errors == []
    visit.context.close()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_drop_zones_and_examples_are_not_clipped(browser: Any, address: str, viewport: Any) -> None:
    visit = Visit(browser, address, viewport=viewport)
    visit.page.click("#pf-restore-box button >> nth=0")
    for tab, zone in (("Picture", "image"), ("Extend", "video"), ("Extend", "restore")):
        visit.open_tab(tab)
        visit.page.wait_for_selector(f"#pf-{zone} [data-testid=upload-text]")
        visit.page.evaluate(SETTLED)
        assert visit.page.locator(f"#pf-{zone}").evaluate(CLIPPED) == 0, zone
    strip = visit.page.locator("#pf-made .grid-wrap")
    assert strip.evaluate("one => one.scrollWidth - one.clientWidth") <= 0
    visit.context.close()


def test_everything_has_a_name(visit: Visit, steps: threading.Semaphore) -> None:
    page = visit.page
    for tab in TABS:
        visit.open_tab(tab)
        page.evaluate(SETTLED)
        assert page.evaluate(NAMELESS) == [], tab
    visit.open_tab("Text")
    for prompt in (PROMPT, "a blue square"):
        page.fill("#pf-modes textarea >> nth=0", prompt)
        page.click("#pf-make-text")
        visit.wait_for("run")
        finish(visit, steps)
        expect(page.locator("video")).to_have_attribute("aria-label", f"Video: {prompt}")
        assert page.evaluate(NAMELESS) == []
    icon = page.request.get(f"{visit.address}favicon.ico").body()
    with Image.open(io.BytesIO(icon)) as image:
        assert image.size == (64, 64)
        assert image.getpixel((32, 60)) == (15, 118, 110, 255)  # the page's own, not Gradio's


def test_a_picture_is_pasted(visit: Visit) -> None:
    page = visit.page
    crop = page.locator("#pf-image-crop img")
    for color in ("red", "blue"):  # the second takes the place of the first
        data = io.BytesIO()
        Image.new("RGB", (64, 64), color).save(data, "PNG")
        picture = ["image/png", list(data.getvalue())]
        before = crop.get_attribute("src") if crop.count() else None
        assert page.evaluate(PASTE, ["body", [picture]])
        visit.page.wait_for_selector("[role=tab][aria-selected=true]:has-text('Picture')")
        page.wait_for_function(
            "(before) => (document.querySelector('#pf-image-crop img')?.src || before) != before",
            arg=before,
        )
    visit.open_tab("Text")
    # words that are copied along with a picture go where they are pasted
    assert not page.evaluate(PASTE, ["#pf-modes textarea", [picture, ["text/plain", "words"]]])
    assert not page.evaluate(PASTE, ["#pf-modes textarea", [["text/plain", "words"]]])
    expect(page.get_by_role("tab", name="Text")).to_have_attribute("aria-selected", "true")


def test_what_the_model_made_fills_the_fields(visit: Visit, steps: threading.Semaphore) -> None:
    page = visit.page
    strip = page.locator("#pf-made .thumbnail-item")
    expect(strip).to_have_count(2)
    names = [picture.get_attribute("alt") for picture in page.locator("#pf-made img").all()]
    assert names == ["a red circle", "a blue square"]
    source = page.get_attribute("#pf-made img", "src")
    with Image.open(io.BytesIO(page.request.get(source).body())) as picture:
        assert (picture.format, picture.size, picture.is_animated) == ("GIF", (64, 64), True)
    strip.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#pf-scene-0 textarea")).to_have_value("a blue square")
    strip.nth(0).click()
    expect(page.locator("#pf-modes textarea >> nth=0")).to_have_value("a red circle")
    expect(page.locator("#pf-seed input")).to_have_value("11")
    expect(page.locator("#pf-new-seed input")).not_to_be_checked()
    page.keyboard.press("Control+Enter")
    visit.wait_for("run")
    finish(visit, steps)
    expect(strip.first).to_be_hidden()
    assert visit.seed() == "11"


def test_examples_of_the_default_checkpoint(tmp_path: Path) -> None:
    folder = open_checkpoint(None)
    card = ModelCard.of(folder, DEFAULT_NAME)
    files = [*(folder.path / MADE_FOLDER).glob("*.mp4")]
    assert sum(file.stat().st_size for file in files) < 300_000
    made = made_examples(folder.path, card, tmp_path)
    assert len(made) == len(files) == 6
    for path, settings in made:
        assert settings.model == card.name
        assert card.defaults.unknown_words(settings.prompts) == []
        with Image.open(path) as picture:
            assert picture.size == (card.width, card.height)
            assert picture.n_frames == 25  # every other of 49
