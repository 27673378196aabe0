"""Whom the page answers, asked of a real server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from page_server import PATIENCE, page_here, running_page
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit.cli.options import UsageError
from pyramid_dit.page import hosts
from pyramid_dit.page.command import parse_options
from pyramid_dit.page.hosts import own_names
from pyramid_dit.page.settings import ModelCard

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")

ROUTES = [
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/startup-events"),
    ("GET", "/gradio_api/heartbeat/abc"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/theme.css"),
    ("GET", "/no/such/route"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/call/text_to_video"),
    ("OPTIONS", "/gradio_api/upload"),
]
PREFLIGHT = {"Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    model = write_tiny_checkpoint(folder / "tiny", index=QUICK_INDEX)
    options = ["--model", str(model), "--threads", "1"]
    options += ["--allow-host", "Video.example.com.", "--allow-host", "other"]
    with running_page(*options, log=folder / "log") as (url, _):
        yield url.rstrip("/")
    assert "Traceback" not in (folder / "log").read_text()


def ask(address: str, route: str = "/config", method: str = "GET", **headers: str) -> Any:
    files = {"files": ("a.png", b"x" * 100_000)} if route.endswith("upload") else None
    return httpx.request(
        method, f"{address}{route}", headers=headers, files=files, timeout=PATIENCE
    )


def test_a_page_that_is_slow_to_come_is_served_by_every_name(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio gives up where its own page does not come within 3 s, as on a busy machine."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with page_here(card, lambda job: None, tmp_path, name=hosts.ANY) as url:
        url = url.rstrip("/")
        assert ask(url, "/").status_code == ask(url, Host="evil.com").status_code == 200
        assert ask(url, Host="evil.com", Origin="http://other.com").status_code == 403


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_foreign_names_and_pages_are_refused_everywhere(
    address: str, method: str, route: str
) -> None:
    port = address.rpartition(":")[2]
    for headers in (
        {"Host": "evil.com"},
        {"Host": f"evil.com:{port}", "Origin": f"http://evil.com:{port}"},
        {"Host": f"localhost:{port}", "Origin": "http://evil.com"},
        {"Origin": "null"},
    ):
        extra = PREFLIGHT if method == "OPTIONS" else {}
        answer = ask(address, route, method, **headers, **extra)
        assert answer.status_code == 403
        assert "--allow-host" in answer.text and answer.text.count("\n") == 1
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:7860",
        "127.0.0.1:1",
        "192.168.0.7:7860",
        "[::1]:7860",
        "[fe80::1]",
        "video.example.com",
        "VIDEO.example.com.:443",
        "other",
    ],
)
def test_names_of_its_own_are_answered(address: str, host: str) -> None:
    assert ask(address, Host=host).status_code == 200
    for scheme in ("http", "https"):
        assert ask(address, Host=host, Origin=f"{scheme}://{host}").status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost.evil.com",
        "evil.com/localhost",
        "localhost@evil.com",
        "127.0.0.1.evil.com",
        "[::1",
        "[::1]evil.com",
        "example.com",
        "a.video.example.com",
        "localhost:port",
        "",
        "e" * 5000,
        socket.gethostname() + ".example.org",
    ],
)
def test_look_alikes_are_refused(address: str, host: str) -> None:
    answer = ask(address, Host=host)
    assert answer.status_code == 403
    assert len(answer.text) < 500


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost", 200),
        ("http://localhost:80", 200),
        ("https://localhost:80", 200),
        ("https://localhost", 403),
        ("http://localhost:7860", 403),
        ("http://127.0.0.1", 403),
        ("ftp://localhost:80", 403),
        ("http://localhost/", 403),
        ("http://user@localhost", 403),
        ("localhost", 403),
        ("", 403),
    ],
)
def test_an_origin_is_the_host(address: str, origin: str, status: int) -> None:
    assert ask(address, Host="localhost:80", Origin=origin).status_code == status


def test_requests_without_a_host_and_with_two(address: str) -> None:
    server, port = address.removeprefix("http://").split(":")
    for head in ("HTTP/1.0\r\n", "HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n"):
        with socket.create_connection((server, int(port)), PATIENCE) as connection:
            connection.sendall(f"GET /config {head}\r\n".encode())
            status = connection.recv(100).split()[1]
        assert status in (b"400", b"403")


def test_the_machine_has_a_name_where_others_can_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SimpleNamespace(gethostname=lambda: "Studio.lan")
    monkeypatch.setattr(hosts, "socket", machine)
    names = {"localhost", "studio.lan", "studio", "studio.local"}
    assert own_names("0.0.0.0") == own_names("::") == own_names("192.168.0.7") == names
    assert own_names("studio.home.arpa") == names | {"studio.home.arpa"}
    for loopback in ("127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"):
        assert own_names(loopback) == {"localhost"}


@pytest.mark.slow
def test_every_name_can_be_allowed_and_is_warned_of(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path / "tiny", index=QUICK_INDEX)
    options = ["--model", str(model), "--threads", "1", "--allow-host", "*"]
    with running_page(*options, log=tmp_path / "log") as (url, _):
        url = url.rstrip("/")
        assert ask(url, Host="evil.com").status_code == 200
        assert ask(url, Host="evil.com", Origin="http://other.com").status_code == 403
    assert "Warning: with --allow-host *" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ["http://a.com", "a.com:80", "a.com/x", "", "a b", "*.com", "-a"])
def test_an_option_that_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="--allow-host: a host is a name") as caught:
        parse_options([f"--allow-host={name}"])
    assert repr(name) in str(caught.value)
