"""Draws the figures of docs/architecture.md from what the code itself computes.

    python -m docs.figures.make

Run it from the root of the project; it needs the bundled checkpoint and a few seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.checkpoints.hub import TOY_FOLDER
from pyramid_dit.flow.latents import LatentStatistics, latent_pyramid, noise_pyramid
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from pyramid_dit.flow.temporal_pyramid import HistoryClip, history_plan
from pyramid_dit.generation.latent_codec import to_bytes
from pyramid_dit.models.token_layout import Grid, make_layout
from trainer_misc.toy.moving_shapes import MovingShapes
from video_vae import CausalVideoVAE

from .canvas import GRID, INK, PALE, STAGES, TEXT_COLOR, Canvas

LATENT_HEIGHT, LATENT_WIDTH = 96, 160
"""Latents of 1280x768 pixels."""


def stages_figure(vae: CausalVideoVAE, statistics: LatentStatistics) -> Canvas:
    """Noise level along the way of a unit, and points of the exact path, decoded."""
    scheduler = PyramidFlowMatchEulerDiscreteScheduler()
    page = Canvas(760, 384)
    left, top, width, height, gap = 60, 40, 200, 190, 30
    page.text((380, 14), "One unit, from noise to clean latents, in three stages", size=14)
    for share in (0, 1 / 3, 2 / 3, 1):
        y = top + height * (1 - share)
        page.line((left, y), (left + 3 * width + 2 * gap, y), color=GRID)
        page.text((left - 8, y), f"{share:.2f}", anchor="rm", color=PALE)
    page.text((8, 26), "share of noise", anchor="lm", color=PALE)

    def y_of(sigma: float) -> float:
        return top + height * (1 - sigma)

    frame = MovingShapes(seed=3, num_frames=1)[0]["video"].unsqueeze(0)
    clean = statistics.normalize(vae.encode(frame).latent_dist.mode())
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    cleans, noises = latent_pyramid(clean, 3), noise_pyramid(noise, 3)
    for stage, color in enumerate(STAGES):
        x = left + stage * (width + gap)
        start, end = scheduler.start_sigmas[stage], scheduler.end_sigmas[stage]
        page.line((x, y_of(start)), (x + width, y_of(end)), color=color, width=3)
        page.text((x + 10, y_of(start) - 4), f"{start:.3f}", anchor="lm", color=color)
        page.text((x + width - 10, y_of(end) + 6), f"{end:.3f}", anchor="rm", color=color)
        if stage < 2:
            jump = y_of(scheduler.start_sigmas[stage + 1])
            page.line((x + width, y_of(end)), (x + width + gap, y_of(end)), color=PALE)
            page.arrow((x + width + gap, y_of(end)), (x + width + gap, jump), color=PALE)
            page.text((x + width + gap / 2, y_of(end) + 12), "jump", color=PALE)
        side = 2**stage
        size = f"{LATENT_WIDTH // 4 * side}x{LATENT_HEIGHT // 4 * side}"
        page.text((x + width / 2, top + height + 26), f"stage {stage}", color=color, size=14)
        page.text((x + width / 2, top + height + 43), f"768p: latents of {size}", color=PALE)
        coarser = cleans[stage - 1] if stage else None
        for column, ratio in enumerate((1.0, 0.5, 0.0)):
            flow = scheduler.stage_flow(
                stage, noises[stage], cleans[stage], coarser=coarser, ratio=ratio
            )
            picture = decoded(vae, statistics, flow.sample)
            page.picture((x + 68 * column, 294), picture, (62, 62))
    names = ("start", "middle", "end")
    for stage in range(3):
        for column, name in enumerate(names):
            x = left + stage * (width + gap) + 68 * column + 31
            page.text((x, 368), name, color=PALE)
    return page


def decoded(vae: CausalVideoVAE, statistics: LatentStatistics, latents: Tensor) -> Image.Image:
    """The picture of normalized latents `[1, c, 1, h, w]`."""
    video = vae.decode(statistics.denormalize(latents)).sample
    return Image.fromarray(to_bytes(video)[0, 0].numpy())


def history_figure(units: int = 7) -> Canvas:
    """What the unit after `units` latent frames sees of them, in each stage."""
    page = Canvas(760, 320)
    page.text((380, 14), f"The history of unit {units}, in each of its stages", size=14)
    tokens_of = [(LATENT_HEIGHT * LATENT_WIDTH // 4) // 4 ** (2 - stage) for stage in range(3)]
    bottom = 40
    for stage in range(3):
        plan = history_plan(units, stage)
        bottom += 40 + 18 * 2**stage
        page.text((14, bottom - 9), f"stage {stage}", anchor="lm", color=STAGES[stage], size=14)
        x = 90.0
        for clip in [*plan, HistoryClip(units, units + 1, stage)]:
            for frame in range(clip.start, clip.stop):
                noisy = frame == units
                side = 18 * 2**clip.stage
                at = (x, bottom - side)
                color = STAGES[clip.stage]
                page.box(at, (side, side), fill=color if noisy else tint(color), outline=color)
                center = (x + side / 2, bottom - side / 2)
                page.text(center, str(frame), color="white" if noisy else INK, size=11)
                x += side + 6
        seen = sum((clip.stop - clip.start) * tokens_of[clip.stage] for clip in plan)
        full = units * tokens_of[stage]
        page.text((430, bottom - 26), f"{tokens_of[stage]:,} tokens are made,", anchor="lm")
        page.text((430, bottom - 9), f"{seen:,} are seen", anchor="lm")
        page.text(
            (536, bottom - 9), f"({full:,} if all were at this size)", anchor="lm", color=PALE
        )
    return page


def tint(color: str) -> str:
    """A pale version of a color."""
    values = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - value) * 0.3):02x}" for value in values)


def attention_figure() -> Canvas:
    """Which tokens attend to which in stage 1 of unit 4, on a toy grid."""
    stage, unit = 1, 4
    plan = history_plan(unit, stage)
    areas = (1, 4)
    grids = [Grid(clip.stop - clip.start, areas[clip.stage], 1) for clip in plan]
    grids.append(Grid(1, areas[stage], 1))
    text = 3
    layout = make_layout(grids, text, [0], temporal_causal=True)
    names = ["text"] * text
    colors = [TEXT_COLOR] * text
    frame = 0
    for grid, level in zip(grids, [*(clip.stage for clip in plan), stage], strict=True):
        for _ in range(grid.frames):
            names += [str(frame)] * (grid.height * grid.width)
            colors += [STAGES[level]] * (grid.height * grid.width)
            frame += 1
    total = len(names)
    cell, left, top = 18, 74, 66
    page = Canvas(left + cell * total + 40, top + cell * total + 20)
    page.text((left + cell * total / 2, 14), "Who sees whom: stage 1 of unit 4", size=14)
    page.text((left + cell * total / 2, 32), "keys", color=PALE)
    page.text((14, top - 14), "queries", anchor="lm", color=PALE)
    visible = {
        query: span.visible for span in layout.spans for query in range(span.start, span.stop)
    }
    for query in range(total):
        for key in range(total):
            seen = key < visible[query]
            fill = tint(colors[key]) if seen else None
            at = (left + cell * key, top + cell * query)
            page.box(at, (cell, cell), fill=fill, outline=GRID)
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        if index and names[index - 1] == name:
            continue
        span = names.count(name) * cell
        page.text((left + cell * index + span / 2, top - 12), name, color=color, size=11)
        page.text((left - 8, top + cell * index + span / 2), name, anchor="rm", color=color)
    return page


def unit_loop_figure() -> Canvas:
    """The way of one unit through the sampler."""
    page = Canvas(760, 284)
    page.text((380, 14), "The loop over units", size=14)

    def block(x: float, y: float, lines: Sequence[str], color: str, width: float = 112) -> None:
        page.box((x, y), (width, 50), fill=tint(color), outline=color)
        for row, line in enumerate(lines):
            offset = 25 + 15 * (row - (len(lines) - 1) / 2)
            page.text((x + width / 2, y + offset), line, size=11)

    block(10, 60, ("noise of the", "unit, 1/4 size"), PALE)
    for stage, color in enumerate(STAGES):
        x = 152 + 150 * stage
        block(x, 60, (f"stage {stage}:", "Euler steps"), color)
        page.arrow((x - 30 if stage == 0 else x - 38, 85), (x, 85))
        if stage:
            page.text((x - 19, 74), "jump", size=10, color=PALE)
    block(608, 60, ("clean latents", "of the unit"), PALE, width=130)
    page.arrow((564, 85), (608, 85))
    block(608, 222, ("VAE, a stream:", "8 frames (first: 1)"), PALE, width=130)
    page.arrow((673, 110), (673, 222))
    block(390, 160, ("halved twice,", "added to the past"), PALE, width=130)
    page.arrow((673, 185), (520, 185))
    block(152, 160, ("history_plan:", "who is seen at which size"), PALE, width=190)
    page.arrow((390, 185), (342, 185))
    for stage in range(3):
        x = 190 + 150 * stage
        page.line((247, 160), (247, 135), color=PALE)
        page.line((190, 135), (490, 135), color=PALE)
        page.arrow((x, 135), (x, 110), color=PALE)
    return page


def causal_vae_figure(vae: CausalVideoVAE, frames: int = 25) -> Canvas:
    """Which frames each latent frame depends on, and the way back, as measured."""
    latents = (frames - 1) // 8 + 1
    encoded, back = dependencies(vae, frames)
    page = Canvas(760, 376)
    page.text((380, 14), f"{frames} frames, {latents} latent frames", size=14)
    left, cell = 130, 24

    def middle_of(latent: int) -> float:
        first, last = (0, 0) if latent == 0 else (8 * latent - 7, 8 * latent)
        return left + cell * (first + last + 1) / 2

    page.text((left - 12, 62), "frames", anchor="rm")
    page.text((left - 12, 142), "latent frames", anchor="rm")
    for latent in range(latents):
        color = STAGES[latent % 3]
        own = [0] if latent == 0 else range(8 * latent - 7, 8 * latent + 1)
        first, last = left + cell * own[0], left + cell * (own[-1] + 1)
        x = middle_of(latent)
        page.polygon((first, 74), (last, 74), (x + 12, 130), (x - 12, 130), fill=tint(color))
        for frame in own:
            page.box((left + cell * frame, 50), (cell, cell), fill=tint(color), outline=color)
            page.text((left + cell * (frame + 0.5), 62), str(frame), size=9)
        page.box((x - 12, 130), (24, 24), fill=color, outline=color)
        page.text((x, 142), str(latent), color="white")

    def matrix(top: float, title: str, table: Tensor) -> None:
        page.text((left, top - 14), title, anchor="lm")
        for latent in range(latents):
            page.text((left - 12, top + 14 * latent + 7), str(latent), anchor="rm", size=10)
            for frame in range(frames):
                fill = tint(STAGES[latent % 3]) if table[latent, frame] else None
                at = (left + cell * frame, top + 14 * latent)
                page.box(at, (cell, 14), fill=fill, outline=GRID)

    matrix(206, "Encoding: filled where a latent frame changes with a frame", encoded)
    matrix(306, "Decoding: filled where a frame changes with a latent frame", back)
    return page


@torch.no_grad()
def dependencies(vae: CausalVideoVAE, frames: int) -> tuple[Tensor, Tensor]:
    """Booleans `[latents, frames]`: changed by encoding, and by decoding."""
    rng = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, frames, 32, 32, generator=rng) * 2 - 1
    z = vae.encode(video).latent_dist.mode()
    decoded_video = vae.decode(z).sample
    encoded = torch.zeros(z.shape[2], frames, dtype=torch.bool)
    back = torch.zeros_like(encoded)

    def changed(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().amax(dim=(0, 1, 3, 4)) > 0

    for frame in range(frames):
        other = video.clone()
        other[:, :, frame] *= -1
        encoded[:, frame] = changed(vae.encode(other).latent_dist.mode(), z)
    for latent in range(z.shape[2]):
        moved = z.clone()
        moved[:, :, latent] += 1
        back[latent] = changed(vae.decode(moved).sample, decoded_video)
    return encoded, back


def draw_all(folder: Path) -> list[Path]:
    """Draw every figure into `folder` and return their paths."""
    vae = CausalVideoVAE.from_pretrained(TOY_FOLDER / "causal_video_vae").eval()
    statistics = CheckpointFolder.open(TOY_FOLDER).statistics
    with torch.no_grad():
        pages = {
            "stages": stages_figure(vae, statistics),
            "history": history_figure(),
            "attention": attention_figure(),
            "unit-loop": unit_loop_figure(),
            "causal-vae": causal_vae_figure(vae),
        }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, page in pages.items():
        paths.append(folder / f"{name}.png")
        page.save(paths[-1])
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.figures.make", description="Draw the figures of docs/architecture.md."
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder")
    draw_all(parser.parse_args(arguments).output)


if __name__ == "__main__":
    main()
