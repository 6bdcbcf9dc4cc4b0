"""``eval``, ``sample`` and ``report``: what came out of a run.

A recipe is evaluated by its ``experiment`` (a module), or by itself where it has none:

    outcomes(policy, base, seed, n) -> {metric: Tensor [n]}     per trial; 0 and 1 are rates
    look(policy, base, seed, n) -> {file name: bytes or str}    PNG, GIF, SVG or text
    restore(path, base, device) -> Policy                       optional, for networks of your own
    METRICS = {metric: (what it is, unit)}                      optional; the first one is the main one

``base`` is ``args.base``, or ``args`` where a recipe has no base.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.listing import Flag, hint, table
from denoiserl.cli.running import findable, folder
from denoiserl.errors import BadRun, DenoiseError, nearest

if TYPE_CHECKING:
    from denoiserl.policy import Policy

Word = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Eval:
    """Options of ``eval``."""

    run: Word
    """the folder of a run"""
    trials: int = 200
    """held-out trials"""
    seed: int = 0
    """of the trials: the same seed gives the same ones"""
    which: Literal["best", "last"] = "best"
    """the best policy of the run, or its last one"""
    metrics: Annotated[tuple[str, ...], hint("(default: all)")] = ()
    """only these metrics"""
    device: Annotated[str | None, hint("(default: where the run did)")] = None
    """where to compute"""
    json: Flag = False
    """print JSON"""


@dataclass(frozen=True)
class Look:
    """Options of ``sample``."""

    run: Word
    """the folder of a run"""
    n: int = 16
    """samples, episodes or answers"""
    seed: int = 0
    """of the draws"""
    which: Literal["best", "last"] = "best"
    """the best policy of the run, or its last one"""
    out: Annotated[Path | None, hint("(default: RUN/samples)")] = None
    """where to save"""
    device: Annotated[str | None, hint("(default: where the run did)")] = None
    """where to compute"""


@dataclass(frozen=True)
class Report:
    """Options of ``report``."""

    runs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")
    ]
    """the folders of runs"""


def eval_(given: list[str]) -> None:
    """``denoiserl eval RUN``."""
    a = tyro.cli(Eval, prog="denoiserl eval", description="Held-out trials, with 95 % intervals.", args=given)
    if a.trials < 1:
        raise Misuse(f"--trials {a.trials}: at least one is needed.")
    recipe, args, policy, place = _opened(a.run, a.which, a.device)
    with place.here():
        told = _asked(recipe, "outcomes")(policy, getattr(args, "base", args), a.seed, a.trials)
    words: dict[str, tuple[str, str]] = getattr(_experiment(recipe), "METRICS", {})
    names = [*(k for k in words if k in told), *(k for k in told if k not in words)]
    for name in a.metrics:
        if name not in told:
            raise Misuse(nearest(name, told, "metric"))
    from denoiserl.evidence import measured

    found = {name: measured(told[name]) for name in a.metrics or names}
    if a.json:
        print(json.dumps({name: each.as_dict() for name, (each, _) in found.items()}, indent=2))
        return
    rows = []
    for name, (each, rate) in found.items():
        mean, _, ends = format(each, ".1%" if rate else "").rpartition(" (")[0].partition(" ")
        rows.append((name, words.get(name, ("", ""))[0], mean, ends, str(each.n)))
    table(("metric", "", "mean", "95 % interval", "n"), rows, right=2)


def sample(given: list[str]) -> None:
    """``denoiserl sample RUN``."""
    a = tyro.cli(Look, prog="denoiserl sample", description="Draw with a run's policy, save, look.", args=given)
    if a.n < 1:
        raise Misuse(f"--n {a.n}: at least one is needed.")
    recipe, args, policy, place = _opened(a.run, a.which, a.device)
    with place.here():
        files = _asked(recipe, "look")(policy, getattr(args, "base", args), a.seed, a.n)
    out = a.out or folder(a.run) / "samples"
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if Path(name).name != name:
            raise BadRun(f"look of {recipe.__name__} names a file {name!r}: names have no folders.")
        path = out / name
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            path.write_text(data, encoding="utf-8")
            if path.suffix == ".txt":
                print(data.rstrip("\n"))
        print(path)


def report(given: list[str]) -> None:
    """``denoiserl report RUN ...``."""
    a = tyro.cli(Report, prog="denoiserl report", description="Runs as HTML pages.", args=given)
    if not a.runs:
        raise Misuse("Name a run: denoiserl report RUN.")
    for path in [folder(word) for word in a.runs]:  # all are there before the first page is written
        _page(path)


def _opened(word: str, which: str, device: str | None) -> tuple[ModuleType, Any, Policy, Any]:
    """The recipe of a run, its args, its policy, and the place that it ran in."""
    from denoiserl.policy import Policy
    from denoiserl.train.keep import saved
    from denoiserl.train.place import Place
    from denoiserl.train.run import opened

    path = folder(word)
    findable(path)
    recipe, args, record = opened(path)
    there = record["device"]
    same = device in (None, there)
    place = Place(device or there, record["precision"], record["threads"], record["place"] if same else None)
    try:
        source = saved(path, which)
    except BadRun:
        if which == "last":
            raise
        source = saved(path, "last")  # a recipe without held-out scores keeps no best one
        print(f"{path} has no best policy: the last one is taken.", file=sys.stderr)
    restore = getattr(_experiment(recipe), "restore", None)
    base = getattr(args, "base", args)
    return (
        recipe,
        args,
        restore(source, base, place.device) if restore else Policy.load(source, None, place.device),
        place,
    )


def _experiment(recipe: ModuleType) -> ModuleType:
    return getattr(recipe, "experiment", recipe)


def _asked(recipe: ModuleType, what: str) -> Callable[..., dict[str, Any]]:
    """``outcomes`` or ``look`` of a recipe's experiment."""
    there = _experiment(recipe)
    if not hasattr(there, what):
        returns = "{metric: Tensor [n]}" if what == "outcomes" else "{file name: bytes or text}"
        raise BadRun(
            f"{there.__name__} does not say how its policy is {'judged' if what == 'outcomes' else 'shown'}: "
            f"add {what}(policy, base, seed, n) -> {returns} to the recipe's file, or to its experiment."
        )
    return getattr(there, what)


def _page(path: Path) -> None:
    from denoiserl import store
    from denoiserl.show.report import write_text
    from denoiserl.show.run import run_report
    from denoiserl.train.run import module

    record = store.read_json(path / "run.json")
    finish = None
    with contextlib.suppress(DenoiseError):  # what a run wrote can be shown where its recipe cannot be imported
        if isinstance(record, dict) and record.get("finished"):
            findable(path)
            finish = getattr(module(record["recipe"]), "finish", None)
    if finish is not None:
        finish(path)
    else:
        print(write_text(path / "report.html", run_report(path)))
