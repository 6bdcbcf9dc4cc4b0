"""One step of the optimiser, and the averages and schedules around it, against closed forms."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from denoiserl.core.counters import UsageCounter
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.train import EMA, accumulate, adamw, check_optimizer_covers, optimizer_step, warmup_cosine


def test_covers_names_what_is_missing_doubled_and_foreign():
    net, value = nn.Linear(2, 3), nn.Linear(2, 1)
    check_optimizer_covers(adamw([*net.parameters(), *value.parameters()]), net, value)
    check_optimizer_covers([adamw(net.parameters()), adamw(value.parameters())], net, value)
    with pytest.raises(RunError, match=r"misses Linear\[1\]\.weight, Linear\[1\]\.bias"):
        check_optimizer_covers(adamw(net.parameters()), net, value)
    with pytest.raises(RunError, match=r"misses Linear\.bias"):
        check_optimizer_covers(adamw([net.weight]), net)
    with pytest.raises(RunError, match=r"holds Linear\.weight more than once"):
        check_optimizer_covers([adamw(net.parameters()), adamw([net.weight])], net)
    with pytest.raises(RunError, match="2 parameter"):
        check_optimizer_covers(adamw([*net.parameters(), *value.parameters()]), net)
    net.bias.requires_grad_(False)
    check_optimizer_covers(adamw([net.weight]), net)


def test_a_step_clips_to_the_norm_and_keeps_the_direction():
    w = nn.Parameter(torch.zeros(2))
    opt = torch.optim.SGD([w], lr=1.0)
    told = optimizer_step(opt, (w * torch.tensor([3.0, 4.0])).sum(), clip=0.5)
    assert told == {"loss": 0.0, "grad_norm": 5.0}
    torch.testing.assert_close(w.detach(), torch.tensor([-0.3, -0.4]), atol=1e-6, rtol=0)
    optimizer_step(opt, (w * torch.tensor([0.3, 0.0])).sum(), clip=0.5)  # below the clip nothing is scaled
    torch.testing.assert_close(w.detach(), torch.tensor([-0.6, -0.4]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_before_it_does_harm(bad):
    w = nn.Parameter(torch.ones(2))
    opt = adamw([w])
    with pytest.raises(InvalidInputError, match=f"loss is {bad}"):
        optimizer_step(opt, (w * bad).sum())
    with pytest.raises(InvalidInputError, match="gradient's norm"):
        optimizer_step(opt, (w - 1).square().sum().sqrt())  # the value is 0, the slope is not a number
    assert torch.equal(w, torch.ones(2)) and not opt.state


def test_losses_that_cannot_be_descended_are_refused():
    w, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(InvalidInputError, match="mean"):
        optimizer_step(adamw([w]), w * 2)
    with pytest.raises(InvalidInputError, match="no trainable"):
        optimizer_step(adamw([w]), w.detach().sum())
    with pytest.raises(InvalidInputError, match="none of the optimiser's"):
        optimizer_step(adamw([w]), other.sum())


def test_pieces_of_any_sizes_have_the_gradient_of_the_whole():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))

    def after(how):
        w = nn.Parameter(torch.ones(3))
        return how(torch.optim.SGD([w], 0.1), lambda rows: (rows @ w).tanh().square()), w.detach()

    whole, w = after(lambda opt, loss: optimizer_step(opt, loss(x).mean(), clip=0.1))
    parts, v = after(lambda opt, loss: accumulate(opt, (loss(p) for p in x.split([1, 6, 3])), 10, clip=0.1))
    assert parts == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(v, w)
    with pytest.raises(InvalidInputError, match="10 losses, not total=12"):
        after(lambda opt, loss: accumulate(opt, (loss(p) for p in x.split(5)), 12))


def test_steps_are_counted_as_updates():
    w = nn.Parameter(torch.ones(1))
    opt, meter = adamw([w]), UsageCounter()
    with meter.open():
        optimizer_step(opt, w.sum())
        accumulate(opt, (w * 1 for _ in range(4)), 4)
    optimizer_step(opt, w.sum())
    assert meter.counts["updates"] == 2


def test_ema_of_a_linear_sequence_is_its_closed_form():
    """With weights θ_n = n the average is Σ_j j (1 - d_j) Π_{i>j} d_i, d_i = 1 - (1 + i)^(-3/4)."""
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    ema = EMA(net)
    n = 200
    for i in range(n):
        nn.init.constant_(net.weight, i)
        ema.update()
    gain = [(1 + i) ** -0.75 for i in range(n)]
    keep = [math.prod(1 - g for g in gain[j + 1 :]) for j in range(n)]
    assert sum(g * k for g, k in zip(gain, keep, strict=True)) == pytest.approx(1)  # the initial weights are forgotten
    assert ema.values["weight"].item() == pytest.approx(
        sum(j * g * k for j, (g, k) in enumerate(zip(gain, keep, strict=True)))
    )


def test_a_capped_ema_lags_a_linear_sequence_by_its_window():
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    ema = EMA(net, max_decay=0.9)
    for i in range(500):
        nn.init.constant_(net.weight, i)
        ema.update()
    assert ema.decay() == 0.9
    assert 499 - ema.values["weight"].item() == pytest.approx(9)  # d / (1 - d)


def test_ema_of_a_module_takes_buffers_and_leaves_the_frozen():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].bias.requires_grad_(False)
    ema = EMA(net)
    assert "0.bias" not in ema.values and ema.values["1.num_batches_tracked"].item() == 0
    net(torch.randn(4, 2))
    ema.update()
    assert ema.values["1.num_batches_tracked"].item() == 1
    first = ema.values["0.weight"].clone()
    other = copy.deepcopy(net)
    nn.init.zeros_(other[0].weight)
    ema.copy_to(other)
    assert torch.equal(other[0].weight, first)
    twin = EMA(net)
    twin.load_state_dict(ema.state_dict())
    ema.update(), twin.update()
    assert torch.equal(ema.values["0.weight"], twin.values["0.weight"])
    with pytest.raises(RunError, match=r"1\.weight"):
        ema.copy_to(net[0])


def test_warmup_cosine_rises_falls_and_resumes():
    w = nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([{"params": [w], "lr": 0.4}])
    schedule, seen = warmup_cosine(opt, 4, 24, last=0.1), []
    for n in range(30):
        if n == 11:
            saved = opt.state_dict(), schedule.state_dict()
            opt = torch.optim.SGD([w], lr=9.0)
            schedule = warmup_cosine(opt, 4, 24, last=0.1)
            opt.load_state_dict(saved[0]), schedule.load_state_dict(saved[1])
        seen.append(opt.param_groups[0]["lr"])
        opt.step(), schedule.step()
    assert seen[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert seen[14] == pytest.approx((0.4 + 0.04) / 2)  # half way down is half way between
    assert seen[24:] == pytest.approx([0.04] * 6)
    assert all(a > b for a, b in pairwise(seen[4:25]))
