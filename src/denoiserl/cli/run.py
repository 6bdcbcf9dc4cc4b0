"""``run`` and ``demo``: run a recipe on a task, or the demo, in a folder.

What needs torch is imported where it is used: help and usage errors come at once.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

from denoiserl import recipes
from denoiserl.cli import Misuse
from denoiserl.cli.options import parse, parse_as_declared
from denoiserl.cli.run_folders import add_recipe_dir_to_path, add_to_import_path, find_run_folder
from denoiserl.cli.run_options import (
    MachineOptions,
    ResumeOptions,
    program_options,
    require_parts,
    run_options,
)
from denoiserl.cli.source_args import read_args
from denoiserl.cli.task_options import find_task
from denoiserl.core.errors import unknown_name_message
from denoiserl.core.imports import load_module
from denoiserl.core.progress import say
from denoiserl.core.quick import NOTE
from denoiserl.core.serialization.args_json import from_json, to_json

HELP = """usage: denoiserl run RECIPE [options]

RECIPE is one of
{recipes}
or a Python file (with Args, SIGNAL and improve; see denoiserl.recipes.Recipe), or an importable module, or the
folder of a run:
  denoiserl run dppo --env metaworld:button-press-v3
  denoiserl run reinflow --env pusht --seed 1
  denoiserl run dppo --env my_file.py:make_env --data my_demonstrations
  denoiserl run flow_grpo --task my_file.py:make_task   a task of your own
  denoiserl run my_recipe.py --task env --out runs/mine
  denoiserl run runs/dppo-pusht-0    goes on with that run, or repeats its result
  denoiserl run dppo --help          shows the options of a recipe, with types and defaults
Options of the task need no prefix. To go on with an interrupted run, repeat its command."""

DEMO_HELP = """The acts have the options of their recipes and tasks: --robot.NAME (denoiserl run dppo --help),
--image.NAME (flow_grpo), --language.NAME (tracerl), --robot-task.NAME, --image-task.NAME and --language-task.NAME."""


def run(argv: list[str]) -> None:
    """Run ``denoiserl run RECIPE [options]``."""
    if not argv or argv[0] in ("-h", "--help"):
        cards = [recipes.describe(name) for name in recipes.names()]
        print(HELP.format(recipes="\n".join(f"  {c.module:<18}{c.name}: {c.title}" for c in cards)))
        if not argv:
            raise Misuse("Name a recipe: denoiserl run RECIPE [options].")
        return
    word, argv = argv[0], argv[1:]
    if word.startswith("-"):
        raise Misuse(f"The recipe comes first: denoiserl run RECIPE {word} ...")
    if word not in recipes.names() and any((p / word).is_dir() for p in (Path(), Path("runs"))):
        _resume(word, argv)
        return
    recipe = find_recipe(word)
    name = recipe.__name__.rpartition(".")[2].removeprefix("recipe_")
    if word not in recipes.names() and not hasattr(recipe, "improve"):
        require_parts(recipe, set(), "Args", "train")
        _run_program(recipe, f"run {word}", name, argv)
        return
    task = find_task(recipe, argv)
    kind, short = run_options(recipe, task, "--quick" in argv)
    description = f"{_title(recipe)}\n\nOn the task {task}; --task NAME is another one."
    words = [each.partition("=") for each in argv]
    argv = [short.get(name.replace("_", "-"), name) + equals + value for name, equals, value in words]
    chosen = parse_as_declared(kind, f"run {word}", description, argv)
    machine: MachineOptions = chosen.machine
    settings = machine.runner_settings()
    say(f"Loading {name} and the task {task} ...")
    from denoiserl.experiments import experiment, runner

    args = experiment.Args(
        recipe=word if word in recipes.names() else getattr(recipe, "__recipe__", recipe.__name__),
        args=to_json(chosen.args),
        task=task,
        task_args=to_json(chosen.task_args),
        start=chosen.run.start_kind,
        seed=chosen.run.seed,
        eval_every=chosen.run.eval_every,
        control=chosen.run.control,
        quick=chosen.run.quick,
    )
    folder = machine.out or Path("runs") / experiment.default_folder(args)
    _print_result(runner.run(experiment, args, folder, numbered=machine.out is None, **settings), machine, experiment)


def demo(argv: list[str]) -> None:
    """Run ``denoiserl demo [options]``."""
    _run_program(read_args("denoiserl.demo"), "demo", None, argv)


def find_recipe(word: str) -> ModuleType:
    """Return the recipe that a word names: one of this package (its options alone), a file, or a dotted module."""
    if word in recipes.names():
        return read_args(recipes.module_name(word))
    if not word.endswith(".py") and ("." not in word or "/" in word):
        raise Misuse(unknown_name_message(word, recipes.names(), "recipe") + " To run a file, end its name in .py.")
    if word.endswith(".py") and not Path(word).is_file():
        raise Misuse(f"The recipe's file {word} does not exist: check the path.")
    add_to_import_path(Path(word).resolve().parent if word.endswith(".py") else Path.cwd())
    return load_module(word)


def _title(module: ModuleType) -> str:
    """Return the first paragraph of a module's docstring."""
    return (module.__doc__ or "").strip().partition("\n\n")[0].replace("\n", "\n\n")


