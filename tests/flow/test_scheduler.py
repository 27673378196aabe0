"""Stage mathematics: tables, Euler steps, the jump and its noise, the training path."""

from __future__ import annotations

import pytest
import torch
from golden import golden_cases, load_golden, relative_error

from pyramid_dit.flow.latents import upsample_nearest
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler as Scheduler

TOLERANCE = 1e-6
CONFIGS = [
    {},
    {"gamma": 0.25},
    {"shift": 3.0},
    {"stages": 2, "stage_range": [0, 0.5, 1]},
    {"stages": 4, "stage_range": [0, 0.2, 0.5, 0.8, 1], "gamma": 0.1},
]


def block_covariance(gamma: float) -> torch.Tensor:
    return (1 + gamma) * torch.eye(4, dtype=torch.float64) - gamma


def blocks_of(x: torch.Tensor) -> torch.Tensor:
    """[..., h, w] -> [number of 2x2 blocks, 4], rows of a block first, float64."""
    x = x.double().reshape(-1, x.shape[-2] // 2, 2, x.shape[-1] // 2, 2)
    return x.transpose(2, 3).reshape(-1, 4)


# ---- recorded runs ------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "case"), golden_cases("scheduler", "cases"))
def test_golden_tables(index, case):
    _, tensors = load_golden("scheduler")
    scheduler = Scheduler(**case["config"])
    for name in ("start_sigmas", "end_sigmas", "ori_start_sigmas"):
        actual = getattr(scheduler, name)
        assert actual == pytest.approx(case[name], abs=TOLERANCE), name
    assert torch.tensor(scheduler.timestep_ratios) == pytest.approx(
        torch.tensor(case["timestep_ratios"]), abs=TOLERANCE
    )
    for stage in range(scheduler.config.stages):
        for name in ("timesteps_per_stage", "sigmas_per_stage"):
            reference = tensors[f"{index}.{name}.{stage}"]
            assert relative_error(getattr(scheduler, name)[stage], reference) <= TOLERANCE
    for stage, coefficients in case["jump_alpha_beta"].items():
        actual = scheduler.jump_coefficients(int(stage))
        assert actual == pytest.approx(coefficients, abs=TOLERANCE)


@pytest.mark.parametrize(("index", "case"), golden_cases("scheduler", "cases"))
def test_golden_set_timesteps(index, case):
    _, tensors = load_golden("scheduler")
    scheduler = Scheduler(**case["config"])
    checked = 0
    for name, reference in tensors.items():
        parts = name.split(".")
        if parts[:2] != [str(index), "set_timesteps"]:
            continue
        stage, count = int(parts[2].removeprefix("stage")), int(parts[3].removeprefix("n"))
        scheduler.set_timesteps(count, stage)
        assert relative_error(getattr(scheduler, parts[4]), reference) <= TOLERANCE, name
        checked += 1
    assert checked > 0


# ---- tables -------------------------------------------------------------------------------


def test_default_stages_are_those_of_the_paper():
    # Eq. 26 with K = 3; sigmas are read off at integer steps of 1000, hence the tolerance.
    scheduler = Scheduler()
    assert scheduler.start_sigmas == pytest.approx([1, 0.8, 0.5], abs=1e-3)
    assert scheduler.end_sigmas == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-3)
    assert scheduler.timestep_ratios[0][0] == 0
    assert scheduler.timestep_ratios[-1][1] == 1


@pytest.mark.parametrize(("stage", "start"), [(1, 2 / 3), (2, 1 / 3)])
def test_jump_coefficients_are_those_of_the_paper(stage, start):
    # Eq. 27, gamma 1/3: alpha = (1 + s)/2 and beta = sqrt(3) (1 - s)/2 at the signal s we land on
    scheduler = Scheduler()
    s = 1 - scheduler.start_sigmas[stage]
    expected = ((1 + s) / 2, 3**0.5 * (1 - s) / 2)
    assert scheduler.jump_coefficients(stage) == pytest.approx(expected, abs=1e-12)
    assert scheduler.ori_start_sigmas[stage] == pytest.approx(start, abs=1e-3)


