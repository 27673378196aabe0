"""The baseline of the benchmarks computes the same as we do; every command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden import relative_error
from PIL import Image
from tiny_checkpoint import DIT_CONFIGS, VAE_CONFIG, write_tiny_checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    dit_step,
    generate,
    gpu,
    noise,
    run_all,
    scaling,
    vae_decode,
)
from benchmarks import report as report_module
from benchmarks.baseline.pipeline import BaselinePipeline, block_noise
from benchmarks.baseline.transformer import attention_mask, baseline_transformer
from benchmarks.baseline.vae import BaselineDecoder
from benchmarks.flops import (
    baseline_step_flops,
    decoder_flops,
    step_flops,
    video_flops,
)
from benchmarks.measure import (
    PhaseClock,
    alternate,
    in_fresh_process,
    peak_memory,
    speed_up,
)
from benchmarks.report import (
    SECTION,
    Bar,
    Report,
    fill,
)
from benchmarks.setups import (
    SIZES,
    random_flux,
    random_vae,
    step_inputs,
)
from pyramid_dit import PyramidDiffusionMMDiT, PyramidDiTForVideoGeneration, PyramidFluxTransformer
from video_vae import CausalVideoVAE

AGREEMENT = 1e-4
DIT_CLASSES = {"pyramid_flux": PyramidFluxTransformer, "pyramid_mmdit": PyramidDiffusionMMDiT}


def random_model(model_class: type[Any], config: dict[str, Any], std: float) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(**config)
        for parameter in model.parameters():  # what starts at zero would hide mistakes
            torch.nn.init.normal_(parameter, std=std)
    return model.eval().requires_grad_(False)


# ---- the baseline -----------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", DIT_CLASSES)
def test_baseline_transformer_agrees(name: str, causal: bool) -> None:
    config = DIT_CONFIGS[name] | {"num_layers": 2, "use_temporal_causal": causal}
    dit = random_model(DIT_CLASSES[name], config, 0.1)
    draw = torch.Generator().manual_seed(1)
    shapes = [(2, 4, 3, 2, 4), (2, 4, 1, 4, 8), (2, 4, 1, 8, 16)]
    clips = [torch.randn(shape, generator=draw) for shape in shapes]
    text = torch.randn(2, 12, config["joint_attention_dim"], generator=draw)
    mask = torch.tensor([[1] * 5 + [0] * 7, [1] * 9 + [0] * 3])
    pooled = torch.randn(2, config["pooled_projection_dim"], generator=draw)
    timestep = torch.tensor([300.0, 700.0])

    ours = dit([clips], text, mask, pooled, timestep)[0]
    theirs = baseline_transformer(dit).predict(clips, text, mask, pooled, timestep)
    assert relative_error(theirs, ours) <= AGREEMENT


def test_the_baselines_mask_is_the_rule() -> None:
    clips = [torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 4, 1, 2, 4)]  # frames of 1, 1 and 2 tokens
    mask = attention_mask(torch.tensor([[1, 1, 0]]), clips, causal=True)
    assert mask.shape == (1, 1, 7, 7)
    expected = """
        1101000
        1101000
        0010000
        1101000
        1101100
        1101111
        1101111
    """
    assert mask[0, 0].int().tolist() == [[int(c) for c in row] for row in expected.split()]


@pytest.mark.parametrize("size", [(4, 6), (33, 25)])
def test_baseline_decoder_agrees(size: tuple[int, int]) -> None:
    vae = random_model(CausalVideoVAE, VAE_CONFIG, 0.1)
    vae.enable_tiling()
    latents = torch.randn(1, 4, 3, *size, generator=torch.Generator().manual_seed(1))
    ours = vae.decode(latents, temporal_chunk=True, window_size=1, tile_sample_min_size=256).sample
    assert relative_error(BaselineDecoder(vae).decode(latents), ours) <= AGREEMENT


def test_baseline_run_agrees(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, "pyramid_flux")
    pipeline = PyramidDiTForVideoGeneration(folder, "fp32", "pyramid_flux")
    noises = torch.Generator()
    baseline = BaselinePipeline(
        pipeline.video_generator.components,
        lambda shape: pipeline.scheduler.sample_block_noise(shape, generator=noises),
    )
    arguments: dict[str, Any] = {
        "height": 64,
        "width": 128,
        "temp": 3,
        "num_inference_steps": [2, 1, 2],
        "video_num_inference_steps": [1, 2, 1],
        "guidance_scale": 3.0,
        "video_guidance_scale": 2.0,
        "negative_prompt": "a blue square",
    }

    def run(generate: Callable[..., Any], output_type: str) -> Any:
        return generate(
            "a red circle", generator=noises.manual_seed(0), output_type=output_type, **arguments
        )

    latents = run(pipeline.generate, "latent")
    assert relative_error(run(baseline.generate, "latent"), latents) <= AGREEMENT
    ours, theirs = (
        np.stack(run(generate, "pil")).astype(int)
        for generate in (pipeline.generate, baseline.generate)
    )
    assert ours.shape == (17, 64, 128, 3)
    assert np.abs(ours - theirs).max() <= 1


def test_baseline_noise_has_the_covariance_of_the_jump() -> None:
    torch.manual_seed(0)
    gamma = 1 / 3
    noise = block_noise((1, 1, 1, 80, 80), gamma)
    blocks = noise.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).transpose(-3, -2)
    covariance = torch.cov(blocks.reshape(-1, 4).T)
    expected = (1 + gamma) * torch.eye(4) - gamma
    assert (covariance - expected).abs().max() < 0.15
    assert blocks.mean((-2, -1)).abs().max() < 0.01  # a block has no mean


# ---- what is counted --------------------------------------------------------------------------


def test_operations_of_five_seconds() -> None:
    """With 128 tokens of text, three and fifteen PFLOP of the released transformer."""
    with torch.device("meta"):
        dit = PyramidFluxTransformer()
    for size, petaflop in (("384p", 3.2), ("768p", 15.3)):
        operations = video_flops(
            dit, *SIZES[size], temp=16, first_steps=[20] * 3, later_steps=[10] * 3, texts=[128] * 2
        )
        assert operations / 1e15 == pytest.approx(petaflop, rel=0.03)


def test_operations_of_a_step() -> None:
    """What PyTorch counts in a step is what the layout says, but for what is small."""
    dit = random_flux("tiny", torch.device("cpu"), torch.float32)
    inputs = step_inputs(dit, 128, 192, unit=5)
    for way, operations in (
        ("ours", step_flops(dit, inputs.rows)),
        ("baseline", baseline_step_flops(dit, inputs.padded_rows)),
    ):
        function = dit_step.step_function(way, dit, inputs)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            function()
        assert counter.get_total_flops() == pytest.approx(operations, rel=0.05)


def test_operations_of_the_decoder() -> None:
    vae = random_vae("tiny", torch.device("cpu"), torch.float32)
    convolution = decoder_flops(vae, 1, 64, 64)
    assert decoder_flops(vae, 1, 128, 128) == pytest.approx(4 * convolution, rel=0.1)
    assert convolution > 64 * 64 * 2 * 27 * 8 * 8  # one layer at full resolution


# ---- measuring and reporting ------------------------------------------------------------------


def test_rounds_alternate_and_ratios_are_by_round() -> None:
    order: list[str] = []
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    alternate(ways, repeats=3, device=torch.device("cpu"))
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert speed_up({"slow": [2.0, 8.0, 9.0], "fast": [1.0, 2.0, 1.0]}, "slow", "fast") == 4.0
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        alternate(ways, repeats=0, device=torch.device("cpu"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_what_was_held_at_once() -> None:
    peak = in_fresh_process(peak_of_allocations, 50_000_000)
    assert 99e6 < peak < 115e6


def peak_of_allocations(size: int) -> int:
    def allocate() -> None:
        for _ in range(2):  # freed in between: it does not add up
            held = [torch.ones(size, dtype=torch.uint8) for _ in range(2)]
            del held

    torch.ones(4 * size, dtype=torch.uint8)  # an earlier peak does not count
    return peak_memory(allocate, torch.device("cpu"))


def test_phases_count_the_outermost_call_and_end_with_the_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0
    clocks = {"perf_counter": lambda: now, "process_time": lambda: 2 * now}
    monkeypatch.setattr("benchmarks.measure.time", SimpleNamespace(**clocks))

    class Worker:
        def outer(self) -> int:
            nonlocal now
            now += 20
            return self.inner()

        def inner(self) -> int:
            nonlocal now
            now += 3
            return 7

    worker = Worker()
    with PhaseClock(torch.device("cpu")) as clock:
        clock.watch(worker, ["outer"], "out")
        clock.watch(worker, ["inner"], "in")
        assert worker.outer() == 7
        assert clock.seconds == {"out": 23, "in": 0}
        worker.inner()
        assert clock.seconds == {"out": 23, "in": 3}
        assert clock.cpu_seconds == {"out": 46, "in": 6}
        assert clock.phase is None
    assert not vars(worker)


def report() -> Report:
    rows: list[dict[str, Any]] = [
        {"way": "baseline", "median, s": 12.3456, "bytes": 1234567, "note": None},
        {"way": "ours", "median, s": 0.5, "bytes": 1, "note": None},
    ]
    bars = [Bar("speed-up", 24.7, 2.2, "x"), Bar("time", 3.0, 2.5, " s", at_least=False)]
    return Report("dit_step", "A machine", "Two rounds", rows, bars)


def test_report_reads_what_it_wrote_and_says_which_bars_hold(tmp_path: Path) -> None:
    report().save(tmp_path / "a.json")
    assert Report.load(tmp_path / "a.json") == report()
    text = report().markdown()
    assert "| baseline |      12.3 | 1,234,567 |" in text
    assert "- speed-up: 24.7x; bar at least 2.2x: holds" in text
    assert "- time: 3 s; bar at most 2.5 s: missed" in text


def test_readme_is_filled_between_its_marks(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    marks = "<!-- begin dit_step -->\nstale\n<!-- end dit_step -->"
    other = "<!-- begin noise -->\nkept\n<!-- end noise -->"
    readme.write_text(f"before\n{marks}\nbetween\n{other}\n")
    report().save(results / "dit_step.json")
    for _ in range(2):  # filled again, it stays the same
        fill(readme, results)
        text = readme.read_text()
        assert text.startswith("before\n<!-- begin dit_step -->\nA machine. Two rounds.")
        assert text.count("| ours ") == 1
        assert "stale" not in text
        assert text.endswith(f"between\n{other}\n")
    report().save(results / "unknown.json")
    with pytest.raises(ValueError, match="no section for unknown"):
        fill(readme, results)


# ---- the commands -----------------------------------------------------------------------------


def test_scaling_fits_the_exponent() -> None:
    points = [(1.0, 7.0), *((x, 3 * x**1.5) for x in (4.0, 8.0, 16.0))]
    assert scaling.exponent(points) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "module",
    [dit_step, pytest.param(generate, marks=pytest.mark.slow), noise, vae_decode, gpu],
)
def test_command_runs(module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "found.json"
    command = ["--tiny", "--repeats", "1", "--device", "cpu", "--json", str(path)]
    module.main([*command, "--tiled"] if module is vae_decode else command)
    found = Report.load(path)
    assert found.benchmark == module.__name__.rpartition(".")[2]
    assert found.rows
    assert found.markdown() in capsys.readouterr().out
    bars = {dit_step: 3, generate: 1, noise: 0, vae_decode: 1, gpu: 7}
    assert len(found.bars) == bars[module]


@pytest.mark.slow
def test_all_at_once_fill_the_readme(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(report_module.README.read_text(encoding="utf-8"), encoding="utf-8")
    command = ["--tiny", "--repeats", "1", "--only", "scaling"]
    run_all.main([*command, "--readme", str(readme), "--results", str(results)])
    found = Report.load(results / "scaling.json")
    assert found.markdown() in readme.read_text(encoding="utf-8")
    with Image.open(results / "scaling.png") as chart:
        assert chart.format == "PNG"
        assert len(chart.getcolors(1 << 24)) > 2


def test_tiny_runs_do_not_touch_the_real_readme(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run_all.main(["--tiny"])
    assert "--tiny measures nothing" in capsys.readouterr().err


def test_the_readme_has_a_section_for_every_benchmark() -> None:
    sections = {match[2] for match in SECTION.finditer(report_module.README.read_text())}
    alone = {"gpu", "released_size", "against_official", "endless", "drift", "diversity"}
    assert sections == alone | {*run_all.CPU_BENCHMARKS}
    for path in report_module.RESULTS.glob("*.json"):
        assert Report.load(path).markdown() in report_module.README.read_text(encoding="utf-8")
