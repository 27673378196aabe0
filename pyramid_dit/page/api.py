"""What clients call: a function per mode, with names and defaults of its own.

from gradio_client import Client
client = Client("http://127.0.0.1:7860")
video, about = client.predict("a red circle grows on a white background", api_name="/text_to_video")
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import gradio as gr

from .events import Page
from .failures import REFUSALS, Refusal
from .settings import ON_PAGE
from .visitors import Form, in_words
from .worker import Job

Answer = tuple[Any, dict[str, Any]]
"""The path of the video once there is one, and the progress."""


STARTS = {
    "text_to_video": ("text", "prompt"),
    "image_to_video": ("image", "image prompt"),
    "extend_video": ("extend", "video prompt"),
    "storyboard": ("storyboard", "scenes"),
}
"""Mode and first arguments of each function."""
WORDS = {
    "text": "Make a video from a prompt.",
    "image": "Make a video that starts with a picture, cropped to the size.",
    "extend": "Extend a video; the result has its frames and the new ones.",
    "storyboard": "Make a video from several prompts; each applies from its start time.",
}
OPTION_ORDER = "seconds steps video_steps guidance video_guidance seed".split()


def add_endpoints(page: Page) -> None:
    """Attach `/text_to_video`, `/image_to_video`, `/extend_video` and `/storyboard`.

    After what they start from they take `negative_prompt`, `size` and what else the record of
    arguments has for the page, and last `model` where there are several; a `seed` of -1 is a new
    one.
    """
    fields = page.fields
    video = gr.Video(visible=False, label="Video")
    about = gr.JSON(visible=False, label="Progress, and at the end the settings")
    scenes = gr.JSON(visible=False, label='Scenes, a list of {"start": seconds, "prompt": text}')
    seed = gr.Number(-1, visible=False, precision=0, label="Seed, -1 for a new one")
    order = [*OPTION_ORDER, *(key for key in ON_PAGE if key not in OPTION_ORDER)]
    order.remove("negative_prompt")
    shared = {"negative_prompt": fields.options["negative_prompt"], "size": fields.size}
    shared |= {key: seed if key == "seed" else fields.options[key] for key in order}
    if fields.model is not None:
        shared["model"] = fields.model
    for name, (mode, starts) in STARTS.items():
        own: dict[str, Any] = {"image": fields.image, "video": fields.video, "scenes": scenes}
        own["prompt"] = fields.prompts.get(mode)
        inputs = {start: own[start] for start in starts.split()} | shared
        function = _endpoint(page, mode, list(inputs))
        function.__name__, function.__doc__ = name, WORDS[mode]
        gr.on(
            [], function, [*inputs.values()], [video, about], api_name=name, concurrency_limit=None
        )


def _endpoint(page: Page, mode: str, names: Sequence[str]) -> Callable[..., AsyncIterator[Answer]]:
    """A function that takes arguments of these names and makes a video."""

    async def endpoint(*values: Any) -> AsyncIterator[Answer]:
        *sent, request = values
        given = dict(zip(names, sent, strict=True))
        options = {key: given.pop(key) for key in ON_PAGE}
        options["seed"] = None if options["seed"] == -1 else options["seed"]
        if mode == "storyboard":
            try:
                given["scenes"] = tuple((s["start"], s["prompt"]) for s in given["scenes"])
            except (TypeError, KeyError) as error:
                message = 'scenes must be a list of {"start": seconds, "prompt": text}'
                raise Refusal.of(ValueError(message)) from error
        form = Form(mode=mode, options=options, **given)
        async for answer in _answers(page, form, request):
            yield answer

    # by which Gradio names the arguments for clients
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shown = [inspect.Parameter(name, kind) for name in names]
    shown.append(inspect.Parameter("request", kind, annotation=gr.Request))
    endpoint.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    endpoint.__annotations__ = {"request": gr.Request}
    return endpoint


async def _answers(page: Page, form: Form, request: gr.Request) -> AsyncIterator[Answer]:
    """How the job stands, whenever that changes, and the video in the end."""
    try:
        await asyncio.to_thread(page.visitors.remove_old_results)
        video_request = await asyncio.to_thread(page.request, form)
        folder = page.visitors.of(request.session_hash).visitor.folder
        job = page.worker.submit(video_request, folder)
    except REFUSALS as error:
        raise Refusal.of(error) from error
    asked = video_request.settings
    unknown = page.cards[asked.model].defaults.unknown_words(asked.prompts)
    seen: dict[str, Any] = {}
    async for strips in job.watch():
        progress = {"ahead": page.worker.ahead(job)} | _progress(job, strips)
        progress["unknown_words"] = unknown
        if progress != seen:
            yield gr.skip(), progress
        seen = progress
    if job.error is not None and job.path is None:
        raise Refusal.of(job.error)
    settings = job.request.settings.entries()
    about = _progress(job) | {"unknown_words": unknown, "settings": settings}
    if job.error is not None:
        about["error"] = in_words(job.error)
    yield job.path and str(job.path), about


def _progress(job: Job, strips: int | None = None) -> dict[str, Any]:
    return {
        "state": job.state.value,
        "frames": sum(strip.count for strip in job.strips[:strips]),
        "step": job.steps_done,
        "steps": job.total_steps,
    }
