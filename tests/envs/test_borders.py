"""Where copies start afresh: after whole episodes, wherever saves fall."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")
sys.path.insert(0, str(Path(__file__).parent))

from denoiserl.control.best_of_n import LatentActionEnv  # noqa: E402
from denoiserl.core.rng import Rng  # noqa: E402
from denoiserl.envs import Collector  # noqa: E402
from denoiserl.train import Run  # noqa: E402


class Clock(gymnasium.Env):
    """Shows the tick of its episode, which ends after ``length`` ticks (0: never)."""

    observation_space = gymnasium.spaces.Box(0, 1e6, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.tick = 0
        return self._seen(), {}

    def step(self, action):
        self.tick += 1
        return self._seen(), 0.0, False, self.tick == self.length, {}

    def _seen(self):
        return self.observation_space.low + self.tick


def act(obs, rng):
    return rng.uniform(len(obs), 10, 1), None


def played(keep: Run, length: int, iters: int, steps: int = 11, leave: int | None = None):
    """The ticks at which decisions were taken, [iteration][decision], and how many episodes ended."""
    env, rng, told, ended = Collector(partial(Clock, length), 2, 3), Rng(0), [], 0
    for it in keep.loop(iters, rng=rng, env=env):
        ep = env.collect(act, steps, rng)
        told.append((it, ep.obs[:, 0, 0].tolist(), float(ep.action.sum())))
        ended += int(ep.done.sum())
        if it == leave:
            break
    return told, ended


def test_whole_episodes_of_a_thousand_ticks_are_seen(tmp_path: Path) -> None:
    """The defaults of PPO, 22 decisions in 40 iterations: saves must not cut the episodes."""
    told, ended = played(Run(tmp_path), 1000, 40, 22)
    ticks = [t for _, row, _ in told for t in row]
    assert ended == 16 and max(ticks) == 990
    assert ticks[:400] == [10.0 * (i % 100) for i in range(400)]


@pytest.mark.parametrize("leave", [3, 22, 39])
def test_a_run_in_an_environment_goes_on_bit_for_bit(tmp_path: Path, leave: int) -> None:
    whole, _ = played(Run(every=3), 30, 40)
    played(Run(tmp_path, every=3), 30, 40, leave=leave)
    rest, _ = played(Run(tmp_path, every=3), 30, 40)
    assert rest == whole[rest[0][0] :] and leave - rest[0][0] < 10


@pytest.mark.parametrize(("length", "ticks"), [(10, 500), (300, 1200), (0, 20_000)])
def test_environments_start_afresh_after_episodes_of_every_copy_or_many_ticks(length: int, ticks: int) -> None:
    stream, spent = Collector(partial(Clock, length), 2, 0), 0
    latent = LatentActionEnv(stream, lambda obs, z: z)
    stream.on_checkpoint(0)
    assert stream.may_restart() and latent.may_restart(), "nothing was played"
    while not spent or not stream.may_restart():
        chunk = min(length or 100, 100)
        spent += int(
            stream.collect(lambda obs, rng, n=chunk: (torch.zeros(2, n, 1), None), 1, Rng(0)).num_executed[0, 0]
        )
    assert spent == ticks and latent.may_restart()


def test_a_run_in_which_no_episode_ends_says_so_once() -> None:
    with pytest.warns(UserWarning, match="no episode has ended in 880 steps") as said:
        played(Run(), 1000, 8)
    assert len(said) == 1
    with pytest.warns(UserWarning, match="no episode has ended") as said:
        played(Run(restart=1), 1000, 40)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        played(Run(), 1000, 10)
        played(Run(), 50, 10)


def test_episodes_of_one_long_rollout_are_all_counted() -> None:
    stream = Collector(partial(Clock, 4), 2, 0)
    stream.collect(lambda obs, rng: rng.uniform(len(obs), 1), 510, Rng(0))
    assert stream.may_restart(), "127 episodes and 510 ticks of either copy"


def test_a_copy_without_episodes_holds_the_others_back() -> None:
    lengths = iter([4, 4, 0])  # of the probe, and of two copies of which one never ends

    stream = Collector(lambda: Clock(next(lengths)), 2, 0)
    stream.collect(lambda obs, rng: rng.uniform(len(obs), 1), 600, Rng(0))
    assert not stream.may_restart()
