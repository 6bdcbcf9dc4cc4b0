"""Worlds with known answers: teaching examples, baselines and references of the tests.

    GaussianWorld   x ~ N(μ, s²)             exact posterior mean, tilted optimum for a linear reward
    MixtureWorld    x ~ Σ w_k N(μ_k, s²)     the same; tilting moves and reweights the modes
    TableWorld      tokens with a table p(x)  exact posterior logits, enumeration, p* ∝ p exp(r/β)
    LQR             linear control            Riccati value and gain, value of any linear policy

For a reference p and a reward r, the KL-regularised objective E[r] - β KL(q ‖ p) has the optimum p* ∝ p exp(r/β).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import expand_right
from denoiserl.processes.denoiser import Denoiser, Estimate

Schedule = Callable[[Tensor], tuple[Tensor, Tensor]]
"""function of times [*batch] that returns (alpha, sigma), each [*batch]: x_t = α x₀ + σ ε"""


class World(Protocol):
    """Data whose posterior mean E[x₀ | x_t] is known."""

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor, context: Any = None) -> Tensor: ...


class Exact(Denoiser):
    """The exact denoiser of a world under a schedule, without parameters."""

    def __init__(self, world: World, schedule: Schedule) -> None:
        super().__init__()
        self.world = world
        self.schedule = schedule

    def forward(self, x: Any, clock: Any, context: Any = None) -> Estimate:
        alpha, sigma = self.schedule(clock)
        return Estimate(self.world.posterior_mean(x, alpha.to(x.dtype), sigma.to(x.dtype), context))


@dataclass(frozen=True)
class GaussianWorld:
    """x ~ N(mean, std² I), with ``mean`` [d]."""

    mean: Tensor
    std: float

    def sample(self, n: int, rng: Rng | int) -> Tensor:
        """Draw data, [n, d]."""
        rng = as_rng(rng)
        return self.mean + self.std * rng.normal(n, len(self.mean))

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor, context: Any = None) -> Tensor:
        """Return E[x₀ | x_t] = μ + α s² (x_t - α μ) / (α² s² + σ²) for states [*batch, d]."""
        alpha, sigma = expand_right(alpha, x), expand_right(sigma, x)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def posterior_var(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return Var(x₀ | x_t) = s² σ² / (α² s² + σ²), the same in every dimension."""
        return self.std**2 * sigma**2 / (alpha**2 * self.std**2 + sigma**2)

    def tilt(self, slope: Tensor, beta: float) -> GaussianWorld:
        """Return the optimum for r(x) = slope · x: N(μ + s² slope / β, s²)."""
        return GaussianWorld(self.mean + self.std**2 * slope / beta, self.std)

    def kl(self, other: GaussianWorld) -> float:
        """Return KL(self ‖ other)."""
        ratio = self.std**2 / other.std**2
        shift = float((self.mean - other.mean).square().sum()) / other.std**2
        return 0.5 * (len(self.mean) * (ratio - 1 - math.log(ratio)) + shift)

    def denoiser(self, schedule: Schedule) -> Exact:
        """Return the exact denoiser under ``schedule``."""
        return Exact(self, schedule)


def mixture_mean(x: Tensor, alpha: Tensor, sigma: Tensor, means: Tensor, std: float, logits: Tensor) -> Tensor:
    """Return E[x₀ | x_t] of Σ_k softmax(logits)_k N(means_k, std²): Gaussian posteriors weighted by responsibilities.

    ``x`` [*batch, d]; ``means`` [M, d]; ``logits`` [M], or [*batch, M] with one row per state.
    """
    alpha, sigma = expand_right(alpha, x)[..., None, :], expand_right(sigma, x)[..., None, :]
    var = alpha**2 * std**2 + sigma**2  # [*batch, 1, 1]
    off = x[..., None, :] - alpha * means  # [*batch, M, d]
    weight = (logits - 0.5 * (off.square() / var).sum(-1)).softmax(-1)
    return (weight[..., None] * (means + alpha * std**2 / var * off)).sum(-2)


