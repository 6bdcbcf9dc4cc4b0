"""What makes recording cheap changes no bit: steps scored together, coefficients as scalars, a compiled loop."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from denoiserl import (
    Diffusion,
    Estimate,
    GaussianDenoiser,
    RecordSample,
    Rng,
    elbo,
    make_sampler,
    renoise,
    rescore,
    time_grid,
)
from denoiserl.core.tree import tree_map
from denoiserl.distributions import Gaussian
from denoiserl.distributions.gaussian import stack
from denoiserl.nn import MLP, UNet1D
from denoiserl.processes import Process, StepTable, cosine, ddim, linear, window, with_learned_std, with_min_std
from denoiserl.processes.denoiser import Denoiser


class Noisy(Denoiser):
    """A denoiser that reports a std for each factor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(5, cond=2, width=16)

    def embed_condition(self, cond: Tensor) -> Tensor:  # type: ignore[override]
        return self.net.embed_condition(cond)  # type: ignore[return-value]

    def embed_time(self, t: Tensor) -> Tensor:
        return self.net.embed_time(t)

    def forward(self, x: Tensor, clock: Tensor, context: Tensor) -> Estimate:  # type: ignore[override]
        out = self.net(x, clock, context)
        return Estimate(out, {"std": 0.1 + out.abs()})


def by_hand(process: Process, denoise: Denoiser, steps: StepTable, cond: Tensor, event: tuple[int, ...], seed: int):
    """A chain written out: numbers from the table, one step scored at a time."""
    rng, count = Rng(seed), len(cond)
    x = process.prior((count, *event)).sample(rng.normal(count, *event))
    noise = rng.noise("normal", len(steps), count, event)
    states, scores = [x], []
    with torch.no_grad():
        clock, context = denoise.embed_time(steps.times[:-1].float()), denoise.embed_condition(cond)
        for k in range(len(steps)):
            now = tree_map(lambda v, k=k: v[k : k + 1], clock)
            law = process.reverse(denoise(x, now, context), x, steps[k])
            x = law.sample(noise[k])
            states.append(x)
            if steps.dense[k]:
                scores.append(law.log_prob(x))
    return torch.stack(states, 1), torch.stack(scores, 1)


@pytest.mark.parametrize("batch", [1, 3, 33])
@pytest.mark.parametrize("kind", ["mlp", "unet", "window", "learned"])
def test_a_record_is_bit_for_bit_the_chain_written_out(kind, batch):
    torch.manual_seed(0)
    event, transition, denoise = (
        (5,),
        with_min_std(ddim(1.0), 0.1),
        GaussianDenoiser(MLP(5, cond=2, width=16), linear, "v"),
    )
    if kind == "unet":
        event, denoise = (8, 3), GaussianDenoiser(UNet1D((8, 3), cond=2, channels=(8, 16)), linear, "x0")
    elif kind == "window":
        transition, denoise = window(ddim(0.7), 1, 3), GaussianDenoiser(MLP(5, cond=2, width=16), cosine, "v")
    elif kind == "learned":
        transition, denoise = with_learned_std(), Noisy()
    process = Diffusion(cosine if kind == "window" else linear, transition)
    steps, cond = process.steps(time_grid(6)), torch.randn(batch, 2)
    states, scores = by_hand(process, denoise, steps, cond, event, seed=4)
    for grad_last in (0, 2):
        chain = make_sampler(process, denoise, steps, event, differentiable_steps=grad_last)(cond, Rng(4))
        assert isinstance(chain.states, Tensor) and isinstance(chain.sample, Tensor)
        assert torch.equal(chain.states, states)
        assert torch.equal(chain.log_prob, scores)
        law, y = rescore(process, denoise, chain, micro_batch_size=batch)
        assert torch.equal(law.log_prob(y), chain.log_prob)
        quick = make_sampler(process, denoise, steps, event, record=RecordSample())(cond, Rng(4)).sample
        assert isinstance(quick, Tensor) and torch.equal(quick, chain.sample)


def test_laws_scored_together_are_laws_scored_one_by_one():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 4, 3, 5, generator=generator)
    means = torch.randn(4, 7, 3, 5, generator=generator)
    stds = torch.rand(4, generator=generator) + 0.1
    live = torch.rand(4, 7, 3, 5, generator=generator) < 0.7
    for dead in (False, True):
        laws = [Gaussian(m, s, 2, True, v if dead else None) for m, s, v in zip(means, stds, live, strict=True)]
        one_by_one = torch.stack([law.log_prob(x[:, k]) for k, law in enumerate(laws)], 1)
        assert torch.equal(stack(laws).log_prob(x), one_by_one)
    wide = [Gaussian(m, s + v.float(), 2, True) for m, s, v in zip(means, stds, live, strict=True)]
    one_by_one = torch.stack([law.log_prob(x[:, k]) for k, law in enumerate(wide)], 1)
    assert torch.equal(stack(wide).log_prob(x), one_by_one)


def test_no_condition_is_one_context_for_every_row():
    net = MLP(5, cond=2, width=16, null=True)
    denoise, null = GaussianDenoiser(net, linear, "v"), net.condition.null
    assert null is not None
    process = Diffusion(linear, with_min_std(ddim(1.0), 0.1))
    chain = make_sampler(process, denoise, process.steps(time_grid(6)), (5,))(None, Rng(0), rows=3)
    for micro in (3, 4, None):
        law, y = rescore(process, denoise, chain, micro)
        torch.testing.assert_close(law.log_prob(y), chain.log_prob, atol=1e-4, rtol=1e-5)
        law, y = rescore(process, denoise, chain.steps_at(), micro)
        torch.testing.assert_close(law.log_prob(y), chain.log_prob.flatten(), atol=1e-4, rtol=1e-5)
    noised = renoise(process, chain.sample, 4, Rng(1))
    one, many = denoise.embed_condition(None), denoise.embed_condition(null.expand(3, 2))
    torch.testing.assert_close(elbo(process, denoise, noised, one), elbo(process, denoise, noised, many))


def test_tables_moved_in_inference_mode_serve_gradients_later():
    """A first draw runs in inference mode; its cached scalars must not be inference tensors."""
    process, denoise = Diffusion(linear, with_min_std(ddim(1.0), 0.1)), GaussianDenoiser(MLP(5, width=16), linear, "v")
    steps = process.steps(time_grid(4))
    make_sampler(process, denoise, steps, (5,))(None, Rng(0), rows=2)
    chain = make_sampler(process, denoise, steps, (5,), differentiable_steps=3)(None, Rng(0), rows=2)
    assert isinstance(chain.sample, Tensor)
    chain.sample.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in denoise.parameters())


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="torch's compiler writes vectors that do not compile there",
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_loop_draws_the_same_chain():
    torch.manual_seed(0)
    net = nn.Linear(3, 3)

    class Plain(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, context: Tensor | None) -> Tensor:
            return net(x) * clock[:, None]

    process, denoise = Diffusion(linear, with_min_std(ddim(1.0), 0.1)), GaussianDenoiser(Plain(), linear, "v")
    steps = process.steps(time_grid(3))
    eager = make_sampler(process, denoise, steps, (3,))(None, Rng(0), rows=4)
    fast = make_sampler(process, denoise, steps, (3,), compile=True)(None, Rng(0), rows=4)
    torch.testing.assert_close(fast.states, eager.states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.log_prob, eager.log_prob, atol=1e-3, rtol=1e-4)
    law, y = rescore(process, denoise, fast, micro_batch_size=4)
    torch.testing.assert_close(law.log_prob(y), fast.log_prob, atol=1e-4, rtol=1e-5)
