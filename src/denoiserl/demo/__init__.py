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
from denoiserl.core.machine import count_cores
from denoiserl.core.serialization.args_json import to_json
from denoiserl.core.settings import Count, Seed, Settings
from denoiserl.demo import act, page
from denoiserl.experiments.jobs import Job, run_jobs
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
    act: tuple[Literal["robot", "image", "language"], ...] = ("robot", "image", "language")
    """acts to run; side by side where there are cores"""
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
    """Run the acts, as many side by side as there are cores, and yield a row of held-out results for each.

    Raise RunError without a folder, where the report is written.
    """
    if run is None or run.folder is None:
        raise RunError("the demo writes a report: run it in a folder, denoiserl demo --out runs/demo")
    jobs = [act_job(args, name, run.folder) for name in args.act]
    run_jobs(jobs, min(len(jobs), count_cores()), str(run.device), lines=True)
    for job in jobs:
        task = act.TASKS[job.label](getattr(args, f"{job.label}_task"))
        yield {f"{job.label}/{c.metric}": c.after.mean for c in act.results(job.label, task, job.folder)}


def act_job(args: Args, name: str, folder: Path) -> Job:
    """Return the job of an act, a run of its own in a subfolder."""
    trials = args.episodes if name == "robot" else args.trials
    method, task = to_json(getattr(args, name)), to_json(getattr(args, f"{name}_task"))
    return Job(act.__name__, act.Args(name, method, task, args.seed, trials, args.quick), folder / name, name)


def finish(folder: Path | str) -> Path:
    """Write ``summary.json`` and ``report.html`` into the folder of a finished demo, and print the three rows."""
    return page.write(Path(folder), load_run(folder)[1])
