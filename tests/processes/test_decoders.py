"""What a decoder adds to the model, token by token: temperature, top-k, top-p, shares of the grid, blocks and ends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Autoregressive, Denoiser, Estimate, Masked, Rng, TokenDenoiser, elbo, renoise, time_grid
from denoiserl.oracles.worlds import TableWorld
from denoiserl.policy.likelihood import denoising_losses
from denoiserl.processes import truncate
from denoiserl.processes.tokens import answer

WORLD = TableWorld.random(3, 3, Rng(0), 1.2)
DECODERS: dict[str, dict[str, Any]] = {
    "plain": {}, "cold": {"temperature": 0.4}, "hot": {"temperature": 3.0}, "two": {"top_k": 2},
    "nucleus": {"top_p": 0.75}, "all": {"temperature": 0.7, "top_k": 3, "top_p": 0.8},
}  # fmt: skip


def decoded(logits: list[float], temperature: float = 1.0, top_k: int = 99, top_p: float = 1.0) -> list[float]:
    """The decoder's probabilities in Python: the best tokens until there are k, then until their mass reaches p."""
    weight = [math.exp(v / temperature) for v in logits]
    best = sorted(range(len(weight)), key=lambda v: -weight[v])[:top_k]
    total, kept, mass = sum(weight[v] for v in best), [], 0.0
    for v in best:
        kept.append(v)
        mass += weight[v] / total
        if mass >= top_p:
            break
    total = sum(weight[v] for v in kept)
    return [weight[v] / total if v in kept else 0.0 for v in range(len(weight))]


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoders_tokens_have_the_probabilities_of_its_rules(name: str) -> None:
    """Of masked diffusion and of left-to-right writing alike, at every position, scored and drawn."""
    logits, n = 1.5 * Rng(3).normal(1, 2, 5), 20_000
    x = torch.tensor([[5, 5]])
    masked, causal = Masked(5, "left", tokens=1, **DECODERS[name]), Autoregressive(5, **DECODERS[name])
    wanted = torch.tensor(decoded(logits[0, 0].tolist(), **DECODERS[name]))
    y = torch.stack([torch.arange(5), torch.full((5,), 5)], 1)
    for process in (masked, causal):
        step = process.steps(time_grid(2))[0]
        law = process.reverse(Estimate(logits.expand(5, 2, 5)), x.expand(5, 2), step)
        assert torch.allclose(law.log_prob(y).exp(), wanted, atol=1e-5)
        many = process.reverse(Estimate(logits.expand(n, 2, 5)), x.expand(n, 2), step)
        noise = Rng(0).uniform(n, *process.noise_shape((2,))[1])
        share = torch.bincount(many.sample(noise)[:, 0], minlength=5) / n
        assert bool(((share - wanted).abs() <= 5 * (wanted * (1 - wanted) / n).sqrt()).all())


def test_the_nucleus_ends_where_its_mass_is_reached() -> None:
    """Of four equal tokens two have a mass of exactly one half, and a third is not needed."""
    for top_p, kept in ((0.25, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.76, 4)):
        assert int(truncate(torch.zeros(4), top_p=top_p).isfinite().sum()) == kept


def test_temperatures_lead_from_the_best_token_to_all_alike() -> None:
    logits = Rng(0).normal(6, 5)
    best = torch.nn.functional.one_hot(logits.argmax(-1), 5).float()
    assert torch.allclose(truncate(logits, 1e-3).softmax(-1), best, atol=1e-4)
    assert torch.allclose(truncate(logits, 1e5).softmax(-1), torch.full((6, 5), 0.2), atol=1e-4)


