"""What each network promises of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from denoiserl.nn import MLP, Transformer, UNet1D, UNet2D
from denoiserl.nn.embed import GridEmbedding, PositionEmbedding, fourier, rotary, rotate
from denoiserl.nn.unet1d import SMALL, Conv1d, Double


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize(("kernel", "stride", "length"), [(5, 1, 16), (5, 1, 1), (3, 2, 8), (1, 1, 4)])
def test_windows_are_the_convolution(rows: int, kernel: int, stride: int, length: int) -> None:
    layer = Conv1d(6, 10, kernel, stride=stride, padding=kernel // 2)
    x = torch.randn(rows, 6, length, requires_grad=True)
    a, b = layer.windows(x), nn.Conv1d.forward(layer, x)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    ga, gb = (torch.autograd.grad(y.pow(2).sum(), [x, *layer.parameters()]) for y in (a, b))
    torch.testing.assert_close(ga, gb, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_windows_are_the_transposed_convolution(rows: int, length: int) -> None:
    layer = Double(6, 10)
    x = torch.randn(rows, 6, length)
    torch.testing.assert_close(layer.windows(x), nn.ConvTranspose1d.forward(layer, x), atol=1e-5, rtol=1e-5)


PATHS = [((2, 4, 16), True), ((SMALL, 4, 32), True), ((SMALL + 1, 4, 8), False), ((1, 4, 8), True), ((1, 4, 16), False)]


@pytest.mark.parametrize(("shape", "product"), [*PATHS, ((1, 512, 4), True), ((1, 512, 8), False)])
def test_the_shape_alone_chooses_the_path_of_a_convolution_and_both_agree(
    shape: tuple[int, ...], product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    windows = Conv1d.windows
    monkeypatch.setattr(Conv1d, "windows", lambda self, x: seen.append(x.shape[0]) or windows(self, x))
    layer, x = Conv1d(shape[1], 4, 3, padding=1), torch.randn(shape)
    made = layer(x)
    assert bool(seen) == product
    torch.testing.assert_close(made, layer(torch.cat([x] * 8))[: len(x)], atol=1e-5, rtol=1e-5)


def test_the_chunk_unet_sees_the_whole_chunk() -> None:
    """Every action depends on every noisy action, through the lower levels."""
    net = UNet1D((16, 2), channels=(16, 16, 16))
    x, clock = torch.randn(1, 16, 2), net.embed_time(torch.rand(1))
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, clock)[0, :, 0], x)
    assert isinstance(jacobian, torch.Tensor)
    assert jacobian.abs().amax((1, 3)).min() > 0


@pytest.mark.parametrize("severed", ["middle.1", "grow.0", "middle", "up.0", "up.1"])
def test_skips_carry_the_state_past_every_level(severed: str) -> None:
    """With everything from below cut off at any level, the answer still depends on the state, through the skip."""
    one = severed in ("middle.1", "grow.0")
    net = UNet1D((16, 2), channels=(8, 16, 24)) if one else UNet2D((1, 8, 8), channels=(8, 16, 24))

    def cut(module: object, given: object, h: Any) -> torch.Tensor:
        return torch.zeros_like(h)

    net.get_submodule(severed).register_forward_hook(cut)
    a, b = torch.randn(2, 1, *net.data)
    clock = net.embed_time(torch.rand(1))
    assert (net(a, clock) - net(b, clock)).abs().max() > 1e-3


def test_low_precision_weights_still_tell_the_time() -> None:
    """0.8975 and 0.9 are one number in bf16: the time features are made before the weights round them."""
    net = MLP(4).to(torch.bfloat16)
    a, b = net.embed_time(torch.tensor([0.8975, 0.9])).float()
    assert (a - b).abs().max() > 0.01 * a.abs().max()


def test_a_causal_transformer_does_not_see_ahead() -> None:
    x = torch.randint(7, (2, 10))
    for causal in (True, False):
        net = Transformer(6, 10, causal=causal, position="rotary")
        y = net(x)
        for i in (3, 9):
            changed = x.clone()
            changed[:, i] = (x[:, i] + 1) % 7
            moved = (net(changed) - y).abs().amax((0, 2))
            assert moved[i:].min() > 1e-5
            assert moved[:i].max() < 1e-6 if causal else moved[:i].min() > 1e-5


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_not_seen(causal: bool) -> None:
    """Real tokens answer as they would in a shorter sequence, whatever stands in the padding; nothing is NaN."""
    net = Transformer(6, 10, causal=causal)
    x, padding = torch.randint(6, (3, 10)), torch.zeros(3, 10, dtype=torch.bool)
    padding[0, 7:], padding[1, :] = True, True
    y, context = net(x, None, net.embed_condition({"padding": padding})), net.embed_condition({"padding": padding})
    torch.testing.assert_close(y[:1, :7], net(x[:1, :7]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[2], net(x)[2], atol=1e-5, rtol=1e-5)
    other = torch.where(padding, (x + 1) % 6, x)
    torch.testing.assert_close(net(other, None, context)[0, :7], y[0, :7], atol=1e-6, rtol=1e-6)
    assert y.isfinite().all()


@pytest.mark.parametrize("position", ["unit", "grid", "rotary"])
def test_equal_masks_at_different_places_are_told_apart(position: str) -> None:
    """On a fully masked sequence the position is all there is: features differ as much as they are large."""
    net = Transformer(4, 16, position=position)
    h = net.hidden(torch.full((1, 16), 4))[0]
    apart = torch.cdist(h, h)[~torch.eye(16, dtype=torch.bool)]
    assert apart.min() > 0.3 * h.norm(dim=-1).mean()


def test_positions_are_as_loud_as_tokens() -> None:
    for table in (
        PositionEmbedding(400, 64)(400),
        GridEmbedding(20, 20, 64)(400),
        GridEmbedding(16, 16, 64, (4, 4))(256),
    ):
        assert abs(table.pow(2).mean().sqrt() - 1) < 0.15


def test_grid_positions_share_what_cells_share() -> None:
    """Embeddings of a sudoku correlate by the number of units (row, column, box) that two cells share, out of three."""
    e = GridEmbedding(4, 4, 4096, (2, 2))(16)
    e = F.normalize(e, dim=1)
    similar = e @ e.T
    for i in range(16):
        for j in range(16):
            (a, b), (c, d) = divmod(i, 4), divmod(j, 4)
            shared = (a == c) + (b == d) + ((a // 2, b // 2) == (c // 2, d // 2))
            assert abs(similar[i, j] - shared / 3) < 0.08


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(8), torch.randn(8)
    cos, sin = rotary(20, 8)
    score = rotate(q.expand(20, 8), cos, sin) @ rotate(k.expand(20, 8), cos, sin).T
    torch.testing.assert_close(score[:10, :10], score[7:17, 7:17], atol=1e-4, rtol=1e-4)
    assert (score[0, 0] - score[0, 5]).abs() > 1e-3
    assert math.isclose(float(score[3, 3]), float(q @ k), abs_tol=1e-4)


def test_time_features_tell_a_thousand_times_apart() -> None:
    t = torch.linspace(0, 1, 1001)
    f = fourier(t, 32)
    distance = torch.cdist(f, f)
    assert (distance + torch.eye(1001)).min() > 0.1
    # Near times look alike, far times do not: what lets a network of continuous time generalise between grid points.
    assert distance.diagonal(1).max() < 0.2 * distance.diagonal(100).min()


def test_the_mlp_learns_a_linear_denoiser() -> None:
    """x0 = A c, x_t = (1 - t) x0 + t·noise: after 300 steps the clean data is regressed, for t from 0 to 1."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(4, 3, generator=g) / math.sqrt(3)
    net = MLP(4, 3, width=128, depth=2, zero=True)
    adam = torch.optim.Adam(net.parameters(), 2e-3)

    def batch(n: int) -> tuple[torch.Tensor, ...]:
        c, t = torch.randn(n, 3, generator=g), torch.rand(n, generator=g)
        x0 = c @ a.T
        return x0, (1 - t[:, None]) * x0 + t[:, None] * torch.randn(n, 4, generator=g), t, c

    for _ in range(300):
        x0, x, t, c = batch(256)
        loss = F.mse_loss(net(x, net.embed_time(t), net.embed_condition(c)), x0)
        adam.zero_grad()
        loss.backward()
        adam.step()
    x0, x, t, c = batch(2000)
    assert F.mse_loss(net(x, net.embed_time(t), net.embed_condition(c)), x0) < 0.01 * x0.var()
