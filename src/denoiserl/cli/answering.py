"""``answer``: a policy that was trained without rewards is told one, and becomes the policy for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.listing import hint
from denoiserl.cli.opening import load_policy

Word = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Answer:
    """Options of ``answer``."""

    run: Word
    """the folder of a run of breeze or fb"""
    reward: str
    """my_file.py:reward or my_module:reward, a function of observations [N, o] that gives rewards [N]"""
    out: Path
    """the new folder of the policy for this reward"""
    which: Literal["best", "last"] = "best"
    """the best policy of the run, or its last one"""
    device: Annotated[str | None, hint("(default: where the run did)")] = None
    """where to compute"""


def answer(given: list[str]) -> None:
    """``denoiserl answer RUN --reward FILE.py:FUNCTION --out FOLDER``."""
    said = "Tell a reward to a policy that was trained without any, on the run's data, without a gradient step."
    a = tyro.cli(Answer, prog="denoiserl answer", description=said, args=given)
    if a.out.exists():
        raise Misuse(f"{a.out} exists already: name another folder.")
    found = load_policy(a.run, a.which, a.device)
    if found.program is None:
        raise Misuse(f"{a.run} is a policy without a run, which says what it is about: name the folder of its run.")
    task = found.task()
    if task.data is None:
        raise Misuse(f"{a.run} learned from no data: a reward is told on the data of a run of breeze or fb.")
    from denoiserl.control.zero_shot import policy_for_reward as told
    from denoiserl.control.zero_shot import require_task_conditioned, states
    from denoiserl.core.imports import import_object

    reward: Any = import_object(a.reward)
    with found.place.activate():
        policy = found.load(task)
        require_task_conditioned(policy, "a reward that comes afterwards")
        seen = states(task.data(found.args.seed))
        made = told(policy, seen, reward)
        made.save(a.out)
        worth = reward(seen)
        print(f"The reward of {len(seen)} states: {worth.min():.3g} to {worth.max():.3g}, mean {worth.mean():.3g}.")
        for name, data in (task.look(made, found.args.seed, 8) if task.look else {}).items():
            if isinstance(data, bytes):
                (a.out / name).write_bytes(data)
                print(a.out / name)
            else:
                print(data.rstrip("\n"))
    print(f"{a.out}: the policy for it. Next: denoiserl eval {a.out} --env ENV, or Policy.load({str(a.out)!r}).")
