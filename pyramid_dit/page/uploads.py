"""How much visitors may upload, and when it is removed."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from .hosts import App, Message, Receive, Scope, Send, answer
from .media_checks import MAX_VIDEO_BYTES

MAX_REQUEST_BYTES = MAX_VIDEO_BYTES + 2**20  # what surrounds the file is small
MAX_UPLOADS_BYTES = 8 * 2**30
FREE_BYTES = 64 * 2**20
"""What must remain free on the disk."""
KEPT = 24 * 3600
"""Seconds that a file stays."""


class UploadLimit:
    """ASGI middleware that refuses what is too much, before it is on the disk.

    Args:
        app: What takes the uploads.
        folder: Where it keeps them.
        apart: A folder in it for other things, which is neither counted nor emptied.
    """

    def __init__(self, app: App, folder: Path, apart: Path) -> None:
        self._app = app
        self._folder = folder
        self._apart = apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or scope["method"] != "POST" or not path.endswith("/upload"):
            await self._app(scope, receive, send)
            return
        size = _length(scope)
        most = MAX_REQUEST_BYTES // 2**20
        if size is not None and size > MAX_REQUEST_BYTES:
            await answer(
                send, 413, f"The upload is too large, {size // 2**20} MB: at most {most} MB."
            )
        elif not await asyncio.to_thread(self._has_room, size or MAX_REQUEST_BYTES):
            await answer(send, 507, "There is no room for uploads at the moment: try again later.")
        else:
            await self._app(scope, _limited(receive), send)

    def _has_room(self, size: int) -> bool:
        """Remove what is old, and say whether `size` bytes more are allowed."""
        oldest, used = time.time() - KEPT, 0
        for path in self._files():
            try:
                status = path.stat()
                if status.st_mtime < oldest:
                    path.unlink()
                else:
                    used += status.st_size
            except FileNotFoundError:
                continue
        free = shutil.disk_usage(self._folder).free
        return used + size <= MAX_UPLOADS_BYTES and size + FREE_BYTES <= free

    def _files(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self._folder):
            folders[:] = [name for name in folders if Path(folder, name) != self._apart]
            yield from (Path(folder, name) for name in files)


def _length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return None


def _limited(receive: Receive) -> Receive:
    """Receive no more than is allowed, also if its length is not given."""
    received = 0

    async def limited() -> Message:
        from starlette.formparsers import MultiPartException  # upon which Gradio removes files

        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_REQUEST_BYTES:
            raise MultiPartException(
                f"The upload exceeds the maximum allowed size, {MAX_REQUEST_BYTES // 2**20} MB."
            )
        return message

    return limited
