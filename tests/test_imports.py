"""Imports go one way and never in a circle, and importing the package is cheap.

`python tests/test_imports.py` prints how many files, rooms, levels and circles there are, and each
circle with the names that are imported along it. A room is a folder of a package, or a single file
at the top of `pyramid_dit`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]

PACKAGES = [["video_vae"], ["pyramid_dit"], ["trainer_misc"], ["scripts", "app.py", "benchmarks"]]
"""From the bottom up: each may import those before it."""
ROOMS = [
    ["flow"],
    ["devices", "distributed", "files.py", "json_files.py", "checks.py"],
    ["models"],
    ["media"],
    ["sampling"],
    ["checkpoints"],
    ["generation"],
    ["pipelines"],
    ["cli", "page"],
]
"""Of `pyramid_dit`, likewise."""
DOORS = [
    "__init__.py",
    "__main__.py",
    "flux_modules.py",
    "inputs.py",
    "parallel.py",
    "progressive_video.py",
    "memory_presets.py",
    "mmdit_modules.py",
    "video_io.py",
]
"""Files of `pyramid_dit` that re-export for others: nothing inside imports them."""


LAZY = ["torch", "numpy", "PIL", "diffusers", "transformers", "accelerate", "huggingface_hub"]
OPTIONAL = ["gradio", "imageio", "cv2", "peft"]


# ---- the graph of imports ---------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """`names` that `source` imports from `target`, both files of the project."""

    source: str
    target: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} ({', '.join(self.names)})"


def module_name(path: PurePosixPath) -> str:
    """Dotted name of a file of the project."""
    parts = path.parts[:-1] if path.name == "__init__.py" else path.with_suffix("").parts
    return ".".join(parts)


@cache
def files_by_module() -> dict[str, str]:
    """All files whose imports are walked, by dotted name."""
    tops = [PROJECT_ROOT / name for level in PACKAGES for name in level]
    files = [f for top in tops for f in ([top] if top.is_file() else sorted(top.rglob("*.py")))]
    paths = [PurePosixPath(file.relative_to(PROJECT_ROOT).as_posix()) for file in files]
    return {module_name(path): str(path) for path in paths}


def imported_modules(source: str, package: str) -> Iterator[tuple[str, str]]:
    """Modules that `source` imports anywhere in it, each with the name that it takes.

    Args:
        source: Text of a Python file.
        package: Dotted name of the package that the file is in, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", alias.name) for alias in node.names)


@cache
def imports() -> list[Import]:
    """Every import of one file of the project by another.

    Importing a name takes the file that has it, not the `__init__.py` of each folder on the way.
    """
    files = files_by_module()
    names: dict[tuple[str, str], list[str]] = {}
    for module, path in files.items():
        if "." not in module and path.endswith("__init__.py"):
            continue  # lazy exports: these imports only tell type checkers what is exported
        package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
        text = (PROJECT_ROOT / path).read_text(encoding="utf-8")
        for imported, name in imported_modules(text, package):
            if imported == "pyramid_dit.__version__":
                continue  # which is there before anything else
            while imported and imported not in files:
                imported = imported.rpartition(".")[0]
            if imported and files[imported] != path:
                names.setdefault((path, files[imported]), []).append(name)
    return [Import(*edge, tuple(dict.fromkeys(taken))) for edge, taken in names.items()]


def room_of(path: str) -> str:
    """The folder of a file, or the file where it is a room of its own."""
    folder, _, name = path.rpartition("/")
    if folder == "pyramid_dit" and name not in DOORS:
        return path
    return folder or path


def position(path: str, levels: list[list[str]]) -> int:
    """Number of the level that has `path`; the topmost for what no level names."""
    found = [i for i, level in enumerate(levels) if path.split("/")[0] in level]
    return found[0] if found else len(levels)


def climbs(edge: Import) -> bool:
    """Whether an import goes up, between the packages or between the rooms of `pyramid_dit`."""
    if position(edge.target, PACKAGES) != position(edge.source, PACKAGES):
        return position(edge.target, PACKAGES) > position(edge.source, PACKAGES)
    source, target = (path.partition("pyramid_dit/")[2] for path in (edge.source, edge.target))
    if not source or not target or source in DOORS:
        return False
    return target in DOORS or position(target, ROOMS) > position(source, ROOMS)


Arrows = dict[str, set[str]]


def arrows(edges: list[Import], of: Callable[[str], str]) -> Arrows:
    """What each node imports: with `str` files, with `room_of` rooms."""
    found: Arrows = {of(path): set() for path in files_by_module().values()}
    for edge in edges:
        if of(edge.source) != of(edge.target):
            found[of(edge.source)].add(of(edge.target))
    return found


def reach(graph: Arrows) -> Arrows:
    """All that each node imports, itself or by way of others."""
    found = {}
    for node in graph:
        seen: set[str] = set()
        waiting = [*graph[node]]
        while waiting:
            if (other := waiting.pop()) not in seen:
                seen.add(other)
                waiting += graph[other]
        found[node] = seen
    return found


def circles(graph: Arrows) -> list[list[str]]:
    """Groups of nodes of which each reaches every other."""
    far = reach(graph)
    groups = {tuple(sorted(o for o in far[n] if n in far[o])) for n in graph if n in far[n]}
    return [list(group) for group in sorted(groups)]


