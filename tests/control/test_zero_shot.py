"""Policies that are told a reward: where z comes from, what is chosen by it, what is saved, what is refused."""

from __future__ import annotations

import pytest
import torch

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.control.best_of_n import Best
from denoiserl.control.zero_shot import Arrivals, Successors, Tasked, answer, states, tasked
from denoiserl.core.errors import InvalidInputError
from denoiserl.data import Demos, Normalizer, Robot, Squash
from denoiserl.nn import MLP
from denoiserl.nn.forward_backward import ForwardBackward
from denoiserl.processes import cosine

OBS, ACT, D = 3, 2, 6


def demos(n: int = 200) -> Demos:
    g = torch.Generator().manual_seed(0)
    return Demos.of([(torch.randn(n, OBS, generator=g), torch.rand(n, ACT, generator=g) * 2 - 1)])


def pretrained(choose: int = 8, size: int = D) -> Policy:
    torch.manual_seed(0)
    process, data = Diffusion(cosine, clip=1.0), demos()
    net = GaussianDenoiser(MLP((1, ACT), OBS + size, 32), cosine, "v")
    codec = Tasked(Robot.fit(data), torch.zeros(size))
    made = Policy.of(process, net, (1, ACT), process.steps(time_grid(3)), None, codec)
    made.weights.control = Best(Successors(ForwardBackward(OBS, (1, ACT), size, 16)), choose)
    return made


def first(obs: torch.Tensor) -> torch.Tensor:
    return obs[:, 0]


def test_the_policy_for_a_reward_executes_the_best_of_its_actions_by_f_and_z() -> None:
    """Of the same eight candidates, the answered policy takes the one with the largest F(s, a, z)ᵀ z, and another
    reward leads to another z and to other choices."""
    base, obs = pretrained(), torch.randn(40, OBS)
    made, other = answer(base, demos(), first), answer(base, demos(), lambda o: -o[:, 1])
    control = base.weights.control
    assert isinstance(control, Best) and isinstance(control.verifier, Successors)
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
    back = control.verifier.represent.back(tasked(base).inner.condition(data.observations)).detach()  # type: ignore
    moment = (first(data.observations)[:, None] * back).mean(0)
    made = answer(base, data, first)
    assert torch.allclose(tasked(made).z, D**0.5 * moment / moment.norm(), atol=1e-5)
    assert torch.allclose(tasked(answer(base, data, lambda o: 9 * o[:, 0])).z, tasked(made).z, atol=1e-5)
    numbers = answer(base, data.observations, first(data.observations))
    assert torch.allclose(tasked(numbers).z, tasked(made).z, atol=1e-6)


def test_the_answered_policy_is_saved_like_any_other_and_shares_weights_with_the_rest(tmp_path) -> None:
    base, obs = pretrained(), torch.randn(5, OBS)
    made = answer(base, demos(), first)
    again = Policy.load(made.save(tmp_path / "told"))
    assert torch.equal(again.generate(obs, Rng(3)), made.generate(obs, Rng(3)))
    assert made.weights is base.weights and not bool(tasked(base).z.any())


def test_goals_are_the_state_with_the_highest_reward() -> None:
    base, data = pretrained(size=OBS), demos()
    base.weights.control = Best(Arrivals(), 1)
    made = answer(base, data, first)
    at = int(data.observations[:, 0].argmax())
    assert torch.allclose(tasked(made).z, tasked(made).inner.condition(data.observations[at : at + 1])[0])
    seen = torch.tensor([[0.0, 0.0], [9.0, 0.0], [10.0, 0.0], [11.0, 0.0], [12.5, 0.0]])
    assert Arrivals().task(seen, torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])).tolist() == [11.0, 0.0]


def test_squashed_decisions_are_shown_to_f_inside_their_box() -> None:
    box = Squash.box([-2.0, 0.0], [2.0, 4.0], Normalizer.fit(torch.randn(50, OBS)))
    codec = Tasked(box, torch.zeros(D))
    action = torch.tensor([[[1.0, 3.0]]])
    assert torch.allclose(codec.unit(codec.encode(action)), torch.tensor([[[0.5, 0.5]]]), atol=1e-5)
    assert torch.allclose(codec.decode(codec.encode(action)), action, atol=1e-4)


def test_what_cannot_be_answered_is_refused_with_the_reason() -> None:
    base, data = pretrained(), demos()
    with pytest.raises(InvalidInputError, match="carries no information on this data"):
        answer(base, data, lambda o: torch.ones(len(o)))
    with pytest.raises(InvalidInputError, match="one number a state"):
        answer(base, data, lambda o: o)
    with pytest.raises(InvalidInputError, match="not finite"):
        answer(base, data, lambda o: o[:, 0] / 0)
    with pytest.raises(InvalidInputError, match="pass both"):
        answer(base, data, torch.ones(200))
    with pytest.raises(InvalidInputError, match="has not been told what for"):
        base.generate(torch.randn(2, OBS), Rng(0))
    with pytest.raises(InvalidInputError, match="train it with breeze or fb first"):
        answer(base.with_controller(None), data, first)
    with pytest.raises(InvalidInputError, match="task vector beside the observation"):
        tasked(Policy.of(base.process, base.denoiser, (1, ACT), base.train_steps), "BREEZE")
    with pytest.raises(InvalidInputError, match="flat observations"):
        states(Demos.of([({"a": torch.zeros(2, 1)}, torch.zeros(2, ACT))]))
