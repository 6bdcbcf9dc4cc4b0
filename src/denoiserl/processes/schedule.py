"""Noise schedules, t ↦ (α_t, σ_t) with x_t = α_t x₀ + σ_t ε, and the time grid.

A schedule is a frozen dataclass that is called with times of any shape and dtype. t = 0 is data (α = 1, σ = 0) and t =
1 is noise. σ/α grows with t. ``inverse`` returns the time of a σ, so that published noise levels become a grid. A
transition adds the joint distribution of two times, which a schedule does not determine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError


class Schedule(Protocol):
    """t [*] ↦ (α_t, σ_t), each [*] in t's dtype."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signal and the noise levels at t."""
        ...


@dataclass(frozen=True)
class Linear:
    """Rectified flow: α = 1 − t, σ = t (2209.03003). ``shift`` s: times become s·t / (1 + (s − 1) t) (2403.03206)."""

    shift: float = 1.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 − t and t, after the shift."""
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return 1 - t, t

    def inverse(self, sigma: Tensor) -> Tensor:
        """Return t = σ/(s − (s − 1) σ). Raise InvalidInputError if a σ is outside [0, 1]."""
        sigma = _inside(sigma, self)
        return sigma / (self.shift - (self.shift - 1) * sigma)


@dataclass(frozen=True)
class Cosine:
    """Variance preserving, ᾱ(t) ∝ cos²((t + s)/(1 + s) · π/2) (2102.09672); α never falls below ``min_alpha``.

    ``min_alpha`` replaces the published cap on β: it keeps eps-prediction meaningful at t = 1.
    """

    offset: float = 0.008
    min_alpha: float = 1e-4

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ = cos(u + d)/cos u and √(1 − ᾱ) = √(sin d · sin(d + 2u))/cos u, without cancellation."""
        u, d = self.offset / (1 + self.offset) * math.pi / 2, t / (1 + self.offset) * (math.pi / 2)
        alpha = ((u + d).cos() / math.cos(u)).clamp(self.min_alpha, 1.0)
        sigma = (d.sin() * (d + 2 * u).sin()).clamp_min(0).sqrt() / math.cos(u)
        return alpha, sigma.clamp_max(math.sqrt(1 - self.min_alpha**2))

    def inverse(self, sigma: Tensor) -> Tensor:
        """Return the least t, from cos(u + d) = √(1 − σ²) cos u.

        Raise InvalidInputError if a σ is outside [0, σ(1)].
        """
        u, s = self.offset / (1 + self.offset) * math.pi / 2, _inside(sigma, self).double()
        over = (s**2 * math.cos(u) ** 2 + math.sin(u) ** 2).sqrt()  # sin(u + d), exact near data where cos is flat
        d = torch.atan2(over, ((1 - s) * (1 + s)).sqrt() * math.cos(u)) - u
        t = d * (1 + self.offset) / (math.pi / 2)
        return t.clamp(0, 1).to(sigma.dtype)


@dataclass(frozen=True)
class VP:
    """Variance preserving with linear β(t) from ``low`` to ``high``: log α = −¼t²(high − low) − ½t·low (2011.13456)."""

    low: float = 0.1
    high: float = 20.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and √(1 − α²), the latter by expm1."""
        log_alpha = -0.25 * t**2 * (self.high - self.low) - 0.5 * t * self.low
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def inverse(self, sigma: Tensor) -> Tensor:
        """Return the t with ¼t²(high − low) + ½t·low = −½ log(1 − σ²).

        Raise InvalidInputError if a σ is outside [0, σ(1)].
        """
        s = _inside(sigma, self).double()
        depth = -0.5 * torch.log1p(-(s**2))
        t = 2 * depth / (0.5 * self.low + (0.25 * self.low**2 + (self.high - self.low) * depth).sqrt())
        return t.to(sigma.dtype)


@dataclass(frozen=True)
class Table:
    """A published table ᾱ_1 ... ᾱ_K of a discrete model; t = k/K is its k-th level and t = 0 is clean data.

    Between levels √ᾱ/√(1 − ᾱ) is interpolated in the logarithm; below the first level linearly in σ.
    ``betas_linear`` and ``betas_cosine`` return the two common tables.
    """

    signal: tuple[float, ...]

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ(t) and √(1 − ᾱ(t))."""
        ratio = self._ratio(t.device)
        place = t.double() * len(self.signal)
        k = (place.floor().long() - 1).clamp(0, max(len(self.signal) - 2, 0))
        part = (place - 1 - k).clamp(0, 1)
        upper = (k + 1).clamp_max(len(self.signal) - 1)
        log_ratio = ratio[k] * (1 - part) + ratio[upper] * part
        sigma = torch.sigmoid(-2 * log_ratio).sqrt() * place.clamp(0, 1)
        alpha = torch.where(place < 1, ((1 - sigma) * (1 + sigma)).sqrt(), torch.sigmoid(2 * log_ratio).sqrt())
        return alpha.to(t.dtype), sigma.to(t.dtype)

    def _ratio(self, device: torch.device) -> Tensor:
        """Return log(α/σ) of every level, float64."""
        abar = torch.tensor(self.signal, dtype=torch.float64, device=device)
        return 0.5 * (abar.log() - (-abar).log1p())

    def inverse(self, sigma: Tensor) -> Tensor:
        """Return the t of a σ, by the same interpolation. Raise InvalidInputError if a σ is outside [0, σ(1)]."""
        s, ratio = _inside(sigma, self).double(), self._ratio(sigma.device)
        first = (-2 * ratio[0]).sigmoid().sqrt()
        if len(ratio) == 1:
            return (s / first).to(sigma.dtype)
        log_ratio = 0.5 * torch.log1p(-(s**2)) - s.log()
        upper = torch.searchsorted(-ratio, -log_ratio).clamp(1, len(ratio) - 1)
        part = (ratio[upper - 1] - log_ratio) / (ratio[upper - 1] - ratio[upper])
        place = torch.where(s < first, s / first, upper + part.clamp(0, 1))
        return (place / len(ratio)).to(sigma.dtype)