def levels(graph: Arrows) -> int:
    """Nodes on the longest way down, where a circle is one level."""
    far = reach(graph)

    @cache
    def height(node: str) -> int:
        return 1 + max((height(o) for o in far[node] if node not in far[o]), default=0)

    return max(map(height, graph))


def within(circle: list[str], edges: list[Import], of: Callable[[str], str]) -> list[Import]:
    """The imports that a circle of files or rooms is made of."""
    ends = [(edge, {of(edge.source), of(edge.target)}) for edge in edges]
    return [edge for edge, nodes in ends if len(nodes) == 2 and nodes <= set(circle)]


def violations() -> list[str]:
    """All that is not as it should be.

    A circle with an import that climbs is open without that import, which is the one to remove; so
    circles are looked for among the others.
    """
    found = [f"{edge} climbs" for edge in imports() if climbs(edge)]
    edges = [edge for edge in imports() if not climbs(edge)]
    for of in (str, room_of):
        for circle in circles(arrows(edges, of)):
            found += [
                f"{edge} in the circle of {', '.join(circle)}" for edge in within(circle, edges, of)
            ]
    return found


def summary() -> str:
    """Files, rooms, levels, arrows and circles in words."""
    lines = []
    for kind, of in (("files", str), ("rooms", room_of)):
        graph = arrows(imports(), of)
        found = circles(graph)
        lines.append(
            f"{len(graph)} {kind} on {levels(graph)} levels, "
            f"{sum(map(len, graph.values()))} imports between them, {len(found)} circles"
        )
        for circle in found:
            lines += [
                f"  {', '.join(circle)}",
                *(f"    {edge}" for edge in within(circle, imports(), of)),
            ]
    return "\n".join(lines)


# ---- one way ----------------------------------------------------------------------------------


def test_every_file_has_its_place() -> None:
    """A new folder or file at the top of `pyramid_dit` is given its level, or is a door."""
    files = [path.partition("pyramid_dit/")[2] for path in files_by_module().values()]
    tops = {file.split("/")[0] for file in files if file}
    assert tops <= {*DOORS, *(name for level in ROOMS for name in level)}


def test_no_import_climbs_or_goes_in_a_circle() -> None:
    print(summary())
    assert not violations(), "\n".join(violations())


def test_violations_are_found() -> None:
    """The walk itself: what it sees in a source, and which ways are up."""
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ..media import images\n"
        "def f():\n    from .engine import run\n    import pyramid_dit.cli.model\n"
        "from video_vae import tiling\n"
    )
    assert sorted(imported_modules(source, "pyramid_dit.generation")) == [
        ("pyramid_dit.cli.model", "pyramid_dit.cli.model"),
        ("pyramid_dit.generation.engine.run", "run"),
        ("pyramid_dit.media.images", "images"),
        ("typing.TYPE_CHECKING", "TYPE_CHECKING"),
        ("video_vae.tiling", "tiling"),
    ]
    up = [
        ("video_vae/tiling.py", "pyramid_dit/flow/sizes.py"),
        ("trainer_misc/loop.py", "benchmarks/gpu.py"),
        ("pyramid_dit/checks.py", "pyramid_dit/models/rope.py"),
        ("pyramid_dit/cli/command.py", "pyramid_dit/inputs.py"),
        ("pyramid_dit/cli/command.py", "pyramid_dit/__init__.py"),
    ]
    for source_file, target in up:
        assert climbs(Import(source_file, target, ()))
        assert not climbs(Import(target, source_file, ()))
    graph: Arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(graph) == [["b", "c"]] and levels(graph) == 3


# ---- cheap ------------------------------------------------------------------------------------


def modules_after(statement: str) -> set[str]:
    """Top-level packages in memory once a fresh interpreter has run `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_packages_loads_no_library() -> None:
    loaded = modules_after("import pyramid_dit, video_vae, trainer_misc; dir(pyramid_dit)")
    assert not loaded & {*LAZY, *OPTIONAL}


def test_the_pipeline_and_the_doors_need_nothing_optional() -> None:
    doors = [d for d in DOORS if (PROJECT_ROOT / "pyramid_dit" / d).exists() and "__" not in d]
    modules = [f"pyramid_dit.{door.removesuffix('.py')}" for door in doors]
    assert len(modules) >= 3
    statement = (
        "from pyramid_dit import PyramidDiTForVideoGeneration\n"
        "import sys\n"
        "heavy = ['diffusers.pipelines.pipeline_utils', 'transformers.models.clip.modeling_clip']\n"
        "assert not set(heavy) & set(sys.modules)\n"
        f"import {', '.join(modules)}"
    )
    assert not modules_after(statement) & set(OPTIONAL)


def test_public_names() -> None:
    import pyramid_dit

    for name in pyramid_dit.__all__:
        assert getattr(pyramid_dit, name) is not None
        assert name in dir(pyramid_dit)
    with pytest.raises(AttributeError, match="PyramidPlot"):
        _ = pyramid_dit.PyramidPlot  # type: ignore[attr-defined]


def test_no_two_modules_of_tests_have_one_name() -> None:
    """pytest collects one of them alone, but only when both are asked for."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py"))
    del names["conftest.py"]
    assert max(names.values()) == 1, names.most_common(3)


if __name__ == "__main__":
    print(summary())
