"""Verdicts over training seeds: which methods differ, by how much, and which difference the design can detect.

A method is evaluated by policies trained from S seeds, each rolled out on n starts. The observations of a method are
its seeds, not the rollouts of one policy. So every arm trains from the same seeds, all policies of a seed have the same
starts, and each seed has its own starts. The test is Student's, paired, over S differences of means.

    d_s = mean_i (a_si - b_si),   d̄ ± t_{S-1} · max(sd(d)/√S, w)

w is the standard error of the paired rollouts alone. Without it, S means that agree by chance would give an interval of
no width. With it, the test only becomes more conservative. For outcomes 0 or 1, w adds half a success and half a
failure to each cell of the table of pairs. So even n agreeing pairs keep a positive error (Agresti, Min, Simple
improved confidence intervals for comparing matched proportions, 2005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from scipy import special
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.stats.compact_letters import compact_letters
from denoiserl.stats.exact import holm, mcnemar
from denoiserl.stats.interval import Interval, binomial
from denoiserl.stats.standing import ComparisonRow, ComparisonTable, Contrast

Basis = Literal["seeds", "trials"]


@dataclass(frozen=True)
class Verdict:
    """Result of a test whether ``first`` exceeds ``second`` by more than ``margin``.

    "holds" means that the whole interval of the difference lies above the margin, "does not hold" that it lies below.
    Each errs with probability at most level / 2. ``p`` is two-sided against a difference of exactly ``margin``.
    ``min_detectable_effect`` is the smallest excess over the margin that this design detects with probability 0.8.
    ``basis`` is as in ``ComparisonTable``.
    """

    first: str
    second: str
    margin: float
    difference: Interval
    p: float
    verdict: Literal["holds", "does not hold", "inconclusive"]
    min_detectable_effect: float
    basis: Basis

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite ``min_detectable_effect`` becomes None."""
        return asdict(self) | {
            "min_detectable_effect": self.min_detectable_effect if math.isfinite(self.min_detectable_effect) else None
        }


def standings(
    values: Mapping[str, Tensor],
    metric: str,
    what: str = "",
    unit: str = "",
    better: Literal["higher", "lower"] = "higher",
    alpha: float = 0.05,
    seconds: Mapping[str, float] | None = None,
    calls: Mapping[str, float] | None = None,
) -> ComparisonTable:
    """Return the table of several arms from their trials {arm: [S, n]}; every pair is tested, with Holm's correction.

    Row s, column i is the same training seed and the same start in all arms. Over all pairs together, the probability
    that two equal methods are called different is at most ``alpha``. The test:

        S ≥ 2    Student over seeds, as above: a verdict about the methods. Two seeds decide almost nothing (t = 12.7).
        S = 1    McNemar's exact test for outcomes 0 or 1, else Student over trials: basis "trials". The verdict is
                 about these policies only; another training seed may reverse it.

    ``min_detectable_effect`` of a pair is the true difference that is detected with probability 0.8 at level ``alpha``
    / pairs. It follows from the noncentral t with the measured standard error. Intervals are those of each arm and pair
    alone, at 1 - ``alpha``. If scores differ by the same constant in every trial, the error cannot be estimated. Then p
    is that of the sign test over seeds, 2^{1-S}, and ``min_detectable_effect`` is infinite.

    Raise ``InvalidInputError`` for fewer than two arms, unequal shapes, no trials, NaN, or rates outside [0, 1].
    """
    arms = {name: _trials(x, name) for name, x in values.items()}
    if len(arms) < 2:
        raise InvalidInputError(f"{len(arms)} arms are no comparison: give at least two.")
    _alpha(alpha)
    _aligned(arms)
    for given, called in ((seconds, "seconds"), (calls, "calls")):
        if given is not None and set(given) != set(arms):
            raise InvalidInputError(
                f"{called} are of {sorted(given)} and values of {sorted(arms)}: give both for the same arms."
            )
    if unit == "%" and not all(((x >= 0) & (x <= 1)).all() for x in arms.values()):
        raise InvalidInputError(f"{metric} has the unit % but values outside [0, 1]: give rates, or another unit.")
    rate = _binary(*arms.values())
    bounds = (0.0, 1.0) if rate or unit == "%" else (-math.inf, math.inf)
    means = {name: x.mean().item() for name, x in arms.items()}
    order = sorted(arms, key=lambda name: means[name], reverse=better == "higher")
    pairs = list(combinations(order, 2))
    tested = [_difference(arms[a], arms[b], alpha, alpha / len(pairs), rate) for a, b in pairs]
    corrected = holm([t.p for t in tested])
    contrasts = tuple(
        Contrast(a, b, t.interval, p, p <= alpha, t.min_detectable_effect)
        for (a, b), t, p in zip(pairs, tested, corrected.tolist(), strict=True)
    )
    shown = compact_letters(means, [(c.first, c.second) for c in contrasts if c.separated], better)
    rows = tuple(
        ComparisonRow(
            name,
            _own(arms[name], alpha, rate, bounds),
            tuple(arms[name].mean(1).tolist()),
            shown[name],
            None if seconds is None else float(seconds[name]),
            None if calls is None else float(calls[name]),
        )
        for name in order
    )
    return ComparisonTable(metric, what, unit, better, alpha, rows, contrasts, _basis(arms[order[0]]))


