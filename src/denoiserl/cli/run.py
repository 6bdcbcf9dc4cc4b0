"""``run`` and ``demo``: a recipe on a task, or the demo, as a run in a folder.

What needs torch is imported where it is used: help and usage errors come at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from denoiserl import recipes, tasks
from denoiserl.cli import Misuse
from denoiserl.cli.listing import hint
from denoiserl.cli.run_folders import _importable, add_recipe_dir_to_path, find_run_folder
from denoiserl.core.counters import UNITS
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.imports import load_module
from denoiserl.core.serialization.args_json import from_json, to_json
from denoiserl.core.settings import describe_range

HELP = """usage: denoiserl run RECIPE [options]

RECIPE is one of
{recipes}
or a Python file of yours (with Args, SIGNAL and improve; see denoiserl.recipes.Recipe), or an importable module, or the
folder of a run:
  denoiserl run dppo --env metaworld:button-press-v3    options of the task need no prefix
  denoiserl run reinflow --env pusht --seed 1
  denoiserl run dppo --env my_file.py:make_env --data my_demonstrations
  denoiserl run flow_grpo --task my_file.py:make_task   a task of yours
  denoiserl run my_recipe.py --task env --out runs/mine
  denoiserl run runs/dppo-1          goes on with that run, or repeats its result
  denoiserl run dppo --help          lists the options of a recipe, with types and defaults
The same command goes on where an interrupted run stopped."""


@dataclass(frozen=True)
class ResumeOptions:
    """What may change when a run goes on."""

    budget: Annotated[tuple[str, ...], hint("(default: no limit)")] = ()
    """the most that the run may spend, such as: env_steps=200000 seconds=600"""
    held_out: int = 100
    """held-out trials of the best policy when the run is over, with intervals (0: none)"""
    progress: bool = True
    """show progress"""

    def check(self) -> None:
        """Raise Misuse for values that mean nothing."""
        if self.held_out < 0:
            raise Misuse(f"--held-out {self.held_out}: none is 0.")


@dataclass(frozen=True)
class MachineOptions(ResumeOptions):
    """How and where to run."""

    out: Annotated[Path | None, hint("(default: runs/RECIPE-SEED, or runs/demo)")] = None
    """the run's folder"""
    device: str = "cpu"
    """cpu, cuda, cuda:1 or mps"""
    precision: Literal["float32", "medium", "bf16"] = "float32"
    """of the networks; medium leaves float32 products to a faster library, such as TF32"""
    threads: int = 1
    """of the processor: one suits small networks and bears other programs beside it; large ones gain from all cores"""
    every: Annotated[int | None, hint("(default: a tenth of each loop, or a minute)")] = None
    """iterations between saves, which change no numbers"""
    restart: Annotated[int | None, hint("(default: after some whole episodes of every copy)")] = None
    """iterations after which environments start afresh, since no simulator can be saved"""


@dataclass(frozen=True)
class RunOptions(MachineOptions):
    """How and where to run an experiment."""

    task: Annotated[str, hint("(default: the recipe's own)")] = ""
    """what the recipe runs on: env, offline, zero-shot, shapes, sudoku, my_module:make_task or my_file.py:make_task"""
    seed: int = 0
    """of everything that is drawn: the starting policy, the data and learning; the run's folder is named by it"""
    kind: Annotated[str | None, hint("(default: what the recipe asks for, or the task's first)")] = None
    """the kind of starting policy"""
    eval_every: Annotated[int | None, hint("(default: a quarter of the iterations)")] = None
    """iterations between held-out evaluations"""


def run(given: list[str]) -> None:
    """``denoiserl run RECIPE [options]``."""
    if not given or given[0] in ("-h", "--help"):
        cards = [recipes.describe(name) for name in recipes.names()]
        print(HELP.format(recipes="\n".join(f"  {c.module:<18}{c.name}: {c.title}" for c in cards)))
        if not given:
            raise Misuse("Name a recipe: denoiserl run RECIPE [options].")
        return
    what, rest = given[0], given[1:]
    if what.startswith("-"):
        raise Misuse(f"The recipe comes first: denoiserl run RECIPE {what} ...")
    if what not in recipes.names() and any((p / what).is_dir() for p in (Path(), Path("runs"))):
        path = find_run_folder(what)
        prog, said = f"denoiserl run {what}", f"Go on with the run in {path}."
        again = tyro.cli(ResumeOptions, prog=prog, description=said, args=rest)
        again.check()
        from denoiserl.experiments.runner import rerun

        add_recipe_dir_to_path(path)
        limit = {"budget": budget(again.budget)} if again.budget else {}
        _told(rerun(path, progress=again.progress, **limit), again)
        return
    if rest and rest[-1] == "--task":
        raise Misuse(f"--task: name a task: {', '.join(tasks.TASKS)}, or my_file.py:make_task.")
    recipe = find(what)
    if hasattr(recipe, "improve"):
        _experiment(recipe, what, rest)
    else:
        _program(recipe, f"run {what}", recipe.__name__.rpartition(".")[2].removeprefix("recipe_"), rest)


