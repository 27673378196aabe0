"""The notebooks run from top to bottom and show what they say; what they carry is small.

Here they do so with few steps and frames, each in a process of its own.
"""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from PIL import Image
from tiny_checkpoint import write_tiny_checkpoint

from docs.notebooks import COLORS, NOTEBOOKS, ROOT, lightened, run
from pyramid_dit.media.video_files import export_to_video, read_video

VIDEO, VAE, IMAGES = (
    "video_generation_demo.ipynb",
    "causal_video_vae_demo.ipynb",
    "image_generation_demo.ipynb",
)
MOST_BYTES = 600_000
"""Of a notebook."""
SHOWN = {VIDEO: (5, 9), VAE: (1, 3), IMAGES: (0, 4)}
"""Videos and figures of each notebook."""
VIDEO_URL = re.compile(r'src="data:video/mp4;base64,([^"]+)"')


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def figures(notebook: NotebookNode) -> list[Image.Image]:
    found = [
        out.data["image/png"] for out in outputs(notebook) if "image/png" in out.get("data", {})
    ]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found]


def videos(notebook: NotebookNode, folder: Path) -> list[tuple[int, ...]]:
    """Shapes [t, h, w, 3] of the videos that are shown."""
    shapes = []
    for out in outputs(notebook):
        for data in VIDEO_URL.findall(out.get("data", {}).get("text/html", "")):
            file = folder / "shown.mp4"
            file.write_bytes(base64.b64decode(data))
            shapes.append(read_video(file).shape)
    return shapes


def printed(notebook: NotebookNode) -> str:
    return "".join(out.text for out in outputs(notebook) if out.get("name") == "stdout")


def numbers(pattern: str, text: str) -> list[float]:
    return [float(value) for value in re.findall(pattern, text)]


def assert_not_blank(pictures: list[Image.Image]) -> None:
    for picture in pictures:
        assert min(picture.size) > 100
        assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 16


def test_the_video_notebook(tmp_path: Path) -> None:
    notebook = run(VIDEO, tmp_path, parameters="TEMP = 3\nSTEPS = VIDEO_STEPS = 1")
    # from text, from an image, of a storyboard, live, made longer by two units
    lengths = [17, 17, 17, 65, 33]
    assert videos(notebook, tmp_path) == [(length, 128, 128, 3) for length in lengths]
    text = printed(notebook)
    assert "the same frames as from generate: True" in text
    assert "the same frames as without the stop: True" in text
    assert "from frame 9 on" in text and "17 frames and 16 more" in text
    assert "saved after 6 of 9 steps" in text
    shown = figures(notebook)
    assert len(shown) == 9  # with each video one; the stream; twice the pyramid; the history
    assert_not_blank(shown)
    files = {path.name for path in (tmp_path / "output").iterdir()}
    assert files >= {"text-to-video.mp4", "image-to-video.mp4", "half.safetensors"}


@pytest.mark.slow
def test_the_vae_notebook(tmp_path: Path) -> None:
    notebook = run(VAE, tmp_path, parameters="FRAMES = 17\nLARGE = 128")
    assert videos(notebook, tmp_path) == [(17, 128, 256, 3)]
    text = printed(notebook)
    decibels = numbers(r"([\d.]+) dB", text)
    assert len(decibels) == 4 + 2 + 2  # images; a video and its worst frame; whole and in tiles
    assert min(decibels) > 25 and max(decibels[:4]) > 30
    assert "latents [1, 8, 1, 16, 16]" in text
    assert "[17, 128, 128, 3] bytes [t, h, w, 3] -> [8, 3, 16, 16] latents" in text
    moved = numbers(r"frame 8 changed: latent frame \d moved by ([\d.]+)", text)
    assert moved[0] == 0 and moved[1] > 0.1 and len(moved) == 3
    assert max(numbers(r"differ by ([\d.e+-]+) at most", text)) < 1e-4
    assert "frames out: [1, 8, 8]" in text
    shown = figures(notebook)
    assert len(shown) == 3
    assert_not_blank(shown)


