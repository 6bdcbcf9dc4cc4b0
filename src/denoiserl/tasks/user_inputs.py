"""Load what a user gives to an experiment: a data set, and a policy to continue from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from denoiserl.control.acting import remove_controller
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.tree import tree_map
from denoiserl.data.formats import foreign
from denoiserl.data.formats.any import read
from denoiserl.data.ranges import compare
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs.units import single_observation_space
from denoiserl.nn.vision import BYTES
from denoiserl.policy.policy import Policy
from denoiserl.processes import ddim, with_min_std
from denoiserl.tasks.policies import probe_env, require_flat_actions
from denoiserl.train.saved_state import find_saved_policy


def load_recording(
    path: str,
    env: Any,
    out_of_bounds_actions: Literal["error", "clip"] = "error",
    exclude_episodes: str = "",
    obs_keys: str = "",
) -> EpisodeDataset:
    """Load episodes that were recorded in ``env`` (anything that ``Collector`` accepts).

    Exclude the episodes ``exclude_episodes`` ("0-2,5") and keep only the observations ``obs_keys`` ("a,b"). Raise
    RunError for data of another environment, and an error for actions outside its bounds, unless
    ``out_of_bounds_actions="clip"``. Warn of actions that use less than a tenth of the bounds, and of observations
    outside finite bounds or within a tenth of them.
    """
    keep, found = [p.strip() for p in obs_keys.split(",") if p.strip()] or None, probe_env(env)
    require_flat_actions(found)
    data = read(path, out_of_bounds_actions=out_of_bounds_actions, obs_keys=keep, exclude_episodes=exclude_episodes)
    shape = tree_map(lambda v: tuple(v.shape[1:]), data.demos.observations)
    expected = found.spec.obs if isinstance(found.spec.obs, dict) else tuple(found.spec.obs)
    action_dim = data.demos.actions.shape[-1]
    if shape != expected or action_dim != found.action_dim:
        remedy = "name the environment that the data were recorded in"
        if isinstance(shape, dict) or isinstance(expected, dict):
            remedy += (
                ", or make both one tensor: --obs-keys NAME keeps one part of the data, and "
                "gymnasium.wrappers.FilterObservation and FlattenObservation do it for the environment"
            )
        raise RunError(
            f"{path} has observations {shape} and {action_dim} action dimensions, {found.name} has observations "
            f"{expected} and {found.action_dim}: {remedy}"
        )
    box = f"the box of {found.name}"
    if found.spec.choices is None:
        low, high = (torch.as_tensor(v, dtype=torch.float32).flatten() for v in (found.spec.low, found.spec.high))
        if out_of_bounds_actions == "clip":
            data = replace(data, demos=replace(data.demos, actions=data.demos.actions.clamp(low, high)))
        compare(data.demos.actions, low, high, f"the actions of {path}", f"{box} of actions", refuse=True)
    for where, rows, low, high in bounds(data.demos.observations, single_observation_space(found.owner)):
        compare(rows, low, high, f"the observations{where} of {path}", f"{box} of observations", constant=False)
    return data


def bounds(tree: Any, space: Any, where: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (name, rows [N, d], low, high) of bounded observations; of an image the largest value counts."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            spaces = getattr(space, "spaces", None)
            if isinstance(spaces, dict) and name in spaces:
                yield from bounds(value, spaces[name], f"{where}/{name}")
    elif getattr(space, "low", None) is not None:
        low, high = (torch.as_tensor(np.asarray(v, np.float32)).flatten() for v in (space.low, space.high))
        if tree.ndim > 2:
            if tree.dtype == torch.uint8 and float(high.max()) <= 1:
                raise InvalidInputError(
                    f"the environment's images{where} are from 0 to 1, and the data hold bytes: {BYTES}"
                )
            yield where, tree.flatten(1).amax(1, keepdim=True).float(), low.min(), high.max()
        else:
            yield where, tree.float().reshape(len(tree), -1), low, high


def load_policy(word: str, device: torch.device, denoise: int = 5, floor: float = 0.1) -> Policy:
    """Load the policy at ``word``: the best one of a run, a saved policy, or a LeRobot checkpoint.

    A LeRobot policy is trained with ``denoise`` posterior steps of minimum std ``floor``. A saved controller is removed
    with a warning, because the policy itself is trained.
    """
    path = Path(word)
    if (path / "config.json").is_file():
        from denoiserl.integrations.lerobot.policy import diffusion_policy

        return diffusion_policy(path, denoise, with_min_std(ddim(1.0), floor)).to(device)
    if (path / "run.json").is_file():
        try:
            path = find_saved_policy(path, "best")
        except RunError:  # the recipe selects no best policy
            path = find_saved_policy(path, "last")
    if (other := foreign.policy(path)) is not None:
        raise RunError(f"{word} is {other}")
    policy = Policy.load(path, None, device)
    remove_controller(policy, word)
    return policy
