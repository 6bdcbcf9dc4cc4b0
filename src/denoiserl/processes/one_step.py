"""One decision as a process: the policies of ordinary reinforcement learning (robots, bandits).

There is no noise schedule. All other packages use a Gaussian policy like the rest: it is a chain of one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.precision import run_in_precision
from denoiserl.core.rng import Rng
from denoiserl.core.tree import expand_right
from denoiserl.distributions import Categorical, Delta, Distribution, Gaussian
from denoiserl.processes.base import Noised, Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser, Estimate, require_network


@final
@dataclass(frozen=True)
class OneStep(Process):
    """One decision, drawn from the distribution that the network returns (ordinary reinforcement learning).

    ``law``: ``gaussian`` (mean; std from ``extra["std"]`` or the fixed ``std``) or ``categorical`` (logits). The
    state before the decision is zeros.
    """

    law: Literal["gaussian", "categorical"] = "gaussian"
    std: float | None = None

    def __post_init__(self) -> None:
        if self.law not in ("gaussian", "categorical"):
            raise InvalidInputError(unknown_name_message(self.law, ["gaussian", "categorical"], "law"))

    def steps(self, times: Tensor, std_scale: float = 1.0) -> StepTable:
        """Return the table of one step. ``std_scale`` scales a Gaussian's std: 0 for the mean, the usual evaluation.

        A categorical decision takes 1, or 0 for its most likely choice.
        """
        if len(times) != 2:
            raise InvalidInputError(f"a one-step process has the grid time_grid(1), not {len(times) - 1} steps")
        if std_scale < 0 or (std_scale not in (0, 1) and self.law != "gaussian"):
            raise InvalidInputError(
                f"std_scale is at least 0, and 0 or 1 except for Gaussians, not {std_scale}: leave it at 1"
            )
        table = {} if std_scale == 1 else {"spread": torch.tensor([std_scale], dtype=torch.float64)}
        return StepTable(times.double().cpu(), table, (std_scale > 0,))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Return zeros, with certainty."""
        dtype = torch.float32 if self.law == "gaussian" else torch.int64
        return Delta(torch.zeros(shape, dtype=dtype, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return normals or uniforms shaped like the decision."""
        return ("normal" if self.law == "gaussian" else "uniform"), event

    def noise(self, x0: Tensor, t: Tensor, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Return zeros as x: nothing is left of x₀."""
        return Noised(torch.zeros_like(x0), t, x0, None, loss_mask)

    def renoise(self, x0: Tensor, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Return n equal copies: the likelihood is exact, so one is enough."""
        many = x0[:, None].expand(-1, n, *x0.shape[1:])
        where = None if loss_mask is None else loss_mask[:, None].expand(many.shape)
        return self.noise(many, torch.ones(many.shape[:2], device=x0.device), rng, where)

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return log p(x₀), exactly, [*batch]."""
        estimate = denoise(noised.x, denoise.embed_time(noised.t), context)
        return self._law(estimate, noised.x, noised.t.ndim, noised.mask).log_prob(noised.x0)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return −log p(x₀), [*batch]: behaviour cloning by maximum likelihood."""
        return -self.elbo(denoise, noised, context)

    def _law(
        self, estimate: Estimate, x: Tensor, batch: int, mask: Tensor | None = None, step: Step | None = None
    ) -> Distribution:
        mean = estimate.mean
        if self.law == "categorical":
            if step is not None and "spread" in step.table:  # the most likely choice alone
                return Delta(mean.argmax(-1), x.ndim - batch)
            return Categorical(mean, x.ndim - batch, mask)
        std = estimate.extra.get("std")
        if std is None:
            if self.std is None:
                raise InvalidInputError(
                    "a Gaussian policy needs a std: from the network (extra['std']) or OneStep(std=...)"
                )
            std = torch.tensor(self.std, device=mean.device)
        if step is None or "spread" not in step.table:
            return Gaussian(mean, std, x.ndim - batch, has_density=True, mask=mask)
        spread = step.table["spread"]  # a number, or one per row
        std = std * (expand_right(spread, x) if isinstance(spread, Tensor) and spread.ndim else spread)
        return Gaussian(mean, std, x.ndim - batch, has_density=step.dense, mask=mask)

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Distribution:
        """Return the distribution of the decision."""
        batch = step.t.ndim if isinstance(step.t, Tensor) else 1
        return self._law(estimate, x, max(batch, 1), step=step)


class GaussianHead(Denoiser):
    """A Gaussian policy: ``net`` returns the mean; the std of each of ``size`` dimensions is a parameter.

        a ~ N(net(c), diag(σ²)),   σ² = min_std² + exp(2 θ),   θ [size] does not depend on the state

    The floor ``min_std`` keeps exploration and ratios finite, and is smooth, so the gradient never vanishes abruptly.
    ``std`` is the initial σ. Perceptrons need no time: ``MLP(..., time=0)``; with ``zero=True`` the mean starts at 0.
    """

    def __init__(self, net: nn.Module, size: int, std: float = 1.0, min_std: float = 0.0) -> None:
        super().__init__()
        require_network(net)
        if not 0 <= min_std < std:
            raise InvalidInputError(
                f"std starts above its floor: 0 <= min_std < std, not min_std={min_std} and std={std}"
            )
        self.config = {"net": net, "size": size, "std": std, "min_std": min_std}
        self.net, self.min_std = net, min_std
        self.log_std = nn.Parameter(torch.full((size,), 0.5 * math.log(std**2 - min_std**2)))

    @property
    def std(self) -> Tensor:
        """Return σ [size]."""
        return (self.min_std**2 + (2 * self.log_std).exp()).sqrt()

    def embed_condition(self, cond: Any) -> Any:
        """Return the network's own embedding of the condition."""
        return self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]

    def embed_time(self, t: Tensor) -> Any:
        """Return the network's own embedding of the times."""
        return self.net.embed_time(t) if hasattr(self.net, "embed_time") else t  # type: ignore[operator]

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """Return the mean, and ``extra["std"]`` expanded to its shape."""
        mean = run_in_precision(self.net, x, clock, context).float()
        if mean.shape[-1] != len(self.log_std):
            raise InvalidInputError(
                f"the network returns {mean.shape[-1]} numbers on its last axis, the head has {len(self.log_std)}: "
                "make them equal"
            )
        return Estimate(mean, {"std": self.std.float().expand(mean.shape)})


class CategoricalHead(Denoiser):
    """A policy of discrete actions: ``net`` returns logits [B, H, n] of a chunk of H actions with n choices each.

    a ~ softmax(net(c)),   decisions [B, H, 1] of whole numbers 0 ... n − 1
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        require_network(net)
        self.config = {"net": net}
        self.net = net

    def embed_condition(self, cond: Any) -> Any:
        """Return the network's own embedding of the condition."""
        return self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]

    def embed_time(self, t: Tensor) -> Any:
        """Return the network's own embedding of the times."""
        return self.net.embed_time(t) if hasattr(self.net, "embed_time") else t  # type: ignore[operator]

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """Return the logits [B, H, 1, n]."""
        return Estimate(run_in_precision(self.net, x.float(), clock, context).float().unsqueeze(-2))
