"""Outliers, dimensions that hardly move, constant ones, and data in other units than their box."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoiserl.control.acting import check_policy_fits, eval_actor
from denoiserl.control.data_checks import check_data_fits as fits
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer, RunningNormCodec, TanhCodec
from denoiserl.data.ranges import compare, used_share
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.transitions import transitions
from denoiserl.doctor.data import check_data_ranges, check_reward_delay
from denoiserl.envs import Collector, evaluate
from denoiserl.envs.remarks import Remark, remarks
from denoiserl.envs.units import action_range
from denoiserl.integrations.lerobot.policy import LeRobotCodec
from denoiserl.policy.policy import Policy
from denoiserl.tasks import env as env_task
from denoiserl.tasks import policies
from denoiserl.tasks.user_inputs import load_policy, load_recording

gym = pytest.importorskip("gymnasium")


def demos(n: int = 2000, episode: int = 20) -> Demonstrations:
    g = torch.Generator().manual_seed(0)
    seen, done = torch.randn(n, 3, generator=g), torch.rand(n, 2, generator=g) * 2 - 1
    return Demonstrations(seen, done, torch.arange(episode, n + 1, episode), name="toy")


@pytest.mark.parametrize("kind", ["minmax", "std"])
def test_an_outlier_is_told_by_dimension_row_episode_and_share(kind: Any) -> None:
    wrong = demos().actions.clone()
    wrong[1234, 1] = -1000.0
    with pytest.warns(UserWarning, match=r"dimension 1 of toy: row 1234 \(episode 61\) is -1000, .* use 0.2 % of the"):
        known = Normalizer.fit(wrong, kind, name="toy", ends=demos().ends)
    again = Normalizer.from_state(known.state_dict()).to("cpu")
    assert "outliers" in again.report() and "[1]" in again.report()
    with pytest.warns(UserWarning, match="dimension 1 of the actions of toy: row 1234"):
        codec = ActionChunkCodec.fit(replace(demos(), actions=wrong))
    policy = policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), demos(), 0)
    assert check_data_ranges(replace(policy, codec=codec)).level == "warning"
    assert check_data_ranges(policy).level == "ok"
    told = check_data_ranges(policy, replace(demos(), actions=wrong))
    assert told.level == "warning" and "row 1234 (episode 61)" in told.message


def test_what_is_spread_as_data_are_is_no_outlier() -> None:
    """Heavy tails, rare events, a gripper that opens, few rows, and constants: nothing is said."""
    g = np.random.default_rng(0)
    rare = (g.random(5000) < 0.004).astype(float)
    columns = [g.normal(size=5000), g.standard_t(4, 5000), g.random(5000) < 0.5, rare, g.exponential(size=5000)]
    rows = torch.from_numpy(np.stack([*columns, np.full(5000, 7.0)], 1)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Normalizer.fit(rows)
        Normalizer.fit(rows[:5])
        Normalizer.fit(torch.tensor([[0.0], [1.0], [100.0]]))
    one = torch.full((5000, 1), 7.0)
    one[3] = 1000.0
    assert float(used_share(one)) == 0.0, "what is far beyond all others is"


def test_a_dimension_that_hardly_moves_is_told() -> None:
    seen = demos().observations.clone()
    seen[:, 2] = 3 + 1e-5 * seen[:, 2]
    for kind in ("std", "minmax"):
        with pytest.warns(UserWarning, match="dimension 2 of the data moves by .* around 3"):
            known = Normalizer.fit(seen, kind)
        assert "hardly move: [2]" in known.report()


def test_a_constant_dimension_of_a_box_comes_back_and_others_are_named() -> None:
    box = TanhCodec.from_box([-1.0, 0.5], [1.0, 0.5])
    some = torch.tensor([[0.3, 0.5], [-0.9, 0.5]])
    assert torch.allclose(box.decode(box.encode(some)), some) and bool(box.encode(some).isfinite().all())
    assert torch.equal(box.decode(torch.randn(5, 2))[:, 1], torch.full((5,), 0.5))
    with pytest.raises(InvalidInputError, match=r"dimension 1 is \[-inf, 1\]"):
        TanhCodec.from_box([-1.0, -torch.inf], [1.0, 1.0])
    with pytest.raises(InvalidInputError, match="empty in dimension 0"):
        TanhCodec.from_box([1.0, 0.0], [-1.0, 1.0])


class Wide(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(np.array([0, -1], np.float32), np.array([100, 1], np.float32))


def given(path: Path, low: float, high: float, seen: float = 1.0, **more: Any) -> EpisodeDataset:
    """Data whose first action lies in [low, high], recorded in ``Wide``."""
    u = torch.linspace(0, 1, 60)
    done = torch.stack([low + (high - low) * u, 2 * u - 1], 1)
    Demonstrations(seen * (2 * torch.stack([u, u.flip(0)], 1) - 1), done, torch.tensor([30, 60])).save(path)
    return load_recording(str(path), Wide, **more)


def test_data_in_other_units_than_the_environment_are_refused_or_told(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given(tmp_path / "right", 0, 100)
        given(tmp_path / "edge", 0, 100 + 1e-4)
        given(tmp_path / "tenth", 40, 51)
    with pytest.raises(InvalidInputError, match=r"outside the box of Wide of actions, worst in row 0: dimension 0 "):
        given(tmp_path / "beyond", -1, 1)
    with pytest.warns(UserWarning, match="use 2 % of the range"):
        clipped = given(tmp_path / "clipped", -1, 2, out_of_bounds_actions="clip")
    assert float(clipped.demos.actions[:, 0].min()) == 0.0
    with pytest.warns(UserWarning, match=r"use 1 % of the range of the box of Wide of actions: dimension 0 "):
        given(tmp_path / "narrow", 0, 1)
    with pytest.warns(UserWarning, match="the observations of .* lie outside the box of Wide of observations"):
        given(tmp_path / "degrees", 0, 100, seen=57.0)
    with pytest.warns(UserWarning, match="the observations of .* use 1 % of the range"):
        given(tmp_path / "small", 0, 100, seen=0.01)


def test_episodes_and_parts_of_a_users_data_are_chosen_by_words(tmp_path: Path) -> None:
    assert len(given(tmp_path / "a", 0, 100, exclude_episodes="1").demos) == 1
    data = demos(60)
    parts = {"state": data.observations[:, :2], "more": data.observations}
    replace(data, observations=parts, actions=data.actions.abs()).save(tmp_path / "parts")
    with pytest.raises(RunError, match="--obs-keys NAME"):
        load_recording(str(tmp_path / "parts"), Wide)
    with pytest.warns(UserWarning, match="range of the box|outside the box"):
        kept = load_recording(str(tmp_path / "parts"), Wide, obs_keys="state")
    assert torch.equal(kept.demos.observations, data.observations[:, :2])
    with pytest.raises(InvalidInputError, match=r"several parts of numbers are not supported.*FlattenObservation"):
        policies.policy_spec(replace(data, observations={"arm": parts["state"], "goal": parts["more"]}))


def test_infinite_and_constant_boxes_judge_nothing() -> None:
    rows = torch.randn(50, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(rows, -torch.inf, torch.inf, "rows", "the box", refuse=True)
        compare(0 * rows + 2, [2, 2, 2], [2, 2, 2], "rows", "the box", refuse=True)
    with pytest.raises(InvalidInputError, match="dimension 1"):
        compare(0 * rows + 2, [2, 3, 2], [2, 3, 2], "rows", "the box", refuse=True)


def test_a_policy_that_cannot_say_what_was_done_is_told_of_it() -> None:
    policy = policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), demos(), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits(policy, demos())
    for scale, said in ((30.0, "lie outside actions that the policy can take"), (0.01, "use 1 % of the range")):
        with pytest.warns(UserWarning, match=said):
            fits(policy, replace(demos(), actions=scale * demos().actions))


class Meets(gym.Env):
    """Observes [-1, 1] times ``size``, acts in [-1, 1]; its bounds are told as they are given."""

    def __init__(self, low: Any = -1.0, high: Any = 1.0, bound: Any = np.inf, size: Any = 1.0) -> None:
        self.observation_space = gym.spaces.Box(-np.full(3, bound, np.float32), np.full(3, bound, np.float32))
        self.action_space = gym.spaces.Box(np.full(2, low, np.float32), np.full(2, high, np.float32))
        self.size = size

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.k, self.o = 0, (self.size * self.np_random.uniform(-1, 1, 3)).astype(np.float32)
        return self.o, {}

    def step(self, action: Any) -> Any:
        self.k += 1
        return self.o, float(self.np_random.random()), False, self.k >= 3, {}


def imitating(actions: Any = 1.0, seen: Any = 1.0) -> Policy:
    """A policy fitted to observations and actions in [-1, 1] times these sizes."""
    u = torch.linspace(-1, 1, 60)
    data = Demonstrations(
        torch.as_tensor(seen) * torch.stack([u, u.flip(0), u.roll(20)], 1),
        torch.as_tensor(actions) * torch.stack([u, u.roll(7)], 1),
        torch.tensor([30, 60]),
    )
    return policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), data, 0)


def chunks(policy: Policy, action: Normalizer | None = None) -> Policy:
    """The policy with LeRobot's codec."""
    own = policy.codec
    return replace(policy, codec=LeRobotCodec(own.observation, action or own.action, {"observation.state": 3}, 1, 1))


