"""Makes the pictures of the README and the examples of the page with the bundled checkpoint."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.checkpoints.hub import open_checkpoint
from pyramid_dit.media.embedded_settings import write_comment
from pyramid_dit.media.figures import evenly_spaced, picture_grid
from pyramid_dit.media.video_files import export_to_gif, export_to_video
from pyramid_dit.page.examples import MADE_FOLDER
from pyramid_dit.page.settings import DEFAULT_NAME, ModelCard
from pyramid_dit.page.worker import VideoRequest

HERE = Path(__file__).parent
PROMPTS = [
    "a red circle moves left on a white background",
    "a green square grows on a black background",
    "a blue cross moves down on a gray background",
    "a yellow triangle shrinks on a black background",
    "a purple square moves right on a white background",
    "a green circle moves up on a gray background",
    "a blue triangle stays still on a white background",
    "a red cross grows on a black background",
]
SAID = {
    0: "a red circle moves left on a white background",
    8: "a red circle moves up on a white background",
    14: "a red circle moves right on a white background",
    22: "a red circle grows on a white background",
    28: "a blue circle grows on a white background",
    36: "a blue square moves down on a black background",
}
"""What is typed while a live video plays, by the unit that is made next."""
LIVE_UNITS = 42
COLUMNS, STILLS, COLORS, LIVE_COLORS = 4, 6, 48, 16
ON_PAGE, SECONDS = 6, 2.0


def label(prompt: str) -> str:
    """The prompt in three lines."""
    words = prompt.split(" ")
    return "\n".join([" ".join(words[:3]), " ".join(words[3:-4]), " ".join(words[-4:])])


def icon(side: int = 64, finer: int = 8) -> Image.Image:
    """A pyramid of three stages, drawn `finer` times as large and scaled down."""
    image = Image.new("RGBA", (side * finer, side * finer))
    draw = ImageDraw.Draw(image)
    unit = side * finer / 64
    draw.rounded_rectangle((0, 0, 64 * unit, 64 * unit), 14 * unit, "#0f766e")
    for width, top in ((12, 13), (26, 27), (40, 41)):
        box = (32 - width / 2, top, 32 + width / 2, top + 10)
        draw.rounded_rectangle([value * unit for value in box], 3 * unit, "white")
    return image.resize((side, side), Image.Resampling.LANCZOS)


def page_examples(model: PyramidDiTForVideoGeneration) -> None:
    """Videos as the page makes them, put where it looks for them."""
    folder = open_checkpoint(None)
    usual = ModelCard.of(folder, DEFAULT_NAME).settings()
    for number, prompt in enumerate(PROMPTS[:ON_PAGE], 1):
        options = {**usual.options, "seconds": SECONDS}
        settings = replace(usual, prompt=prompt, options=options)
        path = folder.path / MADE_FOLDER / f"{number}.mp4"
        with VideoRequest(settings=settings).stream(model) as stream:
            frames = (frame for unit in stream for frame in unit)
            export_to_video(frames, path, folder.defaults.frames_per_second)
        write_comment(path, settings.to_json())


def live(model: PyramidDiTForVideoGeneration) -> list[Image.Image]:
    """A live video with the words that it follows, six frames a second."""
    pages = []
    words = ""
    with model.live(SAID[0], next_prompt=SAID.get, seed=0) as stream:
        for unit, frames in enumerate(islice(stream, LIVE_UNITS)):
            words = SAID.get(unit, words)
            shown = frames[::4]
            pages += [picture_grid([[f]], column_labels=[label(words)], side=128) for f in shown]
    return pages


def write_gif(pages: list[Image.Image], path: Path, *, colors: int, fps: float) -> None:
    """Write pictures in few colors."""
    export_to_gif([page.quantize(colors).convert("RGB") for page in pages], path, fps=fps)


def main() -> None:
    """Write the GIFs and `contact-sheet.png`, the icon and the examples of the page."""
    icon().save(HERE.parent / "pyramid_dit/page/icon.png", optimize=True)
    model = PyramidDiTForVideoGeneration.from_pretrained()
    page_examples(model)
    videos = [model.generate(prompt, num_frames=49, seed=0) for prompt in PROMPTS]
    rows = range(0, len(PROMPTS), COLUMNS)
    pages = [
        picture_grid(
            [[video[frame] for video in videos[row : row + COLUMNS]] for row in rows], side=150
        )
        for frame in range(0, 49, 3)
    ]
    write_gif(pages, HERE / "videos.gif", colors=COLORS, fps=8)
    write_gif(live(model), HERE / "live.gif", colors=LIVE_COLORS, fps=6)
    sheet = picture_grid(
        [evenly_spaced(video, STILLS) for video in videos],
        row_labels=[label(prompt) for prompt in PROMPTS],
        column_labels=[f"frame {i}" for i in evenly_spaced(range(49), STILLS)],
        side=112,
    )
    sheet.quantize(256, dither=Image.Dither.NONE).save(HERE / "contact-sheet.png", optimize=True)


if __name__ == "__main__":
    main()
