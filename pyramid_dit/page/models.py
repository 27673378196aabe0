"""The models that visitors choose from, of which one at a time is in memory."""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.folder import CheckpointFolder, is_checkpoint, variants_of
from ..cli.model import check_model_name, open_model
from ..cli.options import UsageError
from .settings import DEFAULT_NAME, ModelCard

if TYPE_CHECKING:
    from ..pipelines.official import PyramidDiTForVideoGeneration


def find_models(options: Namespace) -> list[tuple[Namespace, CheckpointFolder]]:
    """Look into all checkpoints that a command line names, and into the variants of each.

    A folder of checkpoints stands for all of them. Of a checkpoint the default variant comes first.
    With `--variant`, `--lora` or `--gpus` only one variant is offered; the last two take one model.

    Returns:
        For each choice the command line as if it named this one alone, and the folder.

    Raises:
        UsageError: There is no such model, or there are several where one is needed.
        FileNotFoundError: A checkpoint lacks a file.
        ConnectionError: The Hub cannot be reached.
        ValueError: A file cannot be understood.
    """
    single = next((flag for flag in ("lora", "gpus") if getattr(options, flag) not in ([], 1)), "")
    sources: list[str | None] = []
    for name in options.models or [None]:
        check_model_name(name)
        sources += [name] if name is None else _checkpoints(name)
    if single and len(sources) > 1:
        names = ", ".join(str(source) for source in sources)
        raise UsageError(f"--{single} needs exactly one model, and there are several: {names}")
    found: list[tuple[Namespace, CheckpointFolder]] = []
    for source in sources:
        asked = Namespace(**vars(options) | {"model": source})
        if single or options.variant is not None:
            found.append((asked, open_model(asked)))
        else:
            found += _variants(asked)
    return found


def _checkpoints(name: str) -> list[str]:
    """The checkpoint of that name, or those in the folder of that name."""
    folder = Path(name)
    if not folder.is_dir() or is_checkpoint(folder):
        return [name]
    return [str(path) for path in sorted(folder.iterdir()) if is_checkpoint(path)] or [name]


def _variants(asked: Namespace) -> Iterator[tuple[Namespace, CheckpointFolder]]:
    """All variants of a checkpoint that are complete; the default one first, complete or not."""
    local = asked.model is not None and Path(asked.model).is_dir()
    there = variants_of(Path(asked.model)) if local else []
    try:
        first = open_model(asked)
    except ValueError:  # it does not say which one
        if len(there) < 2:
            raise
        first = open_model(Namespace(**vars(asked) | {"variant": there[0]}))
    yield asked, first
    for variant in variants_of(first.path):
        if variant == first.variant:
            continue
        other = Namespace(**vars(asked) | {"variant": variant})
        try:
            folder = CheckpointFolder.open(first.path, variant)
            folder.check_part(variant)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"Not offered: {variant}: {error}\n")
            continue
        yield other, folder


def model_name(options: Namespace) -> str:
    """What the page calls the model of a command line, without its variant."""
    name = DEFAULT_NAME if options.model is None else Path(options.model).name
    return name + "".join(f" with {Path(source).stem}" for source, _ in options.lora)


def cards_of(found: list[tuple[Namespace, CheckpointFolder]]) -> list[ModelCard]:
    """A card for each choice; where two would have one name, the whole path is the name."""
    cards = [ModelCard.of(folder, model_name(options)) for options, folder in found]
    names = [card.name for card in cards]
    return [
        card if names.count(card.name) == 1 else ModelCard.of(folder, str(folder.path))
        for card, (_, folder) in zip(cards, found, strict=True)
    ]


class Models:
    """Hands out the model that a video is made with, and loads it if it is not the last one.

    Args:
        loaders: What loads each model, by the name on its card.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], PyramidDiTForVideoGeneration]]) -> None:
        self._loaders = loaders
        self._name = ""
        self._model: PyramidDiTForVideoGeneration | None = None

    def get(
        self, name: str, loading: Callable[[], object] = lambda: None
    ) -> PyramidDiTForVideoGeneration:
        """The model of that name; the one before it is given up first.

        Args:
            name: On its card.
            loading: Called before a model is loaded.

        Raises:
            KeyError: There is none of that name.
            OSError: A file cannot be read.
            ValueError: A file is damaged or does not fit.
        """
        load = self._loaders[name]
        if self._model is None or self._name != name:
            loading()
            self._give_up()
            self._model = load()
            self._model.set_progress_bar_config(disable=True)
            self._name = name
        return self._model

    def _give_up(self) -> None:
        """Free the memory of the model that is loaded."""
        import torch

        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
