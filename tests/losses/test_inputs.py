"""What every advantage and every loss refuses: another shape, numbers that are not finite, masks that are no booleans,
and gradients where the equation has a constant; and that further batch axes change no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from denoiserl import advantages as credit
from denoiserl import losses as objective
from denoiserl.advantages.checks import same_shape
from denoiserl.core.errors import InvalidInputError
from denoiserl.losses import successor

Call = Callable[..., Tensor]


class Function(NamedTuple):
    """A function, its tensors by name, and which of them are asked to be what."""

    call: Call
    tensors: dict[str, Tensor]
    alike: str = ""
    finite: str = ""
    boolean: str = ""
    constant: str = ""


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


T = numbers(4, 3)
NO, YES = torch.zeros(4, 3, dtype=torch.bool), torch.ones(4, 3, dtype=torch.bool)
STEP = {"reward": T, "discount": T.sigmoid(), "value": T + 1, "next_value": T - 1, "done": NO}
PAIR = {"log_prob": T, "old": T + 0.1, "advantage": T - 0.3}
JUDGED = {"value": T, "target": T + 0.5}
FUNCTIONS = {
    "gae": Function(
        lambda **v: credit.gae(**v, lam=0.9), STEP,
        "reward discount value next_value done", "reward discount value next_value", "done",
    ),
    "returns": Function(
        credit.returns, {k: v for k, v in STEP.items() if k != "value"},
        "reward discount next_value done", "reward discount next_value", "done",
    ),
    "returns without values": Function(
        credit.returns, {k: v for k, v in STEP.items() if "value" not in k},
        "reward discount done", "reward discount", "done",
    ),
    "normalise": Function(credit.normalise, {"advantage": T, "mask": YES}, "advantage mask", "advantage", "mask"),
    "clip_quantile": Function(
        lambda advantage: credit.clip_quantile(advantage, 0.1), {"advantage": T}, "", "advantage"
    ),
    "kl_to_go": Function(lambda step_kl: credit.kl_to_go(step_kl, 0.5), {"step_kl": T}, "", "step_kl"),
    "log_ratio_to_go": Function(
        lambda log_ratio: credit.log_ratio_to_go(log_ratio, 0.5), {"log_ratio": T}, "", "log_ratio"
    ),
    "group_relative": Function(credit.group_relative, {"reward": T, "valid": YES}, "reward valid", "reward", "valid"),
    "leave_one_out": Function(credit.leave_one_out, {"reward": T, "valid": YES}, "reward valid", "reward", "valid"),
    "dead_groups": Function(credit.dead_groups, {"reward": T, "valid": YES}, "reward valid", "reward", "valid"),
    "k1": Function(objective.k1, {"log_prob": T, "ref": T}, "log_prob ref"),
    "k2": Function(objective.k2, {"log_prob": T, "ref": T}, "log_prob ref"),
    "k3": Function(objective.k3, {"log_prob": T, "ref": T}, "log_prob ref"),
    "reinforce": Function(
        objective.reinforce, {"log_prob": T, "advantage": T}, "log_prob advantage", constant="advantage"
    ),
    "ppo_clip": Function(
        lambda **v: objective.ppo_clip(**v, clip=0.2), PAIR, "log_prob old advantage", constant="old advantage"
    ),
    "clip_fraction": Function(
        lambda **v: objective.clip_fraction(**v, clip=0.2), {"log_prob": T, "old": T, "mask": YES},
        "log_prob old mask", "", "mask",
    ),
    "approx_kl": Function(
        objective.approx_kl, {"log_prob": T, "old": T, "mask": YES}, "log_prob old mask", "", "mask"
    ),
    "dpo": Function(
        lambda **v: objective.dpo(**v, beta=0.3), {"win": T, "lose": T + 1, "ref_win": T, "ref_lose": T},
        "win lose ref_win ref_lose", constant="ref_win ref_lose",
    ),
    "masked_mean": Function(objective.masked_mean, {"x": T, "mask": YES}, "x mask", "", "mask"),
    "masked_sum": Function(objective.masked_sum, {"x": T, "mask": YES}, "x mask", "", "mask"),
    "weighted": Function(objective.weighted_loss, {"loss": T, "weight": T}, "loss weight", constant="weight"),
    "center_rewards": Function(
        lambda **v: objective.center_rewards(**v, beta=0.3),
        {"log_prob": T, "old": T, "reward": T, "weight": T.sigmoid()}, "log_prob old reward weight",
        constant="old reward",
    ),
    "squared": Function(objective.half_squared_error, JUDGED, "value target", constant="target"),
    "huber": Function(objective.huber, JUDGED, "value target", constant="target"),
    "expectile": Function(objective.expectile, JUDGED, "value target", constant="target"),
    "clipped_value": Function(
        lambda **v: objective.clipped_value(**v, clip=0.2), {**JUDGED, "old": T}, "value target old", constant="old"
    ),
    "ascent": Function(objective.normalized_q_loss, {"value": T, "by": T + 2}, "value by", constant="by"),
    "forward_backward": Function(
        lambda **v: successor.forward_backward(**v, discount=torch.full((4,), 0.9)),
        {"measured": numbers(4, 4), "target": numbers(4, 4)}, "measured target", constant="target",
    ),
}  # fmt: skip


def each(kind: str) -> list[tuple[str, str]]:
    return [(name, part) for name, made in FUNCTIONS.items() for part in getattr(made, kind).split()]


@pytest.mark.parametrize(("name", "part"), each("alike"))
def test_another_shape_is_refused(name: str, part: str) -> None:
    """Also one that would be broadcast."""
    made = FUNCTIONS[name]
    made.call(**made.tensors)
    for other in (made.tensors[part][:1], made.tensors[part][:, :1], made.tensors[part].mT):
        if other.shape != made.tensors[part].shape:
            with pytest.raises(InvalidInputError, match=r"[Ss]hape|group of one"):
                made.call(**{**made.tensors, part: other})


@pytest.mark.parametrize(("name", "part"), each("finite"))
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(name: str, part: str, wrong: float) -> None:
    made = FUNCTIONS[name]
    for place in (0, -1):
        broken = made.tensors[part].clone()
        broken.view(-1)[place] = wrong
        with pytest.raises(InvalidInputError, match=r"finite|discount"):
            made.call(**{**made.tensors, part: broken})


@pytest.mark.parametrize(("name", "part"), each("boolean"))
def test_masks_are_booleans(name: str, part: str) -> None:
    made = FUNCTIONS[name]
    for kind in (torch.float32, torch.int64):
        with pytest.raises(InvalidInputError, match="boolean"):
            made.call(**{**made.tensors, part: made.tensors[part].to(kind)})


@pytest.mark.parametrize(("name", "part"), each("constant"))
def test_constants_carry_no_gradient(name: str, part: str) -> None:
    made = FUNCTIONS[name]
    with pytest.raises(InvalidInputError, match="constant"):
        made.call(**{**made.tensors, part: made.tensors[part].clone().requires_grad_()})


ELEMENTS = ("k1", "k2", "k3", "reinforce", "ppo_clip", "dpo", "squared", "huber", "expectile", "clipped_value")
LAST = ("kl_to_go", "log_ratio_to_go", "leave_one_out", "center_rewards")


@pytest.mark.parametrize("name", [*ELEMENTS, *LAST])
def test_further_batch_axes_change_no_number(name: str) -> None:
    made = FUNCTIONS[name]
    whole = made.call(**made.tensors)
    deep = made.call(**{k: v.view(2, 2, 3) for k, v in made.tensors.items()})
    assert torch.equal(deep.reshape(whole.shape), whole) and deep.isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_normalised_advantages_have_mean_0_and_std_1_at_any_size(size: float) -> None:
    x: Any = size * numbers(5, 7)
    for found in (credit.normalise(x), credit.normalise(x - 2 * size)):
        assert found.mean().abs() < 1e-5 and (found.square().mean() - 1).abs() < 1e-5
        assert torch.allclose(found, credit.normalise(numbers(5, 7)), atol=1e-4)
    two = credit.normalise(torch.tensor([1.0, 3.0]) * size)
    assert torch.allclose(two, torch.tensor([-1.0, 1.0]))
    with pytest.raises(InvalidInputError, match="cannot be normalised"):
        credit.normalise(torch.ones(1))


def test_a_small_number_beside_large_ones_makes_no_tie() -> None:
    """Whether advantages are a tie is decided by the largest: 0 beside 1 and 1 + 1 ulp is none."""
    x = torch.tensor([0.0, 1.0, 1.0])
    assert credit.normalise(x).tolist() == pytest.approx([-(2**0.5), 0.5**0.5, 0.5**0.5], rel=1e-5)
    tie = torch.tensor([1.0, 1.0 + 2**-23, 1.0])
    assert credit.normalise(tie).tolist() == [0, 0, 0]
    assert credit.normalise(torch.tensor([1e-3, 1.0, 1.0 + 2**-23])).std() > 0


def test_the_shape_check_tells_all_shapes() -> None:
    with pytest.raises(InvalidInputError, match=r"a \[2\], b \[2, 1\]"):
        same_shape(a=torch.zeros(2), b=torch.zeros(2, 1))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (4, 1), (4, 3), (1, 1)])
def test_a_table_of_clip_ranges_is_spread_over_the_elements(shape: tuple[int, ...]) -> None:
    table = torch.full(shape, 0.2)
    assert torch.equal(objective.ppo_clip(**PAIR, clip=table), objective.ppo_clip(**PAIR, clip=0.2))


@pytest.mark.parametrize("shape", [(2,), (4,), (1, 4), (3, 1), (2, 3), (3, 3), (4, 2), (4, 3, 1), (1, 4, 3), (2, 1)])
def test_a_table_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"clip .*does not fit"):
        objective.ppo_clip(**PAIR, clip=torch.full(shape, 0.2))
    with pytest.raises(InvalidInputError, match=r"clip_high .*does not fit"):
        objective.ppo_clip(**PAIR, clip=0.2, clip_high=torch.full(shape, 0.3))


@pytest.mark.parametrize(("temperature", "cap"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -2.0)])
def test_a_temperature_and_a_cap_are_positive(temperature: float, cap: float) -> None:
    with pytest.raises(InvalidInputError, match="must be positive"):
        objective.exp_weights(T, temperature, cap)
