"""The compact letter display: arms that share a letter were not separated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from string import ascii_letters
from typing import Literal

from denoiserl.core.errors import InvalidInputError, unknown_name_message

MOST = 10 * len(ascii_letters)
"""largest number of columns while the display is computed; some separations need exponentially many"""


def compact_letters(
    means: Mapping[str, float], separated: Iterable[tuple[str, str]], better: Literal["higher", "lower"] = "higher"
) -> dict[str, str]:
    """Return {arm: letters}, best arm first: two arms share a letter exactly if they are not ``separated``.

    Insert and absorb: one column holds all arms. A separated pair splits every column with both into one without the
    first and one without the second; a column inside another is dropped. Sweep: an arm leaves a column if it shares
    every member of it elsewhere, so no letter is redundant. Columns are lettered by their best arms, so the best arm
    has an "a".

    Raise ``InvalidInputError`` for a pair with an unknown arm or of one arm with itself, for more than 52 letters, and
    for more than ``MOST`` columns. Reference: Piepho, An algorithm for a letter-based representation of all-pairwise
    comparisons (2004).
    """
    if better not in ("higher", "lower"):
        raise InvalidInputError(f"better={better!r} is no direction: pass 'higher' or 'lower'.")
    order = sorted(means, key=lambda name: means[name], reverse=better == "higher")
    rank = {name: i for i, name in enumerate(order)}
    if not order:
        return {}
    columns = [frozenset(range(len(order)))]
    for pair in separated:
        for name in pair:
            if name not in rank:
                raise InvalidInputError(unknown_name_message(name, rank, "arm"))
        if pair[0] == pair[1]:
            raise InvalidInputError(f"{pair[0]!r} cannot be separated from itself: a pair is two arms.")
        columns = _split(columns, rank[pair[0]], rank[pair[1]])
        if len(columns) > MOST:
            raise InvalidInputError(
                f"these pairs need more than {MOST} letters: the separations have no short display, so show the pairs "
                "instead."
            )
    found = _swept(columns, len(order))
    if len(found) > len(ascii_letters):
        raise InvalidInputError(f"{len(found)} letters are more than the alphabet has: show the pairs instead.")
    return {
        name: "".join(letter for letter, column in zip(ascii_letters, found, strict=False) if i in column)
        for name, i in rank.items()
    }


def _split(columns: list[frozenset[int]], i: int, j: int) -> list[frozenset[int]]:
    """Split the columns that hold both i and j, then drop columns that another one contains."""
    whole = [column for column in columns if not {i, j} <= column]
    parts = {column - {k} for column in columns if {i, j} <= column for k in (i, j)}
    kept = [part for part in parts if not any(part <= column for column in whole)]
    return whole + [part for part in kept if not any(part < other for other in kept)]


def _swept(columns: list[frozenset[int]], arms: int) -> list[frozenset[int]]:
    """Return columns in the order of their best arms, without redundant members."""
    held = [set(column) for column in sorted(columns, key=sorted)]
    count = {pair: 0 for pair in combinations(range(arms), 2)}
    own = dict.fromkeys(range(arms), 0)
    for column in held:
        for i in column:
            own[i] += 1
        for pair in combinations(sorted(column), 2):
            count[pair] += 1
    for column in reversed(held):
        for i in sorted(column, reverse=True):
            shared = [(min(i, j), max(i, j)) for j in column if j != i]
            if own[i] > 1 and all(count[pair] > 1 for pair in shared):
                column.discard(i)
                own[i] -= 1
                for pair in shared:
                    count[pair] -= 1
    return sorted((frozenset(column) for column in held if column), key=sorted)
