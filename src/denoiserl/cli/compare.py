"""``compare``: compare methods on one task, with equal budgets and paired seeds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from denoiserl import recipes, tasks
from denoiserl.cli import Misuse
from denoiserl.cli.options import Flag, JsonOption, help_hint, parse
from denoiserl.cli.task_options import TASK_HELP, parse_literal, require_task, split_task_args
from denoiserl.core.counters import UNITS
from denoiserl.core.errors import unknown_name_message
from denoiserl.core.machine import count_cores
from denoiserl.core.progress import say
from denoiserl.core.quick import NOTE, SCALE, quick_defaults, reduce_amount
from denoiserl.core.settings import Count, CountOrZero, OpenFraction, Seed, Settings

PREFIX = {"k": 1e3, "K": 1e3, "M": 1e6}


@dataclass(frozen=True)
class CompareOptions(Settings):
    """Options of ``compare``."""

    task: Annotated[str, tyro.conf.arg(help=TASK_HELP)]
    methods: str
    """methods, separated by commas: dppo,ppo,none. NAME=METHOD names an arm, METHOD@KIND its kind of starting policy"""
    budget: str
    """training budget of each arm and seed, such as 200k"""
    unit: str
    """unit of the budget: env_steps, denoiser_calls, denoiser_rows, reward_calls, updates or seconds"""
    num_seeds: Count = 5
    """number of training seeds: 0, 1, ..."""
    seeds: Annotated[tuple[Seed, ...], help_hint("(default: --num-seeds of them)")] = ()
    """the training seeds themselves: 3 4 5"""
    trials: Count = 200
    """number of held-out trials of each policy; all arms of a seed get the same trials"""
    tuning_runs: Count = 1
    """tuning runs per arm, on a seed of their own; 1: keep the settings as they are"""
    set: Annotated[tuple[str, ...], help_hint("(default: none)")] = ()
    """settings of arms: dppo.lr=1e-4 ppo.num_envs=20"""
    num_evals: CountOrZero = 5
    """number of held-out evaluations during training"""
    error_rate: OpenFraction = 0.05
    """error rate of all verdicts together"""
    jobs: Annotated[CountOrZero | None, help_hint("(default: one per core)")] = None
    """number of parallel processes; 0: train in this process"""
    device: str = "cpu"
    """where to compute"""
    out: Annotated[Path | None, help_hint("(default: runs/compare-TASK)")] = None
    """the folder of the comparison"""
    quick: Flag = False
    """a quick trial: a fiftieth of the budget, the trials and the starting policies; its numbers say nothing"""
    progress: bool = True
    """show progress"""
    json: JsonOption = False


def compare(argv: list[str]) -> None:
    """Run ``denoiserl compare --task TASK --methods A,B --budget N --unit UNIT``."""
    description = "Compare methods on one task: equal budgets, paired seeds, verdicts with stated error rates."
    task_args, argv = split_task_args(argv)
    args = parse(CompareOptions, "compare", description, argv)
    study = build_comparison(args, task_args)
    say(f"Loading the task {args.task} ...")
    from denoiserl.experiments import compare_report, run_comparison

    name = f"compare-{Path(args.task.partition(':')[0]).stem}{'-quick' if args.quick else ''}"
    folder = args.out or Path("runs") / name
    found = run_comparison(
        study, folder, count_cores() if args.jobs is None else args.jobs, args.device, args.progress and not args.json
    )
    report = compare_report.write(found, folder)
    if args.json:
        print(json.dumps({k: v.as_dict() for k, v in found.standings.items()}, indent=2, ensure_ascii=False))
        return
    if args.quick:
        print(NOTE)
    compare_report.print_tables(found)
    print(f"The report: {report}")


def build_comparison(args: CompareOptions, task_args: dict[str, Any]) -> Any:
    """Return the comparison that the options describe. Raise Misuse for options that describe none."""
    require_task(args.task)
    arms: dict[str, tuple[str, dict[str, Any], str | None]] = {}
    for word in filter(None, args.methods.split(",")):
        name, _, method = word.rpartition("=")
        method, _, kind = method.partition("@")
        name = name or Path(method).stem.rpartition(".")[2] + (f"-{kind}" if kind else "")
        if name in arms:
            raise Misuse(f"--methods names {name} twice: give one of them another name, {name}2={method}.")
        if method not in (*recipes.names(), "none") and "." not in method:
            raise Misuse(unknown_name_message(method, [*recipes.names(), "none"], "method"))
        arms[name] = (method, {}, kind or None)
    if len(arms) < 2:
        raise Misuse(
            "--methods names fewer than two arms: separate them by commas, such as dppo,ppo. The arm none is the "
            "starting policy."
        )
    for word in args.set:
        path, equals, value = word.partition("=")
        name, _, setting = path.partition(".")
        if not equals or not setting:
            raise Misuse(f"--set {word}: write ARM.SETTING=VALUE, such as dppo.lr=1e-4.")
        if name not in arms:
            raise Misuse(unknown_name_message(name, arms, "arm"))
        arms[name][1][setting] = parse_literal(value)
    unit = args.unit.replace("-", "_")
    if unit not in (*UNITS, "seconds"):
        raise Misuse(unknown_name_message(args.unit, (*UNITS, "seconds"), "unit"))
    budget, seeds = parse_amount(args.budget), args.seeds or tuple(range(args.num_seeds))
    trials = args.trials
    if args.quick:
        budget, trials = budget / SCALE, reduce_amount("trials", trials)
        task_args = quick_defaults(tasks.args_type(args.task)) | task_args
    from denoiserl.experiments import Arm, Study

    return Study(
        task=args.task,
        arms={name: Arm(*arm) for name, arm in arms.items()},
        budget=budget,
        unit=unit,
        seeds=seeds,
        base=task_args,
        trials=trials,
        quick=args.quick,
        tune=args.tuning_runs,
        curve=args.num_evals,
        level=args.error_rate,
    )


def parse_amount(word: str) -> float:
    """Return the number of a word: 200000 of ``200k``."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kKM]?)", word)):
        raise Misuse(f"--budget {word}: write a number, such as 50000, 200k or 1.5M.")
    return float(found[1]) * PREFIX.get(found[2], 1.0)
