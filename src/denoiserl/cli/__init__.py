"""The command line: ``denoiserl VERB ...``.

    list      the recipes
    run       a recipe, a file of yours, or the folder of a run: begun, gone on with, or repeated
    eval      held-out trials of one policy, or of several against each other
    sample    draw with a run's policy, save, look
    collect   record episodes of an expert or a policy
    upsample  make synthetic transitions of a data set, and say how real they look
    answer    tell a reward to a policy that was trained without any
    compare   methods on one task: equal budgets, paired seeds, verdicts
    claim     papers' claims, tried again and recorded
    doctor    what is wrong with a policy before it learns
    report    runs as one HTML page
    demo      a robot, an image generator and a language model, each improved by reward

Exit codes: 0, 1 for what the library refuses, 2 for what was mistyped, 130 for Ctrl-C. Errors are one line on stderr;
``--debug`` (or ``DENOISERL_DEBUG=1``) shows where they come from. A verb's module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoiserl.core.errors import DenoiseRLError, RunError, unknown_name_message


class Misuse(RunError):
    """The command was mistyped: exit code 2."""


@dataclass(frozen=True)
class Verb:
    """A command: the module and function that do it, a line for the help, and an example."""

    where: str
    line: str
    example: str


VERBS = {
    "list": Verb("listing.list_", "the recipes: name, paper, what they learn from", "denoiserl list --json"),
    "run": Verb("run.run", "run a recipe, your own file, or go on in a run's folder", "denoiserl run dppo --seed 1"),
    "eval": Verb(
        "judging.eval_",
        "held-out trials of one policy, or of several against each other",
        "denoiserl eval runs/a runs/b",
    ),
    "sample": Verb("results.sample", "draw with a run's policy, save, look", "denoiserl sample runs/dppo-1 --n 4"),
    "collect": Verb(
        "collecting.collect",
        "record episodes of an expert or a policy",
        "denoiserl collect --env metaworld:reach-v3 --out demos/reach",
    ),
    "upsample": Verb(
        "upsampling.upsample",
        "make synthetic transitions of a data set, and say how real they look",
        "denoiserl upsample my.hdf5 --out bigger.hdf5",
    ),
    "answer": Verb(
        "answering.answer",
        "tell a reward to a policy that was trained without any",
        "denoiserl answer runs/breeze-0 --reward my_file.py:reward --out policies/mine",
    ),
    "compare": Verb(
        "studies.compare",
        "methods on one task: equal budgets, paired seeds, verdicts",
        "denoiserl compare --task env --methods dppo,ppo --budget 100k --unit env_steps",
    ),
    "claim": Verb("studies.claim", "papers' claims, tried again and recorded", "denoiserl claim --list"),
    "doctor": Verb("doctoring.doctor", "what is wrong with a policy before it learns", "denoiserl doctor runs/dppo-1"),
    "report": Verb("results.report", "a run as one self-contained HTML page", "denoiserl report runs/dppo-1"),
    "demo": Verb("run.demo", "three acts: robot, images, language; a few minutes", "denoiserl demo"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what ``argv`` (default: the command line) says and return the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given or os.environ.get("DENOISERL_DEBUG", "0") not in ("", "0")
    given = [word for word in given if word != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            return _main(given)
    except DenoiseRLError as error:
        if debug:
            raise
        print(f"denoiserl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, Misuse) else 1
    except SystemExit as stop:  # of the option parser, or of a run that was interrupted
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("denoiserl: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough; nothing more can be written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if debug or error.filename is None:
            raise
        said = f"{error.filename}: {error.strerror or error}: check the path, and whether it may be read and written"
        print(f"denoiserl: {said}.", file=sys.stderr)
        return 1


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
    """The library's own warnings are for who runs it; others say where they come from."""
    own = issubclass(category, UserWarning) and "denoiserl" in Path(filename).parts
    said = f"denoiserl: {message}" if own else warnings.formatwarning(message, category, filename, lineno).rstrip()
    print(said, file=sys.stderr)


def _main(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        _help()
        return 0
    if given[0] == "--version":
        from denoiserl import __version__

        print(f"denoiserl {__version__}")
        return 0
    if given[0] not in VERBS:
        what = "option" if given[0].startswith("-") else "command"
        raise Misuse(unknown_name_message(given[0], (*VERBS, "--help", "--version"), what))
    module, _, function = VERBS[given[0]].where.partition(".")
    getattr(importlib.import_module(f"denoiserl.cli.{module}"), function)(given[1:])
    return 0


def _help() -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print("\n[bold]denoiserl[/]: reinforcement learning with everything that denoises\n")
    for name, verb in VERBS.items():
        console.print(f"  [bold cyan]{name:<10}[/]{verb.line}")
    console.print()
    for verb in VERBS.values():
        console.print(f"  [dim]$[/] {verb.example}", soft_wrap=True)
    console.print("\n  VERB --help lists the options of a verb, run RECIPE --help those of a recipe.")
    console.print("  --version prints the version, --debug shows the traceback of an error.\n")
