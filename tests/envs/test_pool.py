"""envpool against Gymnasium: the same dynamics, and a stream that keeps the same promises."""

import numpy as np
import pytest
import torch

pytest.importorskip("envpool")
pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

import gymnasium

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.envs import Collector, evaluate
from denoiserl.envs.backends.envpool import EnvPool

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")


def test_from_equal_states_the_ticks_are_gymnasiums():
    """To rounding until the hopper lands; contact is solved by another release of MuJoCo, and differs a little."""
    pool, env = EnvPool("Hopper-v5", 3), gymnasium.make("Hopper-v5").unwrapped
    seen, _ = pool.reset(seed=[4, 5, 6])
    actions = Rng(0).normal(10, 3, 3).clamp(-1, 1).numpy()
    told = [pool.step(a) for a in actions]
    for copy in range(3):
        env.reset(seed=0)
        env.set_state(np.concatenate([[0.0], seen[copy, :5]]), seen[copy, 5:])  # where it is along x changes nothing
        for tick, action in enumerate(actions[:, copy]):
            observation, reward, terminated, _, _ = env.step(action)
            flies = tick < 6
            np.testing.assert_allclose(told[tick][0][copy], observation, atol=1e-9 if flies else 0.2)
            assert told[tick][1][copy] == pytest.approx(reward, abs=1e-6 if flies else 0.05)
            assert told[tick][2][copy] == terminated == False  # noqa: E712


def test_a_start_depends_on_its_seed_alone():
    a, b = EnvPool("Hopper-v5", 3), EnvPool("Hopper-v5", 2)
    first = a.reset(seed=[5, 6, 7])[0]
    np.testing.assert_array_equal(first[[2, 0]], b.reset(seed=[7, 5])[0])
    a.step(np.ones((3, 3)), np.array([True, False, True]))
    np.testing.assert_array_equal(a.observation[1], first[1])  # it stood by
    np.testing.assert_array_equal(a.reset(seed=[5, 6, 7])[0], first)


def test_chunks_stop_where_episodes_end_and_no_step_is_lost():
    def fall(obs, rng):
        return rng.normal(len(obs), 4, 3), None

    stream = Collector("envpool:Hopper-v5", 8, seed=0)
    ep = stream.collect(fall, 40, Rng(0))
    stream.close()
    assert bool(ep.valid.all()) and 10 < int(ep.done.sum()) and bool((ep.num_executed[~ep.done] == 4).all())
    assert bool((ep.num_executed[ep.done] < 4).any())
    begins = ep.obs[1:][ep.done[:-1]]  # upright, and nearly at rest
    assert float(begins[:, 0].min()) > 1.2 and float(begins[:, 5:].abs().max()) < 0.01
    assert torch.equal(ep.next_obs[:-1][~ep.done[:-1]], ep.obs[1:][~ep.done[:-1]])
    fallen = ep.next_obs[ep.terminated]
    assert bool(((fallen[:, 0] < 0.7 + 1e-3) | (fallen[:, 1].abs() > 0.2 - 1e-3) | (fallen.abs() > 99).any(-1)).all())


def test_time_limits_truncate_and_evaluation_plays_one_episode_a_seed():
    told = evaluate(lambda o, r: torch.zeros(len(o), 1), "envpool:Pendulum-v1", 5, num_envs=3)
    assert told.lengths.tolist() == [200] * 5 and bool(told.finished.all()) and told.success is None
    again = evaluate(lambda o, r: torch.zeros(len(o), 1), "envpool:Pendulum-v1", 5, num_envs=5)
    assert torch.equal(told.returns, again.returns)
    ep = Collector("envpool:Pendulum-v1", 1).collect(lambda o, r: (torch.zeros(1, 50, 1), None), 5, Rng(0))
    assert ep.done[:, 0].tolist() == [False, False, False, True, False] and not bool(ep.terminated.any())


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInputError, match="Did you mean 'Hopper"):
        EnvPool("Hoper-v5", 1)
    with pytest.raises(InvalidInputError, match="have no timeout"):
        Collector("envpool:Hopper-v5", 2, processes=2, timeout=3)
