"""The ledger: the result of each claim, a JSON file each in ``results/``, shipped with the package.

``{"claim", "paper", "pass_condition", "arms": {arm: {"mean", "low", "high", "per_seed"}}, "budget", "unit", "seeds",
"verdict": "holds" | "does not hold" | "inconclusive", "why", "seconds", "versions", "commit", "date"}``, and also:
``name``, ``size`` ("laptop" or "full"), ``metric``, ``metrics`` (the arms by every other metric), ``conditions``,
``cost`` (processor seconds, memory and spending per arm), ``tuning``, ``calibrated``, ``recipes``, and ``hash``, the
fingerprint of every module that the claim depends on. If the hash is not the current one, the record is stale: the code
has changed. ``confirmed``: when later code gave the same numbers (``confirm``).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from denoiserl import recipes, tasks
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.serialization import store
from denoiserl.experiments.claims.claim import Claim, Simulation
from denoiserl.experiments.code_fingerprint import fingerprint
from denoiserl.experiments.study import Study

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
    """Return the dotted name of a claim's module, ``denoiserl.claims.FAMILY.NAME``.

    Raise RunError for an unknown claim.
    """
    if name not in (known := paths()):
        raise RunError(unknown_name_message(name, known, "claim"))
    return f"denoiserl.claims.{known[name].parent.name}.{name}"


def result(name: str, suffix: str = ".json") -> Path:
    """Return the path of a claim's record: ``results/FAMILY/NAME.json``."""
    known = paths()
    return RESULTS / (known[name].parent.name if name in known else "") / f"{name}{suffix}"


def load_claim(name: str) -> Claim:
    """Return the claim ``name``: the ``CLAIM`` of its module."""
    return importlib.import_module(module_name(name)).CLAIM


def record(name: str) -> dict[str, Any] | None:
    """Return the record of a claim, or None if it has not been tested."""
    path = result(name)
    return store.read_json(path) if path.exists() else None


def comment(name: str) -> str:
    """Read the comment on a verdict (``results/FAMILY/NAME.md``), or "". Comments do not affect the verdict."""
    path = result(name, ".md")
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def methods(plan: Study | Simulation) -> list[str]:
    """Return the recipes that a plan compares. An arm whose method is the claim's own file rests on that file."""
    if isinstance(plan, Simulation):
        return []
    known = recipes.names()
    return list(dict.fromkeys(arm.method for arm in plan.arms.values() if arm.method in known))


def code_of_claim(name: str, plan: Study | Simulation) -> str:
    """Return the fingerprint of a claim's code: its file, methods, task, and the code that runs and evaluates arms."""
    roots = [module_name(name), "denoiserl.experiments.arm", "denoiserl.stats.seeds"]
    if isinstance(plan, Study):
        roots += [tasks.find_task(plan.task)[0], *map(recipes.module_name, methods(plan))]
    return fingerprint(roots)


def is_stale(name: str) -> bool | None:
    """Return whether the code has changed since the claim was tested; None if it has not been tested."""
    saved = record(name)
    if saved is None:
        return None
    return saved["hash"] != code_of_claim(name, load_claim(name).plan(saved["size"]))
