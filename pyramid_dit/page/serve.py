"""From a command line to a page: the model is loaded, the page built, requests are served."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..cli.model import (
    check_loras,
    check_model_name,
    check_processes,
    load_model,
    print_log,
)
from ..cli.options import UsageError
from ..distributed.launcher import (
    LaunchedProcess,
    end_with_launcher,
    ended_by_signals,
    launched_process,
    run_processes,
)
from ..models.lora_text import words_taught
from .hosts import ANY, HostGuard, own_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..generation.stream import VideoStream
    from ..pipelines.official import PyramidDiTForVideoGeneration
    from .failures import Blocks
    from .models import Models
    from .settings import ModelCard
    from .worker import Job, Starter, Worker

TEMPORARY_FOLDER = "GRADIO_TEMP_DIR"
"""Environment variable: where Gradio keeps uploads, and the page its videos."""

QUEUE_POLL = 0.02  # seconds between two looks for requests


def run_page(options: Namespace, command: Sequence[str]) -> None:
    """Serve the page until a signal comes.

    Args:
        options: Those of `add_model_options`, and `host`, `port`, `share`, `allow_host`.
        command: What Python was called with, for further processes.

    Raises:
        UsageError: Something cannot be meant, or is not there.
        ImportError: Gradio is not installed.
        ProcessesFailed: One of several processes failed.
        Stopped: A signal came while there were several processes.
    """
    launched = launched_process()
    end_with_launcher()
    if find_spec("gradio") is None:
        raise ImportError('the page needs Gradio: pip install "gradio>=6.30"')
    if options.shard and launched is None and options.gpus == 1:
        raise UsageError("--shard divides the weights among GPUs: add --gpus 2 or more")
    for name in options.models:
        check_model_name(name)
    check_loras(options)
    if launched is None and options.port is not None:
        _check_port(options.host, options.port)
    with _temporary_folder():
        if launched is None and options.gpus > 1:
            from .models import find_models

            ((single, _),) = find_models(options)
            check_processes(single, None)
            run_processes(command, options.gpus)
            return
        with nullcontext() if launched is None else ended_by_signals():
            _run_here(options, launched)


def _run_here(options: Namespace, launched: LaunchedProcess | None) -> None:
    is_main = launched is None or launched.rank == 0
    print_log(options, is_main=is_main)
    from .models import Models, cards_of, find_models

    found = find_models(options)
    cards = cards_of(found)
    if is_main:
        sys.stderr.write(f"Loading {cards[0].name} ...\n")
    loaders = [partial(load_model, *choice, launched) for choice in found]
    models = Models({card.name: load for card, load in zip(cards, loaders, strict=True)})
    model = models.get(cards[0].name)
    if options.lora:
        taught = cards[0].defaults.with_words(words_taught(model.dit))
        cards = [replace(cards[0], defaults=taught)]
    offloading = options.offload == "model"
    device = _device_words(model, 1 if launched is None else launched.processes)
    checkpoint = found[0][1].path
    del model  # so that `models` alone keeps it
    if launched is None:
        start = _starter(models, cpu_offloading=offloading)
        _serve(options, cards, checkpoint, device, start, launched=launched)
        return

    from .processes import Requests, follow, start_together

    requests = Requests()
    shared = models.get(cards[0].name)
    if not is_main:
        follow(shared, requests, cpu_offloading=offloading)

    def start_shared(job: Job) -> AbstractContextManager[VideoStream]:
        return start_together(shared, requests, job, cpu_offloading=offloading)

    _serve(options, cards, checkpoint, device, start_shared, launched=launched)


def _starter(models: Models, *, cpu_offloading: bool) -> Callable[[Job], VideoStream]:
    def start(job: Job) -> VideoStream:
        model = models.get(job.request.settings.model, job.load)
        options = job.callbacks(model)
        return job.request.stream(model, cpu_offloading=cpu_offloading, **options)

    return start


def _serve(
    options: Namespace,
    cards: Sequence[ModelCard],
    checkpoint: Path,
    device: str,
    start: Starter,
    *,
    launched: LaunchedProcess | None,
) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from .worker import Worker

    results = Path(os.environ[TEMPORARY_FOLDER]) / "results"
    worker = Worker(start, folder=results)
    page = build_page(cards, worker, results, device, checkpoint=checkpoint)
    names = own_names(options.host) | set(options.allow_host)
    if ANY in names:
        sys.stderr.write(
            "Warning: with --allow-host * every site that someone visits can use this page\n"
        )
    url = launch(page, names, host=options.host, port=options.port, share=options.share)
    sys.stdout.write(f"The page is at {url} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    if launched is None:  # else signals end this process at once, and with it the others
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: worker.close())
    worker.work()
    page.close(verbose=False)


def build_page(
    cards: Sequence[ModelCard],
    worker: Worker,
    folder: Path,
    device: str,
    *,
    checkpoint: Path | None = None,
) -> Blocks:
    """The page as Gradio's blocks.

    Args:
        cards: The models to choose from; the first is the one that is loaded.
        worker: What makes the videos.
        folder: Where results go.
        device: What it runs on, for people.
        checkpoint: The folder of the first one, which may have videos that the model made.
    """
    import gradio as gr

    from .api import add_endpoints
    from .events import Page
    from .examples import examples_for, made_examples
    from .failures import Blocks
    from .layout import build_fields, build_header, build_results
    from .live_events import connect_live
    from .visitors import Visitors

    examples = examples_for(cards[0], folder / "examples")
    if checkpoint is not None:
        examples = examples._replace(made=made_examples(checkpoint, cards[0], folder / "made"))
    gr.set_static_paths(folder)  # results are handed out as they lie, without a copy
    visitors = Visitors(folder)
    with Blocks(
        title="Pyramid Flow", analytics_enabled=False, delete_cache=(3600, 24 * 3600)
    ) as blocks:
        build_header(cards, device)
        with gr.Row(elem_id="pf-columns"):
            with gr.Column(scale=5, min_width=320, elem_id="pf-fields"):
                fields = build_fields(cards, examples)
            with gr.Column(scale=6, min_width=320, elem_id="pf-results"):
                results = build_results(examples)
        page = Page(
            cards={card.name: card for card in cards},
            examples=examples,
            fields=fields,
            results=results,
            worker=worker,
            visitors=visitors,
            token=gr.BrowserState(storage_key="pyramid-flow-visitor"),
        )
        page.connect(blocks)
        add_endpoints(page)
        blocks.own_routes = connect_live(page)
    return blocks


def launch(page: Blocks, names: set[str], *, host: str, port: int | None, share: bool) -> str:
    """Start to serve, and return the address.

    Args:
        page: What is served.
        names: By which it may be asked for, beside IP addresses; that of `share` is added.
        host: Address to listen at.
        port: None for the first free one.
        share: Whether to have Gradio make a public address.

    Raises:
        OSError: The port is taken.
    """
    from gradio.routes import App, ORJSONResponse

    from .failures import FailuresInWords
    from .media_checks import MAX_VIDEO_BYTES
    from .theme import ICON, KEYS, STYLE, theme
    from .uploads import UploadLimit

    class Guarded(App):
        """Gradio's server behind the guard, which Gradio's own middleware would answer before."""

        def build_middleware_stack(self) -> Any:
            answering = FailuresInWords(super().build_middleware_stack())
            folder = Path(os.environ[TEMPORARY_FOLDER])
            return HostGuard(UploadLimit(answering, folder, folder / "results"), names)

    app = Guarded(default_response_class=ORJSONResponse)
    app.router.routes[:0] = page.own_routes
    page.queue(default_concurrency_limit=8)
    # Gradio looks for requests a thousand times a second, for which the models would have to wait.
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = QUEUE_POLL
    _, local, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        ssr_mode=False,
        # Gradio has asked its server already, and waited for the answer. Without this it asks once
        # more, for the page, and gives up where that takes over 3 s, as on a busy machine it does.
        _frontend=False,
        max_file_size=MAX_VIDEO_BYTES,
        footer_links=["api", "settings"],
        run_history=False,
        theme=theme(),
        css_paths=STYLE,
        js=KEYS,
        favicon_path=ICON,
        _app=app,
    )
    if public is not None:
        names.add(urlsplit(public).hostname or "")
    return public or local


def _check_port(host: str, port: int) -> None:
    """Refuse with a `UsageError` an address at which nothing can be served."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot serve at {host}, port {port}: {reason}") from error


@contextmanager
def _temporary_folder() -> Iterator[None]:
    """A folder for uploads and results that is gone in the end, for all processes."""
    if launched_process() is not None and TEMPORARY_FOLDER in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(
        prefix="pyramid-flow-page-", ignore_cleanup_errors=True
    ) as folder:
        os.environ[TEMPORARY_FOLDER] = folder
        yield


def _device_words(model: PyramidDiTForVideoGeneration, processes: int) -> str:
    import torch

    device = model.device
    name = "CPU" if device.type == "cpu" else device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    many = f"{processes} × " if processes > 1 else ""
    return f"{many}{name}, {str(model.dtype).removeprefix('torch.')}"
