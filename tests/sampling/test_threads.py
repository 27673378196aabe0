"""Runs of several threads share a model: each makes what it makes alone, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint
from torch import Tensor

from pyramid_dit import PyramidDiTForVideoGeneration

RUNS: list[dict[str, Any]] = [
    {"seed": 1, "num_inference_steps": [2, 1, 3], "guidance_scale": 3.0, "solver": "ab2"},
    {"seed": 2, "num_inference_steps": [3, 2, 1], "guidance_scale": 0.0, "solver": "euler"},
]
PATIENCE = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=QUICK_INDEX)


@pytest.fixture
def model(folder: Path) -> PyramidDiTForVideoGeneration:
    model = PyramidDiTForVideoGeneration.from_pretrained(folder)
    model.set_progress_bar_config(disable=True)
    return model


class Turns:
    """Lets two threads go on only in turn, a step each, until one of them has finished."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turn = 0
        self._left = {0, 1}

    def wait(self, me: int) -> None:
        with self._changed:
            self._turn = 1 - me
            self._changed.notify_all()
            mine = self._changed.wait_for(
                lambda: self._turn == me or self._left == {me}, timeout=PATIENCE
            )
            assert mine

    def leave(self, me: int) -> None:
        with self._changed:
            self._left.discard(me)
            self._changed.notify_all()


def in_turn(make: Callable[[int, Callable[..., None]], Tensor]) -> list[Tensor | BaseException]:
    """What two threads make that take turns after every step."""
    turns, made = Turns(), [RuntimeError("not finished")] * 2

    def work(me: int) -> None:
        try:
            made[me] = make(me, lambda *_: turns.wait(me))
        except BaseException as error:
            made[me] = error
        finally:
            turns.leave(me)

    threads = [threading.Thread(target=work, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return made


@contextmanager
def first_block_cache(model: PyramidDiTForVideoGeneration) -> Iterator[None]:
    model.dit.enable_cache(FirstBlockCacheConfig(0.3))
    try:
        yield
    finally:
        model.dit.disable_cache()


@contextmanager
def exactly(model: PyramidDiTForVideoGeneration) -> Iterator[None]:
    yield


@pytest.mark.parametrize("way", [exactly, first_block_cache])
def test_each_thread_makes_what_it_makes_alone(
    model: PyramidDiTForVideoGeneration, way: Callable[..., Any]
) -> None:
    def make(which: int, on_step: Callable[..., None] | None = None) -> Tensor:
        return model.generate(
            "a red circle", output_type="latent", callback_on_step_end=on_step, **RUNS[which]
        )

    with way(model):
        alone = [make(0), make(1)]
        together = in_turn(make)
        for one, other in zip(alone, together, strict=True):
            assert isinstance(other, Tensor), other
            assert torch.equal(one, other)


def test_what_caches_keep_is_dropped_with_its_stage(model: PyramidDiTForVideoGeneration) -> None:
    with first_block_cache(model):
        model.generate("a red circle", **RUNS[0])
        registries = [getattr(part, "_diffusers_hook", None) for part in model.dit.modules()]
        kept = [
            hook.state_manager._state_cache
            for registry in registries
            if registry is not None
            for hook in registry.hooks.values()
            if hasattr(hook, "state_manager")
        ]
        assert kept and not any(kept)


def test_prompts_are_tokenized_by_many_threads_at_once(
    model: PyramidDiTForVideoGeneration,
) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def encode(length: int) -> None:
        try:
            start.wait(PATIENCE)
            for _ in range(20):
                embeds, _, _ = model.text_encoder(["a red circle"], max_sequence_length=length)
                assert embeds.shape[1] == length
        except BaseException as error:
            errors.append(error)

    with torch.no_grad():
        threads = [threading.Thread(target=encode, args=(8 + i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert not errors


def test_one_stop_for_all_runs_and_one_for_each(model: PyramidDiTForVideoGeneration) -> None:
    long = {"height": 64, "width": 64, "num_frames": 49, "output_type": "latent"}
    first, second, third = (model.stream("a red circle", seed=i, **long) for i in range(3))
    next(first)
    first.close()
    next(second)
    next(third)
    assert list(first) == []
    model.stop()
    assert list(second) == [] and list(third) == []
    assert model.generate("a red circle", seed=1, **long).shape[2] == 7  # not what comes later


def test_settings_hold_for_the_runs_that_begin_after_them(
    model: PyramidDiTForVideoGeneration,
) -> None:
    arguments = {**RUNS[0], "output_type": "latent"}
    exact = model.generate("a red circle", **arguments)
    stream = model.stream("a red circle", **arguments)
    model.enable_fast_mode(history_window=1, guidance_interval=(0.0, 0.1))
    assert torch.equal(stream.join(), exact)
    assert not torch.equal(model.generate("a red circle", **arguments), exact)
