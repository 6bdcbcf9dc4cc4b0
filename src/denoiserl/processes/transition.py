"""How a Gaussian process steps back from t to s: the mean's coefficients and the std, for a whole grid at once.

Every transition here has a mean that is linear in the estimate and the state, mean = c₀ x̂₀ + c_x x, so a step costs
two products and a sum. Coefficients are float64 vectors over the grid's steps.

``preserving`` transitions place the noise so that the marginal at s is exact *when the estimate is the true x₀*, for
any std up to σ_s. With the posterior mean in its place the marginal is kept only as the grid is refined, and CPS never
approaches it: it replaces a constant share of noise at each step, so its samples have too little variance.
Euler-Maruyama transitions are what Flow-GRPO and DanceGRPO published: another mean, not the same as preserving.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from denoiserl.processes.schedule import Linear, Schedule


class Coefficients(NamedTuple):
    """mean = c_0 · x̂₀ + c_x · x; std. Each [S] float64. ``learned``: the std comes from the estimate's extra."""

    c_0: Tensor
    c_x: Tensor
    std: Tensor
    learned: bool = False


class GridLevels(NamedTuple):
    """A grid seen through a schedule: times and levels before (t) and after (s) each step, [S] float64 each."""

    t: Tensor
    s: Tensor
    a_t: Tensor
    s_t: Tensor
    a_s: Tensor
    s_s: Tensor


class Transition(Protocol):
    """A frozen record that turns a grid into coefficients."""

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """The coefficients of every step."""
        ...


def preserve(grid: GridLevels, std: Tensor) -> Coefficients:
    """The mean that keeps the marginal: α_s x̂₀ + √(σ_s² − std²) ε̂ with ε̂ = (x − α_t x̂₀)/σ_t."""
    c_x = (grid.s_s**2 - std**2).clamp_min(0).sqrt() / grid.s_t
    return Coefficients(grid.a_s - c_x * grid.a_t, c_x, std)


def _kept(grid: GridLevels) -> Tensor:
    """r = (σ_s α_t)/(α_s σ_t): the noise-to-signal ratio that a step keeps, in [0, 1)."""
    return grid.s_s * grid.a_t / (grid.a_s * grid.s_t)


def _fixed(transition: Transition, grid: GridLevels, schedule: Schedule, what: str) -> Coefficients:
    """The coefficients of a transition whose std does not come from the network."""
    c = transition(grid, schedule)
    if c.learned:
        raise ValueError(f"{what} sets the std, and with_learned_std() learns it: wrap another transition")
    return c


def _at_least(value: float, least: float, what: str) -> None:
    if not value >= least:
        raise ValueError(f"{what} must be at least {least}, not {value}")


@dataclass(frozen=True)
class Ddim:
    """std = η σ_s √(1 − r²). η = 1 is the exact posterior given x₀ (DDPM), η = 0 the ODE (DDIM, 2010.02502)."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        _at_least(self.eta, 0, "eta")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Preserving; the std never exceeds σ_s."""
        std = self.eta * grid.s_s * (1 - _kept(grid) ** 2).clamp_min(0).sqrt()
        return preserve(grid, torch.minimum(std, grid.s_s))


@dataclass(frozen=True)
class Precise:
    """std = σ_s √(1 − r^{η²}) (2605.23522). η = √2 is the exact posterior; the std shrinks with the step size."""

    eta: float = 1.5

    def __post_init__(self) -> None:
        _at_least(self.eta, 0, "eta")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Preserving."""
        return preserve(grid, grid.s_s * (1 - _kept(grid) ** (self.eta**2)).clamp_min(0).sqrt())


@dataclass(frozen=True)
class Cps:
    """Coefficient-preserving sampling: std = σ_s sin(η π/2), a fixed share of fresh noise at each step (2509.05952).

    Exact given the true x₀; with a posterior mean its variance does not approach the data's as the grid is refined.
    """

    eta: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"the share eta of CPS lies in [0, 1], not {self.eta}")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Preserving."""
        return preserve(grid, grid.s_s * math.sin(self.eta * math.pi / 2))


