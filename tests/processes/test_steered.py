"""Steering: the map from decisions to noise, the law of a decision, and a base that runs from it as it always does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Denoiser, Diffusion, Estimate, Rng, make_sampler, rescore, time_grid
from denoiserl.core.errors import InvalidInputError
from denoiserl.processes import StepTable, ddim, linear, window
from denoiserl.processes.steered import BlackBox, Steered, Steering, noise_basis

H, D, ROWS = 6, 2, 5


class Base(Denoiser):
    """An answer that depends on state, time and condition: x̂₀ = tanh(x) + t − c."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def embed_condition(self, cond: Any) -> Any:
        return 2 * cond

    def embed_time(self, t: Tensor) -> Any:
        return 3 * t

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        t = (clock / 3).reshape(-1, 1, 1)
        return Estimate(self.scale * x.tanh() + t - context.reshape(-1, 1, 1) / 2)


class Latent(Denoiser):
    """Mean ½ sin(c + row) and std 0.3 + |c| of the decision; it must see zeros at t = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        mean, std = told(context, x.shape[1])
        assert not bool(x.any()) and bool((clock == 1).all())
        return Estimate(mean + self.shift, {"std": std})


def told(cond: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    at = cond[:, None, None] + torch.arange(rows)[:, None] + torch.arange(D)
    return 0.5 * at.sin(), (0.3 + cond.abs())[:, None, None].expand(len(cond), rows, D)


COND = torch.tensor([0.1, -0.4, 0.7, 0.2, -0.9])
FLOW = Diffusion(linear, ddim(0.0))


def steering(kind: Any = "full", rank: int = 1) -> Steering:
    return Steering(Base(), Latent(), H, kind, rank)


@pytest.mark.parametrize(
    ("kind", "rank"), [("full", 1), ("repeated", 1), ("repeated", 3), ("smooth", 1), ("smooth", 3)]
)
def test_each_number_of_the_noise_has_variance_one(kind: Any, rank: int) -> None:
    basis = noise_basis(kind, H, rank)
    assert basis.shape == (H, {"full": H, "repeated": 1, "smooth": rank}[kind])
    z = Rng(0).normal(200_000, basis.shape[1])
    assert torch.allclose((z @ basis.T).var(0), torch.ones(H), rtol=0.02)


def test_maps_are_the_identity_one_row_or_slow_cosines() -> None:
    assert torch.equal(noise_basis("full", H, 1), torch.eye(H))
    repeated = noise_basis("repeated", H, 4)
    assert float((repeated - repeated[0]).abs().max()) == 0
    waves = noise_basis("smooth", H, H).double()
    waves = waves / waves[:, :1]  # the first is constant before rows were scaled
    gram = waves.T @ waves
    assert torch.allclose(gram - gram.diag().diag(), torch.zeros(H, H).double(), atol=1e-5)  # a cosine transform
    signs = torch.sign(waves).diff(dim=0).abs().sum(0) / 2
    assert signs.tolist() == list(range(H))  # wave k changes its sign k times
    assert bool((waves[0] > 0).all())
    for rank in (0, H + 1):
        with pytest.raises(InvalidInputError, match="between 1 and"):
            noise_basis("smooth", H, rank)
    with pytest.raises(InvalidInputError, match="Did you mean 'smooth'"):
        noise_basis("smoth", H, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("bound", [None, 0.8, 1.5])
@pytest.mark.parametrize(("kind", "rank"), [("full", 1), ("repeated", 1), ("smooth", 3)])
def test_a_steered_chain_decides_and_then_runs_the_base_from_it(kind: Any, rank: int, bound: float | None) -> None:
    """The decision has the density of its rows, and the sample is the base's own from the noise that it means."""
    process, net = Steered(FLOW, bound), steering(kind, rank)
    steps = process.steps(time_grid(4))
    chain = make_sampler(process, net, steps, (H, D))(COND, Rng(0))
    r = net.rows
    z = chain.states[:, 1, :r]
    noise = noise_basis(kind, H, rank) @ z
    assert torch.allclose(chain.states[:, 2], noise, atol=1e-6)
    own = make_sampler(FLOW, net.base, FLOW.steps(time_grid(4)), (H, D))(COND, Rng(1), start=(noise, 0))
    assert torch.allclose(chain.sample, own.sample, atol=1e-5)

    mean, std = told(COND, r)
    law: Any = torch.distributions.Normal(mean, std)
    if bound is not None:
        to_box = [torch.distributions.TanhTransform(), torch.distributions.AffineTransform(0.0, bound)]
        law = torch.distributions.TransformedDistribution(law, to_box)
        assert float(z.abs().max()) < bound
    wanted = law.log_prob(z).sum((1, 2))
    assert chain.step.tolist() == [0] and torch.allclose(chain.log_prob[:, 0], wanted, atol=1e-3)
    for rows in (chain, chain.steps_at(), chain.steps_at(torch.tensor([3, 1]))):
        scored, y = rescore(process, net, rows)
        assert torch.allclose(scored.log_prob(y), rows.log_prob, atol=1e-5)
        assert bool((scored.num_factors == r * D).all())


