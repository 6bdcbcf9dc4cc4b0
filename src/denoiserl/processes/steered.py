"""Steering: a trainable policy chooses the initial noise of a frozen policy.

A deterministic sampler is a function a = G(s, w) of its initial noise w. A distribution of w makes a policy of G: one
step of the chain, the choice of w, has a density. It is run, scored, saved and evaluated like any other policy; G may
be a black box.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import Rng
from denoiserl.core.tree import expand_right, tensors, tree_map
from denoiserl.distributions import Delta, Distribution, Gaussian, Squashed
from denoiserl.processes.base import Noised, Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser, Estimate

DECISION_TIME, SPREAD = 3.0, 2.0
"""times of the decision and of the map from decisions to noise: above t = 1, where the base begins"""
MAPS = ("full", "repeated", "smooth")
FROZEN = "a steered policy is not trained on data, because its base is frozen: train the base, then steer it"

Map = Literal["full", "repeated", "smooth"]


def noise_basis(kind: Map, horizon: int, rank: int) -> Tensor:
    """Return the map M [H, r] from decisions z [r, d] to noise w = M z [H, d].

    Each row has norm 1, so that each number of the noise keeps its variance. ``full``: r = H and M = 1. ``repeated``:
    r = 1, one row of noise for all actions. ``smooth``: the r slowest cosines over the chunk. Maps other than ``full``
    give noise that the base was not trained on, and may break it: evaluate the untrained policy first.
    """
    if kind not in MAPS:
        raise InvalidInputError(unknown_name_message(kind, MAPS, "noise map"))
    if kind == "full":
        return torch.eye(horizon)
    rank = 1 if kind == "repeated" else rank
    if not 1 <= rank <= horizon:
        raise InvalidInputError(f"the rank of a noise map is between 1 and the chunk's {horizon} actions, not {rank}")
    where = (torch.arange(horizon) + 0.5) / horizon
    waves = torch.cos(math.pi * torch.arange(rank) * where[:, None])
    return waves / waves.norm(dim=1, keepdim=True)


def require_deterministic(steps: StepTable) -> StepTable:
    """Return ``steps``. Raise InvalidInputError if a step draws noise: samples must follow from the initial noise."""
    if any(steps.dense):
        raise InvalidInputError(
            "steering needs a deterministic base, and this one has noise on its eval steps: use its ODE, "
            "process.steps(times, ddim(0.0)) (control.noise_steering.deterministic does it)"
        )
    return steps


@final
@dataclass(frozen=True)
class Steered(Process):
    """Choose the initial noise of ``base``, then run ``base`` from it without further noise.

        u ~ N(μ(s), σ(s)²),   z = b tanh u  (``bound`` b; None: z = u),   w = M z,   then the steps of the base

    Only the decision has a density, log π(z | s), and only the decision learns. ``Steering`` is its denoiser. DSRL
    (2506.15799) learns the decision off-policy.
    """

    base: Process
    bound: float | None = 1.5

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise InvalidInputError(f"the bound of the noise must be positive, not {self.bound}")

    def steps(self, times: Tensor) -> StepTable:
        """Return the table for the base's grid ``times``."""
        return self.make_steps(self.base.steps(times))

    def make_steps(self, steps: StepTable, std_scale: float = 1.0) -> StepTable:
        """Return the table of the decision, of the map, and of a base's ``steps``.

        ``std_scale`` scales the decision's std; 0 takes its mean. Raise InvalidInputError if a step of the base draws
        noise.
        """
        if std_scale < 0:
            raise InvalidInputError(f"std_scale must be 0 or positive, not {std_scale}")
        table = {k: torch.cat([v.new_zeros(2), v]) for k, v in require_deterministic(steps).table.items()}
        table["decision"] = torch.tensor([std_scale] + [0.0] * (len(steps) + 1), dtype=torch.float64)
        times = torch.cat([torch.tensor([DECISION_TIME, SPREAD], dtype=torch.float64), steps.times])
        return StepTable(times, table, (std_scale > 0, *[False] * (len(steps) + 1)))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Return zeros, with certainty."""
        return Delta(torch.zeros(shape, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return normals shaped like the decision."""
        return "normal", event

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Distribution:
        """Return the distribution of the decision; of later steps, a point."""
        index = step.index
        if isinstance(index, Tensor) or index == 0:  # scored rows are decisions: other steps have no density
            spread = step.table["decision"]
            std = estimate.extra["std"] * (
                expand_right(spread, x) if isinstance(spread, Tensor) and spread.ndim else spread
            )
            event = x.ndim - (step.t.ndim if isinstance(step.t, Tensor) and step.t.ndim else 1)
            dense = bool(step.dense) if step.dense is not None else None
            law = Gaussian(estimate.mean, std, event, dense, _rows(estimate.extra["mask"]))
            return law if self.bound is None else Squashed(law, self.bound)
        if index == 1:
            return Gaussian(estimate.mean, torch.zeros((), device=x.device), x.ndim - 1, False)
        return self.base.reverse(estimate, x, step)

    def noise(self, x0: Any, t: Tensor, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Raise InvalidInputError: the base is frozen."""
        raise InvalidInputError(FROZEN)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Raise InvalidInputError: the base is frozen."""
        raise InvalidInputError(FROZEN)

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Raise InvalidInputError: the base is frozen."""
        raise InvalidInputError(FROZEN)

    def renoise(self, x0: Any, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Raise InvalidInputError: the base is frozen."""
        raise InvalidInputError(FROZEN)


def _rows(mask: Tensor) -> Tensor | None:
    """Return the factors of the decision that count; None if all do."""
    return None if bool(mask.all()) else mask.bool()


class Steering(Denoiser):
    """A frozen ``base`` and the ``latent`` denoiser of its initial noise: mean and ``extra["std"]`` of [B, r, d].

    ``noise_map``, ``rank`` and ``horizon`` define the map from r rows to the noise of H actions: ``noise_basis``. The
    base is put in eval mode and its parameters get no gradient.
    """

    def __init__(self, base: Denoiser, latent: Denoiser, horizon: int, noise_map: Map = "full", rank: int = 1) -> None:
        super().__init__()
        self.config = {"base": base, "latent": latent, "horizon": horizon, "noise_map": noise_map, "rank": rank}
        self.map: Tensor
        self.register_buffer("map", noise_basis(noise_map, horizon, rank), persistent=False)
        self.base, self.latent = base.requires_grad_(False).eval(), latent

    @property
    def rows(self) -> int:
        """Return r, the rows of a decision."""
        return self.map.shape[1]

    def embed_condition(self, cond: Any) -> dict[str, Any]:
        """Return the embeddings of both."""
        return {"base": self.base.embed_condition(cond), "latent": self.latent.embed_condition(cond)}

    def embed_time(self, t: Tensor) -> dict[str, Any]:
        """Return the embeddings of both, and the time itself, which identifies the step."""
        inside = t <= 1
        before = len(t) - int(inside.sum())
        base = tree_map(lambda v: torch.cat([v[:1]] * before + [v]), self.base.embed_time(t[inside]))
        return {"base": base, "latent": self.latent.embed_time(t.clamp(max=1.0)), "t": t}

    def forward(self, x: Tensor, clock: dict[str, Any], context: dict[str, Any]) -> Estimate:
        """Return the decision, the noise that it maps to, or the base's estimate, by the time of the step."""
        t = float(clock["t"].flatten()[0])  # one step for all rows of a call: decisions are scored apart from the rest
        if t == DECISION_TIME:
            latent = x[:, : self.rows]
            made = self.latent(torch.zeros_like(latent), clock["latent"], context["latent"])
            missing = x.shape[1] - self.rows
            pad = [0, 0] * (x.ndim - 2) + [0, missing]
            mean, std = nn.functional.pad(made.mean, pad), nn.functional.pad(made.extra["std"], pad, value=1.0)
            mask = torch.ones_like(mean)
            mask[:, self.rows :] = 0.0
            return Estimate(mean, {"std": std, "mask": mask})
        if t == SPREAD:
            return Estimate(torch.einsum("hr,br...->bh...", self.map, x[:, : self.rows]))
        return self.base(x, clock["base"], context["base"])


class BlackBox(Denoiser):
    """A policy of which only the function is known: ``answer(obs, noise [B, H, d]) -> actions [B, H, d]``.

    ``answer`` may call a server, and return a tensor, a numpy array or lists of numbers. A callable that is no module
    of this package must be passed again on loading: ``Policy.load(path, net=answer)``.
    """

    def __init__(self, answer: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer if isinstance(answer, nn.Module) else FunctionModule(answer)

    @property
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"answer": self.answer}

    @torch.no_grad()
    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """Return the actions, as the estimate of a single step. Raise InvalidInputError if they have another shape."""
        made = tensors(self.answer(context, x), x.device)
        if not isinstance(made, Tensor) or made.shape != x.shape or not bool(made.isfinite().all()):
            found = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InvalidInputError(
                f"the policy was given noise {list(x.shape)} and returned {found}: finite actions of the noise's "
                "shape are needed; wrap it if it returns more"
            )
        made = made.to(x).clone()
        return Estimate(made, {"std": torch.ones_like(made)})


class FunctionModule(nn.Module):
    """A function as a module. It has no ``config``, so it is never built from a file."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *args: Any) -> Any:
        """Return the result of the function."""
        return self.call(*args)
