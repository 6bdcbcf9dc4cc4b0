"""Sequential tests that are valid after every trial: e-processes for success rates, and comparisons of many arms.

An e-process is evidence against a null hypothesis. It is not negative, starts at 1, and is not expected to grow if the
null holds: E[E_t | past] ≤ E_{t-1}. By Ville's inequality P(ever E_t ≥ 1/α) ≤ α. So it can be reported and stopped at
any time, and 1 / max_{s ≤ t} E_s is a p-value at any time. Reference: Ramdas, Grünwald, Vovk, Shafer, Game-theoretic
statistics and safe anytime-valid inference (2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy
from scipy import special

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.stats.compact_letters import compact_letters

Array = numpy.ndarray


def log_e(wins: Any, losses: Any) -> Array:
    """Return the log e-value of w wins and l losses among pairs that disagree, against "a win is no likelier".

        E(w, l) = ∫_{1/2}^1 2 (2θ)^w (2(1 - θ))^l dθ  =  2^{w+l+1} B(w+1, l+1) P(Beta(w+1, l+1) > 1/2)

    It is the likelihood ratio to θ = 1/2, averaged over a uniform θ above it. It is a test martingale at θ = 1/2:
    ½E(w+1, l) + ½E(w, l+1) = E(w, l) under the integral. Since E(w+1, l) ≥ E(w, l+1), it falls if wins are rarer.
    Arguments may have any shapes that broadcast. Reference: Wald (1945), the method of weight functions.
    """
    w, l = numpy.broadcast_arrays(numpy.asarray(wins, numpy.float64), numpy.asarray(losses, numpy.float64))  # noqa: E741
    above = special.betainc(l + 1, w + 1, 0.5)  # P(Beta(w+1, l+1) > 1/2)
    small = above < 1e-280
    front = (w + l + 1) * math.log(2) + special.betaln(w + 1, l + 1) + numpy.log(numpy.where(small, 1.0, above))
    if not small.any():
        return front
    # With far more losses the probability underflows but E does not; its series, DLMF 8.17.8, gives E itself. scipy's
    # hyp2f1 overflows there; the ratio of terms, (1 + w / (l + 2 + k)) / 2, is below one and falls.
    c, d = numpy.where(small, w, 0.0), numpy.where(small, l, 0.0)
    term = total = numpy.ones_like(c)
    k = 0
    while (term > 1e-17 * total).any():
        term = term * (1 + c / (d + 2 + k)) / 2
        total, k = total + term, k + 1
    return numpy.where(small, numpy.log(total / (2 * (d + 1))), front)


def e_pairs(first: Any, second: Any) -> Array:
    """Return the log e-process [..., n] of paired outcomes [..., n], 0 or 1, against H0: ``first`` succeeds no more
    often.

        E_t = E(w_t, l_t),   w_t, l_t: the starts up to t at which only first, only second succeeded     (``log_e``)

    Under H0 a win is no likelier than a loss, P(1, 0) = p₁ - P(1, 1) ≤ p₂ - P(1, 1) = P(0, 1), for any dependence
    between the outcomes of one start. Starts on which both agree do not change E. Starts must be independent draws.
    """
    x, y = _pair(first, second)
    wins, losses = ((x > y).cumsum(-1), (x < y).cumsum(-1))
    table = (int(wins.max()) + 1) * (int(losses.max()) + 1)
    if table > wins.size:
        return log_e(wins, losses)
    grid = log_e(numpy.arange(wins.max() + 1)[:, None], numpy.arange(losses.max() + 1)[None])
    return grid[wins, losses]


def e_rates(first: Any, second: Any) -> Array:
    """Return the log e-process of ``e_pairs`` for outcomes that are independent within a pair, from both rates.

        E_t = E_{t-1} · q₁(x₁) q₂(x₂) / (m(x₁) m(x₂)),   m = (q₁ + q₂)/2, and E_t = E_{t-1} while q₁ ≤ q₂

    The predictive rates q are posterior means of the past under Beta(2, 1) for first and Beta(1, 2) for second.
    With d = (q₁ - q₂)/2 and k = d / (m(1 - m)) the expected factor is (1 + k(p₁ - m))(1 - k(p₂ - m)) plus
    Cov(x₁, x₂) times -k². For p₁ ≤ p₂ and no negative covariance it is at most 1 - k²(p₂ - m)² ≤ 1. Matched starts of
    policies with different strengths can have negative covariance. Then this test errs: use ``e_pairs`` for them.
    Reference: Turner, Ly, Grünwald, Generic E-variables for exact sequential k-sample tests (2024).
    """
    x, y = _pair(first, second)
    t = numpy.arange(x.shape[-1])
    q1, q2 = (2 + x.cumsum(-1) - x) / (3 + t), (1 + y.cumsum(-1) - y) / (3 + t)
    m = (q1 + q2) / 2

    def ratio(outcome: Array, q: Array) -> Array:
        return numpy.log(numpy.where(outcome == 1, q / m, (1 - q) / (1 - m)))

    return numpy.where(q1 > q2, ratio(x, q1) + ratio(y, q2), 0.0).cumsum(-1)


def stopping_time(path: Any, level: float = 0.05) -> Array:
    """Return the number of trials after which a log e-process [..., n] first rejects at ``level``; 0 for never."""
    reached = numpy.asarray(path) >= -math.log(_level(level))
    return numpy.where(reached.any(-1), reached.argmax(-1) + 1, 0)


class SequentialComparison:
    """A sequential test of which arms differ, which stops as soon as the trials decide it.

    Call ``update({arm: outcome})`` after every start, until ``done``. All m pairs are tested in both directions with
    ``e_pairs``, and Holm's step-down runs at every look: with r pairs separated the next needs

        E ≥ (2m - r) / level

    By Ville's inequality and the union bound, no true hypothesis reaches E ≥ (number of true ones) / level, except with
    probability ``level``. While all separations so far are right, at most 2m - r hypotheses are true. So with
    probability 1 - level no pair is separated wrongly or in the wrong direction, at any stopping time. An arm without
    undecided pairs needs no more trials; this depends on the past alone, so it is valid. ``max_trials`` is the number
    of starts after which the comparison ends undecided.
    """

    def __init__(self, arms: Sequence[str], level: float = 0.05, max_trials: int | None = None) -> None:
        twice = sorted({name for name in arms if list(arms).count(name) > 1})
        if twice:
            raise RunError(f"{', '.join(twice)} is named twice: give every arm a name of its own.")
        if len(arms) < 2:
            raise RunError(f"{len(arms)} arms are no comparison: give at least two.")
        if max_trials is not None and max_trials < 1:
            raise RunError(f"max_trials={max_trials} starts leave no trials: give a positive number, or None.")
        self.arms, self.level, self.max_trials = tuple(arms), _level(level), max_trials
        self.starts = 0
        self.trials = dict.fromkeys(self.arms, 0)
        self.successes = dict.fromkeys(self.arms, 0)
        both = [pair for i, j in combinations(self.arms, 2) for pair in ((i, j), (j, i))]
        self.wins = dict.fromkeys(both, 0)
        self.best = dict.fromkeys(both, 0.0)
        self.separated: list[tuple[str, str]] = []

    def update(self, outcome: Mapping[str, float | bool]) -> None:
        """Add the outcomes, 0 or 1, of one start: of every active arm, and optionally of others."""
        if self.done:
            raise RunError("the comparison is done: make a new one for other trials.")
        for name, value in outcome.items():
            if name not in self.trials:
                raise RunError(unknown_name_message(name, self.arms, "arm"))
            if value not in (0, 1):
                raise InvalidInputError(f"the outcome of {name!r} is {value}, neither 0 nor 1: threshold it first.")
        missing = [name for name in self.active_arms if name not in outcome]
        if missing:
            raise InvalidInputError(
                f"{', '.join(missing)} did not try this start: all active arms must try every start."
            )
        self.starts += 1
        for name, value in outcome.items():
            self.trials[name] += 1
            self.successes[name] += int(value)
        won = [(i, j) for i, j in self.wins if outcome.get(i, 0) > outcome.get(j, 1)]
        for pair in won:
            self.wins[pair] += 1
        self._weigh([pair for i, j in won for pair in ((i, j), (j, i))])
        self._separate()

    def _weigh(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Update the evidence of these pairs from their counts."""
        for pair, e in zip(pairs, log_e(*self._counts(pairs)).tolist(), strict=True):
            self.best[pair] = max(self.best[pair], e)

    def _counts(self, pairs: Sequence[tuple[str, str]]) -> tuple[Array, Array]:
        counts = [(self.wins[i, j], self.wins[j, i]) for i, j in pairs]
        first, second = numpy.array(counts, dtype=float).reshape(-1, 2).T
        return first, second

    def _separate(self) -> None:
        hypotheses = len(self.best)
        left = [pair for i, j in self.open_pairs for pair in ((i, j), (j, i))]
        for winner in sorted(left, key=lambda pair: -self.best[pair]):
            if self.best[winner] < math.log((hypotheses - len(self.separated)) / self.level):
                return
            if winner[::-1] not in self.separated:
                self.separated.append(winner)

    @property
    def open_pairs(self) -> list[tuple[str, str]]:
        """The pairs that are not separated."""
        decided = {frozenset(pair) for pair in self.separated}
        return [pair for pair in combinations(self.arms, 2) if frozenset(pair) not in decided]

    @property
    def active_arms(self) -> list[str]:
        """The arms that need more trials: those in an undecided pair."""
        left = {name for pair in self.open_pairs for name in pair}
        return [name for name in self.arms if name in left]

    @property
    def done(self) -> bool:
        """True if all pairs are separated or ``max_trials`` starts are used up."""
        return not self.open_pairs or self.starts == self.max_trials

    @property
    def rates(self) -> dict[str, float]:
        """{arm: observed success rate}; after an early stop that of a pair's winner is slightly too high."""
        if not self.starts:
            raise InvalidInputError("no trials, so no rates: call update first.")
        return {name: self.successes[name] / self.trials[name] for name in self.arms}

    def p_value(self, first: str, second: str) -> float:
        """Return the anytime-valid p-value of "first is not better than second", of this pair alone (uncorrected)."""
        for name in (first, second):
            if name not in self.trials:
                raise RunError(unknown_name_message(name, self.arms, "arm"))
        if first == second:
            raise RunError(f"{first!r} cannot be compared with itself: name two arms.")
        return min(1.0, math.exp(-self.best[first, second]))

    def letters(self) -> dict[str, str]:
        """Return the compact letter display so far, by observed rates."""
        return compact_letters(self.rates, self.separated)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as plain values."""
        return {
            "arms": list(self.arms),
            "level": self.level,
            "max_trials": self.max_trials,
            "starts": self.starts,
            "trials": dict(self.trials),
            "successes": dict(self.successes),
            "wins": [[i, j, n, self.best[i, j]] for (i, j), n in self.wins.items()],
            "separated": [list(pair) for pair in self.separated],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state. Raise RunError if it has other arms, another level or another ``max_trials``."""
        for name, own in (("arms", list(self.arms)), ("level", self.level), ("max_trials", self.max_trials)):
            if state[name] != own:
                raise RunError(
                    f"the saved comparison has {name}={state[name]} and this one {own}: make it with the same."
                )
        self.starts = int(state["starts"])
        self.trials, self.successes = dict(state["trials"]), dict(state["successes"])
        self.wins = {(i, j): int(n) for i, j, n, _ in state["wins"]}
        self.best = {(i, j): float(e) for i, j, _, e in state["wins"]}
        self.separated = [(i, j) for i, j in state["separated"]]


def _pair(first: Any, second: Any) -> tuple[Array, Array]:
    x, y = numpy.asarray(first), numpy.asarray(second)
    if x.shape != y.shape or x.ndim < 1 or x.shape[-1] == 0:
        raise InvalidInputError(
            f"outcomes of shapes {list(x.shape)} and {list(y.shape)} are no pairs: sequential tests need both policies "
            "on the same starts, at least one, in the same order."
        )
    for name, z in (("first", x), ("second", y)):
        strange = ~((z == 0) | (z == 1))
        if strange.any():
            raise InvalidInputError(
                f"{name} has the outcome {z[strange][0]}, neither 0 nor 1: threshold it, or compare scores over seeds."
            )
    return x.astype(numpy.int64), y.astype(numpy.int64)


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise InvalidInputError(f"{level} is no error rate: give a number between 0 and 1, such as 0.05.")
    return level
