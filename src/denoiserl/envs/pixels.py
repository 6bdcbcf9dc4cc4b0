"""Images as observations, fast enough for training on a CPU.

MuJoCo's shadow map, multisampling and reflections take a software renderer nearly all of its time. ``Camera`` turns
them off: shadows vanish and the sky is black. ``PixelObservation`` adds an image to the observation of any environment
that MuJoCo simulates.
"""

from __future__ import annotations

import atexit
import ctypes.util
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from denoiserl.core.errors import InvalidInputError, RunError, require, unknown_name_message
from denoiserl.envs.backends.answer import restart

OFFSCREEN = {"EGL": "egl", "OSMesa": "osmesa"}
"""shared libraries that render without a screen, and MuJoCo's names of them"""


def offscreen() -> None:
    """Choose a renderer for a machine without a screen. MuJoCo reads the choice once, when it is imported."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and "MUJOCO_GL" not in os.environ:
        found = [name for library, name in OFFSCREEN.items() if ctypes.util.find_library(library)]
        os.environ["MUJOCO_GL"] = found[0] if found else "disabled"


@dataclass(frozen=True)
class View:
    """Pose of a free camera: it looks at ``at`` (metres) from ``distance``, at angles in degrees."""

    at: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


class Camera:
    """A fast offscreen camera on ``sim``, which has MuJoCo's ``model`` and ``data``.

    ``view``: a ``View``, the name of one of the model's cameras, or None for its first camera (a free one if it has
    none).
    """

    def __init__(self, sim: Any, size: int = 256, view: View | str | None = None) -> None:
        mujoco = require("mujoco", "demo")
        self.sim, self.size = sim, size
        model = sim.model
        # read when the renderer is made
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self.eye: Any = _eye(mujoco, model, view)
        try:
            self.renderer = mujoco.Renderer(model, size, size)
        except (mujoco.FatalError, RuntimeError, AttributeError, ImportError) as error:
            raise RunError(
                f"no offscreen renderer ({error}): install libegl1 (or libosmesa6), or set MUJOCO_GL before mujoco is "
                "imported"
            ) from None
        self._free = weakref.finalize(self, self.renderer.close)
        self._free.atexit = False
        atexit.register(self._free)  # runs before EGL shuts down; weakref's own hook would run after
        names = ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE")
        self.off = [int(getattr(mujoco.mjtRndFlag, f"mjRND_{name}")) for name in names]

    def frame(self) -> np.ndarray:
        """Return the current image, [size, size, 3] uint8."""
        self.renderer.update_scene(self.sim.data, camera=self.eye)
        self.renderer.scene.flags[self.off] = 0
        return self.renderer.render()

    def close(self) -> None:
        """Free the graphics context."""
        atexit.unregister(self._free)
        self._free()


def _eye(mujoco: Any, model: Any, view: View | str | None) -> Any:
    """Return the camera in the form that MuJoCo's ``update_scene`` takes."""
    if isinstance(view, View):
        eye = mujoco.MjvCamera()
        eye.lookat[:], eye.distance = view.at, view.distance
        eye.azimuth, eye.elevation = view.azimuth, view.elevation
        return eye
    names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
    if view is None:
        return 0 if names else -1
    if view not in names:
        raise InvalidInputError(unknown_name_message(view, [n for n in names if n], "camera in this model"))
    return names.index(view)


class PixelObservation:
    """An environment whose observations are dicts: ``image`` [size, size, 3] uint8 and ``state``, the numbers.

    ``env``: a Gymnasium id, a factory, or an environment that MuJoCo simulates (Gymnasium's, ``MetaWorld``). ``view``:
    what ``Camera`` takes, by default the environment's own. ``state``: function of the old observation that gives
    ``state`` (None: all of it). For Meta-World's hand without the objects use ``state=hand``.
    """

    def __init__(
        self,
        env: Any,
        size: int = 64,
        view: View | str | None = None,
        state: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        offscreen()
        gymnasium = require("gymnasium", "demo")
        self.env: Any = gymnasium.make(env) if isinstance(env, str) else env() if callable(env) else env
        self.size, self.state = size, state
        self.sim = getattr(self.env, "sim", None) or getattr(self.env, "unwrapped", self.env)
        if not hasattr(self.sim, "model") or not hasattr(self.sim, "data"):
            raise InvalidInputError(f"{type(self.env).__name__} has no MuJoCo model and data, which images need")
        self.view = view or getattr(self.env, "view", None)
        old, spaces = self.env.observation_space, gymnasium.spaces
        kept = old
        if state is not None:
            low, high = (np.asarray(state(np.asarray(v))) for v in (old.low, old.high))
            kept = spaces.Box(low, high, dtype=old.dtype)
        image = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = spaces.Dict({"image": image, "state": kept})
        self.action_space = self.env.action_space
        self.camera: Camera | None = None

    def render_observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """Return the observation with an image of the current scene."""
        if self.camera is None:
            self.camera = Camera(self.sim, self.size, self.view)
        return {"image": self.camera.frame(), "state": observation if self.state is None else self.state(observation)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a new episode."""
        observation, info = restart(self.env, seed=seed, **({} if options is None else {"options": options}))
        return self.render_observation(observation), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Take one step and return Gymnasium's five values."""
        observation, *rest = self.env.step(action)
        return self.render_observation(observation), *rest

    def render(self) -> np.ndarray:
        """Return the current image."""
        if self.camera is None:
            raise RunError("there is no image before the first reset: call reset")
        return self.camera.frame()

    def close(self) -> None:
        """Free the camera and the environment."""
        if self.camera is not None:
            self.camera.close()
            self.camera = None
        self.env.close()
