"""``eval``: evaluate one policy, or several on the same held-out trials."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from denoiserl import tasks
from denoiserl.cli import Misuse
from denoiserl.cli.load_policy import LoadedPolicy, load_policy
from denoiserl.cli.options import (
    CheckpointOption,
    DeviceOption,
    ExecutionHorizonOption,
    Flag,
    JsonOption,
    MaxEpisodeStepsOption,
    help_hint,
    parse,
    print_table,
)
from denoiserl.cli.task_options import TASK_HELP, require_task, split_task_args
from denoiserl.core.errors import DenoiseRLError, unknown_name_message
from denoiserl.core.quick import NOTE
from denoiserl.core.settings import Count, OpenFraction, Seed, Settings

PolicyWords = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="RUN|POLICY [RUN|POLICY ...]", help_behavior_hint="(required)"),
]


@dataclass(frozen=True)
class EvalOptions(Settings):
    """Options of ``eval``."""

    policies: PolicyWords
    """folders of runs, or of saved policies; several are evaluated on the same trials and compared"""
    env: Annotated[str | None, help_hint("(default: the run's task)")] = None
    """Hopper-v5, metaworld:drawer-open-v3, my_module:make_env or my_file.py:make_env"""
    task: Annotated[str | None, tyro.conf.arg(help=TASK_HELP, help_behavior_hint="(default: the run's task)")] = None
    execution_horizon: ExecutionHorizonOption = None
    max_episode_steps: MaxEpisodeStepsOption = None
    trials: Count = 200
    """number of held-out trials of each policy"""
    seed: Seed = 0
    """random seed of the trials: the same seed gives the same trials"""
    sequential: Flag = False
    """test after every trial, and stop as soon as successes decide between the policies"""
    error_rate: OpenFraction = 0.05
    """error rate of all verdicts together"""
    checkpoint: CheckpointOption = "best"
    metrics: Annotated[tuple[str, ...], help_hint("(default: all)")] = ()
    """metrics to show"""
    media: bool = True
    """write plots and videos"""
    out: Annotated[Path | None, help_hint("(default: RUN/eval, or runs/eval-A-B)")] = None
    """the folder to write: eval.json, trials.jsonl, the plot and the videos"""
    device: DeviceOption = None
    json: JsonOption = False


def evaluate(argv: list[str]) -> None:
    """Run ``denoiserl eval RUN|POLICY ...``."""
    description = "Evaluate policies on held-out trials: 95 % intervals of one, verdicts between several."
    task_args, argv = split_task_args(argv)
    args = parse(EvalOptions, "eval", description, argv)
    if task_args and not args.task:
        raise Misuse("--task.NAME sets an option of the task: give --task too.")
    if not args.policies:
        raise Misuse("Name a run or a saved policy: denoiserl eval RUN.")
    if args.env and args.task:
        raise Misuse("--env and --task both say what policies are evaluated on: give one of them.")
    if not args.env and (args.execution_horizon or args.max_episode_steps):
        raise Misuse("--execution-horizon and --max-episode-steps are options of --env: give --env too.")
    if args.sequential and len(args.policies) < 2:
        raise Misuse("--sequential stops a comparison early: name two policies or more.")
    if args.task:
        require_task(args.task)
    loaded = _name_policies([load_policy(word, args.checkpoint, args.device) for word in args.policies])
    from denoiserl.experiments import evaluation_report as report
    from denoiserl.experiments.compare_report import note_lines
    from denoiserl.experiments.evaluate_policies import evaluate_policies

    out = args.out or _default_out(loaded)
    report.require_free_folder(out)
    task = _task(loaded, args, task_args)
    policies = {name: (policy.load(task), policy.place) for name, policy in loaded.items()}
    found = evaluate_policies(
        policies, task, args.seed, args.trials, args.error_rate, args.sequential, progress=not args.json
    )
    for name in args.metrics:
        if name not in found.values:
            raise Misuse(unknown_name_message(name, found.values, "metric"))
    paths = {name: str(policy.path) for name, policy in loaded.items()}
    if args.json:
        print(json.dumps(report.as_dict(found, args.metrics), indent=2), flush=True)
        for line in note_lines(found.notes):
            print(line, file=sys.stderr)
    elif len(policies) > 1:
        report.print_tables(found, args.metrics)
    else:
        _print_record(report.make_record(found), args.metrics)
    if quick := [name for name, policy in loaded.items() if getattr(policy.args, "quick", False)]:
        print(f"\n{', '.join(quick)}: {NOTE}", file=sys.stderr if args.json else sys.stdout)
    sys.stdout.flush()  # numbers first: a full disk or a missing plot library does not lose them
    report.write(found, task, policies, paths, out, args.media)
    if not args.json:
        print(f"\nSaved in {out}: eval.json (summary), trials.jsonl (every trial) and the plots.")


def evaluate_run(folder: Path, trials: int, progress: bool, repeated: bool = False) -> bool:
    """Evaluate a run's policies before and after improvement on the same trials; print a table and write it.

    A ``repeated`` run prints the table that it has written before. Return whether the task can draw samples.
    """
    from denoiserl.experiments import evaluation_report as report
    from denoiserl.experiments.evaluate_policies import evaluate_policies
    from denoiserl.report.improvement import AFTER, BEFORE, CONTROL
    from denoiserl.report.sections import VERDICT
    from denoiserl.train.saved_state import has_policy

    record = report.load_record(folder / VERDICT, trials) if repeated else None
    if record is not None and (AFTER in record["policies"]):
        _print_record(record)
        return bool(record.get("draws", True))
    after = load_policy(str(folder), "best" if has_policy(folder, "best") else "last", None)
    paths = {BEFORE: folder / "start", CONTROL: folder / "control" / "last", AFTER: after.path}
    loaded = {name: replace(after, path=path) for name, path in paths.items() if path.is_dir()}
    task = loaded[AFTER].task()
    policies = {name: (policy.load(task), policy.place) for name, policy in loaded.items()}
    try:
        found = evaluate_policies(policies, task, 0, trials, progress=progress)
    except DenoiseRLError as error:
        if len(policies) == 1:
            raise
        print(f"\nThere is no comparison with the policy before improvement, which cannot be evaluated: {error}")
        policies = {AFTER: policies[AFTER]}
        found = evaluate_policies(policies, task, 0, trials, progress=progress)
    if len(policies) > 1:
        print(f"\nBefore and after on the same {trials} held-out trials (after: the {after.path.name} policy):")
    else:
        print(f"\nIn {trials} held-out trials of the {after.path.name} policy:")
    _print_record(report.make_record(found))
    sys.stdout.flush()
    written = {name: str(loaded[name].path) for name in policies}
    report.write(found, task, policies, written, folder / VERDICT, media=False)
    return task.render is not None


def _print_record(record: dict[str, Any], metrics: Sequence[str] = ()) -> None:
    """Print the numbers of one policy, or a run's policies before and after improvement, and the notes on them."""
    from denoiserl.experiments.compare_report import note_lines
    from denoiserl.report.improvement import compares_improvement, improvement_sentences, improvement_table
    from denoiserl.report.sections import evaluation_tables
    from denoiserl.stats import Interval

    tables = evaluation_tables(record)
    if compares_improvement(tables):
        head, cells = improvement_table(tables)
        print_table(tuple(head), [tuple(row) for row in cells], right=1)
        print("\n" + "\n".join(improvement_sentences(tables[0])))
    else:
        rows = []
        for name in metrics or record["metrics"]:
            what, unit = record["metrics"][name]["what"], record["metrics"][name]["unit"]
            (saved,) = record["metrics"][name]["policies"].values()
            if saved is None:  # too few trials have this metric
                continue
            one = Interval(**saved)
            mean, _, ends = format(one, ".1%" if unit == "%" else "").rpartition(" (")[0].partition(" ")
            rows.append((name, "" if what == name else what, mean, ends, str(one.n)))
        print_table(("metric", "", "mean", "95 % interval", "n"), rows, right=2)
    for line in note_lines(record["notes"]):
        print(f"\n{line}")


