"""95 % intervals of success rates, mean scores and paired differences.

    what was measured                              interval
    k successes in n trials                        ``binomial(k, n)``, ``rate_interval(outcomes)``
    n independent scores                           ``t_interval(scores)``
    skewed scores, or another statistic            ``bootstrap(scores, rng)``
    two policies on the same episodes or prompts   ``paired_interval(after, before)``
    n scores for each of S training seeds          ``hierarchical_bootstrap(scores, rng)``

Observations must be independent. Average several draws for one prompt, or several starts of one seed, first:
otherwise n is too large and the interval too narrow. ``hierarchical_bootstrap`` takes scores grouped by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from scipy import special  # not scipy.stats, which takes longer to import than torch's tensors
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng

Values = Tensor | numpy.ndarray | Sequence[float] | Sequence[bool]


@dataclass(frozen=True)
class Interval:
    """An estimate, the ends of its interval, and its number of independent observations.

    If all scores are equal the width is 0 for any n; the text then says "all equal".
    """

    mean: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in (self.mean, self.low, self.high)) or self.low > self.high or self.n < 1:
            raise InvalidInputError(
                f"{self.mean} with ends {self.low} and {self.high} from {self.n} observations is no interval: "
                "ends must be finite and ordered, and there must be an observation."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``; ``Interval(**d)`` reads them."""
        return asdict(self)

    def compare(self, other: Interval) -> int:
        """Return 1 if this whole interval lies above the other, -1 if it lies below, 0 if they touch.

        Stricter than a test of the difference: two 95 % intervals that do not touch differ at about p < 0.006.
        """
        return int(self.low > other.high) - int(self.high < other.low)

    def __format__(self, spec: str) -> str:
        """Format the three numbers, as in ``f"{interval:.1%}"``; an empty spec gives two digits of the width."""
        spec = spec or f".{max(0, _decimals((self.high - self.low) / 2))}f"
        low, high, mean = (format(v, spec) for v in (self.low, self.high, self.mean))
        if spec.endswith("%"):
            low = low.removesuffix("%")
        same = ", all equal" if self.n > 1 and self.low == self.high else ""
        return f"{mean} [{low}, {high}] (n={self.n}{same})"

    def __str__(self) -> str:
        return format(self, "")


@dataclass(frozen=True)
class Beta:
    """The Beta(a, b) distribution of a rate: its density (a violin), its mean and its quantiles.

    density(p) = p^(a - 1) (1 - p)^(b - 1) / B(a, b)
    """

    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)

    def density(self, rates: Values) -> numpy.ndarray:
        """Return the density at ``rates`` in [0, 1], any shape; 0 outside."""
        p = numpy.asarray(rates, numpy.float64)
        inside = (p >= 0) & (p <= 1)
        q = numpy.where(inside, p, 0.5)
        log = special.xlogy(self.a - 1, q) + special.xlog1py(self.b - 1, -q) - special.betaln(self.a, self.b)
        return numpy.where(inside, numpy.exp(log), 0.0)

    def quantile(self, q: float) -> float:
        """Return the rate below which the probability is ``q``."""
        if not 0 <= q <= 1:
            raise InvalidInputError(f"there is no quantile at {q}: give a probability between 0 and 1.")
        return float(special.betaincinv(self.a, self.b, q))


def posterior(successes: int, trials: int) -> Beta:
    """Return the posterior of a rate after k successes in n trials, uniform prior: Beta(k + 1, n - k + 1)."""
    if successes != int(successes) or trials != int(trials):
        raise InvalidInputError(f"{successes} of {trials}: successes and trials are counted in whole numbers.")
    if trials < 1:
        raise InvalidInputError("no trials, so no rate: evaluate at least one episode.")
    if not 0 <= successes <= trials:
        raise InvalidInputError(
            f"{successes} successes in {trials} trials cannot be: count both over the same episodes."
        )
    return Beta(int(successes) + 1, int(trials) - int(successes) + 1)


