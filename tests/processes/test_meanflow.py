"""Mean flows: the average velocity against closed forms, the identity it is learned from, one step against many."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, elbo, make_sampler, renoise, rescore, time_grid
from denoiserl.core.errors import NoDensityError, RunError
from denoiserl.nn import MLP, DiT, TwoTimeNet, UNet1D
from denoiserl.processes import MeanFlow, MeanVelocityDenoiser, ddim, linear
from denoiserl.processes.meanflow import meanflow_target
from denoiserl.train import fit, training_losses

EVENT = (2,)


def carried(x: Tensor, r: Tensor, t: Tensor, mean: float, std: float) -> Tensor:
    """Where the flow of data N(mean, std²) carries x from t to r: it keeps (x_t − (1 − t) mean) / std_t."""

    def spread(t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * std**2 + t**2).sqrt()

    r, t = (v.reshape(v.shape + (1,) * (x.ndim - v.ndim)) for v in (r, t))
    return (1 - r) * mean + spread(r) / spread(t) * (x - (1 - t) * mean)


class Exact(nn.Module):
    """The average velocity of data N(mean, std²), from where the flow carries a state; std 0 is a point."""

    def __init__(self, mean: float = 0.5, std: float = 0.3) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def at(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        span = (t - r).reshape(t.shape + (1,) * (x.ndim - t.ndim))
        if not bool((span > 1e-3).all()):  # the velocity itself: the slope of the way
            slope = torch.func.jvp(lambda s: carried(x, s, t, self.mean, self.std), (t,), (torch.ones_like(t),))[1]
            return torch.where(span > 1e-3, (x - carried(x, r, t, self.mean, self.std)) / span.clamp_min(1e-3), slope)
        return (x - carried(x, r, t, self.mean, self.std)) / span

    def forward(self, x: Tensor, clock: dict[str, Tensor], context: Any = None) -> Tensor:
        t, r = (clock[k].expand(len(x)) for k in ("t", "r"))
        return self.at(x, r, t)


class Scaled(nn.Module):
    """(1 + off) u: what deviates from the exact one by a factor."""

    def __init__(self, exact: Exact) -> None:
        super().__init__()
        self.exact, self.off = exact, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, clock: dict[str, Tensor], context: Any = None) -> Tensor:
        return (1 + self.off) * self.exact(x, clock)


def times(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    u = torch.rand(2, n, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return 0.02 + 0.6 * u[0] * (0.3 + 0.7 * u[1]), 0.3 + 0.7 * u[1]


@pytest.mark.parametrize("std", [0.3, 1.7, 0.0])
def test_the_identity_holds_for_exact_averages_and_the_sign_of_its_tangent_matters(std: float) -> None:
    """u = v − (t − r) d/dt u, with the derivative along the path; against central differences of the path itself."""
    exact = Exact(std=std)
    r, t = times(64, torch.float64)
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = 1e-5

    def way(s: Tensor) -> Tensor:
        return carried(x, s, t, 0.5, std)

    v = (way(t + h) - way(t - h)) / (2 * h)  # the path through x at t, by differences
    u = exact.at(x, r, t)
    assert float((meanflow_target(exact.at, x, v, r, t) - u).abs().max()) < 1e-5
    slope = (exact.at(way(t + h), r, t + h) - exact.at(way(t - h), r, t - h)) / (2 * h)
    by_differences = v - (t - r)[:, None] * slope
    assert float((meanflow_target(exact.at, x, v, r, t) - by_differences).abs().max()) < 1e-5
    backwards = 2 * v - meanflow_target(exact.at, x, v, r, t)  # the other sign of the tangent
    assert std == 0 or float((backwards - u).abs().mean()) > 0.05  # to a point, paths are straight: nothing to differ


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_exact_averages_end_where_the_ode_ends_in_any_number_of_steps(n: int) -> None:
    process = MeanFlow()
    chain = make_sampler(process, MeanVelocityDenoiser(Exact()), process.steps(time_grid(n)), EVENT)(
        None, Rng(0), rows=500
    )
    start = chain.states[:, 0] if n == 1 else None
    begun = make_sampler(process, MeanVelocityDenoiser(Exact()), process.steps(time_grid(1)), EVENT)(
        None, Rng(0), rows=500
    ).states[:, 0]
    assert start is None or torch.equal(start, begun)
    ends = carried(begun, torch.zeros(500), torch.ones(500), 0.5, 0.3)
    torch.testing.assert_close(chain.sample, ends, atol=2e-6, rtol=0)
    one_euler_step = make_sampler(Diffusion(linear, ddim(0.0)), Velocity(), process.steps(time_grid(1)), EVENT)
    assert float((one_euler_step(None, Rng(0), rows=500).sample - ends).abs().mean()) > 0.1


class Velocity(GaussianDenoiser):
    """The instantaneous velocity of the same data."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.net = _AtOnce()