@pytest.mark.parametrize("live", [(True, False, True), (False, True, True), (False, True, False), (True, True, True)])
def test_the_elbo_of_live_positions_is_their_likelihood_given_the_others(live: tuple[bool, ...]) -> None:
    """With exact posteriors the mean over draws is log p(x₀) − log p(dead), and the loss is that a live token."""
    mask, n = torch.tensor(live), 4000
    x0 = WORLD.sequences[::4]
    table, process = WORLD.table.exp().double(), Masked(3)
    dead = [tuple(int(v) if not alive else slice(None) for v, alive in zip(row, live, strict=True)) for row in x0]
    wanted = WORLD.log_prob(x0).double() - torch.stack([table[place].sum() for place in dead]).log()
    noised = renoise(process, x0, n, Rng(0), mask.expand(len(x0), 3))
    found = elbo(process, WORLD.denoiser(), noised)
    assert bool(((found.mean(-1) - wanted).abs() <= 5 * found.std(-1) / math.sqrt(n) + 1e-5).all())
    size = sum(live)
    assert bool(((noised.x == 3) <= mask).all())
    hidden = (noised.x == 3).sum(-1)
    assert bool((hidden >= 1).all() and (hidden <= size).all())
    share = (hidden == 1).double().mean(0)  # counts come in random order: the first draw is like any other
    assert abs(float(share[: n // 2].mean() - share[n // 2 :].mean())) < 5 / math.sqrt(len(x0) * n)
    torch.testing.assert_close(noised.t, hidden / size)
    torch.testing.assert_close(denoising_losses(process, WORLD.denoiser(), noised), -found / size)
    free = torch.rand(len(x0), n).clamp_min(1e-2)
    wide = process.noise(x0[:, None].expand(-1, n, -1), free, Rng(2), mask.expand(len(x0), n, 3))
    assert bool(((wide.x == 3) <= mask).all())
    terms = elbo(process, WORLD.denoiser(), wide)
    assert bool(((terms.mean(-1) - wanted).abs() <= 6 * terms.std(-1) / math.sqrt(n) + 0.02 * wanted.abs()).all())
    torch.testing.assert_close(elbo(process, WORLD.denoiser(), wide._replace(weight=None)), terms)
    twice = noised._replace(weight=2 * noised.weight)  # type: ignore[operator]
    torch.testing.assert_close(elbo(process, WORLD.denoiser(), twice), 2 * found)


def walk(order: Any, masked: int, grid: Tensor) -> list[int]:
    """How many positions each step of a chain reveals."""
    process, counts = Masked(4, order), []
    steps = process.steps(grid)
    x = torch.full((1, masked), 4)
    for k in range(len(steps)):
        law = process.reverse(Estimate(torch.zeros(1, masked, 4)), x, steps[k])
        counts.append(int(law.num_factors))
        x = law.sample(torch.rand(1, masked, 2))
        assert int((x == 4).sum()) == masked - sum(counts)
    return counts


@pytest.mark.parametrize("order", ["confidence", "random", "left", "margin", "entropy"])
def test_the_grid_reveals_its_share_of_what_is_left_rounded_up(order: Any) -> None:
    """Of m masked positions ⌈m (t − s)/t⌉; an exact share is not rounded up by the rounding of floats."""
    assert walk(order, 12, time_grid(12)) == [1] * 12
    assert walk(order, 10, time_grid(4)) == [3, 3, 2, 2]  # ⌈10/4⌉, ⌈7/3⌉, ⌈4/2⌉, 2
    assert walk(order, 2, time_grid(4)) == [1, 1, 0, 0]
    assert walk(order, 100, time_grid(10)) == [10] * 10
    assert walk(order, 8, torch.tensor([1.0, 0.25, 0.125, 0.0]).double()) == [6, 1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_the_independent_rate_is_the_share_that_a_step_reveals(seed: int) -> None:
    """From t = 0.8 to 0.6 and 0.3: (t − s)/t, for one step of all rows and for rows of different steps."""
    process, times = Masked(4), torch.tensor([0.8, 0.6, 0.3, 0.0], dtype=torch.float64)
    steps = process.steps(times)
    x, n = torch.full((20_000, 3), 4), 20_000
    for k, rate in enumerate((0.25, 0.5, 1.0)):
        law = process.reverse(Estimate(torch.zeros(n, 3, 4)), x, steps[k])
        share = float((law.sample(Rng(seed).uniform(n, 3, 2)) != 4).float().mean())
        assert abs(share - rate) <= 5 * math.sqrt(rate * (1 - rate) / (3 * n))
    index = torch.tensor([2, 0, 1, 0])
    mixed = process.reverse(Estimate(torch.zeros(4, 3, 4)), x[:4], steps.gather(index))
    y = x[:4].clone()
    y[:, 0] = 1  # one of three revealed, with a token of probability ¼
    wanted = [r * (1 - r) ** 2 / 4 for r in (1.0, 0.25, 0.5, 0.25)]
    assert mixed.log_prob(y).exp().tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("given", [{"block": 2, "tokens": 1, "order": "left"}, {"end": 0}, {}])
def test_a_condition_knows_the_holes_where_blocks_or_ends_need_them(given: dict[str, Any]) -> None:
    canvas, cond = torch.tensor([[3, 1, 3]]), torch.ones(1, 2)
    made = Masked(3, **given).condition(cond, canvas)
    if not given:
        assert made is cond
        return
    assert made["hole"].tolist() == [[True, False, True]] and made["given"] is cond
    assert Masked(3, **given).condition(made, torch.tensor([[0, 0, 0]])) is made  # told once


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("block", [None, 1, 2, 4])
def test_a_canvas_needs_the_steps_that_its_blocks_take(block: int | None, tokens: int) -> None:
    """Every pattern of six holes: the steps of a walk that opens one block after another, and not one fewer."""
    process = Masked(2, "left", tokens=tokens, block=block)
    for hole in itertools.product([False, True], repeat=6):
        canvas = torch.where(torch.tensor([hole]), 2, 0)
        first = hole.index(True) if any(hole) else 0
        place = [(i - first) // (block or 6) for i in range(6) if hole[i]]
        needed = sum(math.ceil(place.count(b) / tokens) for b in set(place))
        process.check(canvas, max(needed, 1), (6,))
        if needed > 0:
            with pytest.raises(ValueError, match=f"needs {needed} steps"):
                process.check(canvas, needed - 1, (6,))


def test_only_the_leftmost_block_with_holes_is_open() -> None:
    process = Masked(2, "left", tokens=4, block=2)
    canvas = torch.tensor([[0, 2, 2, 2, 2, 2, 2]])  # blocks are counted from position 1
    hole = canvas == 2
    for done, wanted in ((0, [1, 2]), (1, [2]), (2, [3, 4]), (3, [4]), (4, [5, 6]), (5, [6])):
        x = canvas.clone()
        x[:, 1 : 1 + done] = 1
        law = process.reverse(Estimate(torch.zeros(1, 7, 2), {"hole": hole}), x, process.steps(time_grid(6))[0])
        assert law.is_open[0].nonzero().flatten().tolist() == wanted and float(law.num_factors) == len(wanted)


def test_positions_behind_an_end_are_closed_and_then_filled() -> None:
    process = Masked(3, "left", tokens=1, end=0)
    start = torch.tensor([[0, 3, 3, 1, 3, 3]])  # an end and a token of the prompt among the holes
    x = torch.tensor([[0, 2, 0, 1, 3, 3]])
    law = process.reverse(Estimate(torch.zeros(1, 6, 3), {"hole": start == 3}), x, process.steps(time_grid(6))[0])
    assert not bool(law.is_open.any()) and float(law.num_factors) == 0
    assert process.finish(x, start).tolist() == [[0, 2, 0, 1, 0, 0]]
    last = torch.tensor([[0, 2, 1, 1, 2, 0]])
    assert torch.equal(process.finish(last, start), last)
    with pytest.raises(ValueError, match="1 masks are left in 1 of 1"):
        process.finish(torch.tensor([[0, 2, 1, 1, 3, 0]]), start)


def test_an_answer_goes_from_hole_to_hole_up_to_its_first_end_and_with_it() -> None:
    """For every text of four tokens, every set of holes, and an end of 1: against a loop."""
    for tokens in itertools.product(range(2), repeat=4):
        for hole in itertools.product([False, True], repeat=4):
            wanted, over = [], False
            for token, own in zip(tokens, hole, strict=True):
                wanted.append(own and not over)
                over = over or (own and token == 1)
            found = answer(torch.tensor([tokens]), torch.tensor([hole]), 1)
            assert found[0].tolist() == wanted
            assert answer(torch.tensor([tokens]), torch.tensor([hole]), None)[0].tolist() == list(hole)


def test_only_hidden_positions_are_scored() -> None:
    """A network that knows nothing says log ¼ of every position: of these the hidden ones count, weighed by M/k."""

    class Flat(Denoiser):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
            return Estimate(torch.zeros(*x.shape, 4))

    process, x0 = Masked(4), Rng(0).integers(0, 4, 3, 6)
    noised = renoise(process, x0, 12, Rng(1))
    flat = noised._replace(**{k: getattr(noised, k).flatten(0, 1) for k in ("x", "t", "x0", "weight")})
    each, hidden = process.token_log_probs(Flat(), flat, None), flat.x == 4
    assert torch.allclose(each, torch.where(hidden, -math.log(4), 0.0))
    assert int(hidden.sum()) < hidden.numel()
    assert torch.allclose(elbo(process, Flat(), noised), torch.full((3, 12), -6 * math.log(4)))
    assert torch.allclose(denoising_losses(process, Flat(), noised), torch.full((3, 12), math.log(4)))


def test_a_condition_reaches_the_network_for_every_row_of_holes() -> None:
    """One condition may be of many canvases; texts that a start symbol is put before are padded on the right."""

    class Net(nn.Module):
        def embed_condition(self, cond: Any) -> Any:
            return {"twice": 2 * cond["it"]}

    hole, denoise = torch.ones(4, 3, dtype=torch.bool), TokenDenoiser(Net(), start=0)
    told = denoise.embed_condition({"hole": hole, "given": {"it": torch.tensor([[1.0, 3.0]])}})
    assert told["hole"] is hole and told["given"]["twice"].tolist() == [[2.0, 6.0]] * 4
    left, right = torch.tensor([[0, 1, 1], [1, 1, 1]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    it = torch.ones(2, 1)
    for seen in ({"attention_mask": right}, {"padding": right == 0}, {}):
        assert torch.equal(denoise.embed_condition({"it": it, **seen})["twice"], 2 * it)
        TokenDenoiser(Net()).embed_condition({"it": it, "attention_mask": left})
    for seen in ({"attention_mask": left}, {"padding": left == 0}):
        with pytest.raises(ValueError, match="pad canvases on the right"):
            denoise.embed_condition({"it": it, **seen})
