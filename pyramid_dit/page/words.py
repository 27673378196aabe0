"""What the page says, as HTML; whatever came from a visitor is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..checkpoints.defaults import GenerationDefaults
from .settings import Settings
from .visitors import in_words
from .worker import Job, State

MODE_NAMES = {
    "text": "Text to video",
    "image": "Picture to video",
    "extend": "Extended video",
    "storyboard": "Storyboard",
    "live": "Live",
}


def header_html(*facts: str) -> str:
    """The head of the page, with what there is to know about model and machine."""
    chips = "".join(f"<span>{escape(text)}</span>" for text in facts)
    return (
        "<div class='pf-head'><div><h1>Pyramid Flow</h1>"
        "<p>Videos from words, pictures and other videos.</p></div>"
        f"<div class='pf-chips'>{chips}</div></div>"
    )


def status_html(job: Job | None, ahead: int = 0) -> str:
    """Where a job stands, in words and as a bar; None before there is any."""
    if job is None:
        return _status("idle", "Ready.")
    if job.state is State.WAITING:
        videos = "1 video is" if ahead == 1 else f"{ahead} videos are"
        if not ahead:
            return starting_html()
        return _status("wait", f"Waiting: {videos} made before yours.")
    if job.state is State.RUNNING:
        return _running(job)
    if job.state is State.DONE:
        return _status("done", f"Done in {duration(job.seconds)}.")
    if job.state is State.STOPPED:
        kept = "What was made so far is kept." if job.path else "Nothing was made yet."
        return _status("stopped", f"Stopped. {kept}")
    kept = " The video is kept, but perhaps without its settings." if job.path else ""
    return failure_html(in_words(job.error) + kept if job.error else "It could not be made.")


def starting_html() -> str:
    """It was asked for."""
    return _status("wait", "Starting …")


def failure_html(words: str) -> str:
    """What went wrong."""
    return _status("failed", words)


def unknown_html(settings: Settings, defaults: GenerationDefaults) -> str:
    """The words of a prompt that the model never learned, while the video is made."""
    unknown = defaults.unknown_words(settings.prompts)
    if not unknown:
        return ""
    words = f"The model never learned the words: {', '.join(unknown)}."
    known = f"It knows: {', '.join(defaults.known_words or ())}."
    return (
        f"<div class='pf-about pf-unknown'><p class='pf-said' role='status'>{escape(words)}"
        f"<span>{escape(known)}</span></p></div>"
    )


def details_html(settings: Settings, note: str, unknown: Sequence[str] = ()) -> str:
    """The settings of a video, under it, and the words that the model never learned."""
    options = settings.options
    rows = [("Seed", str(options["seed"])), ("Length", note)]
    rows += [("Size", f"{settings.width} × {settings.height}")]
    rows += [("Steps", f"{options['steps']}, later {options['video_steps']}")]
    rows += [("Solver", options["solver"])]
    rows += [("Guidance", f"{options['guidance']:g}, later {options['video_guidance']:g}")]
    if options["negative_prompt"]:
        rows.append(("Negative", options["negative_prompt"]))
    rows.append(("Model", settings.model))
    if unknown:
        rows.append(("Never learned", ", ".join(unknown)))
    if settings.scenes:
        prompt = "<br>".join(
            f"<b>{scene.start:g} s</b> {escape(scene.prompt)}" for scene in settings.scenes
        )
    else:
        prompt = escape(settings.prompt) or "<i>no prompt</i>"
    entries = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return (
        f"<div class='pf-about'><p class='pf-said'><span>{MODE_NAMES[settings.mode]}</span>"
        f"{prompt}</p><dl>{entries}</dl></div>"
    )


def caption(settings: Settings) -> str:
    """A few words below a small picture."""
    prompt = settings.scenes[0].prompt if settings.scenes else settings.prompt
    return prompt if len(prompt) <= 60 else f"{prompt[:57]}..."


def duration(seconds: float) -> str:
    """A time for people: `4.2 s`, `1 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


def _running(job: Job) -> str:
    done, total = job.steps_done, job.total_steps
    share = done / total if total else 0.0
    if job.stopping:
        words = "Stopping …"
    elif job.loading:
        words = f"Loading the model {job.request.settings.model} …"
    elif not total:
        words = "Starting …"
    else:
        frames = "1 frame" if job.frames == 1 else f"{job.frames} frames"
        words = f"{frames} so far · step {done} of {total}"
        if (left := job.seconds_left()) is not None:
            left = max(left, 1)
            words += f" · about {f'{left:.0f} s' if left < 10 else duration(left)} left"
    return _status("run", words, share)


def _status(kind: str, words: str, share: float | None = None) -> str:
    percent = 0 if share is None else round(100 * share)
    bar = (
        f"<div class='pf-bar' role='progressbar' aria-valuenow='{percent}' aria-valuemin='0' "
        f"aria-valuemax='100' aria-label='Progress'><i style='width:{percent}%'></i></div>"
        if share is not None
        else ""
    )
    role = "alert" if kind == "failed" else "status"
    return (
        f"<div class='pf-status pf-{kind}' data-state='{kind}'>{bar}"
        f"<p role='{role}'>{escape(words)}</p></div>"
    )
