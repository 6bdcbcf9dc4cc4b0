"""Networks that are dead, deaf to their condition, or half connected; values out of their ranges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Masked, Policy, Rng, time_grid
from denoiserl.doctor.finding import run_check
from denoiserl.doctor.network import check_alive, check_conditions, gradients
from denoiserl.doctor.values import check_ranges
from denoiserl.nn import MLP
from denoiserl.policy.codec import IdentityCodec, InfillCodec
from denoiserl.processes import cosine, ddim
from tests.doctor.worlds import PM, TWO, Oracle, generator, policy


def drawn(made: Policy, given: Tensor | None = None) -> Tensor:
    return made.sample_chain(given, Rng(1), rows=32, use_eval_steps=True).sample


def mlp(zero: bool = False, null: bool = False, cond: int = 3) -> Policy:
    torch.manual_seed(0)
    return policy(MLP(2, cond, width=16, depth=2, zero=zero, null=null), 2)


def test_a_network_that_answers_nothing_is_dead() -> None:
    cond = Rng(0).normal(32, 3)
    assert check_alive(mlp(), Rng(1).normal(32, 2), cond, Rng(2)).level == "ok"
    found = check_alive(mlp(zero=True), Rng(1).normal(32, 2), cond, Rng(2))
    assert found.level == "error"
    assert "output is 0 for every state" in found.message


def test_nan_weights_are_named() -> None:
    made = mlp()
    made.weights.module.net.leave.bias.data[0] = torch.nan  # type: ignore[union-attr]
    assert "NaN" in check_alive(made, Rng(1).normal(32, 2), Rng(0).normal(32, 3), Rng(2)).message


def test_a_condition_that_is_ignored_is_an_error() -> None:
    cond = Rng(0).normal(32, 3)
    x0 = Rng(1).normal(32, 2)
    assert check_conditions(mlp(), x0, cond, cond, Rng(2)).level == "ok"
    deaf = mlp()
    deaf.weights.module.net.condition.project.weight.data.zero_()  # type: ignore[union-attr]
    assert check_conditions(deaf, x0, cond, cond, Rng(2)).level == "error"
    deaf.weights.module.net.condition.project.weight.data += 1e-5  # type: ignore[union-attr]
    assert check_conditions(deaf, x0, cond, cond, Rng(2)).level == "warning"


def test_the_unconditional_branch_is_found() -> None:
    cond, x0 = Rng(0).normal(32, 3), Rng(1).normal(32, 2)
    assert "also runs without a condition" in check_conditions(mlp(null=True), x0, cond, cond, Rng(2)).message
    assert "no unconditional branch" in check_conditions(mlp(), x0, cond, cond, Rng(2)).message


def test_equal_conditions_tell_nothing() -> None:
    cond = torch.ones(32, 3)
    assert check_conditions(mlp(), Rng(1).normal(32, 2), cond, cond, Rng(2)).level == "note"
    assert check_conditions(mlp(), Rng(1).normal(32, 2), None, None, Rng(2)).level == "note"


class Half(nn.Module):
    """Uses one of its layers; ``how`` breaks it."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.used, self.idle, self.how = nn.Linear(2, 2), nn.Linear(2, 2), how

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        out = self.used(x)
        if self.how == "detached":
            return out.detach() + 0 * self.used.bias.detach()
        if self.how == "root":
            return out + (x[:, :1] * self.used.bias[0] * 0).abs().sqrt()
        if self.how == "both":
            return out + self.idle(x)
        return out + 0 * self.idle(x) if self.how == "zero" else out


@pytest.mark.parametrize(
    ("how", "level", "words"),
    [
        ("both", "ok", "all 4"),
        ("", "warning", "net.idle"),
        ("zero", "note", "exactly zero"),
        ("root", "error", "NaN"),
        ("detached", "error", "stopped"),
    ],
)
def test_gradients_reach_every_tensor_or_are_missed(how: str, level: str, words: str) -> None:
    made = policy(Half(how), 2)
    chain = made.sample_chain(None, Rng(0), rows=8)
    before = [p.grad for p in made.parameters()]
    found = run_check("gradients", gradients, made, chain, Rng(1))
    assert found.level == level
    assert words in found.message
    assert [p.grad for p in made.parameters()] == before, "an examination leaves no gradients behind"


