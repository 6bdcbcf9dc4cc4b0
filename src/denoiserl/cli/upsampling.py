"""``upsample``: synthetic transitions from a data set, in its own format, with a report of how real they look."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.listing import Flag, hint, table

if TYPE_CHECKING:
    from denoiserl.data.formats.any import Kind

KNOWN = {"minari": "Minari", "lerobot": "LeRobot", "hdf5": "HDF5", "denoiserl": "denoiserl"}
DEFAULT = {"minari": 20_000, "hdf5": 100_000, "denoiserl": 100_000}
"""rows that are made at most unless told otherwise: a row takes 14 kB and two milliseconds in Minari's format"""
SHOWN = 12
"""columns in the table; the worst of more"""


@dataclass(frozen=True)
class Upsample:
    """Options of ``upsample``."""

    data: tyro.conf.Positional[Path]
    """a Minari or LeRobot folder, a recording of ours, or one flat HDF5 file"""
    out: Path
    """what is written: a new folder, or a new .hdf5 file"""
    rows: Annotated[int | None, hint("(default: ten times the data, 100000 at most; in Minari's format 20000)")] = None
    """transitions that are made"""
    seed: int = 0
    """of the model and its draws"""
    updates: int = 10_000
    """gradient steps of the model"""
    batch: int = 256
    """rows a gradient step"""
    lr: float = 1e-3
    """its learning rate"""
    width: int = 256
    """the network's width: 1024 as published"""
    depth: int = 4
    """its hidden layers: 6 as published"""
    steps: int = 48
    """steps of a draw: 128 as published"""
    angles: tuple[int, ...] = ()
    """numbers of the observation that are wrapped angles, in radians"""
    quantile: Flag = False
    """rewards with rare spikes: by their ranks"""
    format: Literal["same", "minari", "hdf5", "denoiserl"] = "same"
    """of what is written"""
    outside: Literal["refuse", "clip"] = "refuse"
    """actions outside the box that the data tell"""
    without: str = ""
    """episodes that are left out, by number: 0-2,5"""
    parts: Annotated[str, hint("(default: all)")] = ""
    """observations that are kept, by name, where there are several: observation.state"""
    device: str = "cpu"
    """where the model computes"""
    json: Flag = False
    """print JSON"""


def upsample(given: list[str]) -> None:
    """``denoiserl upsample DATA --out BIGGER``."""
    said = (
        "Train a diffusion model of a data set's transitions (SynthER) and write what it makes, each transition an "
        "episode of one tick. A tenth of the episodes is held out, to tell new rows from copies."
    )
    a = tyro.cli(Upsample, prog="denoiserl upsample", description=said, args=given)
    how = _format(a)
    if a.out.exists():
        raise Misuse(f"{a.out} exists already: name another one.")
    if min(a.updates, a.batch, a.width, a.depth, a.steps) < 1 or (a.rows is not None and a.rows < 1):
        raise Misuse("--rows, --updates, --batch, --width, --depth and --steps start at 1.")
    from denoiserl.train.device import DeviceConfig

    with DeviceConfig(a.device, "float32", None).activate():
        _upsample(a, how)


def _upsample(a: Upsample, how: Kind) -> None:
    import torch

    from denoiserl.core.rng import Rng
    from denoiserl.data.fidelity import fidelity, nearest_distances
    from denoiserl.data.synthetic import FEW, Layout, Model, columns, train_generator
    from denoiserl.report.marginals import marginals_plot
    from denoiserl.stats import fingerprint
    from denoiserl.train import Run
    from denoiserl.train.progress import Progress

    train, held_out, recorded = _split(a)
    model = Model(a.updates, a.batch, a.lr, a.width, a.depth, a.steps)
    if a.rows is None:
        a = replace(a, rows=min(10 * (len(train) + len(held_out)), DEFAULT[how]))
    shown, kinds = Progress(not a.json), _kinds(a)
    Layout.fit(train, kinds)  # refuses what is not of its kind, before anything is written
    if len(train) < a.batch:
        raise Misuse(f"{len(train)} rows to learn from are fewer than a batch: take --batch {len(train) // 2} or less.")
    work = a.out.with_name(f"{a.out.name}.part")
    asked = {k: v if isinstance(v, int | float | str) else str(v) for k, v in asdict(a).items()}
    _same(work, asked | {"rows known": fingerprint(columns(train))})
    if len(train) < FEW:
        print(f"{len(train)} rows to learn from: below {FEW}, a model tends to remember them.", file=sys.stderr)
    keep = Run(work, a.device)
    keep.watch = shown.tick
    torch.manual_seed(a.seed)
    running = train_generator(train, model, Rng(a.seed, a.device), keep.stage("learn"), kinds)
    try:
        made, dropped = _drawn(_trained(running, shown), a, shown)
    finally:
        shown.close()
    told = fidelity(made, train, held_out, Rng(a.seed), min(a.updates, 2000), dropped)
    _write(a.out, how, made, recorded)
    before, after = (torch.cat(list(columns(v).values()), 1) for v in (train, made))
    scale, some = before.std(0), 2000
    other = torch.cat(list(columns(held_out).values()), 1)
    near = (nearest_distances(other[:some], before, scale), nearest_distances(after[:some], before, scale))
    report, picture = _beside(a.out, "fidelity.json"), _beside(a.out, "fidelity.png")
    head = {"data": str(a.data), "seed": a.seed, "model": asdict(model)}
    report.write_text(json.dumps(head | told.as_dict(), indent=2))
    picture.write_bytes(marginals_plot(told.names, before, after[:50_000], told.ks, near))
    shutil.rmtree(work, ignore_errors=True)
    if a.json:
        print(json.dumps({"out": str(a.out), "format": how} | told.as_dict(), indent=2))
    else:
        _tell(told, a.out, how, report, picture)


