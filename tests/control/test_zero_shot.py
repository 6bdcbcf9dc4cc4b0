"""Policies that are told a reward: where z comes from, what is chosen by it, what is saved, what is refused."""

from __future__ import annotations

import pytest
import torch

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.control.best_of_n import BestOfN
from denoiserl.control.zero_shot import (
    GoalReachingVerifier,
    SuccessorVerifier,
    TaskConditionedCodec,
    policy_for_reward,
    require_task_conditioned,
    states,
)
from denoiserl.core.errors import InvalidInputError
from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer, TanhCodec
from denoiserl.nn import MLP
from denoiserl.nn.forward_backward import ForwardBackward
from denoiserl.processes import cosine

OBS, ACT, D = 3, 2, 6


def demos(n: int = 200) -> Demonstrations:
    g = torch.Generator().manual_seed(0)
    return Demonstrations.of([(torch.randn(n, OBS, generator=g), torch.rand(n, ACT, generator=g) * 2 - 1)])


def pretrained(choose: int = 8, size: int = D) -> Policy:
    torch.manual_seed(0)
    process, data = Diffusion(cosine, clip=1.0), demos()
    net = GaussianDenoiser(MLP((1, ACT), OBS + size, 32), cosine, "v")
    codec = TaskConditionedCodec(ActionChunkCodec.fit(data), torch.zeros(size))
    made = Policy.of(process, net, (1, ACT), process.steps(time_grid(3)), None, codec)
    made.weights.control = BestOfN(SuccessorVerifier(ForwardBackward(OBS, (1, ACT), size, 16)), choose)
    return made


def first(obs: torch.Tensor) -> torch.Tensor:
    return obs[:, 0]


def test_the_policy_for_a_reward_executes_the_best_of_its_actions_by_f_and_z() -> None:
    """Of the same eight candidates, the answered policy takes the one with the largest F(s, a, z)ᵀ z, and another
    reward leads to another z and to other choices."""
    base, obs = pretrained(), torch.randn(40, OBS)
    made, other = policy_for_reward(base, demos(), first), policy_for_reward(base, demos(), lambda o: -o[:, 1])
    control = base.weights.control
    assert isinstance(control, BestOfN) and isinstance(control.verifier, SuccessorVerifier)
    chosen = made.generate(obs, Rng.rows(range(40)))
    alone = made.with_controller(None).generate(obs, Rng.rows(range(40)))
    cond, z = made.codec.inner.condition(obs), made.codec.z.expand(40, -1)  # type: ignore[union-attr]
    worth = lambda a: control.verifier.represent.value(cond, made.codec.encode(a), z).amin(0)  # type: ignore  # noqa: E731
    better = worth(chosen) - worth(alone)
    assert bool((better >= -1e-5).all()) and float(better.mean().detach()) > 0
    assert not torch.allclose(made.codec.z, other.codec.z)  # type: ignore[union-attr]
    assert not torch.equal(chosen, other.generate(obs, Rng.rows(range(40))))


def test_z_is_a_normalised_moment_and_knows_no_scale_of_the_reward() -> None:
    base, data = pretrained(), demos()
    control = base.weights.control
    back = control.verifier.represent.backward_embedding(
        require_task_conditioned(base).inner.condition(data.observations)
    ).detach()  # type: ignore
    moment = (first(data.observations)[:, None] * back).mean(0)
    made = policy_for_reward(base, data, first)
    assert torch.allclose(require_task_conditioned(made).z, D**0.5 * moment / moment.norm(), atol=1e-5)
    assert torch.allclose(
        require_task_conditioned(policy_for_reward(base, data, lambda o: 9 * o[:, 0])).z,
        require_task_conditioned(made).z,
        atol=1e-5,
    )
    numbers = policy_for_reward(base, data.observations, first(data.observations))
    assert torch.allclose(require_task_conditioned(numbers).z, require_task_conditioned(made).z, atol=1e-6)


def test_the_answered_policy_is_saved_like_any_other_and_shares_weights_with_the_rest(tmp_path) -> None:
    base, obs = pretrained(), torch.randn(5, OBS)
    made = policy_for_reward(base, demos(), first)
    again = Policy.load(made.save(tmp_path / "told"))
    assert torch.equal(again.generate(obs, Rng(3)), made.generate(obs, Rng(3)))
    assert made.weights is base.weights and not bool(require_task_conditioned(base).z.any())


def test_goals_are_the_state_with_the_highest_reward() -> None:
    base, data = pretrained(size=OBS), demos()
    base.weights.control = BestOfN(GoalReachingVerifier(), 1)
    made = policy_for_reward(base, data, first)
    at = int(data.observations[:, 0].argmax())
    assert torch.allclose(
        require_task_conditioned(made).z,
        require_task_conditioned(made).inner.condition(data.observations[at : at + 1])[0],
    )
    seen = torch.tensor([[0.0, 0.0], [9.0, 0.0], [10.0, 0.0], [11.0, 0.0], [12.5, 0.0]])
    assert GoalReachingVerifier().task(seen, torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])).tolist() == [11.0, 0.0]


def test_squashed_decisions_are_shown_to_f_inside_their_box() -> None:
    box = TanhCodec.from_box([-2.0, 0.0], [2.0, 4.0], Normalizer.fit(torch.randn(50, OBS)))
    codec = TaskConditionedCodec(box, torch.zeros(D))
    action = torch.tensor([[[1.0, 3.0]]])
    assert torch.allclose(codec.unit(codec.encode(action)), torch.tensor([[[0.5, 0.5]]]), atol=1e-5)
    assert torch.allclose(codec.decode(codec.encode(action)), action, atol=1e-4)


def test_what_cannot_be_answered_is_refused_with_the_reason() -> None:
    base, data = pretrained(), demos()
    with pytest.raises(InvalidInputError, match="carries no information on this data"):
        policy_for_reward(base, data, lambda o: torch.ones(len(o)))
    with pytest.raises(InvalidInputError, match="one number per state"):
        policy_for_reward(base, data, lambda o: o)
    with pytest.raises(InvalidInputError, match="not finite"):
        policy_for_reward(base, data, lambda o: o[:, 0] / 0)
    with pytest.raises(InvalidInputError, match="pass both"):
        policy_for_reward(base, data, torch.ones(200))
    with pytest.raises(InvalidInputError, match="has no task yet"):
        base.generate(torch.randn(2, OBS), Rng(0))
    with pytest.raises(InvalidInputError, match="train it with breeze or fb first"):
        policy_for_reward(base.with_controller(None), data, first)
    with pytest.raises(InvalidInputError, match="task-conditioned policy"):
        require_task_conditioned(Policy.of(base.process, base.denoiser, (1, ACT), base.train_steps), "BREEZE")
    with pytest.raises(InvalidInputError, match="flat observations"):
        states(Demonstrations.of([({"a": torch.zeros(2, 1)}, torch.zeros(2, ACT))]))
