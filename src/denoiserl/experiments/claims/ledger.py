"""The ledger: what came out of each claim, a JSON file each in ``results/``, shipped with the package.

``{"claim", "paper", "pass_condition", "arms": {arm: {"mean", "low", "high", "per_seed"}}, "budget", "unit", "seeds",
"verdict": "holds" | "does not hold" | "inconclusive", "why", "seconds", "versions", "commit", "date"}``, and besides:
``name``, ``size`` ("laptop" or "full"), ``metric``, ``metrics`` (the arms by every other metric), ``conditions``,
``cost`` (seconds of the processor, memory and spending an arm), ``tuning``, ``calibrated``, ``recipes``, and ``hash``,
the fingerprint of every module that the claim rests on. A record whose hash is another one now is stale: the code has
changed since. ``confirmed``: when later code was found to give the same numbers (``confirming``).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from denoiserl import recipes, tasks
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.serialization import store
from denoiserl.experiments import resolve as find
from denoiserl.experiments.claims.claim import Claim, Simulation
from denoiserl.experiments.code_fingerprint import fingerprint
from denoiserl.experiments.compare import Study

HERE = Path(__file__).resolve().parents[2] / "claims"
RESULTS = HERE / "results"


def paths() -> dict[str, Path]:
    """Return the file of every claim of this package by its name, sorted."""
    found = [p for p in HERE.glob("*/*.py") if p.stem != "__init__"]
    return {p.stem: p for p in sorted(found, key=lambda p: p.stem)}


def names() -> list[str]:
    """Return the claims of this package, sorted."""
    return list(paths())


def module_name(name: str) -> str:
    """Return the dotted name of a claim's module, ``denoiserl.claims.FAMILY.NAME``. Raise RunError for an unknown
    one."""
    if name not in (known := paths()):
        raise RunError(unknown_name_message(name, known, "claim"))
    return f"denoiserl.claims.{known[name].parent.name}.{name}"


def result(name: str, suffix: str = ".json") -> Path:
    """Return where the record of a claim is kept: ``results/FAMILY/NAME.json``."""
    known = paths()
    return RESULTS / (known[name].parent.name if name in known else "") / f"{name}{suffix}"


def claim(name: str) -> Claim:
    """The claim of a file."""
    return importlib.import_module(module_name(name)).CLAIM


def record(name: str) -> dict[str, Any] | None:
    """What the ledger says of a claim, or None where it has not been tried."""
    path = result(name)
    return store.read_json(path) if path.exists() else None


def comment(name: str) -> str:
    """What people say to a verdict, ``results/NAME.md``, or "": it explains and decides nothing."""
    path = result(name, ".md")
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def methods(plan: Study | Simulation) -> list[str]:
    """The methods that a plan compares."""
    if isinstance(plan, Simulation):
        return []
    return list(dict.fromkeys(arm.method for arm in plan.arms.values() if arm.method != find.NONE))


def reach(name: str, plan: Study | Simulation) -> str:
    """The fingerprint of what a claim rests on: its file, its methods, its task, and how arms are run and judged."""
    roots = [module_name(name), "denoiserl.experiments.arm", "denoiserl.stats.seeds"]
    if isinstance(plan, Study):
        roots += [tasks.locate(plan.task)[0], *map(recipes.module_name, methods(plan))]
    return fingerprint(roots)


def stale(name: str) -> bool | None:
    """Has the code changed since the claim was tried? None where it has not been tried."""
    told = record(name)
    if told is None:
        return None
    return told["hash"] != reach(name, claim(name).plan(told["size"]))
