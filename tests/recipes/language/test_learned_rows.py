"""What the language recipes learn from: answers up to their end, what stayed possible, in parts, at any precision."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Autoregressive, Masked, Policy, Rng, TokenDenoiser, time_grid
from denoiserl.core.errors import InvalidInputError, OffPolicyError, RunError
from denoiserl.nn import Transformer
from denoiserl.policy.codec import IdentityCodec, InfillCodec
from denoiserl.recipes.language import diffu_grpo, mdlm, tracerl

RECIPES = {"tokens": tracerl, "exact": tracerl, "diffu_grpo": diffu_grpo}


class Table(nn.Module):
    """Logits at a position from tokens at all of them; every position has parameters of its own."""

    def __init__(self, length: int, vocab: int = 3) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(0.5 * torch.randn(length, length, vocab + 1, vocab, generator=g))

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        seen = nn.functional.one_hot(x, self.table.shape[2]).to(self.table.dtype)
        return torch.einsum("bjv,ijvw->biw", seen, self.table)


def made(net: nn.Module | None = None, length: int = 4, **decoder: Any) -> Policy:
    given = {"order": "confidence", "tokens": 2, **decoder}
    process = Masked(3, **given)
    return Policy.of(
        process, TokenDenoiser(net or Table(length)), (length,), process.steps(time_grid(length)), codec=InfillCodec()
    )


def args(name: str, **more: Any) -> Any:
    sizes = {"iterations": 2, "num_prompts": 6, "group_size": 4, "lr": 1e-2}
    if name == "diffu_grpo":
        return diffu_grpo.Args(**{**sizes, "inner_updates": 2, **more})
    return tracerl.Args(**{**sizes, "likelihood": name, "batch_size": 20, "lr_warmup": 0, **more})


def improve(
    name: str, policy: Policy, reward: Callable[..., Any], prompts: Any, seed: int = 0, **more: Any
) -> list[dict]:
    return list(RECIPES[name].improve(policy, (reward, prompts), args(name, **more), Rng(seed)))


def parity(written: Tensor, asked: Any) -> Tensor:
    return (written.sum(-1) % 2).float()


CANVAS = torch.tensor([[1, 3, 3, 3], [2, 3, 3, 3]])


@pytest.mark.parametrize("micro", [5, 7])
@pytest.mark.parametrize("name", RECIPES)
def test_an_update_is_the_same_however_many_rows_a_forward_has(name: str, micro: int, monkeypatch: Any) -> None:
    """With plain gradient descent: Adam makes full steps of gradients that are rounding alone."""
    monkeypatch.setattr(RECIPES[name], "adamw", lambda params, lr: torch.optim.SGD(list(params), 10 * lr))
    whole, split = made(), made()
    rows = improve(name, whole, parity, CANVAS)
    assert any("loss/policy" in row for row in rows)
    for a, b in zip(rows, improve(name, split, parity, CANVAS, micro_batch_size=micro), strict=True):
        assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], abs=1e-5) for k in a)
    for p, q in zip(whole.parameters(), split.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_imitation_is_the_same_however_many_rows_a_forward_has() -> None:
    data, live = Rng(0).integers(0, 3, 40, 4), Rng(1).uniform(40, 4) < 0.8
    live[:, 0] = True
    found = []
    for micro in (None, 1, 5):
        policy = made()
        a = mdlm.Args(num_updates=5, batch_size=12, lr=1e-2, micro_batch_size=micro)
        list(mdlm.improve(policy, {"tokens": data, "loss_mask": live}, a, Rng(2)))
        found.append(next(iter(policy.parameters())).detach())
    assert torch.allclose(found[0], found[1], atol=1e-6) and torch.allclose(found[0], found[2], atol=1e-6)


@pytest.mark.parametrize("micro", [1, 5])
def test_answers_drawn_in_parts_are_those_drawn_at_once(micro: int) -> None:
    policy, asked = made(end=0, block=2), CANVAS.repeat(8, 1)
    once, parts = policy.sample_chain(asked, Rng(3)), policy.sample_chain(asked, Rng(3), micro_batch_size=micro)
    assert torch.equal(once.states, parts.states) and torch.equal(once.sample, parts.sample)
    assert torch.allclose(once.log_prob, parts.log_prob, atol=1e-5)
    law, y = policy.rescore(parts)
    assert torch.allclose(law.log_prob(y).detach(), parts.log_prob, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_no_rows_at_a_time_is_refused(name: str) -> None:
    with pytest.raises(RunError, match="micro_batch_size = 0"):
        improve(name, made(), parity, CANVAS, micro_batch_size=0)


def test_what_an_update_made_impossible_carries_no_loss_and_is_counted() -> None:
    """Top-2 of three tokens and large steps: tokens and sets that were drawn cannot be drawn any more."""
    for name in ("exact", "tokens"):
        rows = []
        for seed in range(5):
            rows += improve(name, made(top_k=2), parity, CANVAS, seed, iterations=4, epochs=4, batch_size=3, lr=0.5)
        assert max(row.get("loss/impossible_fraction", 0.0) for row in rows) > 0.05
        assert all(0 <= row["loss/impossible_fraction"] <= 1 for row in rows if "loss/impossible_fraction" in row)
        if name == "exact":
            assert sum(row.get("train/skipped_updates", 0) for row in rows) > 0


def test_a_minibatch_of_nothing_possible_leaves_weights_and_momentum_alone(monkeypatch: Any) -> None:
    policy, plain = made(), tracerl.score_steps
    before = [p.detach().clone() for p in policy.parameters()]

    def gone(policy: Policy, trace: Any, exact: bool) -> tuple[Tensor, Tensor]:
        value, counts = plain(policy, trace, exact)
        return value, counts & (not monkeypatched)

    monkeypatched = False
    monkeypatch.setattr(tracerl, "score_steps", gone)
    monkeypatch.setattr(tracerl, "check_first_update", lambda *_: {})
    old = tracerl.old_log_probs

    def then(*given: Any) -> Any:
        nonlocal monkeypatched
        monkeypatched = False
        found = old(*given)
        monkeypatched = True
        return found

    monkeypatch.setattr(tracerl, "old_log_probs", then)
    rows = improve("exact", policy, parity, CANVAS)
    assert all(
        row["loss/impossible_fraction"] == 1 and row["train/skipped_updates"] > 0 and "loss/policy" not in row
        for row in rows
    )
    assert all(torch.equal(p, q) for p, q in zip(before, policy.parameters(), strict=True))


def ending(order: str = "random") -> Policy:
    """Position 1 writes the end, 0, in nearly all answers."""
    policy = made(order=order, tokens=1, end=0)
    with torch.no_grad():
        policy.denoiser.net.table[1, :, :, 0] += 3.0  # from each of four neighbours
    return policy


def coin(written: Tensor, asked: Any) -> Tensor:
    """Rewards that differ within every group, whatever was written."""
    return (torch.arange(len(written)) % 2).float()


@pytest.mark.parametrize("name", RECIPES)
def test_text_behind_the_end_is_not_learned_from(name: str) -> None:
    """Tokens that were drawn behind the end, before it was, move no parameter of their positions."""
    more = {"kl_coef": 0.0, "iterations": 1} if name == "diffu_grpo" else {"iterations": 1, "min_step_nll": 0.0}
    for end, moves in ((0, [False, True, False, False]), (None, [False, True, True, True])):
        policy = ending()
        assert isinstance(policy.process, Masked)
        policy = replace(policy, process=replace(policy.process, end=end))
        before, written = policy.denoiser.net.table.detach().clone(), []
        improve(name, policy, lambda w, q, seen=written: seen.append(w) or coin(w, q), CANVAS, **more)
        assert bool((written[0][:, 1] == 0).all())
        assert (policy.denoiser.net.table != before).flatten(1).any(-1).tolist() == moves


@pytest.mark.parametrize("name", RECIPES)
def test_rewards_see_ends_and_no_masks(name: str) -> None:
    seen = []

    def reward(written: Tensor, asked: Any) -> Tensor:
        seen.append(written)
        return coin(written, asked)

    improve(name, ending("left"), reward, CANVAS)
    for w in seen:
        stop = ((w == 0).cumsum(-1) - (w == 0).long() > 0)[:, 1:]
        assert bool((w < 3).all()) and bool((w[:, 1:][stop] == 0).all()) and int(stop.sum()) > len(w)


def test_rewards_of_any_scale_teach() -> None:
    """Groups are compared within themselves: a reward may be negative or count points."""
    for scale, shift in ((5.0, 0.0), (1.0, -3.0), (100.0, -50.0)):
        rows = improve("exact", made(), lambda w, q, s=scale, b=shift: s * parity(w, q) + b, CANVAS)
        assert all(row["rollout/num_learned_steps"] > 0 for row in rows)
    with pytest.raises(InvalidInputError, match="from -3 to -2: return 0 to 1, or leave prompt_accuracy_range out"):
        improve("exact", made(), lambda w, q: parity(w, q) - 3, CANVAS, prompt_accuracy_range=(0.2, 0.8))


@pytest.mark.parametrize("name", RECIPES)
def test_bad_rewards_can_be_dropped_and_parts_weighed(name: str) -> None:
    """Dropped rows move nothing: what they hold may be anything. Parts of weight zero are told and not learned."""

    def reward(written: Tensor, asked: Any, bad: float) -> dict[str, Tensor]:
        right, row = parity(written, asked), torch.arange(len(written))
        return {"right": torch.where(row % 5 == 0, bad, right), "length": 7.0 * (row % 3)}

    found = []
    for bad in (torch.nan, torch.inf):
        policy = made()
        rows = improve(
            name,
            policy,
            lambda w, q, b=bad: reward(w, q, b),
            CANVAS,
            invalid_rewards="drop",
            reward_weights={"right": 1.0},
        )
        assert [row["rollout/num_invalid_rewards"] for row in rows] == [5, 5] and all(
            "reward/length" in row for row in rows
        )
        assert all(0 < row["rollout/reward"] < 1 for row in rows)
        found.append(next(iter(policy.parameters())).detach())
    assert torch.equal(*found)
    with pytest.raises(InvalidInputError, match="not finite"):
        improve(name, made(), lambda w, q: reward(w, q, torch.nan), CANVAS)


class Rough(Table):
    """Answers that depend on the shape of a call, as low precision's do."""

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        logits = super().forward(x, clock, context).float()
        wave = torch.sin(torch.arange(logits.numel()) * (1.0 + len(x))).reshape(logits.shape)
        return logits + 4e-3 * wave


