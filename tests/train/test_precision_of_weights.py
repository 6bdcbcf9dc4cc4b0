"""Weights in bf16 and fp16: they learn, and are averaged, as those in float32."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, Weights, time_grid
from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.integrations.adapters import adapt
from denoiserl.nn import MLP
from denoiserl.processes import linear
from denoiserl.train import EMA, accumulate, adamw, check_optimizer_covers, optimizer_step


def weights(n: int = 400) -> Tensor:
    return Rng(0).normal(n)


def learnt(dtype: torch.dtype, updates: int = 30, lr: float = 1e-5) -> Tensor:
    """How far AdamW moves weights under gradients of one sign."""
    w = nn.Parameter(weights().to(dtype))
    opt = adamw([w], lr)
    for _ in range(updates):
        optimizer_step(opt, w.sum(), clip=1.0)
    copies = opt.state_dict().get("masters", [w.detach()])
    assert torch.equal(copies[0].to(dtype), w.detach())
    return copies[0] - weights().to(dtype).float()


def test_weights_in_bf16_learn_as_in_float32() -> None:
    """At lr 1e-5 a step is a hundredth of what tells numbers of bf16 apart."""
    torch.testing.assert_close(learnt(torch.bfloat16), learnt(torch.float32), rtol=1e-3, atol=1e-6)
    w = nn.Parameter(weights().bfloat16())
    opt = adamw([w], 1e-4)
    for _ in range(200):
        optimizer_step(opt, w.sum())
    assert float((weights().bfloat16() != w).float().mean()) > 0.9
    torch.testing.assert_close(w.float(), weights().bfloat16().float() - 0.02, rtol=2**-7, atol=1e-4)


def test_masters_come_back_bit_for_bit(tmp_path) -> None:
    def made() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        low, full = nn.Parameter(weights().bfloat16()), nn.Parameter(weights(7))
        return [low, full], adamw([low, full], 1e-4, 0.01)

    def learn(params: list[nn.Parameter], opt: torch.optim.Optimizer, n: int, first: int = 0) -> None:
        for i in range(first, n):
            optimizer_step(opt, sum((p * Rng(i).normal(*p.shape).to(p.dtype)).float().sum() for p in params), clip=0.5)  # type: ignore[arg-type]

    params, opt = made()
    learn(params, opt, 12)
    store.write(tmp_path / "state", {"opt": opt.state_dict(), "params": [p.detach() for p in params]})
    learn(params, opt, 24, 12)
    again, other = made()
    state = store.read(tmp_path / "state")
    with torch.no_grad():
        for p, v in zip(again, state["params"], strict=True):
            p.copy_(v)
    other.load_state_dict(state["opt"])
    learn(again, other, 24, 12)
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q) and p.dtype is q.dtype
    assert all(
        torch.equal(a, b) for a, b in zip(opt.state_dict()["masters"], other.state_dict()["masters"], strict=True)
    )
    assert other.param_groups[0]["params"] == again


def test_weights_that_were_put_back_are_learned_from() -> None:
    """A float32 copy must not bring back what was overwritten."""
    w = nn.Parameter(weights().bfloat16())
    opt = adamw([w], 1e-3)
    for _ in range(50):
        optimizer_step(opt, w.sum())
    with torch.no_grad():
        w.copy_(torch.full_like(w, 3.0))
    optimizer_step(opt, w.sum())
    torch.testing.assert_close(w.float(), torch.full(w.shape, 3.0), rtol=2**-8, atol=0)


def test_pieces_are_summed_in_float32() -> None:
    """A hundred terms of 1/100 after one of 1: bf16 would lose each."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    opt = torch.optim.SGD([w], 1.0)
    terms = torch.tensor([[1.0]] + [[2**-9]] * 256, dtype=torch.bfloat16)
    accumulate(opt, (w.float() * t.float() for t in terms), 257)
    torch.testing.assert_close(w.float(), torch.tensor([-1.5 / 257]), rtol=2**-8, atol=0)


