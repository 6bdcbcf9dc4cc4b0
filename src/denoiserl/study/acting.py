"""A task made of any environment: what ``eval --env`` judges policies on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from denoiserl.env import Stream, evaluate, filmed
from denoiserl.env.metaworld import MetaWorld
from denoiserl.env.planner import serving
from denoiserl.errors import BadRun, need
from denoiserl.policy import Policy
from denoiserl.show.films import chosen, film_grid
from denoiserl.show.media import gif
from denoiserl.task import Task
from denoiserl.train.run import module, named

META = "metaworld:"


def environment(word: str, ticks: int | None = None) -> Any:
    """What ``Stream`` and ``evaluate`` take, from a word.

    ``Hopper-v5``: a Gymnasium id. ``metaworld:drawer-open-v3``: a Meta-World task with its goal in view, over at
    success or after ``ticks``. ``my_module:make_env`` or ``my_file.py:make_env``: a function of yours that
    makes one copy.
    """
    if word.startswith(META):
        return partial(MetaWorld, word.removeprefix(META), ticks or 150)
    if ":" in word:
        return named(word)
    gym = need("gymnasium", "demo")
    try:
        spec = gym.spec(word)
    except gym.error.Error as error:
        raise BadRun(f"{word} is no environment that Gymnasium knows: {str(error).rstrip('.')}") from None
    more = {"max_episode_steps": ticks} if ticks else {}
    drawn = {"render_mode": "rgb_array"} if "rgb_array" in _modes(spec) else {}
    return partial(gym.make, word, **more, **drawn)


def _modes(spec: Any) -> list[str]:
    """The ways in which an environment can draw itself, without making it."""
    try:
        entry = spec.entry_point
        place, _, name = entry.partition(":") if isinstance(entry, str) else ("", "", "")
        cls = getattr(module(place), name) if place else entry
        return list(getattr(cls, "metadata", {}).get("render_modes", []))
    except (BadRun, AttributeError):
        return []


def acting(word: str, execute: int | None = None, ticks: int | None = None) -> Task:
    """The task of acting in an environment: the return, and success where the environment reports ``info["success"]``.

    ``execute``: actions of a chunk that are executed before the policy plans again (None: all of them).
    """
    env = environment(word, ticks)

    def outcomes(policy: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
        done = evaluate(serving(policy, execute), env, n, seed)
        told = {"return": done.returns, "ticks": done.ticks}
        return told if done.success is None else {"success": done.success.float(), **told}

    def look(policy: Policy, seed: int, n: int) -> Mapping[str, bytes | str]:
        try:
            films, won = filmed(serving(policy, execute), env, n, seed)
        except BadRun as error:
            return {"episodes.txt": f"No film: {error}."}
        shown = chosen(won)
        said = None if all(w is None for w in won) else [won[i] for i in shown]
        return {"episodes.gif": gif(film_grid([films[i] for i in shown], said))}

    def start(seed: int, keep: Any) -> Policy:
        raise BadRun(f"{word} is an environment and no task: to train, write a task with a starting policy")

    words = {"return": ("return of an episode", ""), "success": ("episodes that succeed", "%"), "ticks": ("ticks", "")}
    return Task(word, "env", start, outcomes, words, env=lambda copies, seed: Stream(env, copies, seed), look=look)
