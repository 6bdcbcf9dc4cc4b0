"""Meta-World as an environment: seeds, limits, experts and their flaws."""

import numpy as np
import pytest

pytest.importorskip("metaworld")

from denoiserl.core.errors import InvalidInputError
from denoiserl.envs import metaworld
from denoiserl.envs.metaworld import ExpertNoise, MetaWorld, demonstrations

TASK = "button-press-topdown-v3"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:metaworld", "ignore::UserWarning:gymnasium")


def test_a_seed_is_a_start_state_whatever_came_before():
    env, other = MetaWorld(TASK), MetaWorld(TASK)
    first, _ = env.reset(seed=5)
    for _ in range(7):
        env.step(np.ones(4, np.float32))
    env.reset()
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, other.reset(seed=5)[0])
    assert np.abs(first - other.reset(seed=6)[0]).max() > 1e-3
    env.step(np.ones(4, np.float32))  # copies share a parsed model and nothing else
    np.testing.assert_array_equal(other.reset(seed=5)[0], first)


def test_the_goal_is_seen_and_the_limit_truncates():
    env = MetaWorld("reach-v3", horizon=3)
    observation, _ = env.reset(seed=0)
    assert np.abs(observation[36:39]).sum() > 0.1
    for tick in range(3):
        observation, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
        assert (terminated, truncated, reward) == (False, tick == 2, 0.0) and 0 < info["dense"] < 10


def test_the_expert_succeeds_and_success_ends_the_episode():
    demos = demonstrations(TASK, 3, seed=0)
    told = demos.statistics()
    assert told["success"] == 1.0 and 40 < told["length"] < 90
    assert demos.observations.shape[1:] == (39,) and float(demos.actions.abs().max()) <= 1.0
    again = demonstrations(TASK, 3, seed=0)
    assert bool((again.actions == demos.actions).all())


def test_bad_aim_fails():
    assert demonstrations(TASK, 4, seed=0, flaws=ExpertNoise(goal_error=0.3)).statistics()["success"] < 1.0


def test_unknown_tasks_are_refused_by_name():
    with pytest.raises(InvalidInputError, match="Did you mean 'button-press-topdown-v3'"):
        MetaWorld("button-press-topdwn-v3")
    assert len(metaworld.tasks()) == 50


def test_the_camera_sees_the_arm_move():
    env = MetaWorld(TASK)
    env.reset(seed=0)
    try:
        before = env.render(96)
    except Exception as error:
        pytest.skip(f"no offscreen renderer here: {error}")
    for _ in range(10):
        env.step(np.array([1, 1, 0, 0], np.float32))
    after = env.render(96)
    env.close()
    assert before.shape == (96, 96, 3) and before.dtype == np.uint8
    assert 0.005 < (np.abs(after.astype(int) - before).max(-1) > 30).mean() < 0.6