def met(policy: Policy, **world: Any) -> list[str]:
    """What is said of a policy that is given for an environment, and of its evaluation there."""
    with remarks() as said:
        check_policy_fits(policy, Collector(lambda: Meets(**world), 1), "the policy")
    with remarks() as again:
        notes = evaluate(eval_actor(policy), lambda: Meets(**world), 6).notes
    assert list(notes) == again and set(said) <= set(again)
    return list(notes)


@pytest.mark.parametrize("codec", [lambda made: made, chunks])
def test_a_policy_in_other_units_than_its_environment_is_told_by_dimension(codec: Any) -> None:
    for size, span in (([1.0, 100.0], "-100 to 100"), ([1.0, 0.01], "-0.01 to 0.01")):
        (said,) = met(codec(imitating(actions=size)))
        assert "the actions that the policy can take" in said and "units" in said and "row" not in said
        assert f"dimension 1 runs from {span} in [-1, 1]" in said and "dimension 0" not in said
    (said,) = met(codec(imitating(seen=[1.0, 1000.0, 1.0])), bound=2.0)
    assert "the observations that the policy was fitted to lie outside the box" in said
    assert "dimension 1 runs from -1000" in said and "dimension 0" not in said
    (said,) = met(codec(imitating(seen=0.001)), bound=1.0, size=0.001)
    assert "use 0.1 % of the range of the box" in said
    (said,) = met(codec(imitating()), size=np.array([1.0, 1.0, 1e4]))
    assert "the first observations" in said and "outside what the policy was fitted to" in said
    assert "dimension 2" in said and "dimension 0" not in said


