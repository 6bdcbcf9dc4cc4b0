"""Metrics of recorded motion: smoothness, consistency and coverage. Pure functions.

They compare two data sets of the same task; lengths are in the units of the data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.data.demos import Demonstrations


def jerk(actions: Tensor) -> Tensor:
    """Return the mean over t of ‖a_{t+1} − 2 a_t + a_{t−1}‖ of sequences [*batch, L, d], [*batch]: 0 on straight lines.

    Raise InvalidInputError for fewer than three actions, which have no second difference.
    """
    if actions.shape[-2] < 3:
        raise InvalidInputError(f"{actions.shape[-2]} actions have no second difference: jerk needs three or more")
    return actions.diff(n=2, dim=-2).norm(dim=-1).mean(-1)


def path_length(positions: Tensor) -> Tensor:
    """Return Σ_t ‖x_{t+1} − x_t‖ of sequences [*batch, L, d], [*batch]."""
    return positions.diff(dim=-2).norm(dim=-1).sum(-1)


def action_spread(states: Tensor, actions: Tensor, k: int = 10, max_frames: int = 4000) -> float:
    """Return how much actions [N, d] differ at similar states: the std over a state's k nearest, averaged.

        mean over states of √(Σ_d var{a_j : j among the k nearest of the state, itself included} / d)

    States [N, ...] are standardised per dimension, constant ones left out. More than ``max_frames`` frames are thinned
    evenly.
    """
    if len(states) < k or k < 2:
        raise InvalidInputError(
            f"the {k} nearest of {len(states)} states cannot be compared: record more, or lower k (from 2)"
        )
    at = torch.linspace(0, len(states) - 1, min(max_frames, len(states))).round().long()
    place = _standard(states.flatten(1)[at].double())
    _, near = KDTree(place.numpy()).query(place.numpy(), k)
    group = actions.flatten(1)[at].double()[torch.from_numpy(near)]
    return float(group.var(1, correction=1).mean(-1).sqrt().mean())


def coverage(wanted: Tensor, kept: Tensor) -> float:
    """Return the share of states ``wanted`` [N, ...] that have one of ``kept`` [M, ...] nearby.

    Nearby: within the median distance of a wanted state from its nearest neighbour, in standardised dimensions. It is 1
    if everything was kept, and lower if a region is missing.
    """
    if len(wanted) < 2:
        raise InvalidInputError("coverage needs at least two states")
    own = wanted.flatten(1).double()
    place = _standard(own)
    others = _standard(kept.flatten(1).double(), own)
    apart, _ = KDTree(place.numpy()).query(place.numpy(), 2)
    away, _ = KDTree(others.numpy()).query(place.numpy(), 1)
    return float(np.mean(away <= np.median(apart[:, 1]) * (1 + 1e-9)))


def _standard(states: Tensor, like: Tensor | None = None) -> Tensor:
    like = states if like is None else like
    scale = like.std(0, correction=0)
    return (states - like.mean(0)) / torch.where(scale > 1e-9, scale, torch.inf)


def starts(demos: Demonstrations) -> Tensor:
    """Return the first observations of all episodes, [E, o]."""
    if not isinstance(demos.observations, Tensor):
        raise InvalidInputError("states are compared as flat observations: concatenate the parts first")
    return demos.observations[demos.ends - demos.lengths]


def motion(demos: Demonstrations) -> dict[str, float]:
    """Return ``statistics`` of demonstrations, with mean ``jerk`` of the actions and ``action_spread``."""
    if not isinstance(demos.observations, Tensor):
        raise InvalidInputError("states are compared as flat observations: concatenate the parts first")
    parts = [demos.episode(i)[1] for i, n in enumerate(demos.lengths.tolist()) if n >= 3]
    rough = float(torch.stack([jerk(part) for part in parts]).mean()) if parts else 0.0
    found = {**demos.statistics(), "jerk": rough}
    return found | {"spread": action_spread(demos.observations, demos.actions)} if len(demos.actions) >= 10 else found


Valid = Callable[[Tensor, Tensor], Tensor]


def keep_short_successes(demos: Demonstrations, quantile: float = 0.8, valid: Valid | None = None) -> Demonstrations:
    """Return successful episodes no longer than the ``quantile`` of their lengths, and valid at every step.

    ``valid(observations [L, ...], actions [L, d])`` -> [L] bool excludes undesired steps that a simulator allows. Raise
    InvalidInputError, with the counts, if no episode is left.
    """
    if not 0 < quantile <= 1:
        raise InvalidInputError(f"a quantile lies in (0, 1], not {quantile}")
    if demos.success is None:
        raise InvalidInputError("these episodes do not record success, so none can be selected: record success")
    won = demos.success.bool()
    if valid is not None:
        fits = [bool(torch.as_tensor(valid(*demos.episode(i))).all()) for i in range(len(demos))]
        won = won & torch.tensor(fits)
    if not bool(won.any()):
        raise InvalidInputError(
            f"{int(demos.success.sum())} of {len(demos)} episodes succeeded and none of these is valid: no episode "
            "is left; improve the generator first"
        )
    longest = torch.quantile(demos.lengths[won].double(), quantile, interpolation="lower")
    return demos.take(won & (demos.lengths <= longest))
