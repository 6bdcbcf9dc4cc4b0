"""What grows as work grows: processor time and peak memory over two decades of size, as exponents and as multiples.

Each point runs in fresh processes with one thread, the quickest of three counts. An exponent is the slope of log cost
over log size between the last two points, where fixed costs count least; 1 is work that grows as its input does.
``floor`` is what cannot be saved: the file, the chain, the bare calls.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIMIT = 1.1
"""the largest exponent of time"""
TRIES = 3
"""processes per point, of which the quickest counts: others on the machine only add to it"""


@dataclass(frozen=True)
class Growth:
    """``prepare(n, folder)`` makes the input, which is not counted, and returns its bytes and what is measured.

    ``most``: how many times the input's bytes the peak may be, where that is a target.
    """

    sizes: tuple[int, ...]
    prepare: Callable[[int, Path], tuple[float, Callable[[], Any]]]
    unit: str
    most: float | None = None


def lerobot(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Read a LeRobot dataset of n episodes."""
    from denoiserl.data import Demonstrations
    from denoiserl.data.formats import lerobot as lerobot_dataset
    from denoiserl.data.recordings import EpisodeDataset

    demos = Demonstrations(torch.randn(50 * n, 4), torch.randn(50 * n, 2), 50 * torch.arange(1, n + 1))
    lerobot_dataset.write(folder / "set", EpisodeDataset.of(demos), fps=10)
    return _bytes(folder), lambda: lerobot_dataset.read(folder / "set")


