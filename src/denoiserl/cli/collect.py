"""``collect``: record episodes of an expert or a policy as demonstrations, in one of four formats."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.options import (
    CheckpointOption,
    DeviceOption,
    ExecutionHorizonOption,
    Flag,
    JsonOption,
    MaxEpisodeStepsOption,
    help_hint,
    parse,
    print_table,
)
from denoiserl.core.progress import say, track
from denoiserl.core.settings import Count, NonNegative, Seed, Settings

EXPERT = "expert"
POLICY_HELP = (
    "expert (the scripts of Meta-World and PushT), the folder of a run or of a saved policy, or my_file.py:act, a "
    "function act(obs, rng) -> actions of a tensor [B, ...] or a dict of tensors, that returns a tensor or array [B, d]"
)
BLOCK = 64
"""number of episodes that are saved together"""
MAY_CHANGE = ("out", "format", "only_successes", "fps", "num_envs", "device", "json")
"""options that may change when recording goes on"""


@dataclass(frozen=True)
class CollectOptions(Settings):
    """Options of ``collect``."""

    env: str
    """metaworld:drawer-open-v3, pusht, Hopper-v5, pixels:ENV, my_module:make_env or my_file.py:make_env"""
    out: Path
    """the new folder to write; one .hdf5 file with --format hdf5"""
    policy: Annotated[str, tyro.conf.arg(help=POLICY_HELP)] = EXPERT
    num_episodes: Count = 100
    """number of episodes"""
    seed: Seed = 0
    """random seed of start states and noise: the same seed gives the same episodes"""
    format: Literal["denoiserl", "minari", "lerobot", "hdf5"] = "denoiserl"
    """format of the data set"""
    action_noise: NonNegative = 0.0
    """std of Gaussian noise added to the actions, as a fraction of half the action range"""
    only_successes: Flag = False
    """keep only the episodes that succeed"""
    execution_horizon: ExecutionHorizonOption = None
    max_episode_steps: MaxEpisodeStepsOption = None
    fps: Annotated[Count | None, help_hint("(default: the environment's)")] = None
    """with --format lerobot: frames per second"""
    num_envs: Count = 16
    """parallel environments; the episodes are the same for any number"""
    checkpoint: CheckpointOption = "best"
    device: DeviceOption = None
    json: JsonOption = False


def collect(argv: list[str]) -> None:
    """Run ``denoiserl collect --env ENV --out FOLDER``."""
    description = "Record episodes of a scripted expert or of a policy as demonstrations, with their success rate."
    args = parse(CollectOptions, "collect", description, argv)
    if args.out.exists():
        raise Misuse(f"{args.out} exists already: give another --out.")
    if args.format == "hdf5" and args.out.suffix.lower() != ".hdf5":
        raise Misuse(f"--format hdf5 writes one file: give --out {args.out.name}.hdf5.")
    if args.policy == EXPERT and (args.execution_horizon or args.device):
        raise Misuse("--execution-horizon and --device are options of a policy: give a --policy, or leave them out.")
    say(f"Loading {args.env} ...")
    from denoiserl.data.formats.any import write_as
    from denoiserl.envs.by_name import environment, has_script, record_expert
    from denoiserl.envs.frame_stack import newest_frame
    from denoiserl.envs.record import constant_dimensions, record, with_action_noise
    from denoiserl.envs.remarks import remarks

    env = environment(args.env, args.max_episode_steps)
    fps = _fps(env, args) if args.format == "lerobot" else 0
    if args.policy == EXPERT and not has_script(args.env):
        raise Misuse(
            f"{args.env} has no scripted expert, only tasks of Meta-World and PushT have one: give a --policy."
        )
    act, env, history = (None, env, 1) if args.policy == EXPERT else _make_actor(args, env)
    if act is not None and args.action_noise:
        act = with_action_noise(act, _half_action_range(env), args.action_noise)

    def record_block(first: int, n: int, on_episode: Any) -> Any:
        if act is None:
            return record_expert(
                args.env, n, args.seed, args.max_episode_steps, args.num_envs, on_episode, first, args.action_noise
            )
        recording = record(env, act, n, args.seed, args.num_envs, on_progress=on_episode, first=first)
        if history == 1:
            return recording
        demos = replace(recording.demos, observations=newest_frame(recording.demos.observations, history))
        return replace(recording, demos=demos, last=newest_frame(recording.last, history))

    with track("record episodes", args.num_episodes) as advance, remarks() as remark_lines:
        recorded = 0

        def show(done: int, won: int) -> None:
            nonlocal recorded
            advance(done - recorded, f"{won} succeeded")
            recorded = done

        found = _record_in_blocks(args, record_block, show)
    notes = _notes(found, remark_lines, args.env)
    played = found.demos.statistics()
    if args.only_successes:
        found = found.successful()
    write_as(args.out, found, args.format, args.env if args.format == "lerobot" else args.env.rpartition("/")[2], fps)
    kept, still = found.demos.statistics(), constant_dimensions(found.demos)
    if args.json:
        summary = {"out": str(args.out), "played": played, "kept": kept, "constant": still, "notes": notes}
        print(json.dumps(summary, indent=2))
        return
    names = {
        "episodes": "episodes",
        "success": "of them succeed",
        "return": "return",
        "length": "steps",
        "frames": "frames",
    }
    rows = [
        (word, *(format(v[name], ".1%" if name == "success" else ".6g") for v in (played, kept)))
        for name, word in names.items()
        if name in kept
    ]
    print_table(("", "played", "kept"), rows, right=1)
    if "success" not in kept:
        print("The environment does not say which episodes succeed (info['success']).")
    if still:
        print(f"Entries of the observation that never change: {', '.join(map(str, still))}.")
    for line in notes:
        print(line)
    print(f"\n{args.out}: {args.format}.")


def _notes(found: Any, remark_lines: Sequence[str], name: str) -> list[str]:
    """Return the warnings about a recording: those of its blocks, and the one about equal first observations."""
    from denoiserl.core.tree import tree_map
    from denoiserl.envs import remarks

    lengths = found.demos.lengths.tolist()
    begins = (found.demos.ends - found.demos.lengths).tolist()
    starts = [remarks.row(tree_map(lambda v: v.numpy(), found.demos.observations), i) for i in begins]
    returns = [0.0] * len(lengths) if found.demos.returns is None else found.demos.returns.tolist()
    return [
        *(line for line in remark_lines if remarks.ALIKE not in line),
        *remarks.equal_start_notes(starts, lengths, returns, name),
    ]


def _record_in_blocks(args: CollectOptions, record_block: Callable[..., Any], show: Callable[[int, int], None]) -> Any:
    """Return all episodes. Finished blocks are saved beside ``out`` until all are there, and are not recorded again."""
    from denoiserl.core.serialization import store
    from denoiserl.data.recordings import EpisodeDataset

    beside = args.out.with_name(f".{args.out.name}.parts")
    asked = {name: str(value) for name, value in vars(args).items() if name not in MAY_CHANGE}
    if (beside / "asked.json").is_file():
        begun = any(p.is_dir() for p in beside.iterdir())
        if begun and store.read_json(beside / "asked.json") != asked:
            raise Misuse(
                f"{beside} holds episodes of another command: repeat that command, give another --out, or remove it."
            )
    elif beside.exists():
        raise Misuse(f"{beside} is the folder for unfinished episodes, and holds something else: give another --out.")
    beside.mkdir(parents=True, exist_ok=True)
    store.write_json(beside / "asked.json", asked)
    parts, won = [], 0
    for first in range(0, args.num_episodes, BLOCK):
        n = min(BLOCK, args.num_episodes - first)
        path = beside / f"{first:07d}-{n}"
        if store.exists(path):
            parts.append(EpisodeDataset.load(path))
        else:
            try:
                parts.append(record_block(first, n, lambda done, more, f=first, w=won: show(f + done, w + more)))
            except KeyboardInterrupt as stop:
                print(f"Stopped after {first} episodes. The same command goes on from there.", file=sys.stderr)
                raise SystemExit(128 + getattr(stop, "number", 2)) from None
            parts[-1].save(path)
        success = parts[-1].demos.success
        won += 0 if success is None else int(success.sum())
        show(first + n, won)
    shutil.rmtree(beside)
    return EpisodeDataset.concat(parts)


def _make_actor(args: CollectOptions, env: Any) -> tuple[Callable[..., Any], Any, int]:
    """Return act(obs, rng) -> actions, the environment as the policy observes it, and its number of observations."""
    if ":" in args.policy and not Path(args.policy).exists():
        from denoiserl.core.imports import import_object
        from denoiserl.envs.spaces import as_actor

        return as_actor(import_object(args.policy)), env, 1
    from denoiserl.cli.load_policy import load_policy
    from denoiserl.control.acting import check_policy_fits, eval_actor
    from denoiserl.envs import Collector
    from denoiserl.envs.frame_stack import history, with_policy_history

    found = load_policy(args.policy, args.checkpoint, args.device)
    task = found.task() if hasattr(found.program, "task_of") else None
    policy = found.load(task)
    seen = with_policy_history(env, policy)
    probe = Collector(seen, 1)
    probe.close()
    check_policy_fits(policy, probe, args.policy)
    return eval_actor(policy, args.execution_horizon), seen, 1 if seen is env else history(policy)


def _half_action_range(env: Any) -> Any:
    """Return half the range of an environment's actions, [d]."""
    import torch

    from denoiserl.envs import Collector

    probe = Collector(env, 1)
    probe.close()
    half = torch.as_tensor((probe.spec.high - probe.spec.low) / 2, dtype=torch.float32)
    if not bool(half.isfinite().all()):
        raise Misuse(f"{probe.name} has no bounds of actions, of which --action-noise is a fraction: leave it out.")
    return half


def _fps(env: Any, args: CollectOptions) -> int:
    """Return the frames per second of the recording."""
    from denoiserl.envs.backends.answer import close_env

    if args.fps is None:
        probe = env() if callable(env) else None  # envpool's ids have none
        owners = (probe, getattr(probe, "sim", None))  # the environment, or the simulator that it wraps
        metadata = (getattr(owner, "metadata", None) or {} for owner in owners)
        known = next((each["render_fps"] for each in metadata if "render_fps" in each), None)
        close_env(probe)
        if known is None:
            raise Misuse(f"{args.env} does not say how many frames per second it has: give --fps.")
        return int(known)
    return args.fps
