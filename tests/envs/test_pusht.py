"""PushT as an environment, and its demonstrator."""

from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.envs import Collector
from denoiserl.envs.pusht import PushT
from denoiserl.envs.pusht_expert import CORNERS, Expert, demonstrations

STAY = np.array([40.0, 40.0], np.float32)


def placed(env, x, y, angle):
    """The block there (angle first: it turns about its centre of mass)."""
    env.reset(seed=0)
    env.sim.agent.position = (40.0, 40.0)
    env.sim.block.angle, env.sim.block.position = angle, (x, y)
    return env.step(STAY)


def test_a_seed_is_a_start_state_and_the_views_agree():
    state, keys = PushT("state"), PushT("keypoints")
    first, _ = state.reset(seed=3)
    keys.reset(seed=8)
    corners, _ = keys.reset(seed=3)
    np.testing.assert_array_equal(corners[16:], first[:2])
    c, s = np.cos(first[4]), np.sin(first[4])
    believed = CORNERS @ [[c, s], [-s, c]] + first[2:4]  # the same corners in another order
    apart = np.linalg.norm(corners[:16].reshape(8, 1, 2) - believed, axis=-1)
    assert apart.min(0).max() < 1e-2 and apart.min(1).max() < 1e-2
    assert np.abs(first - state.reset(seed=4)[0]).max() > 1
    state.reset()
    np.testing.assert_array_equal(first, state.reset(seed=3)[0])


def test_success_is_coverage_and_ends_the_episode():
    env, dense = PushT("state"), PushT("state", dense=True)
    x, y, angle = 256.0, 256.0, np.pi / 4
    *_, reward, over, late, info = placed(env, x, y, angle)
    assert (reward, over, late, info["success"]) == (1.0, True, False, True) and info["coverage"] > 0.999
    *_, reward, over, late, info = placed(env, x + 3, y + 3, angle)
    assert (reward, over, info["success"]) == (0.0, False, False)
    # 0.95 of the goal's 6300 square pixels are left by a shift of a bit more than two pixels along the bar
    assert 0.9 < info["coverage"] < 0.95
    *_, reward, over, _, info = placed(dense, x + 30, y, angle)
    assert reward == pytest.approx(info["coverage"] / 0.95) and 0.3 < reward < 0.9 and not over


def test_the_horizon_truncates():
    env = PushT("state", horizon=3)
    env.reset(seed=0)
    assert [env.step(STAY)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_pictures_show_the_disc_where_the_state_says():
    env = PushT("pixels")
    observation, _ = env.reset(seed=1)
    assert observation["image"].shape == (96, 96, 3) and observation["image"].dtype == np.uint8
    blue = np.argwhere((observation["image"][..., 2] > 180) & (observation["image"][..., 0] < 100))
    row, column = blue.mean(0)
    np.testing.assert_allclose(np.array([column, row]) * 512 / 96, observation["state"], atol=12)
    assert env.render(128).shape == (128, 128, 3)
    ep = Collector(partial(PushT, "pixels"), 2).collect(lambda o, r: (torch.full((2, 2, 2), 256.0), None), 2, Rng(0))
    assert ep.obs["image"].shape == (2, 2, 96, 96, 3) and ep.num_executed.tolist() == [[2, 2], [2, 2]]


def test_the_demonstrator_succeeds_and_his_actions_repeat_it():
    demos = demonstrations(2, seed=0)
    told = demos.statistics()
    assert told["success"] == 1.0 and 30 < told["length"] < 300
    assert float(demos.actions.min()) >= 0 and float(demos.actions.max()) <= 512
    env, (observations, actions) = PushT(), demos.episode(0)
    seen, _ = env.reset(seed=0)
    for tick, action in enumerate(actions.numpy()):
        np.testing.assert_array_equal(seen, observations[tick].numpy())
        seen, _, success, late, _ = env.step(action)
    assert success and not late


def test_the_demonstrator_has_more_than_one_way():
    firsts = set()
    for seed in range(4):
        env = PushT()
        env.reset(seed=2)
        expert = Expert(Rng.rows([seed]))
        expert.act(env)
        firsts.add(tuple(np.round(expert.path[-1]).tolist()))
    assert len(firsts) > 1


def test_its_gymnasium_id_is_known():
    ep = Collector("gym_pusht/PushT-v0", 2).collect(lambda o, r: (o[:, :2], None), 2, Rng(0))
    assert ep.num_executed.tolist() == [[1, 1], [1, 1]] and "success" in ep.info
    assert float((ep.next_obs[..., :2] - ep.obs[..., :2]).abs().max()) < 2  # it was told to stay


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInputError, match="Did you mean 'keypoints'"):
        PushT("keypoint")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="at least one"):
        demonstrations(0)
    with pytest.raises(InvalidInputError, match="raise horizon"):
        demonstrations(1, horizon=2)
