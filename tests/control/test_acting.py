"""A policy at work, by numbers that can be worked out by hand.

The policy's clean action is always bias + observation, so the last step of every chain decides exactly that: served, as
it is; in training, with a std of ½.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.control import acting
from denoiserl.control.best_of_n import BestOfN
from denoiserl.control.value_baseline import critic_features
from denoiserl.core.errors import InvalidInputError, OffPolicyError, RunError
from denoiserl.data import RunningNormCodec
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.policy.chain import stack
from denoiserl.processes import MeanFlow, Relay, ddim, linear, with_min_std
from tests.envs.worlds import Counting

BIAS, STD, TIMES = (1.0, 2.0, 3.0), 0.5, [1.0, 0.75, 0.5, 0.25]


class Says(nn.Module):
    """x̂₀ = bias + the observation's first number; remembers at which times it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.times = nn.Parameter(torch.tensor(BIAS)), list[float]()

    def forward(self, x: Tensor, clock: Tensor, context: Tensor) -> Tensor:
        self.times.append(float(clock.flatten()[0]))
        return (self.bias + context[:, :1])[..., None].expand(x.shape)


class Sees(Says):
    """Sees of a picture its mean, ``bias`` times."""

    def features(self, cond: Any) -> Tensor:
        return self.bias * cond["image"].float().mean((1, 2, 3))[:, None]


def made(net: nn.Module | None = None, codec: Any = None, rule: Any = with_min_std(ddim(0.0), STD)) -> Policy:
    process = Diffusion(linear)
    train, serve = (process.steps(time_grid(4), rule) for rule in (rule, ddim(0.0)))
    return Policy.of(process, GaussianDenoiser(net or Says(), linear, "x0"), (3, 1), train, serve, codec)


def times(policy: Policy) -> tuple[list[float], list[float]]:
    """When the frozen and the learning network were asked since the last time, both forgotten."""
    relay = policy.denoiser
    assert isinstance(relay, Relay)
    nets: list[Any] = [relay.first.net, relay.last.net]
    asked = [list(net.times) for net in nets]
    for net in nets:
        net.times.clear()
    return asked[0], asked[1]


OBS = torch.tensor([[10.0], [20.0]])
CLEAN = torch.tensor(BIAS) + OBS  # [2, 3]


def density(sample: Tensor) -> Tensor:
    """log N(sample; CLEAN, STD²) of every action, [..., 2, 3]."""
    return -0.5 * ((sample[..., 0] - CLEAN) / STD) ** 2 - math.log(STD * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("tuned", "frozen"), [(1, 3), (2, 2), (3, 1)])
def test_the_last_steps_learn_and_the_first_are_frozen_wherever_the_policy_runs(tuned: int, frozen: int) -> None:
    policy = made()
    act = acting.training_actor(policy, tuned)
    times(policy)
    _, chain = act(OBS, Rng(0))
    assert times(policy) == (TIMES[:frozen], TIMES[frozen:]) and len(chain) == tuned
    policy.generate(OBS, Rng(0))
    assert times(policy) == (TIMES[:frozen], TIMES[frozen:])
    assert acting.freeze_early_steps(policy, None) == tuned, "those that may learn are all that are not frozen"
    with pytest.raises(InvalidInputError, match=f"the first {frozen} of the policy's 4"):
        acting.freeze_early_steps(policy, tuned + 1)
    if tuned > 1:
        assert acting.freeze_early_steps(policy, tuned - 1) == tuned - 1, "and of these some may be frozen in turn"
        times(policy)
        policy.generate(OBS, Rng(0))
        assert times(policy)[1] == TIMES[frozen + 1 :]


