"""Trials of finished policies: blind, interleaved, on the same starts, optionally stopped early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.progress import show_progress, track
from denoiserl.core.rng import Rng
from denoiserl.envs.evaluate import REACHED, WORDS
from denoiserl.envs.remarks import remarks
from denoiserl.policy.policy import Policy
from denoiserl.stats import ComparisonTable, SequentialComparison, fingerprint, standings
from denoiserl.stats.plan import Plan
from denoiserl.tasks.base import Task

BLOCK = 25
"""starts per policy in a block, when trials may stop early"""

PoliciesToEvaluate = Mapping[str, tuple[Policy, Any]]
"""{name: (policy, its DeviceConfig)}"""


@dataclass(frozen=True)
class EvaluationResult:
    """Results of an evaluation.

    ``values`` {metric: {name: [n]}} (the main metric first); ``tables`` {metric: ComparisonTable} of several policies;
    ``stopped``: why trials ended early, or ""; ``notes`` {name: sentences about its numbers}.
    """

    task: str
    seed: int
    level: float
    values: dict[str, dict[str, Tensor]]
    prints: dict[str, str]
    words: dict[str, tuple[str, str]]
    tables: dict[str, ComparisonTable]
    stopped: str = ""
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """number of trials per policy"""
        return len(next(iter(next(iter(self.values.values())).values())))


def evaluate_policies(
    policies: PoliciesToEvaluate,
    task: Task,
    seed: int,
    trials: int,
    level: float = 0.05,
    stop_early: bool = False,
    progress: bool = True,
) -> EvaluationResult:
    """Run ``trials`` of each policy on the same starts, in a random order that is hidden from the task.

    ``stop_early``: starts come in blocks, and the outcomes (0 or 1) of each block enter a ``SequentialComparison``. The
    trials stop when it is done. Its verdicts are valid whenever it stops.
    """
    prints = {name: fingerprint(policy.denoiser.state_dict()) for name, (policy, _) in policies.items()}
    outcomes: dict[str, list[Mapping[str, Tensor]]] = {name: [] for name in policies}
    remarked: dict[str, list[str]] = {name: [] for name in policies}
    race = SequentialComparison(list(policies), level) if stop_early else None
    size = BLOCK if stop_early else trials
    with show_progress(progress):
        for block in range(-(-trials // size)):
            n = min(size, trials - block * size)
            for name in _order(list(policies), Rng(seed + block)):
                policy, place = policies[name]
                with place.activate(), remarks() as sentences, track(f"held-out trials: {name}"):
                    outcomes[name].append(task.evaluate(policy, seed + 7919 * block, n))
                remarked[name] += sentences
            if race is not None and _decided(race, {name: t[-1] for name, t in outcomes.items()}, task):
                break
    for name, (policy, _) in policies.items():
        if fingerprint(policy.denoiser.state_dict()) != prints[name]:
            raise InvalidInputError(
                f"policy {name!r} changed during its trials, which is not allowed: evaluate a copy of it"
            )
    metrics = _metrics(task, outcomes)
    values = {m: {name: torch.cat([t[m] for t in ts]) for name, ts in outcomes.items()} for m in metrics}
    words = {m: task.metrics.get(m, WORDS.get(m, (m, ""))) for m in metrics}
    tables = {}
    if len(policies) > 1:
        for m in metrics:
            better = task.better if m == metrics[0] else "lower" if m == REACHED else "higher"
            have = torch.stack([~v.isnan() for v in values[m].values()]).all(0)
            if int(have.sum()) < 2:
                continue  # too few trials in which all policies have this metric
            what = words[m][0] + ("" if bool(have.all()) else f", in the {int(have.sum())} trials where all have it")
            tables[m] = standings({k: v[have][None] for k, v in values[m].items()}, m, what, words[m][1], better, level)
    stopped = ""
    if race is not None:
        tables = {metrics[0]: with_race_verdicts(tables[metrics[0]], race)}
        verdicts = [f"{a} above {b}" for a, b in race.separated]
        n = sum(len(t[metrics[0]]) for t in next(iter(outcomes.values())))
        stopped = (
            f"The comparison over {n} starts {'is decided' if race.done else 'is not decided'}: "
            f"{', '.join(verdicts) or 'no policy is better'} (all verdicts together err with probability {level:g})."
        )
    notes = {name: (*dict.fromkeys(sentences), *_constant(values, name)) for name, sentences in remarked.items()}
    return EvaluationResult(task.name, seed, level, values, prints, words, tables, stopped, notes)


def _constant(values: Mapping[str, Mapping[str, Tensor]], name: str) -> list[str]:
    """Return a sentence about metrics that are equal in all of a policy's trials, whose intervals have no width."""
    have = {m: v[name][~v[name].isnan()] for m, v in values.items()}
    flat = [
        f"{m} is {v[0]:g}" for m, v in have.items() if len(v) > 1 and v[0] not in (0, 1) and bool((v == v[0]).all())
    ]
    effect = "so these intervals have no width and do not predict other trials"
    return [f"The same in every trial, {effect}: {', '.join(flat)}."] if flat else []


def with_race_verdicts(table: ComparisonTable, race: SequentialComparison) -> ComparisonTable:
    """Return the table with the verdicts of ``race``: tests for a single look are invalid after an early stop."""
    apart, pairs = {frozenset(pair) for pair in race.separated}, len(table.contrasts)
    contrasts = tuple(
        replace(
            c,
            p=min(
                table.level if frozenset((c.first, c.second)) in apart else 1.0,  # the race's steps separate more
                2 * pairs * min(race.p_value(c.first, c.second), race.p_value(c.second, c.first)),
            ),
            separated=frozenset((c.first, c.second)) in apart,
        )
        for c in table.contrasts
    )
    found = race.letters()
    return replace(table, contrasts=contrasts, rows=tuple(replace(r, letters=found[r.name]) for r in table.rows))


def _order(names: list[str], rng: Rng) -> list[str]:
    """Return the random order of the policies in a block."""
    if len(names) == 1:
        return names
    drawn = Plan.of(names, [0], rng)
    return [drawn.reveal()[label] for label, _ in drawn]


def _metrics(task: Task, outcomes: Mapping[str, Sequence[Mapping[str, Tensor]]]) -> list[str]:
    """Return the metrics of all trials: success first if the environment reports it, then in the task's order."""
    shared = set.intersection(*(set(t) for ts in outcomes.values() for t in ts))
    named = [m for m in (*task.metrics, *sorted(shared)) if m in shared]
    first = ["success"] if "success" in shared and task.metric == "return" else []
    return list(dict.fromkeys([*first, *named]))


def _decided(race: SequentialComparison, block: Mapping[str, Mapping[str, Tensor]], task: Task) -> bool:
    metric = _metrics(task, {k: [v] for k, v in block.items()})[0]
    columns = {name: outcomes[metric] for name, outcomes in block.items()}
    if not all(bool(((v == 0) | (v == 1)).all()) for v in columns.values()):
        raise InvalidInputError(f"{metric} is not 0 or 1: stopping early needs successes; evaluate all trials instead")
    sign = task.better == "higher"
    for i in range(len(next(iter(columns.values())))):
        if not race.done:
            race.update({name: float(v[i]) if sign else 1 - float(v[i]) for name, v in columns.items()})
    return race.done