def test_a_policy_that_was_made_for_another_box_is_told() -> None:
    world = Collector(lambda: Meets(0.0, [1.0, 100.0]), 1)
    made = policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), world, 0)
    assert isinstance(made.codec, RunningNormCodec)
    assert not met(made, low=0.0, high=[1.0, 100.0])
    assert "dimension 1 runs from 0 to 100 in [-1, 1]" in met(made)[0]
    assert action_range(RunningNormCodec.without_statistics(3)) is None, "a number bounds nothing"
    squash = policies.squashed_gaussian((1, 2), 3, 8, 1, TanhCodec.from_box([-1.0, 0.0], [1.0, 512.0]), 0)
    assert "dimension 1 runs from 0 to 512 in [-1, 1]" in met(squash)[0]


@pytest.mark.parametrize("codec", [lambda made: made, chunks])
def test_a_policy_that_fits_its_environment_is_met_in_silence(codec: Any) -> None:
    """Somewhat less or more than the box, a part that rests, no box at all, and a rare reset far away."""
    for size in (1.0, [0.3, 1.15], [0.2, 0.0]):
        assert not met(
            codec(imitating(actions=size, seen=[0.3, 1.1, 0.01])), bound=1.0, size=np.array([0.5, 1.0, 0.01])
        )
    assert not met(codec(imitating(actions=[1e5, 1e-3])), low=-np.inf, high=np.inf, size=2.5)
    assert not met(codec(imitating()), bound=np.finfo(np.float32).max)
    assert not met(codec(imitating(seen=[1.0, 0.0, 1.0])), size=np.array([1.0, 50.0, 1.0]))
    made = imitating()
    wide = torch.full((2,), torch.inf)
    free = Normalizer(torch.zeros(2), torch.full((2,), 50.0), torch.zeros(2, dtype=torch.bool), -wide, wide)
    assert not met(chunks(made, free))
    assert not met(replace(made, codec=replace(made.codec, observation=Normalizer.identity(3))), size=100.0)