@dataclass(frozen=True)
class EulerMaruyama:
    """The reverse SDE of the rectified flow, as published: dx = [v + g²/(2t) ε̂] dt + g √(−dt) ξ.

    ``flow_sde(a)``: g = a √(t/(1 − t)), with 1 − t₁ below the root for the first step from t = 1, t₁ being the second
    grid time, so that its std is a (2505.05470). A first step whose std would exceed σ_t, because the grid begins just
    below 1, is treated alike. Everywhere else g is lowered where a long step would have more noise than its state: the
    std is at most σ_t (not published). ``dance_sde(eta)``: g = eta (2505.07818). Needs the unshifted-or-shifted linear
    schedule: σ is its time.
    """

    a: float
    constant: bool = False

    def __post_init__(self) -> None:
        _at_least(self.a, 0, "the noise level")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """mean = x + dt [v + g²/(2σ) ε̂], v = (x − x̂₀)/σ, ε̂ = (x − (1 − σ) x̂₀)/σ."""
        if not isinstance(schedule, Linear):
            raise ValueError("flow_sde and dance are defined for the linear schedule (rectified flow): use ddim(eta)")
        now, dt = grid.s_t, grid.s_s - grid.s_t
        if self.constant:
            g = torch.full_like(now, self.a)
        else:
            own = now / (1 - now)
            if not bool(self.a * (own[0] * -dt[0]).sqrt() <= now[0]):  # also 0 · ∞
                if grid.s_s[0] <= 0:
                    raise ValueError("flow_sde needs a second grid time above 0: take at least two steps, or use dance")
                own[0] = now[0] / (1 - grid.s_s[0])
            g = torch.minimum(self.a * own.sqrt(), now / (-dt).sqrt())
        drift = g**2 / (2 * now)
        c_x = 1 + dt / now + dt * drift / now
        c_0 = -dt / now - dt * drift * (1 - now) / now
        return Coefficients(c_0, c_x, g * (-dt).sqrt())


@dataclass(frozen=True)
class MinStd:
    """Raises the std to at least ``floor`` and leaves the mean (DPPO, 2409.00588): every step explores, is scored."""

    transition: Transition
    floor: float

    def __post_init__(self) -> None:
        _at_least(self.floor, 0, "the floor")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """max(std, floor)."""
        c = _fixed(self.transition, grid, schedule, "floored")
        return c._replace(std=c.std.clamp_min(self.floor))


@dataclass(frozen=True)
class CappedStd:
    """Lowers the std to at most ``most``, and to 0 at the last step, leaving the mean: how DPPO evaluates."""

    transition: Transition
    most: float = 0.0

    def __post_init__(self) -> None:
        _at_least(self.most, 0, "the largest std")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """min(std, most); the last step is deterministic."""
        c = _fixed(self.transition, grid, schedule, "quiet")
        std = c.std.clamp_max(self.most)
        return c._replace(std=torch.where(torch.arange(len(std)) == len(std) - 1, torch.zeros_like(std), std))


@dataclass(frozen=True)
class Window:
    """``inside`` at steps first ≤ k < last, ``outside`` elsewhere: stochastic where one learns, an ODE elsewhere.

    One window for a whole group: choosing it per request raises the reward's std inside groups.
    """

    inside: Transition
    first: int
    last: int
    outside: Transition = Ddim(0.0)

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Row by row, one of the two."""
        n = len(grid.t)
        if not 0 <= self.first < self.last <= n:
            raise ValueError(f"the window [{self.first}, {self.last}) does not fit a chain of {n} steps")
        k = torch.arange(n)
        mask = (k >= self.first) & (k < self.last)
        a, b = (_fixed(part, grid, schedule, "window") for part in (self.inside, self.outside))
        return Coefficients(*[torch.where(mask, p, q) for p, q in zip(a[:3], b[:3], strict=True)], learned=False)


@dataclass(frozen=True)
class Decaying:
    """A preserving transition whose std falls linearly along the chain, from its own to ``last`` times its own."""

    transition: Transition
    last: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.last <= 1:
            raise ValueError(f"the last share of the std lies in [0, 1], not {self.last}")

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """The marginal stays exact: the mean is recomputed for the smaller std."""
        c = _fixed(self.transition, grid, schedule, "decaying")
        if not torch.allclose(c.c_x, preserve(grid, c.std).c_x, rtol=1e-9, atol=1e-12):
            raise ValueError("only preserving transitions decay: their mean is recomputed for the smaller std")
        n = len(grid.t)
        weight = torch.linspace(1, self.last, n, dtype=torch.float64) if n > 1 else torch.ones(1, dtype=torch.float64)
        return preserve(grid, weight * c.std)


@dataclass(frozen=True)
class LearnedStd:
    """The ODE's mean with a learned, discardable std, the denoiser's ``extra["std"]``: see ``NoiseInjectedDenoiser``
    (ReinFlow, 2505.22094)."""

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """ddim(0), std from the estimate."""
        return Ddim(0.0)(grid, schedule)._replace(learned=True)


ddim, precise, cps, with_min_std, with_capped_std = Ddim, Precise, Cps, MinStd, CappedStd
window, with_decaying_std, with_learned_std = Window, Decaying, LearnedStd


def flow_sde(a: float = 0.7) -> EulerMaruyama:
    """Flow-GRPO's step: g = a √(t/(1 − t))."""
    return EulerMaruyama(a)


def dance_sde(eta: float = 0.3) -> EulerMaruyama:
    """DanceGRPO's step: g = eta."""
    return EulerMaruyama(eta, constant=True)