@dataclass(frozen=True)
class MixtureWorld:
    """x ~ Σ_k weights_k N(means_k, std² I), with ``means`` [M, d] and ``weights`` [M]."""

    means: Tensor
    weights: Tensor
    std: float

    def sample(self, n: int, rng: Rng | int) -> Tensor:
        """Draw data, [n, d]."""
        rng = as_rng(rng)
        mode = (rng.uniform(n, 1) > self.weights.cumsum(-1)).sum(-1).clamp_max(len(self.means) - 1)
        return self.means[mode] + self.std * rng.normal(n, self.means.shape[1])

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of data [*batch, d]: [*batch]."""
        distance = (x[..., None, :] - self.means).square().sum(-1) / self.std**2
        norm = self.means.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))
        return (self.weights.log() - 0.5 * distance).logsumexp(-1) - norm

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor, context: Any = None) -> Tensor:
        """Return E[x₀ | x_t] for states [*batch, d]."""
        return mixture_mean(x, alpha, sigma, self.means, self.std, self.weights.log())

    def tilt(self, slope: Tensor, beta: float) -> MixtureWorld:
        """Return the optimum for r(x) = slope · x: modes move by s² slope / β, weights are multiplied by exp(slope ·
        μ_k / β).
        """
        weights = (self.weights.log() + self.means @ slope / beta).softmax(-1)
        return MixtureWorld(self.means + self.std**2 * slope / beta, weights, self.std)

    def denoiser(self, schedule: Schedule) -> Exact:
        """Return the exact denoiser under ``schedule``."""
        return Exact(self, schedule)


FLOOR = -1e9
"""the logit of a symbol that a visible token excludes: finite, so that guidance between two such logits is not NaN"""


@dataclass(frozen=True)
class TableWorld:
    """Sequences of ``length`` tokens 0..vocab-1, log-probabilities ``table`` [vocab] * length. The mask is vocab."""

    table: Tensor

    def __post_init__(self) -> None:
        if len(set(self.table.shape)) != 1:
            raise InvalidInputError(
                f"a table has one axis per position, all of the vocabulary's size; got {self.table.shape}"
            )
        if not bool(self.table.isfinite().all()):
            raise InvalidInputError("every sequence must be possible: a posterior given an impossible one is undefined")
        object.__setattr__(self, "table", self.table - self.table.flatten().logsumexp(0))

    @staticmethod
    def random(length: int, vocab: int, rng: Rng | int, spread: float = 1.0) -> TableWorld:
        """Draw a table of normal logits: every position depends on every other."""
        rng = as_rng(rng)
        return TableWorld(spread * rng.normal(*[vocab] * length))

    @property
    def length(self) -> int:
        return self.table.ndim

    @property
    def vocab(self) -> int:
        return self.table.shape[0]

    @property
    def sequences(self) -> Tensor:
        """All sequences [vocab ** length, length], in the order of ``table.flatten()``."""
        axes = [torch.arange(self.vocab)] * self.length
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, self.length)

    def index(self, x: Tensor) -> Tensor:
        """Return the row of ``sequences`` that equals each x [*batch, length]."""
        place = self.vocab ** torch.arange(self.length - 1, -1, -1, device=x.device)
        return (x * place).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of sequences [*batch, length]: [*batch]."""
        return self.table.flatten()[self.index(x)]

    def sample(self, n: int, rng: Rng | int) -> Tensor:
        """Draw data, [n, length]."""
        rng = as_rng(rng)
        cumulative = self.table.flatten().exp().cumsum(0)
        return self.sequences[torch.searchsorted(cumulative, rng.uniform(n)).clamp_max(len(cumulative) - 1)]

    def posterior_logits(self, canvas: Tensor) -> Tensor:
        """Return log p(x_i = v | visible tokens) of canvases [*batch, length]: [*batch, length, vocab].

        A visible position is a point mass on its token.
        """
        every = self.sequences
        hidden = (canvas == self.vocab)[..., None, :]
        agrees = (hidden | (canvas[..., None, :] == every)).all(-1)  # [*batch, N]
        log_p = self.table.flatten().masked_fill(~agrees, -math.inf)
        log_p = log_p - log_p.logsumexp(-1, keepdim=True)
        is_v = torch.nn.functional.one_hot(every, self.vocab).to(log_p.dtype)  # [N, length, vocab]
        return torch.einsum("...n,nlv->...lv", log_p.exp(), is_v).log().clamp_min(FLOOR)

    def tilt(self, reward: Tensor, beta: float) -> TableWorld:
        """Return the optimum p exp(r/β) / Z for rewards [vocab ** length] in the order of ``sequences``."""
        return TableWorld(self.table + reward.reshape(self.table.shape) / beta)

    def total_variation(self, other: TableWorld) -> float:
        """Return ½ Σ |p - q|."""
        return float((self.table.exp() - other.table.exp()).abs().sum() / 2)

    def denoiser(self) -> ExactLogits:
        """Return the exact denoiser of masked canvases."""
        return ExactLogits(self)


