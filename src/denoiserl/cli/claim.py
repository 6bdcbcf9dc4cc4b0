"""``claim``: try the claims of papers again, and record the verdicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import denoiserl
from denoiserl.cli import Misuse
from denoiserl.cli.options import Flag, JsonOption, help_hint, parse, print_table
from denoiserl.core.errors import unknown_name_message
from denoiserl.core.machine import count_cores
from denoiserl.core.progress import say
from denoiserl.core.settings import CountOrZero, Settings


@dataclass(frozen=True)
class ClaimOptions(Settings):
    """Options of ``claim``."""

    names: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(none: --list or --all)"),
    ] = ()
    """names of claims"""
    budget: Literal["laptop", "full"] = "laptop"
    """size of the experiment: at most half an hour on two cores, or as large as the claim needs"""
    all: Flag = False
    """all claims"""
    list: Flag = False
    """list the claims with their verdicts, and which verdicts are stale"""
    confirm: Flag = False
    """of stale records: repeat one seed, and record if all numbers are the same"""
    json: JsonOption = False
    jobs: Annotated[CountOrZero | None, help_hint("(default: one per core)")] = None
    """number of parallel processes"""
    out: Annotated[Path | None, help_hint("(default: the package's ledger)")] = None
    """folder of the records"""
    progress: bool = True
    """show progress"""


def claim(argv: list[str]) -> None:
    """Run ``denoiserl claim NAME ...``, ``--all``, ``--list``."""
    args = parse(ClaimOptions, "claim", "Try the claims of papers again.", argv)
    known = sorted(p.stem for p in (Path(denoiserl.__file__).parent / "claims").glob("*/*.py") if p.stem != "__init__")
    for name in args.names:
        if name not in known:
            raise Misuse(unknown_name_message(name, known, "claim"))
    if args.list or not (args.names or args.all):
        _print_list(args.names or tuple(known), args.json)
        return
    if args.confirm:
        _confirm(known if args.all else args.names, args)
        return
    say("Loading the claims ...")
    from denoiserl.experiments.claims import runner

    records = []
    for name in known if args.all else args.names:
        jobs = count_cores() if args.jobs is None else args.jobs
        record = runner.check(name, args.budget, None, jobs, args.progress and not args.json)
        path = runner.write(record, args.out)
        records.append(record)
        if not args.json:
            print(f"{name}: {record['verdict']}. {record['why']}\n  {path}, {record['seconds']:.0f} s")
    if args.json:
        print(json.dumps(records, indent=2, ensure_ascii=False))


def _confirm(names: Sequence[str], args: ClaimOptions) -> None:
    """Repeat one seed of each stale record, and write those whose numbers are the same."""
    say("Loading the claims ...")
    from denoiserl.experiments.claims import confirm, ledger, runner

    failed, stale = [], [name for name in names if ledger.is_stale(name)]
    for name in stale:
        jobs = count_cores() if args.jobs is None else args.jobs
        record, different = confirm.confirm(name, None, jobs, args.progress and not args.json)
        if different:
            failed.append(name)
            print(f"{name}: not confirmed. {'; '.join(different)}.")
            if record.get("processor") != runner.processor():
                print(
                    "The record does not name this processor, and another processor rounds otherwise. Run the same "
                    f"command in a checkout of {record['commit']}: if that gives these numbers too, the change of the "
                    "code made no difference."
                )
        else:
            runner.write(record, args.out)
            print(
                f"{name}: confirmed, {record['verdict']}; all arms of seed {record['seeds'][0]} gave the same numbers."
            )
    if not stale:
        print("None of these records is stale.")
    if failed:
        raise Misuse(f"Try {'these' if len(failed) > 1 else 'it'} again: denoiserl claim {' '.join(failed)}")


def _print_list(names: tuple[str, ...], as_json: bool) -> None:
    """Print the claims with their verdicts."""
    from denoiserl.experiments.claims import ledger

    rows, records = [], []
    for name in names:
        record, stale = ledger.record(name), ledger.is_stale(name)
        records.append({"name": name, "stale": stale, **(record or {"verdict": "not tried"})})
        verdict = record["verdict"] if record else "not tried"
        claim = ledger.load_claim(name)
        when = f"{record['date']}, {record['size']}" if record else ""
        rows.append((name, claim.claim, claim.paper, verdict + (" (stale)" if stale else ""), when))
    if as_json:
        print(json.dumps(records, indent=2, ensure_ascii=False))
        return
    print_table(("claim", "what the paper says", "paper", "verdict", "tried"), rows)
    print("\ndenoiserl claim NAME tries one again; stale: the code that it rests on has changed since.")
