"""Imports go one way, and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest
from golden import PROJECT_ROOT

import pyramid_dit

LAYERS = ["video_vae", "pyramid_dit", "trainer_misc"]
"""From the bottom up: each may import those before it. What is not here is above all of them."""
ON_TOP = ["scripts", "app", "benchmarks"]
LAZY = ["torch", "numpy", "PIL", "diffusers", "transformers", "accelerate", "huggingface_hub"]
OPTIONAL = ["gradio", "imageio", "cv2", "peft"]


def imported_packages(source: str) -> Iterator[str]:
    """Top-level packages imported anywhere in `source`; relative imports stay in their own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_no_import_climbs(layer: str) -> None:
    above = {*LAYERS[LAYERS.index(layer) + 1 :], *ON_TOP}
    files = sorted((PROJECT_ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        climbing = above & set(imported_packages(path.read_text(encoding="utf-8")))
        assert not climbing, f"{path.relative_to(PROJECT_ROOT)} imports {', '.join(climbing)}"


def modules_after(statement: str) -> set[str]:
    """Top-level packages in memory once a fresh interpreter has run `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_packages_loads_no_library() -> None:
    loaded = modules_after("import pyramid_dit, video_vae; dir(pyramid_dit)")
    assert not loaded & {*LAZY, *OPTIONAL}


def test_the_pipeline_needs_nothing_optional() -> None:
    statement = (
        "from pyramid_dit import PyramidDiTForVideoGeneration\n"
        "import sys\n"
        "heavy = ['diffusers.pipelines.pipeline_utils', 'transformers.models.clip.modeling_clip']\n"
        "assert not set(heavy) & set(sys.modules)"
    )
    assert not modules_after(statement) & set(OPTIONAL)


def test_public_names() -> None:
    for name in pyramid_dit.__all__:
        assert getattr(pyramid_dit, name) is not None
        assert name in dir(pyramid_dit)
    with pytest.raises(AttributeError, match="PyramidPlot"):
        _ = pyramid_dit.PyramidPlot  # type: ignore[attr-defined]
