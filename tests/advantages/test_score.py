"""What a reward may say: any list of real numbers, one per sample. Everything else is refused by the part's name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.rewards import _numbers, evaluate_reward, prompt_count, repeat_prompts

N = 5
VALUES = [0.25, 0.0, -1.5, 1.0, 3.0]
X = torch.arange(2.0 * N).reshape(N, 2)


def said(value: Any, **how: Any) -> Any:
    return evaluate_reward(lambda *_: value, X, X, **how)


@pytest.mark.parametrize(
    "value",
    [
        VALUES,
        tuple(VALUES),
        np.array(VALUES),
        np.array(VALUES, np.float16),
        np.array(VALUES, object),
        torch.tensor(VALUES, dtype=torch.float64),
        torch.tensor(VALUES, dtype=torch.bfloat16),
        torch.tensor(VALUES, requires_grad=True),
        [torch.tensor(v) for v in VALUES],
        [torch.tensor(v, requires_grad=True) for v in VALUES],
        [np.float32(v) for v in VALUES],
        {"reward": VALUES},
    ],
    ids=lambda v: type(v).__name__,
)
def test_numbers_of_any_kind_are_the_same_reward(value: Any) -> None:
    """Float32 without a gradient, whatever held them."""
    got = said(value)
    assert torch.equal(got.total, torch.tensor(VALUES)) and not got.total.requires_grad and bool(got.valid.all())


@pytest.mark.parametrize("value", [[True, False, True, True, False], np.array([1, 0, 1, 1, 0], np.uint8)])
def test_counts_and_truths_are_numbers(value: Any) -> None:
    assert said(value).total.tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "value",
    [
        [1.0, None, 2.0, None, 3.0],
        np.array([1.0, None, 2.0, None, 3.0], object),
        np.ma.array([1.0, 7.0, 2.0, 7.0, 3.0], mask=np.array([False, True, False, True, False])),
    ],
    ids=["list", "array", "masked"],
)
def test_no_answer_is_dropped_or_named(value: Any) -> None:
    got = said(value, invalid_rewards="drop")
    assert got.dropped == 2 and got.valid.tolist() == [True, False, True, False, True]
    assert got.total[got.valid].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(InvalidInputError, match=r"\[1\]"):
        said(value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "None"),
        (1.0, r"\(\)"),
        (torch.tensor(1.0), r"\(\)"),
        (torch.zeros(N, 1), r"\(5, 1\)"),
        ([torch.zeros(1)] * N, r"\(5, 1\)"),
        ([0.0] * (N + 1), r"\(6,\)"),
        (["1.0"] * N, "non-numbers"),
        (np.array(["1.0"] * N, object), "non-numbers"),
        ([1.0, 2.0, [3.0], 4.0, 5.0], "non-numbers"),
        ([1j] * N, "non-numbers"),
        (torch.zeros(N, dtype=torch.complex64), "complex"),
        ([{"a": 1.0}] * N, "non-numbers"),
        (np.zeros(N, "datetime64[s]"), "non-numbers"),
        ((v for v in VALUES), "non-numbers"),
        ({"a": torch.zeros(N), "b": torch.zeros(N, 1)}, "'b'"),
        ({"a": {"b": torch.zeros(N)}}, "'a'"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_whatever_is_not_a_number_a_sample_is_named(value: Any, what: str) -> None:
    with pytest.raises(InvalidInputError, match=what) as told:
        said(value)
    assert "return a tensor of shape (5,)" in str(told.value)


def test_a_reward_without_parts_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no parts"):
        said({})


def test_only_weighted_parts_count() -> None:
    """A part of weight 0 is logged and harms nothing, even where it is NaN."""
    parts = {"a": VALUES, "b": [1.0] * N, "c": [math.nan] * N}
    got = said(parts, weights={"a": 2.0, "b": -1.0, "c": 0.0})
    torch.testing.assert_close(got.total, 2 * torch.tensor(VALUES) - 1)
    assert set(got.parts) == {"a", "b", "c"}
    with pytest.raises(InvalidInputError, match="Did you mean 'a'"):
        said({"a": VALUES, "b": VALUES}, weights={"aa": 1.0})


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 9])
def test_scores_do_not_depend_on_how_many_are_asked_at_once(micro: int) -> None:
    """Neither numbers nor the names of bad samples; decoding happens inside a call."""
    seen: list[int] = []

    def reward(x: Tensor, c: Tensor) -> dict[str, Tensor]:
        seen.append(len(x))
        return {"sum": x.sum(-1) + c[:, 0], "bad": torch.where(c[:, 0] == 6, torch.nan, 0.0)}

    got = evaluate_reward(reward, X, X, invalid_rewards="drop", micro_batch_size=micro, decode=lambda v: 10 * v)
    assert max(seen) == min(micro, N) and sum(seen) == N
    assert got.valid.tolist() == [True, True, True, False, True]
    assert torch.equal(got.parts["sum"], 10 * X.sum(-1) + X[:, 0])
    with pytest.raises(InvalidInputError, match=r"\[3\]"):
        evaluate_reward(reward, X, X, micro_batch_size=micro)
    with pytest.raises(InvalidInputError, match="at least 1"):
        evaluate_reward(reward, X, X, micro_batch_size=0)


def test_parts_that_come_and_go_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="different parts for different samples"):
        evaluate_reward(lambda x, c: {f"part {int(x[0, 0])}": x[:, 0]}, X, X, micro_batch_size=2)


def test_a_rewards_numbers_go_where_the_samples_are() -> None:
    """``meta`` stands for any device that is not the reward's."""
    for value in (VALUES, torch.tensor(VALUES)):
        assert _numbers(value, "r", N, torch.device("meta")).device.type == "meta"


