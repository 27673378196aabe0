"""What the tab "Live" does: play, stop, keep; the rest goes past Gradio, by `live`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from starlette.routing import Route

from .events import Page, Updates
from .failures import REFUSALS, Refusal
from .live import PATH, LiveJob, LiveRoutes
from .settings import ModelCard
from .visitors import Form, Result
from .words import duration

WORDS = ("the camera moves left", "the camera moves right", "at night", "in the rain", "in snow")
"""To add with a click, where a model does not know one form of sentence."""


def connect_live(page: Page) -> list[Route]:
    """Attach the events of the tab, and return what the server has to answer beside them."""
    routes = LiveRoutes(page.worker)
    LiveEvents(page, routes).connect()
    return routes.routes()


@dataclass(frozen=True)
class LiveEvents:
    """The events of the tab.

    Attributes:
        page: The page that it is on.
        routes: By which browsers watch.
    """

    page: Page
    routes: LiveRoutes

    def connect(self) -> None:
        """Attach all events."""
        fields, live = self.page.fields, self.page.fields.live
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        inputs = {fields.size, fields.prompts["live"], fields.new_seed, *fields.options.values()}
        inputs |= set() if fields.model is None else {fields.model}
        live.play.click(
            self.play,
            inputs,
            [live.view, live.play, live.stop, live.keep, fields.options["seed"]],
            concurrency_limit=None,
            **private,
        )
        live.stop.click(self.stop, None, None, queue=False, **private)
        live.keep.click(self.keep, None, self.page.results.gallery, **private)

    async def play(self, values: Updates, request: gr.Request) -> AsyncIterator[Updates]:
        """Begin a live video; the buttons change again when it has ended."""
        page, fields, live = self.page, self.page.fields, self.page.fields.live
        visitor = page.visitors.of(request.session_hash).visitor
        options = {key: values[field] for key, field in fields.options.items()}
        if values[fields.new_seed]:
            options["seed"] = None
        form = Form(
            mode="live",
            prompt=values[fields.prompts["live"]],
            size=values[fields.size],
            model=None if fields.model is None else values[fields.model],
            options=options,
        )
        try:
            asked = await asyncio.to_thread(page.request, form)
            page.make_room(visitor)
            job = LiveJob(asked, visitor.folder / secrets.token_hex(16))
            name = self.routes.add(job)
            page.worker.put(job)
        except REFUSALS as error:
            raise Refusal.of(error) from error
        visitor.job = job
        settings = asked.settings
        yield {
            live.view: {
                "address": f"{PATH}/{name}",
                "fps": asked.frames_per_second,
                "prompt": settings.prompt,
                **_one_click_words(page.card(settings.model)),
            },
            live.play: gr.Button(interactive=False),
            live.stop: gr.Button(visible=True),
            live.keep: gr.Button(visible=True),
            fields.options["seed"]: settings.options["seed"],
        }
        async for _ in job.watch(owned=False):
            pass
        yield {live.play: gr.Button(interactive=True), live.stop: gr.Button(visible=False)}

    def stop(self, request: gr.Request) -> None:
        """End the visitor's live video."""
        job = self.page.visitors.of(request.session_hash).visitor.job
        if isinstance(job, LiveJob):
            job.stop()

    async def keep(self, request: gr.Request) -> Updates:
        """Put what was played so far among the visitor's videos."""
        page = self.page
        tab = page.visitors.of(request.session_hash)
        job = tab.visitor.job
        if not isinstance(job, LiveJob):
            return {page.results.gallery: gr.skip()}
        folder = tab.visitor.folder / secrets.token_hex(16)
        seconds = job.frames / job.request.frames_per_second
        try:
            kept = await asyncio.to_thread(job.keep, folder)
        except REFUSALS as error:
            raise Refusal.of(error) from error
        note = f"{duration(seconds)}, played live"
        tab.visitor.add(Result(kept.path, kept.poster, job.request.settings, note))
        return page.gallery(tab)


def _one_click_words(card: ModelCard) -> dict[str, Any]:
    """The sentence that the model knows, as texts and choices; else words to add to any prompt."""
    sentence = card.defaults.known_sentence
    return {"words": WORDS} if sentence is None else {"sentence": sentence}
