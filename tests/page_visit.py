"""A visitor of the page in a real browser, and videos that no model has to make."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from page_server import PATIENCE
from PIL import Image

from pyramid_dit.page.worker import Job

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser")
expect = sync_api.expect
expect.set_options(timeout=1000 * PATIENCE)

PROMPT = "a red circle moves left"
VIDEO_STATE = """() => {
  const video = document.querySelector("#pf-result-video video");
  return video && [video.readyState, video.duration, video.videoWidth, video.videoHeight];
}"""
CONTRAST = (Path(__file__).parent / "page/contrast.js").read_text()
SETTLED = """() => new Promise((done) => {
  const moving = () => document.getAnimations().filter(
    (one) => one.playState === "running" && one.effect.getComputedTiming().endTime < 2000);
  const look = () => moving().length ? requestAnimationFrame(look) : done();
  requestAnimationFrame(() => requestAnimationFrame(look));
})"""
NAMELESS = """() => [...document.querySelectorAll("input, textarea, button, video, img, canvas")]
  .filter((one) => one.checkVisibility())
  .filter((one) => !one.ariaLabel && !one.hasAttribute('alt') && !one.title
    && !one.innerText?.trim() && ![...(one.labels || [])].some((label) => label.innerText.trim()))
  .map((one) => one.outerHTML)"""
RECORD_TOASTS = """() => {
  window.toasts = [];
  new MutationObserver(() => {
    for (const toast of document.querySelectorAll(".toast-wrap")) toasts.push(toast.innerText);
  }).observe(document.body, { childList: true, subtree: true });
}"""


class FakeStream(AbstractContextManager, Iterator[list[Image.Image]]):
    """Units of one color each, as soon as `released` lets them through; without it at once."""

    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]
    counts = [1, 9, 17, 25, 33, 41]
    total_steps = 6

    def __init__(self, job: Job, released: threading.Semaphore | None = None) -> None:
        self._stopped = False
        self._units = self._made(job.callbacks(self)["callback_on_step_end"], released)

    def _made(
        self, on_step: Callable[..., None], released: threading.Semaphore | None
    ) -> Iterator[list[Image.Image]]:
        for step, color in enumerate([*self.colors, None]):
            assert released is None or released.acquire(timeout=PATIENCE)
            if color is not None:
                on_step(None, step, 0.0, {})
                if self._stopped:
                    return
                yield [Image.new("RGB", (64, 64), color)] * (8 if step else 1)

    def stop(self) -> None:
        """As the model has it."""
        self._stopped = True

    def __next__(self) -> list[Image.Image]:
        return next(self._units)

    def __exit__(self, *_: object) -> None:
        pass


class Visit:
    """A visitor with the page open."""

    def __init__(
        self, browser: Any, address: str, *, beside: Visit | None = None, **options: Any
    ) -> None:
        self.address = address
        self.asked_for: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(**options) if beside is None else beside.context
        self.context.set_default_timeout(1000 * PATIENCE)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#pf-make-text")
        if beside is None:
            self.page.wait_for_selector("#pf-status .pf-idle")
        self.page.evaluate(RECORD_TOASTS)
        # By then the server knows who has come.
        self.page.wait_for_function("localStorage.getItem('pyramid-flow-visitor')")
        self.results = self.page.locator("#pf-gallery .thumbnail-item")
        self.details = self.page.locator("#pf-details")

    def open_tab(self, name: str) -> None:
        self.page.click(f"button[role=tab]:has-text('{name}')")
        self.page.wait_for_selector(f"button[role=tab][aria-selected=true]:has-text('{name}')")

    def set_seconds(self, seconds: float) -> None:
        self.page.fill("#pf-seconds input[type=number]", str(seconds))
        self.page.keyboard.press("Tab")

    def wait_for(self, state: str, words: str = "") -> str:
        """Wait until the status is of this kind and has these words in it; return all of it."""
        self.page.wait_for_selector(f"#pf-status:has([data-state={state}]):has-text('{words}')")
        return self.page.inner_text("#pf-status .pf-status")

    def make(self, mode: str) -> None:
        """Make a video, and wait until it is there."""
        before = self.results.count()
        with self.another_video():
            self.page.click(f"#pf-make-{mode}")
            self.results.nth(before).wait_for()  # the status may come and go unseen
        self.wait_for("done")

    @contextmanager
    def another_video(self) -> Iterator[None]:
        """Wait until another video is shown than before."""
        source = "document.querySelector('#pf-result-video video')?.src"
        before = self.page.evaluate(f"{source} || null")
        yield
        self.page.wait_for_function(f"(before) => {source} && {source} != before", arg=before)

    def begin_what_takes_long(self) -> None:
        """Have a video made that no machine finishes within a test: of 9,000 steps."""
        self.page.fill("#pf-modes textarea >> nth=0", PROMPT)
        self.set_seconds(10)
        self.page.click("#pf-more button >> nth=0")
        self.page.get_by_label("number input for Steps of later frames").fill("100")
        self.page.keyboard.press("Tab")
        self.page.click("#pf-make-text")

    def video(self) -> list[float]:
        """Ready state, duration, width and height of the video, once it can be played."""
        script = f"() => ((state) => state && state[0] >= 3 ? state : null)(({VIDEO_STATE})())"
        return self.page.wait_for_function(script).json_value()

    def video_file(self) -> bytes:
        self.video()
        source = self.page.get_attribute("#pf-result-video video", "src")
        return self.page.request.get(source, timeout=1000 * PATIENCE).body()

    def wait_for_toast(self, words: str) -> None:
        """Wait until there was a message with these words; it goes away by itself."""
        self.page.wait_for_function("(words) => toasts.some(t => t.includes(words))", arg=words)

    def wait_for_frames(self, count: int) -> None:
        """Wait until the preview has so many frames."""
        self.page.wait_for_selector(f".pf-preview[data-frames='{count}']", state="attached")

    def seed(self) -> str:
        return self.page.input_value("#pf-seed input")
