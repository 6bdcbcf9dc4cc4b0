"""Load a policy that a word of the command line names: that of a run, or one that was saved by itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoiserl.cli import Misuse
from denoiserl.cli.run_folders import add_recipe_dir_to_path, find_run_folder
from denoiserl.core.errors import RunError
from denoiserl.core.progress import say

if TYPE_CHECKING:
    from denoiserl.policy.policy import Policy
    from denoiserl.tasks.base import Task


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy on disk: its path, its run with program and args (None if it has no run), and the device settings."""

    path: Path
    run: Path | None
    program: Any
    args: Any
    place: Any

    def task(self) -> Task:
        """Return the task of the run. Raise an error if the policy has no run, or the run no task."""
        if self.program is None:
            raise Misuse(f"{self.path} is a policy without a run, and so without a task: give --env or --task.")
        if not hasattr(self.program, "task_of"):
            raise RunError(
                f"{self.program.__name__} does not say how its policy is evaluated: add task_of(args) -> Task to its "
                "file"
            )
        return self.program.task_of(self.args)

    def load(self, task: Task | None = None) -> Policy:
        """Load the policy by ``task.load_policy``, or by ``Policy.load`` without a task."""
        from denoiserl.policy.policy import Policy

        with self.place.activate():
            if task is None:
                return Policy.load(self.path, None, self.place.device)
            return task.load_policy(self.path, self.place.device)


def load_policy(word: str, checkpoint: str, device: str | None) -> LoadedPolicy:
    """Return the policy that a word names: the folder of a run, the name of a run in ``runs/``, or a saved policy."""
    if not any(path.exists() for path in (Path(word), Path("runs") / word)):
        find_run_folder(word)  # raises, before torch is imported
    say(f"Loading {word} ...")
    from denoiserl.core.serialization import store
    from denoiserl.data.formats import foreign
    from denoiserl.experiments.runner import load_run
    from denoiserl.train.device import DeviceConfig

    if store.exists(Path(word)) and not (Path(word) / "run.json").is_file():
        if (other := foreign.policy(Path(word))) is not None:
            raise RunError(f"{word} is {other}")
        tree = store.read_structure(Path(word))
        if not isinstance(tree, dict) or tree.get("kind") != "denoiserl policy":
            raise RunError(f"{word} holds no policy: give the folder of a run, or one that Policy.save wrote")
        return LoadedPolicy(Path(word), None, None, None, DeviceConfig(device or "cpu", "float32", 1))
    path = find_run_folder(word)
    add_recipe_dir_to_path(path)
    program, args, record = load_run(path)
    place = DeviceConfig(device or record["device"], record["precision"], record["threads"])
    return LoadedPolicy(_saved_policy(path, checkpoint), path, program, args, place)


def _saved_policy(path: Path, checkpoint: str) -> Path:
    """Return the path of a policy of a run; the last one if the recipe keeps no best one."""
    from denoiserl.train.saved_state import find_saved_policy

    try:
        return find_saved_policy(path, checkpoint)
    except RunError:
        if checkpoint != "best":
            raise
        source = find_saved_policy(path, "last")
        print(f"{path} has no best policy: its last one is used.", file=sys.stderr)
        return source
