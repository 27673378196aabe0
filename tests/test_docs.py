"""What the documentation says exists: links, names, command lines; and the shell scripts answer."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from documentation import SHELL, blocks, commands_of, prose
from golden import PROJECT_ROOT

from pyramid_dit.cli import options as cli_options
from pyramid_dit.cli.sources import Storyboard
from pyramid_dit.generation import memory_presets
from pyramid_dit.page import command as page_command
from trainer_misc import dit_options, vae_options
from trainer_misc.options import parse

PAGES = [
    PROJECT_ROOT / "README.md",
    PROJECT_ROOT / "CONTRIBUTING.md",
    *sorted((PROJECT_ROOT / "docs").glob("*.md")),
    *sorted((PROJECT_ROOT / "docs").glob("*/README.md")),
]
SCRIPTS = sorted((PROJECT_ROOT / "scripts").glob("*.sh"))
SHELLS = ["sh", "bash"]
PACKAGES = ("pyramid_dit", "video_vae", "trainer_misc", "benchmarks", "docs")
OTHER_COMMANDS = ("pip", "pytest", "ruff", "mypy", "echo")
OPTIONAL = ("gradio_client", "peft")
DOTTED = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT_ROOT).as_posix()


def code_spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of `page`, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{name_of(page)} links to {target}"


def test_every_page_is_linked_from_the_index() -> None:
    index = PROJECT_ROOT / "docs" / "README.md"
    linked = set(re.findall(r"\]\(([\w-]+\.md)", prose(index)))
    assert linked == {page.name for page in index.parent.glob("*.md")} - {index.name}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks(page: Path) -> None:
    for source in blocks(page, "python"):
        tree = ast.parse(source, filename=name_of(page))
        compile(tree, name_of(page), "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert is_optional(alias.name) or importlib.util.find_spec(alias.name)
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None and node.level == 0
                if is_optional(node.module):
                    continue
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def is_optional(module: str) -> bool:
    """Whether `module` belongs to an extra that is not installed here."""
    package = module.partition(".")[0]
    return package in OPTIONAL and importlib.util.find_spec(package) is None


def resolve(dotted: str) -> Any:
    """The module that holds a dotted name, once the name was found in it."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        found: Any = module
        for part in parts[count:]:
            found = getattr(found, part)
        return module
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_and_files_exist(page: Path) -> None:
    for span in code_spans(page):
        words = span.replace("(", " ").split()
        if words and DOTTED.fullmatch(words[0]) and not span.endswith(".py"):
            resolve(words[0])
        if re.fullmatch(r"(?:[\w-]+/)+[\w-]+\.(?:py|sh|md)", span) and span.split("/")[0] in (
            *PACKAGES,
            "scripts",
        ):
            assert (PROJECT_ROOT / span).is_file(), f"{name_of(page)} names {span}"


@pytest.mark.parametrize("package", PACKAGES)
def test_names_in_docstrings_and_comments_exist(package: str) -> None:
    for path in (PROJECT_ROOT / package).rglob("*.py"):
        for name in re.findall(rf"`~?({DOTTED.pattern})[`( ]", path.read_text(encoding="utf-8")):
            try:
                resolve(name)
            except (ModuleNotFoundError, AttributeError):
                pytest.fail(f"{name_of(path)} names {name}")


