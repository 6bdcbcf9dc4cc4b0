"""Steering: the noise that a frozen policy starts from is the decision.

A deterministic sampler is a function a = G(s, w) of its first noise. Deciding w makes a policy of G whose one step with
a density is that decision, so it is run, scored, saved and served like any other; G itself may be a black box.
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
"""the times of the decision and of the map from decisions to noise: before t = 1, where the base begins"""
MAPS = ("full", "repeated", "smooth")
FROZEN = "a steered policy is not trained on data, for its base is frozen: train the base, then steer it"

Map = Literal["full", "repeated", "smooth"]


def noise_basis(kind: Map, horizon: int, rank: int) -> Tensor:
    """The map M [H, r] from decisions z [r, d] to noise w = M z [H, d]; each row has norm 1, so that each number of the
    noise keeps its variance.

    ``full``: r = H and M = 1. ``repeated``: r = 1, one row of noise for all actions. ``smooth``: the r slowest cosines
    over the chunk. What is not full leaves the noise that the base knows, and may break it before anything is learned:
    measure the untrained policy first.
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
    """The same table; refused where its steps draw noise, for then a sample does not follow from its first noise."""
    if any(steps.dense):
        raise InvalidInputError(
            "steering needs a deterministic base, and this one is served with noise on its steps: serve its ODE, "
            "process.steps(times, ddim(0.0)) (control.noise_steering.deterministic does it)"
        )
    return steps


@final
@dataclass(frozen=True)
class Steered(Process):
    """First the noise of ``base`` is decided, then ``base`` runs from it without noise of its own.

        u ~ N(μ(s), σ(s)²),   z = b tanh u  (``bound`` b; None: z = u),   w = M z,   then the steps of the base

    Only the decision has a density, log π(z | s), and only the decision learns. ``Steering`` is its denoiser, ``steps``
    are made by ``steered``. DSRL (2506.15799) learns the decision off-policy.
    """

    base: Process
    bound: float | None = 1.5

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise InvalidInputError(f"the bound of the noise must be positive, not {self.bound}")

    def steps(self, times: Tensor) -> StepTable:
        """The table for the base's grid ``times``."""
        return self.make_steps(self.base.steps(times))

    def make_steps(self, steps: StepTable, spread: float = 1.0) -> StepTable:
        """The table of the decision, of the map, and of a base's steps. ``spread`` scales the decision's std: 0 serves
        its mean. Refused: a base whose steps draw noise."""
        if spread < 0:
            raise InvalidInputError(f"a spread is not negative, not {spread}")
        table = {k: torch.cat([v.new_zeros(2), v]) for k, v in require_deterministic(steps).table.items()}
        table["decision"] = torch.tensor([spread] + [0.0] * (len(steps) + 1), dtype=torch.float64)
        times = torch.cat([torch.tensor([DECISION_TIME, SPREAD], dtype=torch.float64), steps.times])
        return StepTable(times, table, (spread > 0, *[False] * (len(steps) + 1)))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Zeros: nothing has been decided."""
        return Delta(torch.zeros(shape, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Normals shaped like the decision."""
        return "normal", event

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Distribution:
        """The law of the decision; certainty afterwards."""
        index = step.index
        if isinstance(index, Tensor) or index == 0:  # rows that are scored are decisions: nothing else has a density
            spread = step.table["decision"]
            std = estimate.extra["std"] * (
                expand_right(spread, x) if isinstance(spread, Tensor) and spread.ndim else spread
            )
            event = x.ndim - (step.t.ndim if isinstance(step.t, Tensor) and step.t.ndim else 1)
            dense = bool(step.dense) if step.dense is not None else None
            law = Gaussian(estimate.mean, std, event, dense, _rows(estimate.extra["live"]))
            return law if self.bound is None else Squashed(law, self.bound)
        if index == 1:
            return Gaussian(estimate.mean, torch.zeros((), device=x.device), x.ndim - 1, False)
        return self.base.reverse(estimate, x, step)

    def noise(self, x0: Any, t: Tensor, rng: Rng, live: Tensor | None = None) -> Noised:
        """Refused: the base is frozen."""
        raise InvalidInputError(FROZEN)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Refused: the base is frozen."""
        raise InvalidInputError(FROZEN)

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Refused: the base is frozen."""
        raise InvalidInputError(FROZEN)

    def renoise(self, x0: Any, n: int, rng: Rng, live: Tensor | None = None) -> Noised:
        """Refused: the base is frozen."""
        raise InvalidInputError(FROZEN)