@pytest.mark.parametrize("bound", [None, 1.2])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
def test_the_spread_scales_the_std_of_the_decision(spread: float, bound: float | None) -> None:
    process, net = Steered(FLOW, bound), steering("smooth", 2)
    steps = process.make_steps(FLOW.steps(time_grid(2)), spread)
    assert steps.dense == (spread > 0, False, False, False) and len(steps) == 4
    net.eval()
    clock, context = net.embed_time(steps.times[:-1].float()), net.embed_condition(COND)
    first = {"base": clock["base"][:1], "latent": clock["latent"][:1], "t": clock["t"][:1]}
    x = torch.zeros(len(COND), H, D)
    law = process.reverse(net(x, first, context), x, steps[0])
    mean, std = told(COND, 2)
    up = law.sample(torch.ones_like(x))[:, :2].detach()
    wanted = mean + spread * std
    assert torch.allclose(up, wanted if bound is None else bound * wanted.tanh(), atol=1e-6)
    assert law.has_density is (spread > 0)


def test_the_base_is_asked_with_its_own_clock() -> None:
    steps = Steered(FLOW).steps(time_grid(4))
    clock = steering().embed_time(steps.times[:-1].float())
    assert clock["base"][2:].tolist() == pytest.approx([3.0, 2.25, 1.5, 0.75])
    assert clock["latent"].tolist() == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25] and len(clock["base"]) == 6


def test_a_base_with_noise_on_any_step_is_refused() -> None:
    for rule in (ddim(1.0), window(ddim(1.0), 1, 2)):
        with pytest.raises(InvalidInputError, match="deterministic base"):
            Steered(Diffusion(linear, rule)).steps(time_grid(4))
    for bad in (lambda: Steered(FLOW, 0.0), lambda: Steered(FLOW).make_steps(FLOW.steps(time_grid(2)), -0.1)):
        with pytest.raises(InvalidInputError, match=r"positive|not negative"):
            bad()


def test_only_the_decision_learns() -> None:
    process, net = Steered(FLOW), steering()
    chain = make_sampler(process, net, process.steps(time_grid(2)), (H, D))(COND, Rng(0))
    law, y = rescore(process, net, chain)
    law.log_prob(y).sum().backward()
    assert net.base.scale.grad is None and not net.base.scale.requires_grad and not net.base.training
    assert float(net.latent.shift.grad.abs()) > 0


def test_a_black_box_is_a_base_of_one_step() -> None:
    """Whatever it answers is the sample: noise in, actions out, once."""
    asked: list[Tensor] = []

    def policy(obs: Tensor, noise: Tensor) -> Any:
        asked.append(noise)
        return (noise.cumsum(1) + obs[:, None, None]).numpy()

    net = Steering(BlackBox(policy), Latent(), H)
    process = Steered(FLOW)
    chain = make_sampler(process, net, process.steps(time_grid(1)), (H, D))(COND, Rng(0))
    assert len(asked) == 1 and torch.equal(asked[0], chain.states[:, 1])
    assert torch.allclose(chain.sample, asked[0].cumsum(1) + COND[:, None, None])


def test_a_table_of_steps_begins_with_the_decision_and_the_map() -> None:
    base = FLOW.steps(time_grid(3))
    made: StepTable = Steered(FLOW).make_steps(base)
    assert made.times.tolist() == [3.0, 2.0, *base.times.tolist()]
    for name, column in base.table.items():
        assert made.table[name][2:].tolist() == column.tolist()
    assert made.table["decision"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0] and made.dense == (True, *[False] * 4)


def test_a_decision_without_a_bound_of_its_own_lies_within_one_and_a_half() -> None:
    process, net = Steered(FLOW), steering()
    clock, context = net.embed_time(process.steps(time_grid(1)).times[:-1].float()), net.embed_condition(COND)
    first = {"base": clock["base"][:1], "latent": clock["latent"][:1], "t": clock["t"][:1]}
    x = torch.zeros(len(COND), H, D)
    law = process.reverse(net(x, first, context), x, process.steps(time_grid(1))[0])
    assert torch.allclose(law.sample(torch.full_like(x, 99.0)), torch.full_like(x, 1.5))
