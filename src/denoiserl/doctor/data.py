"""Recorded data before anything learns from them: ranges, units, and rewards that belong to another row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoiserl.data import Demonstrations, Normalizer
from denoiserl.data.ranges import check_range, odd, share
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.doctor.finding import Finding
from denoiserl.policy.policy import Policy

EPISODES = 8
"""episodes below which nothing is said about when rewards come"""
LATE = 5.0
"""how many times worse the own row explains the first rewards of episodes than the row before does"""
MOST = 20_000
"""rows that a fit takes"""


def ranges(policy: Policy, data: EpisodeDataset | Demonstrations | None = None, spec: Any = None) -> Finding:
    """Outliers and dimensions that hardly move, in what the codec was fitted to and in ``data``; their actions against
    the environment's box (``Collector.spec``)."""
    found = []
    for part in ("observation", "action"):
        known = getattr(policy.codec, part, None)
        if isinstance(known, Normalizer) and ("outliers" in known.report() or "hardly move" in known.report()):
            found.append(f"the codec was fitted to {part}s of {known.report()}")
    demos = data.demos if isinstance(data, EpisodeDataset) else data
    if demos is not None:
        parts = {"actions": demos.actions}
        if isinstance(demos.observations, Tensor) and demos.observations.ndim == 2:
            parts["observations"] = demos.observations
        for what, rows in parts.items():
            found += odd(rows.double(), share(rows.double()), rows.amin(0) == rows.amax(0), what, demos.ends)
        if spec is not None and spec.choices is None:
            found.append(check_range(demos.actions, spec.low, spec.high, "actions", "the environment's box")[1])
    found = [said for said in found if said]
    if not found:
        return Finding("ranges", "ok", "no outlier and no dimension that hardly moves")
    remedy = "Repair these rows or leave their episodes out, and fit the codec again: the others drown in the range."
    return Finding("ranges", "warning", "; ".join(found), remedy)


def delay(data: EpisodeDataset) -> Finding:
    """Do rewards come one row late? Then the first one of an episode belongs to the end of the episode before.

    Two quadratic fits of the rewards, by (s_t, a_t, s_{t+1}) of their own row and by those of the row before, are asked
    for the first rewards of episodes, which neither has seen.
    """
    name, demos = "rewards in time", data.demos
    flat = isinstance(demos.observations, Tensor) and demos.observations.ndim == 2
    first = torch.zeros(len(demos.actions), dtype=torch.bool)
    first[demos.ends - demos.lengths] = True
    if data.rewards is None or not flat or data.last is None or len(demos) < EPISODES or int((~first).sum()) < EPISODES:
        said = f"not measured: it takes rewards, flat observations and {EPISODES} episodes of more than a row"
        return Finding(name, "note", said)
    after = torch.cat([demos.observations[1:], demos.observations[-1:]])
    after[demos.ends - 1] = data.last
    x = torch.cat([demos.observations, demos.actions, after], 1).double()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-9)
    x = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x, x**2], 1)
    r, start = data.rewards.double(), first.clone()
    start[0] = False
    own = _error(x[1:], r[1:], ~first[1:], start[1:])
    before = _error(x[:-1], r[1:], ~first[1:], start[1:])
    inner = float(r[~first].var()) if bool((~first).any()) else 0.0
    said = f"the first rewards of episodes are off by {own**0.5:.2g} from what their own rows explain"
    if inner > 0 and own > LATE * before and own > 0.05 * inner:
        return Finding(
            name,
            "warning",
            f"{said}, and by {before**0.5:.2g} from what the row before does: rewards seem to be one row late",
            "Shift the rewards by one row within the recording, so that row t holds what action t earned.",
        )
    return Finding(name, "ok", f"{said}, and by {before**0.5:.2g} from what the row before explains")


def _error(x: Tensor, r: Tensor, known: Tensor, asked: Tensor) -> float:
    """The mean squared error at ``asked`` rows of a ridge fit to the ``known`` ones."""
    at = known.nonzero().flatten()
    at = at[:: max(1, len(at) // MOST)]
    a, b = x[at], r[at]
    ridge = 1e-6 * len(at) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(a.T @ a + ridge, a.T @ b)
    return float((x[asked] @ weights - r[asked]).square().mean())
