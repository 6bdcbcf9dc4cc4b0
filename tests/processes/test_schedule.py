"""Schedules and grids: the ends, monotony, and the published tables."""

from __future__ import annotations

import math

import pytest
import torch

from denoiserl.processes import (
    VP,
    Cosine,
    Karras,
    Linear,
    Schedule,
    Table,
    betas_cosine,
    betas_linear,
    cosine,
    edm,
    linear,
    time_grid,
    vp,
)

SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "shift": Linear(3.0),
    "low shift": Linear(0.3),
    "cosine": cosine,
    "vp": vp,
    "edm": edm,
    "betas_linear": betas_linear(),
    "betas_scaled": betas_linear(scaled=True),
    "betas_cosine": betas_cosine(),
    "one level": betas_linear(1),
    "two levels": betas_cosine(2),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_is_clean_and_noise_only_grows(name: str, dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 4001, dtype=dtype)
    a, s = SCHEDULES[name](t)
    assert a.dtype == s.dtype == dtype and bool(a.isfinite().all() and s.isfinite().all())
    assert float(a[0]) == 1 and float(s[0]) == 0
    ratio = s[1:].double() / a[1:].double()
    slack = 1e-12 if dtype == torch.float64 else 1e-3  # float32 rounds neighbours together
    assert bool((ratio[1:] >= ratio[:-1] * (1 - slack)).all()) and float(ratio[-1]) > 2 * float(ratio[1])


