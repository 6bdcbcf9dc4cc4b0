"""Who tries what, in which order: a blind, interleaved plan with matched starts, and seeds that never meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase

from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng, as_rng

SEEDS = 1 << 11
STARTS = 1 << 19


@dataclass(frozen=True)
class Plan:
    """The order of trials of a blind comparison; iterate over it for (label, start).

    Starts come in random order, and each is one block that all arms visit in random order before the next start
    begins. So every arm meets the same starts, drift of the robot or of the evaluator falls on all arms alike, and a
    comparison that is stopped between two blocks is balanced. Labels are letters dealt at random: whoever runs and
    judges the trials does not know the arms until ``reveal``.
    """

    order: tuple[tuple[str, int], ...]
    key: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def of(cls, arms: Sequence[str], starts: Sequence[int], rng: Rng | int) -> Plan:
        """A plan in which each of ``arms`` tries each of ``starts`` once; the same ``rng`` gives the same plan."""
        rng = as_rng(rng)
        twice = sorted({name for name in arms if list(arms).count(name) > 1})
        if twice:
            raise RunError(f"{', '.join(twice)} is named twice: give every arm a name of its own.")
        if not 2 <= len(arms) <= len(ascii_uppercase):
            raise RunError(f"{len(arms)} arms cannot be compared blindly: give between 2 and {len(ascii_uppercase)}.")
        if not starts:
            raise RunError("no starts, so no trials: give the seeds of the initial conditions.")
        if len(set(starts)) < len(starts):
            raise RunError("a start is planned twice: repeats of a start are not observations, give different ones.")
        labels = ascii_uppercase[: len(arms)]
        key = tuple(zip(labels, (str(arms[int(i)]) for i in rng.permutation(len(arms))), strict=True))
        order = tuple(
            (labels[j], int(starts[i]))
            for i in rng.permutation(len(starts)).tolist()
            for j in rng.permutation(len(arms)).tolist()
        )
        return cls(order, key)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in alphabetical order, which says nothing about the arms."""
        return tuple(label for label, _ in self.key)

    def reveal(self) -> dict[str, str]:
        """{label: arm}. For the program that loads the weights, and for everybody else when the trials are over."""
        return dict(self.key)


def selection_seed(seed: int, i: int = 0) -> int:
    """The i-th start on which checkpoints of the run with training seed ``seed`` are CHOSEN: 2³⁰ + 2¹⁹ seed + i.

    The best of several checkpoints looks better than it is on the starts that chose it; ``test_seed`` gives others.
    Seeds below 2³⁰ belong to training, [2³⁰, 2³¹) to selection and [2³¹, 2³¹ + 2³⁰) to tests, so that none of them
    meets another as long as training seeds are below 2¹¹ and starts below 2¹⁹; all fit into 32 bits, as simulators
    ask. ``selection_seed(s) + i`` is ``selection_seed(s, i)``.
    """
    return (1 << 30) + _offset(seed, i)


def test_seed(seed: int, i: int = 0) -> int:
    """The i-th start on which the chosen policy is JUDGED: 2³¹ + 2¹⁹ seed + i; see ``selection_seed``."""
    return (1 << 31) + _offset(seed, i)


test_seed.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it where it is imported


def _offset(seed: int, i: int) -> int:
    if not (0 <= seed < SEEDS and 0 <= i < STARTS):
        raise RunError(f"seed {seed}, start {i}: seeds go from 0 to {SEEDS - 1} and starts from 0 to {STARTS - 1}.")
    return seed * STARTS + i
