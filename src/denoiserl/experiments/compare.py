"""Comparisons of methods: starting policies, tuning, arms, verdicts.

folder/study.json            the settings of the study; in the end also its results
folder/tune/ARM/I            tuning runs, on their own seed
folder/arms/ARM/SEED         one run per arm and seed (``experiments.arm``), each resumable, none repeated
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.core.serialization.args_json import diff_settings
from denoiserl.experiments import arm as arms
from denoiserl.experiments import resolve as find
from denoiserl.experiments import starting_policies as start
from denoiserl.experiments.jobs import Job
from denoiserl.experiments.jobs import run_jobs as play_jobs
from denoiserl.experiments.study import TUNING, Arm, Study
from denoiserl.experiments.versions import provenance
from denoiserl.stats import ComparisonTable, selection_seed, standings, test_seed
from denoiserl.tasks.base import Task

FACTORS = (1.0, 1 / 3, 3.0, 1 / 10, 10.0, 1 / 30, 30.0)
"""multiples of a method's learning rate that are tuned if it has no candidates of its own (``TUNE``)"""


@dataclass(frozen=True)
class ComparisonResult:
    """Results of a study.

    ``values`` {metric: {arm: [seeds, trials]}}; the ``standings`` of each metric (the main one first); ``spent`` {arm:
    {unit: mean over seeds}} with seconds of training; ``cpu`` {arm: mean processor seconds}; ``memory`` {arm: largest
    MB}; ``tuning``: every candidate; ``notes`` {arm: sentences about its trials}.
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
    """Run what is missing in ``folder`` and return the results. Finished arms are not repeated."""
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
    tuning = {name: tried for name, (_, tried) in tuned.items()}
    record |= {"tuning": tuning, "seconds": record["seconds"] + time.perf_counter() - began}
    store.write_json(folder / "study.json", record)
    found = load_results(folder)
    tables = {"standings": {k: v.as_dict() for k, v in found.standings.items()}, "spent": found.spent}
    store.write_json(folder / "study.json", {**record, "found": tables, "memory": found.memory})
    return found


def load_study(folder: Path | str) -> Study:
    """Return the study in a folder."""
    record = store.read_json(Path(folder) / "study.json")
    saved = record["study"]
    return Study(**{**saved, "arms": {k: Arm(**v) for k, v in saved["arms"].items()}, "seeds": tuple(saved["seeds"])})


def _record(study: Study, folder: Path) -> dict[str, Any]:
    path = folder / "study.json"
    new = start.json_roundtrip(asdict(study))
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder} holds other files and no study.json: give a new folder with --out")
        record = {"study": new, "seconds": 0.0, **provenance()}
        store.write_json(path, record)
        return record
    record = store.read_json(path)
    old = {**record["study"], "seeds": new["seeds"]}  # a study may get more seeds
    if found := diff_settings(old, new):
        raise RunError(f"{folder} holds another study ({'; '.join(found[:3])}): use its settings, or a new folder")
    if lost := sorted(set(record["study"]["seeds"]) - set(new["seeds"])):
        raise RunError(f"{folder} holds seeds {lost} that this study leaves out: seeds are not chosen by their results")
    fresh, continued = provenance(), record.get("continued", [])
    last = continued[-1] if continued else record
    if any(fresh[k] != last[k] for k in ("commit", "versions")):
        warnings.warn(
            f"{folder} was begun by other code ({_source(record)}; this is {_source(fresh)}). Its finished runs are "
            "kept, so arms may differ by their code too. Give a new folder to use this code for all arms.",
            stacklevel=3,
        )
        record["continued"] = [*continued, fresh]
    return {**record, "study": new}


def _source(record: dict[str, Any]) -> str:
    """Return the commit and versions of a record as text."""
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    return f"commit {record['commit'][:10]}, {versions}" if record["commit"] else versions


def _tuned(
    study: Study, task: Task, folder: Path, processes: int, device: str, progress: bool
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return {arm: (the settings with the best score on the tuning seed, every candidate and its score)}."""
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
        scores = []
        for i, given in enumerate(plan):
            result = arms.result(jobs[name, i].folder)
            assert result is not None
            scores.append({"settings": given, "score": float(result["outcomes"][task.metric].mean())})
        sign = 1 if task.better == "higher" else -1
        found[name] = (max(scores, key=lambda t: sign * t["score"])["settings"], scores)
    return found


def candidates(arm: Arm, n: int) -> list[dict[str, Any]]:
    """Return n candidate settings: the method's own (``TUNE``), or multiples of its learning rate."""
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
    """Make the starting policies that the jobs need, then run the jobs."""
    needed = {}
    for job in jobs:
        a = arms.starting_policy_args(job.args)
        path = start.folder(a, device)
        needed[path] = Job("denoiserl.experiments.starting_policies", a, path, f"start {a.kind or ''} {a.seed}")
    play_jobs(list(needed.values()), processes, device, progress, "starts  ")
    play_jobs(jobs, processes, device, progress, f"{said:<8}")


def load_results(folder: Path | str) -> ComparisonResult:
    """Return the results of a study's arms. Raise RunError if one has not finished."""
    folder, study = Path(folder), load_study(folder)
    record, task = store.read_json(folder / "study.json"), study.validate()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in study.arms}
    for name in study.arms:
        for seed in study.seeds:
            one = arms.result(folder / "arms" / name / str(seed))
            if one is None:
                raise RunError(f"arm {name!r}, seed {seed} of {folder} has not finished: run the same command again")
            results[name].append(one)
    reported = [t["outcomes"] for seeds in results.values() for t in seeds]  # environments need not report success
    metrics: Mapping[str, tuple[str, str]] = {k: v for k, v in task.metrics.items() if all(k in o for o in reported)}
    values = {
        metric: {name: torch.stack([t["outcomes"][metric] for t in seeds]) for name, seeds in results.items()}
        for metric in metrics
    }
    spent = {
        name: {unit: sum(t["spent"][unit] for t in seeds) / len(seeds) for unit in seeds[0]["spent"]}
        for name, seeds in results.items()
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
    memory = {name: max(t["memory"] for t in seeds) for name, seeds in results.items()}
    cpu = {name: sum(t["cpu"] for t in seeds) / len(seeds) for name, seeds in results.items()}
    notes = {k: tuple(dict.fromkeys(n for t in seeds for n in t.get("notes", ()))) for k, seeds in results.items()}
    return ComparisonResult(
        study, values, tables, spent, cpu, memory, record.get("tuning", {}), record["seconds"], notes
    )
