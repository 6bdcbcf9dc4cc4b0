"""What is compared, and how it is played: starts, tuning, arms, verdicts.

folder/study.json            what is compared; in the end also what was found
folder/tune/ARM/I            tuning runs, on seeds of their own
folder/arms/ARM/SEED         one run an arm and seed (``experiments.arm``), each resumable, none repeated
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiserl import tasks
from denoiserl.core.counters import UNITS
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.serialization import store
from denoiserl.core.serialization.args_json import diff_settings
from denoiserl.experiments import arm as arms
from denoiserl.experiments import resolve as find
from denoiserl.experiments import starting_policies as start
from denoiserl.experiments.jobs import Job
from denoiserl.experiments.jobs import play as play_jobs
from denoiserl.experiments.runner import provenance
from denoiserl.stats import ComparisonTable, selection_seed, standings, test_seed
from denoiserl.tasks.base import Task

TUNING = 2000
"""the training seed of tuning runs: no arm is ever judged on it"""
FACTORS = (1.0, 1 / 3, 3.0, 1 / 10, 10.0, 1 / 30, 30.0)
"""what a method's learning rate is multiplied by where it does not name candidates itself (``TUNE``)"""


@dataclass(frozen=True)
class Arm:
    """A method (or "none": the starting policy itself), its settings, and the kind of policy that it starts from."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str | None = None


@dataclass(frozen=True)
class Study:
    """Arms of one kind of signal on one task.

    Every arm and seed spends ``budget`` of ``unit`` from the same start, and is judged by the same ``trials`` held-out
    trials. ``tune``: tuning runs an arm, on a seed of their own; 1 takes the settings as they are. ``curve``: held-out
    evaluations on the way. ``level``: the error rate of all verdicts together.
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

    def __post_init__(self) -> None:
        if self.unit not in (*UNITS, "seconds"):
            raise RunError(unknown_name_message(self.unit, (*UNITS, "seconds"), "unit of a budget"))
        if not self.budget > 0 or self.trials < 1 or self.tune < 1 or self.curve < 0:
            raise RunError("budget, trials and tune are positive, curve is not negative")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise RunError(f"seeds {list(self.seeds)}: give at least one, and none twice")
        if strange := [s for s in self.seeds if not 0 <= s < TUNING]:
            raise RunError(f"seed {strange[0]}: training seeds lie from 0 to {TUNING - 1}, tuning has those above")
        if not self.arms:
            raise RunError("a study has arms: name methods")
        for name in self.arms:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
                raise RunError(f"{name!r} cannot name an arm: letters, digits and _.+- only")

    def validate(self) -> Task:
        """The task, after every name and setting was found to be right: before anything runs."""
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
            need = find.start_kind(find.method(arm.method), settings)
            if need is not None and arm.kind is None and need not in task.start_kinds:
                raise RunError(
                    f"arm {name!r}: {arm.method} starts from a policy of kind {need!r}, task {task.name!r} has "
                    f"{', '.join(task.start_kinds)}: give the task starts={{{need!r}: ...}}"
                )
        return task

    def run(self, name: str, seed: int, folder: Path, trial_seed: int, **settings: Any) -> Job:
        """The job of an arm and a seed."""
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
        )
        return Job("denoiserl.experiments.arm", args, folder, f"{name} {seed}")


@dataclass(frozen=True)
class ComparisonResult:
    """What came out.

    ``values`` {metric: {arm: [seeds, trials]}}, the ``standings`` of each metric (the main one first), ``spent`` {arm:
    {unit: mean over seeds}} with seconds of training, ``cpu`` {arm: mean seconds of the processor}, ``memory`` {arm:
    most MB}, ``tuning``: every candidate. ``notes`` {arm: sentences that belong to its trials}.
    """

    study: Study
    values: dict[str, dict[str, Tensor]]
    standings: dict[str, ComparisonTable]
    spent: dict[str, dict[str, float]]
    cpu: dict[str, float]
    memory: dict[str, float]
    tuning: dict[str, list[dict[str, Any]]]
    seconds: float
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def run_comparison(
    study: Study, folder: Path | str, processes: int = 2, device: str = "cpu", progress: bool = True
) -> ComparisonResult:
    """Run what is missing in ``folder`` and say what was found. Finished arms are not repeated."""
    folder, began = Path(folder), time.perf_counter()
    task = study.validate()
    record = _record(study, folder)
    tuned = _tuned(study, task, folder, processes, device, progress)
    jobs = [
        study.run(name, seed, folder / "arms" / name / str(seed), test_seed(seed), **tuned[name][0])
        for seed in study.seeds
        for name in study.arms
    ]
    _play(jobs, processes, device, progress, "training")
    tuning = {name: told for name, (_, told) in tuned.items()}
    record |= {"tuning": tuning, "seconds": record["seconds"] + time.perf_counter() - began}
    store.write_json(folder / "study.json", record)
    found = load_results(folder)
    told = {"standings": {k: v.as_dict() for k, v in found.standings.items()}, "spent": found.spent}
    store.write_json(folder / "study.json", {**record, "found": told, "memory": found.memory})
    return found


def load_study(folder: Path | str) -> Study:
    """The study that a folder holds."""
    record = store.read_json(Path(folder) / "study.json")
    told = record["study"]
    return Study(**{**told, "arms": {k: Arm(**v) for k, v in told["arms"].items()}, "seeds": tuple(told["seeds"])})