@pytest.mark.slow
def test_the_image_notebook(tmp_path: Path) -> None:
    few = "SAMPLES = 2\nGUIDANCE_SCALES = [1.0, 3.0]\nSTEPS = [1, 3]"
    notebook = run(IMAGES, tmp_path, parameters=few)
    (apart,) = numbers(r"differs by (\d+) of 255", printed(notebook))
    assert apart <= 2
    shown = figures(notebook)
    assert len(shown) == 4
    assert_not_blank(shown)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the layout of the released ones."""
    folder = tmp_path_factory.mktemp("released")
    return write_tiny_checkpoint(folder, variant="diffusion_transformer_384p")


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.slow
def test_one_variable_switches_the_model(name: str, released: Path, tmp_path: Path) -> None:
    lines = {
        VIDEO: f"TEMP = 3\nSTEPS = VIDEO_STEPS = 1\nIMAGE = {str(tmp_path / 'picture.png')!r}",
        VAE: f"FILE = {str(tmp_path / 'given.mp4')!r}\nLARGE = 128",
        IMAGES: "SAMPLES = 2\nGUIDANCE_SCALES = [1.0]\nSTEPS = [1]",
    }
    Image.new("RGB", (100, 50), "teal").save(tmp_path / "picture.png")
    export_to_video([Image.new("RGB", (100, 50), "teal")] * 12, tmp_path / "given.mp4")
    notebook = run(name, tmp_path, parameters=f"MODEL = {str(released)!r}\n{lines[name]}")
    if name == VIDEO:
        assert videos(notebook, tmp_path) == [(n, 384, 640, 3) for n in (17, 17, 17, 33)]
        assert "the same frames as without the stop: True" in printed(notebook)
    elif name == VAE:
        assert "clips: 1, frames each: 9, of 96x48 pixels" in printed(notebook)
        assert len(videos(notebook, tmp_path)) == 1
    else:
        assert len(figures(notebook)) == 4


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_kept_is_whole_and_small_and_tells_nothing_of_the_machine(
    name: str, tmp_path: Path
) -> None:
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    for out in outputs(notebook):
        assert out.get("name") == "stdout" or set(out.data) in ({"image/png"}, {"text/html"})
    assert not any(cell.get("execution_count") for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"
    source = json.dumps([[cell.source, cell.metadata] for cell in notebook.cells])
    for word in ("/home", "/root", "/tmp", "/Users", "site-packages", "Traceback"):
        assert word not in source + printed(notebook)
    shown = figures(notebook)
    assert_not_blank(shown)
    assert (len(videos(notebook, tmp_path)), len(shown)) == SHOWN[name]
    assert (ROOT / name).stat().st_size < MOST_BYTES


def test_the_notebooks_are_these() -> None:
    assert set(NOTEBOOKS) == {VIDEO, VAE, IMAGES}


def test_lightening_keeps_videos_figures_and_printed_text() -> None:
    figure = Image.effect_noise((64, 64), 80).convert("RGB")
    file = io.BytesIO()
    figure.save(file, "PNG")
    new = nbformat.v4
    shown = new.new_output(
        "display_data", {"image/png": base64.b64encode(file.getvalue()).decode()}
    )
    embedded = '<video src="data:video/mp4;base64,AAAA"></video>'
    video = new.new_output("display_data", {"text/html": embedded, "text/plain": "a path"})
    table = new.new_output("display_data", {"text/html": "<table></table>"})
    said = new.new_output("stream", name="stdout", text="30 dB")
    warned = new.new_output("stream", name="stderr", text="a warning")
    cells = [
        new.new_code_cell("1", outputs=[said, warned, video, table], execution_count=7),
        new.new_code_cell("2", outputs=[shown, said], metadata={"execution": {}}),
        new.new_markdown_cell("text"),
    ]
    light = lightened(new.new_notebook(cells=cells))
    assert [out.output_type for out in light.cells[0].outputs] == ["stream", "display_data"]
    assert light.cells[0].outputs[1].data == {"text/html": embedded}
    assert printed(light) == "30 dB" * 2
    (kept,) = figures(light)
    assert kept.size == figure.size and len(kept.getcolors()) <= COLORS
    assert light.cells[0].execution_count is None and "execution" not in light.cells[1].metadata
    assert cells[0].outputs[1] is warned and cells[0].execution_count == 7
