"""Recipes: one published method per file, in a folder per family. A recipe knows no task: see ``Recipe``.

A recipe's docstring begins with ``NAME: title``; lines ``key: value`` follow, then prose in Markdown. That is its
``Card``: ``denoiserl list`` and the documentation show the same. The source is parsed, not imported, so that reading a
card is fast and needs none of the recipe's dependencies.

Three of the lines describe the recipe (``KEYS``), the others place it on the map of the field (``FACETS``). Each facet
takes words of a closed vocabulary, several with commas, the primary one first. The recipes of this package have all
facets; a recipe of yours may have any of them.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.core.settings import Settings

if TYPE_CHECKING:  # the cards of recipes are read without torch
    from denoiserl.core.rng import Rng
    from denoiserl.train import Metrics, Run

HERE = Path(__file__).parent
SHARED = ("__init__", "common")
"""modules of a family that are no recipes"""
KEYS = ("paper", "signal", "family")
SIGNALS = {
    "env": "an environment",
    "reward": "a reward function",
    "pairs": "preferences",
    "data": "recorded data",
}
# Sides, base models, tasks and stages are those of arXiv 2410.16411, with the words that it lacks: masked and
# graph diffusion, energies, imitation, test time, acceleration, evaluation. The last three axes are this library's own.
FACETS = {
    "side": {
        "A": "a generative model serves reinforcement learning",
        "B": "the generative model is the policy, trained by reward or ready to be",
    },
    "base": {
        "gaussian": "a policy that draws in one step, the baseline of the others",
        "diffusion": "a diffusion or flow model",
        "masked diffusion": "a model that unmasks tokens",
        "graph diffusion": "a model that denoises nodes and edges",
        "energy": "an energy whose minimum is the result",
        "language model": "a model that generates tokens from left to right",
        "vision-language model": "a language model that sees",
        "world model": "a model of the environment's next state",
    },
    "task": {
        "policy learning": "the method improves the policy",
        "planning": "the method searches for a sequence of actions",
        "exploration": "the method proposes behaviour to try, or generates data",
        "reward signal": "the method learns or provides the reward",
        "state representation": "the method learns features of states",
        "acceleration": "the same result at a lower cost",
        "evaluation": "the method compares policies",
    },
    "stage": {
        "imitation": "before any reward",
        "from scratch": "by reward alone",
        "fine-tuning": "by reward, from a policy that imitates",
        "distillation": "from other policies",
        "test time": "without training",
    },
    "output": {
        "actions": "chunks of actions, trajectories",
        "images": "images",
        "video": "videos",
        "speech": "audio",
        "language": "sequences of tokens",
        "graphs": "nodes and edges",
    },
    "process": {
        "diffusion": "Gaussian noise",
        "flow": "Gaussian noise on straight paths",
        "masked": "tokens hidden one by one",
        "one-step": "a single draw",
        "autoregressive": "one token after the other",
    },
    "likelihood": {
        "rescore": "of the recorded steps, scored again",
        "elbo": "a bound on that of the result, from noising it again",
        "none": "not needed",
    },
}


@dataclass(frozen=True)
class Card:
    """The contents of a recipe's docstring.

    ``module`` is its name on the command line, ``body`` the prose, ``facets`` its words of each facet, primary first.
    """

    module: str
    name: str
    title: str
    paper: str
    signal: str
    family: str
    body: str = ""
    facets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Recipe(Protocol):
    """The contract of a recipe, which is a module.

    ``improve(policy, signal, args, rng, run)`` is a generator that improves ``policy`` in place. It is documented in
    full on the page ``docs/concepts/improve.md``; in short:

    - ``policy``: its weights change, its controller and its execution horizon (``policy.weights.control``,
      ``.execute``).
    - ``signal``: a ``Collector`` (env), a ``RewardSignal`` (reward), demonstrations or a recording (data), or
      preferences (pairs).
    - ``args``: the hyper-parameters of the method alone, a frozen dataclass ``Args``.
    - ``rng``: an ``Rng``, or an int as its seed; the only source of randomness.
    - ``run``: a ``train.Run``, which saves, resumes and limits the loop. None: in memory.
    - Yields a row of metrics per iteration, ``{name: number}``. No work is done before the first ``next``.

    Optional: ``DEFAULT_TASK_ARGS``, settings of the default task; ``EXTENDABLE``, the settings under which a run may
    go on to more iterations; ``TUNE``, candidates of settings for ``compare``; ``DEMO``, the args of the demo.
    """

    Args: type[Any]
    """a frozen dataclass; every field has a default"""
    SIGNAL: Literal["env", "reward", "pairs", "data"]
    """the kind of signal that it learns from"""
    START: str | Callable[[Any], str] | None
    """the kind of policy that it starts from, or a function of its args (None: any)"""
    DEFAULT_TASK: str
    """the task of ``denoiserl run NAME`` without ``--task``"""

    def improve(
        self, policy: Any, signal: Any, args: Any, rng: Rng | int, run: Run | None = None, /
    ) -> Iterator[Metrics]: ...


def check_inputs(policy: Any, signal: Any, kind: str, args: Any, known: type[Any]) -> None:
    """Raise InvalidInputError unless a recipe can begin with these; every ``improve`` calls it first.

    ``kind``: the recipe's ``SIGNAL``, of which a reward is checked by ``rewards.as_reward_signal`` later. ``known``:
    the recipe's ``Args``.
    """
    name = known.__module__.rpartition(".")[2]
    if not hasattr(policy, "train_steps"):
        raise InvalidInputError(
            f"{name} improves a Policy, not a {type(policy).__name__}: make one with Policy.of, or read one with "
            "Policy.load(folder)"
        )
    names = [each.name for each in fields(known)]
    if not all(hasattr(args, each) for each in names):  # the settings of a recipe that builds on this one fit too
        whose = f"{type(args).__module__.rpartition('.')[2]}.{type(args).__name__}"
        hint = f"{name}.Args(**settings)" if isinstance(args, Mapping) else f"{name}.Args(...)"
        raise InvalidInputError(f"{name} takes its own settings, {name}.Args, not a {whose}: give {hint}")
    if isinstance(args, Settings):
        args.check_denoising_steps(len(policy.train_steps))
    if kind == "env" and not hasattr(signal, "collect"):
        raise InvalidInputError(
            f"{name} learns in a Collector, not in a {type(signal).__name__}: give Collector(env, num_envs=8), where "
            "env is a Gymnasium id or a factory"
        )
    if kind == "data" and (isinstance(signal, str | Path | tuple | int | None) or hasattr(signal, "collect")):
        raise InvalidInputError(
            f"{name} learns from recorded data, not from a {type(signal).__name__}: read a recording with "
            "denoiserl.data.formats.any.read(path)"
        )


def paths() -> dict[str, Path]:
    """Return the file of every recipe of this package by its name, sorted: every module of a family but ``SHARED``."""
    found = [p for p in HERE.glob("*/*.py") if p.stem not in SHARED]
    return {p.stem: p for p in sorted(found, key=lambda p: p.stem)}


def names() -> list[str]:
    """Return the recipes of this package, sorted."""
    return list(paths())


def path(name: str) -> Path:
    """Return the file of a recipe of this package. Raise RunError for an unknown name."""
    if name not in (known := paths()):
        raise RunError(unknown_name_message(name, known, "recipe"))
    return known[name]


def module_name(name: str) -> str:
    """Return the dotted name of a recipe's module: ``denoiserl.recipes.FAMILY.NAME``."""
    return f"{__name__}.{path(name).parent.name}.{name}"