def test_config_survives_saving(tmp_path):
    scheduler = Scheduler(stages=2, stage_range=[0, 0.4, 1], gamma=0.2, shift=2.0)
    scheduler.save_pretrained(tmp_path)
    loaded = Scheduler.from_pretrained(tmp_path)
    assert loaded.start_sigmas == scheduler.start_sigmas
    assert loaded.config.gamma == scheduler.config.gamma


@pytest.mark.parametrize("gamma", [0.0, -1 / 3, 0.34, 1.0, float("nan")])
def test_gamma_out_of_range_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1/3\]"):
        Scheduler(gamma=gamma)


@pytest.mark.parametrize(
    "config",
    [
        {"num_train_timesteps": 0},
        {"shift": 0.0},
        {"stages": 2},
        {"stages": 0, "stage_range": [0]},
        {"stage_range": [0, 0.7, 0.6, 1]},
        {"stage_range": [0.1, 0.3, 0.6, 1]},
        {"stage_range": [0, 0.3, 0.6, 0.9]},
    ],
)
def test_bad_config_is_refused(config):
    with pytest.raises(ValueError, match="must|need"):
        Scheduler(**config)


# ---- Euler steps --------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_steps_with_the_true_velocity_reach_the_end_of_the_stage(num_steps):
    scheduler = Scheduler()
    start, end = torch.randn(2, 1, 4, 1, 4, 4)
    for stage in range(3):
        scheduler.set_timesteps(num_steps, stage)
        x = start
        for timestep in scheduler.timesteps:
            x = scheduler.step(start - end, timestep, x).prev_sample
        torch.testing.assert_close(x, end, rtol=0, atol=1e-6)


def test_step_computes_in_float32_and_leaves_its_arguments_alone():
    scheduler = Scheduler()
    scheduler.set_timesteps(5, 1)
    sample = torch.randn(1, 4, 1, 4, 4)
    velocity = torch.randn(1, 4, 1, 4, 4).bfloat16()
    copies = sample.clone(), velocity.clone()
    (result,) = scheduler.step(velocity, scheduler.timesteps[0], sample, return_dict=False)
    delta = scheduler.sigmas[1] - scheduler.sigmas[0]
    assert torch.equal(result, (sample + delta.float() * velocity.float()).bfloat16())
    assert torch.equal(sample, copies[0])
    assert torch.equal(velocity, copies[1])


def test_steps_out_of_turn_are_refused():
    scheduler = Scheduler()
    x = torch.zeros(1, 4, 1, 4, 4)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 0.0, x)
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, got 0"):
        scheduler.set_timesteps(0, 0)
    with pytest.raises(ValueError, match="stage must be 0 to 2, got 3"):
        scheduler.set_timesteps(1, 3)
    scheduler.set_timesteps(1, 0)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="all 1 steps are taken"):
        scheduler.step(x, scheduler.timesteps[0], x)


# ---- the jump -----------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1 / 3, 0.25, 0.05])
def test_block_noise_covariance(gamma):
    noise = Scheduler(gamma=gamma).sample_block_noise(
        (1, 1, 4, 1000, 1000), generator=torch.Generator().manual_seed(0)
    )
    blocks = blocks_of(noise)  # 10^6 of them
    covariance = blocks.T @ blocks / len(blocks)
    torch.testing.assert_close(covariance, block_covariance(gamma), rtol=0, atol=0.01)
    assert blocks.mean(0).abs().max() < 0.01


