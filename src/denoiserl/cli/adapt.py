"""``adapt``: give a policy that was trained without rewards its reward, without training it further."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoiserl.cli import Misuse
from denoiserl.cli.load_policy import load_policy
from denoiserl.cli.options import CheckpointOption, DeviceOption, RunWord, parse
from denoiserl.core.progress import track


@dataclass(frozen=True)
class AdaptOptions:
    """Options of ``adapt``."""

    run: RunWord
    """the folder of a run of breeze or fb"""
    reward: str
    """my_file.py:reward or my_module:reward, a function of observations [N, o] that returns rewards [N]"""
    out: Path
    """the new folder of the policy for this reward"""
    checkpoint: CheckpointOption = "best"
    device: DeviceOption = None


def adapt(argv: list[str]) -> None:
    """Run ``denoiserl adapt RUN --reward FILE.py:FUNCTION --out FOLDER``."""
    description = (
        "Adapt a policy that was trained without rewards to a reward: infer its task from the rewards of the run's "
        "data, without a gradient step."
    )
    args = parse(AdaptOptions, "adapt", description, argv)
    if args.out.exists():
        raise Misuse(f"{args.out} exists already: give another --out.")
    loaded = load_policy(args.run, args.checkpoint, args.device)
    if loaded.program is None:
        raise Misuse(f"{args.run} is a policy without a run, and so without data: name the folder of its run.")
    task = loaded.task()
    if task.data is None:
        raise Misuse(
            f"{args.run} learned from no data: name a run of breeze or fb, whose data the reward is computed on."
        )
    from denoiserl.control.zero_shot import policy_for_reward, require_task_conditioned, states
    from denoiserl.core.imports import import_object

    reward: Any = import_object(args.reward)
    with loaded.place.activate(), track("infer the task from the rewards"):
        policy = loaded.load(task)
        require_task_conditioned(policy, "a reward that comes afterwards")
        obs = states(task.data(loaded.args.seed))
        adapted = policy_for_reward(policy, obs, reward)
        adapted.save(args.out)
        values = reward(obs)
        print(
            f"Rewards of {len(obs)} observations: {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g}."
        )
        for name, content in (task.render(adapted, loaded.args.seed, 8) if task.render else {}).items():
            if isinstance(content, bytes):
                (args.out / name).write_bytes(content)
                print(args.out / name)
            else:
                print(content.rstrip("\n"))
    print(
        f"{args.out}: the policy for it. Next: denoiserl eval {args.out} --env ENV, or Policy.load({str(args.out)!r})."
    )
