"""Policies that know nothing: they act inside any finite box, and what they cannot be made for is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoiserl import Policy, Rng
from denoiserl.control.acting import check_policy_fits, eval_actor
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data import Demonstrations, RunningNormCodec, TanhCodec
from denoiserl.envs import Collector, evaluate
from denoiserl.tasks import env as env_task
from denoiserl.tasks import policies
from denoiserl.train import Run

gymnasium = pytest.importorskip("gymnasium")
Box = gymnasium.spaces.Box
FLAT = Box(-1, 1, (3,), np.float32)


class World(gymnasium.Env):
    """An environment of these spaces; one tick."""

    def __init__(self, low: Any = (-1.0,), high: Any = (1.0,), seen: Any = FLAT, action: Any = None) -> None:
        bounds = (np.asarray(v, np.float32) for v in (low, high))
        self.observation_space, self.action_space = seen, action or Box(*bounds)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 0.0, True, False, {}


def stream(*given: Any, **named: Any) -> Collector:
    return Collector(lambda: World(*given, **named), 2)


LOW, HIGH = [5.0, -5.0, -2.0, -1.0, -0.1, 0.25], [10.0, -1.0, 0.0, 100.0, 0.1, 0.25]


@pytest.mark.parametrize("kind", ["gaussian", "diffusion", "flow", "meanflow", "one_step_flow"])
def test_a_fresh_policy_acts_inside_the_box_in_every_dimension(kind: str) -> None:
    made = getattr(policies, kind)(env_task.Args(action_horizon=2, policy_width=16), stream(LOW, HIGH), 0)
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    for serve in (False, True):
        acts = made.codec.decode(made.sample_chain(torch.zeros(512, 3), Rng(0), use_eval_steps=serve).sample).flatten(
            0, 1
        )
        inside = ((acts > low) & (acts < high)).float().mean(0)
        assert bool((inside[:5] >= 0.3).all()) and bool((acts[:, 5] == 0.25).all()), "the last one is constant"
    back = made.codec.encode(acts)
    assert bool(back.isfinite().all()) and torch.allclose(made.codec.decode(back), acts, atol=1e-4)
    assert evaluate(eval_actor(made), lambda: World(LOW, HIGH), 2).returns.tolist() == [0.0, 0.0]


def test_a_constant_dimension_of_a_box_comes_back_and_an_infinite_one_is_named() -> None:
    squash = TanhCodec.from_box([-1.0, 0.5], [1.0, 0.5])
    acts = squash.decode(torch.randn(5, 2))
    assert acts[:, 1].tolist() == [0.5] * 5
    assert bool(squash.encode(acts).isfinite().all()) and torch.allclose(squash.to_action_box(squash.unit(acts)), acts)
    for low, high, said in (
        ([0.0, -np.inf], [1.0, 1.0], "dimension 1"),
        ([0.0, 2.0], [1.0, 1.0], "dimension 1"),
        ([0.5, 1.0], [0.5, 1.0], "constant"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            TanhCodec.from_box(low, high)
    for low, high, said in (([0.0, -np.inf], [1.0, 1.0], "dimension 1"), ([0.5, 1.0], [0.5, 1.0], "constant")):
        with pytest.raises(InvalidInputError, match=said):
            policies.policy_spec(stream(low, high))


def test_a_codec_of_boxes_is_saved(tmp_path: Path) -> None:
    made = policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), stream(LOW, HIGH), 0)
    again = Policy.load(made.save(tmp_path / "p"))
    assert isinstance(again.codec, RunningNormCodec)
    assert torch.equal(again.generate(torch.ones(4, 3), Rng(0)), made.generate(torch.ones(4, 3), Rng(0)))


def demos(**seen: Any) -> Demonstrations:
    told: Any = next(iter(seen.values())) if set(seen) == {"array"} else seen
    return Demonstrations(told, torch.rand(8, 2), torch.tensor([4, 8]))


IMAGE = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"array": IMAGE}, r"an array \[16, 16, 3\].*'image' of a dict"),
        ({"image": torch.zeros(8, 84, 96, 3, dtype=torch.uint8), "state": torch.rand(8, 2)}, r"\[84, 96, 3\].*square"),
        ({"image": torch.zeros(8, 3, 16, 16, dtype=torch.uint8), "state": torch.rand(8, 2)}, r"\[S, S, 3\]"),
        ({"image": IMAGE}, "'image' and 'state'"),
        ({"image": torch.zeros(8, 512), "state": torch.rand(8, 2)}, r"\[512\].*\[S, S, 3\]"),
        ({"image": torch.rand(8, 16, 16, 3), "state": torch.rand(8, 2)}, r"float32: .*uint8 .*\(255 \* x\).round"),
        ({"state": torch.rand(8, 2)}, r"a dict of one part: give its array alone.*obs_keys=\['state'\]"),
        ({"image": {"left": IMAGE}, "state": torch.rand(8, 2)}, "the observation 'image' of .* is a dict: give arrays"),
        ({"observation": torch.rand(8, 2), "desired_goal": torch.rand(8, 2)}, "FlattenObservation"),
    ],
)
def test_what_no_network_here_can_see_is_refused_with_the_cure(seen: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        policies.policy_spec(demos(**seen))


def test_environments_whose_actions_or_observations_are_of_another_kind_are_refused_by_name() -> None:
    pair = gymnasium.spaces.Dict({"a": FLAT, "b": FLAT})
    for env, said in (
        (stream(action=gymnasium.spaces.Discrete(3)), "one of 3 choices"),
        (stream(action=Box(-1, 1, (2, 3), np.float32)), r"an array \[2, 3\]"),
        (stream(seen=pair), "FlattenObservation"),
        (stream(seen=Box(0, 255, (8, 8, 3), np.uint8)), "start from demonstrations"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            policies.policy_spec(env)


def test_a_start_that_does_not_fit_the_environment_is_refused_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    made = policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), stream(), 0)
    word = str(made.save(tmp_path / "p"))
    check_policy_fits(made, stream(), word)
    with pytest.raises(RunError, match=r"does not take the observations of .*, \(4,\)"):
        check_policy_fits(made, stream(seen=Box(-1, 1, (4,), np.float32)), word)
    with pytest.raises(RunError, match=r"decides actions \[1\], .* takes \[2\]"):
        check_policy_fits(made, stream([-1, -1], [1, 1]), word)
    monkeypatch.setattr(env_task, "make_env", lambda base: lambda: World(seen=Box(-1, 1, (4,), np.float32)))
    with pytest.raises(RunError, match="does not take the observations"):
        env_task.squashed_start(env_task.Args(start=word), 0, Run())
