"""The main job: a robot policy, an image generator and a language model, each made better by reward.

Each act learns from data to its plateau, then from reward; beside it a control spends the same time on more data. The
demo is a recipe like any other for the runner: it is recorded, interrupted and resumed in its folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.demo import act, page
from denoiserl.experiments.runner import load_run
from denoiserl.recipes.generators import flow_grpo
from denoiserl.recipes.language import tracerl
from denoiserl.recipes.policy_gradient import dppo
from denoiserl.tasks import env, shapes, sudoku
from denoiserl.train import Run


@dataclass(frozen=True)
class Args:
    seed: int = 0
    """seed of everything"""
    acts: tuple[str, ...] = ("robot", "image", "language")
    """which acts to play, in this order"""
    trials: int = 500
    """held-out trials of the image and the language act"""
    episodes: int = 200
    """held-out episodes of the robot act"""
    robot: dppo.Args = dppo.DEMO
    """DPPO"""
    image: flow_grpo.Args = flow_grpo.DEMO
    """Flow-GRPO"""
    language: tracerl.Args = tracerl.DEMO
    """TraceRL"""
    robot_task: env.Args = env.Args()
    """what the robot act learns"""
    image_task: shapes.Args = shapes.Args()
    """what the image act learns"""
    language_task: sudoku.Args = sudoku.Args()
    """what the language act learns"""


def train(args: Args, run: Run | None = None) -> Iterator[dict]:
    """The acts, one after another. Needs a folder: what is shown at the end is written there."""
    if run is None or run.folder is None:
        raise RunError("the demo writes a report: run it in a folder, denoiserl demo --out runs/demo")
    for name in args.acts:
        if name not in act.RECIPES:
            raise RunError(unknown_name_message(name, act.RECIPES, "act"))
        trials = args.episodes if name == "robot" else args.trials
        task_args = getattr(args, f"{name}_task")
        yield from act.play(name, getattr(args, name), task_args, args.seed, trials, run.stage(name))


def finish(folder: Path | str) -> Path:
    """Write ``summary.json`` and ``report.html`` into the folder of a finished demo, and print the three rows."""
    return page.write(Path(folder), load_run(folder)[1])