def test_an_optimiser_that_loses_steps_is_told_of() -> None:
    net = nn.Linear(2, 2).bfloat16()
    with pytest.warns(UserWarning, match=r"Linear\.bias, Linear\.weight learn in lower precision.*adamw"):
        check_optimizer_covers(torch.optim.Adam(net.parameters()), net)
    with pytest.warns(UserWarning, match="float16.*bfloat16"):
        adamw(nn.Linear(2, 2).half().parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_optimizer_covers(adamw(net.parameters()), net)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_of_low_precision_arrive(dtype: torch.dtype, tmp_path) -> None:
    """1 towards 1.5 at decay 0.999 for 2000 updates: 1.5 - 0.5 · 0.999^2000 = 1.4324. Resumed half way."""
    net = nn.Linear(8, 8, bias=False).to(dtype)
    nn.init.constant_(net.weight, 1.0)
    ema = EMA(net, power=1e9, max_decay=0.999)
    ema.n = 1
    with torch.no_grad():
        net.weight.add_(0.5)
    for _ in range(1000):
        ema.update()
    store.write(tmp_path / "ema", ema.state_dict())
    ema = EMA(net, power=1e9, max_decay=0.999)
    ema.load_state_dict(store.read(tmp_path / "ema"))
    for _ in range(1000):
        ema.update()
    ema.copy_to(net)
    assert float(net.weight.detach()[0, 0]) == pytest.approx(1.4324, abs=2**-7)


def test_adapters_of_a_model_in_bf16_learn_in_float32() -> None:
    pytest.importorskip("peft")
    net = adapt(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).bfloat16(), 2, ["0", "1"])
    kinds = {name.split(".")[-3]: p.dtype for name, p in net.named_parameters() if p.requires_grad}
    assert kinds == {"lora_A": torch.float32, "lora_B": torch.float32}
    assert net(torch.ones(1, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16


class Lin(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=dtype))

    def forward(self, x: Tensor, clock: Tensor, context: None) -> Tensor:
        return x * self.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_set_follows_in_low_precision(dtype: torch.dtype, tmp_path) -> None:
    def made() -> Weights:
        return Weights(GaussianDenoiser(Lin(dtype), linear, "v"))

    whole = made()
    whole.snapshot("slow")
    with torch.no_grad():
        whole.module.net.weight.add_(0.5)  # type: ignore[union-attr,operator]
    for _ in range(1000):
        whole.ema_update("slow", 0.999)
    store.write(tmp_path / "weights", whole.state_dict())
    rest = made()
    rest.load_state_dict(store.read(tmp_path / "weights"))
    for _ in range(1000):
        whole.ema_update("slow", 0.999), rest.ema_update("slow", 0.999)
    for each in (whole, rest):
        assert each.sets["slow"].net.weight.tolist() == pytest.approx([1.4324] * 4, abs=2**-7)  # type: ignore[union-attr,operator]
    assert torch.equal(whole.averages["slow"]["net.weight"], rest.averages["slow"]["net.weight"])
    whole.snapshot("slow")
    assert whole.sets["slow"].net.weight.tolist() == [1.5] * 4 and not whole.averages  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("norm", [spectral_norm, old_spectral_norm])
def test_unit_vectors_of_spectral_norm_are_copied(norm) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(4, 16)), nn.BatchNorm1d(16), nn.Linear(16, 1))
    opt, ema = adamw(net.parameters(), 3e-2), EMA(net, max_decay=0.9)
    for i in range(60):
        optimizer_step(opt, (net(Rng(i).normal(32, 4)) - 1).square().mean())
        ema.update()
    own = {k: v.clone() for k, v in net.state_dict().items()}
    ema.copy_to(net)
    now = net.state_dict()
    units = [k for k in now if k.endswith(("_u", "_v"))]
    assert len(units) == 2 and all(torch.equal(now[k], own[k]) for k in units)
    assert not torch.equal(now["1.running_mean"], own["1.running_mean"])
    assert int(now["1.num_batches_tracked"]) == 60


def test_the_loss_that_is_told_is_not_rounded_to_the_weights_precision() -> None:
    net = nn.Linear(1, 1, bias=False).bfloat16()
    loss = net.weight.float().sum() * 0 + 1.2345678
    assert optimizer_step(adamw(net.parameters(), 1e-3), loss)["loss"] == pytest.approx(1.2345678, rel=1e-7)


def small(dtype: torch.dtype) -> Policy:
    torch.manual_seed(0)
    process = Diffusion(linear)
    return Policy.of(
        process, GaussianDenoiser(MLP((3,), width=8), linear, "v").to(dtype), (3,), process.steps(time_grid(3))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_policy_comes_back_in_the_precision_that_it_had(dtype: torch.dtype, tmp_path: Path) -> None:
    made = small(dtype)
    back = Policy.load(made.save(tmp_path / "policy"))
    assert {p.dtype for p in back.parameters()} == {dtype}
    assert torch.equal(back.generate(None, Rng(0), 5), made.generate(None, Rng(0), 5))


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_weights_of_another_precision_are_no_state_of_these(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    """A run would go on with other numbers: its float32 copies, or the digits of its weights, would be lost."""
    state = small(kinds[0]).state_dict()
    with pytest.raises(RunError, match="was saved in"):
        small(kinds[1]).load_state_dict(state)
