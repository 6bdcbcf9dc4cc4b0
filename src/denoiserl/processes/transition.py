"""Transitions of Gaussian processes from t to s: the mean's coefficients and the std, for a whole grid at once.

Every transition here has a mean that is linear in the estimate and the state, mean = c₀ x̂₀ + c_x x. So a step costs
two products and a sum. Coefficients are float64 vectors over the grid's steps.

*Preserving* transitions keep the marginal at s exact if the estimate is the true x₀, for any std up to σ_s. With the
posterior mean in its place, the marginal is exact only in the limit of a fine grid. CPS has no such limit: it replaces
a constant share of noise at each step, so its samples have too little variance. The Euler-Maruyama transitions of
Flow-GRPO and DanceGRPO have another mean and are not preserving.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.processes.schedule import Linear, Schedule


class Coefficients(NamedTuple):
    """mean = c_0 · x̂₀ + c_x · x; std. Each [S] float64. ``learned``: the std comes from the estimate's extra."""

    c_0: Tensor
    c_x: Tensor
    std: Tensor
    learned: bool = False


class GridLevels(NamedTuple):
    """The times and levels of a grid under a schedule, before (t) and after (s) each step; [S] float64 each."""

    t: Tensor
    s: Tensor
    a_t: Tensor
    s_t: Tensor
    a_s: Tensor
    s_s: Tensor


class Transition(Protocol):
    """A frozen dataclass that computes the coefficients of a grid."""

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return the coefficients of every step."""
        ...


def preserve(grid: GridLevels, std: Tensor) -> Coefficients:
    """Return the mean that keeps the marginal: α_s x̂₀ + √(σ_s² − std²) ε̂ with ε̂ = (x − α_t x̂₀)/σ_t."""
    c_x = (grid.s_s**2 - std**2).clamp_min(0).sqrt() / grid.s_t
    return Coefficients(grid.a_s - c_x * grid.a_t, c_x, std)


def _kept(grid: GridLevels) -> Tensor:
    """Return r = (σ_s α_t)/(α_s σ_t), the share of the noise-to-signal ratio that a step keeps, in [0, 1)."""
    return grid.s_s * grid.a_t / (grid.a_s * grid.s_t)


def _fixed(transition: Transition, grid: GridLevels, schedule: Schedule, what: str) -> Coefficients:
    """Return the coefficients of a transition. Raise InvalidInputError if its std comes from the network."""
    c = transition(grid, schedule)
    if c.learned:
        raise InvalidInputError(f"{what} sets the std, and with_learned_std() learns it: wrap another transition")
    return c


def _at_least(value: float, least: float, what: str) -> None:
    if not isinstance(value, Real) or not least <= value < math.inf:
        raise InvalidInputError(f"{what} must be at least {least}, and a finite number, not {value!r}")


def require_transition(transition: Any) -> None:
    """Raise InvalidInputError unless ``transition`` can be called with a grid."""
    if not callable(transition) or isinstance(transition, type):
        raise InvalidInputError(f"a transition is made by ddim(eta), flow_sde(a) or their kin, not {transition!r}")


@dataclass(frozen=True)
class Ddim:
    """std = η σ_s √(1 − r²). η = 1 is the exact posterior given x₀ (DDPM), η = 0 the ODE (DDIM, 2010.02502)."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        _at_least(self.eta, 0, "eta")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return preserving coefficients; the std never exceeds σ_s."""
        std = self.eta * grid.s_s * (1 - _kept(grid) ** 2).clamp_min(0).sqrt()
        return preserve(grid, torch.minimum(std, grid.s_s))


@dataclass(frozen=True)
class Precise:
    """std = σ_s √(1 − r^{η²}) (2605.23522). η = √2 is the exact posterior; the std shrinks with the step size."""

    eta: float = 1.5

    def __post_init__(self) -> None:
        _at_least(self.eta, 0, "eta")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return preserving coefficients."""
        return preserve(grid, grid.s_s * (1 - _kept(grid) ** (self.eta**2)).clamp_min(0).sqrt())


@dataclass(frozen=True)
class Cps:
    """Coefficient-preserving sampling: std = σ_s sin(η π/2), a fixed share of fresh noise at each step (2509.05952).

    Exact given the true x₀; with a posterior mean its variance does not approach the data's as the grid is refined.
    """

    eta: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InvalidInputError(f"the share eta of CPS lies in [0, 1], not {self.eta}")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return preserving coefficients."""
        return preserve(grid, grid.s_s * math.sin(self.eta * math.pi / 2))


