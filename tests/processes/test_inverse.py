"""The time of a noise level: the inverse of every schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from denoiserl import time_grid
from denoiserl.processes import Cosine, Karras, Linear, Table, betas_cosine, betas_linear, cosine, edm, linear, vp

SCHEDULES: dict[str, Any] = {
    "linear": linear,
    "shift 3": Linear(3.0),
    "shift below one": Linear(0.4),
    "cosine": cosine,
    "vp": vp,
    "edm": edm,
    "narrow edm": Karras(0.1, 5.0, 3.0),
    "betas": betas_linear(),
    "latent betas": betas_linear(1000, 0.00085, 0.012, scaled=True),
    "robot betas": betas_cosine(100),
    "one level": Table((0.3,)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_inverse_gives_back_the_time(name: str) -> None:
    """At both ends, between levels, below the first one, and in any order or shape; α then agrees too."""
    schedule = SCHEDULES[name]
    times = torch.cat([time_grid(37), time_grid(500, 0.99), torch.tensor([1e-4, 3e-7], dtype=torch.float64)]).flip(0)[
        :, None
    ]
    alpha, sigma = schedule(times)
    found = schedule.inverse(sigma)
    # σ itself must come back to rounding. The time follows where σ still says something: 1 − σ above 1e-8.
    back = schedule(found)
    assert torch.allclose(back[1], sigma, rtol=1e-9, atol=1e-14)
    assert torch.allclose(back[0], alpha, rtol=1e-4, atol=1e-12)
    clear = (sigma < 1 - 1e-8) if float(sigma.max()) <= 1 else torch.ones_like(sigma, dtype=torch.bool)
    assert torch.allclose(found[clear], times[clear], rtol=1e-5, atol=1e-7)
    assert schedule.inverse(sigma.float()).dtype == torch.float32


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_noise_that_no_time_has_is_refused(name: str) -> None:
    schedule = SCHEDULES[name]
    for bad in (-0.1, 1.001 * float(schedule(torch.ones(()))[1]), float("nan")):
        with pytest.raises(ValueError, match="no time has"):
            schedule.inverse(torch.tensor([0.5, bad]))
    with pytest.raises(ValueError, match=r"between 0 and 0\.002"):
        edm.inverse(torch.tensor([1.0, 0.001, 0.0]))


def test_published_sigmas_become_a_grid() -> None:
    """EDM's own list of levels, and a distilled flow's four, are grids that have exactly these levels."""
    rho, low, high = 7.0, 0.002 ** (1 / 7), 80 ** (1 / 7)
    levels = torch.tensor([*((high + i / 17 * (low - high)) ** rho for i in range(18)), 0.0], dtype=torch.float64)
    times = edm.inverse(levels)
    assert torch.allclose(edm(times)[1], levels, rtol=1e-9) and bool((times.diff() < 0).all())
    four = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0], dtype=torch.float64)
    assert torch.allclose(Linear(3.0).inverse(four), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))


def test_times_of_no_noise_and_of_all_noise_stay_inside_the_chain_whatever_rounds() -> None:
    for offset in torch.linspace(0.001, 0.3, 300).tolist():
        made = Cosine(offset)
        _, sigma = made(torch.tensor([0.0, 1.0], dtype=torch.float64))
        for ends in (sigma, sigma.float()):
            found = made.inverse(ends)
            assert bool((found >= 0).all() and (found <= 1).all())
            assert found.tolist() == pytest.approx([0.0, 1.0], abs=1e-4)  # the least time of the least signal
