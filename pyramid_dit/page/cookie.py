"""A visitor's name across reloads: a cookie that only this page sees.

Whoever has no cookie, as most programs, goes by the name that Gradio gives to an open page.
"""

from __future__ import annotations

import re
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any

from .hosts import App, Message, Receive, Scope, Send

COOKIE = "pyramid_flow_visitor"
SECONDS = 24 * 3600
"""How long a browser keeps it: as long as the page keeps results."""

_TOKEN = re.compile(r"[\w-]{43}", re.ASCII)


class VisitorCookie:
    """ASGI middleware that gives a cookie to whoever opens the page without one."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                cookie = (
                    f"{COOKIE}={secrets.token_urlsafe(32)}; Path=/; Max-Age={SECONDS}; "
                    "HttpOnly; SameSite=Lax"
                )
                added = [(b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        opened = scope["type"] == "http" and scope["path"] == "/" and not _has_token(scope)
        await self._app(scope, receive, send_with_cookie if opened else send)


def visitor_name(request: Any) -> str:
    """What the visitor behind one of Gradio's requests is called here."""
    token = (getattr(request, "cookies", None) or {}).get(COOKIE, "")
    return token if _TOKEN.fullmatch(token) else request.session_hash or ""


def _has_token(scope: Scope) -> bool:
    cookies: SimpleCookie = SimpleCookie()
    try:
        for name, value in scope["headers"]:
            if name == b"cookie":
                cookies.load(value.decode("latin-1"))
    except CookieError:
        return False
    return COOKIE in cookies and _TOKEN.fullmatch(cookies[COOKIE].value) is not None