def test_a_relay_freezes_every_set_as_it_is_and_only_where_something_is_frozen() -> None:
    policy = made()
    inner = policy.denoiser
    assert (
        acting.freeze_early_steps(policy, None) == acting.freeze_early_steps(policy, 4) == 4
        and policy.denoiser is inner
    )
    acting.require_single_network(policy, "no")
    assert acting.learner(policy) is inner
    ema = policy.weights.snapshot("ema")
    acting.freeze_early_steps(policy, 1)
    assert acting.learner(policy) is inner and policy.parameters() == list(inner.parameters())
    averaged = policy.weights.using("ema")
    assert isinstance(averaged, Relay) and averaged.last is ema and isinstance(policy.weights.using("base"), Relay)
    inner.net.bias.data.add_(5.0)  # type: ignore[union-attr]
    assert policy.denoiser.first.net.bias.tolist() == list(BIAS)  # type: ignore[union-attr]
    with pytest.raises(InvalidInputError, match="no, and frozen weights run the first denoising steps"):
        acting.require_single_network(policy, "no")
    for tuned in (0, 5):
        with pytest.raises(InvalidInputError, match="finetune_denoising_steps is between 1 and the 4"):
            acting.freeze_early_steps(made(), tuned)
    with pytest.raises(InvalidInputError, match="a mean flow learns all"):
        acting.freeze_early_steps(replace(made(), process=MeanFlow()), 2)


def test_a_training_actor_records_its_densities_and_executes_the_first_actions() -> None:
    policy = made()
    action, chain = acting.training_actor(policy, 2, 2)(OBS, Rng(0))
    assert torch.equal(action, chain.sample[:, :2]) and chain.sample.shape == (2, 3, 1)
    torch.testing.assert_close(chain.log_prob[:, -1], density(chain.sample).sum(-1))
    with pytest.raises(InvalidInputError, match="a learned step has no noise"):
        acting.training_actor(made(rule=ddim(1.0)), 2)  # the last step has none


def test_observations_are_taken_in_by_a_codec_with_statistics_and_by_no_other() -> None:
    codec = RunningNormCodec.without_statistics(1)
    policy = made(codec=codec)
    _, chain = acting.training_actor(policy, 4)(OBS, Rng(0))
    assert (float(codec.mean), float(codec.variance), float(codec.count)) == (15.0, 25.0, 2.0)
    torch.testing.assert_close(chain.cond, torch.tensor([[-1.0], [1.0]]))
    assert acting.statistics(policy) is codec and acting.statistics(made()) is None
    acting.eval_actor(policy)(OBS + 9, Rng(0))
    assert float(codec.count) == 2.0, "who is looked at learns nothing"
    tree = {"a": OBS, "b": {"c": OBS + 1}}
    assert torch.equal(acting.observe(made(), tree)["b"]["c"], OBS + 1)


def test_an_evaluated_policy_serves_the_first_actions_of_its_chunk() -> None:
    policy = made()
    for actor, count in (
        (acting.eval_actor(policy), 3), (acting.eval_actor(policy, 1), 1), (acting.EvalActor(policy, None), 3),
        (acting.eval_actor(policy.with_execution_horizon(2)), 2), (acting.EvalActor(policy, 2), 2),
    ):  # fmt: skip
        torch.testing.assert_close(actor(OBS, Rng(0))[..., 0], CLEAN[:, :count])


def test_what_is_executed_is_asked_for_or_carried_or_all_that_is_decoded() -> None:
    policy = made()
    assert acting.resolve_execute_horizon(policy) == acting.resolve_execute_horizon(policy, 3) == 3
    assert (
        acting.set_execution_horizon(policy, 2) == policy.weights.execute == acting.resolve_execute_horizon(policy) == 2
    )
    assert acting.resolve_execute_horizon(policy, 1) == 1
    short = replace(made(), codec=SimpleNamespace(execute=2))  # type: ignore[arg-type]
    assert acting.resolve_execute_horizon(short) == 2
    for wrong, count in ((policy, 0), (policy, 4), (short, 3)):
        with pytest.raises(InvalidInputError, match="execution_horizon is between 1 and"):
            acting.resolve_execute_horizon(wrong, count)
    with pytest.raises(InvalidInputError, match=r"not a chunk of actions \[H, d\]"):
        acting.resolve_execute_horizon(replace(policy, event_shape=(3,)))


def test_a_policy_learns_without_its_control() -> None:
    policy = made().with_controller(BestOfN(nn.Identity(), 1))
    with pytest.warns(UserWarning, match=r"the policy has a controller \(BestOfN\)"):
        acting.set_execution_horizon(policy)
    assert policy.weights.control is None and policy.weights.execute == 3
    acting.remove_controller(policy)  # a second warning would be an error


def test_a_policy_is_made_anew_only_of_a_network_of_this_package() -> None:
    acting.require_rebuildable_network(made(MLP((3, 1), 1, 8)), "no")
    with pytest.raises(InvalidInputError, match=r"no, and this policy's network is a .*Says"):
        acting.require_rebuildable_network(made(), "no")


