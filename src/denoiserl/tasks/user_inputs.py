"""What a user gives to an experiment: a recording of his own, and a policy to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from denoiserl.control.acting import alone
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.tree import tree_map
from denoiserl.data.formats import foreign
from denoiserl.data.formats.any import read
from denoiserl.data.ranges import compare
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs.units import shown
from denoiserl.nn.vision import BYTES
from denoiserl.policy.policy import Policy
from denoiserl.processes import ddim, with_min_std
from denoiserl.tasks.policies import probe_env, require_flat_actions
from denoiserl.train.run_state import find_saved_policy


def load_recording(
    path: str,
    env: Any,
    out_of_bounds_actions: Literal["error", "clip"] = "error",
    exclude_episodes: str = "",
    obs_keys: str = "",
) -> EpisodeDataset:
    """Return what a user recorded in ``env`` (what ``Collector`` takes).

    Left out are the episodes ``exclude_episodes`` ("0-2,5") and all observations but ``obs_keys`` ("a,b").

    Refused: data of another environment, and actions beyond its box, which ``out_of_bounds_actions="clip"`` clips.
    Warned of: actions that use less than a tenth of the box, and observations beyond bounds that are finite or within a
    tenth of them.
    """
    keep, found = [p.strip() for p in obs_keys.split(",") if p.strip()] or None, probe_env(env)
    require_flat_actions(found)
    data = read(path, out_of_bounds_actions=out_of_bounds_actions, obs_keys=keep, exclude_episodes=exclude_episodes)
    shape = tree_map(lambda v: tuple(v.shape[1:]), data.demos.observations)
    seen = found.spec.obs if isinstance(found.spec.obs, dict) else tuple(found.spec.obs)
    done = data.demos.actions.shape[-1]
    if shape != seen or done != found.action_dim:
        cure = "name the environment that it was recorded in"
        if isinstance(shape, dict) or isinstance(seen, dict):
            cure += (
                ", or make both one tensor: --obs-keys NAME keeps one observation of the data, and "
                "gymnasium.wrappers.FilterObservation and FlattenObservation do it for the environment"
            )
        raise RunError(
            f"{path} observes {shape} and acts in {done} numbers, {found.name} observes {seen} and takes "
            f"{found.action_dim}: {cure}"
        )
    box = f"the box of {found.name}"
    if found.spec.choices is None:
        low, high = (torch.as_tensor(v, dtype=torch.float32).flatten() for v in (found.spec.low, found.spec.high))
        if out_of_bounds_actions == "clip":
            data = replace(data, demos=replace(data.demos, actions=data.demos.actions.clamp(low, high)))
        compare(data.demos.actions, low, high, f"the actions of {path}", f"{box} of actions", refuse=True)
    for where, rows, low, high in bounds(data.demos.observations, shown(found.owner)):
        compare(rows, low, high, f"the observations{where} of {path}", f"{box} of observations", constant=False)
    return data


def bounds(tree: Any, space: Any, where: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (name, rows [N, d], low, high) of observations whose space has bounds; a picture is one number a pixel."""
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
                    f"the environment shows pictures{where} from 0 to 1, and the data hold bytes: {BYTES}"
                )
            yield where, tree.flatten(1).amax(1, keepdim=True).float(), low.min(), high.max()
        else:
            yield where, tree.float().reshape(len(tree), -1), low, high


def load_policy(word: str, device: torch.device, denoise: int = 5, floor: float = 0.1) -> Policy:
    """The policy at ``word``: the best of a run, a saved one, or LeRobot's, which learns under a floored posterior of
    ``denoise`` steps.

    A control that it is served through is left out, with a warning: what learns here is the policy.
    """
    path = Path(word)
    if (path / "config.json").is_file():
        from denoiserl.integrations.lerobot.policy import diffusion_policy

        return diffusion_policy(path, denoise, with_min_std(ddim(1.0), floor)).to(device)
    if (path / "run.json").is_file():
        try:
            path = find_saved_policy(path, "best")
        except RunError:  # a recipe that selects nothing
            path = find_saved_policy(path, "last")
    if (other := foreign.policy(path)) is not None:
        raise RunError(f"{word} is {other}")
    policy = Policy.load(path, None, device)
    alone(policy, word)
    return policy
