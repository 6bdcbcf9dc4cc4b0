"""How often off-policy recipes learn: every update that is due, once."""

from __future__ import annotations

import pytest
import torch

from denoiserl.control.squashed_actions import BLOCK, due_minibatches
from denoiserl.core.rng import Rng
from denoiserl.data import ReplayBuffer


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
