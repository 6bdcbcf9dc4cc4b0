"""PushT: a disc pushes a T-shaped block onto its goal.

The simulator is gym-pusht (planar, 10 decisions per second, quasi-static). An action is the disc's target position, in
pixels of the 512 x 512 table. Success: the block covers more than 0.95 of the goal.

Needs ``pip install 'denoiserl[robotics]'``; nothing is imported before an environment is made.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from denoiserl.core.errors import InvalidInputError, require, unknown_name_message

SIZE = 512.0
"""side length of the table in pixels"""
COVERAGE = 0.95
VIEWS = {
    "state": "state",
    "keypoints": "environment_state_agent_pos",
    "lerobot": "environment_state_agent_pos",
    "pixels": "pixels_agent_pos",
}

View = Literal["state", "keypoints", "lerobot", "pixels"]


def make_simulator(**kwargs: Any) -> Any:
    """Return gym-pusht's simulator, drawing off screen."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws in memory
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    return require("gym_pusht.envs.pusht", "robotics").PushTEnv(**kwargs)


class PushT:
    """The task as a Gymnasium environment; success ends the episode.

    The names of ``view``: "state" is (disc x, y, block x, y, angle), [5]. "keypoints" is the block's eight corners and
    the disc, [18]; they are continuous where the angle jumps. "lerobot" is the same with the disc first, as LeRobot's
    checkpoints take it. "pixels" is a dict of ``image`` [size, size, 3] uint8 and ``state``, the disc's position [2].

    ``horizon``: steps until truncation. ``dense``: the reward is the coverage, up to 1, in every step; otherwise it is
    1 in the step of success and 0 elsewhere.
    """

    def __init__(self, view: View = "keypoints", horizon: int = 300, dense: bool = False, size: int = 96) -> None:
        if view not in VIEWS:
            raise InvalidInputError(unknown_name_message(view, VIEWS, "view of PushT"))
        spaces = require("gymnasium", "robotics").spaces
        self.view, self.horizon, self.dense = view, horizon, dense
        self.sim = make_simulator(obs_type=VIEWS[view], observation_width=size, observation_height=size)
        self.action_space = self.sim.action_space
        table = spaces.Box(0.0, SIZE, (18,), np.float32)
        if view == "state":
            table = spaces.Box(np.zeros(5, np.float32), np.array([SIZE] * 4 + [2 * np.pi], np.float32))
        if view == "pixels":
            image = spaces.Box(0, 255, (size, size, 3), np.uint8)
            table = spaces.Dict({"image": image, "state": spaces.Box(0.0, SIZE, (2,), np.float32)})
        self.observation_space = table
        self.steps = 0

    def _seen(self, observation: Any) -> Any:
        if self.view == "state":
            return observation.astype(np.float32)
        disc = observation["agent_pos"].astype(np.float32)
        if self.view == "pixels":
            return {"image": observation["pixels"], "state": disc}
        parts = [observation["environment_state"].astype(np.float32), disc]
        return np.concatenate(parts[::-1] if self.view == "lerobot" else parts)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode with new positions of disc and block."""
        observation, info = self.sim.reset(seed=seed)
        self.steps = 0
        return self._seen(observation), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step of a tenth of a second; ``info["success"]`` and ``info["coverage"]``."""
        observation, covered, _, _, info = self.sim.step(np.asarray(action, np.float64))
        self.steps += 1
        success = bool(info["coverage"] > COVERAGE)
        reward = float(covered) if self.dense else float(success)
        info = {**info, "success": success}
        return self._seen(observation), reward, success, self.steps >= self.horizon and not success, info

    def render(self, size: int = 256) -> np.ndarray:
        """Return the table from above, [size, size, 3] uint8."""
        self.sim.visualization_width = self.sim.visualization_height = size
        return np.ascontiguousarray(self.sim.render())

    def close(self) -> None:
        """Free the drawing surface."""
        self.sim.close()