@dataclass(frozen=True)
class EulerMaruyama:
    """The reverse SDE of the rectified flow, as published: dx = [v + g²/(2t) ε̂] dt + g √(−dt) ξ.

    ``flow_sde(a)``: g = a √(t/(1 − t)) (2505.05470). The first step from t = 1 has 1 − t₁ below the root, where t₁ is
    the second grid time. So its std is a. The same holds for a first step whose std would exceed σ_t because the grid
    begins just below 1. At other steps the std is capped at σ_t, the noise of the state (not published).
    ``dance_sde(eta)``: g = eta (2505.07818). Only for the linear schedule, shifted or not: σ is its time.
    """

    a: float
    constant: bool = False

    def __post_init__(self) -> None:
        _at_least(self.a, 0, "the noise level")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return the coefficients of mean = x + dt [v + g²/(2σ) ε̂], v = (x − x̂₀)/σ, ε̂ = (x − (1 − σ) x̂₀)/σ."""
        if not isinstance(schedule, Linear):
            raise InvalidInputError("flow_sde and dance_sde need the linear schedule (rectified flow): use ddim(eta)")
        now, dt = grid.s_t, grid.s_s - grid.s_t
        if self.constant:
            g = torch.full_like(now, self.a)
        else:
            own = now / (1 - now)
            if not bool(self.a * (own[0] * -dt[0]).sqrt() <= now[0]):  # also 0 · ∞
                if grid.s_s[0] <= 0:
                    raise InvalidInputError(
                        "flow_sde needs a second grid time above 0: take at least two steps, or use dance_sde"
                    )
                own[0] = now[0] / (1 - grid.s_s[0])
            g = torch.minimum(self.a * own.sqrt(), now / (-dt).sqrt())
        drift = g**2 / (2 * now)
        c_x = 1 + dt / now + dt * drift / now
        c_0 = -dt / now - dt * drift * (1 - now) / now
        return Coefficients(c_0, c_x, g * (-dt).sqrt())


@dataclass(frozen=True)
class MinStd:
    """Raise the std to at least ``floor`` and keep the mean (DPPO, 2409.00588): every step gets a density."""

    transition: Transition
    floor: float

    def __post_init__(self) -> None:
        require_transition(self.transition)
        _at_least(self.floor, 0, "the floor")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return the coefficients with max(std, floor)."""
        c = _fixed(self.transition, grid, schedule, "with_min_std")
        return c._replace(std=c.std.clamp_min(self.floor))


@dataclass(frozen=True)
class CappedStd:
    """Lower the std to at most ``max_std``, and to 0 at the last step, and keep the mean: DPPO's evaluation."""

    transition: Transition
    max_std: float = 0.0

    def __post_init__(self) -> None:
        require_transition(self.transition)
        _at_least(self.max_std, 0, "the largest std")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return the coefficients with min(std, max_std), and 0 at the last step."""
        c = _fixed(self.transition, grid, schedule, "with_capped_std")
        std = c.std.clamp_max(self.max_std)
        return c._replace(std=torch.where(torch.arange(len(std)) == len(std) - 1, torch.zeros_like(std), std))


@dataclass(frozen=True)
class Window:
    """``inside`` at steps first ≤ k < last, ``outside`` elsewhere: stochastic steps to learn from, an ODE elsewhere.

    Use one window for a whole group: a window per sample raises the reward's std inside groups.
    """

    inside: Transition
    first: int
    last: int
    outside: Transition = Ddim(0.0)

    def __post_init__(self) -> None:
        require_transition(self.inside)
        require_transition(self.outside)

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return the coefficients of ``inside`` or ``outside``, step by step."""
        n = len(grid.t)
        if not 0 <= self.first < self.last <= n:
            raise InvalidInputError(f"the window [{self.first}, {self.last}) does not fit a chain of {n} steps")
        k = torch.arange(n)
        mask = (k >= self.first) & (k < self.last)
        a, b = (_fixed(part, grid, schedule, "window") for part in (self.inside, self.outside))
        return Coefficients(*[torch.where(mask, p, q) for p, q in zip(a[:3], b[:3], strict=True)], learned=False)


@dataclass(frozen=True)
class Decaying:
    """A preserving transition whose std is scaled by a factor that falls linearly, from 1 to ``last``."""

    transition: Transition
    last: float = 0.0

    def __post_init__(self) -> None:
        require_transition(self.transition)
        if not 0 <= self.last <= 1:
            raise InvalidInputError(f"the last share of the std lies in [0, 1], not {self.last}")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return preserving coefficients for the smaller std."""
        c = _fixed(self.transition, grid, schedule, "with_decaying_std")
        if not torch.allclose(c.c_x, preserve(grid, c.std).c_x, rtol=1e-9, atol=1e-12):
            raise InvalidInputError("only preserving transitions decay: their mean is recomputed for the smaller std")
        n = len(grid.t)
        weight = torch.linspace(1, self.last, n, dtype=torch.float64) if n > 1 else torch.ones(1, dtype=torch.float64)
        return preserve(grid, weight * c.std)


@dataclass(frozen=True)
class LearnedStd:
    """The ODE's mean with a learned std, the denoiser's ``extra["std"]``: see ``NoiseInjectedDenoiser``."""

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return the coefficients of ``ddim(0)``; the std comes from the estimate."""
        return Ddim(0.0)(grid, schedule)._replace(learned=True)


ddim, precise, cps, with_min_std, with_capped_std = Ddim, Precise, Cps, MinStd, CappedStd
window, with_decaying_std, with_learned_std = Window, Decaying, LearnedStd


def flow_sde(a: float = 0.7) -> EulerMaruyama:
    """Return Flow-GRPO's transition: g = a √(t/(1 − t))."""
    return EulerMaruyama(a)


def dance_sde(eta: float = 0.3) -> EulerMaruyama:
    """Return DanceGRPO's transition: g = eta."""
    return EulerMaruyama(eta, constant=True)
