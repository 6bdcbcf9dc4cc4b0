"""The command line: ``denoiserl VERB ...``.

Each verb has a module with its options and a function of its words. The module is imported when the verb is used. Tyro
parses the options of a verb, not the verb itself. Its subcommands would build all parsers first, and cannot suggest the
nearest verb.

Exit codes: 0, 1 for an error, 2 for a mistyped command, 128 + n for signal n (130: Ctrl-C). Errors are one line on
stderr; ``--debug`` (or ``DENOISERL_DEBUG=1``) shows the traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoiserl.cli.failures import (
    discard_full_stdout,
    discard_stdout,
    open_streams,
    os_error_message,
    user_error_message,
)
from denoiserl.core.errors import DenoiseRLError, RunError, unknown_name_message
from denoiserl.core.progress import show_progress
from denoiserl.core.signals import signals_as_exceptions


class Misuse(RunError):
    """A wrong command line; the command exits with code 2."""


@dataclass(frozen=True)
class Verb:
    """A command: its module and function, a line for the help, and an example."""

    where: str
    line: str
    example: str


VERBS = {
    "list": Verb("list_recipes.list_recipes", "list the recipes: name, paper, signal", "denoiserl list --json"),
    "run": Verb("run.run", "run a recipe or a file, or go on with a run", "denoiserl run dppo --seed 1"),
    "eval": Verb(
        "evaluate.evaluate",
        "evaluate policies on held-out trials, several on the same ones",
        "denoiserl eval runs/a runs/b",
    ),
    "sample": Verb(
        "sample.sample",
        "generate with a run's policy, save, look",
        "denoiserl sample runs/dppo-pusht-0 --num-samples 4",
    ),
    "collect": Verb(
        "collect.collect",
        "record episodes of an expert or a policy",
        "denoiserl collect --env metaworld:reach-v3 --out demos/reach",
    ),
    "upsample": Verb(
        "upsample.upsample",
        "generate synthetic transitions from a data set",
        "denoiserl upsample my.hdf5 --out bigger.hdf5",
    ),
    "adapt": Verb(
        "adapt.adapt",
        "adapt a policy that was trained without rewards to a reward",
        "denoiserl adapt runs/breeze-Hopper-v5-0 --reward my_file.py:reward --out policies/mine",
    ),
    "compare": Verb(
        "compare.compare",
        "compare methods on one task, with equal budgets and paired seeds",
        "denoiserl compare --task env --methods dppo,ppo --budget 100k --unit env_steps",
    ),
    "claim": Verb("claim.claim", "try the claims of papers again, and record the verdicts", "denoiserl claim --list"),
    "doctor": Verb(
        "doctor.doctor",
        "check a policy and its signal for problems before training",
        "denoiserl doctor runs/dppo-pusht-0",
    ),
    "report": Verb("report.report", "write runs as one self-contained HTML page", "denoiserl report runs/dppo-pusht-0"),
    "demo": Verb("run.demo", "improve a robot, an image generator and a language model", "denoiserl demo"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``argv`` (default: the command line) and return the exit code."""
    with open_streams():
        return _run_command(list(sys.argv[1:] if argv is None else argv))


def _run_command(words: list[str]) -> int:
    """Run a command and return its exit code; every error is said in a line."""
    debug = "--debug" in words or os.environ.get("DENOISERL_DEBUG", "0") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    on = "--no-progress" not in words and "--json" not in words
    try:
        with warnings.catch_warnings(), signals_as_exceptions(), show_progress(on):
            warnings.showwarning = _show_warning
            _find_verb(words[0] if words else "--help")(words[1:])
            sys.stdout.flush()
        return 0
    except DenoiseRLError as error:
        if debug:
            raise
        print(f"denoiserl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, Misuse) else 1
    except SystemExit as stop:  # of the option parser, or of a run that was interrupted
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as stop:
        print("denoiserl: interrupted.", file=sys.stderr)
        return 128 + getattr(stop, "number", 2)
    except BrokenPipeError:
        discard_stdout()
        return 141
    except OSError as error:
        if debug:
            raise
        discard_full_stdout()
        print(f"denoiserl: {user_error_message(error) or os_error_message(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if debug or (message := user_error_message(error)) is None:
            raise
        print(f"denoiserl: {message} --debug shows the whole traceback.", file=sys.stderr)
        return 1


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    """Print a warning: the library's own in one line, others with the place that they come from."""
    own = issubclass(category, UserWarning) and "denoiserl" in Path(filename).parts
    text = f"denoiserl: {message}" if own else warnings.formatwarning(message, category, filename, lineno).rstrip()
    print(text, file=sys.stderr)


def _find_verb(word: str) -> Callable[[list[str]], None]:
    """Return the function of a verb. Raise Misuse with the nearest verb for an unknown one."""
    if word in ("-h", "--help", "help"):
        return _print_help
    if word == "--version":
        return _print_version
    if word not in VERBS:
        raise Misuse(
            unknown_name_message(word, (*VERBS, "--help", "--version"), "option" if word[:1] == "-" else "command")
        )
    module, _, function = VERBS[word].where.partition(".")
    return getattr(importlib.import_module(f"denoiserl.cli.{module}"), function)


def _print_version(argv: list[str]) -> None:
    from denoiserl import __version__

    print(f"denoiserl {__version__}")


def _print_help(argv: list[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print("\n[bold]denoiserl[/]: reinforcement learning with everything that denoises\n")
    for name, verb in VERBS.items():
        console.print(f"  [bold cyan]{name:<10}[/]{verb.line}")
    console.print()
    for verb in VERBS.values():
        console.print(f"  [dim]$[/] {verb.example}", soft_wrap=True)
    console.print("\n  VERB --help shows the options of a verb, run RECIPE --help those of a recipe.")
    console.print("  --version prints the version, --debug shows the traceback of an error.\n")
