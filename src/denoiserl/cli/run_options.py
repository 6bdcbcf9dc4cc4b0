"""The options of ``run``: those of the recipe, of the run, of the task and of the machine, as one dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from denoiserl import tasks
from denoiserl.cli import Misuse
from denoiserl.cli.options import Flag, help_hint, show_ranges
from denoiserl.cli.source_args import read_args
from denoiserl.cli.task_options import TASK_WORDS
from denoiserl.core.counters import UNITS
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.quick import AMOUNTS, quick_defaults
from denoiserl.core.serialization.args_json import from_json
from denoiserl.core.settings import Count, CountOrZero, Positive, Seed, Settings, find_problem


@dataclass(frozen=True)
class ExperimentOptions(Settings):
    """Options of the experiment: the task, the start and the seed."""

    task: Annotated[str, tyro.conf.arg(help=TASK_WORDS, help_behavior_hint="(default: the recipe's own)")] = ""
    seed: Seed = 0
    """random seed of the starting policy, the data and training"""
    start_kind: Annotated[str | None, help_hint("(default: the recipe's, or the task's first)")] = None
    """kind of starting policy"""
    eval_every: Annotated[Count | None, help_hint("(default: a quarter of the iterations)")] = None
    """iterations between held-out evaluations"""
    quick: Flag = False
    """a trial at a fiftieth of the default work, to see that it runs"""
    control: Literal["none", "imitation"] = "none"
    """also spend the same time on more imitation, for comparison"""


@dataclass(frozen=True)
class ResumeOptions(Settings):
    """Options that may change when a run goes on."""

    budget: Annotated[tuple[str, ...], help_hint("(default: no limit)")] = ()
    """limits of the run, such as: env_steps=200000 seconds=600"""
    eval_trials: CountOrZero = 100
    """held-out trials of the policies before and after, at the end; 0: none"""
    progress: bool = True
    """show progress"""

    def runner_settings(self) -> dict[str, Any]:
        """Return the keyword arguments of the runner. Raise Misuse for a budget that is none."""
        limits = {"budget": parse_budget(self.budget)} if self.budget else {}
        return {"progress": self.progress, **limits}


@dataclass(frozen=True)
class MachineOptions(ResumeOptions):
    """Options of the machine and the run's folder."""

    out: Annotated[Path | None, help_hint("(default: runs/RECIPE-TASK-SEED or runs/demo, then -2, -3, ...)")] = None
    """folder of the run"""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"""
    precision: Literal["float32", "medium", "bf16"] = "float32"
    """precision of the networks; medium: float32 with faster products, such as TF32"""
    threads: Count = 1
    """number of CPU threads; 1 suits small networks, all cores large ones"""
    save_every: Annotated[Count | None, help_hint("(default: a tenth of each loop, or a minute)")] = None
    """iterations between saves; changes no numbers"""
    env_restart_every: Annotated[Count | None, help_hint("(default: some episodes)")] = None
    """iterations between resets of environments, which cannot be saved"""

    def runner_settings(self) -> dict[str, Any]:
        """Return the keyword arguments of the runner. Raise Misuse for a budget that is none."""
        names = ("device", "precision", "threads", "save_every", "env_restart_every")
        return {**super().runner_settings(), **{name: getattr(self, name) for name in names}}


QUICK_MACHINE = {"eval_trials": AMOUNTS["trials"]}
"""defaults of a quick trial"""
MACHINE_NAMES = {f.name for f in dataclasses.fields(MachineOptions)} | {"debug"}
RUN_NAMES = {f.name for f in dataclasses.fields(ExperimentOptions)} | MACHINE_NAMES


def run_options(recipe: Any, task: str, quick: bool = False) -> tuple[type[Any], dict[str, str]]:
    """Return a dataclass of all options of a recipe on a task, and {``--task.env``: ``--env``} of its short names.

    An option of the task is ``--NAME``, or ``--task.NAME`` if the recipe or the run has an option of that name.
    ``quick``: the defaults of amounts of work are a fiftieth.
    """
    require_parts(recipe, RUN_NAMES, "Args")
    method = {f.name for f in dataclasses.fields(recipe.Args)}
    kind = read_args(tasks.TASKS[task]).Args if task in tasks.TASKS else tasks.args_type(task)
    kind = show_ranges(kind, method | RUN_NAMES, defaults=quick_defaults(kind) if quick else None)
    given = getattr(recipe, "DEFAULT_TASK_ARGS", {}) if task == getattr(recipe, "DEFAULT_TASK", None) else {}
    preset = {"default": from_json(kind, dict(given))} if given else {}
    fields = [
        (
            "args",
            Annotated[
                show_ranges(recipe.Args, defaults=quick_defaults(recipe.Args) if quick else None),
                tyro.conf.arg(name=""),
            ],
        ),
        ("run", show_ranges(ExperimentOptions)),
        ("task_args", Annotated[kind, tyro.conf.arg(name="task")], dataclasses.field(**preset)),
        ("machine", show_ranges(MachineOptions, defaults=QUICK_MACHINE if quick else None)),
    ]
    names = {f.name.replace("_", "-") for f in dataclasses.fields(kind) if f.name not in method | RUN_NAMES}
    short = {f"--task.{name}": f"--{name}" for name in names}
    return dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True), short


def program_options(program: Any, brief: bool = False, quick: bool = False) -> type[Any]:
    """Return a dataclass of all options of a module with ``Args``; ``brief`` as in ``show_ranges``."""
    require_parts(program, MACHINE_NAMES, "Args")
    names = {field.name for field in dataclasses.fields(program.Args)}
    fields = [
        (
            "args",
            Annotated[
                show_ranges(program.Args, names, brief, quick_defaults(program.Args) if quick else None),
                tyro.conf.arg(name=""),
            ],
        ),
        ("machine", show_ranges(MachineOptions)),
    ]
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def require_parts(module: Any, reserved: set[str], *parts: str) -> None:
    """Raise RunError if a module lacks a part, if its ``Args`` are no dataclass, or if they name a reserved option."""
    for name in parts:
        if not hasattr(module, name):
            raise RunError(
                f"{module.__file__} has no {name}: a recipe has a dataclass Args, SIGNAL and improve(policy, signal, "
                "args, rng, run), see denoiserl.recipes.Recipe; a program has Args and train(args, run)."
            )
    if not dataclasses.is_dataclass(module.Args):
        raise RunError(f"Args of {module.__file__} is no dataclass: decorate it with @dataclass(frozen=True).")
    if clash := sorted(reserved & {f.name for f in dataclasses.fields(module.Args)}):
        raise RunError(f"Args of {module.__file__} names {', '.join(clash)}, which every run has: rename the field.")


def parse_budget(words: tuple[str, ...]) -> dict[str, float]:
    """Return the limits that words such as ``env_steps=200000`` give, by unit (``env-steps`` is the same unit)."""
    found: dict[str, float] = {}
    for word in words:
        unit, _, amount = word.partition("=")
        if (unit := unit.replace("-", "_")) not in (*UNITS, "seconds"):
            raise Misuse(unknown_name_message(unit, (*UNITS, "seconds"), "unit of a budget"))
        try:
            found[unit] = float(amount)
        except ValueError:
            raise Misuse(f"--budget {word}: write a unit and a number, such as {unit}=1000.") from None
        if problem := find_problem(Positive, found[unit], f"--budget {unit}"):
            raise Misuse(problem)
    return found
