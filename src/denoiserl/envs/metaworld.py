"""Meta-World: fifty simulated tasks of a robot arm, with scripted experts and noise that makes experts imperfect.

Observations are 39 numbers (hand, gripper, object, the same one step ago, goal). Actions are 4 (hand displacement of up
to 1 cm, gripper). Environments of a task share one parsed model, so making one takes 10 ms instead of 500 ms.

Needs ``pip install 'denoiserl[demo]'``; nothing is imported before a task is made.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from denoiserl.core.errors import InvalidInputError, MissingExtraError, require, unknown_name_message
from denoiserl.core.progress import iterate
from denoiserl.core.rng import Rng
from denoiserl.core.tree import tree_map
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import to_stored_tensor
from denoiserl.envs.pixels import Camera, PixelObservation, View, offscreen

TABLE = View((0.0, 0.65, 0.12), 1.5, 150.0, -28.0)
"""the table, seen from the right of the arm"""


def _library() -> Any:
    offscreen()
    mujoco = require("mujoco", "demo")
    release = tuple(int(n) for n in mujoco.__version__.split(".")[:2])
    if release >= (3, 17):
        raise MissingExtraError(
            f"Meta-World runs on mujoco below 3.17; {mujoco.__version__} is installed: pip install 'mujoco<3.17'"
        )
    return require("metaworld.env_dict", "demo")


def tasks() -> list[str]:
    """Return the names of all tasks."""
    return sorted(_library().ALL_V3_ENVIRONMENTS)


def _class(task: str) -> Any:
    known = _library().ALL_V3_ENVIRONMENTS
    if task not in known:
        raise InvalidInputError(unknown_name_message(task, known, "Meta-World task"))
    return known[task]


@lru_cache(maxsize=64)
def _sharing(task: str) -> Any:
    """Return the task's class with its model parsed once."""
    cls, mujoco = _class(task), require("mujoco", "demo")
    parsed: list[Any] = []

    class Shared(cls):
        def _initialize_simulation(self) -> Any:
            if not parsed:
                parsed.append(super()._initialize_simulation()[0])
            model = copy.copy(parsed[0])  # tasks move bodies of the model, so every environment has its own
            return model, mujoco.MjData(model)

    Shared.__name__ = cls.__name__
    return Shared


class MetaWorld:
    """One task as a Gymnasium environment with a visible goal.

    ``horizon``: steps until truncation. ``until_success``: success ends the episode. ``dense``: Meta-World's own shaped
    reward, 0 to 10 per step; otherwise the reward is 1 in the step of success and 0 elsewhere.
    """

    def __init__(self, task: str, horizon: int = 100, until_success: bool = True, dense: bool = False) -> None:
        self.task, self.horizon, self.until_success, self.dense = task, horizon, until_success, dense
        sim = _sharing(task)()
        sim._partially_observable = False
        sim.__dict__.pop("sawyer_observation_space", None)
        sim._freeze_rand_vec, sim.seeded_rand_vec, sim._set_task_called = False, True, True
        sim.max_path_length = max(horizon, 500)
        self.sim = sim
        self.observation_space, self.action_space = sim.sawyer_observation_space, sim.action_space
        self.steps = 0
        self.camera: Camera | None = None
        self.view = TABLE

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new episode with new positions of objects and goal."""
        if seed is not None:
            self.sim.seed(seed)
        self.steps = 0
        observation, info = self.sim.reset()
        return observation, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; ``info["success"]``, and ``info["dense"]`` with the shaped reward."""
        observation, dense, _, _, info = self.sim.step(action)
        self.steps += 1
        success = bool(info["success"])
        reward = float(dense) if self.dense else float(success)
        info = {**info, "success": success, "dense": float(dense)}
        over = success and self.until_success
        return observation, reward, over, self.steps >= self.horizon and not over, info

    def render(self, size: int = 256) -> np.ndarray:
        """Return the scene as an image [size, size, 3] uint8."""
        if self.camera is None or self.camera.size != size:
            self.camera = Camera(self.sim, size, self.view)
        return self.camera.frame()

    def close(self) -> None:
        """Free the camera and the simulation."""
        if self.camera is not None:
            self.camera.close()
            self.camera = None


@dataclass(frozen=True)
class ExpertNoise:
    """Errors of a scripted expert.

    ``goal_error``: std of the expert's error of the object and goal positions in metres (half of it vertically), drawn
    per episode, as from a badly calibrated camera. ``action_noise``: std of the noise added to its command before the
    arm moves; the command is recorded, not the executed action.
    """

    goal_error: float = 0.0
    action_noise: float = 0.0


HAND, OBJECT, GOAL = 4, slice(4, 7), slice(36, 39)


def proprioception(observation: np.ndarray) -> np.ndarray:
    """Return the proprioceptive part of an observation: hand position and gripper opening, 4 of the 39 numbers."""
    return observation[:HAND]


def expert(task: str) -> Any:
    """Return Meta-World's scripted policy of a task: ``expert(task).get_action(observation)``."""
    _class(task)
    return require("metaworld.policies", "demo").ENV_POLICY_MAP[task]()


def demonstrations(
    task: str,
    n: int,
    seed: int = 0,
    horizon: int = 100,
    flaws: ExpertNoise = ExpertNoise(),
    pictures: int = 0,
) -> Demonstrations:
    """Return ``n`` episodes of the scripted expert with ``flaws``, failures included; they end at success or the
    horizon.

    ``pictures``: size of images to record, beside the hand's state, in place of all numbers (0: none).
    """
    env, policy = MetaWorld(task, horizon), expert(task)
    eye = PixelObservation(env, pictures, state=proprioception) if pictures else None
    look = np.asarray if eye is None else eye.render_observation
    episodes, success = [], []
    for i in iterate(range(n), "record demonstrations"):
        rng = Rng.rows([seed * 1_000_003 + i])
        believed = (flaws.goal_error * rng.normal(1, 2, 3)[0] * torch.tensor([1.0, 1.0, 0.5])).numpy()
        slips = (flaws.action_noise * rng.normal(1, horizon, 4)[0]).numpy()
        observation, _ = env.reset(seed=(seed * 1_000_003 + i) % 2**31)
        seen, done, won = [], [], False
        for step in range(horizon):
            view = observation.copy()
            view[OBJECT] += believed[0]
            view[GOAL] += believed[1]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # actions out of range, which are clipped here
                command = np.clip(policy.get_action(view), -1, 1)
            seen.append(look(observation))
            done.append(command)
            observation, _, terminated, truncated, info = env.step(
                np.clip(command + slips[step], -1, 1).astype(np.float32)
            )
            won = won or info["success"]
            if terminated or truncated:
                break
        stacked = tree_map(lambda *v: to_stored_tensor(np.stack(v)), seen[0], *seen[1:])
        episodes.append((stacked, to_stored_tensor(np.stack(done))))
        success.append(won)
    (eye or env).close()
    return Demonstrations.of(episodes, success, [float(s) for s in success], task)