def load(name: str) -> ModuleType:
    """Import a recipe of this package by its name. Raise RunError for an unknown one."""
    return importlib.import_module(module_name(name))


def describe(name: str) -> Card:
    """Return the card of a recipe of this package."""
    return read(path(name))


def __getattr__(name: str) -> ModuleType:
    """Import a recipe at first use, so that ``from denoiserl.recipes import dppo`` needs no family."""
    if name.startswith("_") or name not in paths():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(name)


def __dir__() -> list[str]:
    return sorted({"Recipe", "load", "names"} | {path.parent.name for path in paths().values()} | {*paths()})


def read(path: Path | str) -> Card:
    """Return the card of the recipe in the file ``path``. Raise RunError if its docstring is not one."""
    path = Path(path)
    try:
        lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    except SyntaxError as error:
        raise RunError(f"{path}: line {error.lineno} is not Python ({error.msg}).") from None
    head = re.fullmatch(r"([^:]+): (.+)", lines[0]) if lines else None
    if not head:
        raise RunError(f"{path}: the docstring must begin with 'NAME: one-line title'.")
    fields: dict[str, str] = {}
    rest = lines[1:]
    while rest and (not rest[0].strip() or re.fullmatch(r"[a-z]+: .+", rest[0])):
        key, _, value = rest.pop(0).partition(": ")
        if not value:
            continue
        if key not in (*KEYS, *FACETS):
            raise RunError(f"{path}: {unknown_name_message(key, (*KEYS, *FACETS), 'line of a recipe')}")
        if key in fields:
            raise RunError(f"{path}: the docstring has two lines '{key}: ...': separate several words by commas.")
        fields[key] = value.strip()
    if missing := [key for key in KEYS if key not in fields]:
        raise RunError(f"{path}: the docstring has no line '{missing[0]}: ...'.")
    if fields["signal"] not in SIGNALS:
        raise RunError(f"{path}: {unknown_name_message(fields['signal'], SIGNALS, 'kind of signal')}")
    facets = {key: tuple(w.strip() for w in fields[key].split(",")) for key in FACETS if key in fields}
    for key, words in facets.items():
        for word in words:
            if word not in FACETS[key]:
                raise RunError(f"{path}: {unknown_name_message(word, FACETS[key], key)}")
    paper, signal, family = (fields[key] for key in KEYS)
    body = "\n".join(rest).strip()
    return Card(path.stem, head[1].strip(), head[2].strip(), paper, signal, family, body, facets)
