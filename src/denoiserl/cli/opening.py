"""Policies on disk, with what they belong to: a run's, or one that was saved by itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoiserl.cli import Misuse
from denoiserl.cli.run_folders import add_recipe_dir_to_path, find_run_folder
from denoiserl.core.errors import RunError

if TYPE_CHECKING:
    from denoiserl.policy.policy import Policy
    from denoiserl.tasks.base import Task


@dataclass(frozen=True)
class LoadedPolicy:
    """Where a policy lies, its run with program and args (None of a policy without one), and where it computes."""

    path: Path
    run: Path | None
    program: Any
    args: Any
    place: Any

    def task(self) -> Task:
        """What the run is about."""
        if self.program is None:
            raise Misuse(f"{self.path} is a policy without a run: say what it is judged on, with --env or --task.")
        if not hasattr(self.program, "task_of"):
            raise RunError(
                f"{self.program.__name__} does not say what its policy is judged by: add task_of(args) -> Task to its "
                "file"
            )
        return self.program.task_of(self.args)

    def load(self, task: Task | None = None) -> Policy:
        """The policy itself."""
        from denoiserl.policy.policy import Policy

        with self.place.activate():
            if task is None:
                return Policy.load(self.path, None, self.place.device)
            return task.load_policy(self.path, self.place.device)


def load_policy(word: str, which: str, device: str | None) -> LoadedPolicy:
    """What a word of the command line means: the folder of a run, its name in ``runs/``, or a saved policy."""
    from denoiserl.core.serialization import store
    from denoiserl.data.formats import foreign
    from denoiserl.experiments.runner import load_run as run_of
    from denoiserl.train.device import DeviceConfig

    if store.exists(Path(word)) and not (Path(word) / "run.json").is_file():
        if (other := foreign.policy(Path(word))) is not None:
            raise RunError(f"{word} is {other}")
        tree = store.peek(Path(word))
        if not isinstance(tree, dict) or tree.get("kind") != "denoiserl policy":
            raise RunError(f"{word} holds no policy: give the folder of a run, or one that Policy.save wrote")
        return LoadedPolicy(Path(word), None, None, None, DeviceConfig(device or "cpu", "float32", 1))
    path = find_run_folder(word)
    add_recipe_dir_to_path(path)
    program, args, record = run_of(path)
    place = DeviceConfig(device or record["device"], record["precision"], record["threads"])
    return LoadedPolicy(_saved(path, which), path, program, args, place)


def _saved(path: Path, which: str) -> Path:
    """The policy of a run: ``which``, or the last one of a recipe that keeps no best one."""
    from denoiserl.train.run_state import find_saved_policy

    try:
        return find_saved_policy(path, which)
    except RunError:
        if which == "last":
            raise
        source = find_saved_policy(path, "last")
        print(f"{path} has no best policy: the last one is taken.", file=sys.stderr)
        return source