@pytest.mark.parametrize("name", ["cosine", "vp", "betas_linear", "betas_scaled", "betas_cosine", "two levels"])
def test_variance_is_preserved(name: str) -> None:
    a, s = SCHEDULES[name](torch.linspace(0, 1, 997, dtype=torch.float64))
    assert torch.allclose(a**2 + s**2, torch.ones(997, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_float32_is_close_to_float64(name: str) -> None:
    t = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    for wide, narrow in zip(SCHEDULES[name](t), SCHEDULES[name](t.float()), strict=True):
        assert float((wide - narrow.double()).abs().div(wide.abs().clamp_min(1e-3)).max()) < 2e-4


def test_a_table_is_its_levels_and_passes_between_them_in_order() -> None:
    table = betas_linear(10)
    signal = torch.tensor(table.signal, dtype=torch.float64)
    levels = torch.arange(1, 11, dtype=torch.float64) / 10
    a, s = table(levels)
    assert torch.allclose(a**2, signal, rtol=1e-12) and torch.allclose(s**2, 1 - signal, rtol=1e-12)
    between, _ = table(levels[:-1] + 0.05)
    assert bool((between < a[:-1]).all()) and bool((between > a[1:]).all())
    beta = 1 - signal[1:] / signal[:-1]  # the levels are the running product of 1 - beta, beta on a straight line
    assert torch.allclose(beta.diff(), beta.diff().mean().expand(8), atol=1e-9)
    assert math.isclose(1 - table.signal[0], 1e-4, rel_tol=1e-9)


@pytest.mark.parametrize("levels", [10, 50, 100, 1000])
def test_tables_are_those_of_diffusers(levels: int) -> None:
    ddpm = pytest.importorskip("diffusers").DDPMScheduler
    for ours, theirs in (
        (betas_cosine(levels), ddpm(levels, beta_schedule="squaredcos_cap_v2")),
        (betas_linear(levels), ddpm(levels, beta_schedule="linear")),
        (betas_linear(levels, 0.00085, 0.012, scaled=True), ddpm(levels, 0.00085, 0.012, "scaled_linear")),
    ):
        assert torch.allclose(torch.tensor(ours.signal), theirs.alphas_cumprod, rtol=2e-5, atol=1e-9)


def test_the_vp_schedule_solves_its_differential_equation() -> None:
    """d log α² / dt = −β(t) with β linear from 0.1 to 20."""
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64, requires_grad=True)
    a, _ = vp(t)
    (slope,) = torch.autograd.grad((2 * a.log()).sum(), t)
    assert torch.allclose(slope, -(0.1 + t * 19.9))


def test_karras_is_a_straight_line_in_the_root() -> None:
    t = torch.linspace(0.1, 1, 20, dtype=torch.float64)
    _, s = Karras(0.01, 10.0, 5.0)(t)
    assert torch.allclose((s ** (1 / 5)).diff().diff(), torch.zeros(18, dtype=torch.float64), atol=1e-12)
    assert math.isclose(float(s[-1]), 10.0, rel_tol=1e-12)


def test_shift_composes_like_odds() -> None:
    """σ/α is multiplied by the shift."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    a, s = Linear(3.0)(t)
    assert torch.allclose(s / a, 3 * t / (1 - t))


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.95, 0.05), (1.0, 0.1), (0.7, 0.3)])
def test_grids_run_down_exactly_from_start_to_end(start: float, end: float, spacing: str) -> None:
    for n in (1, 2, 7, 50):
        times = time_grid(n, start, end, spacing)  # type: ignore[arg-type]
        assert times.dtype == torch.float64 and len(times) == n + 1
        assert float(times[0]) == start and float(times[-1]) == end and bool((times.diff() < 0).all())
    steps = -time_grid(4, 1.0, 0.0, "quadratic").diff()
    assert bool((steps.diff() < 0).all())  # the smallest step is next to the data


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((0,), "at least one step"),
        ((4, 0.5, 0.5), "0 <= end < start <= 1"),
        ((4, 1.2), "0 <= end < start <= 1"),
        ((4, 1.0, -0.1), "0 <= end < start <= 1"),
        ((4, 1.0, 0.0, "cubic"), "spacing is 'uniform' or 'quadratic'"),
    ],
)
def test_impossible_grids_are_refused(given: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        time_grid(*given)


@pytest.mark.parametrize("least", [1e-4, 0.05])
def test_the_cosine_keeps_its_least_signal(least: float) -> None:
    made, t = Cosine(min_alpha=least), torch.linspace(0, 1, 2001, dtype=torch.float64)
    a, s = made(t)
    assert float(a[-1]) == pytest.approx(least, rel=1e-9) and float(a.min()) == float(a[-1])
    assert torch.allclose(a**2 + s**2, torch.ones(2001, dtype=torch.float64), atol=1e-9)
    away = a > 1.01 * least
    angle = torch.acos(a * math.cos(0.008 / 1.008 * math.pi / 2))[away]  # it falls at an even pace in the angle
    assert torch.allclose(angle.diff(), (math.pi / 2 / 1.008 / 2000 * torch.ones(1)).double(), rtol=1e-4)


def test_the_offset_of_the_cosine_is_where_its_angle_begins() -> None:
    a, _ = Cosine(offset=0.1, min_alpha=1e-6)(torch.tensor([0.0, 0.45, 1.0], dtype=torch.float64))
    begin = 0.1 / 1.1 * math.pi / 2
    wanted = [1.0, math.cos(0.55 / 1.1 * math.pi / 2) / math.cos(begin), 1e-6]
    assert a.tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (1.0, 4.0), (3.0, 3.0)])
def test_any_vp_schedule_solves_its_differential_equation(low: float, high: float) -> None:
    t = torch.linspace(0, 1, 50, dtype=torch.float64, requires_grad=True)
    a, s = VP(low, high)(t)
    (slope,) = torch.autograd.grad((2 * a.log()).sum(), t)
    assert torch.allclose(slope, -(low + t * (high - low)).detach())
    a, s = a.detach(), s.detach()
    assert float(a[0]) == 1 and torch.allclose(a**2 + s**2, torch.ones(50).double(), atol=1e-12)
    assert torch.allclose(VP(low, high).inverse(s), t.detach(), atol=1e-7)


def test_betas_are_capped_where_they_were_told_to_be() -> None:
    for cap in (0.3, 0.999):
        signal = torch.tensor([1.0, *betas_cosine(20, cap).signal], dtype=torch.float64)
        beta = 1 - signal[1:] / signal[:-1]
        assert float(beta.max()) == pytest.approx(cap, rel=1e-9) and bool((beta.diff() > -1e-9).all())


def test_betas_are_even_or_even_in_the_root() -> None:
    for scaled, root in ((False, 1.0), (True, 0.5)):
        signal = torch.tensor([1.0, *betas_linear(5, 0.1, 0.4, scaled).signal], dtype=torch.float64)
        beta = (1 - signal[1:] / signal[:-1]) ** root
        assert beta.tolist() == pytest.approx(torch.linspace(0.1**root, 0.4**root, 5).tolist(), rel=1e-6)


def test_log_ratios_between_levels_of_a_table_are_straight_lines_and_below_the_first_sigma_is() -> None:
    table = Table((0.9, 0.6, 0.2))
    t = torch.linspace(1 / 3, 1, 41, dtype=torch.float64)
    a, s = table(t)
    log = (a / s).log()
    assert torch.allclose(log[:21].diff(), log[:21].diff().mean().expand(20), atol=1e-9)
    assert torch.allclose(log[20:].diff(), log[20:].diff().mean().expand(20), atol=1e-9)
    assert (a[[0, 20, 40]] ** 2).tolist() == pytest.approx([0.9, 0.6, 0.2])
    below = torch.linspace(0, 1 / 3, 11, dtype=torch.float64)
    a, s = table(below)
    assert torch.allclose(s, torch.linspace(0, math.sqrt(0.1), 11, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(a**2 + s**2, torch.ones(11, dtype=torch.float64), atol=1e-12)


def test_grids_are_even_or_even_in_the_root_of_what_is_left() -> None:
    assert time_grid(4, 0.9, 0.1).tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])
    times = time_grid(4, 0.9, 0.1, "quadratic")
    assert ((times - 0.1) / 0.8).sqrt().tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-7)


def test_noise_of_edm_is_between_its_ends_and_zero_at_data_alone() -> None:
    t = torch.tensor([0.0, 1e-9, 0.5, 1.0], dtype=torch.float64)
    _, s = Karras(0.02, 10.0, 7.0)(t)
    middle = ((0.02 ** (1 / 7) + 10 ** (1 / 7)) / 2) ** 7
    assert s.tolist() == pytest.approx([0.0, 0.02, middle, 10.0], rel=1e-6)
    assert Karras(0.02, 10.0, 7.0).inverse(s)[0] == 0 and float(Karras(0.02, 10.0, 7.0).inverse(s)[1]) > 0


def test_levels_of_edm_are_the_published_ones() -> None:
    """2206.00364, table 1: from 80 down to 0.002, evenly in the seventh root."""
    levels = edm(time_grid(8))[1]
    wanted = [(80 ** (1 / 7) + i / 8 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(8)]
    assert levels.tolist() == pytest.approx([*wanted, 0.0], rel=1e-9)
