"""The floor of the learning loop does equal work: from equal draws it learns what the recipe learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import loop

ARGS = replace(
    loop.PUBLISHED, iterations=2, num_envs=8, rollout_steps=12, batch_size=100, epochs=2, lr=1e-3, clip_range=0.05
)


@pytest.mark.parametrize(("tuned", "cut"), [(3, 1024), (3, 40), (5, None)])
def test_floor_and_recipe_learn_the_same_weights(tuned: int, cut: int | None) -> None:
    """Episodes of ten ticks end inside a chunk, so cut chunks and bootstrapping at time limits are compared too."""
    a, made, rows = replace(ARGS, finetune_denoising_steps=tuned), [], []
    for play in (loop.recipe, lambda p, a, seed, ticks: loop.floor(p, a, seed, ticks, cut)):
        policy = loop.policy(32, 5, "gelu", seed=1)
        rows.append(list(play(policy, a, 1, 10)))
        made.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    start = torch.cat([p.detach().flatten() for p in loop.policy(32, 5, "gelu", seed=1).parameters()])
    assert (made[0] - start).abs().max() > 0.01
    torch.testing.assert_close(made[1], made[0], atol=1e-4, rtol=0)  # a hundredth of what was learned
    for ours, plain in zip(*rows, strict=True):
        assert plain["rollout/reward"] == pytest.approx(ours["rollout/reward"], abs=1e-5)
        assert plain["loss/policy"] == pytest.approx(ours["loss/policy"], abs=1e-5)
