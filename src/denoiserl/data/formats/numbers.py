"""Episode numbers as text: ``0-2,5`` is 0, 1, 2 and 5."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from denoiserl.core.errors import InvalidInputError, RunError


def parse(word: Collection[int] | str | int) -> frozenset[int]:
    """Return the episode numbers of one number, a collection, or text such as ``0-2,5``. Raise RunError for other
    text."""
    if not isinstance(word, str):
        return frozenset(int(i) for i in ((word,) if isinstance(word, int) else word))
    found: set[int] = set()
    for part in filter(None, (p.strip() for p in word.split(","))):
        low, dash, high = part.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise RunError(f"{part!r} is no episode number: write numbers as 0-2,5")
        if dash and int(high) < int(low):
            raise RunError(f"{part!r} runs backwards: write the lower number of an episode first")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def format_numbers(numbers: Iterable[int]) -> str:
    """Return numbers as text that ``parse`` reads, runs as LOW-HIGH."""
    runs: list[list[int]] = []
    for i in sorted(set(numbers)):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def check(name: str, without: Collection[int], known: Collection[int]) -> None:
    """Raise InvalidInputError if an episode to leave out does not exist, or if none is left."""
    strange = set(without) - set(known)
    if strange:
        raise InvalidInputError(
            f"{name} has no episode {format_numbers(strange)} to leave out: its episodes are {format_numbers(known)}"
        )
    if known and not set(known) - set(without):
        raise InvalidInputError(f"{name} has no episode beside those left out: leave fewer out")
