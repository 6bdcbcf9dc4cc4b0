"""``policy.act`` takes what an environment gives, one observation or a batch, and answers in kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from denoiserl import Diffusion, GaussianDenoiser, InvalidInputError, Policy, Rng, time_grid
from denoiserl.control.acting import eval_actor
from denoiserl.data import ActionChunkCodec, Normalizer, TanhCodec
from denoiserl.envs import evaluate
from denoiserl.integrations.lerobot.policy import LeRobotCodec
from denoiserl.nn import MLP
from denoiserl.processes import ddim, linear


def robot(codec: Any = None, dim: int = 1) -> Policy:
    torch.manual_seed(0)
    process = Diffusion(linear, ddim(1.0), clip=1.0)
    denoiser = GaussianDenoiser(MLP((4, dim), 3, width=16), linear, "v")
    return Policy.of(process, denoiser, (4, dim), process.steps(time_grid(3)), codec=codec)


def test_five_lines_load_a_policy_and_score_what_evaluate_says(tmp_path: Path) -> None:
    robot(TanhCodec.from_box([-2.0], [2.0])).with_execution_horizon(3).save(tmp_path / "saved")
    policy, env = Policy.load(tmp_path / "saved"), gymnasium.make("Pendulum-v1", max_episode_steps=50)
    told = evaluate(eval_actor(policy), lambda: gymnasium.make("Pendulum-v1", max_episode_steps=50), 2, num_envs=1)
    for seed, expected in zip(told.seeds, told.returns.tolist(), strict=True):
        (obs, _), rng, score, over = env.reset(seed=seed), Rng.rows([seed]), 0.0, False
        while not over:
            for action in policy.act(obs, rng):  # 3 actions, of which the last ones are cut by the end
                obs, reward, terminated, truncated, _ = env.step(action)
                score, over = score + float(reward), over or terminated or truncated
                if over:
                    break
        assert score == pytest.approx(expected, rel=1e-6)


def test_one_in_one_out_and_the_kind_of_array_stays() -> None:
    policy, obs = robot(), np.array([[0.1, 0.2, 0.3], [1.0, -1.0, 0.5]])  # float64, as Gymnasium often has it
    batch = policy.act(obs, 7)
    assert isinstance(batch, np.ndarray) and batch.shape == (2, 4, 1) and batch.dtype == np.float32
    assert torch.equal(policy.act(torch.from_numpy(obs), 7), torch.from_numpy(batch))
    assert np.array_equal(policy.act(obs.tolist(), 7), batch) and np.array_equal(policy.act(list(obs), 7), batch)
    one = policy.act(obs[0], 7)
    assert isinstance(one, np.ndarray) and one.shape == (4, 1)
    assert np.array_equal(one, policy.act(obs[:1], 7)[0])
    assert torch.equal(policy.act(torch.tensor(obs[0]), 7), policy.generate(obs[:1], 7)[0])
    assert policy.with_execution_horizon(2).act(obs[0], 7).shape == (2, 1)


def test_a_dict_is_one_observation_where_its_state_is_one() -> None:
    codec = ActionChunkCodec(Normalizer.identity(2), Normalizer.identity(1))
    process = Diffusion(linear, ddim(1.0), clip=1.0)

    class Looks(torch.nn.Module):
        def forward(self, x: Any, clock: Any, context: Any) -> Any:
            assert context["image"].dtype == torch.uint8 and context["image"].shape[1:] == (3, 2, 2)
            return x + context["state"].sum(-1)[:, None, None]

    policy = Policy.of(
        process, GaussianDenoiser(Looks(), linear, "x0"), (4, 1), process.steps(time_grid(2)), None, codec
    )
    one = {"image": np.zeros((3, 2, 2), np.uint8), "state": np.array([0.5, 0.25])}
    assert policy.act(one, 0).shape == (4, 1)
    assert policy.act({k: np.stack([v, v]) for k, v in one.items()}, 0).shape == (2, 4, 1)


def test_a_policy_with_a_history_knows_one_observation_by_its_frames() -> None:
    two = LeRobotCodec(Normalizer.identity(3), Normalizer.identity(1), {"observation.state": 3}, 2, 4)
    one = LeRobotCodec(Normalizer.identity(3), Normalizer.identity(1), {"observation.state": 3}, 1, 4)
    shapes = {(6,): False, (2, 3): False, (5, 6): True, (5, 2, 3): True}
    assert {shape: two.is_batch(torch.zeros(shape)) for shape in shapes} == shapes
    assert two.is_batch({"observation.state": torch.zeros(2, 3)}) is False
    assert not one.is_batch(torch.zeros(3)) and one.is_batch(torch.zeros(2, 3))


def test_an_int_repeats_the_noise_an_rng_goes_on_and_none_cannot_be_repeated() -> None:
    policy, obs, rng = robot(), np.zeros(3), Rng(3)
    first, second = policy.act(obs, rng), policy.act(obs, rng)
    assert np.array_equal(policy.act(obs, 3), first) and np.array_equal(policy.act(obs, 3), first)
    assert not np.array_equal(first, second)
    torch.manual_seed(0)
    free = policy.act(obs)
    torch.manual_seed(0)
    assert not np.array_equal(policy.act(obs), free)


VECTOR = np.array([0.1, 0.2, 0.3])


class Lazy:
    """An array of another library."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(VECTOR, dtype)


