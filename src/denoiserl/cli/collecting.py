"""``collect``: episodes of an expert or a policy, recorded as demonstrations in one of four formats."""

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
from denoiserl.cli.listing import Flag, hint, table

SCRIPTED = "scripted"
BLOCK = 64
"""episodes that are saved together"""
SAME = ("env", "policy", "episodes", "seed", "execute", "ticks", "which", "noise")
"""what must not change when recording goes on"""


@dataclass(frozen=True)
class Collect:
    """Options of ``collect``."""

    env: str
    """metaworld:drawer-open-v3, pusht, Hopper-v5, pixels:ENV, my_module:make_env or my_file.py:make_env"""
    out: Path
    """the new folder to write; one .hdf5 file with --format hdf5"""
    policy: str = SCRIPTED
    """scripted (experts of Meta-World and PushT), the folder of a run or of a saved policy, or my_file.py:act, a
    function act(obs, rng) -> actions: obs is a tensor [B, ...] or a dict of them, actions a tensor or array [B, d]"""
    episodes: int = 100
    """how many are played"""
    seed: int = 0
    """of start states and noise: the same seed gives the same episodes"""
    format: Literal["denoiserl", "minari", "lerobot", "hdf5"] = "denoiserl"
    """of what is written"""
    noise: float = 0.0
    """std of the noise on what is done, in halves of the range of actions: for data that show more than one way"""
    only_successes: Flag = False
    """of the episodes played, keep those that succeed"""
    execute: Annotated[int | None, hint("(default: as the policy carries, or all)")] = None
    """actions of a chunk that are executed before the policy plans again"""
    ticks: Annotated[int | None, hint("(default: the environment's)")] = None
    """ticks until an episode is over"""
    fps: Annotated[int | None, hint("(default: the environment's)")] = None
    """with --format lerobot: frames a second"""
    copies: int = 16
    """of the environment, played side by side; the episodes are the same for any number"""
    which: Literal["best", "last"] = "best"
    """the best policy of a run, or its last one"""
    device: Annotated[str | None, hint("(default: where the run did)")] = None
    """where the policy computes"""
    json: Flag = False
    """print JSON"""


def collect(given: list[str]) -> None:
    """``denoiserl collect --env ENV --out FOLDER``."""
    said = "Record episodes of a scripted expert or of a policy as demonstrations, with statistics of their success."
    a = tyro.cli(Collect, prog="denoiserl collect", description=said, args=given)
    if a.episodes < 1 or a.copies < 1:
        raise Misuse("--episodes and --copies start at 1.")
    if not a.noise >= 0:
        raise Misuse(f"--noise {a.noise}: none is 0.")
    if a.out.exists():
        raise Misuse(f"{a.out} exists already: name another folder.")
    if a.format == "hdf5" and a.out.suffix.lower() != ".hdf5":
        raise Misuse(f"A flat data set is one file: --out {a.out.name}.hdf5.")
    if a.policy == SCRIPTED and (a.execute or a.device):
        raise Misuse("--execute and --device belong to a policy, not to a scripted expert.")
    from denoiserl.data.formats.any import write_as
    from denoiserl.envs.by_name import environment, has_script, record_expert
    from denoiserl.envs.frame_stack import newest
    from denoiserl.envs.record import constant, noisy, record
    from denoiserl.envs.remarks import remarks

    env = environment(a.env, a.ticks)
    fps = _fps(env, a) if a.format == "lerobot" else 0
    if a.policy == SCRIPTED and not has_script(a.env):
        raise Misuse(f"{a.env} has no scripted expert, only tasks of Meta-World and PushT do: name a --policy.")
    act, env, history = (None, env, 1) if a.policy == SCRIPTED else _act(a, env)
    if act is not None and a.noise:
        act = noisy(act, _half(env), a.noise)

    def play(first: int, n: int, told: Any) -> Any:
        if act is None:
            return record_expert(a.env, n, a.seed, a.ticks, a.copies, told, first, a.noise)
        made = record(env, act, n, a.seed, a.copies, told=told, first=first)
        if history == 1:
            return made
        demos = replace(made.demos, observations=newest(made.demos.observations, history))
        return replace(made, demos=demos, last=newest(made.last, history))

    with _progress(a) as told, remarks() as said:
        found = _gathered(a, play, told)
    notes = _notes(found, said, a.env)
    played = found.demos.statistics()
    if a.only_successes:
        found = found.successful()
    write_as(a.out, found, a.format, a.env if a.format == "lerobot" else a.env.rpartition("/")[2], fps)
    kept, still = found.demos.statistics(), constant(found.demos)
    if a.json:
        made = {"out": str(a.out), "played": played, "kept": kept, "constant": still, "notes": notes}
        print(json.dumps(made, indent=2))
        return
    names = {
        "episodes": "episodes",
        "success": "of them succeed",
        "return": "return",
        "length": "ticks",
        "frames": "frames",
    }
    rows = [
        (word, *(format(v[name], ".1%" if name == "success" else ".6g") for v in (played, kept)))
        for name, word in names.items()
        if name in kept
    ]
    table(("", "played", "kept"), rows, right=1)
    if "success" not in kept:
        print("The environment does not say which episodes succeed (info['success']).")
    if still:
        print(f"Numbers of the observation that never change: {', '.join(map(str, still))}.")
    for line in notes:
        print(line)
    print(f"\n{a.out}: {a.format}.")


