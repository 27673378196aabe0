"""The page in a real browser, driven as a visitor would."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_server import page_here, running_page
from page_visit import PROMPT, FakeStream, Visit, expect
from PIL import Image
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit.page import visitors
from pyramid_dit.page.settings import ModelCard

pytest.importorskip("gradio")

PHONE = {"width": 375, "height": 812}
RECORD = """() => {
  const preview = document.querySelector(".pf-preview");
  const status = document.querySelector("#pf-status");
  window.counts = [];
  window.percents = [];
  new MutationObserver((changes) => {
    const before = changes.slice(1).map((change) => change.oldValue);
    window.counts.push(...[...before, preview.dataset.frames].map(Number));
  }).observe(preview, { attributeFilter: ["data-frames"], attributeOldValue: true });
  new MutationObserver(() => {
    const bar = status.querySelector("[role=progressbar]");
    if (bar) window.percents.push(Number(bar.ariaValueNow));
  }).observe(status, { childList: true, subtree: true });
}"""
COLOR_SEEN = """(color) => {
  const canvas = document.querySelector(".pf-preview canvas");
  const seen = canvas.getContext("2d").getImageData(5, 5, 1, 1).data;
  return color.every((value, i) => Math.abs(value - seen[i]) < 20);
}"""
TWO_FRAMES = """() => new Promise((done) => {
  requestAnimationFrame(() => requestAnimationFrame(done));
})"""
WIDEST = """() => Math.max(...[...document.querySelectorAll("body *")]
  .filter(element => element.checkVisibility())
  .map(element => element.getBoundingClientRect().right))"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    model = write_tiny_checkpoint(folder / "tiny", index=QUICK_INDEX)
    with running_page("--model", str(model), "--threads", "1", log=folder / "log") as (url, _):
        yield url
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, viewport={"width": 1280, "height": 900})
    yield visit
    assert visit.errors == []
    visit.context.close()


def test_each_unit_is_seen_as_soon_as_it_is_there(
    browser: Any, card: ModelCard, tmp_path: Path
) -> None:
    released = threading.Semaphore(0)
    with page_here(card, lambda job: FakeStream(job, released), tmp_path) as address:
        visit = Visit(browser, address)
        visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
        visit.page.click("#pf-make-text")
        for unit, (count, color) in enumerate(
            zip(FakeStream.counts, FakeStream.colors, strict=True)
        ):
            released.release()
            visit.wait_for_frames(count)
            visit.page.wait_for_function(COLOR_SEEN, arg=color)
            percent = round(100 * (unit + 1) / 6)
            visit.page.wait_for_selector(f"#pf-status [aria-valuenow='{percent}']")
        released.release()
        visit.wait_for("done")
        assert visit.errors == []
        visit.context.close()


def test_no_unit_is_skipped_however_fast_they_come(
    browser: Any, card: ModelCard, tmp_path: Path
) -> None:
    with page_here(card, FakeStream, tmp_path) as address:
        visit = Visit(browser, address)
        visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
        visit.page.evaluate(RECORD)
        for number in (1, 2):
            visit.make("text")
            visit.wait_for_frames(FakeStream.counts[-1])
            assert visit.page.evaluate("counts") == number * [0, *FakeStream.counts]
        assert visit.errors == []
        visit.context.close()


def test_frames_arrive_and_the_video_plays(visit: Visit) -> None:
    visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
    visit.set_seconds(2)
    visit.page.evaluate(RECORD)
    visit.make("text")
    visit.wait_for_frames(49)
    assert visit.page.evaluate("counts") == [0, 1, 9, 17, 25, 33, 41, 49]
    percents = visit.page.evaluate("percents")
    assert percents == sorted(percents) and set(percents) <= set(range(101))
    _, duration, width, height = visit.video()
    assert (width, height) == (64, 64)
    assert duration == pytest.approx(49 / 24, abs=0.01)
    visit.page.wait_for_function(
        "() => document.querySelector('#pf-result-video video').currentTime > 0"
    )
    expect(visit.details).to_contain_text(visit.seed())
    expect(visit.details).to_contain_text(PROMPT)
    elsewhere = [url for url in visit.asked_for if not url.startswith((visit.address, "data:"))]
    assert [url for url in elsewhere if not url.startswith("blob:")] == []


def test_the_same_seed_gives_the_same_file(visit: Visit) -> None:
    visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
    visit.make("text")
    first, seed = visit.video_file(), visit.seed()
    visit.page.uncheck("#pf-new-seed input")
    visit.make("text")
    assert visit.seed() == seed
    assert visit.video_file() == first
    visit.page.check("#pf-new-seed input")
    visit.make("text")
    assert visit.seed() != seed
    assert visit.video_file() != first


def test_words_of_a_visitor_stay_words(visit: Visit) -> None:
    words = "<b>64</b><img src=x onerror=alert(1)>"
    visit.page.fill("#pf-modes textarea >> nth=0", words)
    visit.page.fill("#pf-size input", words)
    visit.page.keyboard.press("Enter")
    visit.page.click("#pf-make-text")
    assert words in visit.wait_for("failed")
    visit.wait_for_toast(words)
    visit.page.fill("#pf-size input", "64x64")
    visit.page.keyboard.press("Enter")
    visit.make("text")
    expect(visit.details).to_contain_text(words)
    assert visit.page.get_attribute("#pf-gallery .thumbnail-item img", "alt") == words
    assert visit.page.query_selector("img[src=x]") is None


