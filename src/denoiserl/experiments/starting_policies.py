"""Starting policies, cached per machine: the pretraining that all arms of all comparisons share.

A start is a run like any other. Its folder's name depends on the modules that its task uses, its settings, the seed,
and the version of torch. So a changed network makes a new start, and a changed method does not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from denoiserl import tasks
from denoiserl.core.errors import RunError
from denoiserl.experiments.code_fingerprint import fingerprint
from denoiserl.policy.policy import Policy
from denoiserl.tasks.base import Task
from denoiserl.train import Run


@dataclass(frozen=True)
class Args:
    seed: int = 0
    task: str = "env"
    """the task, by name"""
    kind: str | None = None
    """the kind of starting policy; None: the task's first"""
    base: dict[str, Any] = field(default_factory=dict)
    """the task's settings"""


def train(args: Args, run: Run | None = None) -> Iterator[dict]:
    """Make the starting policy and keep it as ``last``."""
    run = run or Run()
    run.save_last(
        (yield from tasks.make(args.task, args.base).start_policy(args.seed, run.stage("imitate"), args.kind))
    )


def cache() -> Path:
    """Return the folder of starting policies: ``DENOISERL_CACHE``, or the user's cache."""
    given = os.environ.get("DENOISERL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "denoiserl"


def folder(args: Args, device: str = "cpu") -> Path:
    """Return the folder of a start, named by a hash of everything that determines it."""
    place = tasks.find_task(args.task)[0]
    settings = [fingerprint([place]), args.task, args.kind, args.base, args.seed, device, torch.__version__]
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return cache() / "starts" / f"{Path(place).stem.rpartition('.')[2].strip('_')}-{args.seed}-{name}"


def load_start(task: Task, path: Path, args: Args, run: Run) -> Policy:
    """Load the starting policy at ``path``. If the task cannot rebuild its networks, make the policy again."""
    try:
        return task.load_policy(path / "last", run.device)
    except RunError:
        if task.restore is not None:
            raise
    made = task.start_policy(args.seed, Run(device=run.device), args.kind)
    while True:
        try:
            next(made)
        except StopIteration as stop:
            return stop.value


def json_roundtrip(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON returns them, so that a folder's name does not depend on tuples or lists."""
    return json.loads(json.dumps(dict(base)))