def binomial(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Return the equal-tailed posterior interval of a success rate k/n, under a uniform prior.

        rate | k ~ Beta(k + 1, n - k + 1)

    At k = 0 the lower end is 0 and at k = n the upper end is 1, so that the observed rate is always inside. Averaged
    over a uniform rate the coverage is exactly ``level`` + (1 - ``level``)/(n + 1); at a fixed rate it oscillates
    around it. Reference: Brown, Cai, DasGupta, Interval estimation for a binomial proportion (2001).
    """
    rate, tail = posterior(successes, trials), (1 - _level(level)) / 2
    k, n = int(successes), int(trials)
    low = rate.quantile(tail) if k else 0.0
    high = rate.quantile(1 - tail) if k < n else 1.0
    return Interval(k / n, low, high, n)


def rate_interval(outcomes: Values, level: float = 0.95) -> Interval:
    """Return the ``binomial`` interval of outcomes [n]. Raise ``InvalidInputError`` if one is neither 0 nor 1."""
    x = _values(outcomes, "outcomes")
    strange = ((x != 0) & (x != 1)).nonzero().flatten()
    if len(strange):
        i = int(strange[0])
        raise InvalidInputError(
            f"outcome {i} is {x[i].item():g}, neither 0 nor 1: threshold it first, or give scores to t_interval."
        )
    return binomial(int(x.sum()), len(x), level)


def t_interval(scores: Values, level: float = 0.95, bounds: tuple[float, float] | None = None) -> Interval:
    """Return the interval of the mean of scores [n]: x̄ ± t s/√n, Student's t with n - 1 degrees of freedom.

    ``bounds`` are the least and the greatest possible score: the interval is cut there, and a score outside raises
    ``InvalidInputError``. Equal scores have an interval of zero width; for outcomes use ``rate_interval``.
    """
    x = _values(scores, "scores", least=2)
    if bounds is not None and not (bounds[0] <= x.min() and x.max() <= bounds[1]):
        raise InvalidInputError(
            f"scores go from {x.min():g} to {x.max():g}, outside the bounds {bounds}: correct one of them."
        )
    mean = x.mean().item()
    half = float(special.stdtrit(len(x) - 1, (1 + _level(level)) / 2)) * x.std().item() / math.sqrt(len(x))
    low, high = bounds or (-math.inf, math.inf)
    return Interval(mean, max(low, mean - half), min(high, mean + half), len(x))


def auto_interval(outcomes: Values, level: float = 0.95) -> tuple[Interval, bool]:
    """Return the interval of outcomes [n] and whether they are a rate: ``rate_interval`` if all are 0 or 1, else
    ``t_interval``.
    """
    values = _values(outcomes, "outcomes")
    rate = bool(((values == 0) | (values == 1)).all())
    return (rate_interval(values, level) if rate else t_interval(values, level)), rate


def bootstrap(
    scores: Values,
    rng: Rng | int,
    level: float = 0.95,
    draws: int = 4000,
    statistic: Callable[[Tensor], Tensor] = lambda x: x.mean(-1),
) -> Interval:
    """Return the percentile interval of a ``statistic`` ([..., n] -> [...], default: mean) over resampled scores [n].

    Use it for skewed scores, medians, trimmed means or quantiles. With fewer than about 20 scores it is too narrow;
    use ``t_interval`` then. Reference: Efron, Tibshirani, An introduction to the bootstrap (1993), chapter 13.
    """
    rng = as_rng(rng)
    x = _values(scores, "scores", least=2)
    if draws < 100:
        raise InvalidInputError(
            f"{draws} resamples are too few for the ends of an interval: use at least 100, better 4000."
        )
    share = max(1, 4_000_000 // len(x))  # about 32 MB at a time
    drawn: list[Tensor] = []
    for start in range(0, draws, share):
        index = rng.integers(0, len(x), min(share, draws - start), len(x)).to(x.device)
        drawn.append(statistic(x[index]))
    found, tail = torch.cat(drawn), (1 - _level(level)) / 2
    if found.shape != (draws,):
        raise InvalidInputError(
            f"the statistic maps [draws, n] to {list(found.shape)}, not to [draws]: reduce the last axis."
        )
    low, high = torch.quantile(found, torch.tensor([tail, 1 - tail], dtype=found.dtype)).tolist()
    return Interval(float(statistic(x)), low, high, len(x))


def hierarchical_bootstrap(scores: Tensor, rng: Rng | int, level: float = 0.95, draws: int = 4000) -> Interval:
    """Return the bootstrap interval of the mean of scores [S, n]: resample seeds, then the trials of each seed.

    For a paired comparison, pass differences of two arms; for partial success, pass milestone scores in [0, 1]. It
    assumes no normal distribution, but it needs many seeds. If seeds differ more than their trials explain, a 95 %
    interval covers 78 % with 3 seeds, 85 % with 5, 92 % with 10, 95 % with 20. With fewer than 10 use ``standings``
    (Student's t over seeds). If seeds do not differ it is too wide, because resampled trials add their noise twice. n
    of the interval is S. Reference: Davison, Hinkley, Bootstrap methods and their application (1997), section 3.8.
    """
    rng = as_rng(rng)
    x = torch.as_tensor(scores).detach().to("cpu", torch.float64)
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise InvalidInputError(
            f"scores have shape {list(x.shape)}, not [S, n]: give the trials of at least two seeds."
        )
    _values(x.flatten(), "scores")
    if draws < 100:
        raise InvalidInputError(
            f"{draws} resamples are too few for the ends of an interval: use at least 100, better 4000."
        )
    seeds, trials = x.shape
    share = max(1, 4_000_000 // x.numel())
    drawn: list[Tensor] = []
    for start in range(0, draws, share):
        d = min(share, draws - start)
        seed, trial = rng.integers(0, seeds, d, seeds, 1).to("cpu"), rng.integers(0, trials, d, seeds, trials).to("cpu")
        drawn.append(x[seed, trial].mean((1, 2)))
    tail = (1 - _level(level)) / 2
    low, high = torch.quantile(torch.cat(drawn), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(x.mean().item(), low, high, seeds)


def paired_interval(after: Values, before: Values, level: float = 0.95) -> Interval:
    """Return the ``t_interval`` of after_i - before_i, where i is the same episode, seed or prompt in both.

    Effects common to both (hard and easy episodes) cancel, so the interval is narrower than two separate ones.
    There is a gain if ``low > 0``.
    """
    x, y = _values(after, "after"), _values(before, "before")
    if len(x) != len(y):
        raise InvalidInputError(
            f"{len(x)} values after and {len(y)} before are no pairs: evaluate both on the same episodes."
        )
    return t_interval(x - y, level)


def _values(values: Values, name: str, least: int = 1) -> Tensor:
    """Return float64 [n]. Raise ``InvalidInputError`` for too few values or ones that are not finite."""
    x = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if x.ndim != 1:
        raise InvalidInputError(
            f"{name} have shape {list(x.shape)}, not [n]: flatten independent ones, average repeats of one episode."
        )
    if len(x) < least:
        raise InvalidInputError(f"{len(x)} {name} are too few for an interval: evaluate at least {least}.")
    bad = (~torch.isfinite(x)).nonzero().flatten()
    if len(bad):
        raise InvalidInputError(
            f"{len(bad)} of {len(x)} {name} are not finite (the first: {name}[{int(bad[0])}]): find out why."
        )
    return x


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise InvalidInputError(f"{level} is no confidence level: give a number between 0 and 1, such as 0.95.")
    return level


def _decimals(width: float) -> int:
    """Return the number of decimals that show two significant digits of ``width``."""
    return 3 if width <= 0 else min(12, 1 - math.floor(math.log10(width)))