def test_no_graph_is_made_by_a_network_that_decodes_and_scores() -> None:
    """A decoder whose weights learn elsewhere keeps nothing in memory here."""
    decoder = torch.nn.Linear(2, 2)

    def reward(x: Tensor, c: Tensor) -> Tensor:
        assert not x.requires_grad
        return x.sum(-1)

    assert not evaluate_reward(reward, X, X, decode=decoder).total.requires_grad


def test_prompts_are_asked_in_groups_or_not_at_all() -> None:
    prompts = {"text": torch.tensor([[1.0], [2.0], [3.0]])}
    assert prompt_count(prompts) == 3
    assert repeat_prompts(prompts, torch.tensor([2, 0]), 2)["text"].flatten().tolist() == [3.0, 3.0, 1.0, 1.0]
    for none in (None, 64):
        assert prompt_count(none) == 1 and repeat_prompts(none, torch.tensor([0, 0]), 2) is None


@pytest.mark.parametrize(
    ("prompts", "what"),
    [
        (["a cat", "a dog"], "texts"),
        ("a cat", "texts"),
        ({"text": ["a cat"], "n": torch.zeros(1)}, "texts"),
        (np.array(["a cat"]), "ndarray"),
        ([1, [2, 3]], "list|int"),
        (torch.tensor(1.0), "one length"),
        (torch.zeros(0, 3), "one length"),
        ({}, "one length"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, r"\[2, 3\]"),
    ],
)
def test_prompts_that_are_no_tensors_are_refused_with_the_remedy(prompts: Any, what: str) -> None:
    with pytest.raises(InvalidInputError, match=what):
        prompt_count(prompts)


def test_prompts_may_be_numbers_in_arrays_and_lists() -> None:
    index = torch.tensor([2, 0])
    for numbers in (np.arange(6.0).reshape(3, 2), np.arange(6.0).reshape(3, 2).tolist()):
        assert prompt_count(numbers) == 3
        found = repeat_prompts(numbers, index, 2)
        assert found.dtype == torch.float32 and found.tolist() == [[4, 5], [4, 5], [0, 1], [0, 1]]
    assert repeat_prompts([7, 8, 9], index, 1).tolist() == [9, 7]


def test_a_sparse_reward_is_its_numbers() -> None:
    assert torch.equal(said(torch.tensor(VALUES).to_sparse()).total, torch.tensor(VALUES))


def test_a_tensor_without_numbers_is_refused_by_name() -> None:
    for value in (torch.zeros(N, device="meta"), torch.nested.nested_tensor([torch.ones(1)] * N, layout=torch.jagged)):
        with pytest.raises(InvalidInputError, match="Tensor of non-numbers"):
            said(value)


@pytest.mark.parametrize("weight", ["1", None, math.nan, math.inf])
def test_a_weight_is_a_finite_number(weight: Any) -> None:
    with pytest.raises(InvalidInputError, match="the weight of the reward's 'a' is"):
        said({"a": VALUES}, weights={"a": weight})


def test_a_reward_that_writes_into_its_sample_changes_nothing_that_is_learned() -> None:
    sample = X.clone()
    for micro in (None, 2):
        assert torch.equal(
            evaluate_reward(lambda x, _: x.mul_(2)[:, 0], sample, None, micro_batch_size=micro).total, 2 * X[:, 0]
        )
        assert torch.equal(sample, X)
