"""Quantiles of the Beta and Student-t distributions in plain Python: the core asks for no statistics package."""

from __future__ import annotations

import math
from itertools import count

from denoiserl.errors import BadSignal


def beta_cdf(x: float, a: float, b: float) -> float:
    """P(X ≤ x) for X ~ Beta(a, b): the regularised incomplete beta function, as a continued fraction.

        I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) · 1 / (1 + d_1 / (1 + d_2 / (1 + ...)))
        d_2m = m (b - m) x / ((a + 2m - 1)(a + 2m)),   d_2m+1 = -(a + m)(a + b + m) x / ((a + 2m)(a + 2m + 1))

    It converges fast below the mean; above it, I_x(a, b) = 1 - I_1-x(b, a). Reference: DLMF 8.17.
    """
    if not (a > 0 and b > 0 and math.isfinite(a + b)):
        raise BadSignal(f"Beta({a}, {b}) is no distribution: give two positive finite parameters.")
    if math.isnan(x):
        raise BadSignal("the probability of being below NaN is not defined: give a number.")
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _below_mean(1 - x, x, b, a)
    return _below_mean(x, 1 - x, a, b)


def _below_mean(x: float, y: float, a: float, b: float) -> float:
    """I_x(a, b), with y = 1 - x given so that neither is rounded away."""
    front = math.exp(a * math.log(x) + b * math.log(y) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    total = numerator = 1.0
    denominator = 0.0
    for j in count(1):  # about sqrt(max(a, b)) terms; Lentz: both partial quotients from the left
        m, odd = divmod(j, 2)
        top = -(a + m) * (a + b + m) if odd else m * (b - m)
        d = top * x / ((a + 2 * m + (1 if odd else -1)) * (a + 2 * m))
        denominator = 1 / _nonzero(1 + d * denominator)
        numerator = _nonzero(1 + d / numerator)
        total *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return front / total


def _nonzero(value: float) -> float:
    return value if value else 1e-300


def beta_quantile(q: float, a: float, b: float) -> float:
    """The x with P(X ≤ x) = q for X ~ Beta(a, b), by bisection to the last digit of x."""
    if not 0 <= q <= 1:
        raise BadSignal(f"{q} is no probability: give a number from 0 to 1.")
    beta_cdf(0.5, a, b)  # refuses what is no distribution
    if q in (0, 1):
        return float(q)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if beta_cdf(middle, a, b) < q:
            low = middle
        else:
            high = middle
    return high


def student_quantile(level: float, freedom: float) -> float:
    """The t with P(|T| ≤ t) = level, for Student's T with ``freedom`` degrees of freedom.

    T²/(freedom + T²) ~ Beta(1/2, freedom/2), so its quantile x gives t = sqrt(freedom x / (1 - x)).
    """
    if not 0 < level < 1:
        raise BadSignal(f"{level} is no confidence level: give a number between 0 and 1, such as 0.95.")
    x = beta_quantile(level, 0.5, freedom / 2)
    return math.sqrt(freedom * x / (1 - x))
