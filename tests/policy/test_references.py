"""The reference is the policy at ``keep("reference")``, whatever has learned before and whatever learns after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import GaussianDenoiser, Rng, Weights
from denoiserl.core.errors import RunError
from denoiserl.policy.weights import AdapterOff
from denoiserl.processes import linear
from denoiserl.processes.denoiser import Denoiser

peft = pytest.importorskip("peft")


class Net(nn.Module):
    """Tokens of a vocabulary, a hidden layer, a head; a normaliser whose statistics drift, if asked for."""

    def __init__(self, drifts: bool = False) -> None:
        super().__init__()
        self.words, self.enter, self.head = nn.Embedding(5, 3), nn.Linear(3, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8) if drifts else nn.Identity()

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        word = self.words((x[:, 0].abs() * 5).long() % 5)
        return self.head(self.norm(self.enter(x + word)).tanh())


def adapted(net: nn.Module | None = None, **config: Any) -> Weights:
    config = {"r": 2, "target_modules": ["enter", "head"], **config}
    return Weights(GaussianDenoiser(peft.get_peft_model(net or Net(), peft.LoraConfig(**config)), linear, "v").eval())


def answer(denoise: Denoiser) -> Tensor:
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    with torch.no_grad():
        return denoise(x, denoise.embed_time(torch.full((4,), 0.4)), denoise.embed_condition(None)).mean  # type: ignore[return-value]


def learn(weights: Weights) -> None:
    """Move all that learns, by a seeded step of its own, and the statistics as training does."""
    net, rng = weights.module, Rng(1)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.3 * rng.normal(*p.shape))
    net.train()
    answer(net)
    net.eval()


def trained(**config: Any) -> Weights:
    weights = adapted(**config)
    learn(weights)
    return weights


def two() -> Weights:
    """Adapters of supervised learning, held, and fresh ones beside them."""
    weights = trained()
    model: Any = weights.module.net
    model.add_adapter("rl", peft.LoraConfig(r=2, target_modules=["enter"]))
    model.base_model.set_adapter(["default", "rl"])
    for name, p in model.named_parameters():
        p.requires_grad_(".rl." in name)
    return weights


def unfrozen() -> Weights:
    weights = adapted(target_modules=["enter"])
    weights.module.net.get_base_model().head.requires_grad_(True)  # type: ignore[union-attr,operator]
    return weights


def beside() -> Weights:
    weights = adapted()
    weights.module.extra = nn.Linear(3, 3)
    return weights


def late() -> Weights:
    """A frozen adapter: to switch it off and on would let it learn."""
    weights = adapted()
    for p in weights.module.parameters():
        p.requires_grad_(False)
    weights.module.net.get_base_model().head.base_layer.bias.requires_grad_(True)  # type: ignore[union-attr,operator]
    return weights


KINDS: dict[str, Callable[[], Weights]] = {
    "LoRA that is new": adapted,
    "LoRA of embeddings": lambda: adapted(target_modules=["words", "enter"]),
    "LoRA after supervised learning": trained,
    "LoRA that begins anywhere": lambda: adapted(init_lora_weights=False),
    "LoRA that takes from the base": lambda: adapted(init_lora_weights="pissa"),
    "two adapters": two,
    "a head inside the model": unfrozen,
    "a part beside the model": beside,
    "modules to save": lambda: adapted(target_modules=["enter"], modules_to_save=["head"]),
    "trained modules to save": lambda: trained(target_modules=["enter"], modules_to_save=["head"]),
    "biases": lambda: adapted(bias="all"),
    "biases of B": lambda: trained(lora_bias=True),
    "DoRA": lambda: trained(use_dora=True),
    "frozen adapters": late,
    "statistics": lambda: adapted(Net(drifts=True)),
    "no adapters": lambda: Weights(GaussianDenoiser(Net(), linear, "v").eval()),
}
FREE = ("LoRA that is new", "LoRA of embeddings")


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_is_the_policy_that_learning_starts_from(kind: str) -> None:
    torch.manual_seed(0)
    weights = KINDS[kind]()
    learns = [p.requires_grad for p in weights.module.parameters()]
    start = answer(weights.module)
    kept = weights.snapshot("reference")
    assert isinstance(kept, AdapterOff) == (kind in FREE)
    torch.testing.assert_close(answer(kept), start, atol=1e-5, rtol=0)
    assert [p.requires_grad for p in weights.module.parameters()] == learns
    learn(weights)
    assert not torch.allclose(answer(weights.module), start, atol=1e-2)
    torch.testing.assert_close(answer(weights.using("reference")), start, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_survives_a_resume(kind: str) -> None:
    """Kept before what learned, kept again after it (``sync``), restored into a fresh start that kept its own."""
    torch.manual_seed(0)
    weights = KINDS[kind]()
    for again in (False, True):
        weights.snapshot("reference")
        want = answer(weights.using("reference"))
        learn(weights)
        torch.manual_seed(0)
        other = KINDS[kind]()
        other.snapshot("reference")
        other.load_state_dict(weights.state_dict())
        assert torch.equal(answer(other.module), answer(weights.module))
        assert torch.equal(answer(other.using("reference")), want), again
        assert isinstance(other.using("reference"), AdapterOff) == isinstance(weights.using("reference"), AdapterOff)


def test_a_reference_moves_with_sync() -> None:
    weights = adapted()
    weights.snapshot("reference")
    for _ in range(2):
        learn(weights)
        want = answer(weights.module)
        weights.snapshot("reference")
        learn(weights)
        assert torch.equal(answer(weights.using("reference")), want)


def test_merged_adapters_are_copied() -> None:
    """The base holds what they learned, so to switch them off takes it away."""
    weights = trained()
    weights.module.net.merge_adapter()  # type: ignore[union-attr,operator]
    start = answer(weights.module)
    torch.testing.assert_close(answer(weights.snapshot("reference")), start, atol=1e-5, rtol=0)
    for name, p in weights.module.named_parameters():
        if "lora_B" in name:
            p.data.zero_()
    assert not isinstance(weights.snapshot("reference"), AdapterOff)


def test_adapters_off_come_back_only_where_there_are_adapters() -> None:
    weights = adapted()
    weights.snapshot("reference")
    state = weights.state_dict()
    plain = Weights(GaussianDenoiser(Net(), linear, "v"))
    state["current"] = dict(plain.module.state_dict())
    with pytest.raises(RunError, match="same adapters"):
        plain.load_state_dict(state)


@pytest.mark.parametrize("kind", ["LoRA that is new", "no adapters"])
def test_a_part_that_begins_to_learn_after_the_reference_was_kept_is_refused(kind: str) -> None:
    """A set shares what was frozen, so it would move with it."""
    weights = KINDS[kind]()
    if kind == "no adapters":
        weights.module.net.requires_grad_(False).enter.requires_grad_(True)  # type: ignore[union-attr,operator]
    weights.snapshot("reference")
    answer(weights.using("reference"))
    weights.module.net.get_parameter(  # type: ignore[union-attr,operator]
        "head.bias" if kind == "no adapters" else "base_model.model.head.base_layer.bias"
    ).requires_grad_(True)
    with pytest.raises(RunError, match="a part of that learns now"):
        weights.using("reference")
    start = answer(weights.module)
    weights.snapshot("reference")
    learn(weights)
    torch.testing.assert_close(answer(weights.using("reference")), start, atol=1e-5, rtol=0)


def test_what_begins_to_learn_is_copied_at_the_next_keep() -> None:
    """A set shares what is frozen; a part that was unfrozen since must not be shared any longer."""
    net = Net()
    net.enter.requires_grad_(False)
    weights = Weights(GaussianDenoiser(net, linear, "v").eval())
    weights.snapshot("old")
    net.enter.requires_grad_(True)
    weights.snapshot("old")
    want = answer(weights.module)
    learn(weights)
    assert torch.equal(answer(weights.using("old")), want)