class ExactLogits(Denoiser):
    """The exact denoiser of a ``TableWorld``: posterior logits of masked canvases, at any time."""

    def __init__(self, world: TableWorld) -> None:
        super().__init__()
        self.world = world

    def forward(self, x: Any, clock: Any, context: Any = None) -> Estimate:
        return Estimate(self.world.posterior_logits(x))


@dataclass(frozen=True)
class LQR:
    """Linear control with quadratic cost: x' = A x + B u + N(0, noise² I), reward -(xᵀ Q x + uᵀ R u), discount γ."""

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    noise: float = 0.0
    gamma: float = 0.95

    def step(self, x: Tensor, u: Tensor, rng: Rng | int) -> tuple[Tensor, Tensor]:
        """Return the next states [*batch, n] and the rewards [*batch]."""
        rng = as_rng(rng, x.device)
        reward = -((x @ self.Q) * x).sum(-1) - ((u @ self.R) * u).sum(-1)
        return x @ self.A.T + u @ self.B.T + self.noise * rng.normal(*x.shape), reward

    def riccati(self) -> tuple[Tensor, Tensor]:
        """Return (P, K): the optimal policy is u = -K x, and its value is -xᵀ P x - c.

        Value iteration to a fixed point: K = γ (R + γ Bᵀ P B)⁻¹ Bᵀ P A, P = Q + γ Aᵀ P (A - B K).
        """
        A, B, Q, R = (m.double() for m in (self.A, self.B, self.Q, self.R))
        P = Q
        for _ in range(100_000):
            K = self.gamma * torch.linalg.solve(R + self.gamma * B.T @ P @ B, B.T @ P @ A)
            following = Q + self.gamma * A.T @ P @ (A - B @ K)
            if bool((following - P).abs().max() <= 1e-12 * (1 + P.abs().max())):
                return P.to(self.A.dtype), K.to(self.A.dtype)
            P = following
        raise InvalidInputError("the Riccati recursion does not converge: (A, B) cannot be stabilised at this discount")

    def lyapunov(self, K: Tensor) -> Tensor:
        """Return P of the policy u = -K x: P = Q + Kᵀ R K + γ (A - B K)ᵀ P (A - B K), solved as a linear system."""
        A, B, Q, R, K = (m.double() for m in (self.A, self.B, self.Q, self.R, K))
        closed = A - B @ K
        if self.gamma * float(torch.linalg.eigvals(closed).abs().max()) ** 2 >= 1:
            raise InvalidInputError(
                "this gain does not stabilise the system at this discount: its value is minus infinity"
            )
        n = len(A)
        system = torch.eye(n * n, dtype=A.dtype) - self.gamma * torch.kron(closed.T.contiguous(), closed.T.contiguous())
        return torch.linalg.solve(system, (Q + K.T @ R @ K).flatten()).reshape(n, n).to(self.A.dtype)

    def value(self, x: Tensor, K: Tensor | None = None, explore: float = 0.0) -> Tensor:
        """Return V(x) [*batch] of u = -K x + N(0, explore²); K is the optimal one by default.

        V(x) = -xᵀ P x - [γ tr(P (noise² I + explore² B Bᵀ)) + explore² tr R] / (1 - γ).
        """
        P = self.riccati()[0] if K is None else self.lyapunov(K)
        eye = torch.eye(len(self.A))
        spread = self.noise**2 * eye + explore**2 * self.B @ self.B.T
        loss = self.gamma * (P @ spread).trace() + explore**2 * self.R.trace()
        return -((x @ P) * x).sum(-1) - loss / (1 - self.gamma)


def double_integrator(dt: float = 0.2, noise: float = 0.1, gamma: float = 0.95) -> LQR:
    """Return the control of a mass on a line: state (position, velocity), action force."""
    A = torch.tensor([[1.0, dt], [0.0, 1.0]])
    B = torch.tensor([[0.0], [dt]])
    return LQR(A, B, torch.diag(torch.tensor([1.0, 0.1])), 0.1 * torch.eye(1), noise, gamma)
