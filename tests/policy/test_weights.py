"""Named sets of weights: what is copied, what is shared, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, Weights, time_grid
from denoiserl.core.errors import RunError
from denoiserl.nn import MLP
from denoiserl.oracles.worlds import GaussianWorld
from denoiserl.policy.weights import AdapterOff
from denoiserl.processes import linear
from denoiserl.processes.denoiser import Denoiser


class Parts(nn.Module):
    """A frozen trunk, a head that learns, and a buffer that drifts."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(3, 8).requires_grad_(False), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return self.head(self.trunk(x).tanh()) + self.seen.sum()  # type: ignore[operator]


def made() -> Weights:
    return Weights(GaussianDenoiser(Parts(), linear, "v"))


def answer(denoise: Denoiser) -> Tensor:
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    with torch.no_grad():
        mean = denoise(x, denoise.embed_time(torch.full((2,), 0.4)), denoise.embed_condition(None)).mean
    assert isinstance(mean, Tensor)
    return mean


def move(weights: Weights, amount: float = 0.3) -> None:
    with torch.no_grad():
        for p in weights.module.parameters():
            if p.requires_grad:
                p.add_(amount)
        for b in weights.module.buffers():
            b.add_(amount)


def test_only_what_learns_is_copied() -> None:
    weights = made()
    kept = weights.snapshot("reference")
    ours, theirs = dict(weights.module.named_parameters()), dict(kept.named_parameters())
    for name in ours:
        assert (ours[name] is theirs[name]) == name.startswith("net.trunk")
        assert not theirs[name].requires_grad
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(weights.module.buffers(), kept.buffers(), strict=True))


def test_a_kept_set_stays_while_current_moves_and_is_overwritten_in_place() -> None:
    weights = made()
    before, kept = answer(weights.module), weights.snapshot("old")
    move(weights)
    assert torch.equal(answer(weights.using("old")), before)
    assert not torch.equal(answer(weights.using()), before)
    assert weights.snapshot("old") is kept and torch.equal(answer(kept), answer(weights.module))


def test_an_average_follows() -> None:
    weights = made()
    weights.snapshot("ema")
    start = [p.clone() for p in weights.using("ema").parameters()]
    for _ in range(3):
        move(weights, 0.2)
        weights.ema_update("ema", 0.9)
    amount = 0.0
    for k in range(1, 4):
        amount = 0.9 * amount + 0.1 * 0.2 * k
    for p, q, own in zip(start, weights.using("ema").parameters(), weights.module.parameters(), strict=True):
        assert torch.allclose(q, p + (amount if own.requires_grad else 0.0), atol=1e-6)
    weights.ema_update("ema", 0.0)
    assert torch.equal(answer(weights.using("ema")), answer(weights.module))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        weights.ema_update("ema", 1.5)


def test_loading_goes_back_to_a_set_with_its_buffers() -> None:
    weights = made()
    before = answer(weights.module)
    weights.snapshot("best")
    move(weights)
    weights.load("best")
    assert torch.equal(answer(weights.module), before) and weights.version == 1
    assert all(p.requires_grad for n, p in weights.module.named_parameters() if n.startswith("net.head"))


def test_the_state_is_restored_and_frozen_tensors_are_stored_once() -> None:
    weights = made()
    weights.snapshot("reference")
    move(weights)
    weights.snapshot("old")
    move(weights)
    weights.version = 7
    state = weights.state_dict()
    assert not any("trunk" in k for k in state["sets"]["old"]) and any("trunk" in k for k in state["current"])
    other = made()
    other.load_state_dict(state)
    for name in ("current", "reference", "old"):
        assert torch.equal(answer(other.using(name)), answer(weights.using(name)))
    assert other.version == 7
    ours, theirs = other.module.net.trunk.weight, other.using("old").net.trunk.weight  # type: ignore[union-attr]
    assert ours is theirs


def test_a_state_of_another_network_is_refused_with_names() -> None:
    weights = made()
    weights.snapshot("old")
    state = weights.state_dict()
    with pytest.raises(RunError, match=r"missing \['net.enter.weight'"):
        Weights(GaussianDenoiser(MLP(3, width=8), linear, "v")).load_state_dict(state)
    thawed = made()
    thawed.module.requires_grad_(True)
    with pytest.raises(RunError, match=r"frozen \(the set 'old'\).*net.trunk"):
        thawed.load_state_dict(state)
    learnt = thawed.state_dict()
    thawed.snapshot("old")
    learnt = thawed.state_dict()
    with pytest.raises(RunError, match=r"frozen \(the set 'old'\)"):  # or the shared trunk would be overwritten
        made().load_state_dict(learnt)


