"""The demo: a robot policy, an image generator and a language model, each improved by reward.

Each act learns from data until its performance stops improving, then from reward. A control spends the same time on
more data. The demo is a program of the runner: it is recorded, interrupted and resumed in its folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denoiserl.core.errors import RunError
from denoiserl.core.settings import Count, Seed, Settings
from denoiserl.demo import act, page
from denoiserl.experiments.runner import load_run
from denoiserl.recipes.generators import flow_grpo
from denoiserl.recipes.language import tracerl
from denoiserl.recipes.policy_gradient import dppo
from denoiserl.tasks import env, shapes, sudoku
from denoiserl.train import Run


@dataclass(frozen=True)
class Args(Settings):
    seed: Seed = 0
    """random seed"""
    acts: tuple[Literal["robot", "image", "language"], ...] = ("robot", "image", "language")
    """acts to run, in this order"""
    trials: Count = 500
    """held-out trials of the image and the language act"""
    episodes: Count = 200
    """held-out episodes of the robot act"""
    robot: dppo.Args = dppo.DEMO
    """settings of DPPO (robot act)"""
    image: flow_grpo.Args = flow_grpo.DEMO
    """settings of Flow-GRPO (image act)"""
    language: tracerl.Args = tracerl.DEMO
    """settings of TraceRL (language act)"""
    robot_task: env.Args = env.Args()
    """settings of the robot task"""
    image_task: shapes.Args = shapes.Args()
    """settings of the image task"""
    language_task: sudoku.Args = sudoku.Args()
    """settings of the language task"""
    quick: bool = False
    """a quick trial: a fiftieth of all amounts of work; its numbers only show that everything runs"""


def train(args: Args, run: Run | None = None) -> Iterator[dict]:
    """Run the acts one after another and yield their rows. Raise RunError without a folder, where the report is
    written.
    """
    if run is None or run.folder is None:
        raise RunError("the demo writes a report: run it in a folder, denoiserl demo --out runs/demo")
    for name in args.acts:
        trials = args.episodes if name == "robot" else args.trials
        task_args = getattr(args, f"{name}_task")
        yield from act.run_act(name, getattr(args, name), task_args, args.seed, trials, run.stage(name), args.quick)


def finish(folder: Path | str) -> Path:
    """Write ``summary.json`` and ``report.html`` into the folder of a finished demo, and print the three rows."""
    return page.write(Path(folder), load_run(folder)[1])
