"""`VideoGenerator`: text, images and videos to videos, with models that are at hand."""

from __future__ import annotations

import logging
import threading
from typing import Any
from weakref import WeakSet

import torch

from ..devices.offload import accelerator_device, offload_sequentially
from ..distributed.parallel import Parallel, processes_at_work
from ..sampling.fast_mode import EXACT, FastMode
from .arguments import Arguments, ImageToVideo, LiveVideo, TextToVideo, VideoToVideo, takes
from .components import Components
from .request import make_request
from .run import Run
from .stream import VideoStream

logger = logging.getLogger(__name__)


class VideoGenerator:
    """Makes videos, and with a length of one frame images.

    `generate`, `generate_i2v` and `generate_v2v` return a video; `stream`, `stream_i2v` and
    `stream_v2v` take the same arguments and return a `VideoStream`, which hands out its frames
    as they are made; `live` makes one that has no end and follows new prompts. Several threads
    may use one generator: all state of a run is the run's.

    Args:
        components: The models.

    Attributes:
        components: The models; a run goes on with those that it began with.
        fast_mode: Approximations, see `enable_fast_mode`.
        batched_guidance: Whether both branches of the guidance are computed as one batch; None
            decides by the memory that is free.
    """

    def __init__(self, components: Components) -> None:
        self.components = components
        self.fast_mode = EXACT
        self.batched_guidance: bool | None = None
        self._progress_bar_config: dict[str, Any] = {"disable": None}  # shown on a terminal
        self._runs: WeakSet[Run] = WeakSet()
        self._lock = threading.Lock()

    @takes(TextToVideo)
    def generate(self, arguments: TextToVideo) -> Any:
        """Generate a video, or with `temp=1` an image, from a prompt.

        Where an argument is None, `components.defaults` decides: what `model_index.json` of the
        checkpoint says, else the values of the released models.

        Returns:
            With "pil" a list of images for a single prompt, and a list of such lists for a list
            of prompts or several samples. With "np" an array `[b, t, h, w, 3]` and with "pt" a
            tensor `[b, t, 3, h, w]`, float32 in [0, 1]. With "latent" the normalized latents
            `[b, c, temp, h/8, w/8]`, float32. Of a run that was stopped, what is complete.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        return self.start(arguments, as_they_come=False).join()

    @takes(ImageToVideo)
    def generate_i2v(self, arguments: ImageToVideo) -> Any:
        """Generate a video that starts with an image, or with its `image_latents`.

        The prompt may be empty. `temp` latent frames of noise, a multiple of `frame_per_unit`,
        make temp - frame_per_unit + 1 latent frames, the image's among them. `guidance_scale`
        says whether there is guidance, and where linear guidance starts; `video_guidance_scale`,
        by default 4, is that of every unit.

        Returns:
            As `generate`.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        return self.start(arguments, as_they_come=False).join()

    @takes(VideoToVideo)
    def generate_v2v(self, arguments: VideoToVideo) -> Any:
        """Go on where a video ends, or where a run was stopped.

        The end of the video, encoded by the VAE, is the history of what is made. The prompt may
        be empty; lengths are what is added, `temp` a multiple of `frame_per_unit`.

        Returns:
            As `generate`, the new frames only; with "latent" the history's latents too. A run
            that is resumed returns the whole video.

        Raises:
            TypeError: An argument is of the wrong kind.
            FileNotFoundError: There is no such file.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        return self.start(arguments, as_they_come=False).join()

    @takes(TextToVideo)
    def stream(self, arguments: TextToVideo) -> VideoStream:
        """`generate`, unit by unit."""
        return self.start(arguments)

    @takes(LiveVideo)
    def live(self, arguments: LiveVideo) -> VideoStream:
        """`stream` without end, steered while it plays: `next_prompt` is asked before each unit.

        What it says shows in that unit already. `stream_i2v` and `stream_v2v` take `next_prompt`
        and `seconds=inf` too.
        """
        return self.start(arguments)

    @takes(ImageToVideo)
    def stream_i2v(self, arguments: ImageToVideo) -> VideoStream:
        """`generate_i2v`, unit by unit."""
        return self.start(arguments)

    @takes(VideoToVideo)
    def stream_v2v(self, arguments: VideoToVideo) -> VideoStream:
        """`generate_v2v`, unit by unit."""
        return self.start(arguments)

    def start(
        self, arguments: Arguments, *, as_they_come: bool = True, caller: Any = None
    ) -> VideoStream:
        """Begin what the arguments ask for; the work is done while the stream is read.

        Args:
            arguments: A record of one of the methods above.
            as_they_come: Whether units are decoded when they are there, not all in the end where
                that is better.
            caller: What `callback_on_step_end` is handed first; by default this object.

        Raises:
            TypeError: An argument is of the wrong kind.
            FileNotFoundError: There is no such file.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        request = make_request(arguments, self.components)
        if request.endless and not as_they_come:
            raise ValueError(
                "a video without end (seconds=inf) cannot be returned: use stream instead of "
                "generate"
            )
        run = Run(
            request,
            self.components,
            fast_mode=self.fast_mode,
            batched_guidance=self.batched_guidance,
            progress_bar=self._progress_bar_config,
            caller=self if caller is None else caller,
        )
        with self._lock:
            self._runs.add(run)
        return VideoStream(run, as_they_come=as_they_come)

    def stop(self) -> None:
        """Have all runs end after the step that is being computed.

        `generate` then returns what is complete. Callbacks may call this, and other threads.
        `VideoStream.close` ends a single run.
        """
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.stop()

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Arguments of the `tqdm` bar over all steps, for example `disable=True`."""
        self._progress_bar_config = kwargs

    def enable_fast_mode(self, **options: Any) -> None:
        """Trade some quality for speed, as the arguments of `FastMode` say.

        Raises:
            TypeError: There is no such option.
            ValueError: A value is outside its range.
        """
        self.fast_mode = FastMode(**options)

    def disable_fast_mode(self) -> None:
        """Compute everything exactly (the default)."""
        self.fast_mode = EXACT

    def compile(self, **options: Any) -> None:
        """Compile the transformer's repeated blocks, for all shapes of a video at once.

        The first video takes the time to compile, the following ones are faster.

        Args:
            options: Arguments of `torch.compile`; `dynamic=True` is set for you.
        """
        self.components.dit.compile_repeated_blocks(**{"dynamic": True} | options)

    def enable_sequential_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keep all weights in the CPU's memory and bring each layer over only while it runs.

        Slow, and fits where there is little memory. Without an accelerator nothing is done.

        Args:
            device: The device to compute on, by default the accelerator.
        """
        target = torch.device(device) if device is not None else accelerator_device()
        if target is None:
            logger.warning("no accelerator found, sequential offload has no effect")
            return
        model = self.components
        for module in (model.text_encoder, model.dit, model.vae):
            if module is not None:
                offload_sequentially(module, target)

    def shard_weights(self, device: str | torch.device) -> None:
        """Keep only a part of the weights of transformer and text encoders in each process.

        Call it on all processes that `inference_multigpu` lets work on a video; from then on
        they must all generate together. The numbers do not change.

        Args:
            device: What this process computes on; the models may still lie on the CPU.

        Raises:
            RuntimeError: There is only one process.
        """
        from ..distributed.sharding import shard_weights

        parallel, model = processes_at_work(guided=False), self.components
        if not isinstance(parallel, Parallel):
            raise RuntimeError("weights are divided among processes, and this one is alone")
        target = torch.device(device)
        shard_weights(model.dit, parallel.line, target, methods=("prepare", "denoise"))
        if model.text_encoder is not None:
            shard_weights(model.text_encoder, parallel.line, target)
        if model.vae is not None:
            model.vae.to(device)
