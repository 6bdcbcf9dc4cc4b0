"""Where an answer begins and ends: blocks, ends of text, budgets of steps, and ids that are no token."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Autoregressive, Masked, Policy, Rng, TokenDenoiser, time_grid
from denoiserl.control.best_of_n import candidates
from denoiserl.core.errors import InvalidInputError
from denoiserl.nn import Transformer
from denoiserl.policy.codec import InfillCodec
from denoiserl.processes import step_map

END, MASK = 0, 3


class Table(nn.Module):
    """Logits that depend on position and neighbours, and are known."""

    def __init__(self, length: int, vocab: int, seed: int = 0, surplus: int = 0) -> None:
        super().__init__()
        shape = (length, length, vocab + 1, vocab + surplus)
        self.table = nn.Parameter(0.7 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        seen = nn.functional.one_hot(x, self.table.shape[2]).float()
        return torch.einsum("bjv,ijvw->biw", seen, self.table)


def made(length: int, n: int, vocab: int = 3, **decoder: Any) -> Policy:
    process = Masked(vocab, **decoder)
    return Policy.of(
        process, TokenDenoiser(Table(length, vocab)), (length,), process.steps(time_grid(n)), codec=InfillCodec()
    )


def paths(policy: Policy, canvas: Tensor) -> dict[tuple[int, ...], float]:
    """Every final state and its probability, by walking all steps and scoring every conceivable next state."""
    length, n = len(canvas), len(policy.train_steps)
    frontier = {tuple(canvas.tolist()): 1.0}
    cond = policy.process.condition(None, canvas[None])
    for k in range(n):
        reached: dict[tuple[int, ...], float] = {}
        for state, weight in frontier.items():
            choices = [range(4) if v == MASK else [v] for v in state]
            y = torch.tensor(list(itertools.product(*choices)))
            x = torch.tensor(state).expand(len(y), length)
            many = None if cond is None else {"hole": cond["hole"].expand(len(y), length), "given": None}
            context = policy.denoiser.embed_condition(many)
            estimate = policy.denoiser(x, policy.denoiser.embed_time(torch.ones(len(y))), context)
            p = policy.process.reverse(estimate, x, policy.train_steps[k]).log_prob(y).double().exp()
            assert float(p.sum()) == pytest.approx(1.0, abs=1e-6)  # every step is a law
            for row, value in zip(y.tolist(), (p * weight).tolist(), strict=True):
                if value:
                    reached[tuple(row)] = reached.get(tuple(row), 0.0) + value
        frontier = reached
    return frontier


DECODERS = {
    "confidence": {"order": "confidence", "tokens": 2, "end": END},
    "threshold": {"order": "confidence", "tokens": 1, "threshold": 0.5, "end": END},
    "blocks": {"order": "confidence", "tokens": 1, "block": 2, "end": END},
    "random": {"order": "random", "tokens": 2, "end": END},
    "left": {"order": "left", "tokens": 1, "end": END},
    "ancestral": {"order": "independent", "end": END},
    "top-k": {"order": "confidence", "tokens": 2, "block": 3, "top_k": 2, "end": END},
}


@pytest.mark.parametrize("name", DECODERS)
def test_with_ends_and_blocks_every_step_is_a_law_and_draws_follow_it(name: str) -> None:
    """Enumerated: each step sums to one over all next states, and final states occur as often as they weigh."""
    canvas, policy = torch.tensor([END, 1, MASK, MASK, MASK]), made(5, 3, **DECODERS[name])
    with torch.no_grad():
        wanted = paths(policy, canvas)
    many = 6000
    chain = policy.sample_chain(canvas.expand(many, 5), Rng(1))
    last = [tuple(row) for row in chain.states[:, -1].tolist()]
    assert sum(wanted.values()) == pytest.approx(1.0, abs=1e-5)
    for state, p in wanted.items():
        assert abs(last.count(state) / many - p) < 5 * math.sqrt(p * (1 - p) / many) + 1e-3, state
    law, y = policy.rescore(chain)
    assert torch.allclose(law.log_prob(y).detach(), chain.log_prob, atol=1e-5)
    rows = chain.steps_at()
    law, y = policy.rescore(rows)
    assert torch.allclose(law.log_prob(y).detach(), rows.log_prob, atol=1e-5)


def test_an_end_in_the_prompt_ends_nothing_and_a_written_one_closes_the_rest() -> None:
    canvas = torch.tensor([[END, 1, MASK, MASK, MASK]]).expand(500, 5)
    policy = made(5, 3, order="left", tokens=1, end=END)
    with torch.no_grad():
        policy.denoiser.net.table.mul_(0.3)[..., END] += 0.6  # ends are seen, and not always
    chain = policy.sample_chain(canvas, Rng(0))
    stop = chain.sample[:, 2] == END
    assert 0.005 < float(stop.float().mean()) < 0.95
    assert bool((chain.sample[stop, 2:] == END).all()) and bool((chain.sample != MASK).all())
    assert bool((chain.log_prob[stop, 1:] == 0).all()) and bool((chain.log_prob[~stop, 1] < 0).all())
    assert bool((chain.states[stop, -1, 3:] == MASK).all())  # nothing was decided there


def test_a_left_to_right_answer_ends_as_well() -> None:
    process = Autoregressive(3, end=END)
    net = Transformer(3, 5, width=8, depth=1, heads=2, causal=True)
    policy = Policy.of(process, TokenDenoiser(net, shift=True), (5,), process.steps(time_grid(3)), codec=InfillCodec())
    chain = policy.sample_chain(torch.tensor([[END, 1, MASK, MASK, MASK]]).expand(400, 5), Rng(0))
    stop = chain.sample[:, 2] == END
    assert 0.005 < float(stop.float().mean()) < 0.95
    assert bool((chain.sample[stop, 2:] == END).all()) and bool((chain.sample != MASK).all())
    assert bool((chain.log_prob[stop, 1:] == 0).all()) and bool((chain.log_prob[~stop, 1] < 0).all())
    law, y = policy.rescore(chain)
    assert torch.allclose(law.log_prob(y).detach(), chain.log_prob, atol=1e-5)


@pytest.mark.parametrize("prompt", [0, 1, 3, 5])
def test_blocks_are_counted_from_the_end_of_the_prompt(prompt: int) -> None:
    """Whatever the prompt's length, answers of 10 in blocks of 4 take five steps of two, in this order of blocks."""
    policy = made(prompt + 10, 5, order="confidence", tokens=2, block=4)
    canvas = torch.full((40, prompt + 10), MASK)
    canvas[:, :prompt] = 1
    chain = policy.sample_chain(canvas, Rng(0))
    when, block = step_map(chain.states, MASK)[:, prompt:], torch.arange(10) // 4
    assert bool((when[..., None] < when[:, None])[:, block[:, None] < block].all())
    assert bool((when[:, :8] < 4).all()) and bool((when[:, 8:] == 4).all())
    law, y = policy.rescore(chain)
    assert torch.allclose(law.log_prob(y).detach(), chain.log_prob, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "decoder", "says"),
    [
        (3, {"tokens": 2}, "10 holes and needs 5 steps of 2 tokens; this decoder takes 3"),
        (4, {"tokens": 2, "block": 4}, "10 holes in blocks of 4 and needs 5 steps"),
        (4, {"tokens": 3, "block": 4}, "needs 5 steps of 3 tokens; this decoder takes 4"),
        (2, {"tokens": 2, "threshold": 0.999}, "masks are left in 4 of 4 answers"),
    ],
)
def test_more_holes_than_the_decoder_fills_are_refused(n: int, decoder: dict[str, Any], says: str) -> None:
    canvas = torch.full((4, 12), MASK)
    canvas[:, :2] = 1
    for draw in (Policy.generate, Policy.sample_chain):
        with pytest.raises(InvalidInputError, match=says):
            draw(made(12, n, order="confidence", **decoder), canvas, Rng(0))