def _record(study: Study, folder: Path) -> dict[str, Any]:
    path = folder / "study.json"
    told = start.json_roundtrip(asdict(study))
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder} holds something else and no study.json: give a new folder with --out")
        record = {"study": told, "seconds": 0.0, **provenance()}
        store.write_json(path, record)
        return record
    record = store.read_json(path)
    old = {**record["study"], "seeds": told["seeds"]}  # more seeds make a study larger, and no other one
    if found := diff_settings(old, told):
        raise RunError(f"{folder} holds another study ({'; '.join(found[:3])}): use its settings, or a new folder")
    if lost := sorted(set(record["study"]["seeds"]) - set(told["seeds"])):
        raise RunError(f"{folder} holds seeds {lost} that this study leaves out: seeds are not chosen by their results")
    fresh, continued = provenance(), record.get("continued", [])
    last = continued[-1] if continued else record
    if any(fresh[k] != last[k] for k in ("commit", "versions")):
        warnings.warn(
            f"{folder} was begun by other code ({_source(record)}; this is {_source(fresh)}): its finished runs are "
            "kept as they are, so arms may differ by their code too. Give a new folder to compare by this code alone.",
            stacklevel=3,
        )
        record["continued"] = [*continued, fresh]
    return {**record, "study": told}


def _source(told: dict[str, Any]) -> str:
    """Name the code of a record."""
    versions = ", ".join(f"{k} {v}" for k, v in told["versions"].items())
    return f"commit {told['commit'][:10]}, {versions}" if told["commit"] else versions


def _tuned(
    study: Study, task: Task, folder: Path, processes: int, device: str, progress: bool
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """{arm: (the settings that did best on the tuning seed, every candidate and its score)}"""
    if study.tune == 1:
        return {name: ({}, []) for name in study.arms}
    plans = {name: candidates(arm, study.tune) for name, arm in study.arms.items()}
    jobs = {
        (name, i): study.run(name, TUNING, folder / "tune" / name / str(i), selection_seed(TUNING), **given)
        for name, plan in plans.items()
        for i, given in enumerate(plan)
    }
    _play(list(jobs.values()), processes, device, progress, "tuning")
    found = {}
    for name, plan in plans.items():
        told = []
        for i, given in enumerate(plan):
            result = arms.result(jobs[name, i].folder)
            assert result is not None
            told.append({"settings": given, "score": float(result["outcomes"][task.metric].mean())})
        sign = 1 if task.better == "higher" else -1
        found[name] = (max(told, key=lambda t: sign * t["score"])["settings"], told)
    return found


def candidates(arm: Arm, n: int) -> list[dict[str, Any]]:
    """n candidates of settings: as many for every arm. The method's own (``TUNE``), or multiples of its rate."""
    if arm.method == find.NONE:
        return [{}]
    method = find.method(arm.method)
    given = list(getattr(method, "TUNE", []))
    if not given:
        rate = getattr(find.settings(arm.method, arm.settings), "lr", None)
        given = [{"lr": rate * factor} for factor in FACTORS] if rate else []
    if len(given) < n:
        raise RunError(f"{arm.method} has {len(given)} tuning candidates, not {n}: tune less, or name more in TUNE")
    return given[:n]


def _play(jobs: list[Job], processes: int, device: str, progress: bool, said: str) -> None:
    """The starts that the jobs need, then the jobs."""
    needed = {}
    for job in jobs:
        a = arms.begin(job.args)
        path = start.folder(a, device)
        needed[path] = Job("denoiserl.experiments.starting_policies", a, path, f"start {a.kind or ''} {a.seed}")
    play_jobs(list(needed.values()), processes, device, progress, "starts  ")
    play_jobs(jobs, processes, device, progress, f"{said:<8}")


def load_results(folder: Path | str) -> ComparisonResult:
    """What the arms of a study in ``folder`` have written; all of them must have finished."""
    folder, study = Path(folder), load_study(folder)
    record, task = store.read_json(folder / "study.json"), study.validate()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in study.arms}
    for name in study.arms:
        for seed in study.seeds:
            told = arms.result(folder / "arms" / name / str(seed))
            if told is None:
                raise RunError(f"arm {name!r}, seed {seed} of {folder} has not finished: run the same command again")
            results[name].append(told)
    reported = [t["outcomes"] for told in results.values() for t in told]  # environments need not report success
    metrics: Mapping[str, tuple[str, str]] = {k: v for k, v in task.metrics.items() if all(k in o for o in reported)}
    values = {
        metric: {name: torch.stack([t["outcomes"][metric] for t in told]) for name, told in results.items()}
        for metric in metrics
    }
    spent = {
        name: {unit: sum(t["spent"][unit] for t in told) / len(told) for unit in told[0]["spent"]}
        for name, told in results.items()
    }
    tables = {}
    for metric, (what, unit) in metrics.items():
        tables[metric] = standings(
            values[metric],
            metric,
            what,
            unit,
            task.better,
            study.level,
            {name: s["seconds"] for name, s in spent.items()},
            {name: s["denoiser_calls"] for name, s in spent.items()},
        )
    memory = {name: max(t["memory"] for t in told) for name, told in results.items()}
    cpu = {name: sum(t["cpu"] for t in told) / len(told) for name, told in results.items()}
    notes = {name: tuple(dict.fromkeys(n for t in told for n in t.get("notes", ()))) for name, told in results.items()}
    return ComparisonResult(
        study, values, tables, spent, cpu, memory, record.get("tuning", {}), record["seconds"], notes
    )
