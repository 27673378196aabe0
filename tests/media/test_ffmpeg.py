"""The ffmpeg program ends with what started it, whenever a signal comes."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyramid_dit.media.ffmpeg import file_name, run_ffmpeg, uninterrupted
from pyramid_dit.media.progressive_video import ProgressiveVideo
from pyramid_dit.media.video_files import export_to_video

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Ctrl-C raises, also where a shell has started the tests deaf to it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def write_whole(path: Path) -> None:
    export_to_video(FRAMES, path)


def write_bit_by_bit(path: Path) -> None:
    with ProgressiveVideo(path) as video:
        video.write(FRAMES)


def run(path: Path) -> None:
    run_ffmpeg(["-f", "lavfi", "-i", "testsrc=d=1000", "-f", "mp4", file_name(path)])


@pytest.mark.parametrize("write", [write_whole, write_bit_by_bit, run])
def test_a_signal_while_it_starts_leaves_no_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if not started:
                started.append(self)
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.mp4")
    assert started[0].returncode is not None
    assert [path for path in tmp_path.iterdir() if path.name != "a.mp4"] == []


def test_signals_wait() -> None:
    """Each handler is called once, after the body, and is there again."""
    calls: list[str] = []
    former = signal.signal(signal.SIGTERM, lambda *_: calls.append("handled"))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            calls.append("body")
        assert calls == ["body", "handled"]
        assert signal.getsignal(signal.SIGTERM) is handler
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            signal.raise_signal(signal.SIGINT)
            calls.append("body")
        with pytest.raises(OSError, match="its own"), uninterrupted():
            raise OSError("its own")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, former)
    assert calls == ["body", "handled", "body"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_have_no_signals_to_wait_for() -> None:
    calls: list[str] = []

    def work() -> None:
        with uninterrupted():
            calls.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert calls == ["done"]
