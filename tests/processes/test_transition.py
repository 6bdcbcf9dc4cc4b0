"""How chains step back: marginals, the exact posterior, orders of convergence, and limits as they are."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl.processes import (
    Diffusion,
    Linear,
    Schedule,
    betas_linear,
    cosine,
    cps,
    dance_sde,
    ddim,
    edm,
    flow_sde,
    linear,
    precise,
    time_grid,
    vp,
    window,
    with_capped_std,
    with_decaying_std,
    with_learned_std,
    with_min_std,
)
from denoiserl.processes.base import StepTable

SCHEDULES: dict[str, Schedule] = {
    "linear": linear, "shift": Linear(3.0), "cosine": cosine, "vp": vp, "edm": edm, "table": betas_linear(),
}  # fmt: skip
PRESERVING: dict[str, Any] = {
    "ode": ddim(0.0), "ddim .3": ddim(0.3), "ddim 1": ddim(1.0), "ddim 1.7": ddim(1.7), "cps .3": cps(0.3),
    "cps .8": cps(0.8), "precise": precise(1.5), "precise 1": precise(1.0),
    "decaying": with_decaying_std(ddim(1.0), 0.1), "decaying cps": with_decaying_std(cps(0.7)),
    "window": window(ddim(1.0), 1, 4), "window of cps": window(cps(0.5), 0, 2),
}  # fmt: skip


def levels(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, s = schedule(times)
    return a[:-1], s[:-1], a[1:], s[1:]


def table(steps: StepTable) -> tuple[Tensor, Tensor, Tensor]:
    return steps.table["c_0"], steps.table["c_x"], steps.table["std"]


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize("rule", PRESERVING)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_marginal_is_kept_given_the_true_data(name: str, rule: str, spacing: Any) -> None:
    """With x̂₀ = x₀: E[y | x₀] = (c_0 + c_x α_t) x₀ must be α_s x₀, and c_x² σ_t² + std² must be σ_s²."""
    for n in (5, 12):
        for times in (time_grid(n, spacing=spacing), time_grid(n, 0.9, 0.05, spacing)):
            steps = Diffusion(SCHEDULES[name], PRESERVING[rule]).steps(times)
            a_t, s_t, a_s, s_s = levels(SCHEDULES[name], times)
            c_0, c_x, std = table(steps)
            assert torch.allclose(c_0 + c_x * a_t, a_s, rtol=0, atol=1e-11 * float(s_t.max()))
            assert torch.allclose(c_x**2 * s_t**2 + std**2, s_s**2, rtol=1e-9, atol=1e-12)
            assert bool((std <= s_s * (1 + 1e-12)).all())


@pytest.mark.parametrize("name", SCHEDULES)
def test_eta_one_is_the_exact_posterior(name: str) -> None:
    """q(x_s | x_t, x_0) by Bayes, x_t = (α_t/α_s) x_s + noise: precision-weighted mean of two Gaussians in x_s."""
    times = time_grid(9)
    a_t, s_t, a_s, s_s = levels(SCHEDULES[name], times[:-1])  # at s = 0 the posterior is a point
    forward = a_t / a_s
    noise = s_t**2 - (forward * s_s) ** 2  # variance of x_t given x_s
    precision = 1 / s_s**2 + forward**2 / noise
    c_0, c_x, std = (c[:-1] for c in table(Diffusion(SCHEDULES[name], ddim(1.0)).steps(times)))
    assert torch.allclose(std**2, 1 / precision, rtol=1e-8)
    assert torch.allclose(c_x, forward / noise / precision, rtol=1e-8, atol=1e-12)
    assert torch.allclose(c_0, a_s / s_s**2 / precision, rtol=1e-8)
    same = Diffusion(SCHEDULES[name], precise(math.sqrt(2))).steps(times)
    for ours, theirs in zip(table(same), (c_0, c_x, std), strict=True):
        assert torch.allclose(ours[:-1], theirs, rtol=1e-7, atol=1e-10)


def terminal(schedule: Schedule, transition: Any, n: int, spread: float = 1.0, **more: Any) -> tuple[float, float]:
    """Mean and std of the sample for data N(1, spread²) and the exact posterior mean: the chain's recursion."""
    times = time_grid(n, **more)
    steps = Diffusion(schedule, transition).steps(times)
    a, s = schedule(times[:-1])
    c_0, c_x, std = table(steps)
    gain = a * spread**2 / (a**2 * spread**2 + s**2)  # x̂₀ = μ + gain (x − α μ)
    mean, var = float(a[0]), float(a[0] ** 2 * spread**2 + s[0] ** 2)  # begins at the true marginal
    rows = zip(*(v.tolist() for v in (c_0 * gain + c_x, c_0 * (1 - gain * a), std**2)), strict=True)
    for slope, shift, fresh in rows:
        mean, var = shift + slope * mean, slope**2 * var + fresh
    return mean, math.sqrt(var)