def test_stopping(visit: Visit) -> None:
    visit.begin_what_takes_long()
    visit.wait_for_frames(9)
    visit.page.click("#pf-stop")
    assert "Stopped" in visit.wait_for("stopped")
    assert 9 / 24 - 0.01 < visit.video()[1] < 9  # what was made is kept
    visit.page.get_by_label("number input for Steps of later frames").fill("1")
    visit.page.wait_for_selector("#pf-stop", state="hidden")
    visit.set_seconds(0.4)
    visit.make("text")
    assert visit.video()[1] == pytest.approx(9 / 24, abs=0.01)


def test_a_picture_goes_in_and_a_bad_one_does_not(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("this is no picture")
    Image.new("RGB", (90, 160), "red").save(tmp_path / "portrait.png")
    visit.open_tab("Picture")
    visit.page.set_input_files("#pf-image input[type=file]", tmp_path / "bad.png")
    note = visit.page.wait_for_selector("#pf-modes .pf-note [data-state=failed]")
    assert "not a picture" in note.inner_text()
    visit.wait_for_toast("not a picture")
    visit.page.click("#pf-make-image")
    assert "not a picture" in visit.wait_for("failed")
    assert "Traceback" not in visit.page.content()

    visit.page.click("#pf-image [aria-label=Clear]")
    visit.page.set_input_files("#pf-image input[type=file]", tmp_path / "portrait.png")
    visit.page.wait_for_selector("#pf-image-crop img")
    visit.page.fill("#pf-size input", "64x128")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function(
        "() => document.querySelector('#pf-image-crop img').naturalHeight == 128"
    )
    visit.make("image")
    assert visit.video()[2:] == [64, 128]


def test_results_are_kept_extended_and_read_back(visit: Visit, tmp_path: Path) -> None:
    visit.open_tab("Storyboard")
    visit.page.click("#pf-example-scenes")
    expect(visit.page.locator("#pf-scene-1 textarea")).to_have_value(re.compile("sun"))
    visit.page.fill("#pf-scene-0 textarea", PROMPT)
    visit.page.fill("#pf-scene-1 textarea", "a blue square")
    visit.page.fill("#pf-start-1 input", "0.4")
    visit.set_seconds(0.7)
    visit.make("storyboard")
    file, seed = visit.video_file(), visit.seed()

    visit.page.click("#pf-go-on")
    visit.page.wait_for_selector("#pf-video-crop img")
    visit.make("extend")
    assert visit.video()[1] == pytest.approx((17 + 16) / 24, abs=0.01)

    expect(visit.results).to_have_count(2)
    with visit.another_video():
        visit.results.nth(1).click()
    expect(visit.details).to_contain_text(seed)
    assert visit.video_file() == file

    (tmp_path / "kept.mp4").write_bytes(file)
    visit.page.reload()
    expect(visit.results).to_have_count(2)
    visit.page.click("#pf-restore-box button >> nth=0")
    visit.page.set_input_files("#pf-restore input[type=file]", tmp_path / "kept.mp4")
    expect(visit.page.locator("#pf-seed input")).to_have_value(seed)
    expect(visit.page.locator("#pf-scene-1 textarea")).to_have_value("a blue square")
    expect(visit.page.locator("#pf-start-1 input")).to_have_value("0.4")
    expect(visit.page.locator("#pf-new-seed input")).not_to_be_checked()
    visit.make("storyboard")
    assert visit.video_file() == file


def test_who_leaves_makes_room_and_others_see_nothing(
    browser: Any, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "GRACE", 0.5)
    released = threading.Semaphore(1)
    streams = [lambda job: FakeStream(job, released), FakeStream]
    with page_here(card, lambda job: streams.pop(0)(job), tmp_path) as address:
        leaving, staying = Visit(browser, address), Visit(browser, address)
        leaving.page.fill("#pf-modes textarea >> nth=0", PROMPT)
        leaving.page.click("#pf-make-text")
        leaving.wait_for_frames(1)
        staying.page.fill("#pf-modes textarea >> nth=0", "a blue square")
        staying.page.click("#pf-make-text")
        staying.wait_for("wait", "1 video is made before yours")
        leaving.context.close()
        expect(staying.page.locator("#pf-status")).to_contain_text("Starting")
        released.release()  # the step that is being computed
        staying.wait_for("done")
        staying.video()
        expect(staying.results).to_have_count(1)
        expect(staying.details).to_contain_text("a blue square")
        expect(staying.details).not_to_contain_text(PROMPT)
        staying.context.close()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_it_fits_a_phone(browser: Any, address: str, scheme: str, tmp_path: Path) -> None:
    visit = Visit(browser, address, viewport=PHONE, color_scheme=scheme, has_touch=True)
    page = visit.page
    tabs = {"Picture": "image", "Extend": "extend", "Storyboard": "storyboard", "Text": "text"}
    for tab, mode in tabs.items():
        visit.open_tab(tab)
        page.wait_for_selector(f"#pf-make-{mode}")
        page.evaluate(TWO_FRAMES)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], tab
        assert page.evaluate(WIDEST) <= PHONE["width"] + 0.5, tab
    page.fill("#pf-modes textarea >> nth=0", PROMPT)
    visit.make("text")
    visit.video()
    # The result lies below the fields: the page has moved there.
    page.wait_for_function(
        "() => document.querySelector('#pf-result').getBoundingClientRect().top < innerHeight / 2"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    with Image.open(tmp_path / "phone.png") as picture:
        assert picture.width == PHONE["width"]
        corner = picture.convert("L").getpixel((1, 1))
    assert corner < 60 if scheme == "dark" else corner > 200
    text = page.evaluate("getComputedStyle(document.querySelector('.pf-head h1')).color")
    brightness = max(int(number) for number in re.findall(r"\d+", text)[:3])
    assert brightness > 200 if scheme == "dark" else brightness < 80
    visit.context.close()
