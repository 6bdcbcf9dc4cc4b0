"""Environments by name, as the command line takes them, and their scripted experts.

Hopper-v5                        a Gymnasium id; of another package gymnasium_robotics:FetchReach-v4
envpool:Hopper-v5                the same task, stepped by envpool
metaworld:drawer-open-v3         a Meta-World task with a visible goal; success ends the episode; has an expert
pusht                            PushT with keypoint observations; has an expert
lerobot:pusht                    PushT with the column order of LeRobot's checkpoints, the disc first
pixels:metaworld:drawer-open-v3  images of 64 x 64 beside the hand's state; also pixels:pusht, pixels:Hopper-v5
my_module:make_env               your function that makes one environment; also my_file.py:make_env
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
from denoiserl.envs.metaworld import HAND, ExpertNoise, MetaWorld, proprioception
from denoiserl.envs.metaworld import demonstrations as metaworld_demonstrations
from denoiserl.envs.metaworld import expert as metaworld_expert
from denoiserl.envs.pixels import PixelObservation, offscreen
from denoiserl.envs.pusht import SIZE, PushT
from denoiserl.envs.pusht_expert import demonstrations as pusht_demonstrations
from denoiserl.envs.pusht_expert import record as pusht_record
from denoiserl.envs.record import batch_expert, record, with_action_noise

META, PUSHT, LEROBOT, SEEN = "metaworld:", "pusht", "lerobot:pusht", "pixels:"
META_STEPS, PUSHT_STEPS = 105, 300
PICTURE = 64
"""side length of an image in pixels"""


def environment(word: str, max_episode_steps: int | None = None) -> Any:
    """Return the environment ``word`` (see above) in a form that ``Collector`` and ``evaluate`` accept.

    ``max_episode_steps``: time limit of an episode (None: the environment's own).
    """
    made = _made(word, max_episode_steps)
    if isinstance(made, partial):
        made.__name__ = word  # type: ignore[attr-defined]  # its name in messages
    return made


def _made(word: str, max_episode_steps: int | None) -> Any:
    if word.startswith(SEEN):
        return _seen(word.removeprefix(SEEN), max_episode_steps)
    if word.startswith(META):
        return partial(MetaWorld, word.removeprefix(META), max_episode_steps or META_STEPS)
    if word in (PUSHT, LEROBOT):
        return partial(PushT, "keypoints" if word == PUSHT else "lerobot", max_episode_steps or PUSHT_STEPS)
    if word.startswith(POOL):
        if max_episode_steps:
            raise RunError(f"{word}: envpool sets the time limit; leave max_episode_steps out")
        return word
    if ":" in word and not _registered(word):
        if max_episode_steps:
            raise RunError(f"{word}: your function sets the time limit; leave max_episode_steps out")
        return import_object(word)
    offscreen()  # before MuJoCo is imported, which loading the task's class does
    spec = ids.find_spec(word)
    more = {"max_episode_steps": max_episode_steps} if max_episode_steps else {}
    drawn = {"render_mode": "rgb_array"} if "rgb_array" in _modes(spec) else {}
    return partial(ids.make, word, **more, **drawn)


def _registered(word: str) -> bool:
    """Return whether module:name is an id in Gymnasium's own spelling, as gymnasium_robotics:FetchReach-v4 is."""
    place, _, name = word.rpartition(":")
    return not place.endswith(".py") and not name.isidentifier()


def has_script(word: str) -> bool:
    """Return whether the environment has a scripted expert."""
    plain = word.removeprefix(SEEN)
    return plain.startswith(META) or plain == PUSHT


def demonstrations(
    word: str,
    n: int,
    seed: int = 0,
    max_episode_steps: int | None = None,
    goal_error: float | None = None,
    action_noise: float | None = None,
) -> Demonstrations:
    """Return ``n`` episodes of the environment's scripted expert.

    ``goal_error``: std of the expert's error of the object and goal positions in metres, drawn per episode (Meta-World
    only; default 0.04). ``action_noise``: std of the noise on its actions, as a fraction of half the action range. Its
    default is 0.2 for Meta-World and 0 for PushT, whose expert keeps only successes.
    """
    plain, pictures = word.removeprefix(SEEN), PICTURE if word.startswith(SEEN) else 0
    if plain.startswith(META):
        flaws = ExpertNoise(0.04 if goal_error is None else goal_error, 0.2 if action_noise is None else action_noise)
        return metaworld_demonstrations(
            plain.removeprefix(META), n, seed, max_episode_steps or META_STEPS, flaws, pictures
        )
    if plain == PUSHT:
        if goal_error:
            raise RunError("PushT's expert reads exact positions, so goal_error has no effect: use action_noise")
        view = "pixels" if pictures else "keypoints"
        return pusht_demonstrations(n, seed, view, max_episode_steps or PUSHT_STEPS, SIZE / 2 * (action_noise or 0.0))
    raise RunError(_unscripted(word))


def record_expert(
    word: str,
    n: int,
    seed: int,
    max_episode_steps: int | None = None,
    num_envs: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    first: int = 0,
    noise: float = 0.0,
) -> EpisodeDataset:
    """Return ``n`` episodes of the environment's expert without its flaws, with all that data formats need.

    Episode i depends on ``seed`` and i alone; the first one is number ``first``. ``noise``: std of the noise on the
    actions of Meta-World's expert, as a fraction of half the action range. The executed actions are recorded.
    ``on_progress(done, won)`` is called with the numbers of finished and of successful episodes.
    """
    plain, pictures = word.removeprefix(SEEN), word.startswith(SEEN)
    if plain.startswith(META):
        decide = batch_expert(metaworld_expert(plain.removeprefix(META)).get_action)
        decide = with_action_noise(decide, 1.0, noise) if noise else decide
        if not pictures:
            return record(
                environment(plain, max_episode_steps), decide, n, seed, num_envs, on_progress=on_progress, first=first
            )
        env = partial(
            PixelObservation, environment(plain, max_episode_steps), PICTURE
        )  # the expert observes all numbers, the recorded observation holds fewer
        found = record(
            env, lambda obs, rng: decide(obs["state"], rng), n, seed, num_envs, on_progress=on_progress, first=first
        )
        felt = {**found.demos.observations, "state": found.demos.observations["state"][:, :HAND]}
        last = {**found.last, "state": found.last["state"][:, :HAND]}
        return replace(found, demos=replace(found.demos, observations=felt), last=last)
    if plain == PUSHT:
        if noise:
            raise RunError("PushT's expert takes no noise: noise is for Meta-World's experts and for policies")
        view = "pixels" if pictures else "keypoints"
        return pusht_record(n, seed, view, max_episode_steps or PUSHT_STEPS, on_progress, first)
    raise RunError(_unscripted(word))


def _unscripted(word: str) -> str:
    return f"{word} has no scripted expert, only {META}TASK and {PUSHT} do: record demonstrations or name a data set"


def _seen(word: str, max_episode_steps: int | None) -> Any:
    """Return the environment with images as observations."""
    if word == PUSHT:
        return partial(PushT, "pixels", max_episode_steps or PUSHT_STEPS, size=PICTURE)
    if word.startswith((POOL, SEEN)):
        raise RunError(f"{SEEN}{word}: images need an environment that MuJoCo simulates in this process")
    return partial(
        PixelObservation,
        environment(word, max_episode_steps),
        PICTURE,
        state=proprioception if word.startswith(META) else None,
    )


def _modes(spec: Any) -> list[str]:
    """Return the render modes of an environment, without making it."""
    try:
        entry = spec.entry_point
        place, _, name = entry.partition(":") if isinstance(entry, str) else ("", "", "")
        cls = getattr(load_module(place), name) if place else entry
        return list(getattr(cls, "metadata", {}).get("render_modes", []))
    except (DenoiseRLError, AttributeError):  # reported when it is made
        return []