def betas_linear(levels: int = 1000, low: float = 1e-4, high: float = 0.02, scaled: bool = False) -> Table:
    """Return the DDPM table (2006.11239); ``scaled`` interpolates √β instead (latent diffusion, 2112.10752)."""
    power = 0.5 if scaled else 1.0
    beta = torch.linspace(low**power, high**power, levels, dtype=torch.float64) ** (1 / power)
    return Table(tuple((1 - beta).cumprod(0).tolist()))


def betas_cosine(levels: int = 100, cap: float = 0.999) -> Table:
    """Return the squared-cosine table with β capped (2102.09672), as in robot diffusion policies (2303.04137)."""
    bar = ((torch.arange(levels + 1, dtype=torch.float64) / levels + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
    beta = (1 - bar[1:] / bar[:-1]).clamp_max(cap)
    return Table(tuple((1 - beta).cumprod(0).tolist()))


@dataclass(frozen=True)
class Karras:
    """Variance exploding, α = 1, σ(t) = (σ_min^{1/ρ} + t (σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ (EDM, 2206.00364); σ(0) = 0."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and σ(t)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigma = (low + t * (high - low)) ** self.rho
        return torch.ones_like(t), torch.where(t == 0, torch.zeros_like(t), sigma)

    def inverse(self, sigma: Tensor) -> Tensor:
        """Return (σ^{1/ρ} − σ_min^{1/ρ})/(σ_max^{1/ρ} − σ_min^{1/ρ}); σ_min is just above t = 0, where σ = 0.

        Raise InvalidInputError if a σ is outside [σ_min, σ_max] and not 0.
        """
        s = _inside(sigma, self).double()
        if bool(((s > 0) & (s < self.sigma_min * (1 - 1e-6))).any()):
            raise InvalidInputError(f"no time has a noise level between 0 and {self.sigma_min}: leave such levels out")
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        t = (s ** (1 / self.rho) - low) / (high - low)
        return torch.where(s == 0, 0.0, t.clamp(1e-12, 1)).to(sigma.dtype)


def _inside(sigma: Tensor, schedule: Schedule) -> Tensor:
    """Return σ, which rounding may have put just above the largest. Raise InvalidInputError where no time has it."""
    most = schedule(torch.ones((), dtype=torch.float64))[1]
    if not bool(((sigma >= 0) & (sigma <= most * (1 + 1e-6))).all()):
        raise InvalidInputError(
            f"the noise levels of this schedule lie in [0, {float(most):g}]: no time has {sigma.tolist()}"
        )
    return torch.minimum(sigma, most.to(sigma))


def require_schedule(schedule: Any) -> None:
    """Raise InvalidInputError unless ``schedule`` can be called with times."""
    if not callable(schedule) or isinstance(schedule, type):
        raise InvalidInputError(
            f"a schedule is a function of time, not {schedule!r}: give linear, cosine, vp or edm of "
            "denoiserl.processes, or your own"
        )


linear, cosine, vp, edm = Linear(), Cosine(), VP(), Karras()


def time_grid(
    n: int, start: float = 1.0, end: float = 0.0, spacing: Literal["uniform", "quadratic"] = "uniform"
) -> Tensor:
    """Return the n + 1 decreasing times of an n-step chain from ``start`` to ``end``, float64.

    All times of chains come from here. ``quadratic`` puts more steps near data: t = end + (start − end) u².
    """
    if not isinstance(n, Integral) or n < 1:
        raise InvalidInputError(f"a chain has a whole number of steps, at least one step, not {n!r}")
    if not 0 <= end < start <= 1:
        raise InvalidInputError(f"times run from start to end with 0 <= end < start <= 1, not from {start} to {end}")
    u = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    if spacing == "quadratic":
        u = u**2
    elif spacing != "uniform":
        raise InvalidInputError(f"spacing is 'uniform' or 'quadratic', not {spacing!r}")
    return end + (start - end) * u
