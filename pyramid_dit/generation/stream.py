"""A video that is handed out while it is made."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from os import PathLike
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .engine import make_frames, sample
from .latent_codec import to_output
from .run import Run


class VideoStream(Iterator[Any]):
    """An iterator over the units of a video, each as soon as it is decoded.

    It yields what `generate` would return, cut in time: for a single prompt and "pil" a list of
    one image first and then of 8 a latent frame; "np" and "pt" are `[b, t, ...]`. What a video is
    given to start with comes first: an image as one frame, latents to resume with all their
    frames; of a video that goes on only the new frames are shown.

    The work is done while the next item is asked for. `close`, from any thread, ends it after
    the step that is being computed; leaving the `with` block or the last reference to it does
    the same.

    Args:
        run: What is to be made, and by which models.
        as_they_come: Whether units are decoded when they are there, see `engine.make_frames`.

    Attributes:
        num_units: Units of the video, those that are given among them; infinity without an end.
        total_steps: Steps of all of them together; infinity without an end.
    """

    def __init__(self, run: Run, *, as_they_come: bool = True) -> None:
        self._run = run
        self._hidden = run.request.hidden_frames  # still to be left out
        self._latents_only = run.request.arguments.output_type == "latent"
        self._pieces: Generator[Tensor, None, None] = (
            sample(run) if self._latents_only else make_frames(run, as_they_come=as_they_come)
        )
        self.num_units = run.request.num_units
        self.total_steps = run.request.total_steps

    @property
    def steps_done(self) -> int:
        """Steps so far."""
        return self._run.steps_done

    @property
    def latents(self) -> Tensor | None:
        """Normalized latents `[b, c, t, h/8, w/8]` so far, float32; None before the first unit.

        Of a video without end, those that the next unit sees.
        """
        return self._run.latents

    def __next__(self) -> Any:
        """The next unit.

        Raises:
            StopIteration: The video is complete, or the work was stopped.
        """
        return self._output(self._next_piece())

    def join(self) -> Any:
        """All that is left of the video in one; of a run that is stopped, what is complete."""
        pieces = []
        while True:
            try:
                pieces.append(self._next_piece())
            except StopIteration:
                break
        request = self._run.request
        if not pieces:  # stopped before a unit was complete
            shape: tuple[int, ...] = (request.batch, 0, request.height, request.width, 3)
            images = request.arguments.output_type == "pil"
            if self._latents_only:
                batch, channels, _, *size = request.noise_shape(self._run.model)
                shape = (batch, channels, 0, *size)
            pieces = [torch.empty(shape, dtype=torch.uint8 if images else torch.float32)]
        return self._output(torch.cat(pieces, dim=2 if self._latents_only else 1))

    def _next_piece(self) -> Tensor:
        """Latents, or frames `[b, t, h, w, 3]`, of the next unit that shows."""
        while True:
            piece = next(self._pieces)
            if self._latents_only:
                return piece
            hidden = min(self._hidden, piece.shape[1])
            self._hidden -= hidden
            if hidden < piece.shape[1]:
                return piece[:, hidden:]

    def _output(self, piece: Tensor) -> Any:
        """What the caller asked for."""
        if self._latents_only:
            return piece
        output = to_output(piece, self._run.request.arguments.output_type)
        if isinstance(output, list) and len(output) == 1 and not self._run.request.nested:
            return output[0]
        return output

    def save_latents(self, path: str | PathLike[str]) -> None:
        """Write what it takes to go on from here, see `SavedLatents`.

        Raises:
            ValueError: There is no complete unit yet.
            OSError: The file could not be written.
        """
        self._run.saved().save(path)

    def close(self) -> None:
        """End the work, at the latest after the step that is being computed."""
        self._run.stop()
        try:
            self._pieces.close()
        except ValueError:
            return  # another thread is at work in it, and will come to its end

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
