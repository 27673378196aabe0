"""A video that is handed out while it is made."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .engine import given_frames, output_of
from .request import Progress, Request
from .saved_latents import SavedLatents

if TYPE_CHECKING:
    from .engine import GenerationEngine


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
        engine: The models.
        request: What to make.

    Raises:
        ValueError: Something does not fit, or a model is missing.

    Attributes:
        num_units: Units of the video, those that are given among them.
        total_steps: Euler steps of all of them together.
    """

    def __init__(self, engine: GenerationEngine, request: Request) -> None:
        engine._check(request)
        self._request = request
        self._progress = Progress()
        self._skipped = given_frames(request)  # frames still to be left out
        self._decoder = None if request.output_type == "latent" else engine._stream_decoder(request)
        self._latents = engine._latents(request, self._progress, engine._processes(request))
        self.num_units = request.num_units
        self.total_steps = request.total_steps

    @property
    def steps_done(self) -> int:
        """Euler steps so far."""
        return self._progress.steps_done

    @property
    def latents(self) -> Tensor | None:
        """Normalized latents `[b, c, t, h/8, w/8]` so far, float32; None before the first unit."""
        return self._progress.latents

    def __next__(self) -> Any:
        """The next unit.

        Raises:
            StopIteration: The video is complete, or the work was stopped.
        """
        while True:
            latents = next(self._latents)
            if self._decoder is None:
                return latents
            frames = self._decoder(latents)[:, self._skipped :]
            self._skipped = 0
            if frames.shape[1]:
                return output_of(frames, self._request)

    def save_latents(self, path: str | PathLike[str]) -> None:
        """Write what it takes to go on from here, see `SavedLatents`.

        Raises:
            ValueError: There is no complete unit yet.
            OSError: The file could not be written.
        """
        SavedLatents.of(self._request, self._progress).save(path)

    def close(self) -> None:
        """End the work, at the latest after the step that is being computed."""
        self._progress.stop()
        try:
            self._latents.close()
        except ValueError:
            return  # another thread is at work in it, and will come to its end
        self._decoder = None

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
