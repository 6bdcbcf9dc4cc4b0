"""``run`` and ``demo``: a recipe's options from the command line, its run in a folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from denoiserl import recipes
from denoiserl.cli import Misuse
from denoiserl.cli.listing import hint
from denoiserl.cli.run_folders import _importable, findable, folder
from denoiserl.core.counters import UNITS
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.imports import load_module
from denoiserl.experiments.runner import opened, rerun
from denoiserl.experiments.runner import run as start

HELP = """usage: denoiserl run RECIPE [options]

RECIPE is one of
{recipes}
or a Python file of yours (with Args and train(args, keep)), or an importable module, or the folder of a run:
  denoiserl run dppo --env metaworld:button-press-v3    what only --base has needs no prefix
  denoiserl run reinflow --env pusht --seed 1
  denoiserl run dppo --env my_file.py:make_env --data my_demonstrations
  denoiserl run my_recipe.py --out runs/mine
  denoiserl run runs/dppo-1          goes on with that run, or repeats its result
  denoiserl run dppo --help          lists the options of a recipe, with types and defaults
The same command goes on where an interrupted run stopped."""


@dataclass(frozen=True)
class Again:
    """What may change when a run goes on."""

    budget: Annotated[tuple[str, ...], hint("(default: no limit)")] = ()
    """the most that the run may spend, such as: env-steps=200000 seconds=600"""
    held_out: int = 100
    """held-out trials of the best policy when the run is over, with intervals (0: none)"""
    progress: bool = True
    """show progress"""

    def __post_init__(self) -> None:
        if self.held_out < 0:
            raise Misuse(f"--held-out {self.held_out}: none is 0.")


@dataclass(frozen=True)
class Running(Again):
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
        path = folder(what)
        again = tyro.cli(Again, prog=f"denoiserl run {what}", description=f"Go on with the run in {path}.", args=rest)
        findable(path)
        limit = {"budget": budget(again.budget)} if again.budget else {}
        _told(rerun(path, progress=again.progress, **limit), again)
        return
    recipe = find(what)
    _start(recipe, f"run {what}", recipe.__name__.rpartition(".")[2].removeprefix("recipe_"), rest)


def demo(given: list[str]) -> None:
    """``denoiserl demo [options]``."""
    _start(load_module("denoiserl.demo"), "demo", None, given)


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
    """``("env-steps=200000",)`` as ``{"env steps": 200000.0}``."""
    found: dict[str, float] = {}
    known = [unit.replace(" ", "-") for unit in (*UNITS, "seconds")]
    for word in words:
        unit, _, amount = word.partition("=")
        if unit.replace(" ", "-") not in known:
            raise Misuse(unknown_name_message(unit, known, "unit of a budget"))
        try:
            found[unit.replace("-", " ")] = float(amount)
        except ValueError:
            raise Misuse(f"--budget {word}: write a unit and a number, such as {unit}=1000.") from None
    return found or None


def options(recipe: ModuleType) -> type[Any]:
    """A dataclass of the recipe's own ``Args`` and of ``Running``, both without a prefix on the command line."""
    for name in ("Args", "train"):
        if not hasattr(recipe, name):
            raise RunError(f"{recipe.__file__} has no {name}: a recipe is a dataclass Args and train(args, keep).")
    if not dataclasses.is_dataclass(recipe.Args):
        raise RunError(f"Args of {recipe.__file__} is no dataclass: decorate it with @dataclass(frozen=True).")
    taken = {f.name for f in dataclasses.fields(Running)} | {"debug"}
    if clash := sorted(taken & {f.name for f in dataclasses.fields(recipe.Args)}):
        raise RunError(f"Args of {recipe.__file__} names {', '.join(clash)}, which every run has: rename the field.")
    bare = tyro.conf.arg(name="")
    fields = [("args", Annotated[recipe.Args, bare]), ("running", Annotated[Running, bare])]
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def spelt_out(args: type[Any], given: list[str]) -> list[str]:
    """Options of a recipe's inner records under their full names: ``--env X`` is ``--base.env X`` where only ``base``
    has an ``env``."""
    outer = {f.name for f in dataclasses.fields(args)} | {f.name for f in dataclasses.fields(Running)}
    inner: dict[str, list[str]] = {}
    for name, kind in get_type_hints(args).items():
        for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            inner.setdefault(field.name, []).append(name)
    found = []
    for word in given:
        name, equals, value = word.removeprefix("--").partition("=")
        owners = inner.get(name.replace("-", "_"), [])
        short = word.startswith("--") and name.replace("-", "_") not in outer and len(owners) == 1
        found.append(f"--{owners[0]}.{name}{equals}{value}" if short else word)
    return found


def _start(recipe: ModuleType, said: str, name: str | None, given: list[str]) -> None:
    title = (recipe.__doc__ or "").strip().partition("\n\n")[0].replace("\n", "\n\n")
    known = options(recipe)
    chosen = tyro.cli(known, prog=f"denoiserl {said}", description=title, args=spelt_out(recipe.Args, given))
    how: Running = chosen.running
    seed = getattr(chosen.args, "seed", None)
    default = "demo" if name is None else name if seed is None else f"{name}-{seed}"
    told = start(
        recipe,
        chosen.args,
        how.out or Path("runs") / default,
        device=how.device,
        precision=how.precision,
        threads=how.threads,
        every=how.every,
        restart=how.restart,
        budget=budget(how.budget),
        progress=how.progress,
    )
    _told(told, how, recipe)


def _told(told: dict[str, Any], how: Again, recipe: ModuleType | None = None) -> None:
    """The last words of a run: what it ended with and what can be done with it."""
    folder = Path(told["folder"])
    recipe = recipe or opened(folder)[0]
    if hasattr(recipe, "finish"):
        recipe.finish(folder)
        return
    numbers = {k: v for k, v in (told["last"] or {}).items() if isinstance(v, int | float) and k != "iteration"}
    for key, value in numbers.items():
        print(f"  {key:<28}{value:.6g}")
    spent = ", ".join(f"{v:.0f} {k}" for k, v in told["spent"].items() if v)
    print(f"{folder}: {told['rows']} rows of metrics{f'; spent {spent}' if spent else ''}.")
    if any(p.is_dir() for p in folder.rglob("best")) or any(p.is_dir() for p in folder.rglob("last")):
        if how.held_out and hasattr(recipe, "task"):
            from denoiserl.cli import judging

            judging.told(folder, how.held_out, how.progress)
        print(f"Next: denoiserl eval {folder}, denoiserl sample {folder}, denoiserl report {folder}")
