"""The files that make a package: pins and ranges agree, and nothing that is needed stays behind."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(python: str) -> dict[str, str]:
    """What requirements.txt installs on a version of Python."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{line} is not a pin"
            assert requirement.name not in found, f"{requirement.name} twice on Python {python}"
            found[requirement.name] = specifier.version
    return found


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py passes to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return given


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_lie_in_the_ranges(setup_arguments: dict[str, Any], python: str) -> None:
    ranges = {
        r.name: r
        for r in map(Requirement, setup_arguments["install_requires"])
        if r.marker is None or r.marker.evaluate({"python_version": python})
    }
    pinned = pins(python)
    assert pinned.keys() == ranges.keys()
    for name, version in pinned.items():
        assert version in ranges[name].specifier, f"{name}=={version} is not in {ranges[name]}"


def test_torch_is_pinned() -> None:
    assert pins("3.11")["torch"] == "2.13.0"


def test_package_names_and_command(setup_arguments: dict[str, Any]) -> None:
    top_level = {name.partition(".")[0] for name in setup_arguments["packages"]}
    assert top_level == {"pyramid_dit", "video_vae", "trainer_misc"}
    assert setup_arguments["python_requires"] == ">=3.10"
    assert "test" in setup_arguments["extras_require"]
    (script,) = setup_arguments["entry_points"]["console_scripts"]
    assert script.replace(" ", "") == "pyramid-flow=pyramid_dit.__main__:main"
    assert setup_arguments["version"] == __import__("pyramid_dit").__version__


def test_every_package_has_an_init() -> None:
    for package in ("pyramid_dit", "video_vae", "trainer_misc"):
        for module in (ROOT / package).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), f"{module} would not be installed"


def test_the_default_checkpoint_is_package_data(setup_arguments: dict[str, Any]) -> None:
    patterns = setup_arguments["package_data"]["pyramid_dit"]
    package = ROOT / "pyramid_dit"
    listed = {path for pattern in patterns for path in package.glob(pattern) if path.is_file()}
    there = {path for path in (package / "toy").rglob("*") if path.is_file()}
    assert there <= listed


def test_git_keeps_the_default_checkpoint() -> None:
    """.gitignore must not swallow weights or tokenizers."""
    names = ["pyramid_dit/toy/model_index.json", "pyramid_dit/toy/a/model.safetensors"]
    command = ["git", "check-ignore", "--no-index", *names]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        pytest.skip("not a git checkout")
    assert run.stdout == ""


def test_the_recipes_are_package_data(setup_arguments: dict[str, Any]) -> None:
    folder = ROOT / "trainer_misc" / "toy"
    patterns = setup_arguments["package_data"]["trainer_misc.toy"]
    listed = {path for pattern in patterns for path in folder.glob(pattern)}
    for ending in ("toml", "json"):
        assert listed >= set(folder.glob(f"*.{ending}")) != set()