def _resume(word: str, argv: list[str]) -> None:
    """Go on with the run in a folder."""
    path = find_run_folder(word)
    args = parse(ResumeOptions, f"run {word}", f"Go on with the run in {path}.", argv)
    settings = args.runner_settings()
    say(f"Loading {path} ...")
    from denoiserl.experiments.runner import rerun

    add_recipe_dir_to_path(path)
    _print_result(rerun(path, **settings), args)


def _run_program(program: ModuleType, command: str, name: str | None, argv: list[str]) -> None:
    """Run a module with ``Args`` and ``train``: the demo, or a program of a user's."""
    is_demo = name is None
    brief = is_demo and not {"-h", "--help"}.isdisjoint(argv)  # what tyro hides it does not read either
    description = f"{_title(program)}\n\n{DEMO_HELP}" if is_demo else _title(program)
    chosen = parse_as_declared(
        program_options(program, brief, is_demo and "--quick" in argv), command, description, argv
    )
    machine: MachineOptions = chosen.machine
    settings = machine.runner_settings()
    say(f"Loading {description.splitlines()[0]} ..." if is_demo else f"Loading {command.removeprefix('run ')} ...")
    from denoiserl.experiments import runner

    program = load_module("denoiserl.demo") if is_demo else program
    args = from_json(program.Args, to_json(chosen.args))
    seed = getattr(args, "seed", None)
    default = "demo" if name is None else name if seed is None else f"{name}-{seed}"
    folder = machine.out or Path("runs") / default
    _print_result(runner.run(program, args, folder, numbered=machine.out is None, **settings), machine, program)


def _print_result(result: dict[str, Any], args: ResumeOptions, program: ModuleType | None = None) -> None:
    """Print the last metrics of a run, its cost, the held-out trials of its best policy, and what to do next."""
    folder = Path(result["folder"])
    if program is None:
        from denoiserl.experiments.runner import load_run

        program = load_run(folder)[0]
    if hasattr(program, "finish"):
        program.finish(folder)
        return
    if result["quick"]:
        print(NOTE)
    if result["repeated"]:
        print(f"{folder} is finished: nothing is computed again. Give more iterations, another seed, or --out NEW.")
    numbers = {k: v for k, v in (result["last"] or {}).items() if isinstance(v, int | float) and k != "iteration"}
    if numbers:
        stage = (result["last"] or {}).get("stage")
        print(f"Metrics of the last iteration{f' of {stage}' if stage else ''}:")
    for key, value in numbers.items():
        print(f"  {key:<28}{value:.6g}")
    spent = ", ".join(f"{v:.0f} {k}" for k, v in result["spent"].items() if v)
    print(f"{folder}: {result['rows']} rows of metrics{f'; spent {spent}' if spent else ''}.")
    if cut := result["unfinished"]:
        made = ", ".join(f"{stage} made {done} of {planned}" for stage, (done, planned) in cut.items())
        print(f"The budget ended it: {made} iterations. Repeat the command with a larger --budget to go on.")
    from denoiserl.train.saved_state import has_policy

    if has_policy(folder, "best") or has_policy(folder, "last"):
        draws = hasattr(program, "task_of")
        if args.eval_trials and hasattr(program, "task_of"):
            from denoiserl.cli.evaluate import evaluate_run

            draws = evaluate_run(folder, args.eval_trials, args.progress, result["repeated"])
        place = shlex.quote(str(folder))
        print(f"Next: {', '.join(f'denoiserl {v} {place}' for v in ('report', *['sample'] * draws, 'eval'))}")
