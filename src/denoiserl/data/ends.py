"""Find where recorded episodes end, from flags, successors and jumps; used by all formats.

``split_episodes`` cuts rows that lie one after another into episodes. ``check_inner_ends`` checks flags within an
episode of a format. Certain ends are cut and contradictions raise an error. Guesses give a warning with their first
row.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from denoiserl.core.errors import InvalidInputError

FAR = 8.0
"""a step is a jump if it exceeds this many times the upper quartile of steps, in a quarter of the moving columns"""
WIDE = 0.06
"""least share of their range (mean over the moving columns) of a jump that counts as an end without any flag; bursts of
columns that mostly rest are no ends"""
FEW = 20
"""least number of steps inside episodes for the detection of jumps"""
ROUNDED = 1e-6
"""largest difference, relative to a number and to the range of its column, of a successor from the next row"""


class Split(NamedTuple):
    """``stop`` [E]: the last row of each episode; ``ended`` [E] bool: a true end; ``known`` [E] bool: the observation
    after that row is stored."""

    stop: np.ndarray
    ended: np.ndarray
    known: np.ndarray


def as_flags(name: str, what: str, value: np.ndarray, n: int) -> np.ndarray:
    """Return a column of ends as bool [n]. Raise InvalidInputError, with the row, if it holds other than zeros and
    ones."""
    flat = np.asarray(value).reshape(-1)
    if len(flat) != n:
        raise InvalidInputError(f"{name} holds {n} actions and {len(flat)} of {what}: it is not whole, copy it again")
    if flat.dtype.kind not in "biuf" or bool(((flat != 0) & (flat != 1)).any()):
        row = 0 if flat.dtype.kind not in "biuf" else int(np.argmax((flat != 0) & (flat != 1)))
        raise InvalidInputError(f"row {row} of {what} of {name} is {flat[row]}: ends are zeros and ones, store them so")
    return flat.astype(bool)


def split_episodes(
    name: str, seen: np.ndarray, ended: np.ndarray, cut: np.ndarray | None = None, after: np.ndarray | None = None
) -> Split:
    """Return the episodes of rows one after another.

    ``seen`` [N, ...]: observations; ``ended`` [N] bool: true ends; ``cut`` [N] bool: time limits (None: not stored);
    ``after`` [N, ...]: the observation after each row (None: not stored).

    With ``after``, an episode stops wherever it differs from the next row. At a time limit where ``after`` is the start
    of the next episode, a jump away, the successor is not known. Without ``after`` and ``cut``, an episode stops at
    wide jumps, far beyond the steps inside episodes. With ``cut``, a jump counts only beside an end without one, whose
    flag is then one row off. Other jumps may be teleports, and give a warning. Warn of all ends that flags do not mark,
    and of runs of flags.
    """
    n, shifted = len(ended), np.zeros(len(ended), bool)
    flagged = ended if cut is None else ended | cut
    stop = flagged.copy()
    stop[-1] = True
    if after is not None:
        follows = _follows(seen, after)
        hidden = ~follows & ~flagged[:-1]
        stop[:-1] |= hidden
        if cut is not None and hidden.any():
            early = cut[:-1] & ~ended[:-1] & follows
            stop[:-1] &= ~early  # wrong flags elsewhere: the successors are right
            more = (
                f", and {_count(early, 'time limit')} lie where it goes on, first in row {_first(early)}"
                if early.any()
                else ""
            )
            _warn(
                f"next_observations of {_count(hidden, 'row')} of {name} are not the next row and no end is flagged, "
                f"first in row {_first(hidden)}{more}: episodes are cut by next_observations; repair the flags"
            )
        if cut is not None:
            shifted = _shifted(name, seen, stop, cut & ~ended & stop, follows)
        over = flagged[:-1] & follows & (seen[1:] != seen[:-1]).any(tuple(range(1, seen.ndim)))
    else:
        inner = ~stop[:-1]
        far, wide = jumps(seen, inner)
        over = flagged[:-1] & ~far & (int(inner.sum()) >= FEW)
        lone = np.append(flagged[:-1] & ~far, False)  # ends without a jump, which may be one row off
        beside = far & ~flagged[:-1] & (lone[1:] | np.append(False, lone[:-2])) & (cut is not None)
        stop[:-1] |= _gaps(name, beside | wide & ~flagged[:-1], beside, cut is not None)
    _runs(name, flagged, over)
    if n > 1 and after is None and not flagged.any() and not stop[:-1].any():
        _warn(f"{name} marks no end: its {n} rows are read as one episode; store timeouts")
    at = np.flatnonzero(stop)
    return Split(at, ended[at], ~shifted[at] & (after is not None))


def jumps(seen: np.ndarray, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which steps from row i to row i + 1 [N - 1] are jumps, and which of these are ``WIDE``.

    The scale is the upper quartile of the steps ``inner`` [N - 1] to an episode, per column. Columns that mostly rest
    are ignored, and a wrapped angle moves by the shorter way.
    """
    if int(inner.sum()) < FEW:
        return np.zeros(len(inner), bool), np.zeros(len(inner), bool)
    columns = np.asarray(seen).reshape(len(seen), -1)
    moving, far, size = 0, *np.zeros((2, len(inner)))
    for column in columns.T:  # one at a time: data sets are large
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