@pytest.mark.parametrize("config", CONFIGS)
def test_block_noise_covariance_is_exact(config):
    """The map from white noise is linear: its matrix times its transpose is the covariance."""
    scheduler = Scheduler(**config)
    basis = torch.eye(4, dtype=torch.float64).reshape(4, 2, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyramid_dit.flow.scheduler.randn_tensor", lambda *args, **kwargs: basis)
        matrix = blocks_of(scheduler.sample_block_noise((4, 2, 2), dtype=torch.float64))
    covariance = block_covariance(scheduler.config.gamma)
    torch.testing.assert_close(matrix.T @ matrix, covariance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_jump_from_the_end_of_a_stage_has_the_law_of_the_next_start(config):
    """Mean and full 4x4 block covariance, both in closed form through `jump` itself."""
    scheduler = Scheduler(**config)
    clean = torch.randn(1, 1, 1, 1, 1, dtype=torch.float64)
    no_block_noise = torch.zeros(1, 1, 1, 2, 2, dtype=torch.float64)
    no_noise = torch.zeros_like(clean)
    for stage in range(1, scheduler.config.stages):
        # mean: both noises at 0
        end = scheduler.stage_end(stage - 1, no_noise, clean)
        start = scheduler.stage_start(stage, no_block_noise, clean)
        torch.testing.assert_close(scheduler.jump(end, stage, no_block_noise), start)

        # covariance: one column a source of randomness, the one shared value of a block first
        shared = scheduler.stage_end(stage - 1, torch.ones_like(clean), no_noise)
        columns = blocks_of(scheduler.jump(shared, stage, no_block_noise)).T
        _, beta = scheduler.jump_coefficients(stage)
        covariance = columns @ columns.T + beta**2 * block_covariance(scheduler.config.gamma)
        target = scheduler.start_sigmas[stage] ** 2 * torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close(covariance, target, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stage", [1, 2])
def test_jump_of_white_noise_is_white_at_the_level_of_the_next_start(stage):
    scheduler = Scheduler()
    generator = torch.Generator().manual_seed(stage)
    noise = torch.randn(1, 1, 4, 500, 500, generator=generator)
    end = scheduler.stage_end(stage - 1, noise, torch.zeros_like(noise))
    block_noise = scheduler.sample_block_noise((1, 1, 4, 1000, 1000), generator=generator)
    blocks = blocks_of(scheduler.jump(end, stage, block_noise))
    covariance = blocks.T @ blocks / len(blocks)
    target = scheduler.start_sigmas[stage] ** 2 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(covariance, target, rtol=0, atol=0.01)


def test_block_noise_of_a_list_of_generators_is_that_of_each_alone():
    scheduler = Scheduler()
    together = scheduler.sample_block_noise(
        (2, 4, 1, 8, 8), generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)]
    )
    for row, seed in enumerate((1, 2)):
        alone = scheduler.sample_block_noise(
            (1, 4, 1, 8, 8), generator=torch.Generator().manual_seed(seed)
        )
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


def test_bad_jumps_are_refused():
    scheduler = Scheduler()
    with pytest.raises(ValueError, match="even height and width"):
        scheduler.sample_block_noise((1, 4, 1, 7, 8))
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        scheduler.sample_block_noise((3, 4, 1, 8, 8), generator=[torch.Generator()] * 2)
    with pytest.raises(ValueError, match="stage 0 starts from noise"):
        scheduler.jump_coefficients(0)
    with pytest.raises(ValueError, match="jump noise of shape"):
        scheduler.jump(torch.zeros(1, 4, 1, 4, 4), 1, torch.zeros(1, 4, 1, 4, 4))


# ---- the training path --------------------------------------------------------------------


def test_stage_flow_is_the_straight_path_between_the_ends():
    scheduler = Scheduler()
    noise, clean = torch.randn(2, 2, 4, 3, 8, 8)
    coarser = torch.randn(2, 4, 3, 4, 4)
    for stage in range(3):
        start = scheduler.stage_start(stage, noise, coarser)
        end = scheduler.stage_end(stage, noise, clean)
        for ratio, expected in ((1.0, start), (0.0, end)):
            flow = scheduler.stage_flow(stage, noise, clean, coarser=coarser, ratio=ratio)
            torch.testing.assert_close(flow.sample, expected)
            torch.testing.assert_close(flow.velocity, start - end)
    assert torch.equal(scheduler.stage_start(0, noise), noise)
    assert torch.equal(scheduler.stage_end(2, noise, clean), clean)
    sigma = scheduler.start_sigmas[1]
    torch.testing.assert_close(
        scheduler.stage_start(1, noise, coarser),
        sigma * noise + (1 - sigma) * upsample_nearest(coarser),
    )
    with pytest.raises(ValueError, match="clean latents of stage 0"):
        scheduler.stage_start(1, noise)


def test_stage_position_reads_the_tables():
    scheduler = Scheduler()
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    for stage in range(3):
        position = scheduler.stage_position(uniform, stage)
        table = scheduler.timesteps_per_stage[stage].float()
        assert torch.equal(position.timestep, table[[0, 500, 999]])
        assert position.ratio.shape == (3, 1, 1, 1, 1)
        torch.testing.assert_close(position.ratio.flatten(), torch.tensor([1.0, 0.5, 0.001]))
