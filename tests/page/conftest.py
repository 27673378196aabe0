"""What tests of the page share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_server import PATIENCE
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.page.examples import SHAPES
from pyramid_dit.page.settings import ModelCard


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    index = QUICK_INDEX | {
        "known_words": sorted({word for text in SHAPES for word in text.split()})
    }
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), index=index)
    return ModelCard.of(CheckpointFolder.open(folder), "tiny")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser")
    with sync_api.sync_playwright() as playwright:
        program = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(program).exists():
            pytest.skip("there is no chromium: `apt-get install chromium`")
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        started = playwright.chromium.launch(
            executable_path=program, args=sandbox, timeout=1000 * PATIENCE
        )
        yield started
        started.close()