def check_inner_ends(name: str, i: int, ended: np.ndarray, cut: np.ndarray | None = None, refuse: bool = True) -> None:
    """Raise InvalidInputError (or warn) if episode ``i`` has an end before its last row: it may be several episodes."""
    for what, flag in (("terminated", ended), ("truncated", cut)):
        if flag is None or not flag[:-1].any():
            continue
        said = f"episode {i} of {name} {what} in row {int(flag.argmax())} and goes on to row {len(flag) - 1}"
        if refuse:
            raise InvalidInputError(f"{said}: split it, or leave it out with exclude_episodes=({i},)")
        _warn(f"{said}: it may be several episodes in one")


def _follows(seen: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return which successors equal the next row [N - 1], up to rounding; NaN counts as equal and is checked elsewhere.

    The tolerance is the step of the coarsest type that either is stored in, or of float32, in which rows are learned.
    Added is ``ROUNDED`` of the number (1 for smaller ones), or of its column's range if that is less.
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
    """Return which rows [N] of a time ``limit`` [N] store the next episode's start as successor; warn of them."""
    wrong = np.zeros(len(seen), bool)
    if not (limit[:-1] & follows).any():
        return wrong
    wrong[:-1] = limit[:-1] & follows & jumps(seen, ~stop[:-1])[0]
    if wrong.any():
        _warn(
            f"next_observations of {_count(wrong, 'time limit')} of {name} are the start of the next episode, a jump "
            f"away, first in row {_first(wrong)}: the successor is not known there, so these rows are left out"
        )
        wrong[-1] = limit[-1]  # the last row has no next episode, and is stored in the same way
    return wrong


def _gaps(name: str, gap: np.ndarray, beside: np.ndarray, limits: bool) -> np.ndarray:
    """Return which jumps without a flag [N - 1] are ends, some of them ``beside`` a flag; warn of them."""
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
        f"the environment, or ends that timeouts do not mark{said}. Store next_observations to be sure"
    )
    return beside


def _runs(name: str, flagged: np.ndarray, over: np.ndarray) -> None:
    """Warn of consecutive rows flagged as ends while the episode continues."""
    run = over & flagged[1:]
    if run.any():
        _warn(
            f"{_count(run, 'row')} of {name} are ends, and so is the row after each, while the episode continues, "
            f"first in row {_first(run)}: each is read as an end, hence as an episode of one row; keep the last "
            "flag of a run if only that is one"
        )


def _count(mask: np.ndarray, word: str) -> str:
    count = int(mask.sum())
    return f"{count} {word}{'s' * (count != 1)}"


def _first(mask: np.ndarray) -> int:
    return int(mask.argmax())


def _warn(said: str) -> None:
    warnings.warn(said, stacklevel=5)
