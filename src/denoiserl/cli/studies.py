"""``compare`` and ``claim``: methods against each other, and papers against their claims."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.listing import Flag, hint, table
from denoiserl.core.counters import UNITS
from denoiserl.core.errors import unknown_name_message

PREFIX = {"k": 1e3, "K": 1e3, "M": 1e6}


def cores() -> int:
    """Processes that this machine runs well side by side."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


@dataclass(frozen=True)
class Compare:
    """Options of ``compare``."""

    task: str
    """env, offline, zero-shot, shapes, sudoku, or yours: my_module:make_task, my_file.py:make_task; its options are
    --task.NAME, such as --task.env pusht"""
    methods: str
    """what is compared, with commas: dppo,ppo,none. NAME=METHOD names an arm, METHOD@KIND its starting policy"""
    budget: str
    """what each arm and seed may spend in training, such as 200k"""
    unit: str
    """of the budget: env_steps, denoiser_calls, denoiser_rows, reward_calls, updates or seconds"""
    seeds: str = "5"
    """how many training seeds (0, 1, ...), or which: 3,4,5"""
    trials: int = 200
    """held-out trials of every policy; all arms of a seed get the same ones"""
    tune: int = 1
    """tuning runs an arm, on a seed of their own; 1 takes the settings as they are"""
    set: Annotated[tuple[str, ...], hint("(default: none)")] = ()
    """settings of arms: dppo.lr=1e-4 ppo.num_envs=20"""
    curve: int = 5
    """held-out evaluations on the way"""
    level: float = 0.05
    """error rate of all verdicts together"""
    jobs: Annotated[int | None, hint("(default: one a core)")] = None
    """processes side by side; 0: in this one"""
    device: str = "cpu"
    """where to compute"""
    out: Annotated[Path | None, hint("(default: runs/compare-TASK)")] = None
    """the study's folder"""
    progress: bool = True
    """show progress"""
    json: Flag = False
    """print JSON"""


@dataclass(frozen=True)
class ClaimOptions:
    """Options of ``claim``."""

    names: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(none: --list or --all)"),
    ] = ()
    """claims"""
    budget: Literal["laptop", "full"] = "laptop"
    """how much is spent: half an hour of two cores at most, or as much as the claim deserves"""
    all: Flag = False
    """every claim"""
    list: Flag = False
    """what the ledger says, and what is stale"""
    confirm: Flag = False
    """of records that are stale: repeat one seed, and where all numbers are the same, say so in the record"""
    json: Flag = False
    """print JSON"""
    jobs: Annotated[int | None, hint("(default: one a core)")] = None
    """processes side by side"""
    out: Annotated[Path | None, hint("(default: the package's ledger)")] = None
    """folder of the records"""
    progress: bool = True
    """show progress"""


def compare(given: list[str]) -> None:
    """``denoiserl compare --task TASK --methods A,B --budget N --unit UNIT``."""
    said = "Methods of one kind on one task: equal budgets, paired seeds, verdicts with stated error rates."
    task_args, given = task_settings(given)
    a = tyro.cli(Compare, prog="denoiserl compare", description=said, args=given)
    from denoiserl.experiments import compare_report as page
    from denoiserl.experiments import run_comparison

    study = build_comparison(a, task_args)
    folder = a.out or Path("runs") / f"compare-{Path(a.task.partition(':')[0]).stem}"
    found = run_comparison(study, folder, cores() if a.jobs is None else a.jobs, a.device, a.progress and not a.json)
    report = page.write(found, folder)
    if a.json:
        print(json.dumps({k: v.as_dict() for k, v in found.standings.items()}, indent=2, ensure_ascii=False))
        return
    page.print_tables(found)
    print(f"The report: {report}")


def claim(given: list[str]) -> None:
    """``denoiserl claim NAME ...``, ``--all``, ``--list``."""
    a = tyro.cli(ClaimOptions, prog="denoiserl claim", description="Papers' claims, tried again.", args=given)
    from denoiserl.experiments.claims import ledger

    known = ledger.names()
    for name in a.names:
        if name not in known:
            raise Misuse(unknown_name_message(name, known, "claim"))
    if a.list or not (a.names or a.all):
        _listed(a.names or tuple(known), a.json)
        return
    if a.confirm:
        _confirmed([n for n in (known if a.all else a.names) if ledger.stale(n)], a)
        return
    from denoiserl.experiments.claims import runner

    told = []
    for name in known if a.all else a.names:
        jobs = cores() if a.jobs is None else a.jobs
        record = runner.check(name, a.budget, None, jobs, a.progress and not a.json)
        path = runner.write(record, a.out)
        told.append(record)
        if not a.json:
            print(f"{name}: {record['verdict']}. {record['why']}\n  {path}, {record['seconds']:.0f} s")
    if a.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))


