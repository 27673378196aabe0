"""Runs the notebooks and saves their outputs in them.

    python -m docs.notebooks
    python -m docs.notebooks image_generation_demo.ipynb

Run it from the root of the project, after `pip install ".[notebook]"`. A notebook keeps what it
prints, its videos and its figures, the latter in few colors. Progress and warnings are left out, so
that the file is small and reveals nothing about the machine.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config

from pyramid_dit.files import replacing

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = tuple(sorted(path.name for path in ROOT.glob("*.ipynb")))
TIMEOUT = 1800
"""Seconds that a cell may take."""
COLORS = 64
"""Colors of a figure in the notebook."""
VIDEO = "data:video/mp4;base64,"
"""What an embedded video contains."""


def run(name: str, folder: Path, *, parameters: str = "") -> NotebookNode:
    """Run a notebook in a process of its own and return it with its outputs.

    Args:
        name: One of `NOTEBOOKS`.
        folder: Where it runs and writes its files.
        parameters: Code to run after the cell with the parameters, to change them.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised.
    """
    notebook = nbformat.read(ROOT / name, as_version=4)
    if parameters:
        tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
        index = next(index for index, tag in enumerate(tags) if "parameters" in tag)
        notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(parameters))
    # Sockets in a folder of their own: no port is opened.
    with tempfile.TemporaryDirectory(prefix="nb") as sockets:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            startup_timeout=TIMEOUT,
            iopub_timeout=TIMEOUT,
            resources={"metadata": {"path": str(folder)}},
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/ipc"}),
        )
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    return notebook


def lightened(notebook: NotebookNode) -> NotebookNode:
    """A copy that has no outputs but printed text, videos and figures of few colors."""
    light = nbformat.from_dict(notebook)
    light.metadata.language_info = NotebookNode(name="python")  # not the version that ran it
    for cell in light.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [kept for out in cell.outputs if (kept := _kept(out)) is not None]
    return light


def _kept(output: NotebookNode) -> NotebookNode | None:
    """What stays of an output, if anything does."""
    if output.get("name") == "stdout":
        return output
    data = output.get("data", {})
    if VIDEO in data.get("text/html", ""):
        return nbformat.v4.new_output("display_data", {"text/html": data["text/html"]})
    return _figure(data["image/png"]) if "image/png" in data else None


def _figure(png: str) -> NotebookNode:
    """An output of the picture with fewer colors."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    file = io.BytesIO()
    few = image.convert("RGB").quantize(
        COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    few.save(file, "PNG", optimize=True)
    text = base64.b64encode(file.getvalue()).decode()
    return nbformat.v4.new_output("display_data", {"image/png": text})


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, and write the notebooks."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.notebooks", description="Run the notebooks and save their outputs."
    )
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="by default all of them")
    for name in parser.parse_args(arguments).names or NOTEBOOKS:
        if name not in NOTEBOOKS:
            parser.error(f"no such notebook: {name!r}; there are {', '.join(NOTEBOOKS)}")
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(name, Path(folder))
        with replacing(ROOT / name) as temporary:
            temporary.write_text(nbformat.writes(lightened(notebook)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