def _format(a: Upsample) -> Kind:
    """The format of what is written."""
    from denoiserl.data.formats.any import kind
    from denoiserl.data.formats.hdf5 import WRITTEN

    found = kind(a.data)
    how = found if a.format == "same" else a.format
    if how not in DEFAULT:
        raise Misuse(
            f"{KNOWN[how]}'s format cannot say what followed a single transition: add --format hdf5 or minari."
        )
    if how == "hdf5" and a.out.suffix.lower() not in WRITTEN:
        raise Misuse(f"A flat data set is one file: --out {a.out.name}.hdf5.")
    return how


def _split(a: Upsample) -> tuple[Any, Any, Any]:
    """Rows to learn from, rows held out, and the recording."""
    from denoiserl.core.rng import Rng
    from denoiserl.data.formats.any import read
    from denoiserl.data.synthetic import part
    from denoiserl.data.transitions import to_transitions

    parts = [p.strip() for p in a.parts.split(",") if p.strip()] or None
    recorded = read(a.data, outside=a.outside, parts=parts, without=a.without)
    rows, count, order = to_transitions(recorded), len(recorded.demos), Rng(a.seed)
    if len(rows) < 20:
        raise Misuse(f"{a.data} holds {len(rows)} transitions: a model of them would be a copy. Record more.")
    if count < 20:  # too few to give some away whole
        index = order.permutation(len(rows))
        return part(rows, index[len(rows) // 10 :]), part(rows, index[: len(rows) // 10]), recorded
    away = recorded.demos.ends.new_zeros(count).bool()
    away[order.permutation(count)[: count // 10]] = True
    return to_transitions(recorded.take(~away)), to_transitions(recorded.take(away)), recorded


def _kinds(a: Upsample) -> dict[str, dict[int, str]]:
    told: dict[str, dict[int, str]] = {"obs": dict.fromkeys(a.angles, "angle")}
    return told | ({"reward": {0: "quantile"}} if a.quantile else {})


def _same(work: Path, settings: dict[str, Any]) -> None:
    """Go on with what was begun, if it was the same. A folder of other files is refused: it would be removed."""
    path = work / "settings.json"
    if work.exists() and not path.is_file() and (not work.is_dir() or any(work.iterdir())):
        raise Misuse(f"{work} is kept for what is on its way, and something else is there: give another --out.")
    if path.exists() and json.loads(path.read_text()) != settings:
        raise Misuse(f"{work} was begun with other settings: repeat them to go on, or give another --out.")
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def _trained(running: Any, shown: Any) -> Any:
    """The maker that the training returns; who stops it is told how to go on."""
    from denoiserl.train import Stopped

    try:
        while True:
            shown.row(next(running))
    except StopIteration as stop:
        return stop.value
    except Stopped as stop:
        shown.close()
        print(f"{stop} The same command goes on.", file=sys.stderr)
        raise SystemExit(130) from None


def _drawn(maker: Any, a: Upsample, shown: Any) -> tuple[Any, float]:
    from denoiserl.core.rng import Rng
    from denoiserl.train import Position

    assert a.rows is not None
    rows = a.rows
    shown.tick(Position("draw", 0, rows, 0))
    return maker.sample(rows, Rng(a.seed + 1, a.device), lambda done: shown.tick(Position("draw", done, rows, 0)))


def _write(out: Path, how: Kind, made: Any, recorded: Any) -> None:
    from denoiserl.data.formats.any import write_as
    from denoiserl.data.transitions import transitions

    action = made.action[:, 0]
    data = transitions(
        made.obs, action, made.reward, made.next_obs, made.terminated, recorded.low, recorded.high, made.name
    )
    write_as(out, data, how, out.name)


def _beside(out: Path, name: str) -> Path:
    """In the folder, or beside the file."""
    return out / name if out.is_dir() else out.with_name(f"{out.stem}.{name}")


def _tell(told: Any, out: Path, how: str, report: Path, picture: Path) -> None:
    rows = sorted(zip(told.names, told.ks, strict=True), key=lambda row: -row[1])
    table(("column", "KS distance"), [(name, f"{ks:.3f}") for name, ks in rows[:SHOWN]], right=1)
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN} columns that fit better.")
    print()
    table(
        ("", "made", "held out"),
        [
            (f"largest KS distance ({told.chance:.3f} by chance)", f"{max(told.ks):.3f}", ""),
            ("change of a correlation, mean (largest)", f"{told.correlation:.3f} ({told.worst:.3f})", ""),
            ("distance to the nearest training row", *(f"{v:.3g}" for v in told.distance)),
            ("error of the dynamics", *(f"{v:.3g}" for v in told.surprise)),
            ("nearly copies of training rows", f"{told.copies:.1%}", ""),
            ("draws dropped, their end unsure", f"{told.dropped:.1%}", ""),
        ],
        right=1,
    )
    print(
        f"\nHeld-out rows are {told.memorised:.2f} times as far from the training rows as made ones (1: as new as what "
        "was never seen)."
    )
    for sentence in told.warnings():
        print(sentence)
    made = told.rows["made"]
    print(f"\n{out}: {made} transitions, {KNOWN[how]}. How real they look: {report.name}, {picture.name}.")
