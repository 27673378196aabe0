"""The tab "Live", driven in a browser: it plays, follows new words, and ends with its visitor."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from page_server import page_here, running_page
from page_visit import CONTRAST, NAMELESS, SETTLED, Visit, expect
from PIL import Image
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit.media.video_files import read_video
from pyramid_dit.page import live
from pyramid_dit.page.examples import SHAPES
from pyramid_dit.page.live import KEPT_STRIPS, PATH, LiveJob, LiveRoutes
from pyramid_dit.page.media_checks import read_settings
from pyramid_dit.page.settings import ModelCard
from pyramid_dit.page.visitors import Form
from pyramid_dit.page.worker import Job, State, Worker

pytest.importorskip("gradio")

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
COLOR_SEEN = """(color) => {
  const canvas = document.querySelector(".pf-live canvas");
  const seen = canvas.getContext("2d").getImageData(5, 5, 1, 1).data;
  return color.every((value, i) => Math.abs(value - seen[i]) < 20);
}"""
PLAYS_ON = """(frames) => Number(document.querySelector(".pf-live").dataset.frames) > frames"""


class FakeLive(AbstractContextManager, Iterator[list[Image.Image]]):
    """Units in the color that the prompt names, without end; `released` lets each through."""

    total_steps = float("inf")

    def __init__(self, job: Job, released: threading.Semaphore | None = None) -> None:
        self.stopped = threading.Event()
        self.asked: list[str | None] = []
        callbacks = job.callbacks(self)
        self._units = self._made(callbacks, job.request.settings.prompt, released)

    def _made(
        self, callbacks: dict[str, Callable[..., Any]], prompt: str, released: Any
    ) -> Iterator[list[Image.Image]]:
        for unit in itertools.count():
            while released is not None and not released.acquire(timeout=0.05):
                callbacks["callback"](unit, 0)
                if self.stopped.is_set():
                    return
            self.asked.append(callbacks["next_prompt"](unit))
            prompt = self.asked[-1] or prompt
            callbacks["callback_on_step_end"](None, unit, 0.0, {})
            if self.stopped.is_set():
                return
            color = next(COLORS[word] for word in prompt.split() if word in COLORS)
            yield [Image.new("RGB", (64, 64), color)] * (8 if unit else 1)

    def stop(self) -> None:
        """As the model has it."""
        self.stopped.set()

    def __next__(self) -> list[Image.Image]:
        return next(self._units)

    def __exit__(self, *_: object) -> None:
        pass


class LiveVisit(Visit):
    """A visitor in that tab."""

    def play(self, prompt: str = "a red circle") -> None:
        self.open_tab("Live")
        self.page.get_by_label("What the video begins with").fill(prompt)
        self.page.click("#pf-make-live")

    def wait_for_live(self, state: str, words: str = "") -> str:
        self.page.wait_for_selector(f".pf-live[data-state={state}]:has-text('{words}')")
        return self.page.inner_text(".pf-live-status")

    def frames(self) -> int:
        return int(self.page.get_attribute(".pf-live", "data-frames"))

    def say(self, words: str) -> None:
        self.page.fill(".pf-live-say input", words)
        self.page.keyboard.press("Enter")


def sees(visit: Visit, color: str) -> None:
    visit.page.wait_for_function(COLOR_SEEN, arg=COLORS[color])


def test_it_plays_without_end_and_follows_new_words(
    browser: Any, card: ModelCard, tmp_path: Path
) -> None:
    released, streams = threading.Semaphore(0), []

    def start(job: Job) -> FakeLive:
        streams.append(FakeLive(job, released))
        return streams[-1]

    with page_here(card, start, tmp_path) as address:
        visit = LiveVisit(browser, address)
        visit.play()
        assert visit.wait_for_live("wait") == "Starting …"
        released.release(2)
        assert visit.wait_for_live("run") == "Live."
        visit.page.wait_for_function(PLAYS_ON, arg=8)
        sees(visit, "red")
        visit.say("a blue circle")
        expect(visit.page.locator(".pf-live-delay")).to_have_text("“a blue circle” …")
        with visit.page.expect_response("**/say") as sent:
            visit.say("a green square")
        assert sent.value.status == 204
        released.release()  # the unit that is begun next
        sees(visit, "green")
        assert streams[0].asked == [None, None, "a green square"]
        expect(visit.page.locator(".pf-live-delay")).to_contain_text("were seen after")
        assert visit.frames() >= 10
        with visit.page.expect_response("**/say"):
            visit.page.get_by_role("button", name="at night").click()
        released.release()
        visit.page.wait_for_function(PLAYS_ON, arg=24)
        assert streams[0].asked[3:] == ["a green square, at night"]
        visit.page.click("#pf-live-stop")
        assert visit.wait_for_live("stopped") == "Stopped."
        assert streams[0].stopped.is_set()
        visit.page.wait_for_selector("#pf-make-live:not([disabled])")
        assert visit.errors == []
        visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_click_changes_one_word_of_the_sentence(
    browser: Any, scheme: str, tmp_path: Path
) -> None:
    from pyramid_dit.checkpoints.folder import CheckpointFolder

    sentence = ["a", {"color": ["red", "blue"]}, {"shape": ["circle", "cross"]}]
    index = QUICK_INDEX | {"known_sentence": sentence}
    folder = write_tiny_checkpoint(tmp_path / "tiny", index=index)
    card = ModelCard.of(CheckpointFolder.open(folder), "tiny")
    streams: list[FakeLive] = []

    def start(job: Job) -> FakeLive:
        streams.append(FakeLive(job))
        return streams[-1]

    with page_here(card, start, tmp_path / "page") as address:
        visit = LiveVisit(browser, address, color_scheme=scheme)
        visit.play("a red circle")
        color = visit.page.get_by_role("group", name="color")
        expect(color.get_by_role("button", name="red")).to_have_attribute("aria-pressed", "true")
        color.get_by_role("button", name="blue").click()
        sees(visit, "blue")
        visit.page.evaluate(SETTLED)
        measured, faint = visit.page.evaluate(CONTRAST)
        assert len(measured) > 20 and faint == []
        assert visit.page.evaluate(NAMELESS) == []
        visit.page.get_by_role("button", name="cross").click()
        expect(visit.page.locator(".pf-live-delay")).to_contain_text("were seen after")
        visit.page.wait_for_function(PLAYS_ON, arg=visit.frames() + 8)
        assert [words for words in streams[0].asked if words] == ["a blue circle", "a blue cross"]
        assert visit.errors == []
        visit.context.close()


def test_who_leaves_ends_it_and_others_wait_in_words(
    browser: Any, card: ModelCard, tmp_path: Path
) -> None:
    with page_here(card, FakeLive, tmp_path) as address:
        first, second = LiveVisit(browser, address), LiveVisit(browser, address)
        first.play()
        first.wait_for_live("run")
        second.play("a blue circle")
        second.wait_for_live("wait", "Waiting: someone else is live, for 5 minutes at most.")
        third = Visit(browser, address)
        third.page.fill("#pf-modes textarea >> nth=0", "a red circle")
        third.page.click("#pf-make-text")
        third.wait_for("wait", "Waiting: 2 videos are made before yours.")
        third.page.click("#pf-stop")
        first.page.close()
        second.wait_for_live("run")
        sees(second, "blue")
        for visit in (first, second, third):
            assert visit.errors == []
            visit.context.close()


def test_a_turn_ends_where_others_wait(
    browser: Any, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "TURN", 0)
    with page_here(card, FakeLive, tmp_path) as address:
        first, second = LiveVisit(browser, address), LiveVisit(browser, address)
        first.play()
        first.wait_for_live("run")
        second.play("a blue circle")
        assert first.wait_for_live("stopped") == "Stopped, for others are waiting."
        second.wait_for_live("run")
        for visit in (first, second):
            assert visit.errors == []
            visit.context.close()


def test_what_went_wrong_is_said(browser: Any, card: ModelCard, tmp_path: Path) -> None:
    def start(job: Job) -> Any:
        raise ValueError("no such color")

    with page_here(card, start, tmp_path) as address:
        visit = LiveVisit(browser, address)
        visit.play("  ")
        visit.wait_for_toast("The prompt is empty")
        visit.play()
        assert visit.wait_for_live("failed") == "No such color."
        assert visit.errors == []
        visit.context.close()


def live_job(card: ModelCard, folder: Path) -> LiveJob:
    options = card.settings("live").options | {"seed": 1}
    form = Form(mode="live", prompt="a red circle", size="64x64", options=options)
    return LiveJob(form.request(card), folder)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"number": 1, "prompt": " a blue circle "}, 204),
        ({"number": 1, "prompt": "  "}, 400),
        ({"number": 1, "prompt": "x" * 2001}, 400),
        ({"number": 1, "prompt": "x" * 20000}, 413),
        ({"number": "1", "prompt": "a"}, 400),
        ({"number": True, "prompt": "a"}, 400),
        ({"prompt": "a"}, 400),
        ({"number": 1, "prompt": 3}, 400),
        ([], 400),
        (None, 400),
    ],
)
def test_nonsense_and_strangers_are_refused(
    card: ModelCard, tmp_path: Path, said: Any, status: int
) -> None:
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    routes = LiveRoutes(Worker(FakeLive, folder=tmp_path))
    job = live_job(card, tmp_path / "job")
    client = TestClient(Starlette(routes=routes.routes()))
    path = f"{PATH}/{routes.add(job)}/say"
    assert client.post(path, json=said).status_code == status
    assert job._next_prompt(0) == ("a blue circle" if status == 204 else None)
    assert client.post(path, content=b"\xff").status_code == 400
    assert client.get(f"{PATH}/nothing").status_code == 404
    assert client.post(f"{PATH}/nothing/say", json=said).status_code == 404
    job.end()
    assert client.post(path, json=said).status_code == 404
    told = client.get(f"{PATH}/job").text
    assert told.startswith("data: ") and '"over": true' in told


@pytest.mark.parametrize(
    ("last", "told"),
    [("", [3, 4, 5]), ("4", [5]), ("5", []), ("7", []), ("x", [3, 4, 5]), ("9" * 5000, [3, 4, 5])],
)
def test_who_connects_late_or_again_gets_what_is_kept(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, told: list[int]
) -> None:
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    monkeypatch.setattr(live, "KEPT_STRIPS", 3)
    routes = LiveRoutes(Worker(FakeLive, folder=tmp_path))
    job = live_job(card, tmp_path / "job")
    name = routes.add(job)
    for _ in range(5):
        job._next(iter([[Image.new("RGB", (64, 64))]]))  # type: ignore[arg-type]
    job.end()
    client = TestClient(Starlette(routes=routes.routes()))
    events = client.get(f"{PATH}/{name}", headers={"Last-Event-ID": last}).text.split("\n\n")
    frames = [event.split("\n") for event in events if '"source"' in event]
    assert [lines[0] for lines in frames] == [f"id: {number}" for number in told]
    assert all(json.loads(lines[1].removeprefix("data: "))["count"] == 1 for lines in frames)


def test_nothing_grows(card: ModelCard, tmp_path: Path) -> None:
    job = live_job(card, tmp_path)
    job.others_wait = lambda: True
    stream = FakeLive(job)
    seen: list[int] = []

    def next_unit() -> list[Image.Image]:
        job._due = 0.0  # nobody watches: no need to wait
        seen.append(len(job._recent))
        if job.strips_made == 40:
            job.stop()
        return next(stream)

    job.begin()
    job.run(iter(next_unit, None))  # type: ignore[arg-type]
    job.end()
    assert job.state is State.STOPPED and job.frames == 1 + 8 * 39
    assert max(seen) == KEPT_STRIPS and job.strips == [] and len(job._unit_ends) == 2
    kept = job.keep(tmp_path / "kept")
    assert len(read_video(kept.path)) == job.frames
    assert read_settings(kept.path).mode == "live"
    assert Image.open(kept.poster).size == (64, 64)
    job.discard()
    with pytest.raises(ValueError, match="nothing was played"):
        job.keep(tmp_path / "again")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    index = QUICK_INDEX | {"known_words": sorted({w for text in SHAPES for w in text.split()})}
    model = write_tiny_checkpoint(folder / "tiny", index=index)
    with running_page("--model", str(model), "--threads", "1", log=folder / "log") as (url, _):
        yield url
    assert "Traceback" not in (folder / "log").read_text()


def test_a_real_model_is_live_and_what_was_played_is_kept(browser: Any, address: str) -> None:
    visit = LiveVisit(browser, address)
    visit.play("a red circle moves left on a white background")
    visit.page.wait_for_function(PLAYS_ON, arg=16)
    visit.say("a blue cross grows on a gray background")
    expect(visit.page.locator(".pf-live-delay")).to_contain_text("were seen after")
    visit.page.click("#pf-live-keep")
    expect(visit.results).to_have_count(1)
    visit.page.wait_for_function(PLAYS_ON, arg=visit.frames() + 16)
    visit.page.click("#pf-live-stop")
    assert visit.wait_for_live("stopped") == "Stopped."
    played = visit.frames()
    visit.page.click("#pf-live-keep")
    expect(visit.results).to_have_count(2)
    visit.results.nth(0).click()
    _, duration, width, height = visit.video()
    assert (width, height) == (64, 64) and duration >= played / 24 - 0.1
    expect(visit.details).to_contain_text("played live")
    assert json.dumps(visit.errors) == "[]"
    visit.context.close()