def superiority_test(
    first: Tensor,
    second: Tensor,
    margin: float = 0.0,
    alpha: float = 0.05,
    names: tuple[str, str] = ("first", "second"),
) -> Verdict:
    """Test whether the mean of ``first`` exceeds that of ``second`` by more than ``margin``; paired trials [S, n].

    The claim holds if the interval of the difference at 1 - ``alpha`` lies above ``margin``. It does not hold if the
    interval lies below; otherwise the verdict is inconclusive. For several claims, pass ``alpha`` / claims. If lower is
    better, exchange the arms. The errors raised are those of ``standings``.
    """
    arms = {name: _trials(x, name) for name, x in zip(names, (first, second), strict=True)}
    if len(arms) < 2:
        raise InvalidInputError(f"{names[0]!r} cannot exceed itself: name two arms.")
    _alpha(alpha)
    _aligned(arms)
    if not math.isfinite(margin):
        raise InvalidInputError(f"a margin of {margin} is no difference: give a finite number.")
    x, y = arms.values()
    found = _difference(x, y, alpha, alpha, _rates(x, y), margin, exact=False)
    decided = found.p <= alpha
    verdict = "inconclusive" if not decided else "holds" if found.interval.mean > margin else "does not hold"
    return Verdict(*names, float(margin), found.interval, found.p, verdict, found.min_detectable_effect, _basis(x))


