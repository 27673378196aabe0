"""What a visitor finds who opens the page again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_server import page_here
from page_visit import PROMPT, FakeStream, Visit, expect

from pyramid_dit.page import visitors
from pyramid_dit.page.settings import ModelCard
from pyramid_dit.page.worker import Job

pytest.importorskip("gradio")


class Served:
    """A page for several tests, whose videos each makes in a way of its own."""

    address: str
    start: Callable[[Job], FakeStream]


@pytest.fixture(scope="module")
def served(card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served()
    folder = tmp_path_factory.mktemp("page")
    with page_here(card, lambda job: served.start(job), folder) as served.address:
        yield served


def begin(visit: Visit) -> None:
    visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
    visit.page.click("#pf-make-text")


def test_a_reload_while_a_video_is_made(browser: Any, served: Served) -> None:
    released = threading.Semaphore(0)
    served.start = lambda job: FakeStream(job, released)
    visit = Visit(browser, served.address)
    begin(visit)
    for _ in range(2):
        released.release()
    visit.wait_for_frames(9)
    seed = visit.seed()
    visit.page.reload()
    visit.wait_for_frames(9)  # those that were there
    assert "9 frames so far" in visit.wait_for("run")
    expect(visit.page.locator("#pf-make-text")).to_be_disabled()
    assert visit.seed() == seed
    released.release()
    visit.wait_for_frames(17)
    visit.page.reload()
    for count in (25, 33, 41):
        released.release()
        visit.wait_for_frames(count)
    released.release()
    visit.wait_for("done")
    assert visit.video()[1] == pytest.approx(41 / 24, abs=0.01)
    expect(visit.results).to_have_count(1)
    expect(visit.details).to_contain_text(seed)
    expect(visit.page.locator("#pf-make-text")).to_be_enabled()

    begin(visit)
    for _ in range(2):
        released.release()
    visit.wait_for_frames(9)
    visit.page.reload()
    visit.wait_for_frames(9)
    visit.page.click("#pf-stop")
    expect(visit.page.locator("#pf-status")).to_contain_text("Stopping")
    for _ in range(5):
        released.release()
    assert "Stopped" in visit.wait_for("stopped")
    expect(visit.results).to_have_count(2)
    assert visit.errors == []
    visit.context.close()


def test_a_reload_after_a_video_was_made(browser: Any, served: Served) -> None:
    served.start = FakeStream
    visit = Visit(browser, served.address)
    begin(visit)
    visit.wait_for("done")
    file, seed = visit.video_file(), visit.seed()
    visit.page.reload()
    visit.wait_for("done")
    expect(visit.results).to_have_count(1)
    assert visit.video_file() == file
    visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
    visit.make("text")
    expect(visit.details).not_to_contain_text(seed)
    with visit.another_video():
        visit.results.nth(1).click()
    expect(visit.details).to_contain_text(seed)

    stranger = Visit(browser, served.address)
    expect(stranger.results).to_have_count(0)
    for someone in (stranger, visit):
        assert someone.errors == []
        someone.context.close()


def test_a_video_that_was_finished_meanwhile(browser: Any, served: Served) -> None:
    released = threading.Semaphore(0)
    ended = threading.Event()

    class Ended(FakeStream):
        def __exit__(self, *_: object) -> None:
            ended.set()

    served.start = lambda job: Ended(job, released)
    visit = Visit(browser, served.address)
    begin(visit)
    released.release()
    visit.wait_for_frames(1)
    visit.page.goto("about:blank")
    for _ in range(6):
        released.release()
    assert ended.wait(300)
    visit.page.goto(served.address)
    visit.wait_for("done")
    visit.video()
    expect(visit.results).to_have_count(1)
    assert visit.errors == []
    visit.context.close()


@pytest.mark.slow
def test_two_tabs(browser: Any, served: Served) -> None:
    released = threading.Semaphore(0)
    served.start = lambda job: FakeStream(job, released)
    first = Visit(browser, served.address)
    idle = Visit(browser, served.address, beside=first)
    begin(first)
    released.release()
    first.wait_for_frames(1)
    second = Visit(browser, served.address, beside=first)
    second.wait_for_frames(1)  # the same video
    begin(idle)
    assert "perhaps in another tab" in idle.wait_for("failed")
    for _ in range(6):
        released.release()
    for visit in (first, second):
        visit.wait_for("done")
        visit.video()
        expect(visit.results).to_have_count(1)
    expect(idle.results).to_have_count(0)
    for _ in range(7):
        released.release()
    idle.make("text")
    expect(idle.results).to_have_count(2)
    # one that was made elsewhere since does not change which is chosen here
    seed = first.seed()
    first.page.fill("#pf-seed input", "1")
    first.results.nth(0).click()
    first.page.click("#pf-use")
    expect(first.page.locator("#pf-seed input")).to_have_value(seed)
    for visit in (first, second, idle):
        assert visit.errors == []
    first.context.close()


def test_the_oldest_results_go(
    browser: Any, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "MAX_RESULTS", 2)
    with page_here(card, FakeStream, tmp_path) as address:
        visit = Visit(browser, address)
        begin(visit)
        visit.wait_for("done")
        other = Visit(browser, address, beside=visit)
        expect(other.results).to_have_count(1)
        visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
        visit.make("text")
        with visit.another_video():
            visit.page.click("#pf-make-text")
        visit.wait_for("done")
        expect(visit.results).to_have_count(2)
        assert len(list(tmp_path.rglob("*.mp4"))) == 2
        other.results.nth(0).click()
        other.wait_for_toast("not kept any more")
        expect(other.results).to_have_count(2)
        for someone in (visit, other):
            assert someone.errors == []
        visit.context.close()
