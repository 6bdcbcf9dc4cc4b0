"""Where recorded episodes end: one judgement for all formats of what flags, successors and jumps say.

``split`` cuts rows that lie one after another into episodes. ``inside`` judges flags within what a format already calls
one episode. What is certain is cut or refused; what is a guess is a warning with its first row.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from denoiserl.core.errors import InvalidInputError

FAR = 8.0
"""a step is a jump from so many times the upper quartile of steps on, in a quarter of the numbers that move"""
WIDE = 0.06
"""the share of their range that it crosses, a mean over these numbers, where nothing but the jump tells of an end:
bursts of what mostly rests are no ends"""
FEW = 20
"""steps inside episodes below which nothing is said about jumps"""
ROUNDED = 1e-6
"""the difference, relative to a number and to the span of its column, up to which a successor is the next row"""


class Split(NamedTuple):
    """``stop`` [E]: the last row of each episode; ``ended`` [E] bool: it truly ended there; ``known`` [E] bool: what
    followed that row is stored."""

    stop: np.ndarray
    ended: np.ndarray
    known: np.ndarray


def flags(name: str, what: str, value: np.ndarray, n: int) -> np.ndarray:
    """Return a column of ends as bool [n]. Raise InvalidInputError, with the row, if it is not made of zeros and
    ones."""
    flat = np.asarray(value).reshape(-1)
    if len(flat) != n:
        raise InvalidInputError(f"{name} holds {n} actions and {len(flat)} of {what}: it is not whole, copy it again")
    if flat.dtype.kind not in "biuf" or bool(((flat != 0) & (flat != 1)).any()):
        row = 0 if flat.dtype.kind not in "biuf" else int(np.argmax((flat != 0) & (flat != 1)))
        raise InvalidInputError(f"row {row} of {what} of {name} is {flat[row]}: ends are zeros and ones, store them so")
    return flat.astype(bool)


def split(
    name: str, seen: np.ndarray, ended: np.ndarray, cut: np.ndarray | None = None, after: np.ndarray | None = None
) -> Split:
    """Return the episodes of rows one after another.

    ``seen`` [N, ...]: observations; ``ended`` [N] bool: true ends; ``cut`` [N] bool: time limits (None: not stored);
    ``after`` [N, ...]: what followed each row (None: not stored).

    With ``after``, an episode stops wherever it differs from the next row. Where a time limit cut it and ``after`` is
    the start of the next episode, a jump away, what followed is not known. Without ``after`` and without ``cut``, an
    episode stops at wide jumps, far beyond the steps inside episodes. With ``cut`` a jump is believed only beside an
    end that has none, which then lies one row off; others may be teleports, and are told. Warn of all that flags do not
    say, and of runs of them.
    """
    n, shifted = len(ended), np.zeros(len(ended), bool)
    told = ended if cut is None else ended | cut
    stop = told.copy()
    stop[-1] = True
    if after is not None:
        follows = _follows(seen, after)
        hidden = ~follows & ~told[:-1]
        stop[:-1] |= hidden
        if cut is not None and hidden.any():
            early = cut[:-1] & ~ended[:-1] & follows
            stop[:-1] &= ~early  # flags that are wrong elsewhere: the successors are right
            more = (
                f", and {_count(early, 'time limit')} lie where it goes on, first in row {_first(early)}"
                if early.any()
                else ""
            )
            _warn(
                f"next_observations of {_count(hidden, 'row')} of {name} are not the next row and no end is told, first"
                f" in row {_first(hidden)}{more}: episodes are cut at what next_observations say; repair the flags"
            )
        if cut is not None:
            shifted = _shifted(name, seen, stop, cut & ~ended & stop, follows)
        over = told[:-1] & follows & (seen[1:] != seen[:-1]).any(tuple(range(1, seen.ndim)))
    else:
        inner = ~stop[:-1]
        far, wide = jumps(seen, inner)
        over = told[:-1] & ~far & (int(inner.sum()) >= FEW)
        lone = np.append(told[:-1] & ~far, False)  # ends without a jump, beside which one may lie
        beside = far & ~told[:-1] & (lone[1:] | np.append(False, lone[:-2])) & (cut is not None)
        stop[:-1] |= _gaps(name, beside | wide & ~told[:-1], beside, cut is not None)
    _runs(name, told, over)
    if n > 1 and after is None and not told.any() and not stop[:-1].any():
        _warn(f"{name} tells of no end: its {n} rows are read as one episode; store timeouts")
    at = np.flatnonzero(stop)
    return Split(at, ended[at], ~shifted[at] & (after is not None))


def jumps(seen: np.ndarray, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which steps from row i to row i + 1 [N - 1] are jumps, by those that lie ``inner`` [N - 1] to an episode,
    and which of these are ``WIDE``.

    The size of a number's step is measured by its upper quartile; numbers that mostly stand still say nothing, and an
    angle that is wrapped has moved by the shorter way.
    """
    if int(inner.sum()) < FEW:
        return np.zeros(len(inner), bool), np.zeros(len(inner), bool)
    columns = np.asarray(seen).reshape(len(seen), -1)
    moving, far, size = 0, *np.zeros((2, len(inner)))
    for column in columns.T:  # one at a time: recordings are large
        column = column.astype(np.float64)
        width = np.ptp(column)
        step = np.abs(np.diff(column))
        if np.pi < width <= 2 * np.pi + 1e-3:
            step = np.minimum(step, 2 * np.pi - step)
        usual = np.quantile(step[inner], 0.75)
        if usual > 0:
            moving += 1
            far += step > FAR * usual
            size += np.divide(step, width, out=step)
    jump = (far >= 0.25 * moving) & (moving > 0)
    return jump, jump & (size >= WIDE * moving)


