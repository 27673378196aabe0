"""A full queue and a full disk: what visitors and clients are told, and what they keep."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_server import PATIENCE, page_here
from page_visit import PROMPT, FakeStream, Visit, expect
from PIL import Image

from pyramid_dit.page import uploads, worker
from pyramid_dit.page.settings import ModelCard

httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

TEXT = [PROMPT, "", "64x64", 0.4, 1, 1, 2, 2, 7, 64, "euler"]
"""Arguments of `/text_to_video`."""
NO_ROOM = "There is no room left on the server's disk"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, *, but: int = 0) -> None:
    """Leave only so many bytes free."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(free - but))
    assert shutil.disk_usage(disk).free <= but


class NoisyStream(FakeStream):
    """Units that no encoder makes small, each of 300 KB or more."""

    def __next__(self) -> list[Image.Image]:
        noise = np.random.default_rng(0).integers
        return [Image.fromarray(noise(0, 256, (256, 256, 3), np.uint8)) for _ in super().__next__()]


def test_a_disk_that_fills_while_a_video_is_written(
    browser: Any, card: ModelCard, small_disk: Path
) -> None:
    released = threading.Semaphore(1)
    with page_here(card, lambda job: NoisyStream(job, released), small_disk) as address:
        visit = Visit(browser, address)
        visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
        visit.page.click("#pf-make-text")
        visit.wait_for_frames(1)
        fill(small_disk, but=100_000)
        for _ in range(6):
            released.release()
        assert NO_ROOM in visit.wait_for("failed")
        visit.wait_for_toast(NO_ROOM)
        # what was made is still to be seen, and the next video can be made
        assert int(visit.page.get_attribute(".pf-preview", "data-frames") or 0) > 0
        expect(visit.page.locator(".pf-preview")).to_be_visible()
        expect(visit.page.locator("#pf-stop")).to_be_hidden()
        (small_disk / "filler").unlink()
        for _ in range(7):
            released.release()
        visit.make("text")
        visit.video()
        assert visit.errors == []
        visit.context.close()


def test_a_disk_that_fills_after_the_video_was_written(
    browser: Any, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left", "/secret/place")

    monkeypatch.setattr(worker, "write_comment", no_room)
    with page_here(card, FakeStream, tmp_path) as address:
        visit = Visit(browser, address)
        visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
        visit.page.click("#pf-make-text")
        assert "The video is kept" in visit.wait_for("failed")
        visit.video()
        expect(visit.results).to_have_count(1)
        assert visit.errors == []
        visit.context.close()
        with connected(address, tmp_path / "client") as client:
            video, about = client.predict(PROMPT, api_name="/text_to_video")
        path = Path(video["video"] if isinstance(video, dict) else video)
        assert (about["state"], path.suffix) == ("failed", ".mp4")
        assert about["error"].startswith(NO_ROOM)


@contextmanager
def connected(address: str, downloads: Path) -> Iterator[Any]:
    client = gradio_client.Client(
        address, verbose=False, download_files=downloads, httpx_kwargs={"timeout": PATIENCE}
    )
    yield client
    client.close()


def test_a_full_queue(
    browser: Any, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_WAITING", 1)
    released = threading.Semaphore(0)
    with page_here(card, lambda job: FakeStream(job, released), tmp_path) as address:
        first, second = Visit(browser, address), Visit(browser, address)
        for visit in (first, second):
            visit.page.fill("#pf-modes textarea >> nth=0", PROMPT)
        first.page.click("#pf-make-text")
        first.wait_for("run")
        words = "1 requests are waiting already; try again later"
        second.page.click("#pf-make-text")
        assert words in second.wait_for("failed")
        second.wait_for_toast(words)
        expect(second.page.locator("#pf-make-text")).to_be_enabled()
        url = f"{address}gradio_api/run/text_to_video"
        answer = httpx.post(url, json={"data": TEXT}, timeout=PATIENCE)
        assert answer.status_code == 503
        assert words in answer.json()["error"]
        for _ in range(14):
            released.release()
        first.wait_for("done")
        second.make("text")
        for visit in (first, second):
            assert visit.errors == []
            visit.context.close()


def upload(address: str, content: bytes | Iterator[bytes]) -> Any:
    url = f"{address}gradio_api/upload"
    if isinstance(content, bytes):
        return httpx.post(url, files={"files": ("a.png", content)}, timeout=PATIENCE)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return httpx.post(url, content=content, headers=headers, timeout=PATIENCE)


def multipart(size: int) -> Iterator[bytes]:
    """A file whose length is not told before."""
    yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for _ in range(0, size, 2**16):
        yield bytes(2**16)
    yield b"\r\n--b--\r\n"


def test_uploads_that_are_too_large(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    with page_here(card, FakeStream, folder) as address:
        connection = http.client.HTTPConnection(address.split("/")[2], timeout=PATIENCE)
        told = {"Content-Length": str(300 * 2**20), "Content-Type": "multipart/form-data"}
        connection.request("POST", "/gradio_api/upload", headers=told)  # before anything is sent
        refused = connection.getresponse()
        assert refused.status == 413
        assert b"too large, 300 MB: at most 201 MB" in refused.read()
        connection.close()
        assert upload(address, bytes(2**20)).status_code == 200
        assert upload(address, multipart(2**20)).status_code == 200
        kept = stored(folder)
        monkeypatch.setattr(uploads, "MAX_REQUEST_BYTES", 2**20)
        for content in (bytes(2**21), multipart(2**21)):
            answer = upload(address, content)
            assert answer.status_code == 413
            assert "at most 1 MB" in answer.text or "maximum allowed size, 1 MB" in answer.text
        assert stored(folder) == kept


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_uploads_for_which_there_is_no_room(
    card: ModelCard, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with page_here(card, FakeStream, small_disk) as address:
        answer = upload(address, bytes(1000))  # on a disk with less than is to remain free
        assert answer.status_code == 507
        assert answer.text == "There is no room for uploads at the moment: try again later.\n"
        monkeypatch.setattr(uploads, "FREE_BYTES", 0)
        assert upload(address, bytes(1000)).status_code == 200
        monkeypatch.setattr(uploads, "MAX_UPLOADS_BYTES", 10_000)
        assert upload(address, bytes(20_000)).status_code == 507
        # there was room a moment ago
        monkeypatch.setattr(uploads.UploadLimit, "_has_room", lambda *_: True)
        fill(small_disk)
        answer = upload(address, bytes(100_000))
        assert answer.status_code == 507
        assert answer.text.startswith(NO_ROOM)


def test_old_uploads_make_room(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with page_here(card, FakeStream, tmp_path) as address:
        monkeypatch.setattr(uploads, "MAX_UPLOADS_BYTES", 150_000)
        (old,) = upload(address, bytes(100_000)).json()
        assert upload(address, bytes(100_001)).status_code == 507
        os.utime(old, (1, 1))
        assert upload(address, bytes(100_001)).status_code == 200
        assert not Path(old).exists()
