"""Whom the page answers: requests that name it by a name of its own, sent by its own pages.

A browser sends `Host` with every request, and `Origin` with those that a page of another site has
it make. A site whose name is turned to this machine's address (DNS rebinding) still shows as a
foreign `Host`; one that merely sends requests here shows as a foreign `Origin`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

ANY = "*"
"""In place of a name: all of them."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PORTS = {"http": 80, "https": 443}
_MOST_SHOWN = 100


def checked_name(name: str) -> str:
    """A name for the page, in lower case, or `ANY`.

    Raises:
        ValueError: It is not a name alone.
    """
    plain = name.strip().lower().removesuffix(".")
    if plain != ANY and not _NAME.fullmatch(plain) and not is_address(plain):
        raise ValueError(
            f"a host is a name without scheme, port and path, such as video.example.com, or "
            f"{ANY} for all: not {name!r}"
        )
    return plain


def is_address(name: str) -> bool:
    """Whether the name is an IP address, with or without the brackets that IPv6 has in URLs."""
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return False
    return True


def own_names(host: str) -> set[str]:
    """The names of the page where it listens at `host`, beside IP addresses.

    Where others can reach it, the machine's own name is among them, also as mDNS has it.
    """
    bare = host.lower().strip("[]").removesuffix(".")
    names = {"localhost"}
    if bare == "localhost":
        return names
    if not is_address(bare):
        names.add(bare)
    elif ipaddress.ip_address(bare).is_loopback:
        return names
    machine = socket.gethostname().lower().removesuffix(".")
    first = machine.partition(".")[0]
    return names | {machine, first, f"{first}.local"} - {"", ".local"}


class HostGuard:
    """ASGI middleware that refuses what comes by a foreign name or from a foreign page.

    Args:
        app: What answers the rest.
        names: Names that are allowed beside IP addresses; more may be added later.
    """

    def __init__(self, app: App, names: Iterable[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        reason = self._reason(scope)
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason[:_MOST_SHOWN]})
        else:
            await answer(send, 403, reason)

    def _reason(self, scope: Scope) -> str | None:
        """Why a request is refused, None if it is not."""
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1:
            return "A request must have one Host."
        host = hosts[0].lower()
        name, _ = _split(host)
        if name is None or not self._allows(name):
            return (
                f"The page is not known by the name {_shown(hosts[0])}. If that is a name of this "
                f"machine, start the page with --allow-host {_advised(name)}."
            )
        if origins and not all(_is_origin(origin, host) for origin in origins):
            return (
                f"Requests from other sites are refused: Origin {_shown(origins[0])} is not Host "
                f"{_shown(hosts[0])}. A proxy must pass on the Host that the browser sends; the "
                "page is then started with --allow-host NAME."
            )
        return None

    def _allows(self, name: str) -> bool:
        return is_address(name) or name in self._names or ANY in self._names


async def answer(send: Send, status: int, words: str) -> None:
    """Send words in place of what was asked for."""
    body = f"{words}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),  # the rest of the request is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _values(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]


def _split(authority: str) -> tuple[str | None, int | None]:
    """Name and port of `name:port`; no name where it is malformed."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(?::(\d{1,5}))?", authority)
    if match is None:
        return None, None
    return match[1].removesuffix("."), None if match[2] is None else int(match[2])


def _is_origin(origin: str, host: str) -> bool:
    """Whether pages of `origin` are those that are asked for at `host`."""
    scheme, separator, authority = origin.lower().partition("://")
    if not separator or scheme not in _PORTS:
        return False  # "null" too, which is what files and sandboxed frames have
    (name, port), (own_name, own_port) = _split(authority), _split(host)
    usual = _PORTS[scheme]
    return name is not None and (name, port or usual) == (own_name, own_port or usual)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


def _advised(name: str | None) -> str:
    return name if name and _NAME.fullmatch(name) and len(name) <= _MOST_SHOWN else "NAME"