def _rows(live: Tensor) -> Tensor | None:
    """Which factors of the decision count; None where all do."""
    return None if bool(live.all()) else live.bool()


class Steering(Denoiser):
    """A frozen ``base`` and the ``latent`` denoiser that decides its noise: mean and ``extra["std"]`` of [B, r, d].

    ``noise_map``, ``rank`` and ``horizon`` say how r rows become the noise of H actions: ``basis``. The base is in eval
    mode, needs no gradient and never gets one.
    """

    def __init__(self, base: Denoiser, latent: Denoiser, horizon: int, noise_map: Map = "full", rank: int = 1) -> None:
        super().__init__()
        self.config = {"base": base, "latent": latent, "horizon": horizon, "noise_map": noise_map, "rank": rank}
        self.map: Tensor
        self.register_buffer("map", noise_basis(noise_map, horizon, rank), persistent=False)
        self.base, self.latent = base.requires_grad_(False).eval(), latent

    @property
    def rows(self) -> int:
        """r: rows of a decision."""
        return self.map.shape[1]

    def embed_condition(self, cond: Any) -> dict[str, Any]:
        """Of both."""
        return {"base": self.base.embed_condition(cond), "latent": self.latent.embed_condition(cond)}

    def embed_time(self, t: Tensor) -> dict[str, Any]:
        """Of both, and the time itself, which says what a step does. The base's is that of its own chain."""
        inside = t <= 1
        before = len(t) - int(inside.sum())
        base = tree_map(lambda v: torch.cat([v[:1]] * before + [v]), self.base.embed_time(t[inside]))
        return {"base": base, "latent": self.latent.embed_time(t.clamp(max=1.0)), "t": t}

    def forward(self, x: Tensor, clock: dict[str, Any], context: dict[str, Any]) -> Estimate:
        """The decision, the noise that it means, or what the base answers."""
        t = float(clock["t"].flatten()[0])  # one step for all rows of a call: decisions are scored apart from the rest
        if t == DECISION_TIME:
            seen = x[:, : self.rows]
            made = self.latent(torch.zeros_like(seen), clock["latent"], context["latent"])
            missing = x.shape[1] - self.rows
            pad = [0, 0] * (x.ndim - 2) + [0, missing]
            mean, std = nn.functional.pad(made.mean, pad), nn.functional.pad(made.extra["std"], pad, value=1.0)
            live = torch.ones_like(mean)
            live[:, self.rows :] = 0.0
            return Estimate(mean, {"std": std, "live": live})
        if t == SPREAD:
            return Estimate(torch.einsum("hr,br...->bh...", self.map, x[:, : self.rows]))
        return self.base(x, clock["base"], context["base"])


class BlackBox(Denoiser):
    """A policy of which nothing is known but its answers: ``answer(obs, noise [B, H, d]) -> actions [B, H, d]``.

    ``answer`` may ask a server, and give a tensor, an array of numpy or lists of numbers. A callable that is no module
    of this package has to be handed over again on loading: ``Policy.load(path, net=answer)``.
    """

    def __init__(self, answer: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer if isinstance(answer, nn.Module) else FunctionModule(answer)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"answer": self.answer}

    @torch.no_grad()
    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """The actions, as the estimate of a step that goes straight there."""
        made = tensors(self.answer(context, x), x.device)
        if not isinstance(made, Tensor) or made.shape != x.shape or not bool(made.isfinite().all()):
            told = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InvalidInputError(
                f"the policy was given noise {list(x.shape)} and answered {told}: finite actions of the noise's shape "
                "are needed; wrap it where it answers more"
            )
        made = made.to(x).clone()
        return Estimate(made, {"std": torch.ones_like(made)})


class FunctionModule(nn.Module):
    """A function as a module; it has no ``config``, so it is never built from a file."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *args: Any) -> Any:
        """What the function answers."""
        return self.call(*args)