def test_several_candidates_of_an_answer_are_finished_as_one_is() -> None:
    canvas = torch.tensor([[1, MASK, MASK, MASK]]).expand(50, 4)
    policy = made(4, 3, order="left", tokens=1, end=END)
    many = candidates(policy, canvas, 3, Rng(0))
    assert many.shape == (50, 3, 4) and bool((many != MASK).all()) and bool((many[..., 0] == 1).all())
    stop = ((many == END).cumsum(-1) - (many == END).long()) > 0
    assert bool((many[stop] == END).all()) and bool(stop.any())
    with pytest.raises(InvalidInputError, match="needs 3 steps"):
        candidates(made(4, 2, order="left", tokens=1), canvas, 3, Rng(0))


def test_a_grid_that_stops_early_serves_no_masks() -> None:
    process = Masked(3)
    policy = Policy.of(
        process, TokenDenoiser(Table(6, 3)), (6,), process.steps(time_grid(4, end=0.5)), codec=InfillCodec()
    )
    with pytest.raises(InvalidInputError, match="a grid that ends at 0"):
        policy.generate(torch.full((8, 6), MASK), Rng(0))


def test_left_to_right_policies_refuse_what_they_cannot_finish() -> None:
    process = Autoregressive(3)
    policy = Policy.of(
        process, TokenDenoiser(Table(6, 3), shift=True), (6,), process.steps(time_grid(3)), codec=InfillCodec()
    )
    with pytest.raises(InvalidInputError, match="5 open positions; this decoder takes 3"):
        policy.generate(torch.tensor([[1, 3, 3, 3, 3, 3]]), Rng(0))


