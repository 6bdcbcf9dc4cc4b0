"""Pictures beside the numbers: they show what the numbers say, and change nothing else."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

import gymnasium

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.envs import Collector, evaluate
from denoiserl.envs.pixels import Camera, PixelObservation, View

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:metaworld", "ignore::UserWarning:gymnasium")


@pytest.fixture(scope="module", autouse=True)
def renderer():
    try:
        PixelObservation("Hopper-v5", 16).reset(seed=0)
    except RunError as error:
        pytest.skip(f"no offscreen renderer here: {error}")


def test_the_numbers_are_those_of_the_environment_itself():
    plain, seen = gymnasium.make("Hopper-v5"), PixelObservation("Hopper-v5", 32)
    a, b = plain.reset(seed=3)[0], seen.reset(seed=3)[0]
    for _ in range(5):
        np.testing.assert_array_equal(a, b["state"])
        (a, r, *_), (b, s, *_) = (env.step(np.ones(3, np.float32)) for env in (plain, seen))
        assert r == s
    assert b["image"].shape == (32, 32, 3) and seen.observation_space.contains({**b, "state": b["state"]})
    seen.close()


def test_pictures_are_of_this_moment():
    """A pole that leans left is seen left of one that leans right: in the pictures as in the state."""
    env = PixelObservation("InvertedPendulum-v5", 64)
    env.reset(seed=0)
    middle = []
    for angle in (-0.3, 0.3):
        env.sim.set_state(np.array([0.0, angle]), np.zeros(2))
        image = env.render_observation(np.zeros(4))["image"].astype(float)
        tip = image[:24] - np.median(image[:24], axis=(0, 1))  # the pole's upper part, against what is around it
        weight = np.abs(tip).sum(-1)
        middle.append(float((weight * np.arange(64)).sum() / weight.sum()))
    assert abs(middle[0] - middle[1]) > 3
    env.close()


def test_only_what_is_wanted_of_the_state_is_kept():
    env = PixelObservation("Hopper-v5", 16, state=first)
    observation, _ = env.reset(seed=0)
    assert observation["state"].shape == env.observation_space["state"].shape == (2,)
    env.close()


def first(observation):
    return observation[:2]


def test_pictures_stream_as_bytes():
    stream = Collector(partial(PixelObservation, "Hopper-v5", 16), 2, seed=0)
    ep = stream.collect(lambda o, r: (r.normal(2, 3), None), 3, Rng(0))
    image = ep.obs["image"]
    assert image.shape == (3, 2, 16, 16, 3) and str(image.dtype) == "torch.uint8"
    assert int((image[0] != image[2]).sum()) > 0 and ep.next_obs["image"][0].equal(image[1])
    stream.close()


def test_meta_world_is_seen_too():
    metaworld = pytest.importorskip("denoiserl.envs.metaworld")
    pytest.importorskip("metaworld")
    make = partial(PixelObservation, partial(metaworld.MetaWorld, "button-press-topdown-v3", 4), 48)
    told = evaluate(lambda o, r: r.normal(len(o["state"]), 4), make, 2, num_envs=2)
    assert told.lengths.tolist() == [4, 4]
    env = make()
    before = env.reset(seed=0)[0]["image"]
    for _ in range(3):
        after = env.step(np.array([1, 1, 0, 0], np.float32))[0]["image"]
    assert 0.002 < (np.abs(after.astype(int) - before).max(-1) > 30).mean() < 0.6
    env.close()


def test_cameras_by_name():
    env = gymnasium.make("Hopper-v5").unwrapped
    env.reset(seed=0)
    named, first_, free = (Camera(env, 32, v) for v in ("track", None, View((0, 0, 1), 4.0, 90.0, -20.0)))
    np.testing.assert_array_equal(named.frame(), first_.frame())
    assert (named.frame() != free.frame()).mean() > 0.01
    with pytest.raises(InvalidInputError, match="Did you mean 'track'"):
        Camera(env, 32, "trak")
    with pytest.raises(InvalidInputError, match="no MuJoCo model"):
        PixelObservation("CartPole-v1")