class _AtOnce(nn.Module):
    def forward(self, x: Tensor, clock: Tensor, context: Any = None) -> Tensor:
        t = clock.expand(len(x)).clone()
        return Exact().at(x, t, t)


def test_the_loss_is_least_at_the_exact_average() -> None:
    """Its gradient by a factor on u is zero at 1: the stop-gradient is there, and noise averages out."""
    process, net = MeanFlow(same=0.25, ends=0.1), Scaled(Exact())
    denoise = MeanVelocityDenoiser(net)
    x0 = 0.5 + 0.3 * torch.randn(60_000, 2, generator=torch.Generator().manual_seed(0))
    loss = training_losses(process, denoise, x0, None, Rng(0))
    (slope,) = torch.autograd.grad(loss.mean(), net.off)
    with torch.no_grad():
        net.off.fill_(0.2)
    (beside,) = torch.autograd.grad(training_losses(process, denoise, x0, None, Rng(0)).mean(), net.off)
    assert abs(float(slope)) < 0.02 * abs(float(beside)), f"{float(slope):.4f} at the optimum, {float(beside):.4f} off"


def test_learning_finds_the_closed_form_in_one_step_and_flow_matching_does_not() -> None:
    """Networks fitted to N(m, s²): where one step from ε ends, against where the flow carries ε."""
    eps = torch.linspace(-1.5, 1.5, 31)[:, None]
    x0 = 0.5 + 0.3 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    wrong = []
    for same in (0.25, 1.0):
        torch.manual_seed(0)
        process, denoise = (
            MeanFlow(same, mean=0.0, std=1.5),
            MeanVelocityDenoiser(TwoTimeNet(MLP(1, width=32, depth=3, time=0))),
        )
        list(fit(process, denoise, x0, None, 300, Rng(0), batch=128, lr=1e-2, warmup=20))
        ends = make_sampler(process, denoise, process.steps(time_grid(1)), (1,))(None, Rng(0), start=(eps, 0)).sample
        wrong.append(float((ends - carried(eps, torch.zeros(31), torch.ones(31), 0.5, 0.3)).abs().max()))
    assert wrong[0] < 0.3 and wrong[0] < 0.5 * wrong[1], wrong


def small() -> TwoTimeNet:
    torch.manual_seed(0)
    return TwoTimeNet(MLP((4, 2), 3, width=16, depth=2, time=0))


class Single(nn.Module):
    """A network of two times, told one: what flow matching sees."""

    def __init__(self, net: TwoTimeNet) -> None:
        super().__init__()
        self.inner = net

    def embed_condition(self, cond: Any) -> Any:
        return self.inner.embed_condition(cond)

    def embed_time(self, t: Tensor) -> Tensor:
        return self.inner.embed_time(t, t)

    def forward(self, x: Tensor, clock: Tensor, context: Any) -> Tensor:
        return self.inner(x, clock, context)