def minimum_detectable_effect(error: float, freedom: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true difference that a two-sided t-test at ``alpha`` detects with probability ``power``.

        δ = error · nc,   P(T'(freedom, nc) > t_{1 - α/2, freedom}) = power,   T' noncentral t

    ``error`` is the standard error of the difference.
    """
    critical = special.stdtrit(freedom, 1 - alpha / 2)
    return float(error * special.nctdtrinc(freedom, 1 - power, critical))


@dataclass(frozen=True)
class _Test:
    interval: Interval
    p: float
    min_detectable_effect: float


def _difference(
    x: Tensor, y: Tensor, alpha: float, family: float, rate: bool, margin: float = 0.0, exact: bool = True
) -> _Test:
    """Test mean(x - y) = ``margin`` on trials [S, n]; ``min_detectable_effect`` is computed at the level ``family``."""
    d = x - y
    seeds, trials = d.shape
    mean = d.mean().item()
    error, freedom = _error(d, 1.0 if rate else 0.0), (seeds if seeds > 1 else trials) - 1
    n = freedom + 1
    if error == 0:  # every difference is the same number
        p = 1.0 if mean == margin else min(1.0, 2.0 ** (1 - n))
        return _Test(Interval(mean, mean, mean, n), p, math.inf)
    half = float(special.stdtrit(freedom, 1 - alpha / 2)) * error
    low, high = (max(-1.0, mean - half), min(1.0, mean + half)) if rate else (mean - half, mean + half)
    p = min(1.0, 2 * float(special.stdtr(freedom, -abs(mean - margin) / error)))
    if rate and seeds == 1 and exact:
        p = mcnemar(x[0], y[0])
    return _Test(Interval(mean, low, high, n), p, minimum_detectable_effect(error, freedom, family))


def _error(d: Tensor, pseudo: float) -> float:
    """Return the standard error of the mean of [S, n]: over seeds, and at least that of the trials alone.

    ``pseudo`` is the sum of squares of two pseudo-trials with mean 0: 1 for differences of outcomes (the half counts of
    Agresti and Min), 0 for scores.
    """
    seeds, trials = d.shape
    if pseudo:
        n = d.numel()
        within = ((d.square().sum().item() + pseudo) / (n + 2) - (d.sum().item() / (n + 2)) ** 2) / (n + 2)
    else:
        within = d.var(1).mean().item() / d.numel() if trials > 1 else 0.0
    between = d.mean(1).var().item() / seeds if seeds > 1 else 0.0
    error = math.sqrt(max(between, within))
    return error if error > 1e-12 * d.abs().max().item() else 0.0


def _own(x: Tensor, alpha: float, rate: bool, bounds: tuple[float, float]) -> Interval:
    """Return the interval of one arm's mean."""
    seeds, trials = x.shape
    if rate and seeds == 1:
        return binomial(int(x.sum()), trials, 1 - alpha)
    mean, n = x.mean().item(), seeds if seeds > 1 else trials
    # Centred at 1/2, an outcome is ±1/2: one success and one failure more have the sum of squares 1/2.
    half = float(special.stdtrit(n - 1, 1 - alpha / 2)) * _error(x - 0.5 if rate else x, 0.5 if rate else 0.0)
    return Interval(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), n)


def _trials(values: Any, name: str) -> Tensor:
    """Return float64 [S, n]. Raise ``InvalidInputError`` for another shape or values that are not finite."""
    x = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if x.ndim != 2:
        raise InvalidInputError(
            f"the values of {name!r} have shape {list(x.shape)}, not [S, n]: give one row per training seed."
        )
    if x.numel() == 0:
        raise InvalidInputError(f"{name!r} has no trials (shape {list(x.shape)}): roll its policies out first.")
    bad = (~torch.isfinite(x)).nonzero()
    if len(bad):
        s, i = bad[0].tolist()
        raise InvalidInputError(
            f"{len(bad)} values of {name!r} are not finite (the first: seed {s}, trial {i}): find out why."
        )
    return x


def _aligned(arms: Mapping[str, Tensor]) -> None:
    (one, x), *others = arms.items()
    for name, y in others:
        if x.shape[0] != y.shape[0]:
            raise InvalidInputError(
                f"{one!r} has {x.shape[0]} training seeds and {name!r} has {y.shape[0]}: this test is paired "
                "over seeds, train all arms from the same ones."
            )
        if x.shape[1] != y.shape[1]:
            raise InvalidInputError(
                f"{one!r} has {x.shape[1]} trials per seed and {name!r} has {y.shape[1]}: this test is paired "
                "over starts, roll all arms out on the same ones."
            )
    if x.shape == (1, 1):
        raise InvalidInputError("one seed and one trial have no error estimate: give more of either.")


def _binary(*arms: Tensor) -> bool:
    return all(bool(((x == 0) | (x == 1)).all()) for x in arms)


def _rates(x: Tensor, y: Tensor) -> bool:
    """Return whether both are outcomes 0 and 1, or one is and the other is a constant rate to compare with."""
    number = [float(v.min()) == float(v.max()) and 0 <= float(v.min()) <= 1 for v in (x, y)]
    return _binary(x, y) or (_binary(x) and number[1]) or (_binary(y) and number[0])


def _basis(x: Tensor) -> Basis:
    return "seeds" if len(x) > 1 else "trials"


def _alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InvalidInputError(f"alpha={alpha} is no error rate: give a number between 0 and 1, such as 0.05.")
