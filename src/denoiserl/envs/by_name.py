"""Environments by name: what the words of a command line mean, and who demonstrates in which.

Hopper-v5                        a Gymnasium id; of another package with its module, gymnasium_robotics:FetchReach-v4
envpool:Hopper-v5                the same, stepped by envpool
metaworld:drawer-open-v3         a task of Meta-World with its goal in view, over at success; a script demonstrates it
pusht                            PushT, seen as keypoints; a script demonstrates it; lerobot:pusht is seen in the order
                                 of LeRobot's checkpoints, the disc first
pixels:metaworld:drawer-open-v3  pictures of 64 x 64 beside the hand's state; also pixels:pusht, pixels:Hopper-v5
my_module:make_env               a function of yours that makes one copy; also my_file.py:make_env
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from denoiserl.core.errors import DenoiseRLError, RunError
from denoiserl.core.imports import import_object, load_module
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs import ids
from denoiserl.envs.backends.envpool import PREFIX as POOL
from denoiserl.envs.metaworld import HAND, ExpertNoise, MetaWorld, hand
from denoiserl.envs.metaworld import demonstrations as metaworld_demonstrations
from denoiserl.envs.metaworld import expert as metaworld_expert
from denoiserl.envs.pixels import PixelObservation, offscreen
from denoiserl.envs.pusht import SIZE, PushT
from denoiserl.envs.pusht import demonstrations as pusht_demonstrations
from denoiserl.envs.pusht import record as pusht_record
from denoiserl.envs.record import each, noisy, record

META, PUSHT, LEROBOT, SEEN = "metaworld:", "pusht", "lerobot:pusht", "pixels:"
META_TICKS, PUSHT_TICKS = 105, 300
PICTURE = 64
"""pixels of a picture's side"""


def environment(word: str, ticks: int | None = None) -> Any:
    """What ``Collector`` and ``evaluate`` take, from a word (see above). ``ticks``: until an episode is over."""
    made = _made(word, ticks)
    if isinstance(made, partial):
        made.__name__ = word  # type: ignore[attr-defined]  # what it is called in messages
    return made


def _made(word: str, ticks: int | None) -> Any:
    if word.startswith(SEEN):
        return _seen(word.removeprefix(SEEN), ticks)
    if word.startswith(META):
        return partial(MetaWorld, word.removeprefix(META), ticks or META_TICKS)
    if word in (PUSHT, LEROBOT):
        return partial(PushT, "keypoints" if word == PUSHT else "lerobot", ticks or PUSHT_TICKS)
    if word.startswith(POOL):
        if ticks:
            raise RunError(f"{word}: envpool knows when an episode is over; leave the number of ticks out")
        return word
    if ":" in word and not _registered(word):
        if ticks:
            raise RunError(f"{word}: your function knows when an episode is over; leave the number of ticks out")
        return import_object(word)
    offscreen()  # before MuJoCo is imported, which looking at the task's class does
    spec = ids.find_spec(word)
    more = {"max_episode_steps": ticks} if ticks else {}
    drawn = {"render_mode": "rgb_array"} if "rgb_array" in _modes(spec) else {}
    return partial(ids.make, word, **more, **drawn)


def _registered(word: str) -> bool:
    """Return whether module:name is an id in Gymnasium's own spelling, as gymnasium_robotics:FetchReach-v4 is."""
    place, _, name = word.rpartition(":")
    return not place.endswith(".py") and not name.isidentifier()


def has_script(word: str) -> bool:
    """Whether a script demonstrates in this environment."""
    plain = word.removeprefix(SEEN)
    return plain.startswith(META) or plain == PUSHT


def demonstrations(
    word: str, n: int, seed: int = 0, ticks: int | None = None, aim: float | None = None, slip: float | None = None
) -> Demonstrations:
    """``n`` episodes of the environment's script.

    ``aim``: metres by which he misjudges, each episode anew, where object and goal of a Meta-World task are (default
    0.04). ``slip``: the std of the noise on what he commands, in halves of the range of actions (default 0.2 for
    Meta-World, 0 for PushT, whose script keeps only successes).
    """
    plain, pictures = word.removeprefix(SEEN), PICTURE if word.startswith(SEEN) else 0
    if plain.startswith(META):
        flaws = ExpertNoise(0.04 if aim is None else aim, 0.2 if slip is None else slip)
        return metaworld_demonstrations(plain.removeprefix(META), n, seed, ticks or META_TICKS, flaws, pictures)
    if plain == PUSHT:
        if aim:
            raise RunError("PushT's demonstrator sees where things are: only slip makes him worse")
        view = "pixels" if pictures else "keypoints"
        return pusht_demonstrations(n, seed, view, ticks or PUSHT_TICKS, SIZE / 2 * (slip or 0.0))
    raise RunError(_unscripted(word))


def record_expert(
    word: str,
    n: int,
    seed: int,
    ticks: int | None = None,
    copies: int = 16,
    told: Callable[[int, int], None] | None = None,
    first: int = 0,
    noise: float = 0.0,
) -> EpisodeDataset:
    """``n`` episodes of the environment's script without flaws, with all that data formats ask for, from number
    ``first`` on: episode i depends on ``seed`` and i alone. ``noise``: its std on what Meta-World's script does, in
    halves of the range of actions; what is done is what is recorded."""
    plain, pictures = word.removeprefix(SEEN), word.startswith(SEEN)
    if plain.startswith(META):
        decide = each(metaworld_expert(plain.removeprefix(META)).get_action)
        decide = noisy(decide, 1.0, noise) if noise else decide
        if not pictures:
            return record(environment(plain, ticks), decide, n, seed, copies, told=told, first=first)
        env = partial(
            PixelObservation, environment(plain, ticks), PICTURE
        )  # the script is shown all numbers, and his pupil few
        found = record(env, lambda obs, rng: decide(obs["state"], rng), n, seed, copies, told=told, first=first)
        felt = {**found.demos.observations, "state": found.demos.observations["state"][:, :HAND]}
        last = {**found.last, "state": found.last["state"][:, :HAND]}
        return replace(found, demos=replace(found.demos, observations=felt), last=last)
    if plain == PUSHT:
        if noise:
            raise RunError("PushT's script is recorded as it is: noise is for Meta-World's scripts and for policies")
        view = "pixels" if pictures else "keypoints"
        return pusht_record(n, seed, view, ticks or PUSHT_TICKS, told, first)
    raise RunError(_unscripted(word))


def _unscripted(word: str) -> str:
    return f"{word} has no scripted demonstrator, only {META}TASK and {PUSHT} do: record or name demonstrations"


def _seen(word: str, ticks: int | None) -> Any:
    """The environment with pictures as observations."""
    if word == PUSHT:
        return partial(PushT, "pixels", ticks or PUSHT_TICKS, size=PICTURE)
    if word.startswith((POOL, SEEN)):
        raise RunError(f"{SEEN}{word}: only what MuJoCo simulates in one process is looked at")
    return partial(PixelObservation, environment(word, ticks), PICTURE, state=hand if word.startswith(META) else None)


def _modes(spec: Any) -> list[str]:
    """The ways in which an environment can draw itself, without making it."""
    try:
        entry = spec.entry_point
        place, _, name = entry.partition(":") if isinstance(entry, str) else ("", "", "")
        cls = getattr(load_module(place), name) if place else entry
        return list(getattr(cls, "metadata", {}).get("render_modes", []))
    except (DenoiseRLError, AttributeError):  # told when it is made
        return []