def _name_policies(policies: Sequence[LoadedPolicy]) -> dict[str, LoadedPolicy]:
    """Return {name: policy}: the last parts of the paths, as many as are needed to be different."""
    paths = [(m.run or m.path).resolve() for m in policies]
    if len(set(paths)) < len(paths):
        raise Misuse("A policy is named twice, and its trials would be the same: name each once.")
    depth = 1
    while len({"-".join(p.parts[-depth:]) for p in paths}) < len(paths):
        depth += 1
    return {"-".join(p.parts[-depth:]): m for p, m in zip(paths, policies, strict=True)}


def _task(loaded: dict[str, LoadedPolicy], args: EvalOptions, task_args: dict[str, Any]) -> Any:
    """Return the task to evaluate on: that of the options, or the one task of the runs."""
    if args.env:
        from denoiserl.tasks.eval_env import env_task

        return env_task(args.env, args.execution_horizon, args.max_episode_steps)
    if args.task:
        return tasks.make(args.task, task_args)
    found = {name: policy.task() for name, policy in loaded.items()}
    first, *others = found.values()
    if any(o.name != first.name for o in others):
        names = ", ".join(f"{name}: {t.name}" for name, t in found.items())
        raise Misuse(f"The runs are of different tasks ({names}): give one of them, with --env or --task.")
    return first


def _default_out(loaded: dict[str, LoadedPolicy]) -> Path:
    """Return the folder to write if no --out is given."""
    (name, policy), *others = loaded.items()
    if not others:
        return (policy.run or policy.path.parent) / "eval" if policy.run else Path("runs") / f"eval-{name}"
    return Path("runs") / f"eval-{'-'.join(loaded)}"[:120]
