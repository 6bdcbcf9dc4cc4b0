"""Run a claim's study, evaluate its conditions, and write the ledger."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.serialization import store
from denoiserl.experiments import Study, run_comparison
from denoiserl.experiments.claims import ledger
from denoiserl.experiments.claims.claim import Claim, Condition, Simulation
from denoiserl.experiments.versions import provenance
from denoiserl.stats import standings, superiority_test
from denoiserl.stats.seeds import Verdict

Values = Mapping[str, Mapping[str, Tensor]]
"""{metric: {arm: [seeds, trials]}}"""


def check(
    name: str, size: str = "laptop", folder: Path | None = None, processes: int = 2, progress: bool = True
) -> dict[str, Any]:
    """Test a claim within a budget and return its record. Its runs are in ``folder``: resumed, not repeated."""
    made = ledger.load_claim(name)
    plan = made.make_plan(size)
    began, cost, tuning = time.perf_counter(), {}, {}
    if isinstance(plan, Study):
        found = run_comparison(plan, folder or Path("runs") / "claims" / f"{name}-{size}", processes, progress=progress)
        values, metrics, seconds = (
            found.values,
            {k: (s.what, s.unit) for k, s in found.standings.items()},
            found.seconds,
        )
        tuning = found.tuning
        cost = {
            arm: {
                "seconds": round(found.cpu[arm], 1),
                "wall": round(s["seconds"], 1),
                "memory_mb": round(found.memory[arm]),
                "spent": s,
            }
            for arm, s in found.spent.items()
        }
    else:
        values, metrics = run_simulation(plan), plan.metrics
        seconds = time.perf_counter() - began
    verdicts = [evaluate_condition(c, values, next(iter(metrics)), len(made.conditions)) for c in made.conditions]
    main = next(iter(metrics))
    tables = {metric: arms_of(values[metric], metric, *metrics[metric]) for metric in metrics}
    return {
        "name": name,
        "claim": made.claim,
        "paper": made.paper,
        "pass_condition": made.pass_condition,
        "size": size,
        "metric": main,
        "arms": tables[main],
        "metrics": {k: v for k, v in tables.items() if k != main},
        "budget": plan.budget,
        "unit": plan.unit,
        "seeds": list(plan.seeds),
        "trials": plan.trials if isinstance(plan, Study) else None,
        "conditions": [
            {"said": c.as_sentence(main), **v.as_dict()} for c, v in zip(made.conditions, verdicts, strict=True)
        ],
        "verdict": combine_verdicts(verdicts),
        "why": verdict_reasons(made, main, verdicts),
        "calibrated": made.calibration_note,
        "tuning": tuning,
        "cost": cost,
        "seconds": round(seconds, 1),
        "recipes": ledger.methods(plan),
        "hash": ledger.code_of_claim(name, plan),
        **origin(),
    }


def write(record: dict[str, Any], folder: Path | None = None) -> Path:
    """Write a record into the ledger, or into a folder, and return its path."""
    path = ledger.result(record["name"]) if folder is None else folder / f"{record['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(path, record)
    return path


def run_simulation(plan: Simulation) -> dict[str, dict[str, Tensor]]:
    """Return the measurements of every seed, stacked: {metric: {arm: [seeds, n]}}."""
    each = [plan.measure(seed) for seed in plan.seeds]
    return {m: {arm: torch.stack([x[m][arm].double() for x in each]) for arm in each[0][m]} for m in plan.metrics}


def evaluate_condition(c: Condition, values: Values, main: str, conditions: int) -> Verdict:
    """Test one condition: it holds, does not hold, or is inconclusive.

    All conditions must hold, so each is tested at the full level (an intersection of rejections needs no correction). A
    claim fails if one condition fails, so refutations share the level.
    """
    sides = c.sides(main)
    shape = next(_values(values, metric, arm) for arm, metric in sides if isinstance(arm, str))
    first, second = (
        _values(values, metric, arm) if isinstance(arm, str) else torch.full_like(shape, arm) for arm, metric in sides
    )
    left, right = (arm if isinstance(arm, str) else f"{arm:g}" for arm, _ in sides)
    names = (left, right) if left != right else (f"{left} ({sides[0][1]})", f"{right} ({sides[1][1]})")
    found = superiority_test(first, second, c.margin, 0.05, names)
    if found.verdict != "does not hold" or conditions == 1:
        return found
    strict = superiority_test(first, second, c.margin, 0.05 / conditions, names)
    return found if strict.verdict == "does not hold" else strict


def combine_verdicts(verdicts: list[Verdict]) -> str:
    """Return "holds" if every condition holds, "does not hold" if one does not, else "inconclusive"."""
    said = {v.verdict for v in verdicts}
    return "holds" if said == {"holds"} else "does not hold" if "does not hold" in said else "inconclusive"


def verdict_reasons(made: Claim, main: str, verdicts: list[Verdict]) -> str:
    """Return the verdict's reasons, one sentence per condition, with the detectable effect of inconclusive ones."""
    said = []
    for c, v in zip(made.conditions, verdicts, strict=True):
        d = v.difference
        text = (
            f"{c.as_sentence(main)}: {v.verdict} (difference {d.mean:.3g}, 95 % interval {d.low:.3g} to {d.high:.3g})"
        )
        if v.verdict == "inconclusive":
            text += f"; an excess of {v.min_detectable_effect:.3g} over the margin is detected with probability 0.8"
        said.append(text)
    return ". ".join(said) + "."


def arms_of(values: Mapping[str, Tensor], metric: str, what: str, unit: str) -> dict[str, dict[str, Any]]:
    """Return {arm: mean, low, high, per_seed}, over seeds."""
    if len(values) < 2:
        (name, x), *_ = values.items()
        table = standings({name: x, " ": x}, metric, what, unit)
        rows = [row for row in table.rows if row.name == name]
    else:
        rows = list(standings(values, metric, what, unit).rows)
    return {
        row.name: {
            "mean": row.interval.mean,
            "low": row.interval.low,
            "high": row.interval.high,
            "per_seed": list(row.per_seed),
        }
        for row in rows
    }


def _values(values: Values, metric: str, arm: str) -> Tensor:
    if metric not in values:
        raise RunError(f"a condition names {unknown_name_message(metric, values, 'metric')}")
    if arm not in values[metric]:
        raise RunError(f"a condition names {unknown_name_message(arm, values[metric], 'arm')}")
    return values[metric][arm]


def origin() -> dict[str, Any]:
    """Return versions, commit and date of the code, and the processor, on which rounding depends."""
    source = provenance()
    code = {"versions": source["versions"], "commit": source["commit"], "date": source["created"][:10]}
    return {**code, "processor": processor()}


def processor() -> str:
    """Return the vendor and model of this machine's processor, and the instructions that torch uses on it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        text = ""
    known = dict(re.findall(r"^(vendor_id|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE))
    return " ".join([*(known.values() or [platform.processor()]), torch.backends.cpu.get_cpu_capability()])
