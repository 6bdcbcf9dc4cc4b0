"""The settings of a study: a task, arms of one kind of signal, a budget and seeds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from denoiserl import tasks
from denoiserl.core.counters import UNITS
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.experiments import arm as arms
from denoiserl.experiments import resolve as find
from denoiserl.experiments import starting_policies as start
from denoiserl.experiments.jobs import Job
from denoiserl.tasks.base import Task

TUNING = 2000
"""the training seed of tuning runs: no arm is evaluated on it"""


@dataclass(frozen=True)
class Arm:
    """A method (or "none": the starting policy itself), its settings, and the kind of its starting policy."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str | None = None


@dataclass(frozen=True)
class Study:
    """Arms of one kind of signal on one task.

    Every arm and seed spends ``budget`` of ``unit`` from the same start, and is evaluated on the same ``trials``
    held-out trials. ``tune``: tuning runs per arm, on their own seed; 1 uses the settings as they are. ``curve``:
    held-out evaluations during learning. ``level``: the error rate of all verdicts together. ``quick``: a quick trial,
    whose arms make one iteration at least, even if it costs more than the budget.
    """

    task: str
    arms: dict[str, Arm]
    budget: float
    unit: str
    seeds: tuple[int, ...]
    base: dict[str, Any] = field(default_factory=dict)
    trials: int = 200
    tune: int = 1
    curve: int = 5
    level: float = 0.05
    quick: bool = False

    def __post_init__(self) -> None:
        if self.unit not in (*UNITS, "seconds"):
            raise RunError(unknown_name_message(self.unit, (*UNITS, "seconds"), "unit of a budget"))
        if not self.budget > 0 or self.trials < 1 or self.tune < 1 or self.curve < 0:
            raise RunError("give a positive budget, trials and tune, and a curve of at least 0")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise RunError(f"seeds {list(self.seeds)}: give at least one, and none twice")
        if strange := [s for s in self.seeds if not 0 <= s < TUNING]:
            raise RunError(f"seed {strange[0]}: training seeds go from 0 to {TUNING - 1}, larger ones are for tuning")
        if not self.arms:
            raise RunError("a study without arms: name at least one method")
        for name in self.arms:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
                raise RunError(f"{name!r} cannot name an arm: letters, digits and _.+- only")

    def validate(self) -> Task:
        """Return the task after checking every name and setting. Raise RunError before anything runs."""
        task = tasks.make(self.task, self.base)
        signals: dict[str, str] = {}
        for name, arm in self.arms.items():
            if arm.kind is not None and arm.kind not in task.start_kinds:
                raise RunError(
                    f"arm {name!r}: {unknown_name_message(arm.kind, task.start_kinds, 'kind of starting policy')}"
                )
            if arm.method == find.NONE:
                continue
            task.require_signal(signal := find.learns_from(arm.method), f"arm {name!r}: {arm.method}")
            if other := next((f"{k} from {v}" for k, v in signals.items() if v != signal), None):
                raise RunError(f"arm {name!r} learns from {signal}, {other}: compare methods of one kind")
            signals[name] = signal
            settings = find.settings(arm.method, arm.settings)
            find.check_fits_task(find.method(arm.method), settings, task, f"arm {name!r}: {arm.method}", arm.kind)
        return task

    def run(self, name: str, seed: int, folder: Path, trial_seed: int, **settings: Any) -> Job:
        """Return the job of an arm and a seed."""
        arm = self.arms[name]
        kind = arm.kind
        if kind is None and arm.method != find.NONE:
            kind = find.start_kind(find.method(arm.method), find.settings(arm.method, arm.settings))
        args = arms.Args(
            seed=seed,
            trial_seed=trial_seed,
            trials=self.trials,
            task=self.task,
            base=start.json_roundtrip(self.base),
            kind=kind,
            method=arm.method,
            settings=start.json_roundtrip({**arm.settings, **settings}),
            budget=float(self.budget),
            unit=self.unit,
            curve=self.curve,
            quick=self.quick,
        )
        return Job("denoiserl.experiments.arm", args, folder, f"{name} {seed}")
