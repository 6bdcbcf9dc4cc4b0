"""The language recipes: they repeat, resume, start on policy, refuse what they cannot learn from, and learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from denoiserl.core.errors import InvalidInputError, OffPolicyError
from denoiserl.core.rng import Rng
from denoiserl.nn import MLP, Transformer
from denoiserl.oracles import sudoku
from denoiserl.policy.chain import Chain
from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, Masked, TokenDenoiser, flow_sde, linear, time_grid
from denoiserl.recipes.language import diffu_grpo, mdlm, tracerl
from denoiserl.tasks import sudoku as sudoku_task

BASE = sudoku_task.Args(pretrain_updates=4, pretrain_batch_size=16, policy_width=16, policy_depth=1)


def toy(tokens: int = 2, **decoder) -> Policy:
    """Two positions, two tokens."""
    torch.manual_seed(1)
    process = Masked(2, "confidence", tokens=tokens, **decoder)
    net = TokenDenoiser(Transformer(2, 2, width=16, depth=1, heads=2))
    return Policy.of(process, net, (2,), process.steps(time_grid(2 // tokens)), codec=InfillCodec())


CANVAS = torch.full((4, 2), 2)


def agree(written, asked):
    """1 where both positions hold the same token: parallel decoding fails at it half of the time until it decides."""
    return (written[:, 0] == written[:, 1]).float()


def partial_credit(written, asked):
    """The share of valid rows, columns and boxes: a reward that an untrained model can earn."""
    units = written[:, sudoku.UNITS].sort(-1).values
    return (units == torch.arange(4)).all(-1).float().mean(-1)


@pytest.mark.parametrize("likelihood", ["tokens", "exact"])
def test_tracerl_learns_to_agree(likelihood):
    a = tracerl.Args(iterations=60, num_prompts=16, group_size=8, lr=1e-2, epochs=1, likelihood=likelihood)
    rewards = [row["rollout/reward"] for row in tracerl.improve(toy(), (agree, CANVAS), a, Rng(0))]
    assert sum(rewards[:3]) / 3 < 0.7
    assert sum(rewards[-5:]) / 5 > 0.97


def test_diffu_grpo_learns_where_one_pass_is_exact():
    """Everything at once from an empty canvas is what its mean-field guess describes."""
    a = diffu_grpo.Args(
        iterations=60, num_prompts=16, group_size=8, inner_updates=2, lr=1e-2, kl_coef=0.0, reference_sync_every=0
    )
    rewards = [row["rollout/reward"] for row in diffu_grpo.improve(toy(), (agree, CANVAS), a, Rng(0))]
    assert sum(rewards[-5:]) / 5 > 0.97


def test_first_inner_iteration_is_on_policy_bitwise(monkeypatch):
    """Policy, old policy and reference see one mask draw: before an update the three are equal bit for bit."""
    seen = []
    inner = diffu_grpo.one_pass
    monkeypatch.setattr(diffu_grpo, "one_pass", lambda *args: seen.append((args[1], inner(*args))) or seen[-1][1])
    policy = sudoku_task.untrained_policy(BASE, 0)
    a = diffu_grpo.Args(iterations=1, num_prompts=8, group_size=4, inner_updates=2)
    next(diffu_grpo.improve(policy, (partial_credit, sudoku_task.puzzles(0, 32)), a, Rng(0)))
    (m0, old0), (m1, _), (r0, ref0), (r1, _), (n0, new0), (n1, _) = seen
    assert torch.equal(old0, new0) and torch.equal(old0, ref0)
    assert torch.equal(m0, r0) and torch.equal(m0, n0) and torch.equal(m1, r1) and torch.equal(m1, n1)
    assert not torch.equal(m0, m1)  # each inner iteration has a draw of its own


def test_prompt_masks_hide_clues_at_their_rate_and_every_hole():
    canvas = sudoku_task.puzzles(0, 64).repeat(200, 1)
    seen = diffu_grpo.mask_tokens(canvas, canvas, sudoku.MASK, 0.15, (1.0, 1.0), Rng(3))
    clue = canvas != sudoku.MASK
    assert bool((seen[~clue] == sudoku.MASK).all())
    kept = seen[clue] == canvas[clue]
    assert bool((kept | (seen[clue] == sudoku.MASK)).all())
    n = clue.sum().item()
    assert abs((~kept).float().mean().item() - 0.15) < 4 * (0.15 * 0.85 / n) ** 0.5


def test_random_masks_show_what_was_written_and_hide_a_share_of_each_answer():
    canvas = sudoku_task.puzzles(0, 64).repeat(200, 1)
    hole = canvas == sudoku.MASK
    written = torch.where(hole, 1, canvas)
    seen = diffu_grpo.mask_tokens(canvas, written, sudoku.MASK, 0.0, (0.1, 0.9), Rng(3))
    assert torch.equal(seen[~hole], canvas[~hole])
    assert bool(((seen == written) | (seen == sudoku.MASK)).all())
    share = ((seen == sudoku.MASK) & hole).sum(1) / hole.sum(1)
    assert abs(share.mean().item() - 0.5) < 0.01  # U(0.1, 0.9) has mean 0.5 ...
    binomial = (0.25 - 0.64 / 12) / hole.sum(1).float().mean().item()  # E s(1 - s) / holes
    assert abs(share.var().item() - (0.64 / 12 + binomial)) < 0.005  # ... and variance 0.64 / 12, plus the holes' own


def test_tracerl_refuses_to_learn_off_policy(monkeypatch):
    """Scored under another temperature than drawn: the first iteration says so."""
    policy, sample = toy(temperature=1.0), Policy.sample_chain

    def hot(self, *args, **kwargs) -> Chain:
        return sample(replace(self, process=replace(self.process, temperature=2.0)), *args, **kwargs)

    monkeypatch.setattr(Policy, "sample_chain", hot)
    with pytest.raises(OffPolicyError):
        list(tracerl.improve(policy, (agree, CANVAS), tracerl.Args(iterations=1), Rng(0)))


def test_dead_groups_are_counted_and_teach_nothing():
    policy = toy()
    before = [p.clone() for p in policy.parameters()]
    a = tracerl.Args(iterations=2, num_prompts=4, group_size=4)
    rows = list(tracerl.improve(policy, (lambda w, q: torch.ones(len(w)), CANVAS), a, Rng(0)))
    assert [row["rollout/dead_group_fraction"] for row in rows] == [1.0, 1.0] and rows[0][
        "rollout/num_learned_steps"
    ] == 0
    assert all(torch.equal(p, q) for p, q in zip(before, policy.parameters(), strict=True))


def test_accuracy_outside_the_range_is_dropped():
    a = tracerl.Args(iterations=1, num_prompts=32, group_size=4, prompt_accuracy_range=(0.99, 1.0))
    (row,) = tracerl.improve(toy(), (agree, CANVAS), a, Rng(0))
    assert row["rollout/num_learned_steps"] == 0 and row["rollout/dead_group_fraction"] < 1


@pytest.mark.parametrize("recipe", [tracerl, diffu_grpo])
def test_bad_signals_are_refused(recipe):
    for a, reward, said in (
        (recipe.Args(iterations=1), lambda w, q: torch.ones(len(w), 1), "shape"),
        (recipe.Args(iterations=1), lambda w, q: torch.full((len(w),), torch.nan), "finite"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            list(recipe.improve(toy(), (reward, CANVAS), a, Rng(0)))


@pytest.mark.parametrize("recipe", [tracerl, diffu_grpo])
def test_a_policy_that_denoises_numbers_gets_no_advice_about_left_to_right_ones(recipe):
    process = Diffusion(linear, flow_sde(0.7))
    policy = Policy.of(process, GaussianDenoiser(MLP(2, 4, width=16), linear, "v"), (2,), process.steps(time_grid(4)))
    with pytest.raises(
        InvalidInputError, match=r"a policy that denoises numbers improves with ddpo, or with flow_grpo$"
    ):
        list(
            recipe.improve(
                policy, (agree, torch.zeros(4, 4)), recipe.Args(iterations=1, num_prompts=2, group_size=2), Rng(0)
            )
        )


def test_diffu_grpo_refuses_prompts_without_a_hole():
    full = torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(InvalidInputError, match="no mask"):
        list(diffu_grpo.improve(toy(), (agree, full), diffu_grpo.Args(iterations=1), Rng(0)))


def test_mdlm_refuses_data_that_it_would_misread():
    policy, a = toy(), mdlm.Args(num_updates=1, batch_size=2)
    clean = torch.zeros(4, 2, dtype=torch.int64)
    for data, said in (
        (CANVAS, "mask token"),
        (clean[:, :1], "sequences"),
        ({"tokens": clean, "loss_maks": clean == 0}, "loss_mask"),
        ({"tokens": clean, "loss_mask": clean == 1}, "nothing to learn"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            list(mdlm.improve(policy, data, a, Rng(0)))
    with pytest.raises(InvalidInputError, match="Masked"):
        list(mdlm.improve(replace(policy, process=Diffusion()), clean, a, Rng(0)))


def test_mdlm_bound_reaches_the_entropy_of_its_data():
    """Tokens that are equal, and otherwise fair: the best bound is −log 2 per sequence, −log(2)/2 per token."""
    policy, data = toy(1), torch.tensor([[0, 0], [1, 1]])
    list(mdlm.improve(policy, data, mdlm.Args(num_updates=300, batch_size=64, lr=1e-2), Rng(0)))
    with torch.no_grad():
        bound = float(policy.elbo(data, None, Rng(1), 256).mean()) / 2
    assert bound == pytest.approx(-0.3466, abs=0.02)


def test_mdlm_leaves_the_prompt_alone():
    """Only the answer is learned: the prompt, always visible, is never predicted."""
    policy, data = toy(1), torch.tensor([[0, 0], [1, 1]])
    live = torch.tensor([[False, True]]).expand(2, 2)
    list(
        mdlm.improve(
            policy,
            {"tokens": data, "loss_mask": live},
            mdlm.Args(num_updates=200, batch_size=64, lr=1e-2),
            Rng(0),
        )
    )
    told = policy.elbo(data, None, Rng(1), 32, live).detach()
    assert float(told.mean()) > -0.05  # the answer repeats the prompt, so it is certain


def test_not_risen_is_told_after_forty_iterations():
    trend = diffu_grpo.RewardTrend()
    said = [trend.update(0.5) for _ in range(45)]
    assert all(said[:39]) and not any(said[39:])
    trend = diffu_grpo.RewardTrend()
    assert all(trend.update(i / 100) for i in range(60))


def test_outcomes_are_of_unseen_grids():
    train, test = sudoku.split()
    asked = sudoku_task.puzzles(5, 64, True)
    clue = asked != sudoku.MASK
    fits = ((asked[:, None] == test[None]) | ~clue[:, None]).all(-1)
    assert bool(fits.any(-1).all())  # every held-out canvas comes from a grid that is not trained on
    assert not bool((train[:, None] == test[None]).all(-1).any())
    found = sudoku_task.outcomes(sudoku_task.untrained_policy(BASE, 0), BASE, 5, 64)
    assert set(found) == set(sudoku_task.task(BASE).metrics) == {"solved_at_4", "solved_at_2"} and all(
        set(v.tolist()) <= {0.0, 1.0} for v in found.values()
    )
