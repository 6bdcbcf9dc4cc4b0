"""Speed against the floor: the bare network called K times under inference mode, same process, same threads.

    python -m benchmarks.run              # everything; some ten minutes
    python -m benchmarks.run --quick      # a minute or so: no compiling, no large U-Net
    python -m benchmarks.run --micro      # how many rows a network call should have when chains are scored
    python -m benchmarks.run --loop       # only the loop of control: an iteration of DPPO, and Hopper
    python -m benchmarks.run --growth     # only what grows with the work: exponents of time and memory
    python -m benchmarks.run --json FILE  # the numbers too

Contestants take turns and medians of ratios are printed, so a busy machine changes the milliseconds and hardly the
ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, growth, loop
from benchmarks.products import probe
from benchmarks.timing import clock

BATCHES = (1, 50, 1000)
TARGETS = {
    "sample": {1: 1.10, 50: 1.10, 1000: 1.10},
    "record": {1: 1.70, 50: 1.15, 1000: 1.15},
    "sample compiled": {1: 0.65},
}
"""largest ratio to the naive floor, by what is done and the batch"""


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"machine": machine()}
    told = report["machine"]
    print(f"{told['cpu']}, {told['threads']} thread(s), torch {told['torch']}; times are {told['clock']}\n")
    if args.micro:
        report["micro"] = micro(args.seconds)
    elif args.growth:
        report["growth"] = growth.growth(args.quick)
        verdict(report)
    elif args.loop:
        report |= {"iteration": iteration(args.quick, args.seconds), "curves": curves(), "hopper": hopper()}
        verdict(report)
    else:
        report["sampling"] = sampling(args.quick, args.seconds)
        report["scoring"] = scoring(args.quick, args.seconds)
        report["gather"] = gather(args.seconds)
        report["products"] = products(args.threads)
        report["iteration"] = iteration(args.quick, args.seconds)
        if not args.quick:
            report |= {"curves": curves(), "hopper": hopper(), "growth": growth.growth()}
        verdict(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"numbers in {args.json}")
    if args.check and report.get("missed"):
        raise SystemExit(1)


def verdict(report: dict[str, Any]) -> None:
    """Say which targets were missed."""
    report["missed"] = missed(report)
    print("\nevery target met" if not report["missed"] else "\nMISSED: " + "; ".join(report["missed"]))


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute or so: no compiling, no large U-Net")
    parser.add_argument("--micro", action="store_true", help="only measure micro-batches of scoring")
    parser.add_argument("--loop", action="store_true", help="only measure the loop of control")
    parser.add_argument("--growth", action="store_true", help="only measure how costs grow with the work")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--seconds", type=float, default=None, help="wall seconds of one race (default 5; quick 1.5)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--check", action="store_true", help="exit with status 1 when a target is missed")
    args = parser.parse_args()
    args.seconds = args.seconds or (1.5 if args.quick else 5.0)
    return args


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "clock": "processor time" if clock().__name__ == "thread_time" else "wall time",
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def sampling(quick: bool, seconds: float) -> list[dict[str, Any]]:
    """The two columns, at each batch, for both networks."""
    print("Sampling: ratio to the naive floor [to the bare floor, time embedding and condition computed beforehand]")
    print(f"{'':18} {'batch':>5} {'floor ms':>9} {'sample':>15} {'with chain':>15} {'compiled':>15} {'with chain':>15}")
    rows = []
    for case in cases.cases():
        mlp = case.k == 20
        for batch in BATCHES:
            if quick and not mlp and batch == 1000:
                continue
            row = cases.sampling(
                case, batch, mlp and batch == 1 and not quick, seconds, least=3 if quick and batch > 1 else 7
            )
            rows.append(row)
            cells = [_cell(row, name) for name in ("sample", "record", "sample compiled", "record compiled")]
            print(f"{case.name:18} {batch:5} {row['ms']['naive']:9.2f} {' '.join(cells)}", flush=True)
    return rows


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row["ms"]:
        return f"{'':15}"
    ratio, limit = row["to naive"][name], TARGETS.get(name, {}).get(row["batch"], float("inf"))
    return f"{ratio:6.2f}{' ' if ratio <= limit else '!'}[{row['to bare'][name]:.2f}]".rjust(15)


def scoring(quick: bool, seconds: float) -> list[dict[str, Any]]:
    """Replay of whole chains."""
    print("\nScoring all steps of a chain: microseconds per row (ratio to the bare network over the same rows)")
    print(f"{'':18} {'chains':>6} {'rows':>6} {'no gradient':>18} {'with backward':>18}")
    rows = []
    mlp, unet = cases.cases()
    for case, batch in ((mlp, 1), (mlp, 50), (mlp, 100 if quick else 1000), (unet, 1), (unet, 10 if quick else 50)):
        row = cases.scoring(case, batch, None, seconds, least=3)
        rows.append(row)
        cells = [f"{row['us a row'][name]:10.1f} ({row['ratio'][name]:.2f})" for name in ("replay", "replay, backward")]
        print(f"{case.name:18} {batch:6} {row['rows']:6} {cells[0]:>18} {cells[1]:>18}", flush=True)
    return rows


def micro(seconds: float) -> list[dict[str, Any]]:
    """Micro-batches of replay."""
    print("Scoring in micro-batches: microseconds per row (ratio to one call for all rows)")
    print(f"{'':18} {'rows':>6} {'micro':>6} {'no gradient':>18} {'with backward':>18}")
    mlp, unet = cases.cases()
    told = cases.micro(mlp, 500, [64, 128, 256, 512, 1024, 2048, 4096], seconds, least=3)
    told += cases.micro(unet, 80, [25, 50, 100, 200, 400], seconds, least=2)
    for a, b in zip(told[::2], told[1::2], strict=True):
        cells = [f"{row['us a row']:10.1f} ({row['to one call']:.2f})" for row in (a, b)]
        print(f"{a['net']:18} {a['rows']:6} {a['micro']:6} {cells[0]:>18} {cells[1]:>18}")
    return told


def gather(seconds: float) -> dict[str, Any]:
    """Batches of windows."""
    row = cases.gather(min(seconds, 2.0), least=20)
    ms, size = row["ms"], row["windows"]
    print(f"\nA shuffled batch of {size} windows: {ms['batch']:.3f} ms (the indexing alone {ms['indexing']:.3f})")
    return row


def products(threads: int) -> dict[str, dict[str, float]]:
    """What other matrix products would gain here, by rows."""
    print("\n512 x 512 product against float32: speed (largest relative error)")
    told = {}
    for rows in BATCHES:
        found = probe("cpu", threads, rows)
        told[str(rows)] = found
        ways = [f"{way} {found[f'{way} speed']:.2f}x ({found[f'{way} error']:.0e})" for way in ("medium", "bf16")]
        print(f"{rows:5} rows: float32 {found['float32 gflops']:.0f} GFLOP/s, {', '.join(ways)}")
    return told


def iteration(quick: bool, seconds: float) -> list[dict[str, Any]]:
    """One iteration of DPPO at its published hopper setting, simulator free, against the plain loop."""
    print("\nAn iteration of DPPO, free simulator: seconds, and ratio to the plain loop (pieces of 1024 rows; whole)")
    print(f"{'':9} {'decisions':>9} {'minibatch':>9} {'seconds':>8} {'to pieces':>10} {'to whole':>9}")
    settings = [(50, 1000, "float32")] if quick else [(20, 2500, "float32"), (20, 2500, "bf16"), (4, 50_000, "float32")]
    rows = []
    for share, batch, precision in settings:
        row = loop.iteration(share, batch, seconds, 2 if batch == loop.PUBLISHED.batch_size else 3, precision)
        rows.append(row)
        ratio, mark = row["ratio"], " " if row["ratio"]["pieces"] <= loop.TARGET else "!"
        cells = f"{row['seconds']['recipe']:8.2f} {ratio['pieces']:9.2f}{mark} {ratio['whole']:9.2f}"
        print(f"{row['precision']:9} {row['decisions']:9} {row['minibatch']:9} {cells}", flush=True)
    return rows


def curves() -> dict[str, list[list[float]]]:
    """Does the floor learn what the recipe learns?"""
    told = loop.curves()
    gaps = [abs(a - b) for x, y in zip(told["recipe"], told["floor"], strict=True) for a, b in zip(x, y, strict=True)]
    print("\nMean reward per decision, first iteration to last, by seed (recipe; plain loop):")
    for seed, (x, y) in enumerate(zip(told["recipe"], told["floor"], strict=True)):
        print(f"  {seed}: {x[0]:.3f} to {x[-1]:.3f}; {y[0]:.3f} to {y[-1]:.3f}")
    print(f"  largest gap of two curves {max(gaps):.1e}", flush=True)
    return told


def hopper() -> list[dict[str, Any]]:
    """The whole loop on Hopper, where the simulators are installed."""
    found = {"Hopper-v5": "mujoco", "envpool:Hopper-v5": "envpool"}
    names = [name for name, package in found.items() if importlib.util.find_spec(package)]
    print("\nThe whole loop of DPPO: environment steps per second (per processor second), and where the time goes")
    rows = []
    for name, width, precision in itertools.product(names, (256, 512), ("float32", "bf16")):
        row = loop.hopper(name, width, precision)
        rows.append(row)
        share = ", ".join(f"{what} {part:.0%}" for what, part in row["share"].items())
        speed = f"{row['steps a second']:7.0f} ({row['steps a processor second']:.0f})"
        print(f"{name:18} 3 x {width} {row['precision']:8} {speed:>16}  {share}", flush=True)
    for name in found.keys() - set(names):
        print(f"{name}: not measured, {found[name]} is not installed")
    return rows


def missed(report: dict[str, Any]) -> list[str]:
    """The targets that were not met, in words."""
    said = list(growth.missed(report.get("growth", [])))
    for row in report.get("iteration", []):
        if row["ratio"]["pieces"] > loop.TARGET:
            what = f"iteration, minibatch {row['minibatch']}, {row['precision']}"
            said.append(f"{what} {row['ratio']['pieces']:.2f} > {loop.TARGET}")
    for row in report.get("sampling", []):
        for name, limits in TARGETS.items():
            ratio, limit = row["to naive"].get(name), limits.get(row["batch"])
            if ratio is not None and limit is not None and ratio > limit:
                said.append(f"{row['net']} batch {row['batch']} {name} {ratio:.2f} > {limit}")
    return said


if __name__ == "__main__":
    main()
