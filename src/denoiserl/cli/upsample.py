"""``upsample``: generate synthetic transitions from a data set, in its own format, with a report of their fidelity."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.options import Flag, JsonOption, help_hint, parse, print_table
from denoiserl.core.progress import show_progress, track
from denoiserl.core.settings import Count, Positive, Seed, Settings

if TYPE_CHECKING:
    from denoiserl.data.formats.any import Kind

FORMAT_NAMES = {"minari": "Minari", "lerobot": "LeRobot", "hdf5": "HDF5", "denoiserl": "denoiserl"}
MAX_ROWS = {"minari": 20_000, "hdf5": 100_000, "denoiserl": 100_000}
"""largest default number of rows: a row takes 14 kB and two milliseconds in Minari's format"""
SHOWN = 12
"""largest number of columns in the table; the worst ones if there are more"""


@dataclass(frozen=True)
class UpsampleOptions(Settings):
    """Options of ``upsample``."""

    data: tyro.conf.Positional[Path]
    """a folder of Minari, LeRobot or denoiserl collect, or one flat HDF5 file"""
    out: Path
    """the new folder or .hdf5 file to write"""
    num_rows: Annotated[
        Count | None, help_hint("(default: ten times the data, 100000 at most; in Minari's format 20000)")
    ] = None
    """number of transitions to generate"""
    seed: Seed = 0
    """random seed of the model and its samples"""
    num_updates: Count = 10_000
    """gradient steps of the model"""
    batch_size: Count = 256
    """rows per gradient step"""
    lr: Positive = 1e-3
    """learning rate of the model"""
    width: Count = 256
    """width of the network; 1024 as published"""
    depth: Count = 4
    """hidden layers of the network; 6 as published"""
    sampling_steps: Count = 48
    """denoising steps per sample; 128 as published"""
    angle_columns: Annotated[tuple[int, ...], help_hint("(default: none)")] = ()
    """columns of the observation that are wrapped angles, in radians"""
    quantile_rewards: Flag = False
    """learn rewards by their ranks: for rewards with rare spikes"""
    format: Literal["same", "minari", "hdf5", "denoiserl"] = "same"
    """format of the data set to write"""
    out_of_bounds_actions: Literal["error", "clip"] = "error"
    """what to do with actions outside the action space that the data state"""
    exclude_episodes: Annotated[str, help_hint("(default: none)")] = ""
    """numbers of episodes to leave out: 0-2,5"""
    obs_keys: Annotated[str, help_hint("(default: all)")] = ""
    """names of observations to keep, where the data have several: observation.state"""
    device: str = "cpu"
    """where to compute"""
    json: JsonOption = False


def upsample(argv: list[str]) -> None:
    """Run ``denoiserl upsample DATA --out BIGGER``."""
    description = (
        "Train a diffusion model of a data set's transitions (SynthER), and write its samples as episodes of one step. "
        "A tenth of the episodes is held out, to tell new rows from copies."
    )
    args = parse(UpsampleOptions, "upsample", description, argv)
    if not args.data.exists():
        raise Misuse(
            f"There is no {args.data}: give a folder of Minari, LeRobot or denoiserl collect, or an HDF5 file."
        )
    written_format = _format(args)
    if args.out.exists():
        raise Misuse(f"{args.out} exists already: give another --out.")
    from denoiserl.train.device import DeviceConfig

    with DeviceConfig(args.device, "float32", None).activate():
        _upsample(args, written_format)