def test_the_map_names_the_files_that_hold_the_names() -> None:
    page = PROJECT_ROOT / "docs" / "paper-to-code.md"
    rows = [line for line in prose(page).splitlines() if "](../" in line and line.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        files = {(page.parent / path).resolve() for path in re.findall(r"\]\(([^)]+)\)", row)}
        names = re.findall(r"`((?:pyramid_dit|video_vae)[\w.]+)`", row)
        assert {Path(resolve(name).__file__).resolve() for name in names} == files, row


def test_the_table_of_memory_presets_is_what_is_computed() -> None:
    page = (PROJECT_ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- begin memory_presets -->\n")[2]
    assert shown.partition("\n<!-- end memory_presets -->")[0] == memory_presets.table()


# ---- command lines ----------------------------------------------------------------------------


class Parsed(SystemExit):
    """A parser has understood its arguments; commands leave this one alone, as after --help."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parse_with(module: str, arguments: Sequence[str], patch: pytest.MonkeyPatch) -> Any:
    """The parser of `python -m module`, once it has understood `arguments`."""
    original = argparse.ArgumentParser.parse_known_args

    def parse(self: Any, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = original(self, args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {unknown}")
        raise Parsed(self)

    with patch.context() as context:
        context.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(Parsed) as parsed:
            importlib.import_module(module).main(list(arguments))
    return parsed.value.parser


def commands(page: Path) -> Iterator[list[str]]:
    """Commands of the shell blocks, each as its words."""
    for block in blocks(page, *SHELL):
        yield from commands_of(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, *arguments in commands(page):
        if name == "torchrun":
            start = arguments.index("-m")
            name, arguments = "python", arguments[start:]
        if (name, *arguments[:1]) == ("pyramid-flow", "page"):
            page_command.parse_options(arguments[1:])
        elif name == "pyramid-flow" or (name, *arguments[:2]) == ("python", "-m", "pyramid_dit"):
            cli_options.parse_options(arguments[2 if name == "python" else 0 :])
        elif name == "python" and arguments[0] == "-m":
            parse_with(arguments[1], arguments[2:], monkeypatch)
        elif name == "python" and arguments[0] == "app.py":
            page_command.parse_options(arguments[1:])
        elif name.startswith("scripts/"):
            assert PROJECT_ROOT / name in SCRIPTS, f"{name_of(page)} runs {name}"
        else:
            assert name in OTHER_COMMANDS, f"{name_of(page)} runs {name}"


def test_the_storyboard_shown_can_be_read(tmp_path: Path) -> None:
    (shown,) = blocks(PROJECT_ROOT / "docs" / "inference.md", "json")
    (tmp_path / "story.json").write_text(shown)
    story = Storyboard.read(str(tmp_path / "story.json"))
    assert sorted(story.prompts) == [0, 3] and story.guidance_scales == {3: 3.0}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_that_are_run_exist(page: Path) -> None:
    for module in re.findall(r"`python -m ([\w.]+)", prose(page)):
        assert importlib.util.find_spec(module), f"{name_of(page)} runs {module}"


def options_of(page: Path) -> set[str]:
    """Options that the text of `page` names alone, as in its tables."""
    spans = (re.match(r"--[a-z][a-z_-]+(?= |$)", span) for span in code_spans(page))
    return {match[0] for match in spans if match}


def test_options_in_the_training_tables_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {
        "toy.latents": ["--vae", "a", "--output", "b"],
        "toy.long_clips": ["folder", "--model_path", "a"],
        "toy.new_word": ["folder"],
        "toy.start": ["--vae", "a", "--latents", "b", "--output", "c"],
        "evaluation": [],
        "train_dit": [],
        "train_vae": [],
        "toy.model_card": ["--checkpoint", "a", "--scores", "b"],
    }
    known: set[str] = set()
    for module, needed in arguments.items():
        parser = parse_with(f"trainer_misc.{module}", needed, monkeypatch)
        known |= set(parser._option_string_actions)
    documented = options_of(PROJECT_ROOT / "docs" / "training.md")
    assert len(documented) > 10
    assert documented <= known | {"--help"}


@pytest.mark.parametrize("page", ["README.md", "docs/inference.md", "docs/troubleshooting.md"])
def test_options_of_the_command_exist(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(cli_options._build_parser()._option_string_actions)
    known |= set(cli_options._doctor_parser()._option_string_actions)
    known |= set(parse_with("app", [], monkeypatch)._option_string_actions)
    documented = options_of(PROJECT_ROOT / page)
    assert documented
    assert documented <= known


# ---- figures and scripts ----------------------------------------------------------------------


def test_figures_are_drawn_from_the_code() -> None:
    make = importlib.import_module("docs.figures.make")
    folder = PROJECT_ROOT / "docs" / "figures"
    for page, name in ((make.history_figure(), "history"), (make.attention_figure(), "attention")):
        committed = make.Image.open(folder / f"{name}.png")
        assert committed.size == page.image.size


@pytest.mark.slow
def test_all_figures_are_drawn(tmp_path: Path) -> None:
    make = importlib.import_module("docs.figures.make")
    drawn = make.draw_all(tmp_path)
    committed = (PROJECT_ROOT / "docs" / "figures").glob("*.png")
    assert sorted(path.name for path in drawn) == sorted(path.name for path in committed)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_explain_themselves(script: Path, shell: str) -> None:
    done = subprocess.run([shell, str(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"Usage: {name_of(script)}")
    assert os.access(script, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck() -> None:
    done = subprocess.run(
        ["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Stands in for Python: notes what it is called with."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>"{tmp_path}/calls"\n')
    script.chmod(0o755)
    return script


def calls_of(python: Path, shell: str, script: str, *arguments: str, **settings: str) -> list[str]:
    subprocess.run(
        [shell, str(PROJECT_ROOT / "scripts" / script), *arguments],
        env={**os.environ, "PYTHON": str(python), **settings},
        cwd=python.parent,
        capture_output=True,
        check=True,
    )
    return (python.parent / "calls").read_text().splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_toy_training_calls_what_exists(
    shell: str, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"PROCESSES": "2", "STEPS": "7", "SEED": "3", "CLIPS": "5"}
    calls = calls_of(python, shell, "train_toy.sh", "my run", **settings)
    *vae, latents, begin, dit, scores, card = calls
    start = f"{PROJECT_ROOT}/pyramid_dit/toy/causal_video_vae"
    for part, call in zip(("1-pictures", "2-clips", "3-decoder"), vae, strict=True):
        output = f"my run/vae/{part}"
        config = f"--config {PROJECT_ROOT}/trainer_misc/toy/vae-{part}.toml"
        assert f"{config} --model_path {start} --output_dir {output} --model_dtype fp32" in call
        start = f"{output}/causal_video_vae"
    assert latents.endswith("--output my run/latents --pictures 16000 --clips 5")
    assert begin.endswith("--latents my run/latents --output my run/start --seed 3")
    assert dit.startswith("-m torch.distributed.run --standalone --nproc-per-node 2 -m trainer_")
    assert "--model_path my run/start --output_dir my run/dit --steps 7" in dit
    assert "trainer_misc.evaluation" in scores and "trainer_misc.toy.model_card" in card
    for call in calls:
        module, *arguments = call.rpartition("-m trainer_misc.")[2].replace("my run", "run").split()
        parse_with(f"trainer_misc.{module}", [*arguments], monkeypatch)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_engine_script_starts_the_page(shell: str, python: Path) -> None:
    settings = {"GPUS": "4", "MODEL_PATH": "owner/model"}
    (call,) = calls_of(python, shell, "app_multigpu_engine.sh", "--port", "8000", **settings)
    program, *arguments = call.split()
    assert program == str(PROJECT_ROOT / "app.py")
    options = page_command.parse_options(arguments)
    assert (options.gpus, options.models, options.port) == (4, ["owner/model"], 8000)
    assert options.host == "127.0.0.1" and not options.share


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("train_toy.sh", {"PROCESSES": "many"}, "PROCESSES must be a number above 0, not 'many'"),
        ("train_pyramid_flow.sh", {"GPUS": "0"}, "GPUS must be a number above 0, not '0'"),
        ("train_pyramid_flow.sh", {}, "MODEL_PATH must name the folder of a checkpoint"),
        ("train_pyramid_flow_without_ar.sh", {}, "MODEL_PATH must name the folder of a checkpoint"),
        ("train_causal_video_vae.sh", {}, "MODEL_PATH must name the folder of a VAE"),
        ("finetune_lora.sh", {"RANK": "0"}, "RANK must be a number above 0, not '0'"),
        ("finetune_lora.sh", {}, "FOLDER is missing: a folder of videos with captions"),
    ],
)
def test_wrong_settings_are_told_in_a_line(
    name: str, settings: dict[str, str], message: str, python: Path
) -> None:
    done = subprocess.run(
        ["sh", str(PROJECT_ROOT / "scripts" / name)],
        env={**os.environ, "PYTHON": str(python), **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"{name}: {message}\n"


@pytest.mark.parametrize("gpus", ["1", "2"])
@pytest.mark.parametrize(
    ("name", "trainer", "groups"),
    [
        ("train_pyramid_flow.sh", "train_dit", dit_options.GROUPS),
        ("train_pyramid_flow_without_ar.sh", "train_dit", dit_options.GROUPS),
        ("train_causal_video_vae.sh", "train_vae", vae_options.GROUPS),
    ],
)
def test_training_scripts_call_their_trainer(
    name: str, trainer: str, groups: Any, gpus: str, python: Path
) -> None:
    settings = {"GPUS": gpus, "MODEL_PATH": "a model", "LPIPS_CKPT": "lpips.pth"}
    (call,) = calls_of(python, "sh", name, "--batch_size", "12", **settings)
    launcher, _, rest = call.partition(f"-m trainer_misc.{trainer} ")
    assert ("torch.distributed.run" in launcher) == (gpus == "2")
    found = parse(None, groups, rest.replace("a model", "a_model").split())
    assert found.batch_size == 12 and found.model_path == Path("a_model")