@pytest.mark.parametrize("process", [Masked(3, "confidence", tokens=3), Autoregressive(3)])
def test_a_canvas_of_another_length_is_refused_with_both_numbers(process: Any) -> None:
    policy = Policy.of(
        process, TokenDenoiser(Table(6, 3), shift=True), (6,), process.steps(time_grid(6)), codec=InfillCodec()
    )
    with pytest.raises(InvalidInputError, match="canvas has 8 positions, the policy writes 6"):
        policy.generate(torch.tensor([[1] * 6 + [3, 3]]), Rng(0))


@pytest.mark.parametrize("surplus", [0, 1, 5])
@pytest.mark.parametrize("mask", [None, 0, 1])
def test_neither_the_mask_nor_an_id_of_no_token_is_drawn(mask: int | None, surplus: int) -> None:
    """Networks have rows for the mask and surplus ones: they are never drawn, and take no probability."""
    net = Table(4, 3 if mask is None else 2, surplus=surplus + (0 if mask is None else 1))
    process = Masked(3, "confidence", tokens=2, mask_id=mask)
    policy = Policy.of(process, TokenDenoiser(net), (4,), process.steps(time_grid(2)), codec=InfillCodec())
    with torch.no_grad():
        for v in range(net.table.shape[-1]):
            net.table[..., v] += 9.0 * (v == process.mask_token or v >= 3)  # what is no token is what it likes best
    drawn = policy.generate(torch.full((400, 4), process.mask_token), Rng(0))
    tokens = {0, 1, 2} - {process.mask_token}
    assert set(drawn.unique().tolist()) == tokens
    whole, total = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4)
    for v in tokens:
        noised = process.mask_positions(torch.full((1, 4), v), whole, torch.ones(1), None, torch.ones(1))
        total = total + process.token_log_probs(policy.denoiser, noised, None).exp()
    assert torch.allclose(total, torch.ones(1, 4), atol=1e-5)


def test_left_to_right_ids_of_no_token_are_not_drawn() -> None:
    net, process = Table(4, 3, surplus=3), Autoregressive(3)
    with torch.no_grad():
        net.table[..., 3:] += 9.0
    policy = Policy.of(process, TokenDenoiser(net, shift=True), (4,), process.steps(time_grid(3)), codec=InfillCodec())
    assert int(policy.generate(torch.tensor([[1, 3, 3, 3]]).expand(200, 4), Rng(0)).max()) < 3


def test_an_end_that_is_no_token_is_refused() -> None:
    for process in (lambda: Masked(3, end=3), lambda: Masked(3, end=1, mask_id=1), lambda: Autoregressive(3, end=-1)):
        with pytest.raises(ValueError, match="is no token"):
            process()
