"""What is on the page and where; `events` says what it does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..checks import Number, OneOf, Whole
from ..generation.arguments import OPTIONS
from .examples import Examples
from .preview import LIVE_SCRIPT, LIVE_TEMPLATE, SCRIPT, TEMPLATE
from .settings import MAX_PROMPT, MAX_SCENES, ON_PAGE, SCENE_START, ModelCard, offered
from .words import caption, header_html, status_html

# Errors of the last run go. Where the page is one column, what is being made would be out of sight.
BEFORE_MAKING = """
(...inputs) => {
  const errors = document.querySelectorAll(".toast-body.error [data-testid=toast-close]");
  errors.forEach((close) => close.click());
  const result = document.querySelector("#pf-result");
  if (result && result.getBoundingClientRect().top > window.innerHeight * 0.4) {
    result.scrollIntoView({ behavior: "smooth", block: "start" });
  }
  return inputs;
}
"""


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """The fields of a storyboard."""

    starts: list[gr.Number]
    prompts: list[gr.Textbox]
    rows: list[gr.Row]
    count: gr.State
    """How many are shown."""
    more: gr.Button
    example: gr.Button
    add_chosen: gr.Button | None
    """Puts what was chosen of the known sentence into a scene."""

    def scene(self, index: int) -> tuple[gr.Number, gr.Textbox]:
        """Start and prompt of one scene."""
        return self.starts[index], self.prompts[index]


@dataclass(frozen=True, kw_only=True)
class Live:
    """The live video and what steers it."""

    play: gr.Button
    view: gr.HTML
    """The frames, words to say, and the time that they took."""
    stop: gr.Button
    keep: gr.Button


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Everything a visitor sets."""

    tabs: gr.Tabs
    mode_tabs: dict[str, gr.Tab]
    prompts: dict[str, gr.Textbox]
    """By mode; a storyboard has `scenes`."""
    choices: dict[str, dict[str, gr.Dropdown]]
    """By mode, where the model knows one form of sentence: what there is to choose."""
    make: dict[str, gr.Button]
    live: Live
    image: gr.File
    image_note: gr.HTML
    """What is wrong with the picture."""
    image_crop: gr.Image
    pictures: gr.Dataset | None
    video: gr.File
    video_note: gr.HTML
    video_crop: gr.Image
    scenes: Scenes
    model: gr.Dropdown | None
    """Where there are several."""
    chosen_words: list[gr.Column]
    """Around what there is to choose of the known sentence, for models that know it."""
    size: gr.Dropdown
    new_seed: gr.Checkbox
    options: dict[str, Any]
    """What the record of arguments has for the page, by name."""
    restore: gr.File


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that shows what was made."""

    status: gr.HTML
    stop: gr.Button
    preview: gr.HTML
    video: gr.Video
    details: gr.HTML
    actions: gr.Row
    use_settings: gr.Button
    go_on: gr.Button
    gallery: gr.Gallery
    made: gr.Gallery | None
    """What the model made before, on an empty page."""


def build_fields(cards: Sequence[ModelCard], examples: Examples) -> Fields:
    """The left column; of several models the first is chosen."""
    card = cards[0]
    model = _models(cards)
    chosen_words: list[gr.Column] = []
    tabs: dict[str, gr.Tab] = {}
    prompts: dict[str, gr.Textbox] = {}
    choices: dict[str, dict[str, gr.Dropdown]] = {}
    make: dict[str, gr.Button] = {}
    with gr.Tabs(elem_id="pf-modes") as all_tabs:
        with gr.Tab("Text", id="text", elem_id="pf-tab-text") as tabs["text"]:
            example = f"For example: {examples.prompts[0]}"
            prompts["text"] = _prompt("What the video should show", example)
            choices["text"] = _choices("text", cards, chosen_words)
            make["text"] = _make_button("text")
            gr.Examples([[p] for p in examples.prompts], prompts["text"], label="Examples")
        with gr.Tab("Picture", id="image", elem_id="pf-tab-image") as tabs["image"]:
            image = _drop("Picture to start from, or paste one", ["image"], "pf-image")
            image_note = gr.HTML("", padding=False, elem_classes="pf-note")
            image_crop = _crop("The video starts with this", "pf-image-crop")
            prompts["image"] = _prompt("What happens in the picture", "")
            choices["image"] = _choices("image", cards, chosen_words)
            make["image"] = _make_button("image")
            pictures = _picture_examples(examples)
        with gr.Tab("Extend", id="extend", elem_id="pf-tab-extend") as tabs["extend"]:
            video = _drop("Video to extend", ["video"], "pf-video")
            video_note = gr.HTML("", padding=False, elem_classes="pf-note")
            video_crop = _crop("The new frames continue from this one", "pf-video-crop")
            prompts["extend"] = _prompt("What happens next", "")
            choices["extend"] = _choices("extend", cards, chosen_words)
            make["extend"] = _make_button("extend")
        with gr.Tab("Storyboard", id="storyboard", elem_id="pf-tab-storyboard") as tabs[
            "storyboard"
        ]:
            choices["storyboard"] = _choices("storyboard", cards, chosen_words)
            scenes = _scenes(examples, chosen=bool(choices["storyboard"]))
            make["storyboard"] = _make_button("storyboard")
        with gr.Tab("Live", id="live", elem_id="pf-tab-live") as tabs["live"]:
            prompts["live"] = _prompt("What the video begins with", example)
            choices["live"] = _choices("live", cards, chosen_words)
            live = _live()
    with gr.Group(elem_id="pf-settings"):
        size = gr.Dropdown(
            card.sizes,
            value=card.sizes[0][1],
            label="Size",
            info="Or type your own, such as 256x128: multiples of 64.",
            allow_custom_value=True,
            elem_id="pf-size",
        )
        options = {"seconds": _option("seconds", card, least=0.1)}
        with gr.Row():
            options["seed"] = _option("seed", card)
            new_seed = gr.Checkbox(
                True,
                label="New for each video",
                info="Off: the seed on the left is used again.",
                min_width=140,
                elem_id="pf-new-seed",
            )
    with gr.Accordion("More settings", open=False, elem_id="pf-more"):
        options |= {key: _option(key, card) for key in ON_PAGE if key not in options}
    with gr.Accordion("Settings from a video", open=False, elem_id="pf-restore-box"):
        gr.Markdown("Drop a video that was made on this page to restore its settings.")
        restore = _drop("Video made on this page", [".mp4"], "pf-restore")
    return Fields(
        tabs=all_tabs,
        mode_tabs=tabs,
        prompts=prompts,
        choices={mode: chosen for mode, chosen in choices.items() if chosen},
        make=make,
        live=live,
        image=image,
        image_note=image_note,
        image_crop=image_crop,
        pictures=pictures,
        video=video,
        video_note=video_note,
        video_crop=video_crop,
        scenes=scenes,
        model=model,
        chosen_words=chosen_words,
        size=size,
        new_seed=new_seed,
        options=options,
        restore=restore,
    )


def build_results(examples: Examples) -> Results:
    """The right column."""
    with gr.Column(elem_id="pf-result"):
        preview = gr.HTML(
            None, html_template=TEMPLATE, js_on_load=SCRIPT, elem_id="pf-preview", padding=False
        )
        made = _made_examples(examples)
        video = gr.Video(
            label="Video",
            show_label=False,
            interactive=False,
            autoplay=True,
            loop=True,
            visible=False,
            buttons=["download"],
            elem_id="pf-result-video",
        )
        with gr.Row(elem_id="pf-status-row"):
            status = gr.HTML(status_html(None), elem_id="pf-status", padding=False)
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="pf-stop", scale=0)
        details = gr.HTML("", elem_id="pf-details", padding=False)
    with gr.Row(visible=False, elem_id="pf-actions") as actions:
        use_settings = gr.Button("Use these settings", size="sm", elem_id="pf-use", min_width=140)
        go_on = gr.Button("Extend this video", size="sm", elem_id="pf-go-on", min_width=140)
    gallery = _gallery("Made in this visit", "pf-gallery", columns=5, visible=False)
    return Results(
        status=status,
        stop=stop,
        preview=preview,
        video=video,
        details=details,
        actions=actions,
        use_settings=use_settings,
        go_on=go_on,
        gallery=gallery,
        made=made,
    )


def build_header(cards: Sequence[ModelCard], device: str) -> None:
    """The name of the page, of the only model and of what it runs on."""
    facts = [cards[0].name, device] if len(cards) == 1 else [device]
    gr.HTML(header_html(*facts), elem_id="pf-header", padding=False)


def first_knowing(cards: Iterable[ModelCard]) -> ModelCard | None:
    """The first model that knows one form of sentence, from which the page lets choose."""
    return next((card for card in cards if card.defaults.choices()), None)


def _models(cards: Sequence[ModelCard]) -> gr.Dropdown | None:
    if len(cards) == 1:
        return None
    return gr.Dropdown(
        [card.name for card in cards],
        label="Model",
        info="Another model is loaded when your video begins.",
        elem_id="pf-model",
    )


def _prompt(label: str, placeholder: str) -> gr.Textbox:
    return gr.Textbox(
        label=label, placeholder=placeholder, lines=3, max_lines=8, max_length=MAX_PROMPT
    )


def _choices(
    mode: str, cards: Sequence[ModelCard], around: list[gr.Column]
) -> dict[str, gr.Dropdown]:
    """A list for each choice in the sentence that a model knows, seen while it is chosen.

    What is around them is added to `around`.
    """
    knowing = first_knowing(cards)
    if knowing is None:
        return {}
    with gr.Column(visible=knowing is cards[0]) as column:
        around.append(column)
        gr.Markdown(
            "This model understands sentences of one form. Choose the words:",
            elem_classes="pf-hint",
        )
        with gr.Row(elem_classes="pf-choices"):
            return {
                name: gr.Dropdown(
                    [*texts], label=name.capitalize(), min_width=110, elem_id=f"pf-{mode}-{name}"
                )
                for name, texts in knowing.defaults.choices().items()
            }


def _make_button(mode: str) -> gr.Button:
    words = "Extend the video" if mode == "extend" else "Make the video"
    return gr.Button(words, variant="primary", size="lg", elem_id=f"pf-make-{mode}")


def _live() -> Live:
    play = gr.Button("Play", variant="primary", size="lg", elem_id="pf-make-live")
    view = gr.HTML(
        None, html_template=LIVE_TEMPLATE, js_on_load=LIVE_SCRIPT, elem_id="pf-live", padding=False
    )
    with gr.Row():
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="pf-live-stop")
        keep = gr.Button("Keep", visible=False, elem_id="pf-live-keep")
    return Live(play=play, view=view, stop=stop, keep=keep)


def _drop(label: str, file_types: list[str], elem_id: str) -> gr.File:
    return gr.File(
        label=label, file_types=file_types, height=130, elem_id=elem_id, elem_classes="pf-drop"
    )


def _crop(label: str, elem_id: str) -> gr.Image:
    return gr.Image(
        label=label,
        interactive=False,
        visible=False,
        height=220,
        format="png",
        buttons=[],
        elem_id=elem_id,
    )


def _picture_examples(examples: Examples) -> gr.Dataset | None:
    if not examples.pictures:
        return None
    return gr.Dataset(
        components=[gr.Image(render=False), gr.Textbox(render=False)],
        samples=[[str(path), prompt] for path, prompt in examples.pictures],
        headers=["Picture", "What happens"],
        label="Examples",
        elem_id="pf-pictures",
    )


def _gallery(label: str, elem_id: str, **options: Any) -> gr.Gallery:
    """Small pictures to choose from."""
    return gr.Gallery(
        label=label,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        fit_columns=False,
        interactive=False,
        buttons=[],
        elem_id=elem_id,
        elem_classes="pf-gallery",
        **options,
    )


def _made_examples(examples: Examples) -> gr.Gallery | None:
    if not examples.made:
        return None
    items = [(str(path), caption(settings)) for path, settings in examples.made]
    return _gallery("Made with this model: use one", "pf-made", value=items, columns=3)


def _scenes(examples: Examples, *, chosen: bool) -> Scenes:
    starts: list[gr.Number] = []
    prompts: list[gr.Textbox] = []
    rows: list[gr.Row] = []
    gr.Markdown(
        "Each prompt applies from its start time until the next one.", elem_classes="pf-hint"
    )
    given = examples.storyboard
    count = gr.State(max(len(given), 2))
    for index in range(MAX_SCENES):
        placeholder = f"For example: {given[index][1]}" if index < len(given) else ""
        start = given[index][0] if index < len(given) else starts[-1].value + 1
        with gr.Row(visible=index < count.value, elem_classes="pf-scene") as row:
            starts.append(
                gr.Number(
                    start,
                    label="From second",
                    minimum=0,
                    maximum=SCENE_START.most,
                    interactive=index > 0,
                    step=0.1,
                    min_width=90,
                    scale=1,
                    elem_id=f"pf-start-{index}",
                )
            )
            prompts.append(
                gr.Textbox(
                    label=f"Scene {index + 1}",
                    placeholder=placeholder,
                    lines=2,
                    max_length=MAX_PROMPT,
                    min_width=160,
                    scale=4,
                    elem_id=f"pf-scene-{index}",
                )
            )
        rows.append(row)
    with gr.Row():
        more = gr.Button("Add a scene", size="sm", min_width=120, elem_id="pf-add-scene")
        example = gr.Button(
            "Fill in the example", size="sm", min_width=120, elem_id="pf-example-scenes"
        )
        add_chosen = None
        if chosen:
            add_chosen = gr.Button(
                "Add the chosen words", size="sm", min_width=120, elem_id="pf-add-chosen"
            )
    return Scenes(
        starts=starts,
        prompts=prompts,
        rows=rows,
        count=count,
        more=more,
        example=example,
        add_chosen=add_chosen,
    )


def _option(key: str, card: ModelCard, *, least: float | None = None) -> Any:
    """The field of an argument, as the record of arguments describes it."""
    option, allowed = OPTIONS[ON_PAGE[key]], offered(key)
    said: dict[str, Any] = {
        "value": card.settings().options[key],
        "label": option.label,
        "info": option.info,
        "elem_id": f"pf-{key.partition('_')[0] if key == 'negative_prompt' else key}",
    }
    if key == "seed" and isinstance(allowed, Whole):
        said |= {"minimum": allowed.least, "maximum": allowed.most}
        return gr.Number(precision=0, min_width=140, **said)
    if isinstance(allowed, Number | Whole):
        step = 1 if isinstance(allowed, Whole) else 0.1
        return gr.Slider(allowed.least if least is None else least, allowed.most, step=step, **said)
    if isinstance(allowed, OneOf):
        return gr.Radio([*allowed.words], **said)
    return gr.Textbox(lines=2, max_length=MAX_PROMPT, **said)
