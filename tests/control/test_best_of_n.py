"""Controlled policies: counts that recover counts, the best of n, plans from chosen noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.control.best_of_n import (
    BestOfN,
    BestOfNNoise,
    LatentController,
    PseudoCountVerifier,
    candidates,
    features,
    split_rng,
)
from denoiserl.control.noise_steering import decode_noise, steer
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.nn import MLP
from denoiserl.nn.coin_flip_network import CoinFlipNetwork, coin_flip_targets
from denoiserl.processes import GaussianHead, ddim, linear, with_min_std
from denoiserl.train import adamw, optimizer_step


def policy(eta: float = 0.0, steps: int = 3) -> Policy:
    torch.manual_seed(0)
    process = Diffusion(linear, with_min_std(ddim(0.0), 0.1), clip=1.0)
    net = MLP((2, 1), cond=3, width=16, depth=2)
    times = time_grid(steps)
    return Policy.of(
        process, GaussianDenoiser(net, linear, "v"), (2, 1), process.steps(times), process.steps(times, ddim(eta))
    )


# Counting


def test_counts_recover_how_often_each_state_of_a_tabular_world_was_seen() -> None:
    """E‖f‖²/coins = 1/n at the optimum, so its logarithm falls on a line of slope −1 and the counts are the counts."""
    torch.manual_seed(0)
    seen = torch.tensor([1, 2, 4, 8, 16]).repeat(8)
    states = torch.eye(len(seen))
    data = states.repeat_interleave(seen, 0)
    coins = CoinFlipNetwork(len(seen), width=64)
    coins.standardise(data)
    signs, opt = coin_flip_targets(len(data), 20), adamw(coins.learned.parameters(), 1e-2)
    for _ in range(120):
        optimizer_step(opt, (coins(data) - signs).square().mean())
    size = coins(states).detach().square().mean(-1)
    mean = torch.stack([size[seen == n].mean() for n in (1, 2, 4, 8, 16)])
    assert torch.allclose(1 / mean, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), rtol=0.25)
    x = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).log()
    slope = ((x - x.mean()) * mean.log()).sum() / (x - x.mean()).square().sum()
    assert -1.2 < float(slope) < -0.8
    count = coins.count(states).detach()
    assert float(count[seen == 16].min()) > float(count[seen <= 2].max())


def test_what_was_never_seen_looks_rare_and_does_so_because_of_the_prior() -> None:
    torch.manual_seed(0)
    place = torch.randn(10, 8)
    data = place.repeat_interleave(20, 0)
    coins = CoinFlipNetwork(8, width=64)
    coins.standardise(data)
    fresh = float(coins(data).detach().square().mean())
    assert fresh == pytest.approx(1, abs=1e-4), "before learning everything looks new"
    signs, opt = coin_flip_targets(len(data), 20), adamw(coins.learned.parameters(), 1e-2)
    for _ in range(100):
        optimizer_step(opt, (coins(data) - signs).square().mean())
    new = torch.randn(300, 8)
    rare, known = (float(coins.count(x).detach().median()) for x in (new, place))
    assert rare < 5 < 10 < known


def test_the_signs_of_a_datum_are_its_own() -> None:
    assert torch.equal(coin_flip_targets(5, 20), coin_flip_targets(9, 20)[:5])
    many = coin_flip_targets(2000, 20)
    assert set(many.unique().tolist()) == {-1.0, 1.0}
    assert float(many.mean().abs()) < 0.03 and not torch.equal(coin_flip_targets(5, 20, 1), coin_flip_targets(5, 20))


def test_data_without_differences_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="same features"):
        CoinFlipNetwork(3).standardise(torch.ones(5, 3))
    with pytest.raises(InvalidInputError, match="two data"):
        CoinFlipNetwork(3).standardise(torch.ones(1, 3))


# The best of n


class Low(nn.Module):
    """Prefers plans that begin low."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, policy: Policy, cond: Tensor, plan: Tensor) -> Tensor:
        self.seen.append((len(cond), len(plan)))
        return -plan[:, 0, 0]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_first_candidate_of_a_row_is_the_policys_own_draw_and_the_others_are_further_draws(eta: float) -> None:
    made, cond = policy(eta), torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    own = made.generate(cond, Rng.rows(range(5)))
    plans = candidates(made, cond, 4, Rng.rows(range(5)))
    assert torch.allclose(plans[:, 0], own, atol=1e-6)
    assert float((plans[:, 1:] - plans[:, :1]).abs().amax((1, 2, 3)).min()) > 1e-3
    part = candidates(made, cond[2:4], 4, Rng.rows(range(2, 4)))  # a row is the same in any batch
    assert torch.allclose(part, plans[2:4], atol=1e-6)


