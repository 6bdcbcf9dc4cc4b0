"""Films of episodes: whoever cannot draw is told so and judged all the same."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy
import pytest
import torch
from PIL import Image

from denoiserl.core.errors import RunError
from denoiserl.envs import evaluate, record_video
from denoiserl.report.episode_video import episode_video

pytestmark = pytest.mark.filterwarnings("ignore::denoiserl.envs.remarks.Remark")  # these worlds have one start


class Blinking(gymnasium.Env):
    """Five ticks, of which episode k of the seed wins when its seed is even; ``broken`` ones crash when they draw."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.tick, self.won = broken, 0, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[numpy.ndarray, dict]:
        super().reset(seed=seed)
        self.tick, self.won = 0, bool(self.np_random.integers(2))
        return numpy.zeros(1, numpy.float32), {}

    def step(self, action: Any) -> tuple[numpy.ndarray, float, bool, bool, dict]:
        self.tick += 1
        over = self.tick == 5
        return numpy.zeros(1, numpy.float32), 1.0, over, False, {"success": over and self.won}

    def render(self) -> numpy.ndarray:
        if self.broken:
            raise OSError("no screen")
        return numpy.full((64, 64, 3), 40 * self.tick, numpy.uint8)


def still(obs: Any, rng: Any) -> torch.Tensor:
    return torch.zeros(len(obs), 1, 1)


def test_whoever_cannot_draw_is_refused_with_its_own_words_and_is_judged_all_the_same() -> None:
    broken = lambda: Blinking(broken=True)  # noqa: E731
    with pytest.raises(RunError, match="Blinking cannot render"):
        record_video(still, broken, 2)
    told = episode_video(still, broken, 2, 0)
    assert list(told) == ["episodes.txt"] and "no screen" in str(told["episodes.txt"])
    assert evaluate(still, broken, 3).returns.tolist() == [5.0, 5.0, 5.0]


def test_of_many_episodes_the_first_failures_and_successes_are_shown() -> None:
    won = record_video(still, Blinking, 12, 3)[1]
    assert any(won) and not all(won)
    few, many = (episode_video(still, Blinking, n, 3)["episodes.gif"] for n in (3, 12))
    assert isinstance(few, bytes) and isinstance(many, bytes)
    sizes = [Image.open(io.BytesIO(encode_video)).size for encode_video in (few, many)]
    shown = min(4, won.count(False)) + min(4, won.count(True))  # four in a row
    assert shown > 4 and sizes[1][1] > 1.9 * sizes[0][1] and sizes[1][0] > 1.3 * sizes[0][0]


def test_mujoco_draws_on_a_machine_without_a_screen() -> None:
    code = (
        "from denoiserl.envs.by_name import environment\n"
        "from denoiserl.report.episode_video import episode_video as episodes\n"
        "import torch\n"
        "act = lambda obs, rng: torch.zeros(len(obs), 1, 3)\n"
        "print(list(episodes(act, environment('Hopper-v5', 6), 1, 0, 64)))\n"
    )
    bare = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL")}
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "episodes" in done.stdout
