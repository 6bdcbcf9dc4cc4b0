"""Checks of recorded data: ranges, units, and rewards that belong to another row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoiserl.data import Demonstrations, Normalizer
from denoiserl.data.ranges import check_range, range_warnings, used_share
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.doctor.finding import Finding
from denoiserl.policy.policy import Policy

EPISODES = 8
"""fewest episodes for a check of the reward timing"""
LATE = 5.0
"""ratio of errors above which rewards are late: fit by the same row over fit by the row before"""
MOST = 20_000
"""largest number of rows of a fit"""


def check_data_ranges(policy: Policy, data: EpisodeDataset | Demonstrations | None = None, spec: Any = None) -> Finding:
    """Find outliers and dimensions that hardly move, in the codec's fit and in ``data``.

    Also compare the actions of ``data`` with the environment's bounds (``Collector.spec``).
    """
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
            found += range_warnings(
                rows.double(), used_share(rows.double()), rows.amin(0) == rows.amax(0), what, demos.ends
            )
        if spec is not None and spec.choices is None:
            found.append(check_range(demos.actions, spec.low, spec.high, "actions", "the environment's bounds")[1])
    found = [text for text in found if text]
    if not found:
        return Finding("ranges", "ok", "no outlier and no dimension that hardly moves")
    remedy = "Correct these rows or exclude their episodes, and fit the codec again: outliers shrink all other values."
    return Finding("ranges", "warning", "; ".join(found), remedy)


def check_reward_delay(data: EpisodeDataset) -> Finding:
    """Check for rewards that are one row late: the first of an episode then belongs to the end of the one before.

    Two quadratic fits of the rewards are compared, by (s_t, a_t, s_{t+1}) of the same row and of the row before. Both
    predict the first rewards of episodes, which are excluded from the fits.
    """
    name, demos = "rewards in time", data.demos
    flat = isinstance(demos.observations, Tensor) and demos.observations.ndim == 2
    first = torch.zeros(len(demos.actions), dtype=torch.bool)
    first[demos.ends - demos.lengths] = True
    if data.rewards is None or not flat or data.last is None or len(demos) < EPISODES or int((~first).sum()) < EPISODES:
        said = f"not measured: it needs rewards, flat observations and {EPISODES} episodes of more than one row"
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
    said = f"the first rewards of episodes differ by {own**0.5:.2g} from a fit to their own rows"
    if inner > 0 and own > LATE * before and own > 0.05 * inner:
        return Finding(
            name,
            "warning",
            f"{said}, and by {before**0.5:.2g} from a fit to the rows before: rewards seem to be one row late",
            "Shift the rewards by one row within the data set, so that row t holds the reward of action t.",
        )
    return Finding(name, "ok", f"{said}, and by {before**0.5:.2g} from a fit to the rows before")


def _error(x: Tensor, r: Tensor, known: Tensor, test: Tensor) -> float:
    """Return the mean squared error at ``test`` rows of a ridge fit to the ``known`` ones."""
    at = known.nonzero().flatten()
    at = at[:: max(1, len(at) // MOST)]
    a, b = x[at], r[at]
    ridge = 1e-6 * len(at) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(a.T @ a + ridge, a.T @ b)
    return float((x[test] @ weights - r[test]).square().mean())
