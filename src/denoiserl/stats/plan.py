"""The order of blind, interleaved trials with matched starts, and seeds of training, selection and test that never
overlap.
"""

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

    Starts come in random order. All arms visit a start, in random order, before the next start begins. So every arm has
    the same starts, and drift of the robot or of the evaluator affects all arms equally. A comparison that stops
    between two starts is balanced. Labels are letters in random order: they hide the arms until ``reveal``.
    """

    order: tuple[tuple[str, int], ...]
    key: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def of(cls, arms: Sequence[str], starts: Sequence[int], rng: Rng | int) -> Plan:
        """Return a plan in which each arm tries each of ``starts`` once; the same ``rng`` gives the same plan."""
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
        """The labels in alphabetical order, independent of the arms."""
        return tuple(label for label, _ in self.key)

    def reveal(self) -> dict[str, str]:
        """Return {label: arm}: needed to load the weights, otherwise only after the trials."""
        return dict(self.key)


def selection_seed(seed: int, i: int = 0) -> int:
    """Return the i-th start for selecting checkpoints of the run with training seed ``seed``: 2³⁰ + 2¹⁹ seed + i.

    The best of several checkpoints looks better than it is on the starts that selected it; ``test_seed`` gives others.
    Seeds below 2³⁰ are for training, [2³⁰, 2³¹) for selection and [2³¹, 2³¹ + 2³⁰) for tests. They never overlap if
    training seeds are below 2¹¹ and starts below 2¹⁹. All fit into 32 bits, as simulators need. ``selection_seed(s) +
    i`` is ``selection_seed(s, i)``.
    """
    return (1 << 30) + _offset(seed, i)


def test_seed(seed: int, i: int = 0) -> int:
    """Return the i-th start for evaluating the selected policy: 2³¹ + 2¹⁹ seed + i; see ``selection_seed``."""
    return (1 << 31) + _offset(seed, i)


test_seed.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it where it is imported


def _offset(seed: int, i: int) -> int:
    if not (0 <= seed < SEEDS and 0 <= i < STARTS):
        raise RunError(f"seed {seed}, start {i}: seeds go from 0 to {SEEDS - 1} and starts from 0 to {STARTS - 1}.")
    return seed * STARTS + i