def test_streams_of_candidates_are_the_rows_stream_further_on() -> None:
    rng = Rng.rows([3, 8])
    many = split_rng(rng, 3)
    a, b = rng.normal(2, 7), many.normal(6, 7)
    assert torch.equal(a, b[[0, 3]])
    assert len(b.unique(dim=0)) == 6
    assert split_rng(Rng(0), 3).keys is None


def test_the_best_of_one_is_the_policy_bit_for_bit_and_the_best_of_more_is_the_best() -> None:
    made, cond = policy(), torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    for rng in (lambda: Rng(0), lambda: Rng.rows(range(6))):
        assert torch.equal(made.with_controller(BestOfN(Low(), 1)).generate(cond, rng()), made.generate(cond, rng()))
        chosen = made.with_controller(BestOfN(Low(), 8)).generate(cond, rng())
        plans = candidates(made, cond, 8, rng())
        assert torch.equal(chosen[:, 0, 0], plans[:, :, 0, 0].min(1).values)


def test_a_row_stream_goes_on_as_if_one_plan_had_been_drawn() -> None:
    made, cond = policy(), torch.zeros(2, 3)
    one, many = Rng.rows([1, 2]), Rng.rows([1, 2])
    made.generate(cond, one)
    made.with_controller(BestOfN(Low(), 5)).generate(cond, many)
    assert torch.equal(one.normal(2, 3), many.normal(2, 3))


def test_a_condition_is_encoded_once_for_all_candidates() -> None:
    made, encoded = policy(), []
    encode = made.denoiser.embed_condition
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.denoiser, "embed_condition", lambda c: (encoded.append(len(c)), encode(c))[1])
        candidates(made, torch.zeros(4, 3), 16, Rng(0))
    assert encoded == [4]


def test_equal_scores_take_the_first_plan() -> None:
    class Same(nn.Module):
        def forward(self, policy, cond, plan):
            return torch.ones(len(plan))

    made, cond = policy(), torch.zeros(3, 3)
    assert torch.allclose(
        made.with_controller(BestOfN(Same(), 6)).generate(cond, Rng.rows(range(3))),
        made.generate(cond, Rng.rows(range(3))),
        atol=1e-6,
    )


def test_a_control_leaves_the_policy_alone_is_saved_with_it_and_moves_with_it(tmp_path) -> None:
    made, cond = policy(), torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in made.denoiser.state_dict().items()}
    coins = CoinFlipNetwork(16, width=8)
    coins.standardise(features(made, cond, torch.zeros(4, 2, 1)))
    own = made.with_controller(BestOfN(PseudoCountVerifier(coins), 7))
    drawn = own.generate(cond, Rng(1))
    assert not torch.equal(drawn, made.generate(cond, Rng(1))[: len(drawn)])
    assert all(torch.equal(v, before[k]) for k, v in made.denoiser.state_dict().items())
    loaded = Policy.load(own.save(tmp_path / "p"))
    assert torch.equal(loaded.generate(cond, Rng(1)), drawn)
    assert torch.equal(loaded.with_controller(None).generate(cond, Rng(1)), made.generate(cond, Rng(1)))
    state = own.state_dict()
    with pytest.raises(RunError, match="come with a controller"):
        made.load_state_dict(state)
    own.load_state_dict(state)


