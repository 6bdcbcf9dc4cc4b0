"""Masked diffusion: what is hidden, what the ELBO is, how many are revealed, and which tokens a decoder allows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Estimate, Masked, Rng, TokenDenoiser, elbo, make_sampler, renoise, time_grid
from denoiserl.oracles.worlds import TableWorld
from denoiserl.policy.likelihood import denoising_losses
from denoiserl.processes import Noised, step_map, truncate

WORLD = TableWorld.random(3, 3, Rng(0), 1.2)
MASK = 3


def average(values: Tensor) -> float:
    return float(values.double().mean())


def random_order_elbo(x0: Tensor) -> float:
    """Σ_k (1/k) mean over sets of k hidden positions of Σ log p(x_i | rest), as the mean over all orders."""
    total, length = 0.0, len(x0)
    for order in itertools.permutations(range(length)):
        state = torch.full_like(x0, MASK)
        for i in order:
            total += float(WORLD.posterior_logits(state[None]).log_softmax(-1)[0, i, int(x0[i])])
            state[i] = x0[i]
    return total / math.factorial(length)


def test_with_exact_posteriors_every_order_is_the_likelihood() -> None:
    for x0 in WORLD.sequences[::5]:
        assert abs(random_order_elbo(x0) - float(WORLD.log_prob(x0[None]))) < 1e-5


def test_the_elbo_is_unbiased() -> None:
    """Exact-count masks: L draws in exact strata visit every k once, so only the choice of sets is random."""
    process, x0 = Masked(3), WORLD.sequences[::4]
    found = elbo(process, WORLD.denoiser(), renoise(process, x0, 3000, Rng(1)))
    exact = WORLD.log_prob(x0)
    error = (found.mean(-1) - exact).abs()
    assert bool((error < 5 * found.std(-1) / math.sqrt(3000)).all())
    free = torch.rand(len(x0), 3000, generator=torch.Generator().manual_seed(0)).clamp_min(1e-3)
    many = x0[:, None].expand(-1, 3000, -1)
    wide = elbo(process, WORLD.denoiser(), process.noise(many, free, Rng(2)))
    assert bool(((wide.mean(-1) - exact).abs() < 6 * wide.std(-1) / math.sqrt(3000)).all())
    assert average(found.std(-1)) < average(wide.std(-1))  # exact counts are the quieter estimate


def test_the_elbo_by_enumeration_of_every_mask() -> None:
    """E over (k, set) of weight · Σ log p, with the weights that ``renoise`` gives, is the exact ELBO."""
    process, x0 = Masked(3), WORLD.sequences[7:8]
    sets = [s for k in (1, 2, 3) for s in itertools.combinations(range(3), k)]
    hidden = torch.tensor([[[i in s for i in range(3)] for s in sets]])
    k = hidden.sum(-1)
    noised = process.mask_positions(x0[:, None].expand(-1, len(sets), -1), hidden, k / 3, None, 3 / k)
    probability = torch.tensor([1 / 3 / math.comb(3, len(s)) for s in sets])
    found = (elbo(process, WORLD.denoiser(), noised)[0] * probability).sum()
    assert abs(float(found) - random_order_elbo(x0[0])) < 1e-5
    drawn = renoise(process, x0, 4000, Rng(0))
    assert isinstance(drawn.x, Tensor) and drawn.weight is not None
    seen = (drawn.x[0] == MASK).int()
    for s, p in zip(sets, probability.tolist(), strict=True):
        share = average((seen == torch.tensor([i in s for i in range(3)])).all(-1).double())
        assert abs(share - p) < 5 * math.sqrt(p / 4000)
    assert torch.allclose(drawn.weight[0], 3 / seen.sum(-1)) and torch.allclose(drawn.t[0], seen.sum(-1) / 3)


def test_counts_are_stratified_and_live_positions_only() -> None:
    process = Masked(5)
    x0 = Rng(0).integers(0, 5, 6, 8)
    live = torch.arange(8) < torch.tensor([8, 4, 1, 2, 8, 4])[:, None]
    noised = renoise(process, x0, 8, Rng.rows(range(6)), live)
    hidden = noised.x == 5
    assert not bool((hidden & ~live[:, None]).any())
    assert hidden.sum(-1).sort(-1).values.tolist()[0] == list(range(1, 9))  # 8 draws of 8 positions: each count once
    assert hidden.sum(-1).sort(-1).values.tolist()[1] == [1, 1, 2, 2, 3, 3, 4, 4]
    again = renoise(process, x0[2:4], 8, Rng.rows([2, 3]), live[2:4])
    assert torch.equal(noised.x[2:4], again.x)  # type: ignore[index]
    with pytest.raises(ValueError, match="no live position"):
        renoise(process, x0, 8, Rng(0), torch.zeros(6, 8, dtype=torch.bool))


def test_noise_hides_each_position_with_probability_t() -> None:
    process, x0 = Masked(3), torch.zeros(20_000, 4, dtype=torch.int64)
    noised = process.noise(x0, torch.full((20_000,), 0.3), Rng(0), torch.tensor([True, True, True, False]))
    share = (noised.x == 3).double().mean(0)
    assert bool(((share[:3] - 0.3).abs() < 0.02).all()) and float(share[3]) == 0
    assert noised.weight is not None and torch.allclose(noised.weight, torch.tensor(1 / 0.3))
    with pytest.raises(ValueError, match="clean data contains the mask"):
        process.noise(torch.full((2, 4), 3), torch.full((2,), 0.5), Rng(0))


def test_loss_is_the_elbo_a_live_token() -> None:
    process, x0 = Masked(3), WORLD.sequences[:6]
    live = torch.tensor([True, True, False]).expand(6, 3)
    noised = renoise(process, x0, 5, Rng(0), live)
    bound, loss = elbo(process, WORLD.denoiser(), noised), denoising_losses(process, WORLD.denoiser(), noised)
    assert torch.allclose(loss, -bound / 2)


class Flat(nn.Module):
    """Logits that know nothing but the vocabulary's order."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return torch.linspace(0, 1, self.vocab).expand(*x.shape, self.vocab)


