"""The ledger: what came out of each claim, a JSON file each in ``results/``, shipped with the package.

``{"claim", "paper", "pass_condition", "arms": {arm: {"mean", "low", "high", "per_seed"}}, "budget", "unit", "seeds",
"verdict": "holds" | "does not hold" | "inconclusive", "why", "seconds", "versions", "commit", "date"}``, and besides:
``name``, ``size`` ("laptop" or "full"), ``metric``, ``metrics`` (the arms by every other metric), ``conditions``,
``cost`` (seconds of the processor, memory and spending an arm), ``tuning``, ``calibrated``, ``recipes``, and ``hash``,
the fingerprint of everything that the claim reaches. A record whose hash is another one now is stale: the code has
changed since. ``confirmed``: when later code was found to give the same numbers (``confirming``).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from denoiserl import store
from denoiserl.claims.claim import Claim, Simulation
from denoiserl.errors import BadRun, nearest
from denoiserl.study import find
from denoiserl.study.reach import fingerprint
from denoiserl.study.study import Study

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MACHINERY = {"__init__", "claim", "confirming", "ledger", "runner"}


def names() -> list[str]:
    """The claims of this package, sorted."""
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem not in MACHINERY and not p.stem.startswith("_"))


def claim(name: str) -> Claim:
    """The claim of a file."""
    if name not in names():
        raise BadRun(nearest(name, names(), "claim"))
    return importlib.import_module(f"denoiserl.claims.{name}").CLAIM


def record(name: str) -> dict[str, Any] | None:
    """What the ledger says of a claim, or None where it has not been tried."""
    path = RESULTS / f"{name}.json"
    return store.read_json(path) if path.exists() else None


def comment(name: str) -> str:
    """What people say to a verdict, ``results/NAME.md``, or "": it explains and decides nothing."""
    path = RESULTS / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def methods(plan: Study | Simulation) -> list[str]:
    """The methods that a plan compares."""
    if isinstance(plan, Simulation):
        return []
    return list(dict.fromkeys(arm.method for arm in plan.arms.values() if arm.method != find.NONE))


def reach(name: str, made: Claim, plan: Study | Simulation) -> str:
    """The fingerprint of what a claim rests on: its file, its methods, its task, and how arms are run and judged."""
    roots = [f"denoiserl.claims.{name}", "denoiserl.study.arm.train", "denoiserl.evidence.seeds.exceeds", *made.roots]
    if isinstance(plan, Study):
        place, function = find.where(plan.task)
        roots.append(place if place.endswith(".py") else f"{place}.{function}")
        roots += [f"denoiserl.recipes.{m}.{part}" for m in methods(plan) for part in ("improve", "Args")]
    return fingerprint(roots)


def stale(name: str) -> bool | None:
    """Has the code changed since the claim was tried? None where it has not been tried."""
    told = record(name)
    if told is None:
        return None
    made = claim(name)
    return told["hash"] != reach(name, made, made.plan(told["size"]))
