"""``sample``: generate with a run's policy and save what can be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from denoiserl.cli import Misuse
from denoiserl.cli.load_policy import load_policy
from denoiserl.cli.options import CheckpointOption, DeviceOption, RunWord, help_hint, parse
from denoiserl.cli.run_folders import find_run_folder
from denoiserl.core.errors import RunError
from denoiserl.core.progress import track
from denoiserl.core.settings import Count, Seed, Settings


@dataclass(frozen=True)
class SampleOptions(Settings):
    """Options of ``sample``."""

    run: RunWord
    """the folder of a run"""
    num_samples: Count = 16
    """number of samples, episodes or answers"""
    seed: Seed = 0
    """random seed of the samples"""
    checkpoint: CheckpointOption = "best"
    out: Annotated[Path | None, help_hint("(default: RUN/samples)")] = None
    """the folder to write"""
    device: DeviceOption = None


def sample(argv: list[str]) -> None:
    """Run ``denoiserl sample RUN``."""
    description = "Generate with a run's policy and save what can be looked at."
    args = parse(SampleOptions, "sample", description, argv)
    loaded = load_policy(args.run, args.checkpoint, args.device)
    if loaded.program is None:
        raise Misuse(f"{args.run} is a policy without a run, and so without a task: name the folder of its run.")
    task = loaded.task()
    if task.render is None:
        raise RunError(f"task {task.name!r} cannot draw its policy: give it render(policy, seed, n), a dict of files")
    policy = loaded.load(task)
    with loaded.place.activate(), track(f"generate {args.num_samples} samples"):
        files = task.render(policy, args.seed, args.num_samples)
    out = args.out or find_run_folder(args.run) / "samples"
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if Path(name).name != name:
            raise RunError(f"render of task {task.name!r} names a file {name!r}: give names without folders.")
        path = out / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
            if path.suffix == ".txt":
                print(content.rstrip("\n"))
        print(path)