MEASURED = {
    "linear 10": (linear, 10, (0.880, 0.964, 0.888, 0.723, 0.804, 0.841, 0.798)),
    "linear 20": (linear, 20, (0.937, 0.990, 0.942, 0.762, 0.890, 0.917, 0.884)),
    "linear 50": (linear, 50, (0.975, 0.999, 0.977, 0.787, 0.952, 0.964, 0.949)),
    "shift 10": (Linear(3.0), 10, (0.834, 0.895, 0.839, 0.685, 0.739, 0.783, 0.730)),
    "shift 50": (Linear(3.0), 50, (0.966, 0.980, 0.969, 0.773, 0.923, 0.942, 0.921)),
}
RULES = (ddim(0.0), flow_sde(0.7), dance_sde(0.3), cps(0.8), ddim(1.0), precise(1.0), precise(1.5))


@pytest.mark.parametrize("row", MEASURED)
def test_terminal_std_is_what_was_measured_elsewhere(row: str) -> None:
    """Published figures of an independent Monte Carlo: data std 1, exact velocity."""
    schedule, n, wanted = MEASURED[row]
    for rule, value in zip(RULES, wanted, strict=True):
        assert abs(terminal(schedule, rule, n)[1] - value) < 4e-3, rule


@pytest.mark.parametrize("rule", [ddim(0.0), dance_sde(0.3), ddim(1.0), ddim(0.5), precise(1.0), precise(1.5)], ids=str)
@pytest.mark.parametrize("spread", [0.5, 1.0, 1.5])
def test_the_error_of_the_std_falls_at_order_one(rule: Any, spread: float) -> None:
    sizes = (100, 200, 400, 800)
    errors = [abs(terminal(linear, rule, n, spread)[1] - spread) for n in sizes]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[-1] < 0.01 and all(0.85 < order < 1.2 for order in orders), orders
    mean_errors = [abs(terminal(linear, rule, n, spread)[0] - 1) for n in sizes]
    assert mean_errors[-1] < 0.01 and mean_errors[-1] <= mean_errors[0] + 1e-12


