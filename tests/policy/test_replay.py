"""Replay equals the record, bitwise where every call has the rows of the run, and batches can be split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import (
    Denoiser,
    Diffusion,
    Estimate,
    Gaussian,
    GaussianDenoiser,
    Masked,
    OneStep,
    RecordAll,
    RecordWindow,
    Rng,
    TokenDenoiser,
    make_sampler,
    rescore,
    time_grid,
)
from denoiserl.core.errors import NoDensityError, OffPolicyError
from denoiserl.nn import MLP, Transformer
from denoiserl.oracles.worlds import GaussianWorld
from denoiserl.policy.chain import Chain, stack
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.processes import (
    Linear,
    betas_cosine,
    cosine,
    cps,
    dance_sde,
    ddim,
    edm,
    flow_sde,
    linear,
    precise,
    vp,
    window,
    with_capped_std,
    with_decaying_std,
    with_learned_std,
    with_min_std,
)

GAUSSIAN: dict[str, Diffusion] = {
    "ddim 1": Diffusion(linear, ddim(1.0)),
    "ddim .5 cosine": Diffusion(cosine, ddim(0.5)),
    "ddim table": Diffusion(betas_cosine(), ddim(1.0)),
    "floored": Diffusion(cosine, with_min_std(ddim(1.0), 0.15)),
    "floored clip": Diffusion(cosine, with_min_std(ddim(1.0), 0.15), clip=0.5),
    "quiet": Diffusion(vp, with_capped_std(with_min_std(ddim(1.0), 0.2), 0.1)),
    "flow": Diffusion(linear, flow_sde(0.7)),
    "flow shift": Diffusion(Linear(3.0), flow_sde(0.7)),
    "dance": Diffusion(linear, dance_sde(0.3)),
    "cps": Diffusion(linear, cps(0.8)),
    "precise": Diffusion(linear, precise(1.5)),
    "window": Diffusion(linear, window(flow_sde(0.7), 1, 4)),
    "decaying": Diffusion(vp, with_decaying_std(ddim(1.0), 0.2)),
    "edm": Diffusion(edm, ddim(1.0)),
    "injected": Diffusion(linear, with_learned_std()),
}


class Noisy(Denoiser):
    """Reports its own noise, as an injected transition wants."""

    def __init__(self, inner: GaussianDenoiser) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Linear(3, 3)

    def embed_condition(self, cond: Any) -> Any:
        return self.inner.embed_condition(cond)

    def embed_time(self, t: Tensor) -> Any:
        return self.inner.embed_time(t)

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        return Estimate(self.inner(x, clock, context).mean, {"std": 0.1 + self.scale(x).sigmoid()})


def denoiser(process: Diffusion) -> Denoiser:
    predicts = {"edm": "edm"}.get(next(k for k, v in GAUSSIAN.items() if v is process), "v")
    inner = GaussianDenoiser(MLP(3, 4, width=32), process.schedule, predicts)
    return Noisy(inner) if process is GAUSSIAN["injected"] else inner


@pytest.mark.parametrize("rows", [1, 2, 17, 64])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_gaussian_replay_is_the_record_bit_by_bit(name: str, rows: int) -> None:
    process = GAUSSIAN[name]
    model, cond = denoiser(process), torch.randn(rows, 4)
    steps = process.steps(time_grid(6))
    chain = make_sampler(process, model, steps, (3,))(cond, Rng(0))
    law, y = rescore(process, model, chain, micro_batch_size=rows)
    assert torch.equal(law.log_prob(y).detach(), chain.log_prob)
    assert law.has_density is True and chain.log_prob.shape == (rows, sum(steps.dense)) == law.num_factors.shape
    shuffled = torch.randperm(chain.log_prob.numel())
    law, y = rescore(process, model, chain.steps_at(shuffled))
    close = (law.log_prob(y).detach() - chain.log_prob.flatten()[shuffled]).abs()
    assert float(close.max()) < 1e-3  # other calls: other sums. Small std magnify an estimate's last bit.


MASKED: dict[str, Masked] = {
    "independent": Masked(5),
    "confidence": Masked(5, "confidence"),
    "confidence 2": Masked(5, "confidence", tokens=2, temperature=0.7, top_k=3),
    "threshold": Masked(5, "confidence", tokens=2, threshold=0.3),
    "top p": Masked(5, "confidence", tokens=2, top_p=0.8),
    "random": Masked(5, "random", tokens=2),
    "left": Masked(5, "left", tokens=2, temperature=1.3),
    "margin": Masked(5, "margin", tokens=2),
    "entropy": Masked(5, "entropy", tokens=2),
    "block": Masked(5, "confidence", tokens=2, block=4),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_replay_is_the_record_bit_by_bit(name: str) -> None:
    process = MASKED[name]
    model = TokenDenoiser(Transformer(5, 8, width=32, depth=2, heads=2))
    for rows in (1, 16):
        steps = process.steps(time_grid(4))
        chain = make_sampler(process, model, steps, (8,))(None, Rng(0), rows=rows)
        law, y = rescore(process, model, chain, micro_batch_size=rows)
        assert torch.equal(law.log_prob(y).detach(), chain.log_prob)
        assert bool(chain.log_prob.isfinite().all()) and chain.log_prob.shape == (rows, 4)
        shuffled = torch.randperm(4 * rows)
        law, y = rescore(process, model, chain.steps_at(shuffled))
        assert torch.allclose(law.log_prob(y).detach(), chain.log_prob.flatten()[shuffled], atol=1e-4)


def test_one_step_replay_is_the_record_bit_by_bit() -> None:
    process = OneStep(std=0.2)
    model = GaussianDenoiser(MLP(3, 4, width=32, time=0), linear, "x0")
    chain = make_sampler(process, model, process.steps(time_grid(1)), (3,))(torch.randn(9, 4), Rng(0))
    law, y = rescore(process, model, chain, micro_batch_size=9)
    assert torch.equal(law.log_prob(y).detach(), chain.log_prob)


EVERY = RecordAll()


def image_chain(record: Any = EVERY, start: Any = None, seeds: Any = range(6)) -> tuple[Diffusion, Denoiser, Chain]:
    process = Diffusion(linear, window(ddim(1.0), 1, 5))
    torch.manual_seed(0)
    model = GaussianDenoiser(MLP((1, 2, 3), 4, width=32), linear, "v")
    cond = Rng.rows(seeds).normal(len(seeds), 4)
    draw = make_sampler(process, model, process.steps(time_grid(6)), (1, 2, 3), record=record)
    return process, model, draw(cond, Rng.rows(seeds), start=start)


def test_a_split_batch_is_the_whole() -> None:
    _, _, whole = image_chain()
    assert isinstance(whole.sample, Tensor) and isinstance(whole.states, Tensor)
    for seeds in ([0], [3, 4], [5, 1]):
        _, _, part = image_chain(seeds=seeds)
        assert torch.allclose(part.sample, whole.sample[seeds], atol=1e-5)  # type: ignore[arg-type]
        assert torch.allclose(part.log_prob, whole.log_prob[seeds], atol=1e-3)


def test_rows_are_the_steps_that_they_index() -> None:
    process, model, chain = image_chain()
    assert isinstance(chain.x, Tensor) and isinstance(chain.y, Tensor) and isinstance(chain.cond, Tensor)
    assert chain.step.tolist() == [1, 2, 3, 4] and chain.x.shape == (6, 4, 1, 2, 3)
    index = torch.tensor([23, 0, 9, 9, 14])
    rows = chain.steps_at(index)
    b, s = index // 4, index % 4
    assert torch.equal(rows.x, chain.x[b, s]) and torch.equal(rows.y, chain.y[b, s])  # type: ignore[arg-type]
    assert torch.equal(rows.cond, chain.cond[b]) and rows.chain_index.equal(b)  # type: ignore[arg-type]
    assert torch.equal(rows.step, chain.step[s]) and torch.equal(rows.log_prob, chain.log_prob[b, s]) and len(rows) == 5
    whole, _ = rescore(process, model, chain)
    some, y = rescore(process, model, rows)
    assert isinstance(whole, Gaussian) and isinstance(some, Gaussian)
    assert torch.allclose(some.mean, whole.mean[b, s], atol=1e-6)
    assert torch.allclose(some.log_prob(y).detach(), chain.log_prob[b, s], atol=1e-4)
    pick = torch.tensor([1, 3])
    part = rows.select(pick)
    assert torch.equal(rescore(process, model, part)[1], chain.y[b, s][pick]) and len(part) == 2  # type: ignore[arg-type]
    for name in ("x", "y", "step", "log_prob", "cond", "chain_index"):
        assert torch.equal(getattr(part, name), getattr(rows, name)[pick]), name


def test_x_and_y_are_consecutive_states() -> None:
    _, _, chain = image_chain()
    assert isinstance(chain.states, Tensor) and isinstance(chain.x, Tensor) and isinstance(chain.y, Tensor)
    assert torch.equal(chain.x[:, 1:], chain.y[:, :-1])
    assert torch.equal(chain.x[:, 0], chain.states[:, 1]) and torch.equal(chain.states[:, -1], chain.sample)  # type: ignore[arg-type]


@pytest.mark.parametrize(("first", "last"), [(0, 6), (1, 3), (2, 6), (0, 1), (4, 6)])
def test_a_window_records_the_same_numbers(first: int, last: int) -> None:
    _, _, whole = image_chain()
    _, _, part = image_chain(RecordWindow(first, last))
    kept = [k for k in range(1, 5) if first <= k < last]
    assert part.step.tolist() == kept
    assert torch.equal(part.sample, whole.sample)  # type: ignore[arg-type]
    assert torch.equal(part.states, whole.states[:, first : last + 1])  # type: ignore[index,arg-type]
    columns = [k - 1 for k in kept]
    if kept:
        assert torch.equal(part.log_prob, whole.log_prob[:, columns])
        assert torch.equal(part.x, whole.x[:, columns]) and torch.equal(part.y, whole.y[:, columns])  # type: ignore[index,arg-type]
    else:
        with pytest.raises(NoDensityError, match="recorded no step with a density"):
            part.steps_at()


def test_starting_inside_is_going_on() -> None:
    process, model, whole = image_chain()
    assert isinstance(whole.states, Tensor) and isinstance(whole.y, Tensor)
    _, _, part = image_chain(start=(whole.states[:, 3], 3))
    assert part.step.tolist() == [3, 4] and torch.equal(part.states[:, 0], whole.states[:, 3])  # type: ignore[index]
    law, y = rescore(process, model, part, micro_batch_size=6)
    assert torch.equal(law.log_prob(y).detach(), part.log_prob)
    _, _, late = image_chain(RecordWindow(0, 2), start=(whole.states[:, 3], 3))
    assert len(late) == 0
    with pytest.raises(ValueError, match="cannot start at step 6"):
        image_chain(start=(whole.states[:, 3], 6))


def test_stacked_chains_are_scored_and_shuffled_like_one() -> None:
    process, model, a = image_chain()
    _, _, b = image_chain(seeds=range(10, 16))
    both = stack([a, b])
    assert both.batch == (2, 6) and both.log_prob.shape == (2, 6, 4)
    law, y = rescore(process, model, both, micro_batch_size=12)
    assert torch.allclose(law.log_prob(y).detach(), both.log_prob, atol=1e-3)
    index = torch.tensor([30, 47, 2])
    rows = both.steps_at(index)
    assert torch.equal(rows.log_prob, torch.stack([b.log_prob[1, 2], b.log_prob[5, 3], a.log_prob[0, 2]]))
    assert torch.equal(rows.x, torch.stack([b.x[1, 2], b.x[5, 3], a.x[0, 2]]))  # type: ignore[index]
    assert torch.allclose(rescore(process, model, rows)[0].log_prob(rows.y).detach(), rows.log_prob, atol=1e-3)
    second = both.take(1)
    assert second.batch == (6,) and torch.equal(second.log_prob, b.log_prob)
    few = a.take(torch.tensor([4, 2]))
    assert torch.equal(few.log_prob, a.log_prob[[4, 2]]) and torch.equal(few.sample, a.sample[[4, 2]])  # type: ignore[index,arg-type]
    assert torch.equal(few.steps_at(torch.tensor([5])).cond, a.cond[2:3])  # type: ignore[index,arg-type]
    with pytest.raises(ValueError, match=r"chain.take\(\[i\]\)"):
        a.take(1)
    with pytest.raises(ValueError, match="recorded the same steps"):
        stack([a, image_chain(RecordWindow(1, 3))[2]])


def test_dead_factors_leave_replay() -> None:
    process, model, chain = image_chain()
    live = torch.zeros(6, 1, 2, 3, dtype=torch.bool)
    live[:, :, 0] = True
    law, y = rescore(process, model, chain.with_condition(mask=live))
    whole, _ = rescore(process, model, chain)
    kept = whole.log_prob(y, factors=True)[:, :, :, 0].flatten(2).sum(-1)
    assert torch.allclose(law.log_prob(y), kept, atol=1e-5) and float(law.num_factors[0, 0]) == 3
    rows = chain.with_condition(mask=live).steps_at(torch.tensor([7]))
    assert torch.allclose(rescore(process, model, rows)[0].log_prob(rows.y), kept[1, 3:4], atol=1e-4)
    model, masked = TokenDenoiser(Transformer(5, 8, width=16, depth=1, heads=2)), MASKED["left"]
    tokens = make_sampler(masked, model, masked.steps(time_grid(4)), (8,))(None, Rng(0), rows=2)
    law, y = rescore(masked, model, tokens.with_condition(mask=torch.ones(2, 8, dtype=torch.bool)))
    assert torch.equal(law.log_prob(y), tokens.log_prob)
    law, y = rescore(masked, model, tokens.with_condition(mask=torch.zeros(2, 8, dtype=torch.bool)))
    assert bool((law.num_factors == 0).all())


def test_drawing_leaves_no_trace_in_training() -> None:
    """The run is in inference mode; what it records is ordinary, and training through replay works."""
    process, model, chain = image_chain()
    for tensor in (chain.states, chain.log_prob, chain.sample, chain.x, chain.y):
        assert isinstance(tensor, Tensor) and not tensor.is_inference() and not tensor.requires_grad
    for record in (chain, chain.steps_at()):
        model.zero_grad()
        law, y = rescore(process, model, record)
        law.log_prob(y).sum().backward()
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    masked, tokens = MASKED["confidence 2"], TokenDenoiser(Transformer(5, 8, width=16, depth=1, heads=2))
    drawn = make_sampler(masked, tokens, masked.steps(time_grid(4)), (8,))(None, Rng(0), rows=4)
    law, y = rescore(masked, tokens, drawn)
    law.log_prob(y).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in tokens.parameters())


def test_the_gradient_of_replay_is_that_of_finite_differences() -> None:
    process, model, chain = image_chain()

    def score() -> Tensor:
        law, y = rescore(process, model, chain)
        return law.log_prob(y).double().mean()

    score().backward()
    weight = next(p for n, p in model.named_parameters() if n.endswith("leave.bias"))
    assert weight.grad is not None
    for i in (0, 3, 5):
        values = []
        for shift in (1e-2, -1e-2):
            with torch.no_grad():
                weight[i] += shift
                values.append(float(score()))
                weight[i] -= shift
        slope = (values[0] - values[1]) / 2e-2
        assert abs(slope - float(weight.grad[i])) < 2e-3 * max(1, abs(slope))


@pytest.mark.parametrize("rule", [ddim(0.0), ddim(1.0), flow_sde(0.7)], ids=str)
@pytest.mark.parametrize("last", [1, 3, 5])
def test_the_gradient_of_the_sample_is_that_of_finite_differences(rule: Any, last: int) -> None:
    """The last steps are differentiable and the steps before are not: the state that enters them is held."""
    process = Diffusion(linear, rule)
    world = GaussianWorld(torch.tensor([0.4, -0.2]), 0.5)

    class Shifted(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.shift = world.denoiser(linear), nn.Parameter(torch.zeros(2))

        def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
            mean = self.inner(x, clock, context).mean
            assert isinstance(mean, Tensor)
            return Estimate(mean + self.shift * torch.sin(x))

    model, steps = Shifted(), process.steps(time_grid(5))
    chain = make_sampler(process, model, steps, (2,), differentiable_steps=last)(None, Rng.rows(range(4)), rows=4)
    assert isinstance(chain.sample, Tensor) and isinstance(chain.states, Tensor)
    (found,) = torch.autograd.grad(chain.sample.square().sum(), model.shift)
    held = chain.states[:, 5 - last]
    rng = Rng.rows(range(4))
    rng.normal(4, 2), rng.normal(4, 5 - last, 2)

    def value(shift: float, i: int) -> float:
        with torch.no_grad():
            model.shift[i] += shift
            draw = make_sampler(process, model, steps, (2,))
            sample = draw(None, rng.take(slice(None)), start=(held, 5 - last)).sample
            model.shift[i] -= shift
            assert isinstance(sample, Tensor)
            return float(sample.double().square().sum())

    for i in (0, 1):
        slope = (value(1e-2, i) - value(-1e-2, i)) / 2e-2
        assert abs(slope - float(found[i])) < 1e-2 * max(1.0, abs(slope))
    plain = make_sampler(process, model, steps, (2,))(None, Rng.rows(range(4)), rows=4)
    assert torch.equal(plain.sample, chain.sample)  # type: ignore[arg-type]
    assert torch.allclose(plain.log_prob, chain.log_prob, atol=1e-5) and not chain.log_prob.requires_grad


def test_the_condition_is_encoded_with_gradients() -> None:
    process, model, chain = image_chain()
    assert isinstance(model, GaussianDenoiser) and isinstance(model.net, MLP)
    law, y = rescore(process, model, chain)
    law.log_prob(y).mean().backward()
    named = {n: p.grad for n, p in model.net.condition.named_parameters()}
    assert named and all(g is not None and float(g.abs().sum()) > 0 for g in named.values())


def test_the_first_update_is_checked() -> None:
    process, model, chain = image_chain()
    law, y = rescore(process, model, chain)
    assert assert_on_policy(law.log_prob(y), chain.log_prob, 1e-3) < 1e-3
    with pytest.raises(OffPolicyError, match=r"\|log ratio\| is 1.*above 0.001.*train mode.*guidance.*EMA"):
        assert_on_policy(chain.log_prob + 1.0, chain.log_prob, 1e-3)
    with pytest.raises(OffPolicyError):
        assert_on_policy(chain.log_prob * torch.nan, chain.log_prob, 1e-3)


def test_deterministic_chains_refuse_to_be_scored() -> None:
    process = Diffusion(linear, ddim(0.0))
    model = GaussianDenoiser(MLP(3, width=16), linear, "v")
    chain = make_sampler(process, model, process.steps(time_grid(4)), (3,))(None, Rng(0), rows=2)
    assert chain.log_prob.shape == (2, 0)
    for ask in (lambda: rescore(process, model, chain), chain.steps_at, lambda: chain.x):
        with pytest.raises(NoDensityError, match=r"ddim\(eta > 0\)"):
            ask()


def test_sizes_that_disagree_are_named() -> None:
    process, model, _ = image_chain()
    draw = make_sampler(process, model, process.steps(time_grid(6)), (1, 2, 3))
    with pytest.raises(ValueError, match="needs rows="):
        draw(None, Rng(0))
    with pytest.raises(ValueError, match=r"disagree.*\[4, 3\]"):
        draw(torch.zeros(4, 4), Rng(0), rows=3)
    with pytest.raises(ValueError, match="does not fit a chain of 6"):
        make_sampler(process, model, process.steps(time_grid(6)), (1, 2, 3), record=RecordWindow(2, 9))
    with pytest.raises(ValueError, match="between 0 and the chain's 6"):
        make_sampler(process, model, process.steps(time_grid(6)), (1, 2, 3), differentiable_steps=7)
    with pytest.raises(ValueError, match="micro_batch_size is a number of rows"):
        rescore(process, model, image_chain()[2], micro_batch_size=0)


def test_extras_that_do_not_lead_with_the_rows_are_named() -> None:
    process, model, chain = image_chain()

    class Chatty(Denoiser):
        def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
            return Estimate(model(x, clock, context).mean, {"loss": torch.zeros(())})

        def embed_time(self, t: Tensor) -> Any:
            return model.embed_time(t)

        def embed_condition(self, cond: Any) -> Any:
            return model.embed_condition(cond)

    with pytest.raises(ValueError, match=r"extra\['loss'\].*lead with the rows"):
        rescore(process, Chatty(), chain)
