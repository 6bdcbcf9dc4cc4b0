"""Critics over bins: numbers survive, means are exact, and the values are those of dynamic programming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.serialization import store
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.nn.critic import polyak_update, target_copy
from denoiserl.nn.twohot import Binned, Bins, cross_entropy
from denoiserl.train import adamw, optimizer_step

EVEN, SPREAD = Bins(-2.0, 5.0, 15), Bins(-300.0, 300.0, 41, symlog=True)


@pytest.mark.parametrize("bins", [EVEN, SPREAD])
def test_a_number_is_the_mean_of_its_two_bins(bins: Bins) -> None:
    torch.manual_seed(0)
    value = torch.rand(500) * (bins.high - bins.low) + bins.low
    weight = bins.encode(value)
    assert torch.allclose((weight * bins.places()).sum(-1), value, atol=1e-4 * bins.high)
    assert torch.allclose(weight.sum(-1), torch.ones(500), atol=1e-6) and bool((weight >= 0).all())
    used = (weight > 0).float()
    assert int(used.sum(-1).max()) <= 2 and bool((used.argmax(-1) + used.sum(-1) - 1 <= bins.count - 1).all())
    at = bins.encode(bins.places())
    assert torch.allclose(at, torch.eye(bins.count), atol=1e-6), "a number on a bin weighs on no other"
    ends = bins.encode(torch.tensor([bins.low - 9.0, bins.high + 9.0]))
    assert torch.equal(ends[0], torch.eye(bins.count)[0]) and torch.allclose(ends[1], torch.eye(bins.count)[-1])


def test_symlog_bins_are_even_in_the_logarithm() -> None:
    places = SPREAD.places().double()
    u = places.sign() * places.abs().log1p()
    assert torch.allclose(u.diff(), u.diff()[:1].expand(40), rtol=1e-4)
    assert torch.allclose(places, -places.flip(0), atol=1e-3), "symmetric, so that knowing nothing is a value of 0"
    assert float(SPREAD.mean(torch.zeros(41)).abs()) < 1e-3


@pytest.mark.parametrize("bins", [EVEN, SPREAD])
def test_the_minimiser_over_many_targets_has_their_mean(bins: Bins) -> None:
    """Also where bins are spread: a mean taken before the exponential would be that of the logarithms."""
    torch.manual_seed(0)
    targets = torch.tensor([0.3, 4.9, -1.7, 2.2]) * bins.high / 5
    logits = bins.encode(targets).mean(0).add(1e-9).log()[None].requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(logits.expand(4, -1), targets, bins).mean(), logits)
    assert float(slope.abs().max()) < 1e-5, "the loss is convex, so this is the minimiser"
    assert float(bins.mean(logits.detach())) == pytest.approx(float(targets.mean()), rel=1e-4)


@pytest.mark.parametrize("bins", [Bins(-0.5, 1.5, 41), Bins(-20.0, 20.0, 61, symlog=True)])
def test_values_of_a_chain_are_those_of_dynamic_programming(bins: Bins) -> None:
    """Five states in a row, left or right with noise, reward at the right end: TD with two-hot targets finds Q."""
    states, gamma, slip = 5, 0.9, 0.2
    eye = torch.eye(states)
    left, right = (torch.arange(states) - 1).clamp_min(0), (torch.arange(states) + 1).clamp_max(states - 1)
    move = torch.stack([(1 - slip) * eye[left] + slip * eye[right], (1 - slip) * eye[right] + slip * eye[left]])
    reward, over = torch.zeros(2, states), torch.zeros(states)
    reward[:, -1], over[-1] = 1.0, 1.0  # the last state pays and ends
    q = torch.zeros(2, states)
    for _ in range(300):
        q = reward + gamma * (1 - over) * (move @ q.max(0).values)
    torch.manual_seed(0)
    critic = Binned(states, 2, bins, count=2, width=32)
    slow, opt = target_copy(critic), adamw(critic.parameters(), 1e-2)
    s, a = (v.flatten() for v in torch.meshgrid(torch.arange(states), torch.arange(2), indexing="ij"))
    both = torch.eye(2)
    for _ in range(250):
        with torch.no_grad():
            best = torch.stack([slow(eye, both[i].expand(states, -1)).mean(0) for i in range(2)]).max(0).values
            y = reward[a, s] + gamma * (1 - over[s]) * (move[a, s] @ best)
        optimizer_step(opt, critic.loss(eye[s], both[a], y).sum(0).mean())
        polyak_update(slow, critic, 0.1)
    found = critic(eye[s], both[a]).detach()
    assert float((found - q[a, s]).abs().max()) < 0.05, (found, q[a, s])


def test_a_critic_over_bins_is_saved_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    critic = Binned(3, (2, 2), Bins(0, 2, 7), width=8)
    store.write(tmp_path / "c", {"critic": to_config(critic), "weights": dict(critic.state_dict())})
    tree = store.read(tmp_path / "c")
    again = from_config(tree["critic"])
    again.load_state_dict(tree["weights"])
    obs, action = torch.randn(4, 3), torch.randn(4, 2, 2)
    assert torch.equal(critic(obs, action), again(obs, action))
    with pytest.raises(InvalidInputError, match="at least two"):
        Bins(1.0, 1.0)
    with pytest.raises(InvalidInputError, match="constant"):
        critic.loss(obs, action, torch.ones(4, requires_grad=True))
