"""Mean flows: average velocities along straight paths from data to noise, sampled in one call of the network.

x_t = (1 − t) x₀ + t ε, and the velocity of the flow that carries the noise to the data is v(x_t, t) = E[ε − x₀ | x_t].
A mean flow learns its average over an interval of the path instead (MeanFlow, 2505.13447),

    u(x_t, r, t) = 1/(t − r) ∫_r^t v(x_τ, τ) dτ,   so that   x_r = x_t − (t − r) u(x_t, r, t)

exactly, for any length of the interval. Differentiating (t − r) u by t along the path gives the training identity,

    u(x_t, r, t) = v(x_t, t) − (t − r) d/dt u(x_t, r, t),   d/dt u = v · ∂_x u + ∂_t u,

whose derivative is one Jacobian-vector product with the tangent (v, 0, 1) of (x, r, t).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.precision import net_precision, run_in_precision
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import expand_right, tree_map
from denoiserl.distributions import Gaussian
from denoiserl.distributions.base import mean
from denoiserl.processes.base import Noised, Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser, Estimate, require_network
from denoiserl.processes.diffusion import Diffusion
from denoiserl.processes.schedule import linear
from denoiserl.processes.transition import ddim, with_min_std

FLOW = Diffusion(linear, ddim(0.0))
"""the flow whose averages are learned: a mean flow has its steps, its prior and its ELBO"""

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(x, r, t): states [*batch, *event] and times [*batch] to velocities [*batch, *event]"""