def demo(given: list[str]) -> None:
    """``denoiserl demo [options]``."""
    _program(load_module("denoiserl.demo"), "demo", None, given)


def find(what: str) -> ModuleType:
    """The recipe that a word of the command line means: a name, a file, or a dotted module."""
    if what in recipes.names():
        return recipes.load(what)
    if not what.endswith(".py") and ("." not in what or "/" in what):
        raise Misuse(unknown_name_message(what, recipes.names(), "recipe") + " A file of yours is named with its .py.")
    if what.endswith(".py") and not Path(what).is_file():
        raise Misuse(f"The recipe's file {what} does not exist: check the path.")
    _importable(Path(what).resolve().parent if what.endswith(".py") else Path.cwd())
    return load_module(what)


def budget(words: tuple[str, ...]) -> dict[str, float] | None:
    """Return the budget that words such as ``env_steps=200000`` give, by unit (``env-steps`` is the same unit)."""
    found: dict[str, float] = {}
    for word in words:
        unit, _, amount = word.replace("-", "_").partition("=")
        if unit not in (*UNITS, "seconds"):
            raise Misuse(unknown_name_message(unit, (*UNITS, "seconds"), "unit of a budget"))
        try:
            found[unit] = float(amount)
        except ValueError:
            raise Misuse(f"--budget {word}: write a unit and a number, such as {unit}=1000.") from None
    return found or None


def require_parts(module: Any, *parts: str) -> None:
    """Raise RunError if a recipe's module lacks a part of its contract, or its ``Args`` are no dataclass."""
    for name in parts:
        if not hasattr(module, name):
            raise RunError(
                f"{module.__file__} has no {name}: a recipe has a dataclass Args, SIGNAL and improve(policy, signal, "
                "args, rng, keep), see denoiserl.recipes.Recipe; a program has Args and train(args, keep)."
            )
    if not dataclasses.is_dataclass(module.Args):
        raise RunError(f"Args of {module.__file__} is no dataclass: decorate it with @dataclass(frozen=True).")


def flat(kind: type[Any], taken: set[str]) -> type[Any]:
    """Return a dataclass like ``kind`` whose options need no prefix on the command line, but for those ``taken``, and
    whose help shows their ranges."""
    hints = get_type_hints(kind, include_extras=True)
    own = {f.name: f for f in dataclasses.fields(kind)}
    bare = {name: Annotated[hints[name], option(f, hints[name], name in taken)] for name, f in own.items()}
    defaults = {name: f.default for name, f in own.items() if f.default is not dataclasses.MISSING}
    defaults |= {
        name: dataclasses.field(default_factory=f.default_factory)
        for name, f in own.items()
        if f.default_factory is not dataclasses.MISSING
    }
    made = type(kind.__name__, (kind,), {"__annotations__": bare, **defaults})
    return dataclass(frozen=True, kw_only=True)(made)


def option(field: dataclasses.Field[Any], kind: Any, prefix: bool) -> Any:
    """Return how an option is shown: with a prefix or without, and with its range beside its default."""
    shown = tyro.conf.arg(prefix_name=prefix)
    if not (words := describe_range(kind)) or field.default is dataclasses.MISSING:
        return shown
    return tyro.conf.arg(prefix_name=prefix, help_behavior_hint=f"(default: {field.default}; {words})")


def options(recipe: ModuleType, word: str) -> tuple[type[Any], set[str]]:
    """Return a dataclass of all options of a recipe on the task ``word``: the method's, then the task's, then the
    machine's; and those of the task that need no prefix."""
    require_parts(recipe, "Args", "improve")
    method = {f.name for f in dataclasses.fields(recipe.Args)}
    machine = {f.name for f in dataclasses.fields(RunOptions)} | {"debug"}
    if clash := sorted(machine & method):
        raise RunError(f"Args of {recipe.__file__} names {', '.join(clash)}, which every run has: rename the field.")
    kind = flat(tasks.args_type(word), method | machine)
    names = {f.name for f in dataclasses.fields(kind)}
    given = dict(getattr(recipe, "DEFAULT_TASK_ARGS", {})) if word == getattr(recipe, "DEFAULT_TASK", None) else {}
    preset = {"default": from_json(kind, given)} if given else {}
    fields = [
        ("args", Annotated[flat(recipe.Args, set()), tyro.conf.arg(name="")]),
        ("task_args", Annotated[kind, tyro.conf.arg(name="task")], dataclasses.field(**preset)),
        ("machine", flat(RunOptions, set())),
    ]
    return dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True), names - method - machine