def test_ancestral_sampling_follows_the_schedule() -> None:
    """After the step to s each position is masked with probability s, independently."""
    process, times = Masked(4), time_grid(5)
    chain = make_sampler(process, TokenDenoiser(Flat(4)), process.steps(times), (6,))(None, Rng(0), rows=8000)
    hidden = (chain.states == 4).double()
    for k, t in enumerate(times.tolist()):
        assert abs(float(hidden[:, k].mean()) - t) < 0.01
        pairs = torch.corrcoef(hidden[:, k].T) - torch.eye(6).double() if 0 < t < 1 else torch.zeros(1)
        assert float(pairs.abs().max()) < 0.06


def test_ancestral_sampling_with_many_steps_is_sampling_from_the_world() -> None:
    process, n = Masked(3), 6000
    chain = make_sampler(process, WORLD.denoiser(), process.steps(time_grid(40)), (3,))(None, Rng(0), rows=n)
    count = torch.bincount(WORLD.index(chain.sample), minlength=27).double() / n
    variation = float((count - WORLD.table.exp().flatten().double()).abs().sum()) / 2
    assert variation < 0.05


@pytest.mark.parametrize("order", ["left", "random"])
def test_one_token_a_step_samples_the_world_exactly(order: Any) -> None:
    """Enumerated: Σ over chains of exp Σ log_prob is p(x₀), for left-to-right and for a random order."""
    process = Masked(3, order=order, tokens=1)
    steps = process.steps(time_grid(3))
    total = torch.zeros(27, dtype=torch.float64)
    frontier = [(torch.full((3,), MASK), 0.0)]
    for k in range(3):
        reached = []
        for state, logp in frontier:
            choices = [s for s in itertools.product(*[range(4) if int(v) == MASK else [int(v)] for v in state])]
            y = torch.tensor(choices)
            x = state.expand(len(y), 3)
            law = process.reverse(Estimate(WORLD.posterior_logits(x)), x, steps[k])
            for row, value in zip(y, law.log_prob(y).tolist(), strict=True):
                if value > -math.inf:
                    reached.append((row, logp + value))
        frontier = reached
    for state, logp in frontier:
        total[WORLD.index(state)] += math.exp(logp)
    assert torch.allclose(total, WORLD.table.exp().flatten().double(), atol=1e-6)