def inside(name: str, i: int, ended: np.ndarray, cut: np.ndarray | None = None, refuse: bool = True) -> None:
    """Raise InvalidInputError (or warn) if episode ``i`` says before its last row that it is over: it may be several in
    one."""
    for what, flag in (("terminated", ended), ("truncated", cut)):
        if flag is None or not flag[:-1].any():
            continue
        said = f"episode {i} of {name} {what} in row {int(flag.argmax())} and goes on to row {len(flag) - 1}"
        if refuse:
            raise InvalidInputError(f"{said}: split it, or leave it out with exclude_episodes=({i},)")
        _warn(f"{said}: it may be several episodes in one")


def _follows(seen: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which successors are the next row [N - 1], up to rounding; NaN says nothing here, and is refused elsewhere.

    Rounded is what differs by the step of the coarsest numbers that either is stored in, or float32, in which rows are
    learned; and by ``ROUNDED`` of the number (1 for smaller ones), or of what its column spans if that is less.
    """
    same = np.ones(len(seen) - 1, bool)
    kinds = [np.finfo(v.dtype) for v in (seen, after) if v.dtype.kind == "f"] + [np.finfo(np.float32)]
    step, least = (max(float(getattr(k, what)) for k in kinds) for what in ("eps", "smallest_subnormal"))
    for x, y in zip(after.reshape(len(seen), -1).T, seen.reshape(len(seen), -1).T, strict=True):
        differ = np.flatnonzero(x[:-1] != y[1:])  # few, so that the rest costs one comparison
        if len(differ) == 0:
            continue
        a, b = x[differ].astype(np.float64), y[differ + 1].astype(np.float64)
        finite = y[np.isfinite(y)].astype(np.float64)
        span = np.ptp(finite) if len(finite) else 0.0
        with np.errstate(invalid="ignore"):
            size = np.abs(b)
            rounded = np.maximum(step * size + least, ROUNDED * np.minimum(np.maximum(1.0, size), span))
            near = np.abs(a - b) <= rounded
        same[differ] &= near | np.isnan(a) | np.isnan(b)
    return same


def _shifted(name: str, seen: np.ndarray, stop: np.ndarray, limit: np.ndarray, follows: np.ndarray) -> np.ndarray:
    """Which rows [N] of a time ``limit`` [N] store the next episode's start as what followed; warn of them."""
    wrong = np.zeros(len(seen), bool)
    if not (limit[:-1] & follows).any():
        return wrong
    wrong[:-1] = limit[:-1] & follows & jumps(seen, ~stop[:-1])[0]
    if wrong.any():
        _warn(
            f"next_observations of {_count(wrong, 'time limit')} of {name} are the start of the next episode, a jump "
            f"away, first in row {_first(wrong)}: what followed there is not known, so these rows are left out"
        )
        wrong[-1] = limit[-1]  # the last row has no next episode, and is stored in the same way
    return wrong


def _gaps(name: str, gap: np.ndarray, beside: np.ndarray, limits: bool) -> np.ndarray:
    """Which of the jumps that no flag tells of [N - 1] are ends, some of them ``beside`` a flag; warn of them."""
    if not gap.any():
        return gap
    count, first = _count(gap, "gap"), _first(gap)
    if not limits:
        _warn(
            f"{name} stores no timeouts, and {count} far beyond the steps inside its episodes, first after row {first},"
            " have no end: episodes are cut there. If these are steps of the environment, store timeouts of zeros"
        )
        return gap
    said = (
        f"; {int(beside.sum())} of them lie one row beside an end, which is taken to be one row off: episodes are cut "
        "there too"
        if beside.any()
        else ""
    )
    _warn(
        f"{name} jumps far beyond its other steps inside episodes ({count}, first after row {first}): teleports of "
        f"the environment, or ends that timeouts do not tell{said}. Store next_observations to be sure"
    )
    return beside


def _runs(name: str, told: np.ndarray, over: np.ndarray) -> None:
    """Warn of rows that say the episode is over, one after another, while it goes on."""
    run = over & told[1:]
    if run.any():
        _warn(
            f"{_count(run, 'row')} of {name} say that the episode is over and the next row says it again while it goes "
            f"on, first in row {_first(run)}: each is read as an end, hence as an episode of one row; keep the last "
            "flag of a run if only that is one"
        )


def _count(mask: np.ndarray, word: str) -> str:
    count = int(mask.sum())
    return f"{count} {word}{'s' * (count != 1)}"


def _first(mask: np.ndarray) -> int:
    return int(mask.argmax())


def _warn(said: str) -> None:
    warnings.warn(said, stacklevel=5)
