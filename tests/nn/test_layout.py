"""A layout: a condition that says something about each patch of an image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.nn import DiT


def small(depth: int = 1) -> DiT:
    torch.manual_seed(0)
    return DiT((1, 6, 6), patch=2, width=32, depth=depth, places=4)


def answer(net: DiT, x: Tensor, layout: Tensor) -> Tensor:
    return net(x, net.embed_time(torch.full((len(x),), 0.7)), net.embed_condition(layout))


def test_each_patch_hears_its_own_place() -> None:
    """At first every layer is the identity, so a place changes its own patch and no other; with the layers' gates open
    it is heard everywhere."""
    net = small()
    torch.nn.init.normal_(net.leave.weight)
    x, layout = torch.randn(1, 1, 6, 6), torch.randn(1, 9, 4)
    other = layout.clone()
    other[:, 5] += 1  # the middle row's last patch
    change = (answer(net, x, other) - answer(net, x, layout)).abs()[0, 0]
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:4, 4:6] = True
    assert change[inside].min() > 1e-4 and change[~inside].max() == 0
    with torch.no_grad():
        for p in net.time.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    change = (answer(net, x, other) - answer(net, x, layout)).abs()[0, 0]
    assert change[~inside].min() > 1e-6


def test_a_flat_layout_is_the_same_layout() -> None:
    net, layout = small(), torch.randn(3, 9, 4)
    assert torch.equal(net.embed_condition(layout), net.embed_condition(layout.flatten(1)))  # type: ignore[arg-type]


def test_a_layout_is_learned_as_a_picture() -> None:
    """Pictures that are nothing but their layout, from pure noise: the network reads the place and not the state."""
    net, g = small(), torch.Generator().manual_seed(1)
    opt = torch.optim.Adam(net.parameters(), 3e-3)

    def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
        layout = torch.nn.functional.one_hot(torch.randint(4, (n, 9), generator=g), 4).float()
        level = layout @ torch.tensor([-1.0, -0.3, 0.3, 1.0])
        tiles = level.reshape(n, 1, 3, 3).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return torch.randn(n, 1, 6, 6, generator=g), layout, tiles

    for _ in range(150):
        x, layout, goal = batch(64)
        opt.zero_grad()
        (answer(net, x, layout) - goal).square().mean().backward()
        opt.step()
    x, layout, goal = batch(200)
    assert float((answer(net, x, layout).detach() - goal).square().mean()) < 0.02 * float(goal.square().mean())


def test_layouts_that_do_not_fit_are_refused() -> None:
    net = small()
    with pytest.raises(InvalidInputError, match=r"\[B, 9, 4\] \(or flat\)"):
        net.embed_condition(torch.zeros(2, 9, 5))
    with pytest.raises(InvalidInputError, match="got None"):
        net.embed_condition(None)
    for null in (False, True):
        with pytest.raises(RunError, match="the whole condition"):
            DiT((1, 6, 6), cond=3, patch=2, width=32, null=null, places=4)
    again = DiT(**net.config)
    again.load_state_dict(net.state_dict())
    layout = torch.randn(2, 9, 4)
    assert torch.equal(again.embed_condition(layout), net.embed_condition(layout))  # type: ignore[arg-type]
