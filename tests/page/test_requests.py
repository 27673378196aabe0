"""Requests that no browser sends: they are answered in words, and nothing breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from page_server import PATIENCE, running_page
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")

TEXT = ["a", "", "64x64", 0.4, 3, 2, 1.5, 0, -1, 64, "euler"]
"""Arguments of `/text_to_video`."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    model = write_tiny_checkpoint(folder / "tiny", index=QUICK_INDEX)
    with running_page("--model", str(model), "--threads", "1", log=folder / "log") as (url, _):
        yield f"{url.rstrip('/')}/gradio_api"
    assert "Traceback" not in (folder / "log").read_text()


def post(url: str, **content: Any) -> Any:
    return httpx.post(url, timeout=PATIENCE, **content)


def call(address: str, name: str, data: list[Any]) -> str:
    """What a function tells in the end."""
    url = f"{address}/call/{name}"
    event = post(url, json={"data": data}).json()["event_id"]
    return str(httpx.get(f"{url}/{event}", timeout=PATIENCE).text)


@pytest.mark.parametrize(
    "route", ["queue/join", "call/text_to_video", "run/text_to_video", "run/no", "reset", "cancel"]
)
@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[" * 5000,
        '{"data": 1}',
        '{"data": [], "fn_index": 9999, "session_hash": "a"}',
        '{"data": [], "fn_index": "a", "session_hash": "a"}',
        '{"data": [], "fn_index": 0, "session_hash": 7}',
    ],
)
def test_malformed_bodies(address: str, route: str, body: str) -> None:
    answer = post(f"{address}/{route}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code < 500
    assert "Traceback" not in answer.text and "Internal Server Error" not in answer.text


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("text_to_video", [], "malformed"),
        ("text_to_video", TEXT[:4], "malformed"),
        ("text_to_video", [*TEXT[:3], [], *TEXT[4:]], "malformed"),
        ("text_to_video", [*TEXT[:2], "9x9", *TEXT[3:]], "multiples of 64"),
        ("text_to_video", [*TEXT[:2], 7, *TEXT[3:]], "'Size' must be text, not 7"),
        ("text_to_video", [*TEXT[:3], 10**400, *TEXT[4:]], "greater than maximum value"),
        ("text_to_video", [*TEXT[:8], 10**400, *TEXT[9:]], "eed must be"),
        ("image_to_video", [{}, *TEXT], "malformed"),
        ("image_to_video", ["/etc/passwd", *TEXT], "malformed"),
        ("extend_video", [7, *TEXT], "malformed"),
        ("storyboard", [[{"start": False, "prompt": "a"}], *TEXT[1:]], "must be a number"),
        ("storyboard", [[{"start": [], "prompt": "a"}], *TEXT[1:]], "must be a number"),
        ("storyboard", [[{"start": 0, "prompt": {}}], *TEXT[1:]], "must be text"),
        ("storyboard", [None, *TEXT[1:]], "must be a list"),
        ("storyboard", [[{"start": 10**400, "prompt": "a"}], *TEXT[1:]], "308 digits"),
        ("storyboard", [[{"start": 0, "prompt": ["a"]}], *TEXT[1:]], "must be text"),
    ],
)
def test_malformed_arguments(address: str, name: str, data: list[Any], words: str) -> None:
    told = call(address, name, data)
    assert "event: error" in told
    message = json.loads(told.rpartition("data: ")[2])["error"]
    assert words in message and len(message) < 400


@pytest.mark.parametrize("value", [[], ["a"], {}, {"a": 1}, True, "kind"])
@pytest.mark.parametrize("place", range(len(TEXT)))
def test_a_value_of_another_kind_is_not_turned_into_one_that_fits(
    address: str, place: int, value: Any
) -> None:
    is_text = isinstance(TEXT[place], str)
    if value == "kind":
        value = 7 if is_text else "7"
    told = call(address, "text_to_video", [*TEXT[:place], value, *TEXT[place + 1 :]])
    assert "event: error" in told
    message = json.loads(told.rpartition("data: ")[2])["error"]
    assert f"must be {'text' if is_text else 'a number'}, not {value!r}" in message


def test_a_seed_is_not_rounded(address: str) -> None:
    assert "must be a whole number, not 1.5" in call(
        address, "text_to_video", [*TEXT[:8], 1.5, *TEXT[9:]]
    )


def test_streams_that_are_not_there_end(address: str) -> None:
    for route in ("call/text_to_video/no", "queue/data?session_hash=no"):
        answer = httpx.get(f"{address}/{route}", timeout=PATIENCE)
        assert answer.status_code == 200 and "Traceback" not in answer.text


@pytest.mark.parametrize("name", ["", "..", "../../x.png", "x" * 400, "a\0b.png"])
def test_uploads_with_names_that_are_none(address: str, name: str) -> None:
    answer = post(f"{address}/upload", files={"files": (name, b"x")})
    assert answer.status_code in (200, 400)
    assert "Internal" not in answer.text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "malformed"),
        ([[], *TEXT[1:]], "malformed"),
        (["", *TEXT[1:]], "The prompt is empty"),
        ([*TEXT[:2], "9x9", *TEXT[3:]], "multiples of 64"),
        ([*TEXT[:4], 1000, *TEXT[5:]], "greater than maximum value"),
    ],
)
def test_what_is_refused_at_once_has_the_status_of_a_bad_request(
    address: str, data: list[Any], words: str
) -> None:
    answer = post(f"{address}/run/text_to_video", json={"data": data})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_request_from_before_there_were_solvers(address: str) -> None:
    """It is answered with the solver of that time."""
    told = call(address, "text_to_video", [*TEXT[:2], "64x64", 0.1, *TEXT[4:-1]])
    assert "event: complete" in told and "error" not in told.partition("event: complete")[0]
