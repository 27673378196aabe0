"""Pictures are opened, or refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pyramid_dit.media.image_files import open_image


@pytest.mark.parametrize("kind", ["BMP", "JPEG", "PNG", "WEBP"])
def test_a_picture_that_ends_early_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    Image.effect_noise((200, 100), 50).convert("RGB").save(path, kind)
    assert open_image(path, least_side=64).size == (200, 100)
    content = path.read_bytes()
    for length in (*range(64), len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged|is not a picture"):
            open_image(path, least_side=64)


def test_a_file_that_cannot_be_read_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png", least_side=64)
    with pytest.raises(IsADirectoryError):
        open_image(tmp_path, least_side=64)


def test_limits(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    Image.new("RGB", (200, 100)).save(path, "PNG")
    with pytest.raises(ValueError, match="is too small, 200x100: .* at least 101"):
        open_image(path, least_side=101)
    with pytest.raises(ValueError, match="is too large"):
        open_image(path, least_side=64, most_pixels=19_999)