def take(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Take every other episode of n."""
    from denoiserl.data import Demonstrations

    demos = Demonstrations(torch.randn(20 * n, 8), torch.randn(20 * n, 2), 20 * torch.arange(1, n + 1))
    half = torch.arange(n) % 2 == 0
    return 20 * n * 10 * 4, lambda: Demonstrations.concat([demos.take(half), demos.take(~half)])


def record(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Draw and record a chain of n steps of 500 samples of 64 numbers."""
    from denoiserl.core.rng import Rng
    from denoiserl.nn import MLP
    from denoiserl.policy.sampler import make_sampler
    from denoiserl.processes import Diffusion, GaussianDenoiser, cosine, ddim, time_grid

    process = Diffusion(cosine, ddim(1.0))
    draw = make_sampler(process, GaussianDenoiser(MLP((64,), 0, 32), cosine, "eps"), process.steps(time_grid(n)), (64,))
    return 4.0 * 500 * 64 * (n + 1), lambda: draw(None, Rng(0), rows=500)


def serve(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Draw 500 samples of 64 numbers in n steps without noise, and keep the samples alone."""
    from denoiserl.core.rng import Rng
    from denoiserl.nn import MLP
    from denoiserl.policy.sampler import RecordSample, make_sampler
    from denoiserl.processes import Diffusion, GaussianDenoiser, cosine, ddim, time_grid

    process = Diffusion(cosine, ddim(0.0))
    net = GaussianDenoiser(MLP((64,), 0, 32), cosine, "eps")
    draw = make_sampler(process, net, process.steps(time_grid(n)), (64,), record=RecordSample())
    return 4.0 * 500 * 64, lambda: draw(None, Rng(0), rows=500)


def clone(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Clone n episodes of 100 ticks with chunks of 16, 20 updates."""
    from denoiserl.core.rng import Rng
    from denoiserl.data import Demonstrations
    from denoiserl.recipes.imitation import diffusion_policy
    from denoiserl.tasks import env as env_task

    demos = Demonstrations(torch.randn(100 * n, 8), torch.randn(100 * n, 2).clamp(-1, 1), 100 * torch.arange(1, n + 1))
    policy = env_task.diffusion(env_task.Args(action_horizon=16, policy_width=32), demos, 0, "cpu")
    a = diffusion_policy.Args(num_updates=20, batch_size=64, lr=1e-3)
    return 100 * n * 10 * 4, lambda: list(diffusion_policy.improve(policy, demos, a, Rng(0)))


def logged(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Load n episodes of 100 ticks from HDF5 into a replay buffer."""
    import h5py

    from denoiserl.data.formats import hdf5 as flat
    from denoiserl.data.transitions import to_transitions as rows_of

    rng, ticks = np.random.default_rng(0), 100 * n
    ends = np.arange(ticks) % 100 == 99
    seen = rng.standard_normal((ticks + 1, 5), np.float32)
    with h5py.File(folder / "logged.hdf5", "w") as file:
        for name, value in {
            "observations": seen[:-1], "next_observations": seen[1:], "actions": np.tanh(seen[:-1, :3]),
            "rewards": seen[:-1, 0], "terminals": np.zeros(ticks, bool), "timeouts": ends,
        }.items():  # fmt: skip
            file[name] = value
    return _bytes(folder), lambda: rows_of(flat.read(folder / "logged.hdf5"), seen=lambda v: 2 * v).replay()


def report(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Draw the curves of three runs of n rows."""
    from denoiserl.report.metrics import DRAWN, curve, overlay, read_metrics

    for seed in range(3):
        lines = ({"iteration": i, **{f"loss/{k}": math.sin(i + k + seed) for k in range(12)}} for i in range(n))
        (folder / f"{seed}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    def draw() -> None:
        runs = [read_metrics(folder / f"{seed}.jsonl", DRAWN) for seed in range(3)]
        for k in range(12):
            overlay([curve(rows, f"loss/{k}") for rows in runs], "runs")

    return _bytes(folder), draw


def journal(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Write n rows of metrics, with TensorBoard."""
    from denoiserl.train.metrics_log import MetricsLog
    from denoiserl.train.run_state import Position

    def write() -> None:
        told = MetricsLog(folder / "run")
        for i in range(n):
            told.write({f"loss {k}": float(i + k) for k in range(8)}, Position("", i, n, 0))
        told.close()

    (folder / "run").mkdir()
    return n * 8 * 20.0, write


def decide(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Take n decisions in one copy of CartPole."""
    from denoiserl.core.rng import Rng
    from denoiserl.envs import Collector

    env, action = Collector("CartPole-v1", 1), torch.ones(1, dtype=torch.int64)
    return n * 50.0, lambda: env.collect(lambda obs, rng: action, n, Rng(0))


def race(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Race n(n − 1) / 2 pairs of arms over 20 starts."""
    from denoiserl.stats.sequential import SequentialComparison

    arms = [str(i) for i in range(max(2, round((2 * n) ** 0.5)))]
    rng = np.random.default_rng(0)

    def run() -> None:
        made = SequentialComparison(arms, 1e-12)
        for _ in range(20):
            made.update({arm: int(rng.random() < 0.5) for arm in arms})

    return len(arms) ** 2 * 100.0, run


def windows(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Cut n episodes of 200 ticks into windows of 16."""
    from denoiserl.data import windows as cut

    ends = 200 * torch.arange(1, n + 1)
    return 200 * n * 4 * 10.0, lambda: cut(ends, 16, 2)


def save(n: int, folder: Path) -> tuple[float, Callable[[], Any]]:
    """Add n decisions to a replay buffer and save it."""
    from denoiserl.core.serialization import store
    from denoiserl.data import ReplayBuffer

    rows = {
        "obs": torch.randn(n, 8), "next_obs": torch.randn(n, 8), "action": torch.randn(n, 1, 2),
        "reward": torch.randn(n), "terminated": torch.zeros(n, dtype=torch.bool),
        "length": torch.ones(n, dtype=torch.int64),
    }  # fmt: skip
    return n * 85.0, lambda: store.write(folder / "state", ReplayBuffer.of(rows).state_dict())


CASES: dict[str, Growth] = {
    "read LeRobot": Growth((100, 1000, 10_000), lerobot, "episodes"),
    "take episodes": Growth((1000, 10_000, 100_000), take, "episodes"),
    "record a chain": Growth((10, 100, 1000), record, "steps", 2.5),
    "draw without noise": Growth((10, 100, 1000), serve, "steps"),
    "clone": Growth((100, 1000, 10_000), clone, "episodes"),
    "windows": Growth((100, 1000, 10_000), windows, "episodes"),
    "load logged data": Growth((100, 1000, 10_000), logged, "episodes", 3.0),
    "draw a report": Growth((1000, 10_000, 100_000), report, "rows"),
    "write metrics": Growth((1000, 10_000, 100_000), journal, "rows"),
    "decide in one copy": Growth((1000, 10_000, 100_000), decide, "decisions"),
    "race arms": Growth((10, 100, 1000), race, "pairs"),
    "save a buffer": Growth((1000, 10_000, 100_000), save, "decisions"),
}


def growth(quick: bool = False) -> list[dict[str, Any]]:
    """All cases: a row each, with seconds, peak bytes, exponents and multiples of the input."""
    print("Growth: processor seconds and peak MB of each size; exponents of the last decade; peak over input")
    print(f"{'':20} {'seconds':>24} {'peak MB':>24} {'time':>6} {'memory':>7} {'of input':>9}")
    rows = []
    for name, case in CASES.items():
        sizes = case.sizes[:-1] if quick else case.sizes
        tries = [[measure(name, n) for _ in range(TRIES)] for n in sizes]
        points = [min(of, key=lambda point: point["seconds"]) for of in tries]
        row = {"name": name, "unit": case.unit, "sizes": sizes, "points": points, **exponents(sizes, points)}
        row["of input"] = points[-1]["peak"] / points[-1]["input"]
        row["most"] = case.most
        rows.append(row)
        seconds, peak = (" ".join(f"{p[k] * by:7.2f}" for p in points) for k, by in (("seconds", 1), ("peak", 1e-6)))
        print(
            f"{name:20} {seconds:>24} {peak:>24} {row['time']:6.2f} {row['memory']:7.2f} {row['of input']:9.2f}",
            flush=True,
        )
    return rows


def exponents(sizes: tuple[int, ...], points: list[dict[str, float]]) -> dict[str, float]:
    """Slopes of log cost over log size of the last two points. Less than a millisecond or a megabyte counts as that."""
    decade = math.log(sizes[-1] / sizes[-2])
    floors = {"seconds": 1e-3, "peak": 1e6}
    found = {}
    for name, key in (("time", "seconds"), ("memory", "peak")):
        low, high = (max(points[i][key], floors[key]) for i in (-2, -1))
        found[name] = math.log(high / low) / decade
    return found


def missed(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The targets that were missed, in words."""
    for row in rows:
        if row["time"] > LIMIT:
            yield f"{row['name']}: time grows with exponent {row['time']:.2f}, above {LIMIT}"
        if row["most"] is not None and row["of input"] > row["most"]:
            yield f"{row['name']}: {row['of input']:.2f} times its input in memory, above {row['most']}"


def measure(name: str, n: int) -> dict[str, float]:
    """One point, in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", name, str(n)], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise SystemExit(f"{name} of {n}: {told.stderr.strip()[-2000:]}")
    return json.loads(told.stdout.splitlines()[-1])


def main() -> None:
    """Measure one point and print it: seconds of the processor, bytes of the peak above what was there before."""
    torch.set_num_threads(1)
    case, n = CASES[sys.argv[1]], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "warm").mkdir()
        _, warm = case.prepare(case.sizes[0], Path(folder) / "warm")
        warm()
        (Path(folder) / "own").mkdir()
        size, work = case.prepare(n, Path(folder) / "own")
        before = _resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        began = time.process_time()
        made = work()
        seconds = time.process_time() - began
        del made
        print(json.dumps({"seconds": seconds, "peak": float(_peak() - before), "input": size}))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _bytes(folder: Path) -> float:
    return float(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))


if __name__ == "__main__":
    main()
