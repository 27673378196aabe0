"""The page without a browser: what it checks, keeps and makes, and what clients call."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from golden import PROJECT_ROOT
from imageio_ffmpeg import get_ffmpeg_exe
from page_server import PATIENCE, at_work, page_here, running_page
from PIL import Image
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.generation.stream import VideoStream
from pyramid_dit.media.embedded_settings import write_comment
from pyramid_dit.media.video_files import export_to_video, read_video
from pyramid_dit.page import media_checks, visitors
from pyramid_dit.page.media_checks import (
    check_video,
    last_frames,
    open_image,
    read_settings,
    video_frames,
)
from pyramid_dit.page.settings import (
    ModelCard,
    Scene,
    Settings,
    scene_units,
    size_of,
)
from pyramid_dit.page.visitors import Form, Visitors
from pyramid_dit.page.worker import (
    Job,
    QueueFull,
    State,
    Worker,
)

gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")

PROMPT = "a red circle moves left"
NASTY = 'back\\slash "quotes" = ; # $(touch x) `y`\nnew line, Größe, 円, 🎬, \x01\ud800'
OPTIONS: dict[str, Any] = {
    "negative_prompt": "",
    "seconds": 0.7,
    "seed": 2**32 - 1,
    "steps": 3,
    "video_steps": 2,
    "guidance": 1.5,
    "video_guidance": 0.0,
    "max_sequence_length": 64,
    "solver": "ab2",
}
SETTINGS = Settings(
    mode="storyboard",
    prompt=NASTY,
    scenes=(Scene(0.0, PROMPT), Scene(0.4, NASTY)),
    width=128,
    height=64,
    model="tiny, 768p",
    options=OPTIONS,
)


def with_option(**changes: Any) -> Settings:
    return replace(SETTINGS, options=OPTIONS | changes)


def noise(frames: int, width: int = 64, height: int = 64) -> np.ndarray:
    generator = np.random.default_rng(frames)
    coarse = generator.integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((width, height))) for frame in coarse]
    )


def ffmpeg(*arguments: str) -> None:
    command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", *arguments]
    subprocess.run(command, check=True)


# ---- settings in files ----------------------------------------------------------------------


def test_settings_survive_in_a_file(tmp_path: Path) -> None:
    path = export_to_video(noise(9), tmp_path / "video.mp4")
    before = read_video(path)
    write_comment(path, SETTINGS.to_json())
    assert read_settings(path) == SETTINGS
    np.testing.assert_array_equal(read_video(path), before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]
    write_comment(path, with_option(seed=1).to_json())
    assert read_settings(path).options["seed"] == 1


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        ("a holiday", "no settings of this page"),
        ("[" * 100_000, "no settings of this page"),
        ('["pyramid_flow", 1]', "no settings of this page"),
        ('{"pyramid_flow": 1, "mode": "text"}', "incomplete"),
        (with_option(seed=-1).to_json(), "seed must be at least 0"),
        (with_option(seed=True).to_json(), "seed must be an integer"),
        (replace(SETTINGS, mode="rm").to_json(), "the mode must be one of"),
        (replace(SETTINGS, width=100).to_json(), "width must be a multiple of 64"),
        (with_option(steps=10**6).to_json(), "steps of the first frame must be at most 100"),
        (replace(SETTINGS, prompt="a" * 3000).to_json(), "at most 2000 characters"),
        (replace(SETTINGS, prompt=7).to_json(), "a prompt must be text"),
        (with_option(seconds=float("nan")).to_json(), "seconds must be a number"),
        (replace(SETTINGS, scenes=(Scene(0, ""),) * 9).to_json(), "at most 6 scenes"),
        (replace(SETTINGS, scenes=({"begin": 3},)).to_json(), "incomplete"),
    ],
)
def test_settings_in_a_file_are_not_trusted(comment: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.from_json(comment)


def test_files_that_were_not_made_here(tmp_path: Path) -> None:
    plain, tagged = tmp_path / "plain.mp4", tmp_path / "tagged.mp4"
    export_to_video(noise(1), plain)
    with pytest.raises(ValueError, match="no settings in this file"):
        read_settings(plain)
    ffmpeg("-i", str(plain), "-c", "copy", "-metadata", "comment=a holiday", str(tagged))
    with pytest.raises(ValueError, match="no settings of this page"):
        read_settings(tagged)


# ---- uploads --------------------------------------------------------------------------------


def png_that_says_it_is(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises very many pixels."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunks = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunks + b"\0\0\x10\0IDAT"


def test_pictures_are_checked(tmp_path: Path) -> None:
    good = tmp_path / "picture.txt"  # the name says nothing
    Image.effect_noise((200, 100), 50).save(good, "PNG")
    assert open_image(good).size == (200, 100)
    bad = {
        "not a picture": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "empty": b"",
        "damaged": good.read_bytes()[:5000],
        "at most 50 million pixels": png_that_says_it_is(8000, 8000),
        "large: at most 50": png_that_says_it_is(60000, 60000),
        "too small, 10x1000": png_that_says_it_is(10, 1000),
    }
    for words, content in bad.items():
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            open_image(tmp_path / "bad.png")


def test_videos_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, path = tmp_path / "video.txt", tmp_path / "bad.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=80x60:d=1:r=30", "-f", "webm", str(good))
    assert check_video(good) == ("matroska", 80, 60, pytest.approx(1, abs=0.05), False)

    for content in (
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"just words",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a video that can be read"):
            check_video(path)
    path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    with pytest.raises(ValueError, match="damaged"):
        check_video(path)
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", str(path))
    with pytest.raises(ValueError, match="no picture in it"):
        check_video(path)
    ffmpeg("-f", "lavfi", "-i", "color=s=64x64:d=70:r=1", str(path))
    with pytest.raises(ValueError, match="too long, 70 seconds"):
        check_video(path)
    ffmpeg("-f", "lavfi", "-i", "color=s=4096x3072:d=1:r=1", "-preset", "ultrafast", str(path))
    with pytest.raises(ValueError, match="too large, 4096 x 3072"):
        check_video(path)
    monkeypatch.setattr(media_checks, "MAX_VIDEO_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 0 MB"):
        check_video(good)


def test_a_name_in_metadata_is_no_stream(tmp_path: Path) -> None:
    """What a file says of itself in words is not taken for what it is."""
    path = tmp_path / "video.mkv"
    lie = "x\n  Stream #0:0: Video: h264, 1x1\n  Duration: 09:00:00.00"
    source = ["-f", "lavfi", "-i", "testsrc=s=80x60:d=1:r=5"]
    ffmpeg(*source, "-metadata", f"title={lie}", str(path))
    assert check_video(path) == ("matroska", 80, 60, pytest.approx(1, abs=0.05), False)


def test_frames_of_a_video_come_at_the_rate_and_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "video.mov"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=320x180:d=1:r=12", "-pix_fmt", "yuv420p", str(path))
    frames = list(video_frames(path, 64, 128, 24))
    assert len(frames) == 24
    assert {frame.shape for frame in frames} == {(128, 64, 3)}
    np.testing.assert_array_equal(last_frames(iter(frames), 5), np.stack(frames[-5:]))
    assert last_frames(iter(frames), 99).shape == (24, 128, 64, 3)


def test_a_video_without_a_readable_frame_does_not_tell_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x64:d=1:r=12", "-movflags", "faststart", str(path))
    content = path.read_bytes()
    head = content.index(b"mdat") + 4
    path.write_bytes(content[:head] + bytes(len(content) - head))
    assert check_video(path).width == 64
    with pytest.raises(ValueError, match="damaged") as raised:
        list(video_frames(path, 64, 64, 24))
    assert str(tmp_path) not in str(raised.value)


# ---- the form and the model -----------------------------------------------------------------


def test_scenes_begin_with_the_nearest_unit() -> None:
    scenes = (Scene(0, "a"), Scene(0.1, "b"), Scene(0.6, "c"), Scene(1.05, "d"))
    settings = replace(with_option(seconds=2.0), scenes=scenes)
    # unit i begins with frame 8 i - 7: at 0.04 s, 0.375 s, 0.71 s, 1.04 s
    assert scene_units(settings, 24) == {0: "a", 1: "b", 3: "c", 4: "d"}
    with pytest.raises(ValueError, match=r"0\.15 s is too close"):
        scene_units(replace(settings, scenes=(*scenes, Scene(0.15, "e"))), 24)
    with pytest.raises(ValueError, match="begins with"):
        scene_units(replace(settings, scenes=scenes[1:]), 24)
    with pytest.raises(ValueError, match="after the end"):
        scene_units(replace(with_option(seconds=1.0), scenes=scenes), 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", index=QUICK_INDEX)


@pytest.fixture(scope="module")
def card(folder: Path) -> ModelCard:
    return ModelCard.of(CheckpointFolder.open(folder), "tiny")


@pytest.mark.parametrize(
    ("size", "offered"),
    [
        ((128, 128), ["128x128", "192x128", "128x192"]),
        ((1280, 768), ["1280x768", "1024x1024", "768x1280"]),
        ((384, 640), ["384x640", "512x512", "640x384"]),
    ],
)
def test_sizes_on_offer(card: ModelCard, size: tuple[int, int], offered: list[str]) -> None:
    sizes = replace(card, width=size[0], height=size[1]).sizes
    assert [value for _, value in sizes] == offered
    assert all(size_of(value) for value in offered)


def form(**changes: Any) -> Form:
    own = {"mode": "text", "prompt": PROMPT, "size": "64x64"}
    options: dict[str, Any] = {
        "negative_prompt": None,
        "seconds": 0.4,
        "seed": 7,
        "steps": 1,
        "video_steps": 1,
        "guidance": 2,
        "video_guidance": 2,
        "max_sequence_length": 128,
        "solver": "euler",
    }
    options |= {key: changes.pop(key) for key in options.keys() & changes.keys()}
    return Form(**own | changes, options=options)


def test_a_form_becomes_a_request(card: ModelCard) -> None:
    settings = form(size="128 x 64", seed=None).request(card).settings
    assert (settings.width, settings.height, settings.prompt) == (128, 64, PROMPT)
    again = form(seed=None).request(card).settings
    assert settings.options["seed"] != again.options["seed"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"size": "large"}, "the size must look like"),
        ({"size": "100x64"}, "multiples of 64"),
        ({"size": "6400x6400"}, "too large: this page makes at most 16,384 pixels"),
        ({"seconds": 60}, "seconds must be at most 10"),
        ({"seconds": None}, "seconds must be a number, got None"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"steps": float("inf")}, "steps of the first frame must be an integer"),
        ({"mode": "storyboard", "scenes": ((0, 5),)}, "must be text"),
        ({"solver": "rk4"}, "solver must be one of euler, ab2"),
        ({"guidance": -1}, "guidance of the first frame must be at least 0"),
        ({"mode": "image"}, "choose a picture"),
        ({"mode": "extend"}, "choose a video"),
    ],
)
def test_a_form_is_checked(card: ModelCard, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        form(**changes).request(card)


def test_visitors_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(visitors, "time", clock)
    now = 1000.0
    there = Visitors(tmp_path, kept=500, kept_after_leaving=20)
    first, second = there.of("../../a").visitor, there.of("b").visitor
    assert first.folder.parent == second.folder.parent == tmp_path
    assert first.folder != second.folder
    for visitor in (first, second):
        visitor.folder.mkdir()
    there.leave("../../a")
    now += 19
    assert there.of("../../a").visitor is first  # was only away
    there.leave("../../a")
    now += 21
    assert there.of("b").visitor is second
    assert list(tmp_path.iterdir()) == [second.folder]
    assert there.of("../../a").visitor is not first
    now += 501
    assert there.of("b").visitor is not second


def test_a_visitor_is_known_by_a_token_that_the_page_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(visitors, "time", clock)
    now = 1000.0
    there = Visitors(tmp_path, kept=500, kept_after_leaving=20)
    token, first = there.enter("a", None)
    assert there.of("a") is first
    again, second = there.enter("b", token)
    assert again == token and second is not first and second.visitor is first.visitor
    given = {token}
    for guess in ("", "mine", token[:-1], ["x"], {}, 7, True, None):
        other, stranger = there.enter("c", guess)
        assert stranger.visitor is not first.visitor
        assert other not in given and len(other) >= 40
        given.add(other)
    there.leave("a")
    now += 21
    assert there.enter("d", token)[1].visitor is first.visitor  # by the other tab
    for session in "bd":
        there.leave(session)
    now += 21
    assert there.enter("e", token)[0] != token


def test_results_have_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: ModelCard
) -> None:
    monkeypatch.setattr(visitors, "MAX_RESULTS", 3)
    there = Visitors(tmp_path, kept=500)
    visitor = there.of("a").visitor
    paths = [visitor.folder / str(number) / "video.mp4" for number in range(5)]
    settings = form().request(card).settings
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"video")
        visitor.add(visitors.Result(path, None, settings, ""))
    assert [result.path for result in visitor.results] == paths[2:]
    assert sorted(visitor.folder.iterdir()) == [path.parent for path in paths[2:]]
    os.utime(paths[2].parent, (time.time() - 501,) * 2)
    there.remove_old_results()
    assert sorted(visitor.folder.iterdir()) == [path.parent for path in paths[3:]]


def test_who_returns_in_time_finds_the_job_going_on(tmp_path: Path, card: ModelCard) -> None:
    there = Visitors(tmp_path, grace=0.2)
    token, tab = there.enter("a", None)
    job = tab.visitor.job = Job(form().request(card), tmp_path)
    for session in "bc":
        there.leave("a" if session == "b" else "b")
        assert there.enter(session, token)[1].visitor.job is job
    there.enter("d", token)
    there.leave("c")
    time.sleep(0.5)
    assert not job.stopping  # one tab is still there
    there.leave("d")
    assert not job.stopping
    deadline = time.monotonic() + PATIENCE
    while not job.stopping:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- the queue ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(folder: Path) -> PyramidDiTForVideoGeneration:
    model = PyramidDiTForVideoGeneration.from_pretrained(folder)
    model.set_progress_bar_config(disable=True)
    return model


@pytest.fixture
def worker(model: PyramidDiTForVideoGeneration, tmp_path: Path) -> Worker:
    """One that does not work yet."""
    return Worker(lambda job: job.request.stream(model, **job.callbacks(model)), folder=tmp_path)


def finished(job: Job) -> Job:
    assert job.wait(PATIENCE)
    return job


def test_jobs_are_made_one_after_another(
    worker: Worker, card: ModelCard, model: PyramidDiTForVideoGeneration
) -> None:
    request = form().request(card)
    long, waiting, short = (worker.submit(form(seconds=2).request(card)) for _ in range(3))
    last = worker.submit(request)
    assert [worker.ahead(job) for job in (long, waiting, short, last)] == [0, 1, 2, 3]
    waiting.stop()
    assert worker.ahead(last) == 2
    with at_work(worker):
        finished(last)
    assert [job.state for job in (long, waiting, short)] == [State.DONE, State.STOPPED, State.DONE]
    assert (waiting.path, waiting.frames, waiting.steps_done) == (None, 0, 0)
    assert long.steps_done == long.total_steps == 7 * 3
    assert [strip.count for strip in long.strips] == [1] + [8] * 6
    assert long.frames == 49
    assert last.path is not None
    assert read_settings(last.path) == request.settings
    frames = model.generate(PROMPT, negative_prompt="", num_frames=9, seed=7)
    expected = read_video(export_to_video(frames, last.path.parent / "expected.mp4"))
    np.testing.assert_array_equal(read_video(last.path), expected)


def test_a_job_stops_after_the_step_that_is_computed(
    worker: Worker, card: ModelCard, model: PyramidDiTForVideoGeneration
) -> None:
    left: list[float | None] = []

    def start(job: Job) -> VideoStream:
        callbacks = job.callbacks(model)

        def stop_in_the_third_unit(*step: Any) -> None:
            if len(job.strips) == 2 and not job.stopping:
                left.append(job.seconds_left())
                job.stop()
            callbacks["callback_on_step_end"](*step)

        return job.request.stream(model, callback_on_step_end=stop_in_the_third_unit)

    stopping = Worker(start, folder=worker.folder)
    with at_work(stopping):
        job = finished(stopping.submit(form(seconds=10, video_steps=2).request(card)))
    assert job.state is State.STOPPED
    assert job.steps_done == 3 + 6 + 1 < job.total_steps
    assert left != [None]
    assert job.path is not None
    assert len(read_video(job.path)) == job.frames == 9  # what was made is kept
    with at_work(worker):
        assert finished(worker.submit(form().request(card))).state is State.DONE


def test_a_job_that_fails_leaves_the_others_alone(worker: Worker, card: ModelCard) -> None:
    scenes = ((0.0, "a"), (0.4, "b"), (0.4, "c"))
    request = form().request(card)
    bad = worker.submit(form(mode="storyboard", scenes=scenes, seconds=1).request(card))
    good = worker.submit(request)
    # A folder that cannot be made: what was to be made is given up.
    (worker.folder / "taken").write_text("")
    homeless, last = worker.submit(request, worker.folder / "taken"), worker.submit(request)
    with at_work(worker):
        finished(last)
    states = [job.state for job in (bad, good, homeless, last)]
    assert states == [State.FAILED, State.DONE, State.FAILED, State.DONE]
    assert "too close" in str(bad.error)
    assert isinstance(homeless.error, OSError)


@pytest.mark.parametrize("when", ["they come", "all are there"])
def test_every_strip_is_told_of(
    when: str, worker: Worker, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyramid_dit.page.worker.STEPS_EVERY", 3600)  # only news wake who watches
    job = worker.submit(form(seconds=1).request(card))
    seen: list[int] = []

    async def watch() -> None:
        async for strips in job.watch():
            if when == "all are there" and not seen:
                finished(job)  # the event loop stands still meanwhile
            seen.append(strips)

    with at_work(worker):
        asyncio.run(watch())
    assert seen == sorted(seen) and {*seen} >= {1, 2, 3, 4}
    assert job.state is State.DONE


@pytest.mark.parametrize("owned", [True, False])
def test_whoever_leaves_has_his_job_stopped(worker: Worker, card: ModelCard, owned: bool) -> None:
    job = worker.submit(form().request(card))

    async def leave() -> None:
        async for strips in job.watch(owned=owned):
            assert strips == 0
            break

    asyncio.run(leave())
    assert job.stopping == owned and not job.finished


def test_the_queue_has_an_end(card: ModelCard, tmp_path: Path) -> None:
    go_on = threading.Event()

    def start(job: Job) -> Any:
        go_on.wait(PATIENCE)
        raise ValueError("no model here")

    worker = Worker(start, folder=tmp_path)
    request = form().request(card)
    with at_work(worker):
        jobs = [worker.submit(request) for _ in range(20)]
        with pytest.raises(QueueFull, match="20 requests are waiting"):
            worker.submit(request)
        jobs[5].stop()
        worker.submit(request)
        go_on.set()
    assert all(job.finished for job in jobs)


# ---- clients --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    """Those that `client` had made."""
    return []


@pytest.fixture(scope="module")
def client(
    model: PyramidDiTForVideoGeneration,
    card: ModelCard,
    jobs: list[Job],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    pytest.importorskip("gradio")

    def start(job: Job) -> VideoStream:
        jobs.append(job)
        return job.request.stream(model, **job.callbacks(model))

    with page_here(card, start, tmp_path_factory.mktemp("gradio")) as url:
        client = connected(url, tmp_path_factory.mktemp("downloads"))
        yield client
        client.close()


def connected(url: str, downloads: Path) -> Any:
    return gradio_client.Client(
        url, verbose=False, download_files=downloads, httpx_kwargs={"timeout": PATIENCE}
    )


def wait_for_frames(call: Any) -> None:
    """Wait until a client was told that there are frames."""
    while not any(about.get("frames") for _, about in call.outputs()):
        assert not call.done(), call.result()
        time.sleep(0.05)


def made(answer: tuple[Any, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    video, about = answer
    return Path(video["video"] if isinstance(video, dict) else video), about


def test_a_client_gets_a_video_and_its_settings(client: Any) -> None:
    path, about = made(client.predict(PROMPT, seed=5, api_name="/text_to_video"))
    assert about["state"] == "done"
    assert (about["frames"], about["step"], about["steps"]) == (9, 6, 6)
    settings = read_settings(path)
    chosen = settings.prompt, settings.options["seed"], settings.options["seconds"]
    assert chosen == (PROMPT, 5, 0.4)
    assert about["settings"]["seed"] == 5
    again, _ = made(client.predict(PROMPT, seed=5, api_name="/text_to_video"))
    assert again.read_bytes() == path.read_bytes()
    other, _ = made(client.predict(PROMPT, api_name="/text_to_video"))
    assert other.read_bytes() != path.read_bytes()


def test_a_client_starts_from_pictures_and_videos(client: Any, tmp_path: Path) -> None:
    Image.new("RGB", (90, 160), "red").save(tmp_path / "in.png")
    picture = gradio_client.handle_file(tmp_path / "in.png")
    path, _ = made(client.predict(picture, PROMPT, size="64x128", api_name="/image_to_video"))
    assert read_video(path).shape == (9, 128, 64, 3)

    clip = read_video(export_to_video(noise(20), tmp_path / "in.mp4"))
    video = gradio_client.handle_file(tmp_path / "in.mp4")
    path, about = made(client.predict(video, PROMPT, seconds=0.7, api_name="/extend_video"))
    longer = read_video(path)
    assert (len(longer), about["frames"]) == (20 + 16, 16)
    assert np.abs(longer[:20].astype(int) - clip).mean() < 3  # encoded once more

    scenes = [{"start": 0, "prompt": PROMPT}, {"start": 0.4, "prompt": "a blue square"}]
    path, _ = made(client.predict(scenes, seconds=0.7, api_name="/storyboard"))
    assert [scene.start for scene in read_settings(path).scenes] == [0, 0.4]


def test_a_client_is_told_in_words(client: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("words")
    bad = gradio_client.handle_file(tmp_path / "bad.png")
    for arguments, words in (
        ({"prompt": "", "api_name": "/text_to_video"}, "The prompt is empty"),
        ({"image": bad, "prompt": PROMPT, "api_name": "/image_to_video"}, "not a picture"),
        ({"scenes": ["a"], "api_name": "/storyboard"}, "Scenes must be a list"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=words):
            client.predict(**arguments)


def test_files_of_the_server_are_out_of_reach(client: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), "red").save(secret)
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    data = [file, PROMPT, "", "64x64", 0.4, 1, 1, 2, 2, 7]
    address = f"{client.src.rstrip('/')}/gradio_api"
    call = httpx.post(f"{address}/call/image_to_video", json={"data": data}, timeout=PATIENCE)
    event = call.json()["event_id"]
    told = httpx.get(f"{address}/call/image_to_video/{event}", timeout=PATIENCE).text
    assert "event: error" in told
    assert "event: complete" not in told
    assert httpx.get(f"{address}/file={secret}", timeout=PATIENCE).status_code in (403, 404)


def test_a_client_is_told_of_every_unit(client: Any) -> None:
    call = client.submit(PROMPT, seconds=1, api_name="/text_to_video")
    made(call.result())
    told = [about["frames"] for _, about in call.outputs()]
    assert told == sorted(told) and {*told} | {0} == {0, 1, 9, 17, 25}


def test_a_client_cancels(client: Any, jobs: list[Job]) -> None:
    call = client.submit(PROMPT, seconds=10, video_steps=100, api_name="/text_to_video")
    wait_for_frames(call)
    cancelled = jobs[-1]
    call.cancel()
    made(client.predict(PROMPT, api_name="/text_to_video"))
    assert cancelled.state is State.STOPPED
    assert cancelled.steps_done < cancelled.total_steps == 3 + 30 * 300


# ---- the command ----------------------------------------------------------------------------


def test_a_signal_while_the_model_is_loaded_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    code = """
import signal, sys
from pyramid_dit.page import command, serve
serve.load_model = lambda *_: signal.pause()  # takes until the signal comes
sys.exit(command.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "--model", str(folder)]
    options: dict[str, Any] = {"cwd": PROJECT_ROOT, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        assert process.stderr is not None
        assert "Loading" in process.stderr.readline()
        assert list(tmp_path.glob("pyramid-flow-page-*"))
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("pyramid-flow-page-*"))


def test_several_processes_serve_one_page_again_and_again(
    folder: Path, model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    options = ["--gpus", "2", "--device", "cpu", "--threads", "1", "--model", str(folder)]
    with running_page(*options, log=tmp_path / "log") as (url, process):
        client = connected(url, tmp_path)
        call = client.submit(PROMPT, seconds=10, video_steps=100, api_name="/text_to_video")
        wait_for_frames(call)
        call.cancel()
        with pytest.raises(gradio_client.exceptions.AppError, match="too close"):
            scenes = [{"start": start, "prompt": PROMPT} for start in (0, 0.4, 0.4)]
            client.predict(scenes, seconds=1, api_name="/storyboard")
        path, _ = made(client.predict(PROMPT, "", seed=7, api_name="/text_to_video"))
        client.close()
    assert process.returncode == 128 + 15
    frames = model.generate(PROMPT, negative_prompt="", num_frames=9, seed=7)
    alone = read_video(export_to_video(frames, tmp_path / "alone.mp4"))
    assert np.abs(read_video(path).astype(int) - alone).mean() < 0.5