@pytest.mark.parametrize("name", RECIPES)
def test_weights_in_bf16_may_round_by_shape(name: str) -> None:
    policy = made(Rough(4).to(torch.bfloat16))
    improve(name, policy, parity, CANVAS, batch_size=5) if name != "diffu_grpo" else improve(
        name, policy, parity, CANVAS
    )


@pytest.mark.parametrize("name", ["tokens", "exact"])
def test_float32_that_rounds_by_shape_needs_a_tolerance(name: str) -> None:
    with pytest.raises(OffPolicyError, match=r"above 0\.001"):
        improve(name, made(Rough(4)), parity, CANVAS, batch_size=5)
    first, *_ = improve(name, made(Rough(4)), parity, CANVAS, batch_size=5, ratio_tolerance=0.05)
    assert ("ppo/flipped_fraction" in first) == (name == "exact")


def test_a_flipped_rank_is_told_and_does_not_stop_learning() -> None:
    """All confidences equal: which position comes first is decided by rounding alone, by nats in the exact joint."""
    net = Rough(4)
    with torch.no_grad():
        net.table.zero_()
    first, *_ = improve("exact", made(net), coin, CANVAS, batch_size=5, ratio_tolerance=0.05)
    assert 0.2 < first["ppo/flipped_fraction"] <= 1


