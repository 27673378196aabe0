"""What the page does: Gradio's events, for browsers and for clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL.Image import Image

from .examples import Examples
from .failures import REFUSALS, Refusal
from .layout import BEFORE_MAKING, Fields, Results, first_knowing
from .live import LiveJob
from .media_checks import has_sound, open_image, read_settings
from .settings import (
    MAX_SCENES,
    ModelCard,
    Settings,
    size_of,
)
from .visitors import (
    Form,
    Result,
    Tab,
    Visitor,
    Visitors,
    crop_of_image,
    in_words,
    last_crop_of_video,
)
from .words import (
    caption,
    details_html,
    duration,
    failure_html,
    starting_html,
    status_html,
    unknown_html,
)
from .worker import (
    Job,
    State,
    VideoRequest,
    Worker,
)

Updates = dict[Any, Any]
"""New values of components."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page, as all its visitors see it.

    Attributes:
        cards: The models to choose from, by their names; the first is chosen to begin with.
        examples: What is offered to begin with.
        fields: What visitors set.
        results: Where they see what was made.
        worker: Makes it.
        visitors: Who is there.
        token: By which a browser is known again.
    """

    cards: Mapping[str, ModelCard]
    examples: Examples
    fields: Fields
    results: Results
    worker: Worker
    visitors: Visitors
    token: gr.BrowserState

    def card(self, name: str | None) -> ModelCard:
        """The model of that name; without a name the first.

        Raises:
            ValueError: There is none of that name.
        """
        name = next(iter(self.cards)) if name is None else name
        if name not in self.cards:
            raise ValueError(f"the model must be one of {', '.join(self.cards)}, not {name!r}")
        return self.cards[name]

    def request(self, form: Form) -> VideoRequest:
        """Check the form and read what was uploaded.

        Raises:
            ValueError: Something is not as it should be.
        """
        return form.request(self.card(form.model))

    def connect(self, blocks: gr.Blocks) -> None:
        """Attach all events."""
        fields, results = self.fields, self.results
        shown: list[Any] = [results.status, results.stop, results.preview, results.video]
        shown += [results.details, results.actions, results.gallery]
        shown += [fields.options["seed"], *fields.make.values()]
        for mode, button in fields.make.items():
            inputs = self._inputs(mode)
            button.click(
                self._make(mode, inputs),
                {
                    *inputs.values(),
                    *fields.options.values(),
                    *self._scene_inputs(mode),
                    fields.new_seed,
                },
                shown,
                js=BEFORE_MAKING,
                show_progress="hidden",
                concurrency_limit=None,
                api_visibility="private",
            )
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        outputs = [self.token, *shown]
        blocks.load(self.enter, self.token, outputs, concurrency_limit=None, **private)
        blocks.unload(self.leave)
        results.stop.click(self._stop, None, results.status, queue=False, **private)
        results.gallery.select(self._show_again, None, shown, **private)
        everything = [*self._filled(), *shown]
        results.use_settings.click(self._use_settings, None, self._filled(), **private)
        if results.made is not None:
            results.made.select(self._use_example, None, self._filled(), **private)
        results.go_on.click(
            self._go_on, None, [fields.tabs, fields.video, fields.prompts["extend"]], **private
        )
        fields.restore.upload(self._restore, fields.restore, everything, **private)
        model = [] if fields.model is None else [fields.model]
        for file, shown_crop, note, crop in (
            (fields.image, fields.image_crop, fields.image_note, self._first_frame),
            (fields.video, fields.video_crop, fields.video_note, self._last_frame),
        ):
            changes, sent = [file.change, fields.size.change], [file, fields.size, *model]
            gr.on(changes, _look(crop), sent, [shown_crop, note], **private)
        fields.image.upload(self._turn, [fields.image, fields.size, *model], fields.size, **private)
        if fields.model is not None:  # chosen by a visitor, and not by `_fill`
            fields.model.select(self._choose, fields.model, self._of_model(), **private)
        scenes = fields.scenes
        scenes.more.click(_one_more, scenes.count, [scenes.count, *scenes.rows], **private)
        given = self.examples.storyboard
        scenes.example.click(
            lambda: [value for pair in given for value in pair],
            None,
            [part for index in range(len(given)) for part in scenes.scene(index)],
            **private,
        )
        self._connect_choices(private)
        if fields.pictures is not None:
            fields.pictures.click(
                lambda sample: sample,
                fields.pictures,
                [fields.image, fields.prompts["image"]],
                **private,
            )
        for mode, tab in fields.mode_tabs.items():
            guidance = fields.options["video_guidance"]
            tab.select(self._guidance_of(mode), [guidance, *model], guidance, **private)

    def _connect_choices(self, private: dict[str, Any]) -> None:
        """What is chosen of the known sentence is written into the prompt."""
        fields, scenes = self.fields, self.fields.scenes
        for mode, choices in fields.choices.items():
            if mode in fields.prompts:
                picked = (event for c in choices.values() for event in (c.select, c.change))
                gr.on(  # not at each `input`, which comes too when one of them loses the focus
                    [*picked],
                    lambda *chosen: self._sentence(chosen),
                    [*choices.values()],
                    fields.prompts[mode],
                    **private,
                )
        if (add := scenes.add_chosen) is not None:
            chosen = [*fields.choices["storyboard"].values()]
            shown = [scenes.count, *scenes.prompts]
            add.click(self._add_scene, [*shown, *chosen], [*shown, *scenes.rows], **private)

    def _sentence(self, chosen: Iterable[str | None]) -> str:
        knowing = first_knowing(self.cards.values())
        assert knowing is not None  # else there is nothing to choose
        defaults = knowing.defaults
        pairs = zip(defaults.choices().items(), chosen, strict=True)
        return defaults.sentence({name: text or texts[0] for (name, texts), text in pairs})

    def _add_scene(self, count: int, *values: str | None) -> Updates:
        """Write the chosen sentence into the first scene without a prompt."""
        scenes = self.fields.scenes
        prompts, chosen = values[:MAX_SCENES], values[MAX_SCENES:]
        empty = [index for index, prompt in enumerate(prompts) if not (prompt or "").strip()]
        if not empty:
            gr.Info("All scenes have a prompt already.")
            return {scenes.count: count}
        index = empty[0]
        return {
            scenes.count: max(count, index + 1),
            scenes.prompts[index]: self._sentence(chosen),
            scenes.rows[index]: gr.Row(visible=True),
        }

    # ---- another model --------------------------------------------------------------------

    def _of_model(self) -> list[Any]:
        """The components that are not alike for all models."""
        fields = self.fields
        own = [fields.size, *fields.options.values(), *fields.chosen_words]
        return own if fields.scenes.add_chosen is None else [*own, fields.scenes.add_chosen]

    def _choose(self, name: str) -> Updates:
        """What a model recommends, in place of what the one before it does."""
        card = self.cards[name]
        settings = card.settings()
        options = {key: value for key, value in settings.options.items() if key != "seed"}
        updates: Updates = {self.fields.options[key]: value for key, value in options.items()}
        return updates | self._fitting(card, f"{settings.width}x{settings.height}")

    def _fitting(self, card: ModelCard, size: str) -> Updates:
        """The sizes that a model offers, and the words if it knows those on the page."""
        fields = self.fields
        knowing = first_knowing(self.cards.values())
        known = knowing is not None and knowing.defaults.choices() == card.defaults.choices()
        updates: Updates = {fields.size: gr.Dropdown(card.sizes, value=size)}
        updates |= {column: gr.Column(visible=known) for column in fields.chosen_words}
        if (add := fields.scenes.add_chosen) is not None:
            updates[add] = gr.Button(visible=known)
        return updates

    def leave(self, request: gr.Request) -> None:
        """A visitor's connection has ended."""
        self.visitors.leave(request.session_hash)

    # ---- making a video -------------------------------------------------------------------

    def _inputs(self, mode: str) -> dict[str, Any]:
        """The components behind the fields of `Form`, but for the scenes and the options."""
        fields = self.fields
        inputs: dict[str, Any] = {"size": fields.size}
        if fields.model is not None:
            inputs["model"] = fields.model
        if mode in fields.prompts:
            inputs["prompt"] = fields.prompts[mode]
        if mode in ("image", "extend"):
            inputs |= {"image": fields.image} if mode == "image" else {"video": fields.video}
        return inputs

    def _scene_inputs(self, mode: str) -> list[Any]:
        scenes = self.fields.scenes
        return [*scenes.starts, *scenes.prompts] if mode == "storyboard" else []

    def _make(self, mode: str, inputs: dict[str, Any]) -> Callable[..., AsyncIterator[Updates]]:
        fields, results = self.fields, self.results

        async def make(values: Updates, request: gr.Request) -> AsyncIterator[Updates]:
            tab = self.visitors.of(request.session_hash)
            options = {key: values[field] for key, field in fields.options.items()}
            if values[fields.new_seed]:
                options["seed"] = None
            given = {name: values[field] for name, field in inputs.items()}
            form = Form(mode=mode, options=options, **given)
            if mode == "storyboard":
                pairs = zip(fields.scenes.starts, fields.scenes.prompts, strict=True)
                form = replace(form, scenes=tuple((values[a], values[b]) for a, b in pairs))
            yield {results.status: starting_html()}
            try:
                job = await self._submit(form, tab.visitor)
            except REFUSALS as error:
                yield {results.status: failure_html(in_words(error))}
                raise Refusal.of(error) from error
            yield self._begun(job)
            async for changes in self._follow(job, tab):
                yield changes
            if job.error is not None:
                raise Refusal.of(job.error)

        return make

    async def enter(self, token: Any, request: gr.Request) -> AsyncIterator[Updates]:
        """A page is opened: who is known by the token finds his videos, and the one in work."""
        kept, tab = self.visitors.enter(request.session_hash, token)
        job = tab.visitor.job
        updates: Updates = {self.token: kept}
        if job is None or isinstance(job, LiveJob):
            yield updates | self.gallery(tab)
        elif job.finished:
            yield updates | self._ended(job, tab)
        else:
            seen = len(job.strips)
            updates |= self._begun(job) | {self.results.preview: self._frames(job, seen)}
            yield updates | self.gallery(tab)
            async for changes in self._follow(job, tab, seen):
                yield changes

    async def _follow(self, job: Job, tab: Tab, seen: int = 0) -> AsyncIterator[Updates]:
        """What changes until the job has ended, and then its end."""
        words, shown = "", seen
        async for strips in job.watch(seen=seen, owned=False):
            changes: Updates = {}
            now = status_html(job, self.worker.ahead(job))
            if now != words:
                changes[self.results.status] = words = now
            if strips != shown:
                changes[self.results.preview] = self._frames(job, strips)
                shown = strips
            if changes:
                yield changes
        yield self._ended(job, tab)

    def _frames(self, job: Job, strips: int | None = None) -> Updates:
        """What the preview's script shows: the first `strips`, by default all of them."""
        return {
            "run": job.folder.name,
            "fps": job.request.frames_per_second,
            "strips": [asdict(strip) for strip in job.strips[:strips]],
        }

    async def _submit(self, form: Form, visitor: Visitor) -> Job:
        """Check the form and put it into the queue.

        Raises:
            ValueError: Something is not as it should be, or this visitor's last video is not
                finished.
            QueueFull: Too many wait already.
        """
        await asyncio.to_thread(self.visitors.remove_old_results)
        video_request = await asyncio.to_thread(self.request, form)
        self.make_room(visitor)
        visitor.job = self.worker.submit(video_request, visitor.folder)
        return visitor.job

    def make_room(self, visitor: Visitor) -> None:
        """Put the visitor's last video among the others, for a new one.

        Raises:
            ValueError: It is not finished.
        """
        if visitor.busy:
            raise ValueError(
                "your last video is still being made, perhaps in another tab: wait for it, or "
                "stop it"
            )
        self._collect(visitor)
        if isinstance(visitor.job, LiveJob):
            visitor.job.discard()

    def _begun(self, job: Job) -> Updates:
        fields, results = self.fields, self.results
        settings = job.request.settings
        return {
            results.status: status_html(job, self.worker.ahead(job)),
            results.stop: gr.Button(visible=True),
            results.preview: self._frames(job, 0),
            results.video: gr.Video(None, visible=False),
            results.details: unknown_html(settings, self.cards[settings.model].defaults),
            results.actions: gr.Row(visible=False),
            fields.options["seed"]: settings.options["seed"],
            **{button: gr.Button(interactive=False) for button in fields.make.values()},
        }

    def _ended(self, job: Job, tab: Tab) -> Updates:
        """What is shown of a job that has finished: its video, if there is one."""
        fields, results = self.fields, self.results
        updates: Updates = {
            results.status: status_html(job),
            results.stop: gr.Button(visible=False),
            **{button: gr.Button(interactive=True) for button in fields.make.values()},
        }
        self._collect(tab.visitor)
        results_of_job = (r for r in tab.visitor.results if r.path == job.path and r.path.exists())
        result = next(results_of_job, None)
        updates |= self.gallery(tab)
        if result is None:  # what was seen of it stays to be seen
            return updates | {results.preview: self._frames(job) if job.strips else None}
        tab.shown = result
        covered = self._frames(job) | {"covered": True}
        return updates | self._showing(result) | {results.preview: covered}

    def _collect(self, visitor: Visitor) -> None:
        """Put the result of the last job among the others, if there is one that is not there."""
        job = visitor.job
        if job is None or not job.finished or job.path is None:
            return
        if all(result.path != job.path for result in visitor.results):
            visitor.add(self._result(job, job.path))

    def _result(self, job: Job, path: Path) -> Result:
        rate = job.request.frames_per_second
        frames = "new frames" if job.request.clip else "frames"
        note = f"{job.frames} {frames}, {job.frames / rate:.1f} s, made in {duration(job.seconds)}"
        if job.state is State.STOPPED:
            note += ", stopped"
        return Result(path, job.poster, job.request.settings, note)

    def _showing(self, result: Result) -> Updates:
        results = self.results
        model = self.cards[result.settings.model]
        unknown = model.defaults.unknown_words(result.settings.prompts)
        return {
            results.preview: {"covered": True},
            results.video: gr.Video(
                str(result.path), label=f"Video: {caption(result.settings)}", visible=True
            ),
            results.details: details_html(result.settings, result.note, unknown),
            results.actions: gr.Row(visible=True),
        }

    def _stop(self, request: gr.Request) -> str | Updates:
        job = self.visitors.of(request.session_hash).visitor.job
        if job is None or job.finished:
            return gr.skip()
        job.stop()
        return status_html(job)

    # ---- results again --------------------------------------------------------------------

    def _show_again(self, request: gr.Request, event: gr.SelectData) -> Updates:
        tab = self.visitors.of(request.session_hash)
        if tab.visitor.busy or not 0 <= event.index < len(tab.listed):
            return {self.results.status: gr.skip()}
        chosen = tab.listed[event.index]
        if not chosen.path.exists():
            gr.Info("This video is not kept any more.")
            return self.gallery(tab) or {self.results.gallery: gr.Gallery(visible=False)}
        tab.shown = chosen
        return self._showing(chosen)

    def gallery(self, tab: Tab) -> Updates:
        """All results of the visitor, if there are any."""
        tab.listed = [r for r in tab.visitor.results[::-1] if r.path.exists()]
        if not tab.listed:
            return {}
        items = [(str(r.poster or r.path), caption(r.settings)) for r in tab.listed]
        return {self.results.gallery: gr.Gallery(items, visible=True, selected_index=None)}

    def _use_settings(self, request: gr.Request) -> Updates:
        shown = self.visitors.of(request.session_hash).shown
        return {} if shown is None else self._fill(shown.settings)

    def _use_example(self, event: gr.SelectData) -> Updates:
        return self._fill(self.examples.made[event.index].settings)

    def _go_on(self, request: gr.Request) -> Updates:
        fields = self.fields
        shown = self.visitors.of(request.session_hash).shown
        if shown is not None and not shown.path.exists():
            gr.Info("This video is not kept any more.")
            shown = None
        if shown is None:
            return {fields.video: gr.skip()}
        return {
            fields.tabs: gr.Tabs(selected="extend"),
            fields.video: str(shown.path),
            fields.prompts["extend"]: shown.settings.prompt,
        }

    def _restore(self, path: str) -> Updates:
        try:
            settings = read_settings(path)
        except REFUSALS as error:
            raise Refusal.of(error) from error
        if settings.mode in ("image", "extend"):
            what = "picture" if settings.mode == "image" else "video"
            gr.Info(f"The {what} that it started from is not in the file: choose it again.")
        if settings.model not in self.cards:
            model = escape(settings.model, quote=False)
            gr.Warning(f"This video was made with another model: {model}.")
        return self._fill(settings)

    def _filled(self) -> list[Any]:
        fields = self.fields
        scenes = fields.scenes
        own = [fields.tabs, fields.new_seed, *self._of_model()]
        own += [] if fields.model is None else [fields.model]
        own += [scenes.count, *scenes.starts, *scenes.prompts, *scenes.rows]
        return [*own, *fields.prompts.values()]

    def _fill(self, settings: Settings) -> Updates:
        """Fields that make the same video again."""
        fields = self.fields
        size = f"{settings.width}x{settings.height}"
        updates: Updates = {
            fields.tabs: gr.Tabs(selected=settings.mode),
            fields.new_seed: False,
            **{fields.options[key]: value for key, value in settings.options.items()},
        }
        if fields.model is None or settings.model not in self.cards:
            updates[fields.size] = size
        else:
            updates |= {fields.model: settings.model}
            updates |= self._fitting(self.cards[settings.model], size)
        if settings.mode != "storyboard":
            return updates | {fields.prompts[settings.mode]: settings.prompt}
        scenes, count = fields.scenes, max(2, len(settings.scenes))
        updates[scenes.count] = count
        for index, row in enumerate(scenes.rows):
            scene = settings.scenes[index] if index < len(settings.scenes) else None
            updates[scenes.starts[index]] = scene.start if scene else None
            updates[scenes.prompts[index]] = scene.prompt if scene else ""
            updates[row] = gr.Row(visible=index < count)
        return updates

    # ---- what a video will start from -----------------------------------------------------

    def _first_frame(self, path: str, size: str, *_: str) -> Image:
        return crop_of_image(path, size)

    def _last_frame(self, path: str, size: str, model: str | None = None) -> Image:
        if has_sound(path):
            gr.Info("This video has sound, which will not be in the new one.")
        return last_crop_of_video(path, size, self.card(model).defaults.frames_per_second)

    def _turn(self, path: str, size: str, model: str | None = None) -> str:
        """The size, on its side if that suits a new picture better and is on offer."""
        try:
            image, (width, height) = open_image(path), size_of(size)
        except REFUSALS:
            return size  # the crop says why
        turned = f"{height}x{width}"
        suits = (image.width < image.height) == (width < height) or image.width == image.height
        return size if suits or turned not in dict(self.card(model).sizes).values() else turned

    def _guidance_of(self, mode: str) -> Callable[..., float]:
        """The model's guidance for `mode`, where the field has that of another mode."""

        def guidance(value: float, model: str | None = None) -> float:
            card = self.card(model)
            usual = {
                other: card.settings(other).options["video_guidance"]
                for other in self.fields.mode_tabs
            }
            return usual[mode] if value in usual.values() else value

        return guidance


def _look(crop: Callable[..., Image]) -> Callable[..., Iterator[tuple[Any, str]]]:
    """Show what the crop of an upload looks like, or say why there is none."""

    def look(path: str | None, size: str, *model: str) -> Iterator[tuple[Any, str]]:
        nothing = gr.Image(None, visible=False)
        if path is None:
            yield nothing, ""
            return
        try:
            yield gr.Image(crop(path, size, *model), visible=True), ""
        except REFUSALS as error:
            yield nothing, failure_html(in_words(error))
            raise Refusal.of(error) from error

    return look


def _one_more(count: int) -> list[Any]:
    count = min(count + 1, MAX_SCENES)
    return [count, *(gr.Row(visible=index < count) for index in range(MAX_SCENES))]
