"""What the recipes for generators make of texts: of unequal lengths, with ids that are no token, under top-k."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Autoregressive, Policy, Rng, TokenDenoiser, time_grid
from denoiserl.core.errors import InvalidInputError
from denoiserl.policy.codec import InfillCodec
from denoiserl.recipes.generators import ddpo, flow_grpo, rwr

V, LENGTH, BEYOND = 4, 3, 6
"""tokens, positions, and an id of prompts that is no token"""
UNEQUAL = torch.tensor([[1, V, V], [2, 3, V]])
SIZES: dict[Any, Any] = {
    ddpo: ddpo.Args(iterations=12, num_samples=32, batch_size=64, stat_window=32, min_count=2, lr=0.3, clip_range=0.2),
    flow_grpo: flow_grpo.Args(
        iterations=12, num_prompts=4, group_size=8, batch_size=32, sde_window=0, kl_coef=0.01, lr=0.3, clip_range=0.2
    ),
    rwr: rwr.Args(iterations=24, num_prompts=4, group_size=8, batch_size=32, lr=0.1, inverse_temperature=2.0),
}
every = pytest.mark.parametrize("recipe", SIZES, ids=["ddpo", "flow_grpo", "rwr"])


class Bigram(nn.Module):
    """Row i is what follows token i."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(BEYOND + 1, V))

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return self.table[x]


def writer(**decoder: Any) -> Policy:
    process = Autoregressive(V, **decoder)
    return Policy.of(
        process,
        TokenDenoiser(Bigram(), shift=True),
        (LENGTH,),
        process.steps(time_grid(LENGTH - 1)),
        codec=InfillCodec(),
    )


def last(text: Tensor, prompts: Any) -> Tensor:
    return (text[:, -1] == 2).float()


def improve(recipe: Any, policy: Policy, prompts: Tensor, **changes: Any) -> list[dict]:
    given = {k: v for k, v in vars(SIZES[recipe]).items() if k != "base"} | changes
    return list(recipe.improve(policy, (last, prompts), recipe.Args(**given), Rng(0)))


def learned(rows: list[dict]) -> float:
    return sum(row["rollout/reward"] for row in rows[-3:]) / 3


@every
@pytest.mark.parametrize("end", [None, 0], ids=["fixed", "end"])
def test_texts_of_unequal_lengths_are_learned_from(recipe: Any, end: int | None) -> None:
    """The shorter ones are finished before the last steps of the chain, which then decide nothing."""
    rows = improve(recipe, writer(end=end), UNEQUAL)
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)
    assert rows[0]["rollout/reward"] < 0.6 and learned(rows) > 0.7


@every
def test_prompts_may_hold_ids_that_are_no_token(recipe: Any) -> None:
    prompts = UNEQUAL.clone()
    prompts[:, 0] = BEYOND
    assert learned(improve(recipe, writer(), prompts)) > 0.7


def test_imitation_takes_tokens_that_top_k_rules_out_and_the_likelihood_does_not() -> None:
    """Its loss is the cross-entropy of the tempered law; nothing else could bring such a token back."""
    policy = writer(top_k=1, temperature=0.5)
    net = policy.denoiser.net
    assert isinstance(net, Bigram)
    with torch.no_grad():
        net.table.normal_(generator=torch.Generator().manual_seed(0))
    text, live = torch.tensor([[1, 0, 3]]), torch.tensor([[False, True, True]])
    noised = policy.process.noise(text, torch.ones(1), Rng(0), live)
    wanted = nn.functional.cross_entropy(net.table[text[0, :-1]] / 0.5, text[0, 1:])
    torch.testing.assert_close(policy.process.loss(policy.denoiser, noised, None)[0], wanted)
    assert policy.process.elbo(policy.denoiser, noised, None).item() == -torch.inf


@pytest.mark.parametrize("decoder", [{"top_k": 2}, {"top_p": 0.5}])
def test_a_decoder_that_rules_tokens_out_has_no_kl(decoder: dict[str, Any]) -> None:
    """Two that rule out different tokens are infinitely far apart."""
    with pytest.raises(InvalidInputError, match="kl_coef=0"):
        improve(flow_grpo, writer(**decoder), UNEQUAL)
    assert improve(flow_grpo, writer(**decoder), UNEQUAL, kl_coef=0.0, iterations=2)
