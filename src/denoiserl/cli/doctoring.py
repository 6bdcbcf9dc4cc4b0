"""``doctor``: what would be found out after three days, in a minute."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.listing import Flag, hint
from denoiserl.cli.opening import load_policy


@dataclass(frozen=True)
class Doctor:
    """Options of ``doctor``."""

    policy: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|POLICY")]
    """the folder of a run, or of a saved policy"""
    env: Annotated[str | None, hint("(default: the run's task)")] = None
    """Hopper-v5, metaworld:drawer-open-v3, my_module:make_env or my_file.py:make_env"""
    reward: Annotated[str | None, hint("(default: the run's task)")] = None
    """my_module:reward or my_file.py:reward, a function (sample, prompts) -> [B]"""
    prompts: Annotated[str | None, hint("(default: none)")] = None
    """with --reward: a function that returns prompts [P, ...]"""
    batch: int = 64
    """samples that are drawn"""
    group: int = 8
    """samples a prompt"""
    rows: int = 1024
    """rows (sample, step) a gradient step, for the estimate of memory"""
    execute: Annotated[int | None, hint("(default: as the policy carries, or all)")] = None
    """actions of a chunk that are executed"""
    which: Literal["best", "last"] = "best"
    """the best policy of a run, or its last one"""
    seed: int = 0
    """of what is drawn"""
    device: Annotated[str | None, hint("(default: where the run did)")] = None
    """where to compute"""
    json: Flag = False
    """print JSON"""
    env_info: Flag = False
    """alone, without a policy: print versions, machine and extras, for a report of a bug"""


def doctor(given: list[str]) -> None:
    """``denoiserl doctor RUN|POLICY``; exit code 1 where learning would fail."""
    said = "What is wrong with a policy, and with what it shall learn from, before it learns."
    if given == ["--env-info"]:
        from denoiserl.doctor.env_info import env_info
        from denoiserl.experiments.runner import provenance

        return print(env_info(provenance()["commit"]))
    a = tyro.cli(Doctor, prog="denoiserl doctor", description=said, args=given)
    if a.env_info:
        raise Misuse("--env-info stands alone: denoiserl doctor --env-info")
    if a.env and a.reward:
        raise Misuse("--env and --reward: a policy learns from one of them.")
    if a.prompts and not a.reward:
        raise Misuse("--prompts are for a --reward.")
    from denoiserl.core.rng import Rng
    from denoiserl.doctor import examine, print_findings, worst
    from denoiserl.envs import Collector

    made = load_policy(a.policy, a.which, a.device)
    task = made.task() if hasattr(made.program, "task_of") else None
    policy = made.load(task)
    with made.place.activate():
        env, reward, prompts = _signal(a, made, task, policy)
        recording = _recording(a, made, task)
        sizes = {
            "batch": a.batch,
            "group": a.group,
            "rows_a_step": a.rows,
            "execute": a.execute,
            "recording": recording,
        }
        findings = examine(policy, env, reward, prompts, Rng(a.seed, policy.device), **sizes)
        if isinstance(env, Collector):
            env.close()
    if a.json:
        print(json.dumps([asdict(f) for f in findings], indent=2, ensure_ascii=False))
    else:
        print_findings(findings)
    if worst(findings) == "error":
        raise SystemExit(1)


def _kind(made: Any) -> str | None:
    """Return the kind of signal that a run's recipe learns from; None where it has no recipe."""
    from denoiserl.experiments import experiment, resolve

    return resolve.learns_from(made.args.recipe) if made.program is experiment else None


def _recording(a: Doctor, made: Any, task: Any) -> Any:
    """Return the recording that the run learns from; None where there is none."""
    from denoiserl.data import Demonstrations
    from denoiserl.data.recordings import EpisodeDataset

    if task is None or _kind(made) != "data":
        return None
    found = task.data(a.seed)
    return found if isinstance(found, EpisodeDataset | Demonstrations) else None


def _signal(a: Doctor, made: Any, task: Any, policy: Any) -> tuple[Any, Any, Any]:
    """(env, reward, prompts): what was asked for, else the run's own."""
    if a.env:
        from denoiserl.envs.by_name import environment
        from denoiserl.envs.frame_stack import shown

        return shown(environment(a.env), policy), None, None
    if a.reward:
        from denoiserl.core.imports import import_object

        return None, import_object(a.reward), import_object(a.prompts)() if a.prompts else None
    kind = _kind(made) or next((k for k in ("env", "reward") if task is not None and k in task.signals), None)
    if task is None or kind not in ("env", "reward"):
        return None, None, None
    if kind == "env":
        return task.env(min(a.batch, 32), a.seed), None, None
    return None, task.reward, task.prompts(a.seed)