def _upsample(args: UpsampleOptions, written_format: Kind) -> None:
    import torch

    from denoiserl.core.rng import Rng
    from denoiserl.data.fidelity import fidelity, nearest_distances
    from denoiserl.data.synthetic import FEW, Layout, Model, columns, train_generator
    from denoiserl.report.marginals import marginals_plot
    from denoiserl.stats import fingerprint
    from denoiserl.train import Run
    from denoiserl.train.progress import LoopProgress

    train, held_out, recorded = _split(args)
    model = Model(args.num_updates, args.batch_size, args.lr, args.width, args.depth, args.sampling_steps)
    if args.num_rows is None:
        args = replace(args, num_rows=min(10 * (len(train) + len(held_out)), MAX_ROWS[written_format]))
    kinds = _column_kinds(args)
    Layout.fit(train, kinds)  # refuses what is not of its kind, before anything is written
    if len(train) < args.batch_size:
        raise Misuse(
            f"{len(train)} rows to learn from are fewer than a batch: give --batch-size {len(train) // 2} or less."
        )
    work = args.out.with_name(f"{args.out.name}.part")
    settings = {k: v if isinstance(v, int | float | str) else str(v) for k, v in asdict(args).items()}
    _require_same_settings(work, settings | {"rows known": fingerprint(columns(train))})
    if len(train) < FEW:
        print(f"{len(train)} rows to learn from: below {FEW}, a model tends to remember them.", file=sys.stderr)
    run = Run(work, args.device)
    torch.manual_seed(args.seed)
    rows = train_generator(train, model, Rng(args.seed, args.device), run.stage("learn"), kinds)
    with show_progress(not args.json) as display:
        shown = LoopProgress(display)
        run.watch = shown.update
        generator = _train_generator(rows, shown)
        with track("generate", args.num_rows) as advance:
            generated, dropped = _generate(generator, args, advance)
    found = fidelity(generated, train, held_out, Rng(args.seed), min(args.num_updates, 2000), dropped)
    _write(args.out, written_format, generated, recorded)
    before, after = (torch.cat(list(columns(v).values()), 1) for v in (train, generated))
    scale, some = before.std(0), 2000
    other = torch.cat(list(columns(held_out).values()), 1)
    near = (nearest_distances(other[:some], before, scale), nearest_distances(after[:some], before, scale))
    report, plot = _report_path(args.out, "fidelity.json"), _report_path(args.out, "fidelity.png")
    head = {"data": str(args.data), "seed": args.seed, "model": asdict(model)}
    report.write_text(json.dumps(head | found.as_dict(), indent=2))
    plot.write_bytes(marginals_plot(found.names, before, after[:50_000], found.ks, near))
    shutil.rmtree(work, ignore_errors=True)
    if args.json:
        print(json.dumps({"out": str(args.out), "format": written_format} | found.as_dict(), indent=2))
    else:
        _print_fidelity(found, args.out, written_format, report, plot)


def _format(args: UpsampleOptions) -> Kind:
    """Return the format to write. Raise Misuse if ``out`` does not fit it."""
    from denoiserl.data.formats.any import kind
    from denoiserl.data.formats.hdf5 import WRITTEN

    found = kind(args.data)
    written_format = found if args.format == "same" else args.format
    if written_format not in MAX_ROWS:
        raise Misuse(
            f"{FORMAT_NAMES[written_format]}'s format cannot hold the next observation of a single transition: add "
            "--format hdf5 or minari."
        )
    if written_format == "hdf5" and args.out.suffix.lower() not in WRITTEN:
        raise Misuse(f"The HDF5 format is one file: give --out {args.out.name}.hdf5.")
    return written_format