def test_a_denoiser_without_parameters_is_kept_and_followed() -> None:
    weights = Weights(GaussianWorld(torch.zeros(3), 1.0).denoiser(linear))
    weights.snapshot("old"), weights.snapshot("old"), weights.ema_update("old", 0.5)
    assert torch.equal(answer(weights.using("old")), answer(weights.module))


def test_names() -> None:
    weights = made()
    with pytest.raises(ValueError, match="choose another name"):
        weights.snapshot("current")
    weights.snapshot("reference")
    with pytest.raises(RunError, match="Did you mean 'reference'"):
        weights.using("referance")


def lora() -> Weights:
    peft = pytest.importorskip("peft")
    net = MLP(3, width=16)
    return Weights(
        GaussianDenoiser(peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["enter", "leave"])), linear, "v")
    )


def test_with_adapters_the_reference_is_free() -> None:
    weights = lora()
    plain = answer(weights.module)
    kept = weights.snapshot("reference")
    assert isinstance(kept, AdapterOff) and not list(kept.parameters())
    assert torch.equal(answer(kept), plain)
    move(weights)
    assert torch.equal(answer(kept), plain) and not torch.allclose(answer(weights.module), plain)
    old = weights.snapshot("old")
    shared = sum(p is q for p, q in zip(weights.module.parameters(), old.parameters(), strict=True))
    assert shared == sum(not p.requires_grad for p in weights.module.parameters()) > 0
    state, other = weights.state_dict(), lora()
    other.load_state_dict(state)
    for name in ("current", "reference", "old"):
        assert torch.equal(answer(other.using(name)), answer(weights.using(name)))
    with pytest.raises(RunError, match="adapters off and has no weights"):
        weights.load("reference")
    with pytest.raises(RunError, match="adapters off and has no weights"):
        weights.ema_update("reference", 0.5)


def test_adapters_off_cannot_be_saved_as_a_policy(tmp_path: Path) -> None:
    weights = lora()
    weights.snapshot("reference")
    process = Diffusion(linear)
    policy = Policy(process, weights, (3,), process.steps(time_grid(2)), process.steps(time_grid(2)))
    with pytest.raises(RunError, match="save 'current'"):
        policy.with_weights("reference").save(tmp_path / "policy")


def low() -> Weights:
    """A network in bf16 whose head is 1 everywhere, and its average."""
    weights = made()
    weights.module.to(torch.bfloat16)
    for p in weights.module.net.head.parameters():  # type: ignore[union-attr]
        p.data.fill_(1.0)
    weights.snapshot("ema")
    return weights


def heads(weights: Weights, name: str) -> list[nn.Parameter]:
    return list(weights.using(name).net.head.parameters())  # type: ignore[union-attr]


def test_an_average_in_bf16_follows_by_steps_that_bf16_cannot_hold() -> None:
    """From 1 towards 2 by a thousandth of the way: 2 − 0.999^k after k steps; the first would be lost in bf16."""
    weights = low()
    move(weights, 1.0)
    for _ in range(200):
        weights.ema_update("ema", 0.999)
    for q, p in zip(heads(weights, "ema"), heads(weights, "current"), strict=True):
        assert q.dtype == torch.bfloat16 and bool((p == 2).all())
        torch.testing.assert_close(q.float(), torch.full(q.shape, 2 - 0.999**200), rtol=0.0, atol=2**-8)
    assert float(torch.tensor(1.001).bfloat16()) == 1.0


def test_an_average_in_bf16_that_was_changed_elsewhere_is_followed_from_where_it_is() -> None:
    """What was changed goes on from there; what was not goes on from its average in float32."""
    weights = low()
    move(weights, 1.0)
    for _ in range(3):
        weights.ema_update("ema", 0.999)  # in bf16 still 1
    for q in heads(weights, "ema"):
        assert bool((q == 1).all())
        q.data.view(-1)[0] = 6.0
    weights.ema_update("ema", 0.5)
    kept = 0.5 * (2 - 0.999**3) + 0.5 * 2
    for q, mean in zip(heads(weights, "ema"), list(weights.averages["ema"].values()), strict=True):
        assert float(q.view(-1)[0]) == 4.0 == float(mean.view(-1)[0])
        torch.testing.assert_close(mean.view(-1)[1:], torch.full((mean.numel() - 1,), kept), rtol=0.0, atol=1e-6)