def test_pairs_without_length_are_flow_matching() -> None:
    """λ = 1: the loss and its gradient are rectified flow's at the same times and noise, and so is the ELBO."""
    net = small()
    process, flow = MeanFlow(same=1.0), Diffusion(linear)
    one, other = MeanVelocityDenoiser(net), GaussianDenoiser(Single(net), linear, "v")
    x0, cond = torch.rand(64, 4, 2), torch.randn(64, 3)
    noised = process.noise(x0, torch.rand(64), Rng(0))
    ours, theirs = (p.loss(d, noised, d.embed_condition(cond)) for p, d in ((process, one), (flow, other)))
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(v.mean(), list(net.parameters())) for v in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    shared = renoise(process, x0, 3, Rng(1))
    torch.testing.assert_close(
        elbo(process, one, shared, one.embed_condition(cond)),
        elbo(flow, other, shared, other.embed_condition(cond)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_rows_without_length_are_the_same_bit_for_bit_whatever_the_others_are() -> None:
    net = MeanVelocityDenoiser(small())
    x0 = torch.rand(64, 4, 2)
    noised = MeanFlow(same=0.5).noise(x0, torch.rand(64), Rng(0))
    assert isinstance(noised.noise, dict)
    still = noised.noise["r"] == noised.t
    plain = noised._replace(noise={**noised.noise, "r": noised.t})
    context = net.embed_condition(torch.randn(64, 3))
    mixed, alone = (MeanFlow().loss(net, v, context) for v in (noised, plain))
    assert 10 < int(still.sum()) < 54
    assert torch.equal(mixed[still], alone[still])
    assert not torch.isclose(mixed[~still], alone[~still]).all()


def test_times_have_the_law_of_ordered_pairs() -> None:
    """Against pairs that are drawn and sorted: both times and their difference; and the two shares."""
    process, n = MeanFlow(same=0.3, ends=0.2), 40_000
    rng = Rng(0)
    noised = process.noise(torch.zeros(n, 1), (torch.arange(n) + 0.5) / n, rng)
    assert isinstance(noised.noise, dict)
    t, r = noised.t, noised.noise["r"]
    ends, same = (t == 1) & (r == 0), r == t
    assert abs(float(ends.float().mean()) - 0.2) < 0.01
    assert abs(float(same.float().mean()) - 0.3) < 0.01
    rest = ~ends & ~same
    drawn = torch.sigmoid(-0.4 + torch.randn(2, n, generator=torch.Generator().manual_seed(0))).sort(0).values
    shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    for ours, theirs in ((t[~ends], drawn[1]), (r[rest], drawn[0]), ((t - r)[rest], drawn[1] - drawn[0])):
        torch.testing.assert_close(ours.quantile(shares), theirs.quantile(shares), atol=0.012, rtol=0)
    again = renoise(process, torch.zeros(2000, 1), 8, Rng(1))
    assert isinstance(again.noise, dict)
    assert torch.equal(again.t, renoise(Diffusion(linear), torch.zeros(2000, 1), 8, Rng(1)).t)  # the flow's ELBO's
    assert bool((again.noise["r"] <= again.t).all()) and float((again.noise["r"] == 0).float().mean()) == 0


def test_the_posterior_mean_is_the_estimate_over_no_time() -> None:
    """At r = t, x̂ is E[x₀ | x_t] of Gaussian data: (mean/std² + (1 − t) x/t²) / (1/std² + (1 − t)²/t²)."""
    t = torch.linspace(0.1, 0.95, 40)
    x, denoise = torch.randn(40, 2), MeanVelocityDenoiser(Exact())
    told = denoise(x, denoise.embed_time_pair(t, t), None).mean
    a, s = (1 - t)[:, None], t[:, None]
    torch.testing.assert_close(told, (0.5 / 0.09 + a * x / s**2) / (1 / 0.09 + a**2 / s**2), atol=1e-5, rtol=1e-4)


def test_a_mean_flow_is_a_policy_like_any_other(tmp_path) -> None:
    process = MeanFlow(ends=0.1)
    policy = Policy.of(
        process,
        MeanVelocityDenoiser(small()),
        (4, 2),
        process.steps(time_grid(2), std=0.2),
        process.steps(time_grid(1)),
    )
    cond = torch.randn(6, 3)
    again = Policy.load(policy.save(tmp_path / "policy"))
    assert again.process == process
    assert torch.equal(policy.generate(cond, Rng(2)), again.generate(cond, Rng(2)))
    chain = again.sample_chain(cond, Rng(1))
    law, y = rescore(again.process, again.denoiser, chain, micro_batch_size=6)
    assert torch.equal(law.log_prob(y), chain.log_prob)
    rows = chain.steps_at(torch.tensor([5, 0, 7]))
    law, y = rescore(again.process, again.denoiser, rows)
    torch.testing.assert_close(law.log_prob(y), chain.log_prob.flatten()[[5, 0, 7]], atol=1e-4, rtol=1e-4)
    with pytest.raises(NoDensityError):
        policy.rescore(policy.sample_chain(cond, Rng(1), use_eval_steps=True))
    differentiable = policy.make_sampler(use_eval_steps=True, differentiable_steps=1)(cond, Rng(1)).sample
    assert any(p.grad is not None for p in _backward(differentiable.square().mean(), policy.parameters()))


def _backward(loss: Tensor, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    loss.backward()
    return parameters


def test_dead_factors_stay_clean_and_say_nothing() -> None:
    process, net = MeanFlow(same=0.0), MeanVelocityDenoiser(small())
    x0, live = torch.rand(16, 4, 2), torch.rand(16, 4, 2) < 0.6
    live[:, 0] = True
    noised = process.noise(x0, torch.rand(16), Rng(0), live)
    assert torch.equal(noised.x[~live], x0[~live])
    assert isinstance(noised.noise, dict) and torch.equal(noised.noise["eps"][~live], x0[~live]), "they do not move"
    context = net.embed_condition(torch.randn(16, 3))
    (slope,) = torch.autograd.grad(process.loss(net, noised, context).sum(), list(net.parameters())[-1])
    fixed = process.loss(net, noised._replace(mask=live & live.new_zeros(())), context)
    assert float(slope.abs().min()) > 0 and torch.equal(fixed, torch.zeros(16)), "without live factors there is no loss"


def test_factors_that_move_and_do_not_count_move_in_the_derivative() -> None:
    """Everything is noised and some has no loss (padding): d/dt u is along the whole path, v = ε − x₀ everywhere."""
    process, net = MeanFlow(same=0.0), MeanVelocityDenoiser(small())
    x0, counts = torch.rand(16, 4, 2), torch.rand(16, 4, 2) < 0.6
    counts[:, 0] = True
    noised = process.noise(x0, torch.rand(16), Rng(0))
    context = net.embed_condition(torch.randn(16, 3))
    eps, r, t = noised.noise["eps"], noised.noise["r"], noised.t  # type: ignore[index]
    v = eps - x0
    goal = meanflow_target(lambda x, r, t: net.velocity(x, net.embed_time_pair(t, r), context), noised.x, v, r, t)
    error = (net.velocity(noised.x, net.embed_time_pair(t, r), context) - goal).square() * counts
    wanted = error.sum((1, 2)) / counts.sum((1, 2))
    assert torch.allclose(process.loss(net, noised._replace(mask=counts), context), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_networks_with_convolutions_and_attention_can_be_mean_flows(name: str) -> None:
    """Attention is differentiated unfused; forward differentiation agrees with reverse differentiation taken twice."""
    torch.manual_seed(0)
    net = UNet1D((8, 3), 5, channels=(8, 16), hidden=16) if name == "unet" else DiT((1, 8, 8), 5, width=16, depth=1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    flow = MeanVelocityDenoiser(TwoTimeNet(net))
    context = flow.embed_condition(torch.randn(4, 5))
    shape = net.data

    def velocity(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return flow.velocity(x, flow.embed_time_pair(t, r), context)

    x, v = torch.randn(2, 4, *shape)
    r, t = torch.full((4,), 0.2), torch.full((4,), 0.7)
    told = meanflow_target(velocity, x, v, r, t)
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = torch.autograd.functional.jvp(lambda x, t: velocity(x, r, t), (x, t), (v, torch.ones(4)))
    assert not told.requires_grad
    assert isinstance(slope, Tensor)
    torch.testing.assert_close(told, v - 0.5 * slope, atol=1e-3, rtol=1e-3)


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Opaque(nn.Module):
    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return _Opaque.apply(x)


def test_what_cannot_be_a_mean_flow_is_refused() -> None:
    process = MeanFlow()
    dropout = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    with pytest.raises(RunError, match="dropout"):
        MeanVelocityDenoiser(dropout)
    with pytest.raises(RunError, match="dropout"):
        MeanVelocityDenoiser(nn.MultiheadAttention(4, 2, dropout=0.1))
    MeanVelocityDenoiser(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    compiled = nn.Module()
    compiled._orig_mod = nn.Linear(2, 2)  # as torch.compile wraps it, without seconds of importing the compiler
    with pytest.raises(RunError, match="compiled"):
        MeanVelocityDenoiser(compiled)
    with pytest.raises(RunError, match="no embed_time"):
        TwoTimeNet(nn.Linear(2, 2))
    x0 = torch.randn(8, 2)
    with pytest.raises(RunError, match=r"torch\.func\.jvp knows"):
        training_losses(MeanFlow(same=0.0), MeanVelocityDenoiser(Opaque()), x0, None, Rng(0))
    with pytest.raises(RunError, match="MeanVelocityDenoiser"):
        training_losses(process, GaussianDenoiser(MLP(2)), x0, None, Rng(0))
    with pytest.raises(RunError, match=r"embed_time_pair\(t, r\)"):
        training_losses(Diffusion(linear), MeanVelocityDenoiser(Exact()), x0, None, Rng(0))  # the wrong process
    with pytest.raises(ValueError, match="t = 0"):
        process.steps(time_grid(2, end=0.1))
    begun = process.steps(time_grid(4)).slice_steps(0, 2)  # stops in the middle, where nobody's velocity ends
    with pytest.raises(RunError, match="must run to its end"):
        make_sampler(process, MeanVelocityDenoiser(Exact()), begun, EVENT)(None, Rng(0), rows=3)
    with pytest.raises(ValueError, match="at most 1"):
        MeanFlow(same=0.8, ends=0.3)
    with pytest.raises(ValueError, match="positive"):
        MeanFlow(std=0.0)
    assert math.isclose(float(process.level(process.level_cdf(torch.tensor(0.3)))), 0.3, rel_tol=1e-5)
