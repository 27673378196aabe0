"""Everything measured on one GPU, in one run: models of the released size, random weights.

A late step at 384p and 768p, the baseline's way and ours; five seconds from the prompt to the
frames at both sizes, exact, and at 384p in the fast mode too; the first frame; the memory that
ten seconds at 768p take with transformer and VAE on the GPU. Whole runs are timed once, after a
short one. Needs 48 GB.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyramid_dit import PyramidFlowMatchEulerDiscreteScheduler, PyramidFluxTransformer
from pyramid_dit.checkpoints.architectures import ARCHITECTURES
from pyramid_dit.generation.components import Components
from pyramid_dit.generation.video_generator import VideoGenerator
from pyramid_dit.models.text_condition import TextCondition

from .dit_step import (
    BASELINE,
    LATE_UNIT,
    OURS,
    VARIANTS,
    step_function,
)
from .flops import step_flops, video_flops
from .generate import PHASES, phases, watch_ours
from .measure import (
    Times,
    alternate,
    device_name,
    matmul_peak,
    peak_memory,
    speed_up,
    timed,
)
from .report import (
    Bar,
    Cell,
    Report,
    finish,
    median,
    number,
    option_parser,
    rounds,
)
from .setups import (
    SIZES,
    TEXT_CONFIGS,
    TEXT_LENGTH,
    TEXT_TOKENS,
    TINY_SIZES,
    random_flux,
    random_vae,
    step_inputs,
)

PROMPT = "a side profile shot of a woman with fireworks exploding in the distance"
FIRST_STEPS, LATER_STEPS = [20, 20, 20], [10, 10, 10]
FIVE_SECONDS, TEN_SECONDS = 16, 31
"""Latent frames."""
FAST_MODE: dict[str, Any] = {"history_cache": 5, "guidance_interval": (0.0, 0.7)}
STEP_BAR, MATMUL_BAR = 3.0, 50.0
SECONDS_BARS = {"384p": 10.0, "768p": 45.0}
FAST_BAR, FIRST_FRAME_BAR, MEMORY_BAR = 5.04, 2.0, 24.0
GB = 1e9


class RandomTextEncoder(nn.Module):
    """CLIP and T5 with random weights, which read random tokens whatever the prompt is.

    Args:
        size: One of `TEXT_CONFIGS`.
        device: Where.
        dtype: Of the weights.
    """

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

        clip, t5 = TEXT_CONFIGS[size]
        former = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        with torch.device(device):
            self.clip = CLIPTextModel(CLIPTextConfig(**clip)).eval()
            self.t5 = T5EncoderModel(T5Config(**t5)).eval()
        torch.set_default_dtype(former)

    def forward(
        self, prompts: Sequence[str], *, max_sequence_length: int = TEXT_LENGTH
    ) -> TextCondition:
        """Encode as many texts as there are `prompts`, the longer one of `TEXT_TOKENS` each."""
        device, batch = self.t5.device, len(prompts)
        pooled = self.clip(_tokens(self.clip, batch, 77)).pooler_output
        mask = torch.zeros(batch, max_sequence_length, dtype=torch.long, device=device)
        mask[:, : max(TEXT_TOKENS)] = 1
        ids = _tokens(self.t5, batch, max_sequence_length)
        embeds = self.t5(ids, attention_mask=mask).last_hidden_state
        return TextCondition(embeds, mask, pooled)


def _tokens(encoder: Any, batch: int, length: int) -> Tensor:
    return torch.randint(encoder.config.vocab_size, (batch, length), device=encoder.device)


class GpuBenchmark:
    """The models, and a report that grows.

    Args:
        device: Where.
        tiny: Everything very small, to try it out.
        repeats: Rounds of the steps.
    """

    def __init__(self, device: torch.device, *, tiny: bool, repeats: int) -> None:
        self.device, self.tiny, self.repeats = device, tiny, repeats
        self.size = "tiny" if tiny else "released"
        self.sizes = TINY_SIZES if tiny else SIZES
        self.steps = ([1] * 3, [1] * 3) if tiny else (FIRST_STEPS, LATER_STEPS)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.dit: PyramidFluxTransformer = random_flux(self.size, device, self.dtype)
        self.model = Components(
            self.dit,
            PyramidFlowMatchEulerDiscreteScheduler(),
            ARCHITECTURES["pyramid_flux"].released_statistics,
            vae=random_vae(self.size, device, self.dtype),
            text_encoder=RandomTextEncoder(self.size, device, self.dtype),
        )
        self.generator = VideoGenerator(self.model)
        self.generator.set_progress_bar_config(disable=True)
        self.matmul_flops = matmul_peak(device, self.dtype)
        self.rows: list[dict[str, Cell]] = []
        self.bars: list[Bar] = []

    @torch.no_grad()
    def late_step(self, name: str) -> None:
        """A late step at one of the sizes, both ways."""
        inputs = step_inputs(self.dit, *self.sizes[name], unit=LATE_UNIT)
        functions = {way: step_function(way, self.dit, inputs) for way in VARIANTS}
        times = alternate(functions, repeats=self.repeats, device=self.device)
        for way in VARIANTS:
            share = self._share(step_flops(self.dit, inputs.rows), median(times[way]))
            self._add(
                f"step at {name}, {way}",
                median(times[way]),
                speed_up=speed_up(times, BASELINE, way),
                share=share,
                memory=self._peak(functions[way]),
            )
        if name == "768p":
            self._step_bars(times, share)

    def _step_bars(self, times: Times, share: float) -> None:
        self.bars += [
            Bar("speed-up of a step at 768p", speed_up(times, BASELINE, OURS), STEP_BAR, "x"),
            Bar("needed operations of a step at 768p, of matmul", share, MATMUL_BAR, "%"),
        ]

    def five_seconds(self, name: str, *, fast: bool = False) -> None:
        """Five seconds of video at one of the sizes."""
        temp = 2 if self.tiny else FIVE_SECONDS
        run = partial(self._generate, name, temp)
        if fast:
            self.generator.enable_fast_mode(**FAST_MODE)
        self._generate(name, 2, steps=1)
        memory = self._peak(lambda: self._generate(name, temp, steps=1))
        detail = phases(partial(watch_ours, model=self.model), run, self.device)
        seconds = sum(number(detail, column) for column in detail)
        self.generator.disable_fast_mode()
        height, width = self.sizes[name]
        operations = video_flops(
            self.dit,
            height,
            width,
            temp=temp,
            first_steps=self.steps[0],
            later_steps=self.steps[1],
            texts=[max(TEXT_TOKENS)] * 2,
        )
        share = None if fast else self._share(operations, number(detail, "transformer, s"))
        what = f"five seconds at {name}" + (f", fast mode {FAST_MODE}" if fast else "")
        self._add(what, seconds, share=share, memory=memory, detail=detail)
        limit = FAST_BAR if fast else SECONDS_BARS[name]
        self.bars.append(Bar(what, seconds, limit, " s", at_least=False))

    def first_frame(self, name: str) -> None:
        """From the prompt to the first frame, which a stream shows while it goes on."""
        run = partial(self._generate, name, 1)
        run()
        seconds = timed(run, self.device)
        what = f"first frame at {name}"
        self._add(what, seconds, memory=self._peak(run))
        self.bars.append(Bar(what, seconds, FIRST_FRAME_BAR, " s", at_least=False))

    def long_video_memory(self, name: str) -> None:
        """Peak of ten seconds, one step per stage, the text encoders not on the device."""
        encoder, self.model.text_encoder = self.model.text_encoder, None
        assert encoder is not None
        with torch.no_grad():
            text = encoder([PROMPT])
        del encoder
        gc.collect()
        encoded = text._asdict()
        encoded |= {f"negative_{key}": value for key, value in encoded.items()}
        temp = 2 if self.tiny else TEN_SECONDS
        seconds: list[float] = []

        def run() -> None:
            generate = partial(self._generate, name, temp, steps=1, prompt=None, **encoded)
            seconds.append(timed(generate, self.device))

        memory = self._peak(run)
        what = f"ten seconds at {name}, one step per stage"
        self._add(what, seconds[0], memory=memory)
        self.bars.append(Bar(f"peak memory of {what}", memory, MEMORY_BAR, " GB", at_least=False))

    def report(self) -> Report:
        """All that was found."""
        return Report(
            benchmark="gpu",
            device=device_name(self.device),
            settings=(
                f"miniFLUX, VAE and text encoders of the {self.size} size, random weights in "
                f"{str(self.dtype).removeprefix('torch.')}; steps in unit {LATE_UNIT}, "
                f"{rounds(self.repeats)}; videos with steps {self.steps[0]} and "
                f"{self.steps[1]}; memory with all models on the device; a matrix product reaches "
                f"{self.matmul_flops / 1e12:.3g} TFLOP/s"
            ),
            rows=self.rows,
            bars=self.bars,
        )

    def _generate(
        self,
        name: str,
        temp: int,
        *,
        steps: int | None = None,
        prompt: str | None = PROMPT,
        **encoded: Any,
    ) -> object:
        height, width = self.sizes[name]
        return self.generator.generate(
            prompt,
            height,
            width,
            temp,
            steps or self.steps[0],
            steps or self.steps[1],
            guidance_scale=7.0,
            video_guidance_scale=5.0,
            generator=torch.Generator(self.device).manual_seed(0),
            **encoded,
        )

    def _share(self, operations: float, seconds: float) -> float:
        """Percent of what a matrix product reaches."""
        return 100 * operations / seconds / self.matmul_flops

    def _peak(self, function: Callable[[], object]) -> float:
        """GB in use at most while `function` runs, weights included."""
        held = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        return (held + peak_memory(function, self.device)) / GB

    def _add(
        self,
        what: str,
        seconds: float,
        *,
        speed_up: float | None = None,
        share: float | None = None,
        memory: float,
        detail: dict[str, Cell] | None = None,
    ) -> None:
        row: dict[str, Cell] = {
            "what": what,
            "time, s": seconds,
            "speed-up": speed_up,
            "% of matmul": share,
            "peak memory, GB": memory,
        }
        row |= detail or dict.fromkeys([*(f"{phase}, s" for phase in PHASES), "rest, s"])
        self.rows.append(row)
        sys.stderr.write(f"{row}\n")  # a run that is cut off leaves what it has found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = option_parser(__doc__, repeats=5)
    parser.set_defaults(device=torch.device("cuda"))
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument("--attention", help="backend of diffusers' attention dispatch")
    options = parser.parse_args(arguments)
    benchmark = GpuBenchmark(options.device, tiny=options.tiny, repeats=options.repeats)
    if options.attention is not None:
        benchmark.dit.set_attention_backend(options.attention)
    if options.compile:
        benchmark.generator.compile()
    for name in SIZES:
        benchmark.late_step(name)
    for name in SIZES:
        benchmark.five_seconds(name)
    benchmark.five_seconds("384p", fast=True)
    benchmark.first_frame("384p")
    benchmark.long_video_memory("768p")
    finish(benchmark.report(), options)


if __name__ == "__main__":
    main()