@pytest.mark.parametrize(
    ("obs", "says"),
    [
        (None, r"not None: give a tensor, .* the first that env\.reset"),
        ("left", "not a str: give a tensor"),
        ([[1.0, 2.0], [3.0]], "numbers of one shape, not a list"),
        (np.array([1.0, None, 2.0], object), "an array of object"),
        (np.ma.masked_array(VECTOR, np.array([False, True, False])), "a masked array"),
        (np.zeros((2, 2, 3)), r"give a batch to generate\(obs, rng\)"),
        ({"camera": VECTOR}, "no array 'state' among the parts 'camera': give one part's array alone"),
        ({"state": VECTOR}, r"as one array \[B, 3\], not a dict with 'state': give the array of one part"),
        ({"state": np.zeros((2, 3)), "image": np.zeros((3, 1))}, "different numbers of rows"),
        ({}, "is empty"),
        (1.0, "a single number"),
        ([], r"needs a condition of 3 numbers per row"),
        (VECTOR * 1e300, "beyond .*3.4e38, the range of float32: change its unit"),
        (torch.tensor(VECTOR * 1e300), "beyond .*3.4e38, the range of float32: change its unit"),
        ([10**400, 0, 0], "beyond .*3.4e38, the range of float32: change its unit"),
        (VECTOR + 1j, "holds complex numbers, .*: join both parts"),
        ([1j, 0, 0], "holds complex numbers, .*: join both parts"),
        (torch.tensor(VECTOR).to_sparse(), r"sparse, .* x\.to_dense\(\)"),
        ([math.nan, 0, 0], "holds NaN or an infinite number"),
        ((VECTOR, {}), r"this tuple is what env\.reset\(\) returns, .*: pass its first element"),
        (({"state": VECTOR}, {}), r"this tuple is what env\.reset\(\) returns, .*: pass its first element"),
        ((VECTOR, 0.0, False, False, {}), r"what env\.step\(action\) returns, .*: pass its first element"),
        ([{"state": VECTOR}] * 2, "a list of dicts, .*: stack each part"),
    ],
)
def test_what_is_no_observation_is_refused(obs: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        robot().act(obs, 0)


@pytest.mark.parametrize(
    "obs",
    [
        VECTOR.astype(">f8"), VECTOR.astype(">f4"), VECTOR.astype(np.longdouble), VECTOR.astype(object), Lazy(),
        tuple(VECTOR), list(map(np.float32, VECTOR)), torch.tensor(VECTOR, requires_grad=True),
        [torch.tensor(v, requires_grad=True) for v in VECTOR], VECTOR[::-1].copy()[::-1],
    ],
)  # fmt: skip
def test_the_same_numbers_in_another_form_are_the_same_observation(obs: Any) -> None:
    policy, expected = robot(), robot().act(VECTOR, 0)
    assert np.array_equal(np.asarray(policy.act(obs, 0)), expected)
    if isinstance(obs, np.ndarray | torch.Tensor):
        assert np.array_equal(policy.generate(obs[None], 0)[0].numpy(), expected)


@pytest.mark.parametrize("kind", ["int32", ">i2", "uint8", "uint16", "uint64", "bool", "float16"])
def test_every_kind_of_number_is_an_observation(kind: str) -> None:
    ones = np.ones((2, 3))
    assert np.array_equal(robot().act(ones.astype(kind), 0), robot().act(ones, 0))
    assert torch.equal(robot().generate(ones.astype(kind), 0), robot().generate(ones, 0))


def test_a_policy_that_decides_no_chunk_is_refused() -> None:
    process = Diffusion(linear, ddim(1.0))
    picture = Policy.of(process, GaussianDenoiser(MLP(6, 4, width=8), linear, "v"), (6,), process.steps(time_grid(2)))
    with pytest.raises(InvalidInputError, match=r"decides \[6\], not a chunk .* generate"):
        picture.act(np.zeros(4), 0)