def _confirmed(names: Sequence[str], a: ClaimOptions) -> None:
    from denoiserl.experiments.claims import confirming, runner

    failed = []
    for name in names:
        jobs = cores() if a.jobs is None else a.jobs
        record, different = confirming.confirm(name, None, jobs, a.progress and not a.json)
        if different:
            failed.append(name)
            print(f"{name}: not confirmed. {'; '.join(different)}.")
        else:
            runner.write(record, a.out)
            said = f"all arms of seed {record['seeds'][0]} gave the same numbers"
            print(f"{name}: confirmed, {record['verdict']}; {said}.")
    if not names:
        print("No record among these is stale.")
    if failed:
        raise Misuse(f"Try {'these' if len(failed) > 1 else 'it'} again: denoiserl claim {' '.join(failed)}")


def _listed(names: tuple[str, ...], as_json: bool) -> None:
    from denoiserl.experiments.claims import ledger

    rows, told = [], []
    for name in names:
        record, stale = ledger.record(name), ledger.stale(name)
        told.append({"name": name, "stale": stale, **(record or {"verdict": "not tried"})})
        verdict = record["verdict"] if record else "not tried"
        claim = ledger.claim(name)
        when = f"{record['date']}, {record['size']}" if record else ""
        rows.append((name, claim.claim, claim.paper, verdict + (" (stale)" if stale else ""), when))
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    table(("claim", "what the paper says", "paper", "verdict", "tried"), rows)
    print("\ndenoiserl claim NAME tries one again; stale: the code that it rests on has changed since.")


def build_comparison(a: Compare, task_args: dict[str, Any]) -> Any:
    """The study that the options say."""
    from denoiserl.experiments import Arm, Study

    arms: dict[str, Arm] = {}
    for word in filter(None, a.methods.split(",")):
        name, _, method = word.rpartition("=")
        method, _, kind = method.partition("@")
        name = name or Path(method).stem.rpartition(".")[2] + (f"-{kind}" if kind else "")
        if name in arms:
            raise Misuse(f"--methods names {name} twice: give one of them another name, {name}2={method}.")
        arms[name] = Arm(method, {}, kind or None)
    if len(arms) < 2:
        raise Misuse("--methods names fewer than two arms: with commas, such as dppo,ppo; none is the start itself.")
    for word in a.set:
        path, equals, value = word.partition("=")
        name, _, setting = path.partition(".")
        if not equals or not setting:
            raise Misuse(f"--set {word}: write ARM.SETTING=VALUE, such as dppo.lr=1e-4.")
        if name not in arms:
            raise Misuse(unknown_name_message(name, arms, "arm"))
        arms[name].settings[setting] = parse_literal(value)
    unit = a.unit.replace("-", "_")
    if unit not in (*UNITS, "seconds"):
        raise Misuse(unknown_name_message(a.unit, (*UNITS, "seconds"), "unit"))
    seeds = (
        tuple(range(int(a.seeds))) if a.seeds.isdigit() else tuple(parse_int(s, "--seeds") for s in a.seeds.split(","))
    )
    return Study(a.task, arms, parse_amount(a.budget), unit, seeds, task_args, a.trials, a.tune, a.curve, a.level)


def task_settings(given: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the options of a task that a command line sets, ``--task.NAME VALUE``, and the other words."""
    found: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(given)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--task."):
            rest.append(word)
            continue
        value = value if equals else next(words, None)
        if value is None:
            raise Misuse(f"{name}: give a value, {name} VALUE.")
        found[name.removeprefix("--task.").replace("-", "_")] = parse_literal(value)
    return found, rest


def parse_amount(word: str) -> float:
    """``200k`` as 200000."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kKM]?)", word)):
        raise Misuse(f"--budget {word}: write a number, such as 50000, 200k or 1.5M.")
    return float(found[1]) * PREFIX.get(found[2], 1.0)


def parse_int(word: str, option: str) -> int:
    """An integer of the command line."""
    try:
        return int(word)
    except ValueError:
        raise Misuse(f"{option} {word}: write whole numbers with commas.") from None


def parse_literal(word: str) -> Any:
    """A value: JSON where it is JSON, else the word itself."""
    if word in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[word]
    try:
        return json.loads(word)
    except ValueError:
        return word
