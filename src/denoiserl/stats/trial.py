"""Rollouts of one policy on one task, and the conditions under which they may be joined or paired."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from denoiserl.core.errors import InvalidInputError, RunError


@dataclass(frozen=True)
class Trials:
    """Results of one policy on n starts: one value per start, in the same order.

    ``policy`` is its ``fingerprint``. ``starts`` are the seeds of the initial conditions, each at most once. ``rubric``
    is the sentence, fixed before the runs, that defines the value. ``steps`` is how long each trial took. Every planned
    start has a value: a trial that ran out of time is a failure, not a gap; see ``Trials.from_success_steps``.
    """

    policy: str
    task: str
    metric: str
    starts: tuple[int, ...]
    value: tuple[float, ...]
    steps: tuple[int, ...] | None = None
    rubric: str = ""

    def __post_init__(self) -> None:
        n = len(self.starts)
        if n == 0:
            raise InvalidInputError(f"no trials of {self.policy} on {self.task}: roll out at least one start.")
        if len(self.value) != n or (self.steps is not None and len(self.steps) != n):
            counts = f"{n} starts, {len(self.value)} values" + (f", {len(self.steps)} steps" if self.steps else "")
            raise InvalidInputError(
                f"{counts}: every start has one value; a trial that timed out is a failure, not a gap."
            )
        if len(set(self.starts)) < n:
            twice = next(s for i, s in enumerate(self.starts) if s in self.starts[:i])
            raise InvalidInputError(f"start {twice} was tried twice: repeats are not observations, average them first.")
        bad = [s for s, v in zip(self.starts, self.value, strict=True) if not math.isfinite(v)]
        if bad:
            raise InvalidInputError(
                f"the value of start {bad[0]} is not finite: find out why, and count a timeout as failure."
            )

    @classmethod
    def from_success_steps(
        cls,
        policy: str,
        task: str,
        starts: Sequence[int],
        reached: Mapping[int, int],
        limit: int,
        metric: str = "success",
        rubric: str = "",
    ) -> Trials:
        """Return success trials; ``reached`` is {start: step of success}, and starts not in it timed out and failed.

        A success later than ``limit`` is a failure too. Raise ``InvalidInputError`` for a success on an unplanned
        start.
        """
        stranger = sorted(set(reached) - set(starts))
        if stranger:
            raise InvalidInputError(
                f"start {stranger[0]} was not planned: plan it, or leave its outcome out for every policy."
            )
        done = [start in reached and reached[start] <= limit for start in starts]
        steps = tuple(int(reached[s]) if ok else int(limit) for s, ok in zip(starts, done, strict=True))
        return cls(policy, task, metric, tuple(map(int, starts)), tuple(map(float, done)), steps, rubric)

    def __len__(self) -> int:
        return len(self.starts)


def fingerprint(tree: Any) -> str:
    """Return 16 hex digits of the SHA-256 of names, shapes, dtypes and bytes of a tree of tensors."""
    digest = hashlib.sha256()
    for name, x in sorted(_leaves(tree, "")):
        data = x.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest.update(f"{len(name)}:{name}|{x.dtype}|{list(x.shape)}|{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def join_runs(first: Trials, *others: Trials) -> Trials:
    """Join several runs of the same policy on the same task, metric and rubric, with no start twice."""
    for other in others:
        if other.policy != first.policy:
            raise InvalidInputError(
                f"these trials are of {first.policy} and of {other.policy}, policies with different weights: compare "
                "them as different arms."
            )
        _same(first, other)
        again = sorted(set(first.starts) & set(other.starts))
        if again:
            raise InvalidInputError(
                f"{len(again)} starts are in both (the first: {again[0]}): every start counts once."
            )
        steps = None if first.steps is None or other.steps is None else first.steps + other.steps
        first = replace(first, starts=first.starts + other.starts, value=first.value + other.value, steps=steps)
    return first


def pairs(first: Trials, second: Trials) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the values of two policies, each [n], aligned by start, for McNemar's test and the sequential tests."""
    _same(first, second)
    if len(first) != len(second):
        raise InvalidInputError(
            f"{len(first)} trials of {first.policy} and {len(second)} of {second.policy}: mcnemar, e_pairs and paired "
            "need the same starts for both; run the rest, or use barnard, which needs no pairs."
        )
    alone = sorted(set(first.starts) ^ set(second.starts))
    if alone:
        raise InvalidInputError(
            f"{len(alone)} starts were tried by one policy only (the first: {alone[0]}): mcnemar, e_pairs and paired "
            "need the same starts for both; barnard needs no pairs."
        )
    x, y = (dict(zip(t.starts, t.value, strict=True)) for t in (first, second))
    order = first.starts
    return numpy.array([x[s] for s in order]), numpy.array([y[s] for s in order])


def write(path: Path | str, trials: Iterable[Trials]) -> None:
    """Write JSON lines, one rollout per line; concatenated files are valid too."""
    lines: list[str] = []
    for t in trials:
        head = {"policy": t.policy, "task": t.task, "metric": t.metric, "rubric": t.rubric}
        for i, (start, value) in enumerate(zip(t.starts, t.value, strict=True)):
            step = {} if t.steps is None else {"steps": t.steps[i]}
            lines.append(json.dumps({**head, "start": start, "value": value, **step}, allow_nan=False))
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read(path: Path | str) -> list[Trials]:
    """Read the file that ``write`` wrote: one ``Trials`` per policy, task, metric and rubric, in file order."""
    found: dict[tuple[str, str, str, str], list[tuple[int, float, int | None]]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            key = (row.pop("policy"), row.pop("task"), row.pop("metric"), row.pop("rubric"))
            trial = (int(row.pop("start")), float(row.pop("value")), row.pop("steps", None))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}, line {number} is no trial ({error!r}): repair the line or leave it out.") from None
        if row:
            raise RunError(f"{path}, line {number} has unknown keys {sorted(row)}: it was written by something else.")
        found.setdefault(key, []).append(trial)
    trials: list[Trials] = []
    for (policy, task, metric, rubric), rows in found.items():
        starts, value, steps = zip(*rows, strict=True)
        timed = None not in steps
        if not timed and any(s is not None for s in steps):
            raise RunError(
                f"{path}: some trials of {policy} have steps and some have none: record them for all or none."
            )
        trials.append(Trials(policy, task, metric, starts, value, steps if timed else None, rubric))
    return trials


def _same(first: Trials, second: Trials) -> None:
    for what in ("task", "metric", "rubric"):
        x, y = getattr(first, what), getattr(second, what)
        if x != y:
            raise InvalidInputError(
                f"one {what} is {x!r} and the other {y!r}: values of different measurements do not mix."
            )


def _leaves(tree: Any, name: str) -> list[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        return [(name, tree)]
    if isinstance(tree, Mapping):
        return [leaf for key, branch in tree.items() for leaf in _leaves(branch, f"{name}/{key}")]
    if isinstance(tree, list | tuple):
        return [leaf for i, branch in enumerate(tree) for leaf in _leaves(branch, f"{name}/{i}")]
    raise InvalidInputError(
        f"{name or 'this'} is a {type(tree).__name__}, not a tensor: give the fingerprint a state dict."
    )