def _notes(found: Any, said: Sequence[str], name: str) -> list[str]:
    """Return what belongs to the numbers: what was said of the blocks, and whether all episodes begin alike."""
    from denoiserl.core.tree import tree_map
    from denoiserl.envs import remarks

    lengths = found.demos.lengths.tolist()
    begins = (found.demos.ends - found.demos.lengths).tolist()
    starts = [remarks.row(tree_map(lambda v: v.numpy(), found.demos.observations), i) for i in begins]
    returns = [0.0] * len(lengths) if found.demos.returns is None else found.demos.returns.tolist()
    return [*(line for line in said if remarks.ALIKE not in line), *remarks.alike(starts, lengths, returns, name)]


def _gathered(a: Collect, play: Callable[..., Any], told: Callable[[int, int], None]) -> Any:
    """All episodes, in blocks; blocks that are through lie beside ``out`` until all are, and are not played again."""
    from denoiserl.core.serialization import store
    from denoiserl.data.recordings import EpisodeDataset

    beside, asked = a.out.with_name(f".{a.out.name}.parts"), {k: str(getattr(a, k)) for k in SAME}
    if (beside / "asked.json").is_file():
        begun = any(p.is_dir() for p in beside.iterdir())
        if begun and store.read_json(beside / "asked.json") != asked:
            raise Misuse(f"{beside} holds episodes of another command: repeat that one, or give another --out.")
    elif beside.exists():
        raise Misuse(f"{beside} is kept for episodes on their way, and something else is there: give another --out.")
    beside.mkdir(parents=True, exist_ok=True)
    store.write_json(beside / "asked.json", asked)
    parts, won = [], 0
    for first in range(0, a.episodes, BLOCK):
        path, n = beside / f"{first:07d}", min(BLOCK, a.episodes - first)
        if store.exists(path):
            parts.append(EpisodeDataset.load(path))
        else:
            try:
                parts.append(play(first, n, lambda done, more, f=first, w=won: told(f + done, w + more)))
            except KeyboardInterrupt:
                print(f"Stopped after {first} episodes. The same command goes on from there.", file=sys.stderr)
                raise SystemExit(130) from None
            parts[-1].save(path)
        success = parts[-1].demos.success
        won += 0 if success is None else int(success.sum())
        told(first + n, won)
    shutil.rmtree(beside)
    return EpisodeDataset.concat(parts)


def _act(a: Collect, env: Any) -> tuple[Callable[..., Any], Any, int]:
    """Return the player, act(obs, rng) -> actions, the environment as it is shown, and the number of observations."""
    if ":" in a.policy and not Path(a.policy).exists():
        from denoiserl.core.imports import import_object
        from denoiserl.envs.spaces import decides

        return decides(import_object(a.policy)), env, 1
    from denoiserl.cli.opening import load_policy
    from denoiserl.control.acting import eval_actor, suits
    from denoiserl.envs import Collector
    from denoiserl.envs.frame_stack import history, shown

    found = load_policy(a.policy, a.which, a.device)
    task = found.task() if hasattr(found.program, "task_of") else None
    policy = found.load(task)
    seen = shown(env, policy)
    probe = Collector(seen, 1)
    probe.close()
    suits(policy, probe, a.policy)
    return eval_actor(policy, a.execute), seen, 1 if seen is env else history(policy)


def _half(env: Any) -> Any:
    """Half the range of an environment's actions, [d]."""
    import torch

    from denoiserl.envs import Collector

    probe = Collector(env, 1)
    probe.close()
    half = torch.as_tensor((probe.spec.high - probe.spec.low) / 2, dtype=torch.float32)
    if not bool(half.isfinite().all()):
        raise Misuse(f"{probe.name} does not say how far its actions go: noise is a share of that.")
    return half


def _fps(env: Any, a: Collect) -> int:
    """Frames a second of what is recorded."""
    from denoiserl.envs.backends.answer import shut

    if a.fps is None:
        probe = env() if callable(env) else None  # envpool's ids have none
        owners = (probe, getattr(probe, "sim", None))  # the environment, or the simulator that it wraps
        told = (getattr(owner, "metadata", None) or {} for owner in owners)
        known = next((each["render_fps"] for each in told if "render_fps" in each), None)
        shut(probe)
        if known is None:
            raise Misuse(f"{a.env} does not say how many frames a second it has: give --fps.")
        return int(known)
    if a.fps < 1:
        raise Misuse("--fps starts at 1.")
    return a.fps


def _progress(a: Collect) -> Any:
    """A bar on stderr: a context that gives ``told(done, won)``."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def bar() -> Any:
        columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        console = Console(file=sys.stderr)
        off = a.json or not console.is_terminal
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=off) as progress:
            task = progress.add_task("", total=a.episodes)
            yield lambda done, won: progress.update(task, completed=done, description=f"{won} succeeded")

    return bar()
