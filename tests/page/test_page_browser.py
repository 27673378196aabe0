"""The page in a real browser, driven as a visitor would."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_server import PATIENCE, running_page
from PIL import Image
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser")
pytest.importorskip("gradio")

PROMPT = "a red circle moves left"
PHONE = {"width": 375, "height": 812}
VIDEO_STATE = """() => {
  const video = document.querySelector("#pf-result-video video");
  return video && [video.readyState, video.duration, video.videoWidth, video.videoHeight];
}"""
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        program = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(program).exists():
            pytest.skip("there is no chromium: `apt-get install chromium`")
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=program, args=sandbox)
        yield started
        started.close()


class Visit:
    """A visitor with the page open."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address = address
        self.asked_for: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(1000 * PATIENCE)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#pf-make-text")
        self.page.wait_for_selector("#pf-status .pf-idle")

    def open_tab(self, name: str) -> None:
        self.page.click(f"button[role=tab]:has-text('{name}')")

    def set_seconds(self, seconds: float) -> None:
        self.page.fill("#pf-seconds input[type=number]", str(seconds))
        self.page.keyboard.press("Tab")

    def wait_for(self, state: str) -> str:
        """Wait until the status is of this kind, and return its words."""
        self.page.wait_for_selector(f"#pf-status [data-state={state}]")
        return self.page.inner_text("#pf-status .pf-status")

    def make(self, mode: str) -> str:
        self.page.click(f"#pf-make-{mode}")
        self.page.wait_for_selector("#pf-stop")
        return self.wait_for("done")

    def video(self) -> list[float]:
        """Ready state, duration, width and height of the video, once it can be played."""
        script = f"() => ((state) => state && state[0] >= 3 ? state : null)(({VIDEO_STATE})())"
        return self.page.wait_for_function(script).json_value()

    def video_file(self) -> bytes:
        self.video()
        return self.page.request.get(
            self.page.get_attribute("#pf-result-video video", "src")
        ).body()

    def frames_shown(self) -> int:
        return int(self.page.get_attribute(".pf-preview", "data-frames"))

    def seed(self) -> str:
        return self.page.input_value("#pf-seed input")


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, viewport={"width": 1280, "height": 900})
    yield visit
    assert visit.errors == []
    visit.context.close()


def test_frames_arrive_and_the_video_plays(visit: Visit) -> None:
    visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
    visit.set_seconds(2)
    visit.page.click("#pf-make-text")
    previews, percents = set(), set()
    while not visit.page.query_selector("#pf-status [data-state=done]"):
        previews.add(visit.frames_shown())
        if bar := visit.page.query_selector("#pf-status [role=progressbar]"):
            percents.add(bar.get_attribute("aria-valuenow"))
        time.sleep(0.02)
    assert len(previews - {0, 49}) > 1, previews
    assert len(percents) > 2
    _, duration, width, height = visit.video()
    assert (width, height) == (64, 64)
    assert duration == pytest.approx(49 / 24, abs=0.01)
    visit.page.wait_for_function(
        "() => document.querySelector('#pf-result-video video').currentTime > 0"
    )
    about = visit.page.inner_text("#pf-details")
    assert visit.seed() in about
    assert PROMPT in about
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
    assert words in visit.page.inner_text(".toast-wrap")
    visit.page.fill("#pf-size input", "64x64")
    visit.page.keyboard.press("Enter")
    visit.make("text")
    visit.page.wait_for_selector("#pf-gallery .thumbnail-item")
    assert words in visit.page.inner_text("#pf-details")
    assert visit.page.get_attribute("#pf-gallery .thumbnail-item img", "alt") == words
    assert visit.page.query_selector("img[src=x]") is None


def test_stopping(visit: Visit) -> None:
    visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
    visit.set_seconds(10)
    visit.page.click("#pf-make-text")
    visit.page.wait_for_function(
        "() => Number(document.querySelector('.pf-preview').dataset.frames) >= 9"
    )
    visit.page.click("#pf-stop")
    assert "Stopped" in visit.wait_for("stopped")
    assert visit.video()[1] < 5  # what was made is kept
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
    assert "not a picture" in visit.page.inner_text(".toast-wrap")
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
    visit.page.wait_for_function(
        "() => document.querySelector('#pf-scene-1 textarea').value.includes('sun')"
    )
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

    shown = visit.page.locator("#pf-gallery .thumbnail-item")
    shown.nth(1).wait_for()
    assert shown.count() == 2
    shown.nth(1).click()
    visit.page.wait_for_selector(f"#pf-details :text('{seed}')")
    assert visit.video_file() == file

    (tmp_path / "kept.mp4").write_bytes(file)
    visit.page.reload()
    visit.page.wait_for_selector("#pf-status .pf-idle")
    assert visit.page.locator("#pf-gallery .thumbnail-item").count() == 0
    visit.page.click("#pf-restore-box button >> nth=0")
    visit.page.set_input_files("#pf-restore input[type=file]", tmp_path / "kept.mp4")
    visit.page.wait_for_function(
        f"() => document.querySelector('#pf-seed input').value == '{seed}'"
    )
    assert visit.page.input_value("#pf-scene-1 textarea") == "a blue square"
    assert visit.page.input_value("#pf-start-1 input") == "0.4"
    assert not visit.page.is_checked("#pf-new-seed input")
    visit.make("storyboard")
    assert visit.video_file() == file


def test_who_leaves_makes_room_and_others_see_nothing(browser: Any, address: str) -> None:
    leaving, staying = Visit(browser, address), Visit(browser, address)
    leaving.page.fill("#pf-modes textarea >> nth=0", PROMPT)
    leaving.set_seconds(10)
    leaving.page.click("#pf-make-text")
    leaving.wait_for("run")
    staying.page.fill("#pf-modes textarea >> nth=0", "a blue square")
    staying.page.click("#pf-make-text")
    assert "1 video is made before yours" in staying.wait_for("wait")
    leaving.context.close()
    staying.wait_for("done")
    staying.video()
    staying.page.wait_for_selector("#pf-gallery .thumbnail-item")
    assert staying.page.locator("#pf-gallery .thumbnail-item").count() == 1
    assert PROMPT not in staying.page.inner_text("#pf-details")
    staying.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, address: str, scheme: str, tmp_path: Path) -> None:
    visit = Visit(browser, address, viewport=PHONE, color_scheme=scheme, has_touch=True)
    page = visit.page
    for tab in ("Picture", "Extend", "Storyboard", "Text"):
        visit.open_tab(tab)
        page.wait_for_timeout(100)
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