class Encoder(nn.Module):
    """torch's own encoder, which takes another kernel where no gradient is asked for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.token, self.place = nn.Embedding(4, 16), nn.Parameter(torch.randn(4, 16))
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return 8 * self.head(self.body(self.token(x) + self.place))


@pytest.mark.parametrize("name", RECIPES)
def test_a_network_with_another_kernel_under_no_grad_starts_at_a_ratio_of_one(name: str) -> None:
    rows = improve(
        name, made(Encoder()), coin, CANVAS, iterations=1, ratio_tolerance=None if name != "diffu_grpo" else 1e-9
    )
    assert "loss/policy" in rows[0]


def test_long_sequences_are_scored_token_by_token_by_default() -> None:
    for length, exact in ((16, True), (17, False)):
        process = Masked(3, "confidence", tokens=4)
        net = TokenDenoiser(Table(length))
        policy = Policy.of(process, net, (length,), process.steps(time_grid(5)), codec=InfillCodec())
        a = tracerl.Args(iterations=1, num_prompts=4, group_size=4)
        (row,) = tracerl.improve(policy, (parity, torch.full((2, length), 3)), a, Rng(0))
        assert ("ppo/flipped_fraction" in row) == exact


@pytest.mark.parametrize("recipe", [tracerl, diffu_grpo])
def test_a_left_to_right_policy_is_refused_with_the_recipes_that_take_it(recipe: Any) -> None:
    process = Autoregressive(3)
    policy = Policy.of(
        process, TokenDenoiser(Table(4), shift=True), (4,), process.steps(time_grid(3)), codec=InfillCodec()
    )
    with pytest.raises(InvalidInputError, match=r"not for Autoregressive.*ddpo.*flow_grpo"):
        next(recipe.improve(policy, (parity, CANVAS), recipe.Args(iterations=1), Rng(0)))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("way", [lambda v: v.numpy(), lambda v: v.tolist()], ids=["numpy", "lists"])
def test_canvases_may_be_arrays_and_lists(name: str, way: Any) -> None:
    assert improve(name, made(), parity, way(CANVAS)) == improve(name, made(), parity, CANVAS)


@pytest.mark.parametrize("name", RECIPES)
def test_prompts_may_bring_arguments_of_the_network(name: str) -> None:
    """A dict of a canvas and a condition: the condition reaches the network, row by row, in all three passes."""
    prompts, gained = {"canvas": CANVAS, "cond": torch.eye(2)}, 0.0
    for seed in range(4):  # some seeds stay with the answer that one of the two prompts asks for
        torch.manual_seed(seed)
        net = Transformer(3, 4, width=16, depth=1, heads=2, cond=2)

        def reward(w: Tensor, q: Any) -> Tensor:
            return (w[:, 1] == q["cond"].argmax(-1)).float()

        rows = [
            row["rollout/reward"] for row in improve(name, made(net), reward, prompts, seed, iterations=60, lr=3e-3)
        ]
        gained += sum(rows[-5:]) - sum(rows[:5])
    assert gained > 2
    with pytest.raises(InvalidInputError, match="tokens as 'canvas'"):
        improve(name, made(net), coin, {"tokens": CANVAS})


@pytest.mark.parametrize("name", RECIPES)
def test_prompts_may_be_conditions_of_an_empty_canvas(name: str) -> None:
    torch.manual_seed(0)
    net = Transformer(3, 4, width=16, depth=1, heads=2, cond=2)
    policy = replace(made(net), codec=IdentityCodec())
    rows = improve(name, policy, lambda w, q: (w[:, 1] == q.argmax(-1)).float(), torch.eye(2))
    assert any("loss/policy" in row for row in rows)


@pytest.mark.parametrize("live", [False, True])
def test_imitation_neither_sees_nor_masks_padding(live: bool) -> None:
    """The network is told where padding is. An end of text that has the padding's id is one where ``live`` says so."""

    class Watched(Table):
        def embed_condition(self, cond: Any) -> Any:
            told.append(cond["padding"])
            return cond

        def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
            seen.append(x)
            return super().forward(x, clock, None)

    told, seen = [], []
    process = Masked(3)
    net = TokenDenoiser(Watched(5))
    policy = Policy.of(process, net, (5,), process.steps(time_grid(5)), codec=InfillCodec(pad=0))
    data = torch.tensor([[0, 1, 2, 0, 0]]).expand(8, 5)
    mask = torch.tensor([[False, False, True, True, False]]).expand(8, 5)
    given = {"tokens": data, "loss_mask": mask} if live else data
    list(mdlm.improve(policy, given, mdlm.Args(num_updates=8, batch_size=8), Rng(0)))
    assert bool((torch.cat(told) == torch.tensor([True, False, False, not live, True])).all())
    hidden = (torch.cat(seen) == 3).any(0).tolist()
    assert hidden == ([False, False, True, True, False] if live else [False, True, True, False, False])


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_of_a_forward_outlives_its_turn(name: str, monkeypatch: Any) -> None:
    """When the next forward of an update begins, the answers of the one before are gone."""
    alive: list[weakref.ref] = []
    forward = TokenDenoiser.forward

    def watched(self: TokenDenoiser, *given: Any) -> Any:
        if torch.is_grad_enabled():
            assert not [ref for ref in alive if ref() is not None]
        found = forward(self, *given)
        if torch.is_grad_enabled():
            alive.append(weakref.ref(found.mean))
        return found

    monkeypatch.setattr(TokenDenoiser, "forward", watched)
    improve(name, made(), parity, CANVAS, micro_batch_size=5)
    assert len(alive) > 8


@pytest.mark.parametrize("name", RECIPES)
def test_prompts_may_hold_ids_that_are_no_token(name: str) -> None:
    """Special tokens beyond the tokenizer's own, or padding: they are read, and never scored."""
    net, canvas = Table(4, 5), torch.where(CANVAS < 3, 4, CANVAS)
    rows = improve(name, made(net), parity, canvas, **({"prompt_mask": 0.5} if name == "diffu_grpo" else {}))
    assert any("loss/policy" in row for row in rows)
