"""What waits to be scored, and how much noise is drawn at once, changes no number and bounds what is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from denoiserl.core.rng import Rng
from denoiserl.distributions import Gaussian
from denoiserl.nn import MLP
from denoiserl.policy import recorder, sampler
from denoiserl.policy.chain import Chain
from denoiserl.policy.sampler import RecordAll, RecordSample, RecordWindow, make_sampler
from denoiserl.processes import Diffusion, GaussianDenoiser, cosine, ddim, time_grid, window

ROWS, STEPS = 16, 12


def draw(record: Any, eta: float, rng: Rng, rows: int = ROWS, **how: Any) -> Chain:
    torch.manual_seed(0)
    process = Diffusion(cosine, ddim(eta))
    net = GaussianDenoiser(MLP((2, 3), 4, 16), cosine, "eps")
    made = make_sampler(process, net, process.steps(time_grid(STEPS)), (2, 3), record=record, **how)
    return made(torch.linspace(-1, 1, 4 * rows).view(rows, 4), rng)


@pytest.mark.parametrize("record", [RecordAll(), RecordWindow(3, 9), RecordWindow(7, STEPS)])
@pytest.mark.parametrize("how", [{}, {"differentiable_steps": 2}])
def test_steps_that_wait_are_those_that_go_at_once(
    record: Any, how: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(record, 1.0, Rng(1), **how)
    held: list[int] = []

    def stacked(laws: Any) -> Gaussian:
        held.append(len(laws))
        return stack(laws)

    stack = recorder.stack
    monkeypatch.setattr(recorder, "stack", stacked)
    monkeypatch.setattr(sampler, "WAIT", 3 * ROWS * 6 - 1)
    parts = draw(record, 1.0, Rng(1), **how)
    for name in ("states", "log_prob", "sample", "recorded", "step"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
    assert max(held) == 3 and sum(held) == len(whole)
    assert not parts.states.is_inference() and not parts.log_prob.requires_grad


@pytest.mark.parametrize("rng", [lambda: Rng(3), lambda: Rng.rows(range(ROWS))], ids=["batch", "rows"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_drawn_a_step_at_a_time_is_the_noise_of_the_chain(
    rng: Any, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = rng(), rng()
    whole = draw(RecordAll(), eta, one)
    monkeypatch.setattr(sampler, "NOISE", 1)  # ROWS · 6 numbers per step are a multiple of what torch draws at once, 16
    steps = draw(RecordAll(), eta, other)
    assert torch.equal(whole.states, steps.states) and torch.equal(one.normal(ROWS, 2), other.normal(ROWS, 2))


def test_row_streams_draw_nothing_for_steps_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    normal = Rng.normal
    monkeypatch.setattr(Rng, "normal", lambda self, *shape: asked.append(shape) or normal(self, *shape))
    rng = Rng.rows(range(ROWS))
    draw(RecordSample(), 0.0, rng)
    assert asked == [(ROWS, 2, 3)] and rng.counter == 6 * (1 + STEPS), "the prior alone is drawn"


def test_a_window_that_begins_late_has_the_steps_of_the_table() -> None:
    """Its rows are those of the whole chain at the same steps, and score as they were drawn."""
    whole, late = draw(RecordAll(), 1.0, Rng(1)), draw(RecordWindow(5, 9), 1.0, Rng(1))
    assert late.step.tolist() == [5, 6, 7, 8] and late.recorded.tolist() == [0, 1, 2, 3]
    index = torch.tensor([2, 4 * 3 + 1, 4 * 15])  # of [ROWS, 4]: chains 0, 3, 15 at steps 7, 6, 5
    rows = late.steps_at(index)
    assert rows.step.tolist() == [7, 6, 5] and rows.chain_index.tolist() == [0, 3, 15]
    for i, (b, k) in enumerate(((0, 7), (3, 6), (15, 5))):
        assert torch.equal(rows.x[i], whole.states[b, k]) and torch.equal(rows.y[i], whole.states[b, k + 1])
        assert torch.equal(rows.log_prob[i], whole.log_prob[b, k])
        assert torch.equal(rows.cond[i], whole.cond[b])


@pytest.mark.parametrize("begin", [0, 3, 7])
def test_rows_with_streams_of_their_own_draw_the_same_in_parts_from_any_step(
    begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some steps have no noise, those that have keep theirs."""
    monkeypatch.setattr(sampler, "NOISE", 1)  # a step at a time
    torch.manual_seed(0)
    process = Diffusion(cosine, window(ddim(1.0), 2, 8))
    net = GaussianDenoiser(MLP((2, 3), 4, 16), cosine, "eps")
    made = make_sampler(process, net, process.steps(time_grid(STEPS)), (2, 3), record=RecordSample())
    cond, x = torch.linspace(-1, 1, 4 * 7).view(7, 4), Rng(9).normal(7, 2, 3)
    whole, parts = (made(cond, Rng.rows(range(7)), start=(x, begin), micro_batch_size=micro) for micro in (None, 3))
    assert torch.allclose(whole.sample, parts.sample, atol=1e-5)
    assert not torch.allclose(whole.sample, made(cond, Rng.rows(range(1, 8)), start=(x, begin)).sample, atol=1e-2)
