"""What a public face has of the `VideoGenerator` that it holds: attributes and methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from ..generation.video_generator import VideoGenerator

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Face(Protocol):
    """Holds a `VideoGenerator`."""

    @property
    def video_generator(self) -> VideoGenerator:
        """What makes videos."""


class Part(Generic[T]):
    """An attribute of the generator, or of its components, under the same name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, face: Face, owner: type | None = None) -> T:
        if face is None:  # asked of the class
            return self
        return getattr(self._holder(face), self._name)

    def __set__(self, face: Face, value: T) -> None:
        setattr(self._holder(face), self._name, value)

    def _holder(self, face: Face) -> Any:
        generator = face.video_generator
        return generator if self._name in vars(generator) else generator.components


def delegated(
    method: Callable[Concatenate[VideoGenerator, P], R],
) -> Callable[Concatenate[Face, P], R]:
    """A method of the generator as one of the face."""

    @functools.wraps(method)
    def call(self: Face, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(self.video_generator, *args, **kwargs)

    return call
