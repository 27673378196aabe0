"""What clients call: a function a mode, with names and defaults of its own.

from gradio_client import Client
client = Client("http://127.0.0.1:7860")
video, about = client.predict("a red circle grows on a white background", api_name="/text_to_video")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from .events import REFUSALS, Page, told
from .visitors import Form
from .worker import Job

Answer = tuple[Any, dict[str, Any]]
"""The path of the video once there is one, and how it stands."""


def add_endpoints(page: Page) -> None:
    """Attach `/text_to_video`, `/image_to_video`, `/extend_video` and `/storyboard`."""
    fields = page.fields
    video = gr.Video(visible=False, label="Video")
    about = gr.JSON(visible=False, label="How it stands, and in the end the settings")
    seed = gr.Number(-1, visible=False, precision=0, label="Seed, -1 for a new one")
    scenes = gr.JSON(visible=False, label='Scenes, a list of {"start": seconds, "prompt": text}')
    shared = [*fields.shared.values(), seed]

    async def text_to_video(
        prompt: str,
        negative_prompt: str,
        size: str,
        seconds: float,
        steps: float,
        video_steps: float,
        guidance: float,
        video_guidance: float,
        seed: int,
        request: gr.Request,
    ) -> AsyncIterator[Answer]:
        """Make a video from a prompt."""
        given = _shared(locals())
        async for answer in _answers(page, Form(mode="text", prompt=prompt, **given), request):
            yield answer

    async def image_to_video(
        image: str | None,
        prompt: str,
        negative_prompt: str,
        size: str,
        seconds: float,
        steps: float,
        video_steps: float,
        guidance: float,
        video_guidance: float,
        seed: int,
        request: gr.Request,
    ) -> AsyncIterator[Answer]:
        """Make a video that starts with a picture, cropped to the size."""
        form = Form(mode="image", prompt=prompt, image=image, **_shared(locals()))
        async for answer in _answers(page, form, request):
            yield answer

    async def extend_video(
        video: str | None,
        prompt: str,
        negative_prompt: str,
        size: str,
        seconds: float,
        steps: float,
        video_steps: float,
        guidance: float,
        video_guidance: float,
        seed: int,
        request: gr.Request,
    ) -> AsyncIterator[Answer]:
        """Have a video go on for so many seconds; the result has its frames and the new ones."""
        form = Form(mode="extend", prompt=prompt, video=video, **_shared(locals()))
        async for answer in _answers(page, form, request):
            yield answer

    async def storyboard(
        scenes: list[dict[str, Any]],
        negative_prompt: str,
        size: str,
        seconds: float,
        steps: float,
        video_steps: float,
        guidance: float,
        video_guidance: float,
        seed: int,
        request: gr.Request,
    ) -> AsyncIterator[Answer]:
        """Make a video of several prompts, each of which holds from its second on."""
        given = _shared(locals())
        try:
            pairs = tuple((scene["start"], scene["prompt"]) for scene in scenes)
        except (TypeError, KeyError) as error:
            message = 'scenes must be a list of {"start": seconds, "prompt": text}'
            raise told(ValueError(message)) from error
        async for answer in _answers(page, Form(mode="storyboard", scenes=pairs, **given), request):
            yield answer

    prompts = fields.prompts
    for function, inputs in (
        (text_to_video, [prompts["text"], *shared]),
        (image_to_video, [fields.image, prompts["image"], *shared]),
        (extend_video, [fields.video, prompts["extend"], *shared]),
        (storyboard, [scenes, *shared]),
    ):
        name = function.__name__
        gr.on([], function, inputs, [video, about], api_name=name, concurrency_limit=None)


def _shared(arguments: dict[str, Any]) -> dict[str, Any]:
    """What all endpoints take, by the names of `Form`."""
    names = "negative_prompt size seconds steps video_steps guidance video_guidance"
    seed = None if arguments["seed"] == -1 else arguments["seed"]
    return {name: arguments[name] for name in names.split()} | {"seed": seed}


async def _answers(page: Page, form: Form, request: gr.Request) -> AsyncIterator[Answer]:
    """How the job stands, whenever that changes, and the video in the end."""
    try:
        video_request = await asyncio.to_thread(form.request, page.card)
        folder = page.visitors.of(request.session_hash).folder
        job = page.worker.submit(video_request, folder)
    except REFUSALS as error:
        raise told(error) from error
    seen: dict[str, Any] = {}
    async for strips in job.watch():
        standing = {"ahead": page.worker.ahead(job)} | _standing(job, strips)
        if standing != seen:
            yield gr.skip(), standing
        seen = standing
    if job.error is not None:
        raise told(job.error)
    settings = asdict(job.request.settings)
    yield job.path and str(job.path), _standing(job) | {"settings": settings}


def _standing(job: Job, strips: int | None = None) -> dict[str, Any]:
    return {
        "state": job.state.value,
        "frames": sum(strip.count for strip in job.strips[:strips]),
        "step": job.steps_done,
        "steps": job.total_steps,
    }
