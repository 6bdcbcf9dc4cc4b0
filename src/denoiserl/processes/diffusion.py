"""Gaussian diffusion and flow matching: one process for VP, VE and rectified flow.

x_t = α_t x₀ + σ_t ε. The estimate is the posterior mean of x₀: ``GaussianDenoiser`` converts what the network predicts
to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.precision import run_in_precision
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import expand_right
from denoiserl.distributions import Gaussian
from denoiserl.distributions.base import mean, sum_event
from denoiserl.processes.base import Noised, Process, Step, StepTable, draw_stratified_times
from denoiserl.processes.denoiser import Denoiser, Estimate, require_network
from denoiserl.processes.schedule import Schedule, linear, require_schedule
from denoiserl.processes.transition import Ddim, GridLevels, Transition, require_transition

Weight = Literal["velocity", "noise", "data", "min_snr"]
SNR = (1e-5, 1e8)
"""range of signal-to-noise ratios over which an ELBO is integrated; beyond it, float32 errors are mere rounding"""


@lru_cache(maxsize=16)
def even_times(schedule: Schedule, cells: int = 512) -> Tensor:
    """Return ``cells + 1`` increasing times, float64, between which the log of the SNR (α/σ)² falls evenly.

    They cover the part of the range ``SNR`` that the schedule reaches at t in [1e-6, 1].
    """

    def log_snr(t: Tensor) -> Tensor:
        a, s = schedule(t)
        return 2 * (a / s).log()

    ends = log_snr(torch.tensor([1e-6, 1.0], dtype=torch.float64)).clamp(math.log(SNR[0]), math.log(SNR[1]))
    wanted = torch.linspace(float(ends[0]), float(ends[1]), cells + 1, dtype=torch.float64)
    low, high = torch.full_like(wanted, 1e-6), torch.ones_like(wanted)
    for _ in range(60):  # bisection: the SNR falls with t
        middle = (low + high) / 2
        early = log_snr(middle) > wanted
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    return high


@final
@dataclass(frozen=True)
class Diffusion(Process):
    """x_t = α_t x₀ + σ_t ε, stepped back by a transition.

    ``clip``: the estimate is clamped to [−clip, clip] when a chain is run or scored, and never in the loss. The noise
    ε̂ = (x_t − α_t x̂₀)/σ_t of a step is that of the clamped estimate. With ``clip_noise=False`` it is that of the raw
    one, as in DDIM of diffusers, and the mean is α_s clamp(x̂₀) + c_x (x_t − α_t x̂₀).
    ``weight``: weight of x₀'s squared error in the training loss: ``velocity`` 1/σ², ``noise`` (α/σ)², ``data`` 1.
    These give the mean squared error of v-, eps- and x₀-prediction. ``min_snr``: min((α/σ)², ``gamma``), one weight
    for all three (2303.09556).
    """

    schedule: Schedule = linear
    transition: Transition = Ddim(1.0)
    clip: float | None = None
    weight: Weight = "velocity"
    gamma: float = 5.0
    clip_noise: bool = True

    def __post_init__(self) -> None:
        require_schedule(self.schedule)
        require_transition(self.transition)
        if self.weight not in get_args(Weight):
            raise InvalidInputError(unknown_name_message(self.weight, get_args(Weight), "loss weight"))
        if not self.gamma > 0:
            raise InvalidInputError(f"gamma is the largest weight of min_snr and positive, not {self.gamma}")
        if self.clip is not None and not self.clip > 0:
            raise InvalidInputError(f"clip must be positive, not {self.clip}")

    def steps(self, times: Tensor, transition: Transition | None = None) -> StepTable:
        """Return the table of a grid: c_0, c_x, std. ``transition`` overrides the process's (train SDE, eval ODE).

        With ``clip_noise=False``, c_0 = α_s multiplies the clamped estimate and c_raw = −c_x α_t the raw one.
        """
        times = times.double().cpu()
        t, s = times[:-1], times[1:]
        (a_t, s_t), (a_s, s_s) = self.schedule(t), self.schedule(s)
        c = (transition or self.transition)(GridLevels(t, s, a_t, s_t, a_s, s_s), self.schedule)
        table = {"c_0": c.c_0, "c_x": c.c_x, "std": c.std}
        if self.clip is not None and not self.clip_noise:
            table |= {"c_0": a_s, "c_raw": c.c_0 - a_s}
        for name, column in table.items():
            if not bool(column.isfinite().all()):
                raise InvalidInputError(
                    f"the transition gives a {name} that is not finite on this grid: {column.tolist()}"
                )
        dense = tuple([True] * len(t)) if c.learned else tuple(bool(v) for v in c.std > 0)
        if c.learned:
            table.pop("std")
        return StepTable(times, table, dense)

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Gaussian:
        """Return N(0, σ₁²): exact where α₁ = 0, the usual approximation elsewhere."""
        std = self.schedule(torch.ones((), dtype=torch.float64))[1].float().to(device)
        return Gaussian(torch.zeros(shape, device=device), std, len(shape) - 1, has_density=True)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return standard normals shaped like the state."""
        return "normal", event

    def noise(self, x0: Tensor, t: Tensor, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Return α_t x₀ + σ_t ε; factors outside ``loss_mask`` stay clean."""
        rng = as_rng(rng, x0.device)
        eps = rng.normal(*x0.shape)
        a, s = (expand_right(c, x0) for c in self.schedule(t))
        x = a * x0 + s * eps
        return Noised(x if loss_mask is None else torch.where(loss_mask, x, x0), t, x0, eps, loss_mask)

    def _error(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return (x̂₀ − x₀)² per factor."""
        estimate = denoise(noised.x, denoise.embed_time(noised.t), context)
        return (estimate.mean - noised.x0) ** 2

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return w(t) · mean over live factors of (x̂₀ − x₀)², [*batch]; 0 where no factor is live."""
        error = self._error(denoise, noised, context)
        a, s = self.schedule(noised.t)
        snr = (a / s) ** 2
        weight = {"velocity": s**-2, "noise": snr, "data": torch.ones_like(s), "min_snr": snr.clamp_max(self.gamma)}
        return weight[self.weight] * mean(error, error.ndim - noised.t.ndim, noised.mask)

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return ½ SNR'(t) ‖x̂₀ − x₀‖² / p(t), [*batch] (2107.00630, eq. 17).

        Its mean is log p(x₀) up to the constants of both ends. p is the density of the times. It is that of
        ``renoise``, whose ``weight`` is 1/p, or uniform.
        """
        with torch.inference_mode(False), torch.enable_grad():
            t = noised.t.detach().double().clone().requires_grad_()
            a, s = self.schedule(t)
            (slope,) = torch.autograd.grad(((a / s) ** 2).sum(), t)
        error = self._error(denoise, noised, context)
        slope = slope if noised.weight is None else slope * noised.weight
        return 0.5 * slope.float() * sum_event(error, error.ndim - noised.t.ndim, noised.mask)

    def renoise(self, x0: Tensor, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Noise every row n times, [batch, n], at stratified times whose log SNR is uniform.

        There the terms of the ELBO are of one size. At uniform times they grow like 1/t² towards the data.
        """
        rng = as_rng(rng, x0.device)
        u, knots = draw_stratified_times((x0.shape[0], n), rng), even_times(self.schedule).to(x0.device)
        place = u.double() * (len(knots) - 1)
        k = place.long()
        width = knots[k + 1] - knots[k]
        t = (knots[k] + (place - k) * width).float()
        noised = self._at(x0, t, rng, loss_mask)
        return noised._replace(weight=(width * (len(knots) - 1)).float())

    def renoise_uniform(self, x0: Tensor, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Noise every row n times, [batch, n], at stratified uniform times."""
        rng = as_rng(rng, x0.device)
        return self._at(x0, draw_stratified_times((x0.shape[0], n), rng), rng, loss_mask)

    def _at(self, x0: Tensor, t: Tensor, rng: Rng, loss_mask: Tensor | None) -> Noised:
        """Noise every row to its times [batch, n]."""
        many, where = (None if v is None else v[:, None].expand(*t.shape, *x0.shape[1:]) for v in (x0, loss_mask))
        assert many is not None
        return self.noise(many, t, rng, where)

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Gaussian:
        """Return N(c_0 x̂₀ + c_x x, std²), in float32: the same numbers in drawing and in rescoring."""
        mean = raw = estimate.mean
        if self.clip is not None:
            mean = mean.clamp(-self.clip, self.clip)
        c_0, c_x, std, c_raw = step.table["c_0"], step.table["c_x"], step.table.get("std"), step.table.get("c_raw")
        event = x.ndim - 1
        if isinstance(c_0, Tensor) and c_0.ndim:
            event = x.ndim - c_0.ndim
            c_0, c_x = expand_right(c_0, x), expand_right(c_x, x)
            std, c_raw = (None if column is None else expand_right(column, x) for column in (std, c_raw))
        if std is None:
            if "std" not in estimate.extra:
                raise InvalidInputError(
                    "a learned std needs a denoiser with extra['std']: wrap it, NoiseInjectedDenoiser"
                )
            std = estimate.extra["std"]
        elif not isinstance(std, Tensor):
            std = torch.full((), std, dtype=x.dtype, device=x.device)  # a kernel, not a copy from the host
        mean = mean * c_0 + x * c_x
        return Gaussian(mean if c_raw is None else mean + raw * c_raw, std, event, step.dense)


PREDICTIONS = ("v", "eps", "x0", "edm")


class GaussianDenoiser(Denoiser):
    """A raw network as a denoiser of a Gaussian process: converts its output to the posterior mean of x₀.

    ``predicts``: ``v`` (rectified flow: v = ε − x₀, x̂₀ = x − σ v; variance preserving: v = α ε − σ x₀, x̂₀ = α x − σ
    v), ``eps`` (x̂₀ = (x − σ ε)/α), ``x0``, or ``edm``: x̂₀ = c_skip x + c_out F(c_in x) with the preconditioning of
    2206.00364 for data of std ``spread``. The conversion is x̂₀ = p x + q F(r x). Its coefficients depend on time
    alone, so ``embed_time`` computes them once per grid. The result is float32, whatever the network runs in.
    """

    def __init__(self, net: nn.Module, schedule: Schedule = linear, predicts: str = "v", spread: float = 0.5) -> None:
        super().__init__()
        require_network(net)
        require_schedule(schedule)
        if predicts not in PREDICTIONS:
            raise InvalidInputError(unknown_name_message(predicts, PREDICTIONS, "kind of prediction"))
        if predicts == "eps" and float(schedule(torch.ones((), dtype=torch.float64))[0]) <= 0:
            raise InvalidInputError(
                "eps-prediction says nothing about the data where the signal is zero (t = 1): predict v or x0, or use "
                "a schedule that keeps some signal"
            )
        a, s = (float(c) for c in schedule(torch.tensor(0.5, dtype=torch.float64)))
        self.preserving = abs(a * a + s * s - 1) < 1e-6
        if predicts == "v" and not self.preserving and abs(a + s - 1) > 1e-6:
            raise InvalidInputError(
                "v-prediction is defined for rectified flow and variance-preserving schedules: use 'edm'"
            )
        self.net, self.schedule, self.predicts, self.spread = net, schedule, predicts, spread

    @property
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"net": self.net, "schedule": self.schedule, "predicts": self.predicts, "spread": self.spread}

    def embed_condition(self, cond: Any) -> Any:
        """Return the network's own embedding of the condition."""
        return self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]

    def embed_time(self, t: Tensor) -> dict[str, Any]:
        """Return the network's embedding and the coefficients p, q (and r) of the conversion, each shaped like t."""
        a, s = self.schedule(t)
        inner = self.net.embed_time(t) if hasattr(self.net, "embed_time") else t  # type: ignore[operator]
        if self.predicts == "x0":
            return {"net": inner}
        if self.predicts == "eps":
            return {"net": inner, "p": 1 / a, "q": -s / a}
        if self.predicts == "v":
            return {"net": inner, "p": a if self.preserving else torch.ones_like(a), "q": -s}
        d = self.spread
        total = (a * d) ** 2 + s**2
        return {"net": inner, "p": a * d**2 / total, "q": s * d / total.sqrt(), "r": total.rsqrt()}

    def forward(self, x: Tensor, clock: dict[str, Any], context: Any) -> Estimate:
        """Return x̂₀ = p x + q F(r x)."""
        inside = x * _across(clock["r"], x) if "r" in clock else x
        out = run_in_precision(self.net, inside, clock["net"], context)
        extra = {}
        if isinstance(out, tuple):
            out, extra = out
        if out.shape != x.shape:
            raise InvalidInputError(
                f"the network returns {tuple(out.shape)} for a state of {tuple(x.shape)}: they must agree"
            )
        out = out.float()
        if "p" not in clock:
            return Estimate(out, extra)
        return Estimate(x * _across(clock["p"], x) + out * _across(clock["q"], x), extra)


def _across(c: Tensor, x: Tensor) -> Tensor:
    """Return a coefficient [*batch] that broadcasts to x; one number needs no reshape (2 us on a CPU)."""
    return c if c.numel() == 1 else expand_right(c, x)