def meanflow_target(velocity: Velocity, x: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Return the target of u(x_t, r, t) by the identity: v − (t − r) d/dt u, detached.

    ``velocity`` is u as a function of (x, r, t). ``v`` is the velocity at x_t: the marginal one, or ε − x₀, which has
    it as its mean (u's derivative is linear in it). x, v [B, *event], r, t [B]. It costs one Jacobian-vector product;
    r is held fixed, so its zero tangent costs nothing. Attention is unfused inside, because fused kernels have no
    forward derivative. Raise RunError if a part of the network has none.
    """
    t = t.to(x.dtype)
    try:
        with torch.no_grad(), net_precision(None), sdpa_kernel(SDPBackend.MATH):
            slope = torch.func.jvp(lambda x, t: velocity(x, r, t), (x, t), (v, t.new_ones(t.shape)))[1]
    except RuntimeError as error:
        velocity(x, r, t)  # an error of the network itself is raised unchanged
        raise RunError(
            "a mean flow learns from the network's derivative by forward differentiation, and a part of it has none "
            f"({str(error).splitlines()[0]}): use operations that torch.func.jvp knows, uncompiled"
        ) from error
    return v - expand_right(t - r, x) * slope


class MeanVelocityDenoiser(Denoiser):
    """A raw network as the average velocity u(x_t, r, t) of a mean flow.

    ``net`` has ``embed_time(t, r)`` (``nn.TwoTimeNet`` adds it to a network); without ``embed_time`` it gets
    {"t", "r"}. The estimate is x̂ = x_t − t u(x_t, r, t), the end of the path at that constant velocity. It is linear
    in u, as guidance needs, and at r = t it is the posterior mean of x₀, as for every Gaussian process. A step to s is
    then x_s = (s/t) x_t + (1 − s/t) x̂ = x_t − (t − s) u(x_t, s, t): the ODE step of rectified flow, with an exact
    velocity.

    ``embed_time`` takes the times of a chain: decreasing, each the start of a step to the next one, the last of a step
    to 0. ``embed_time_pair(t, r)`` takes any times. ``extra["r"]`` is the end of an estimate's interval; the process
    refuses steps that end elsewhere. Raise RunError for dropout and compiled networks, whose derivative is wrong or
    does not exist.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        require_network(net)
        for name, part in net.named_modules():
            share = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else 0.0
            share = part.dropout if isinstance(part, nn.MultiheadAttention) else share
            if share > 0:
                raise RunError(
                    f"the network has dropout ({name or type(part).__name__}): a mean flow learns from the network's "
                    "derivative, which must be that of the network that acts: set it to 0"
                )
            if hasattr(part, "_orig_mod"):  # torch.compile; a test of its class would import the compiler
                raise RunError("a compiled network has no forward derivative: give the mean flow the network itself")
        self.config, self.net = {"net": net}, net

    def embed_condition(self, cond: Any) -> Any:
        """Return the network's own embedding of the condition."""
        return self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]

    def embed_time(self, t: Tensor) -> dict[str, Any]:
        """Return the embedding of the grid ``t`` [S] of a chain that ends at 0."""
        if t.ndim != 1 or not bool((t[1:] < t[:-1]).all()):
            raise RunError(
                "embed_time of a mean flow takes the times of a chain, decreasing [S]: for other times give the end of "
                "each interval, embed_time_pair(t, r)"
            )
        return self.embed_time_pair(t, torch.cat([t[1:], t.new_zeros(1)]))

    def embed_time_pair(self, t: Tensor, r: Tensor) -> dict[str, Any]:
        """Return the embedding of intervals from t down to r, both of one shape."""
        inner = self.net.embed_time(t, r) if hasattr(self.net, "embed_time") else {"t": t, "r": r}  # type: ignore[operator]
        return {"net": inner, "t": t, "r": r}

    def velocity(self, x: Tensor, clock: dict[str, Any], context: Any) -> Tensor:
        """Return u, shaped like x, in float32 (bf16 and fp16 outputs are converted)."""
        u = run_in_precision(self.net, x, clock["net"], context)
        if u.shape != x.shape:
            raise InvalidInputError(
                f"the network returns {tuple(u.shape)} for a state of {tuple(x.shape)}: they must agree"
            )
        return u.float() if u.dtype in (torch.bfloat16, torch.float16) else u

    def forward(self, x: Tensor, clock: dict[str, Any], context: Any) -> Estimate:
        """Return x̂ = x − t u, with ``extra["r"]``."""
        ends = clock["r"].expand(len(x))
        return Estimate(x - expand_right(clock["t"], x) * self.velocity(x, clock, context), {"r": ends})


@dataclass(frozen=True)
class InstantaneousDenoiser:
    """A mean flow's denoiser at r = t: the posterior mean of x₀ at any times."""

    denoise: Any

    def embed_time(self, t: Tensor) -> Any:
        """Return the embedding of the pair (t, t)."""
        return self.denoise.embed_time_pair(t, t)

    def __call__(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """Return the posterior mean."""
        return self.denoise(x, clock, context)


@final
@dataclass(frozen=True)
class MeanFlow(Process):
    """x_t = (1 − t) x₀ + t ε, stepped back by average velocities: one call per step, and one step is enough.

    The denoiser is a ``MeanVelocityDenoiser``. It learns at pairs r ≤ t, the ordered pair of two draws whose logit is
    N(``mean``, ``std``²). A share ``same`` (λ) of them has r = t, where the loss is that of flow matching. A share
    ``ends`` is exactly (0, 1), the pair of one-step chains, which is almost never drawn otherwise. ``same=1`` is
    rectified flow.
    """

    same: float = 0.5
    ends: float = 0.0
    mean: float = -0.4
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.same and 0 <= self.ends and self.same + self.ends <= 1):
            raise InvalidInputError(
                f"same and ends are shares of the pairs, together at most 1, not {self.same} and {self.ends}"
            )
        if not self.std > 0:
            raise InvalidInputError(f"the std of the logit of a time is positive, not {self.std}")

    def steps(self, times: Tensor, std: float = 0.0) -> StepTable:
        """Return the table of a grid that ends at 0. ``std``: exploration noise, so that steps have a density."""
        if float(times[-1]) != 0:
            raise InvalidInputError(f"a chain of a mean flow must end at the data, t = 0, not at {float(times[-1]):g}")
        return FLOW.steps(times, with_min_std(ddim(0.0), std))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Gaussian:
        """Return N(0, 1), exactly."""
        return FLOW.prior(shape, device)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return standard normals shaped like the state."""
        return FLOW.noise_shape(event)

    def level(self, p: Tensor) -> Tensor:
        """Return the time below which a share p of single draws lies: σ(mean + std Φ⁻¹(p)), float64."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(p.double()))

    def level_cdf(self, t: Tensor) -> Tensor:
        """Return the share of single draws below t: the inverse of ``level``, float64 (1e-40 at t = 1e-6)."""
        return torch.special.log_ndtr((torch.logit(t.double()) - self.mean) / self.std).exp()

    def noise(self, x0: Tensor, t: Tensor, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Noise data at pairs of times drawn for training.

        ``t`` [*batch], uniform in (0, 1), is the quantile of the larger time. The result has the times themselves,
        ``t`` and ``noise["r"]``. The larger of two draws has the distribution p², so its time is level(√t).
        """
        rng = as_rng(rng, x0.device)
        later, kind = t.double().sqrt(), rng.uniform(*t.shape).to(t.device)
        return self._noised(x0, later, self.level(later).float(), rng, loss_mask, kind)

    def renoise(self, x0: Tensor, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Noise every row n times at the ELBO's stratified times, each with its own r."""
        rng = as_rng(rng, x0.device)
        return self._paired(FLOW.renoise(x0, n, rng, loss_mask), rng)

    def renoise_uniform(self, x0: Tensor, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Noise every row n times at stratified uniform times, each with its own r."""
        rng = as_rng(rng, x0.device)
        return self._paired(FLOW.renoise_uniform(x0, n, rng, loss_mask), rng)

    def _paired(self, plain: Noised, rng: Rng) -> Noised:
        """Add an r to every time: r = t for the share ``same``, and no pair at the ends."""
        kind = rng.uniform(*plain.t.shape).to(plain.t.device)
        kind = torch.where(kind < self.same, kind, 1.0)  # no mass at the ends: the times of ``plain`` have none
        made = self._noised(plain.x0, self.level_cdf(plain.t), plain.t, rng, plain.mask, kind)
        return made._replace(weight=plain.weight)

    def _noised(self, x0: Tensor, place: Tensor, t: Tensor, rng: Rng, loss_mask: Tensor | None, kind: Tensor) -> Noised:
        """Noise to ``t``, whose quantile among single draws is ``place``; ``kind`` [*batch], uniform, chooses the pair.

        Given the larger time the smaller one is a single draw below it.
        """
        r = torch.minimum(self.level(place * rng.uniform(*t.shape).to(t.device)).float(), t)
        r = torch.where(kind < self.same, t, r)
        ends = (kind >= self.same) & (kind < self.same + self.ends)
        t, r = torch.where(ends, 1.0, t), torch.where(ends, 0.0, r)
        noised = FLOW.noise(x0, t, rng, loss_mask)
        eps = noised.noise
        if loss_mask is not None:  # factors that stay clean have no velocity
            assert isinstance(eps, Tensor)
            eps = torch.where(loss_mask, eps, x0)
        return noised._replace(noise={"eps": eps, "r": r})

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return the mean over live factors of (u(x_t, r, t) − sg[v − (t − r) d/dt u])², v = ε − x₀, [*batch].

        It is 0 where no factor is live. Rows with r = t need no derivative and cost as much as flow matching.
        """
        flow, given = _average(denoise), noised.noise
        assert isinstance(given, dict)
        x, t, r, v = noised.x, noised.t, given["r"], given["eps"] - noised.x0
        goal, moving = v, (r < t).nonzero().flatten()
        if len(moving):
            some = tree_map(lambda c: c.detach()[moving] if len(c) == len(t) else c.detach(), context)
            part = meanflow_target(
                lambda x, r, t: flow.velocity(x, flow.embed_time_pair(t, r), some),
                x[moving],
                v[moving],
                r[moving],
                t[moving],
            )
            goal = v.index_copy(0, moving, part)
        error = (flow.velocity(x, flow.embed_time_pair(t, r), context) - goal.detach()) ** 2
        return mean(error, x.ndim - t.ndim, noised.mask)

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return the ELBO term of the flow whose averages are learned, from u(x_t, t, t), [*batch]."""
        return FLOW.elbo(InstantaneousDenoiser(_average(denoise)), noised, context)  # type: ignore[arg-type]

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Gaussian:
        """Return N((s/t) x + (1 − s/t) x̂, std²): the point x − (t − s) u without exploration noise."""
        ends = estimate.extra.get("r")
        if ends is not None and not torch.compiler.is_compiling():
            wanted = step.s if isinstance(step.s, Tensor) else torch.tensor(step.s, device=ends.device)
            if not bool(((ends - wanted.to(ends)).abs() < 1e-5).all()):
                raise RunError(
                    "an average velocity over one time interval cannot make a step over another one: a part of a "
                    "mean flow's chain must run to its end, where t = 0"
                )
        return FLOW.reverse(estimate, x, step)


def _average(denoise: Any) -> MeanVelocityDenoiser:
    """Return ``denoise``. Raise RunError if it is no MeanVelocityDenoiser."""
    if not (hasattr(denoise, "embed_time_pair") and hasattr(denoise, "velocity")):
        raise RunError(
            f"a mean flow is learned by a MeanVelocityDenoiser of a network, not by a {type(denoise).__name__}: wrap it"
        )
    return denoise