@pytest.mark.parametrize("schedule", [cosine, vp], ids=["cosine", "vp"])
@pytest.mark.parametrize("rule", [ddim(0.0), ddim(1.0), precise(1.5)], ids=str)
def test_variance_preserving_chains_converge_too(schedule: Schedule, rule: Any) -> None:
    errors = [abs(terminal(schedule, rule, n, 0.5)[1] - 0.5) for n in (200, 400, 800)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


@pytest.mark.parametrize(("a", "low", "high"), [(0.7, 0.4, 0.6), (1.0, 0.8, 1.1)])
def test_flow_sde_converges_at_the_square_of_its_noise_level(a: float, low: float, high: float) -> None:
    """g is singular at t = 1: what the first steps inject is forgotten like n^(-a²), slower than a step's order."""
    errors = [terminal(linear, flow_sde(a), n)[1] - 1 for n in (4000, 16_000, 64_000)]
    assert 0 < errors[2] < 1e-3
    orders = [math.log(p / q, 4) for p, q in pairwise(errors)]
    assert all(low < order < high for order in orders), orders


def test_cps_approaches_a_limit_that_is_not_the_data() -> None:
    """A constant share of fresh noise at each step: too little variance however fine the grid."""
    std = [terminal(linear, cps(0.8), n)[1] for n in (100, 1000, 10_000)]
    assert abs(std[2] - std[1]) < 2e-3  # it has converged
    assert 0.79 < std[2] < 0.82  # and not to 1
    share = [1 - terminal(linear, cps(eta), 4000)[1] for eta in (0.0, 0.4, 0.8)]
    assert share[0] < 1e-3 < share[1] < share[2]


@pytest.mark.parametrize("schedule", [linear, cosine, vp, edm], ids=["linear", "cosine", "vp", "edm"])
def test_the_ode_converges_to_the_flow_at_order_one(schedule: Schedule) -> None:
    """The flow of Gaussian data is known: (x − α μ)/√(α² s² + σ²) is constant along it."""
    spread, mean = 0.6, 0.7

    def end(n: int) -> float:
        times = time_grid(n, 1.0, 0.1)
        steps = Diffusion(schedule, ddim(0.0)).steps(times)
        a, s = schedule(times)
        x = a[0] * mean + 1.3 * (a[0] ** 2 * spread**2 + s[0] ** 2).sqrt()
        for k, (c_0, c_x, _) in enumerate(zip(*table(steps), strict=True)):
            guess = mean + a[k] * spread**2 / (a[k] ** 2 * spread**2 + s[k] ** 2) * (x - a[k] * mean)
            x = c_0 * guess + c_x * x
        return float((x - a[-1] * mean) / (a[-1] ** 2 * spread**2 + s[-1] ** 2).sqrt()) - 1.3

    errors = [abs(end(n)) for n in (160, 320, 640, 1280)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.9 < slope < 1.1 for slope in slopes), slopes


@pytest.mark.parametrize("rule", [flow_sde(0.7), flow_sde(0.3), dance_sde(0.3)], ids=str)
def test_euler_maruyama_keeps_the_marginal_to_first_order_in_the_step(rule: Any) -> None:
    """Given x₀ the error of mean and variance of one step is O(dt²): per unit of time it vanishes with dt."""
    ratio = []
    for dt in (0.02, 0.01, 0.005):
        for t in (0.8, 0.5, 0.3):
            times = torch.tensor([t, t - dt, t - 2 * dt], dtype=torch.float64)
            c_0, c_x, std = (float(c[0]) for c in table(Diffusion(linear, rule).steps(times)))
            mean = c_0 + c_x * (1 - t) - (1 - t + dt)
            var = (c_x * t) ** 2 + std**2 - (t - dt) ** 2
            ratio.append((abs(mean) / dt**2, abs(var) / dt**2))
    assert all(m < 1 and v < 5 for m, v in ratio)
    # the mean is exact: the noise of the state that the drift pulls at has mean zero given x₀
    assert all(m * 0.02**2 < 1e-12 for m, _ in ratio)


def test_flow_sde_and_dance_have_their_published_noise() -> None:
    times = time_grid(8)
    flow, constant = (table(Diffusion(linear, rule).steps(times))[2] for rule in (flow_sde(0.7), dance_sde(0.3)))
    assert torch.allclose(constant, torch.full((8,), 0.3 * math.sqrt(1 / 8), dtype=torch.float64))
    middle = 4  # t = 1/2: g = a
    assert math.isclose(float(flow[middle]), 0.7 * math.sqrt(1 / 8))
    for steps in (2, 8, 10):  # at t = 1 the second time is below the root alone: a √(1/(1 − t₁)) √(1 − t₁)
        assert math.isclose(float(table(Diffusion(linear, flow_sde(0.7)).steps(time_grid(steps)))[2][0]), 0.7)
    almost = table(Diffusion(linear, flow_sde(0.7)).steps(times - torch.tensor([1e-9] + [0] * 8)))[2]
    assert torch.allclose(almost, flow, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("a", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("start", [1.0, 1 - 1e-7, 0.9999, 0.999, 0.99, 0.95, 0.6])
def test_a_step_never_has_more_noise_than_its_level(start: float, a: float, shift: float) -> None:
    """Grids that begin at 1, just below it or far below it, coarse and fine, and one with two times close to 1."""
    times = [time_grid(n, start=start) for n in (2, 3, 4, 10, 40)] + [torch.tensor([start, 0.9999 * start, 0.4, 0.0])]
    for each in times:
        _, s_t, _, _ = levels(Linear(shift), each.double())
        std = table(Diffusion(Linear(shift), flow_sde(a)).steps(each))[2]
        assert bool((std <= s_t * (1 + 1e-12)).all()) and bool((std > 0).all())


def test_a_grid_that_begins_just_below_one_is_the_one_that_begins_there() -> None:
    whole = table(Diffusion(linear, flow_sde(0.7)).steps(time_grid(4)))
    for start in (1 - 1e-7, 0.9999, 0.999):
        for near, one in zip(
            table(Diffusion(linear, flow_sde(0.7)).steps(time_grid(4, start=start))), whole, strict=True
        ):
            torch.testing.assert_close(near, one, atol=5e-3, rtol=0.0)


def test_the_floor_raises_the_std_and_leaves_the_mean() -> None:
    """DPPO's rule does not keep the marginal: its variance exceeds σ_s² by floor² − std²."""
    times = time_grid(6)
    base, high = (table(Diffusion(cosine, rule).steps(times)) for rule in (ddim(1.0), with_min_std(ddim(1.0), 0.3)))
    assert torch.equal(base[0], high[0]) and torch.equal(base[1], high[1])
    assert bool((high[2] >= 0.3).all()) and torch.equal(high[2][base[2] > 0.3], base[2][base[2] > 0.3])
    assert Diffusion(cosine, with_min_std(ddim(1.0), 0.3)).steps(times).dense == (True,) * 6
    _, s_t, _, s_s = levels(cosine, times)
    excess = high[1] ** 2 * s_t**2 + high[2] ** 2 - s_s**2
    assert torch.allclose(excess, (0.3**2 - base[2] ** 2).clamp_min(0), atol=1e-12) and float(excess.max()) > 0.01


def test_quiet_lowers_the_std_and_ends_deterministically() -> None:
    times = time_grid(6, end=0.1)
    loud = with_min_std(ddim(1.0), 0.3)
    base, low = (table(Diffusion(cosine, rule).steps(times)) for rule in (loud, with_capped_std(loud, 0.1)))
    assert torch.equal(base[1], low[1]) and bool((low[2] <= 0.1).all())
    assert Diffusion(cosine, with_capped_std(loud, 0.1)).steps(times).dense == (True,) * 5 + (False,)


def test_windows_are_stochastic_inside_only() -> None:
    steps = Diffusion(linear, window(flow_sde(0.7), 2, 4)).steps(time_grid(6))
    assert steps.dense == (False, False, True, True, False, False)
    inside, ode = (table(Diffusion(linear, rule).steps(time_grid(6))) for rule in (flow_sde(0.7), ddim(0.0)))
    for mixed, a, b in zip(table(steps), inside, ode, strict=True):
        assert torch.equal(mixed[2:4], a[2:4]) and torch.equal(mixed[:2], b[:2]) and torch.equal(mixed[4:], b[4:])


def test_decay_falls_to_its_last_share() -> None:
    times = time_grid(5, end=0.05)
    base, low = (
        table(Diffusion(cosine, rule).steps(times))[2] for rule in (ddim(1.0), with_decaying_std(ddim(1.0), 0.2))
    )
    assert torch.allclose(low / base, torch.linspace(1, 0.2, 5, dtype=torch.float64))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [2, 5, 100])
def test_ends_are_finite_and_the_last_step_lands_on_the_estimate(name: str, n: int) -> None:
    for rule in (*PRESERVING.values(), *RULES):
        last = getattr(rule, "last", 0)
        if (isinstance(rule, window) and last > n) or (
            "Euler" in type(rule).__name__ and name not in ("linear", "shift")
        ):
            continue
        steps = Diffusion(SCHEDULES[name], rule).steps(time_grid(n))
        assert all(bool(c.isfinite().all()) for c in table(steps))
        if "Euler" not in type(rule).__name__:  # σ = 0: y = x̂₀
            assert [float(c[-1]) for c in table(steps)] == [1.0, 0.0, 0.0] and not steps.dense[-1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ddim(-0.1), "eta must be at least 0"),
        (lambda: precise(-1.0), "eta must be at least 0"),
        (lambda: cps(1.2), r"lies in \[0, 1\]"),
        (lambda: with_min_std(ddim(), -0.1), "floor must be at least 0"),
        (lambda: flow_sde(-0.1), "noise level must be at least 0"),
        (lambda: with_decaying_std(ddim(), 1.5), r"lies in \[0, 1\]"),
        (lambda: Diffusion(cosine, flow_sde()).steps(time_grid(4)), r"linear schedule.*use ddim"),
        (lambda: Diffusion(linear, flow_sde()).steps(time_grid(1)), "at least two steps, or use dance"),
        (lambda: Diffusion(linear, window(ddim(), 2, 9)).steps(time_grid(4)), "does not fit a chain of 4 steps"),
        (
            lambda: Diffusion(linear, with_decaying_std(flow_sde())).steps(time_grid(4)),
            "only preserving transitions decay",
        ),
        (
            lambda: Diffusion(linear, with_decaying_std(with_min_std(ddim(), 0.3))).steps(time_grid(4)),
            "only preserving transitions decay",
        ),
        (
            lambda: Diffusion(linear, with_decaying_std(window(dance_sde(), 0, 2))).steps(time_grid(4)),
            "only preserving transitions decay",
        ),
        (
            lambda: Diffusion(linear, with_min_std(with_learned_std(), 0.1)).steps(time_grid(4)),
            "wrap another transition",
        ),
        (lambda: Diffusion(linear, window(with_learned_std(), 0, 2)).steps(time_grid(4)), "wrap another transition"),
        (lambda: Diffusion(weight="velocty"), "Did you mean 'velocity'"),  # type: ignore[arg-type]
        (lambda: Diffusion(clip=0.0), "clip must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
