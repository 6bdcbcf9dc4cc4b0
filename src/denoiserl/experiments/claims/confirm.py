"""Confirm a verdict after a change of the code behind it, by repeating one of its seeds.

All results follow from seeds. So a change that should not change numbers (a faster path, a new option) can be tested:
run all arms of the record's first seed again, with the tuned settings. If every mean of every metric equals the
recorded one (times: nearly), the verdict stands. The record gets the new fingerprint, and says when and by which code
it was confirmed. Otherwise it stays stale, and the claim must be tested again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.experiments import Arm, Study, run_comparison
from denoiserl.experiments.claims import ledger, runner

SAME = 1e-6
"""means of float32 outcomes agree to this"""
RATES, CLOSE = "log10 /s", 0.1
"""the unit of metrics measured with a clock, and their tolerance"""


def confirm(
    name: str, folder: Path | None = None, processes: int = 2, progress: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Return the record with the new fingerprint, or unchanged, and the differences (empty: confirmed)."""
    record, made = ledger.record(name), ledger.load_claim(name)
    if record is None:
        raise RunError(f"the claim {name} has no record to confirm: run denoiserl claim {name}")
    plan = made.make_plan(record["size"])
    seed = record["seeds"][0]
    if isinstance(plan, Study):
        planned = (plan.budget, plan.unit, list(plan.seeds), plan.trials, set(plan.arms))
        recorded = (*(record[k] for k in ("budget", "unit", "seeds", "trials")), set(record["arms"]))
        if planned != recorded:
            raise RunError(f"the claim {name} has another plan than its record: test it again, denoiserl claim {name}")
        once = replace(plan, seeds=(seed,), arms=tuned_arms(plan, record["tuning"]), tune=1)
        values = run_comparison(
            once, folder or Path("runs") / "claims" / f"{name}-confirm", processes, progress=progress
        ).values
    else:
        values = {m: {arm: x[None] for arm, x in arms.items()} for m, arms in plan.measure(seed).items()}
    different, words = [], plan.metrics if not isinstance(plan, Study) else plan.validate().metrics
    for metric, arms in {record["metric"]: record["arms"], **record["metrics"]}.items():
        enough = CLOSE if words.get(metric, ("", ""))[1] == RATES else SAME
        for arm, was in arms.items():
            before, now = was["per_seed"][0], float(values[metric][arm][0].double().mean())
            if abs(now - before) > enough:
                different.append(f"{metric} of {arm}: {now:.6g}, recorded {before:.6g}")
    if different:
        return record, different
    mark = {"seed": seed, "was": record["hash"], **runner.origin()}
    fresh = ledger.code_of_claim(name, plan)
    return {**record, "hash": fresh, "confirmed": [*record.get("confirmed", []), mark]}, []


def tuned_arms(plan: Study, tuning: dict[str, list[dict[str, Any]]]) -> dict[str, Arm]:
    """Return the arms with the tuned settings."""
    sign = 1 if plan.validate().better == "higher" else -1
    found = {}
    for name, arm in plan.arms.items():
        tried = tuning.get(name) or [{"settings": {}, "score": 0.0}]
        best = max(tried, key=lambda t: sign * t["score"])["settings"]
        found[name] = replace(arm, settings={**arm.settings, **best})
    return found