MASKS: list[tuple[Any, list[list[int]]]] = [
    (None, [[1, 1, 1], [1, 1, 1]]),
    (3, [[1, 1, 1], [1, 1, 1]]),
    (2, [[1, 1, 0], [1, 1, 0]]),
    (torch.tensor([[True, False], [True, True]]), [[1, 0, 0], [1, 1, 0]]),
    (torch.tensor([[False, True], [False, False]]), [[0, 1, 0], [0, 0, 0]]),
]


@pytest.mark.parametrize(("live", "alive"), MASKS, ids=["all", "3", "2", "ended", "lost"])
def test_only_executed_actions_count_in_a_probability(live: Any, alive: list[list[int]]) -> None:
    policy = made()
    chain = stack([acting.training_actor(policy, 1)(OBS, Rng(seed))[1] for seed in range(3)])
    kept = acting.mask_unexecuted(chain, live.expand(3, 2, 2) if isinstance(live, Tensor) else live)
    assert (kept is chain) == all(map(all, alive))
    (law, y), total = policy.rescore(kept), (density(chain.sample) * torch.tensor(alive)).sum(-1)
    counts = torch.tensor(alive).sum(-1).expand(3, 2)
    assert torch.equal(law.num_factors[..., 0], counts.float())
    torch.testing.assert_close(law.log_prob(y)[..., 0], total)
    torch.testing.assert_close(acting.mean_log_prob(law, y)[..., 0], total / counts.clamp_min(1))


def test_the_steps_that_learn_go_on_where_the_frozen_ones_end() -> None:
    """Three frozen steps lead from N(0, 1) to ¾ of the clean action at t = ¼, with a std of √0.403 in all."""
    _, chain = acting.training_actor(made(), 1)(OBS, Rng(0))
    assert float((chain.x[:, 0, :, 0] - 0.75 * CLEAN).abs().max()) < 5 * 0.403**0.5


def test_a_policy_that_changed_is_found_out_by_what_was_never_executed() -> None:
    policy = made()
    _, chain = acting.training_actor(policy, 2)(OBS, Rng(0))
    kept = acting.mask_unexecuted(chain, 1)
    acting.on_policy(*policy.rescore(kept), kept)
    acting.learner(policy).net.bias.data[2] += 1.0  # type: ignore[union-attr]
    with pytest.raises(OffPolicyError):
        acting.on_policy(*policy.rescore(kept), kept)


def test_a_critic_sees_flat_conditions_and_of_pictures_what_the_network_saw_at_first() -> None:
    flat = made(codec=RunningNormCodec(torch.tensor([10.0]), torch.tensor([25.0]), torch.tensor(1.0)))
    see, size = critic_features(flat, SimpleNamespace(spec=SimpleNamespace(obs=(1,))))  # type: ignore[arg-type]
    assert size == 1
    torch.testing.assert_close(see(OBS), torch.tensor([[0.0], [2.0]]))
    shown: Any = SimpleNamespace(spec=SimpleNamespace(obs={"image": (3, 4, 4), "place": (2,)}))
    net = Sees()
    see, size = critic_features(made(net), shown)
    net.bias.data.add_(1.0)
    assert size == 3 and see({"image": torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)}).tolist() == [[7.0, 14.0, 21.0]]
    blank = acting.zero_observation(shown.spec.obs)
    assert blank["image"].dtype == torch.uint8 and blank["image"].shape == (1, 3, 4, 4)
    assert blank["place"].dtype == torch.float32 and blank["place"].tolist() == [[0.0, 0.0]]
    with pytest.raises(InvalidInputError, match="not flat"):
        critic_features(made(), shown)


def test_a_policy_suits_an_environment_of_its_observations_and_actions() -> None:
    env = Collector(partial(Counting, life=2), 1)
    acting.check_policy_fits(made(), env, "mine")
    with pytest.raises(RunError, match="mine does not take the observations of"):
        acting.check_policy_fits(made(codec=RunningNormCodec.without_statistics(5)), env, "mine")
    wide = made(MLP((3, 2), 2, 8))
    with pytest.raises(RunError, match=r"mine decides actions \[2\], .* takes \[1\]"):
        acting.check_policy_fits(replace(wide, event_shape=(3, 2)), env, "mine")