def strip_prefix(words: list[str], bare: set[str]) -> list[str]:
    """Return the words of a command line with ``--task.NAME`` as ``--NAME`` where that is how the option is called."""
    named = (w.partition("=")[0][len("--task.") :].replace("-", "_") if w.startswith("--task.") else "" for w in words)
    return [w.replace("--task.", "--", 1) if name in bare else w for w, name in zip(words, named, strict=True)]


def task_word(recipe: Any, given: list[str]) -> str:
    """Return the task that a command line names, or the recipe's own."""
    word, words = getattr(recipe, "DEFAULT_TASK", None), iter(given)
    for option in words:
        name, equals, value = option.partition("=")
        if name == "--task":
            word = value if equals else next(words, None)
            if not word:
                raise Misuse(f"--task: name a task: {', '.join(tasks.TASKS)}, or my_file.py:make_task.")
    if word is None:
        raise Misuse(f"Say what it learns, with --task: {', '.join(tasks.TASKS)}, or my_file.py:make_task.")
    return word


def _experiment(recipe: ModuleType, what: str, given: list[str]) -> None:
    """Run a recipe on a task."""
    from denoiserl.experiments import experiment

    word = task_word(recipe, given)
    known, bare = options(recipe, word)
    title = (recipe.__doc__ or "").strip().partition("\n\n")[0].replace("\n", "\n\n")
    title += f"\n\nOn the task {word}; --task NAME is another one."
    try:
        chosen = tyro.cli(known, prog=f"denoiserl run {what}", description=title, args=strip_prefix(given, bare))
    except RunError as error:  # a value out of its range
        raise Misuse(str(error)) from None
    how: RunOptions = chosen.machine
    name = recipe.__name__.rpartition(".")[2].removeprefix("recipe_")
    args = experiment.Args(
        recipe=what if what in recipes.names() else getattr(recipe, "__recipe__", recipe.__name__),
        args=to_json(chosen.args),
        task=word,
        task_args=to_json(chosen.task_args),
        start=how.kind,
        seed=how.seed,
        eval_every=how.eval_every,
    )
    _start(experiment, args, how, f"{name}-{how.seed}")


def _program(program: ModuleType, said: str, name: str | None, given: list[str]) -> None:
    """Run a module with ``Args`` and ``train``: the demo, or a program of a user's."""
    require_parts(program, "Args", "train")
    title = (program.__doc__ or "").strip().partition("\n\n")[0].replace("\n", "\n\n")
    taken = {f.name for f in dataclasses.fields(MachineOptions)} | {"debug"}
    if clash := sorted(taken & {f.name for f in dataclasses.fields(program.Args)}):
        raise RunError(f"Args of {program.__file__} names {', '.join(clash)}, which every run has: rename the field.")
    bare = tyro.conf.arg(name="")
    fields = [("args", Annotated[program.Args, bare]), ("machine", flat(MachineOptions, set()))]
    known = dataclasses.make_dataclass("Options", fields, frozen=True)
    chosen = tyro.cli(known, prog=f"denoiserl {said}", description=title, args=given)
    seed = getattr(chosen.args, "seed", None)
    default = "demo" if name is None else name if seed is None else f"{name}-{seed}"
    _start(program, chosen.args, chosen.machine, default)


def _start(program: ModuleType, args: Any, how: MachineOptions, default: str) -> None:
    from denoiserl.experiments.runner import run as start

    how.check()
    told = start(
        program,
        args,
        how.out or Path("runs") / default,
        device=how.device,
        precision=how.precision,
        threads=how.threads,
        every=how.every,
        restart=how.restart,
        budget=budget(how.budget),
        progress=how.progress,
    )
    _told(told, how, program)


def _told(told: dict[str, Any], how: ResumeOptions, program: ModuleType | None = None) -> None:
    """The last words of a run: what it ended with and what can be done with it."""
    folder = Path(told["folder"])
    if program is None:
        from denoiserl.experiments.runner import load_run

        program = load_run(folder)[0]
    if hasattr(program, "finish"):
        program.finish(folder)
        return
    numbers = {k: v for k, v in (told["last"] or {}).items() if isinstance(v, int | float) and k != "iteration"}
    for key, value in numbers.items():
        print(f"  {key:<28}{value:.6g}")
    spent = ", ".join(f"{v:.0f} {k}" for k, v in told["spent"].items() if v)
    print(f"{folder}: {told['rows']} rows of metrics{f'; spent {spent}' if spent else ''}.")
    if any(p.is_dir() for p in folder.rglob("best")) or any(p.is_dir() for p in folder.rglob("last")):
        if how.held_out and hasattr(program, "task_of"):
            from denoiserl.cli import judging

            judging.print_held_out(folder, how.held_out, how.progress)
        print(f"Next: denoiserl eval {folder}, denoiserl sample {folder}, denoiserl report {folder}")
