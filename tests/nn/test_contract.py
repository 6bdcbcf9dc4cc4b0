"""What every raw network promises a sampler, checked on all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.nn import MLP, DiT, Transformer, Trunk, UNet1D, UNet2D, Value

COND = 5
NETS = {
    "mlp": lambda **k: MLP((4, 3), COND, width=32, **k),
    "mlp-plain-norm": lambda **k: MLP(12, COND, width=32, residual=False, layer_norm=True, activation="relu", **k),
    "unet1d": lambda **k: UNet1D((8, 3), COND, channels=(16, 32), hidden=32, **k),
    "unet2d": lambda **k: UNet2D((1, 8, 8), COND, channels=(8, 16), hidden=32, **k),
    "dit": lambda **k: DiT((1, 8, 8), COND, width=32, depth=2, **k),
    "transformer": lambda **k: Transformer(6, 9, cond=COND, width=32, depth=2, time=True, position="grid", **k),
    "causal": lambda **k: Transformer(6, 9, cond=COND, width=32, causal=True, time=True, position="rotary", **k),
}
every = pytest.mark.parametrize("name", NETS)


def build(name: str, **keywords: object) -> Any:
    """A network away from its initial zeros, so that nothing is hidden behind a zero gate."""
    torch.manual_seed(0)
    net = NETS[name](**keywords)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return net


def state(net: Any, rows: int, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if isinstance(net, Transformer):
        return torch.randint(net.trunk.vocab + 1, (rows, 9), generator=g)
    return torch.randn(rows, *net.data, generator=g)


def inputs(net: Any, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return state(net, rows), torch.rand(rows, generator=g), torch.randn(rows, COND, generator=g)


def answer(net: Any, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
    return net(x, net.embed_time(t), net.embed_condition(cond))


@every
def test_a_grid_of_clocks_is_the_same_as_a_clock_a_row(name: str) -> None:
    """A clock computed once for a grid, in float64 and of two axes, and one row of it shared, change nothing."""
    net = build(name)
    x, _, cond = inputs(net)
    grid = torch.linspace(1, 0, 6, dtype=torch.float64).reshape(2, 3)
    clocks, context = net.embed_time(grid), net.embed_condition(cond)
    for i in (0, 1):
        for j in (0, 2):
            a_row_each = answer(net, x, torch.full((12,), float(grid[i, j])), cond)
            torch.testing.assert_close(net(x, clocks[i, j : j + 1], context), a_row_each, atol=1e-5, rtol=1e-5)


@every
def test_rows_do_not_know_of_each_other(name: str) -> None:
    net = build(name).eval()
    x, t, cond = inputs(net)
    y, order = answer(net, x, t, cond), torch.randperm(12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(answer(net, x[order], t[order], cond[order]), y[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer(net, x[7:8], t[7:8], cond[7:8]), y[7:8], atol=1e-5, rtol=1e-5)


@every
def test_the_answer_depends_on_state_time_and_condition(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    t, cond = t.requires_grad_(), cond.requires_grad_()
    y = answer(net, x, t, cond)
    for gradient in torch.autograd.grad(y.pow(2).sum(), (t, cond)):
        assert (gradient.flatten(1) if gradient.ndim > 1 else gradient.unsqueeze(1)).abs().amax(1).min() > 1e-6
    assert (answer(net, state(net, 12, seed=9), t, cond) - y).abs().max() > 1e-3


@every
def test_every_parameter_learns(name: str) -> None:
    net = build(name, null=True)
    x, t, cond = inputs(net)
    (answer(net, x, t, cond).pow(2).sum() + answer(net, x, t, None).pow(2).sum()).backward()
    silent = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@every
def test_config_builds_the_same_network_again(name: str) -> None:
    net = build(name, null=True)
    again = type(net)(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    x, t, cond = inputs(net)
    torch.testing.assert_close(answer(again, x, t, cond), answer(net, x, t, cond), atol=0, rtol=0)


@every
def test_null_is_one_learned_condition_for_all_rows(name: str) -> None:
    net = build(name, null=True)
    x, t, cond = inputs(net)
    nothing = answer(net, x, t, None)
    assert (nothing - answer(net, x, t, cond)).abs().max() > 1e-3
    torch.testing.assert_close(answer(net, x[3:4], t[3:4], None), nothing[3:4], atol=1e-5, rtol=1e-5)


@every
def test_a_missing_condition_is_refused_with_the_way_out(name: str) -> None:
    net = build(name)
    with pytest.raises(InvalidInputError, match="null=True"):
        net.embed_condition(None)
    with pytest.raises(InvalidInputError, match=r"of 5 numbers per row"):
        net.embed_condition(torch.zeros(2, COND + 1))
    with pytest.raises(InvalidInputError, match=r"of 5 numbers per row"):
        net.embed_condition(torch.zeros(COND))


@every
def test_a_state_of_another_shape_is_refused(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    with pytest.raises(InvalidInputError, match=r"batch dimension|tokens \[B, L\]"):
        answer(net, x.unsqueeze(0), t, cond)


@every
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_follows_float32(name: str, how: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    with torch.inference_mode():
        y = answer(net, x, t, cond)
        if how == "weights":
            low = answer(net.to(torch.bfloat16), x, t.double(), cond)
            assert low.dtype == torch.bfloat16
        else:
            with torch.autocast("cpu", torch.bfloat16):
                low = answer(net, x, t, cond)
    assert (low.float() - y).abs().max() < 0.1 * y.abs().max() + 0.02


@pytest.mark.parametrize("name", ["mlp", "unet1d", "transformer"])
def test_one_graph_without_breaks(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    graph = torch.compile(lambda x, t, c: answer(net, x, t, c), backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(x, t, cond), answer(net, x, t, cond))


def test_networks_built_without_a_condition_refuse_one() -> None:
    for net in (MLP(3), UNet1D((4, 2), channels=(8, 8)), Transformer(3, 4), UNet2D((1, 8, 8)), DiT((1, 8, 8))):
        assert net.embed_condition(None) is None
        with pytest.raises(InvalidInputError, match="built without a condition"):
            net.embed_condition(torch.zeros(2, 3))


def test_zero_starts_at_zero() -> None:
    torch.manual_seed(0)
    for net in (
        MLP(3, zero=True),
        UNet1D((4, 2), channels=(8, 8), zero=True),
        UNet2D((1, 8, 8), channels=(8, 8), zero=True),
        DiT((1, 8, 8)),
    ):
        assert answer(net, torch.randn(2, *net.data), torch.rand(2), None).abs().max() == 0
    assert Transformer(3, 4, zero=True)(torch.randint(4, (2, 4))).abs().max() == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: MLP(3, activation="gellu"), "Did you mean 'gelu'"),
        (lambda: MLP(0), "positive sizes"),
        (lambda: MLP(3, null=True), "give the size of the condition"),
        (lambda: MLP(3, time=7), "even number"),
        (lambda: UNet1D((10, 2)), "Take H = 8 or 12, or at most 2 channels"),
        (lambda: UNet1D((8, 2), channels=(12, 24)), "divide by 8"),
        (lambda: UNet1D((8, 2), kernel=4), "odd"),
        (lambda: UNet2D((1, 10, 8)), "multiples of 4"),
        (lambda: DiT((1, 9, 8)), "multiples of 2"),
        (lambda: Transformer(3, 16, position="gird"), "Did you mean 'grid'"),
        (lambda: Transformer(3, 15, position="grid"), "15 is not 3 x 3"),
        (lambda: Transformer(3, 16, side=4), "leave it out"),
        (lambda: Transformer(3, 16, width=12, heads=4, position="rotary"), "odd one"),
        (lambda: Trunk(3, 16, width=10, heads=4), "does not divide by 4"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong: Any, says: str) -> None:
    with pytest.raises(RunError, match=says):
        wrong()


def test_value_is_one_number_a_row_and_starts_small() -> None:
    torch.manual_seed(0)
    critic = Value((2, 6), width=64)
    obs = torch.randn(256, 2, 6)
    v = critic(obs)
    assert v.shape == (256,) and v.abs().mean() < 0.3
    torch.testing.assert_close(critic(obs[7:8]), v[7:8], atol=1e-5, rtol=1e-5)
    again = Value(**json.loads(json.dumps(critic.config)))
    again.load_state_dict(critic.state_dict())
    assert torch.equal(again(obs), v)
