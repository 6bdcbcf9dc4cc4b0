"""One update from pieces: of losses that count and losses that do not, and of a fit that does not fit into memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Rng
from denoiserl.core.errors import InvalidInputError
from denoiserl.nn import MLP
from denoiserl.processes import linear
from denoiserl.train import accumulate_masked, adamw, fit, optimizer_step


def problem() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 4), torch.randn(20, 3), torch.randn(20, 4), Rng(0).uniform(20, 4) < 0.3


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 13], [3, 3, 14]])
def test_the_update_is_that_of_the_mean_over_what_counts(sizes: list[int]) -> None:
    whole, x, y, counts = problem()
    counts[:3] = False  # a whole piece may count nothing
    pieces, *_ = problem()
    opts = adamw(whole.parameters(), 0.1), adamw(pieces.parameters(), 0.1)
    for _ in range(3):
        wanted = optimizer_step(opts[0], (whole(x) - y).square()[counts].mean(), clip=0.5)
        parts = ((pieces(x[i]) - y[i]).square() for i in torch.arange(20).split(sizes))
        got = accumulate_masked(opts[1], zip(parts, counts.split(sizes), strict=True), clip=0.5)
        assert got is not None and got == pytest.approx(wanted, rel=1e-5)
    assert torch.allclose(whole.weight, pieces.weight, atol=1e-6)


def test_where_nothing_counts_neither_weights_nor_momentum_move() -> None:
    net, x, y, counts = problem()
    opt = adamw(net.parameters(), 0.1)
    accumulate_masked(opt, [((net(x) - y).square(), counts)])
    before = [p.detach().clone() for p in net.parameters()]
    momentum = [s["exp_avg"].clone() for s in opt.state.values()]
    assert accumulate_masked(opt, [((net(x) - y).square(), torch.zeros_like(counts))]) is None
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))
    assert all(torch.equal(m, s["exp_avg"]) for m, s in zip(momentum, opt.state.values(), strict=True))


@pytest.mark.parametrize("micro", [1, 5, 16])
def test_a_fit_is_the_same_however_many_rows_a_forward_has(micro: int) -> None:
    data, cond, found = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.eye(40, 2), []
    for rows in (None, micro):
        torch.manual_seed(1)
        process, net = Diffusion(linear), GaussianDenoiser(MLP(3, 2, width=16), linear, "v")
        told = list(fit(process, net, data, cond, 5, Rng(2), batch=16, lr=1e-2, micro_batch_size=rows))
        found.append((told[-1]["loss/denoising"], torch.cat([p.detach().flatten() for p in net.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    with pytest.raises(InvalidInputError, match="micro_batch_size is the number of rows"):
        list(fit(process, net, data, cond, 1, Rng(2), micro_batch_size=0))
