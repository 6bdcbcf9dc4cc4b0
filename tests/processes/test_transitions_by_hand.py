"""Transitions on grids of one, two and three steps, in Python floats from their published formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from denoiserl.processes import (
    Diffusion,
    cosine,
    cps,
    dance_sde,
    ddim,
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

NAMES = ("c_0", "c_x", "std")


def row(steps: StepTable, k: int) -> list[float]:
    return [float(steps.table[name][k]) for name in NAMES]


@pytest.mark.parametrize(("t", "s"), [(0.8, 0.5), (0.3, 0.1)])
@pytest.mark.parametrize("g", [0.3, 0.9])
def test_euler_maruyama_is_one_step_of_the_reverse_sde(g: float, t: float, s: float) -> None:
    """dx = [v − ½ g² ∇log p] dt + g √|dt| ξ backwards, where ∇log p_t(x) = −ε̂/σ: at any state and estimate."""
    dt = s - t
    step = Diffusion(linear, dance_sde(g)).steps(torch.tensor([t, s]))
    c_0, c_x, std = row(step, 0)
    for x, x0 in ((0.7, -0.4), (-1.2, 2.0)):
        eps = (x - (1 - t) * x0) / t
        velocity, score = eps - x0, -eps / t
        assert c_0 * x0 + c_x * x == pytest.approx(x + (velocity - 0.5 * g**2 * score) * dt, rel=1e-6)
    assert std == pytest.approx(g * math.sqrt(t - s), rel=1e-6)


def test_the_flow_sdes_noise_level_grows_like_the_odds_of_its_time() -> None:
    """g = a √(t/(1 − t)) away from t = 1, whatever the rest of the grid; and the mean is that of this g."""
    times = torch.tensor([0.9, 0.88, 0.5, 0.49, 0.1], dtype=torch.float64)
    flow = Diffusion(linear, flow_sde(0.6)).steps(times)
    for k in range(4):
        t, dt = float(times[k]), float(times[k] - times[k + 1])
        g = min(0.6 * math.sqrt(t / (1 - t)), t / math.sqrt(dt))
        same = Diffusion(linear, dance_sde(g)).steps(times)
        assert row(flow, k) == pytest.approx(row(same, k), rel=1e-9)


@pytest.mark.parametrize("schedule", [linear, vp, cosine], ids=["linear", "vp", "cosine"])
def test_special_cases_of_the_rules_are_each_other(schedule: Any) -> None:
    """No noise is the ODE; CPS of one draws all noise afresh; the exact posterior has two names."""
    times = time_grid(5, 0.95, 0.1)
    ode = Diffusion(schedule, ddim(0.0)).steps(times)
    for rule in (precise(0.0), cps(0.0), with_decaying_std(ddim(0.0)), window(ddim(0.0), 0, 2), with_learned_std()):
        made = Diffusion(schedule, rule).steps(times)
        for name in ("c_0", "c_x"):
            assert torch.allclose(made.table[name], ode.table[name], atol=1e-12)
    fresh = Diffusion(schedule, cps(1.0)).steps(times)
    a, s = schedule(times[1:])
    assert torch.allclose(fresh.table["std"], s, rtol=1e-12)
    assert torch.allclose(fresh.table["c_0"], a, atol=1e-7) and float(fresh.table["c_x"].abs().max()) < 1e-7
    one, other = (Diffusion(schedule, rule).steps(times) for rule in (ddim(1.0), precise(math.sqrt(2))))
    assert all(torch.allclose(one.table[n], other.table[n], rtol=1e-9) for n in NAMES)
    large = Diffusion(schedule, ddim(50.0)).steps(times)  # a std above σ_s has no preserving mean
    assert torch.allclose(large.table["std"], s, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_each_rule_has_its_published_share_of_noise(eta: float) -> None:
    t, s = 0.7, 0.4
    times = torch.tensor([t, s], dtype=torch.float64)
    kept = (s * (1 - t)) / ((1 - s) * t)
    for rule, wanted in (
        (ddim(eta), eta * s * math.sqrt(1 - kept**2)),
        (precise(eta), s * math.sqrt(1 - kept ** (eta * eta))),
        (cps(eta), s * math.sin(eta * math.pi / 2)),
    ):
        assert row(Diffusion(linear, rule).steps(times), 0)[2] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("last", [0.0, 0.25, 1.0])
def test_a_decaying_std_falls_evenly_and_keeps_the_marginal(last: float) -> None:
    for n, shares in ((1, [1.0]), (2, [1.0, last]), (3, [1.0, (1 + last) / 2, last])):
        times = time_grid(n, end=0.1)
        base, low = (Diffusion(vp, rule).steps(times) for rule in (ddim(1.0), with_decaying_std(ddim(1.0), last)))
        (a_t, s_t), (a_s, s_s) = vp(times[:-1]), vp(times[1:])
        wanted = torch.tensor(shares, dtype=torch.float64) * base.table["std"]
        assert torch.allclose(low.table["std"], wanted, rtol=1e-12)
        variance = low.table["c_x"] ** 2 * s_t**2 + low.table["std"] ** 2
        assert torch.allclose(variance, s_s**2, rtol=1e-9)
        assert torch.allclose(low.table["c_0"] + low.table["c_x"] * a_t, a_s, rtol=1e-9)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 3), (2, 4), (0, 4), (3, 4)])
def test_a_window_is_one_rule_inside_and_the_other_outside(first: int, last: int) -> None:
    times = time_grid(4, end=0.1)
    inside, outside, mixed = (
        Diffusion(vp, rule).steps(times) for rule in (ddim(1.0), cps(0.4), window(ddim(1.0), first, last, cps(0.4)))
    )
    for k in range(4):
        assert row(mixed, k) == row(inside if first <= k < last else outside, k)


def test_floors_and_caps_move_the_std_alone() -> None:
    times = time_grid(5, end=0.1)
    base = Diffusion(vp, ddim(1.0)).steps(times)
    for rule, wanted in (
        (with_min_std(ddim(1.0), 0.4), [max(v, 0.4) for v in base.table["std"].tolist()]),
        (with_capped_std(ddim(1.0), 0.4), [min(v, 0.4) for v in base.table["std"].tolist()[:-1]] + [0.0]),
        (with_capped_std(ddim(1.0)), [0.0] * 5),
    ):
        made = Diffusion(vp, rule).steps(times)
        assert made.table["std"].tolist() == wanted and made.dense == tuple(v > 0 for v in wanted)
        assert all(torch.equal(made.table[n], base.table[n]) for n in ("c_0", "c_x"))
    assert 0.4 < float(base.table["std"].max()) and float(base.table["std"].min()) < 0.4


def test_rules_without_a_level_have_the_published_one() -> None:
    """DDPM's posterior, CPS of 0.8, and the noise of Flow-GRPO and of DanceGRPO at t = ½."""
    times = torch.tensor([0.5, 0.25], dtype=torch.float64)
    kept = 0.25 * 0.5 / (0.75 * 0.5)
    for rule, wanted in (
        (ddim(), 0.25 * math.sqrt(1 - kept**2)),
        (precise(), 0.25 * math.sqrt(1 - kept**2.25)),
        (cps(), 0.25 * math.sin(0.4 * math.pi)),
        (flow_sde(), 0.7 * 0.5),
        (dance_sde(), 0.3 * 0.5),
    ):
        assert row(Diffusion(linear, rule).steps(times), 0)[2] == pytest.approx(wanted, rel=1e-9)
    assert (
        Diffusion(linear).steps(times).table["std"].tolist()
        == Diffusion(linear, ddim()).steps(times).table["std"].tolist()
    )
