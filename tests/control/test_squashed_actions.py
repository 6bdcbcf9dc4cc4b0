"""How off-policy recipes begin, and how often they learn: every update that is due, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import OneStep, Policy, time_grid
from denoiserl.control.squashed_actions import BLOCK, due_minibatches, exploration_actor
from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.data import Normalizer, ReplayBuffer, TanhCodec
from denoiserl.nn import MLP
from denoiserl.processes import GaussianHead


def filled(n: int) -> ReplayBuffer:
    """A buffer of n decisions, numbered by their reward."""
    number, over = torch.arange(n).float(), torch.ones(n, dtype=torch.bool)
    seen = torch.zeros(n, 1)
    return ReplayBuffer.of({
        "obs": seen, "next_obs": seen, "action": seen, "reward": number, "terminated": over,
        "length": torch.ones(n, dtype=torch.int64),
    })  # fmt: skip


@pytest.mark.parametrize("more", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 2])
def test_batches_are_as_many_as_are_due(more: int) -> None:
    """An update for every second decision: 2 n more decisions have n more, in however many blocks they are gathered."""
    known = 30
    drawn = list(
        due_minibatches(
            filled(known + 2 * more), known, utd=0.5, batch_size=4, learning_starts=10, gamma=0.9, n_step=1, rng=Rng(0)
        )
    )
    assert len(drawn) == more
    assert all(rows["reward"].shape == (4,) for rows in drawn)


BOX = TanhCodec.from_box([-2.0, 0.0], [2.0, 10.0], Normalizer.fit(torch.tensor([[0.0], [4.0]])))


def actor(count: int, warmup: str) -> Any:
    """What acts after ``count`` decisions, the first 10 of which are even; it then chooses its condition and ½."""
    process = OneStep()
    net = GaussianHead(MLP((1, 2), 1, 8, time=0), 2, 0.5)
    policy = Policy.of(process, net, (1, 2), process.steps(time_grid(1)), None, BOX)

    def choose(cond: Tensor, rng: Rng) -> Tensor:
        return torch.cat([cond, torch.full_like(cond, 0.5)], 1)[:, None]

    return exploration_actor(policy, BOX, filled(count), choose, 10, warmup)


def test_the_first_decisions_are_even_in_the_box() -> None:
    """Mean, spread and corners of 4000 of them; none of them asks the policy."""
    action, chain = actor(9, warmup="random")(torch.full((4000, 1), 4.0), Rng(0))
    assert action.shape == (4000, 1, 2) and chain is None
    x, y = action[:, 0].T
    assert bool((x.abs() <= 2).all()) and bool(((y >= 0) & (y <= 10)).all())
    share = torch.histc(4 * ((x + 2) // 1).clamp_max(3) + (y // 2.5).clamp_max(3), 16, 0, 15) / 4000
    assert float((share - 1 / 16).abs().max()) < 5 * (1 / 16 / 4000) ** 0.5


@pytest.mark.parametrize(("count", "first"), [(10, "random"), (11, "random"), (1, "policy")])
def test_later_decisions_are_chosen_in_the_units_of_the_policy_and_executed_in_those_of_the_box(
    count: int, first: str
) -> None:
    """Observations from 0 to 4 are −1 to 1, and so are actions from −2 to 2; ½ is three quarters of 0 to 10."""
    action, _ = actor(count, first)(torch.tensor([[0.0], [2.0], [3.0], [4.0]]), Rng(0))
    torch.testing.assert_close(action[:, 0], torch.tensor([[-2.0, 7.5], [0.0, 7.5], [1.0, 7.5], [2.0, 7.5]]))


def test_an_unknown_way_to_begin_is_refused() -> None:
    with pytest.raises(RunError, match="warm-up policy"):
        actor(1, warmup="evn")