def test_a_given_policy_is_told_of_its_units_before_it_learns(tmp_path: Path) -> None:
    from denoiserl.train import Run

    (tmp_path / "world.py").write_text(
        "import gymnasium, numpy as np\n"
        "class World(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-2, 2, (3,), np.float32)\n"
        "    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return np.zeros(3, np.float32), {}\n"
        "    def step(self, action):\n"
        "        return np.zeros(3, np.float32), 0.0, False, True, {}\n"
    )
    imitating(actions=[100.0, 1.0]).save(tmp_path / "made")
    base = env_task.Args(env=f"{tmp_path / 'world.py'}:World", start=str(tmp_path / "made"))
    with pytest.warns(Remark, match="made can take lie outside the box of World of actions: dimension 0 "):
        env_task.load_start(base, Run())


def test_cloning_on_in_other_units_is_told_whatever_the_codec() -> None:
    u = torch.linspace(-1, 1, 60)
    data = Demonstrations(
        torch.stack([u, u.flip(0), u.roll(20)], 1), torch.stack([u, u.roll(7)], 1), torch.tensor([60])
    )
    own = imitating()
    for made in (own, chunks(own)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fits(made, data)
            fits(made, replace(data, observations=1.5 * data.observations))
            fits(made, replace(data, observations=0.01 * data.observations))
        with pytest.warns(UserWarning, match="the actions of the data lie outside .*: dimension 1 runs from -100"):
            fits(made, replace(data, actions=data.actions * torch.tensor([1.0, 100.0])))
        with pytest.warns(UserWarning, match="use 1 % of the range of actions that the policy can take: dimension 1"):
            fits(made, replace(data, actions=data.actions * torch.tensor([1.0, 0.01])))
        with pytest.warns(UserWarning, match="the observations of the data lie outside what .*: dimension 2 "):
            fits(made, replace(data, observations=data.observations * torch.tensor([1.0, 1.0, 100.0])))
    squash, large = TanhCodec.from_box([-1.0, -1.0], [1.0, 1.0], own.codec.observation), 100 * data.observations
    with pytest.warns(UserWarning, match="the observations of the data"):
        fits(replace(own, codec=squash), replace(data, observations=large))
    pictures = {"image": torch.zeros(60, 8, 8, 3, dtype=torch.uint8), "state": large}
    with pytest.warns(UserWarning, match="the observations of the data"):
        fits(own, replace(data, observations=pictures))
    parts = {"observation.state": data.observations}
    with pytest.warns(UserWarning, match="the observations of the data"):
        fits(chunks(own), replace(data, observations={k: 100 * v for k, v in parts.items()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits(chunks(own), replace(data, observations=parts))


@pytest.mark.parametrize("late", [False, True])
def test_rewards_one_row_late_are_found(late: bool) -> None:
    g = torch.Generator().manual_seed(0)
    step = 0.1 * (2 * torch.rand(30, 20, 2, generator=g) - 1)
    path = 3 * torch.randn(30, 1, 2, generator=g) + torch.cat([torch.zeros(30, 1, 2), step.cumsum(1)], 1)
    own = Demonstrations(path[:, :-1].flatten(0, 1), step.flatten(0, 1), torch.arange(20, 601, 20))
    rewards = -path[:, 1:].flatten(0, 1).norm(dim=1)
    wide = torch.full((2,), torch.inf)
    data = EpisodeDataset(own, rewards.roll(int(late)), path[:, -1], torch.zeros(30, dtype=torch.bool), -wide, wide)
    assert check_reward_delay(data).level == ("warning" if late else "ok")


def test_a_policy_of_others_is_refused_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"x")
    with pytest.raises(RunError, match="a checkpoint of torch"):
        load_policy(str(tmp_path / "last.ckpt"), torch.device("cpu"))


def test_rewards_of_episodes_of_one_row_are_not_compared_with_the_row_before() -> None:
    rng = Rng(0)
    obs, action = rng.normal(40, 2), rng.normal(40, 1)
    data = transitions(obs, action, obs[:, 0], obs, torch.ones(40, dtype=torch.bool))
    assert check_reward_delay(data).level == "note"