def test_counts_when_the_grid_decides() -> None:
    """Without tokens= the share (t − s)/t of what is masked is revealed, rounded up: all are done at the end."""
    for order in ("confidence", "random", "left", "margin", "entropy"):
        for length, n in ((10, 5), (7, 4), (3, 8), (12, 12)):
            process = Masked(4, order=order)
            chain = make_sampler(process, TokenDenoiser(Flat(4)), process.steps(time_grid(n)), (length,))(
                None, Rng(0), rows=3
            )
            left = (chain.states == 4).sum(-1)
            assert bool((left == left[0]).all()) and int(left[0, -1]) == 0
            if length % n == 0:
                assert left[0].tolist() == [length - length // n * k for k in range(n + 1)]
            assert bool(chain.log_prob.isfinite().all())


def test_tokens_and_blocks() -> None:
    process = Masked(4, order="confidence", tokens=2, block=4)
    chain = make_sampler(process, TokenDenoiser(Flat(4)), process.steps(time_grid(5)), (10,))(None, Rng(0), rows=50)
    when = step_map(chain.states, 4)
    block = torch.arange(10) // 4
    assert bool((when.unsqueeze(-1) < when.unsqueeze(-2))[:, block.unsqueeze(-1) < block.unsqueeze(-2)].all())
    assert bool((torch.stack([(when == k).sum(-1) for k in range(5)], -1) == 2).all())
    start = torch.tensor([[1, 4, 1, 1, 4, 4, 1, 1, 1, 1]]).expand(8, 10)
    part = make_sampler(process, TokenDenoiser(Flat(4)), process.steps(time_grid(5)), (10,))(
        None, Rng(0), start=(start, 0)
    )
    assert step_map(part.states, 4)[0].tolist() == [-1, 0, -1, -1, 0, 1, -1, -1, -1, -1]  # the block begins at 1
    assert bool((part.log_prob[:, 2:] == 0).all())  # nothing is left to decide: probability one


def test_a_threshold_commits_all_that_are_sure() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
            return torch.tensor([9.0, 0, 0, 0]) * torch.tensor([1.0, 1, 0, 0])[:, None].expand(*x.shape, 4)

    process = Masked(4, order="confidence", tokens=1, threshold=0.9, top_k=1)
    chain = make_sampler(process, TokenDenoiser(Sure()), process.steps(time_grid(4)), (4,))(None, Rng(0), rows=4)
    assert (chain.states == 4).sum(-1)[0].tolist() == [4, 2, 1, 0, 0]
    flat = math.log(1 / 4)  # top-1 of equal logits keeps all four
    assert torch.allclose(chain.log_prob, torch.tensor([0.0, flat, flat, 0.0]).expand(4, 4), atol=1e-5)


def test_step_map_names_an_unfinished_chain() -> None:
    states = torch.tensor([[[3, 3], [3, 1], [0, 1]], [[2, 3], [2, 3], [2, 0]]])
    assert step_map(states, 3).tolist() == [[1, 0], [-1, 1]]
    with pytest.raises(ValueError, match="too few steps"):
        step_map(states[:, :2], 3)


def test_truncation() -> None:
    p = torch.tensor([0.5, 0.1, 0.3, 0.06, 0.04])
    for given, kept in (
        ((1.0, 2, None), [0, 2]), ((1.0, None, 0.79), [0, 2]), ((1.0, None, 0.81), [0, 1, 2]), ((1.0, 1, None), [0]),
        ((1.0, None, 0.01), [0]), ((1.0, 9, 1.0), [0, 1, 2, 3, 4]), ((1.0, 3, 0.6), [0, 2]), ((1.0, 3, 0.5), [0]),
        ((0.5, None, 0.9), [0, 2]),  # the tempered masses are .69, .03, .25, .01, .00
    ):  # fmt: skip
        found = truncate(p.log(), *given)
        assert found.isfinite().nonzero().flatten().tolist() == kept, given
        tempered = p ** (1 / given[0])
        wanted = torch.zeros(5).index_copy(0, torch.tensor(kept), tempered[kept] / tempered[kept].sum())
        assert torch.allclose(found.softmax(-1), wanted, atol=1e-6)
    assert truncate(torch.tensor([1.0, 1.0, 0.0]), top_k=1).isfinite().tolist() == [True, True, False]  # ties are kept


def test_the_decoder_is_part_of_the_policy() -> None:
    process = Masked(4, order="random", tokens=2, temperature=0.5, top_k=2)
    chain = make_sampler(process, TokenDenoiser(Flat(4)), process.steps(time_grid(2)), (4,))(None, Rng(0), rows=4000)
    p = (2 * torch.tensor([2 / 3, 1.0])).softmax(-1)
    count = torch.bincount(chain.sample.flatten(), minlength=4).double() / 16_000
    assert count[:2].tolist() == [0, 0] and abs(float(count[3]) - float(p[1])) < 0.02
    both = chain.sample[:, :].eq(3).sum(-1)
    wanted = both * p[1].log() + (4 - both) * p[0].log() + 2 * math.log(1 / math.comb(4, 2)) - math.log(1 / 6)
    assert torch.allclose(chain.log_prob.sum(-1), wanted, atol=1e-4)


def test_logits_shift_cut_ban_and_start() -> None:
    class Echo(nn.Module):
        """Row i says its input token, and has two surplus rows of vocabulary."""

        def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
            return 5.0 * torch.nn.functional.one_hot(x, 6).float()

    x = torch.tensor([[1, 2, 3]])

    def says(**given: Any) -> list[int]:
        mean = TokenDenoiser(Echo(), **given)(x, None, None).mean
        assert isinstance(mean, Tensor)
        return mean.argmax(-1)[0].tolist()

    assert says() == [1, 2, 3] and says(shift=True) == [1, 1, 2] and says(start=5) == [5, 1, 2]
    cut = TokenDenoiser(Echo(), vocab=4, banned=(2,))(x, None, None).mean
    assert isinstance(cut, Tensor) and cut.shape == (1, 3, 4) and bool((cut[..., 2] == -math.inf).all())
    wide = TokenDenoiser(Echo())(x.expand(2, 5, 1, 3).squeeze(2), None, None).mean
    assert isinstance(wide, Tensor) and wide.shape == (2, 5, 3, 6)
    with pytest.raises(ValueError, match="choose one"):
        TokenDenoiser(Echo(), shift=True, start=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"order": "confident"}, "Did you mean 'confidence'"),
        ({"temperature": 0.0}, "top_k=1"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p lies in"),
        ({"tokens": 2}, "choose another order"),
        ({"order": "left", "block": 2}, "needs tokens"),
        ({"order": "left", "tokens": 0}, "tokens must be at least 1"),
        ({"order": "left", "tokens": 1, "block": 0}, "block must be at least 1"),
        ({"order": "left", "threshold": 0.9}, "belongs to order='confidence'"),
        ({"order": "confidence", "threshold": 1.5}, "threshold lies in"),
    ],
)
def test_what_cannot_be_decoded_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Masked(3, **given)


def test_the_table_says_what_stays_masked() -> None:
    assert torch.allclose(Masked(3).steps(time_grid(4)).table["keep"], torch.tensor([0.75, 2 / 3, 0.5, 0.0]).double())
    assert isinstance(Masked(3).noise(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([0.5]), Rng(0)), Noised)


def test_confidence_ranks_by_the_models_own_probability() -> None:
    """Top-1 makes every candidate certain under the policy; the model is surer of position 1."""

    class Two(nn.Module):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
            return torch.tensor([[0.4, 0.35, 0.25], [0.6, 0.3, 0.1]]).log().expand(*x.shape, 3)

    process = Masked(3, "confidence", tokens=1, top_k=1, temperature=0.5)
    chain = make_sampler(process, TokenDenoiser(Two()), process.steps(time_grid(2)), (2,))(None, Rng(0), rows=2)
    assert step_map(chain.states, 3).tolist() == [[1, 0], [1, 0]] and chain.log_prob.abs().max() == 0