def test_frozen_networks_and_deterministic_chains() -> None:
    made = mlp(cond=0)
    assert (
        gradients(
            replace(made, train_steps=made.eval_steps),
            made.sample_chain(None, Rng(0), rows=4, use_eval_steps=True),
            Rng(1),
        ).level
        == "ok"
    )
    for p in made.weights.module.parameters():
        p.requires_grad_(False)
    assert "trainable" in gradients(made, made.sample_chain(None, Rng(0), rows=4), Rng(1)).message


# Values


def box(low: float, high: float, dim: int = 2) -> Any:
    return SimpleNamespace(action=(dim,), low=np.full(dim, low), high=np.full(dim, high), choices=None)


def test_actions_are_compared_with_the_box() -> None:
    made, x = policy(Oracle(TWO, cosine, "v"), 2), TWO.sample(64, Rng(0))
    assert check_ranges(made, x, x, box(-1.5, 1.5)).level == "ok"
    outside = check_ranges(made, x, x, box(-0.5, 0.5))
    assert outside.level == "warning"
    assert "outside" in outside.message
    assert "2 %" in check_ranges(made, x, x, box(-255.0, 255.0)).message
    assert check_ranges(made, x, x, box(-1, 1, dim=3)).level == "error"
    fixed = x.clone()
    fixed[:, 1] = 0.25
    assert check_ranges(made, fixed, fixed, box(-1.5, 1.5)).message.endswith("[1]")


def test_samples_have_about_unit_scale_and_are_finite() -> None:
    made, x = policy(Oracle(TWO, cosine, "v"), 2), TWO.sample(64, Rng(0))
    assert check_ranges(made, x, x).level == "ok"
    assert check_ranges(made, 100 * x, x).level == "warning"
    assert check_ranges(made, x / 1000, x).level == "warning"
    assert check_ranges(made, torch.ones_like(x), x).level == "error"
    assert check_ranges(made, x, x.masked_fill(x == x.max(), torch.nan)).level == "error"
    clipped = replace(made, process=Diffusion(cosine, ddim(1.0), clip=0.5))
    assert "numbers are clipped" in check_ranges(clipped, x.clamp(-0.5, 0.5), x).remedy


def test_pictures_outside_their_range_are_noticed_where_no_codec_clamps() -> None:
    net = nn.Identity()
    process = Diffusion(cosine)
    made = Policy.of(process, GaussianDenoiser(net, cosine, "x0"), (3, 4, 4), process.steps(time_grid(2)))
    picture = Rng(0).uniform(16, 3, 4, 4) * 2 - 1
    assert check_ranges(made, picture, picture).level == "ok"
    assert check_ranges(made, 2 * picture, 2 * picture).level == "warning"

    @dataclass(frozen=True)
    class Clamps(IdentityCodec):
        def decode(self, sample: Tensor) -> Tensor:
            return sample.clamp(-1, 1)

    held = replace(made, codec=Clamps())
    assert check_ranges(held, 2 * picture, held.codec.decode(2 * picture)).level == "ok"


def test_tokens_are_in_the_vocabulary_and_no_mask_is_left() -> None:
    process = Masked(4)
    made = SimpleNamespace(process=process, event=(6,), codec=InfillCodec())
    tokens = Rng(0).integers(0, 4, 8, 6)
    assert check_ranges(made, tokens, tokens).level == "ok"  # type: ignore[arg-type]
    left = tokens.clone()
    left[0, 0] = process.mask_token  # the mask's id is no token
    assert check_ranges(made, left, left).level == "error"  # type: ignore[arg-type]
    assert "vocabulary" in check_ranges(made, tokens + 5, tokens).message  # type: ignore[arg-type]


def test_the_healthy_generator_is_healthy() -> None:
    made, cond = generator(), PM.draw_prompts(32, Rng(0))
    x0 = drawn(made, cond)
    for found in (
        check_alive(made, x0, cond, Rng(1)),
        check_conditions(made, x0, cond, cond, Rng(1)),
        check_ranges(made, x0, x0),
    ):
        assert found.level == "ok", found