def test_the_best_noise_of_a_steered_policy_is_chosen_among_its_bases_own_plans() -> None:
    base, cond = policy(), torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    made = steer(base, 3, 8, eval_std_scale=0.5)
    for p in made.denoiser.latent.parameters():  # type: ignore[union-attr]
        p.data.add_(1.0)  # what it would decide does not matter
    for rng in (lambda: Rng(0), lambda: Rng.rows(range(6))):
        assert torch.allclose(
            made.with_controller(BestOfNNoise(Low(), 1)).generate(cond, rng()), base.generate(cond, rng()), atol=1e-6
        )
        chosen = made.with_controller(BestOfNNoise(Low(), 8)).generate(cond, rng())
        assert torch.allclose(chosen, base.with_controller(BestOfN(Low(), 8)).generate(cond, rng()), atol=1e-5)
    one, many = Rng.rows([1, 2]), Rng.rows([1, 2])
    made.with_controller(BestOfNNoise(Low(), 1)).generate(cond[:2], one)
    made.with_controller(BestOfNNoise(Low(), 5)).generate(cond[:2], many)
    assert torch.equal(one.normal(2, 3), many.normal(2, 3))
    with pytest.raises(InvalidInputError, match="not steered"):
        base.with_controller(BestOfNNoise(Low(), 5)).generate(cond, Rng(0))


def test_activations_are_what_enters_the_last_layer() -> None:
    """The last layer applied to them is the network's answer."""
    made, cond, plan = policy(), torch.randn(4, 3), torch.randn(4, 2, 1)
    phi = features(made, cond, plan)
    assert isinstance(made.denoiser, GaussianDenoiser)
    last = made.eval_steps.times[-2:-1].float()
    net = made.denoiser.net
    answer = net(plan, net.embed_time(last), net.embed_condition(cond))  # type: ignore[operator]
    assert torch.allclose(net.leave(phi).view(4, 2, 1), answer, atol=1e-6)  # type: ignore[operator]
    assert torch.equal(features(made, cond, plan, "plan"), torch.cat([cond, plan.flatten(1)], 1))
    with pytest.raises(InvalidInputError, match="kind of features"):
        features(made, cond, plan, "plans")  # type: ignore[arg-type]
    made.denoiser.net.leave = None  # type: ignore[assignment]
    with pytest.raises(InvalidInputError, match='features="plan"'):
        features(made, cond, plan)


def test_verifiers_that_do_not_judge_every_plan_are_refused() -> None:
    class Wrong(nn.Module):
        def forward(self, policy, cond, plan):
            return torch.full((len(plan),), math.nan)

    with pytest.raises(InvalidInputError, match="finite number per plan"):
        policy().with_controller(BestOfN(Wrong(), 2)).generate(torch.zeros(2, 3), Rng(0))
    with pytest.raises(InvalidInputError, match="at least 1"):
        BestOfN(Wrong(), 0)


# Plans from chosen noise


def test_a_plan_follows_from_its_noise_alone() -> None:
    made, obs = policy(), torch.randn(4, 3)
    z = torch.randn(4, 2, 1)
    assert torch.equal(decode_noise(made, obs, z), decode_noise(made, obs, z))
    assert torch.equal(
        decode_noise(made, obs, z), made.sample_chain(obs, Rng(9), use_eval_steps=True, start=(z, 0)).sample
    )
    steered = steer(made, 3, 8, bound=None)
    assert torch.allclose(decode_noise(steered, obs, z), decode_noise(made, obs, z), atol=1e-6), "one G, steered or not"
    with pytest.raises(InvalidInputError, match=r"ddim\(0.0\)"):
        decode_noise(policy(eta=1.0), obs, z)


def test_latents_start_the_policy_at_the_heads_mean() -> None:
    made, obs = policy(), torch.randn(4, 3)
    head = GaussianHead(MLP((2, 1), cond=3, width=8, time=0), 1)
    mean = head(torch.zeros(4, 2, 1), head.embed_time(torch.ones(1)), head.embed_condition(obs)).mean
    assert torch.allclose(made.with_controller(LatentController(head, False)).generate(obs, Rng(0)), mean)
    through = made.with_controller(LatentController(head)).generate(obs, Rng(0))
    assert torch.allclose(through, decode_noise(made, obs, mean))
    assert torch.equal(made.with_controller(LatentController(head)).generate(obs, Rng(5)), through)
