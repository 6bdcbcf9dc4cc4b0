"""``doctor``: check a policy and its signal for common problems, in about a minute, before training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.load_policy import load_policy
from denoiserl.cli.options import (
    CheckpointOption,
    DeviceOption,
    ExecutionHorizonOption,
    Flag,
    JsonOption,
    help_hint,
    parse,
)
from denoiserl.core.progress import track
from denoiserl.core.settings import Count, Seed, Settings


@dataclass(frozen=True)
class DoctorOptions(Settings):
    """Options of ``doctor``."""

    policy: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|POLICY")]
    """the folder of a run, or of a saved policy"""
    env: Annotated[str | None, help_hint("(default: the run's task)")] = None
    """Hopper-v5, metaworld:drawer-open-v3, my_module:make_env or my_file.py:make_env"""
    reward: Annotated[str | None, help_hint("(default: the run's task)")] = None
    """my_module:reward or my_file.py:reward, a function (sample, prompts) -> [B]"""
    prompts: Annotated[str | None, help_hint("(default: none)")] = None
    """with --reward: a function that returns prompts [P, ...]"""
    num_samples: Count = 64
    """number of samples to draw"""
    group_size: Count = 8
    """samples per prompt"""
    batch_size: Count = 1024
    """rows (sample, denoising step) per gradient step, for the estimate of memory"""
    execution_horizon: ExecutionHorizonOption = None
    checkpoint: CheckpointOption = "best"
    seed: Seed = 0
    """random seed of the samples"""
    device: DeviceOption = None
    json: JsonOption = False
    env_info: Flag = False
    """alone, without a policy: print versions, machine and extras, for a bug report"""


def doctor(argv: list[str]) -> None:
    """Run ``denoiserl doctor RUN|POLICY``; exit code 1 if learning would fail."""
    description = "Check a policy, and the signal that it will learn from, for common problems before training."
    if argv == ["--env-info"]:
        from denoiserl.doctor.env_info import env_info
        from denoiserl.experiments.versions import provenance

        return print(env_info(provenance()["commit"]))
    args = parse(DoctorOptions, "doctor", description, argv)
    if args.env_info:
        raise Misuse("--env-info stands alone: denoiserl doctor --env-info.")
    if args.env and args.reward:
        raise Misuse("--env and --reward are two signals: give one of them.")
    if args.prompts and not args.reward:
        raise Misuse("--prompts are the prompts of a reward: give --reward too.")
    loaded = load_policy(args.policy, args.checkpoint, args.device)
    from denoiserl.core.rng import Rng
    from denoiserl.doctor import examine, print_findings, worst_level
    from denoiserl.envs import Collector

    task = loaded.task() if hasattr(loaded.program, "task_of") else None
    policy = loaded.load(task)
    with loaded.place.activate(), track("examine"):
        env, reward, prompts = _signal(args, loaded, task, policy)
        findings = examine(
            policy,
            env,
            reward,
            prompts,
            Rng(args.seed, policy.device),
            num_samples=args.num_samples,
            group_size=args.group_size,
            batch_size=args.batch_size,
            execution_horizon=args.execution_horizon,
            recording=_recording(args, loaded, task),
        )
        if isinstance(env, Collector):
            env.close()
    if args.json:
        print(json.dumps([asdict(f) for f in findings], indent=2, ensure_ascii=False))
    else:
        print_findings(findings)
    if worst_level(findings) == "error":
        raise SystemExit(1)


def _signal_kind(loaded: Any) -> str | None:
    """Return the kind of signal that a run's recipe learns from; None if it has no recipe."""
    from denoiserl.experiments import experiment, resolve

    return resolve.learns_from(loaded.args.recipe) if loaded.program is experiment else None


def _recording(args: DoctorOptions, loaded: Any, task: Any) -> Any:
    """Return the recording that the run learns from; None if there is none."""
    from denoiserl.data import Demonstrations
    from denoiserl.data.recordings import EpisodeDataset

    if task is None or _signal_kind(loaded) != "data":
        return None
    data = task.data(args.seed)
    return data if isinstance(data, EpisodeDataset | Demonstrations) else None


def _signal(args: DoctorOptions, loaded: Any, task: Any, policy: Any) -> tuple[Any, Any, Any]:
    """Return (env, reward, prompts): those of the options, else the run's own."""
    if args.env:
        from denoiserl.envs.by_name import environment
        from denoiserl.envs.frame_stack import with_policy_history

        return with_policy_history(environment(args.env), policy), None, None
    if args.reward:
        from denoiserl.core.imports import import_object

        return None, import_object(args.reward), import_object(args.prompts)() if args.prompts else None
    kind = _signal_kind(loaded) or next((k for k in ("env", "reward") if task is not None and k in task.signals), None)
    if task is None or kind not in ("env", "reward"):
        return None, None, None
    if kind == "env":
        return task.env(min(args.num_samples, 32), args.seed), None, None
    return None, task.reward, task.prompts(args.seed)