def _split(args: UpsampleOptions) -> tuple[Any, Any, Any]:
    """Return the rows to learn from, the held-out rows, and the recording."""
    from denoiserl.core.rng import Rng
    from denoiserl.data.formats.any import read
    from denoiserl.data.synthetic import select
    from denoiserl.data.transitions import to_transitions

    keys = [key.strip() for key in args.obs_keys.split(",") if key.strip()] or None
    recorded = read(
        args.data,
        out_of_bounds_actions=args.out_of_bounds_actions,
        obs_keys=keys,
        exclude_episodes=args.exclude_episodes,
    )
    rows, count, order = to_transitions(recorded), len(recorded.demos), Rng(args.seed)
    if len(rows) < 20:
        raise Misuse(f"{args.data} holds {len(rows)} transitions, too few for a model: record at least 20.")
    if count < 20:  # too few to give some away whole
        index = order.permutation(len(rows))
        return select(rows, index[len(rows) // 10 :]), select(rows, index[: len(rows) // 10]), recorded
    away = recorded.demos.ends.new_zeros(count).bool()
    away[order.permutation(count)[: count // 10]] = True
    return to_transitions(recorded.take(~away)), to_transitions(recorded.take(away)), recorded


def _column_kinds(args: UpsampleOptions) -> dict[str, dict[int, str]]:
    """Return the kinds of columns that the options name."""
    kinds: dict[str, dict[int, str]] = {"obs": dict.fromkeys(args.angle_columns, "angle")}
    return kinds | ({"reward": {0: "quantile"}} if args.quantile_rewards else {})


def _require_same_settings(work: Path, settings: dict[str, Any]) -> None:
    """Raise Misuse if ``work`` was begun with other settings, or holds other files, which would be removed."""
    path = work / "settings.json"
    if work.exists() and not path.is_file() and (not work.is_dir() or any(work.iterdir())):
        raise Misuse(f"{work} is the folder for an unfinished model, and holds something else: give another --out.")
    if path.exists() and json.loads(path.read_text()) != settings:
        raise Misuse(f"{work} was begun with other settings: repeat them, or give another --out.")
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def _train_generator(rows: Any, shown: Any) -> Any:
    """Return the trained generator. After a signal, print how to go on and exit with its code."""
    from denoiserl.train import Stopped

    try:
        while True:
            shown.row(next(rows))
    except StopIteration as stop:
        return stop.value
    except Stopped as stop:
        print(f"{stop} The same command goes on.", file=sys.stderr)
        raise SystemExit(128 + stop.number) from None


def _generate(generator: Any, args: UpsampleOptions, advance: Any) -> tuple[Any, float]:
    from denoiserl.core.rng import Rng

    assert args.num_rows is not None
    made = 0

    def on_rows(done: int) -> None:
        nonlocal made
        advance(done - made)
        made = done

    return generator.sample(args.num_rows, Rng(args.seed + 1, args.device), on_rows)


def _write(out: Path, written_format: Kind, rows: Any, recorded: Any) -> None:
    from denoiserl.data.formats.any import write_as
    from denoiserl.data.transitions import transitions

    action = rows.action[:, 0]
    data = transitions(
        rows.obs,
        action,
        rows.reward,
        rows.next_obs,
        rows.terminated,
        recorded.low,
        recorded.high,
        rows.name,
    )
    write_as(out, data, written_format, out.name)


def _report_path(out: Path, name: str) -> Path:
    """Return the path of a report: in the folder ``out``, or beside the file ``out``."""
    return out / name if out.is_dir() else out.with_name(f"{out.stem}.{name}")


def _print_fidelity(found: Any, out: Path, written_format: str, report: Path, plot: Path) -> None:
    rows = sorted(zip(found.names, found.ks, strict=True), key=lambda row: -row[1])
    print_table(("column", "KS distance"), [(name, f"{ks:.3f}") for name, ks in rows[:SHOWN]], right=1)
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN} more columns, which fit better.")
    print()
    print_table(
        ("", "generated", "held out"),
        [
            (f"largest KS distance ({found.chance:.3f} by chance)", f"{max(found.ks):.3f}", ""),
            ("change of a correlation, mean (largest)", f"{found.correlation:.3f} ({found.worst:.3f})", ""),
            ("distance to the nearest training row", *(f"{v:.3g}" for v in found.distance)),
            ("error of the dynamics", *(f"{v:.3g}" for v in found.dynamics_error)),
            ("nearly copies of training rows", f"{found.copies:.1%}", ""),
            ("samples dropped, their end uncertain", f"{found.dropped:.1%}", ""),
        ],
        right=1,
    )
    print(
        f"\nHeld-out rows are {found.memorised:.2f} times as far from the training rows as generated rows (1: these "
        "are as new as unseen data)."
    )
    for sentence in found.warnings():
        print(sentence)
    count = found.rows["generated"]
    print(f"\n{out}: {count} transitions, {FORMAT_NAMES[written_format]}. Their fidelity: {report.name}, {plot.name}.")
