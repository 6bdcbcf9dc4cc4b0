"""Per-prompt windows against a bookkeeping that keeps everything for ever."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoiserl.advantages import PerPromptStatTracker
from denoiserl.core.errors import InvalidInputError, RunError

batches = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), min_size=1, max_size=5), min_size=1, max_size=12
)


def naive(history: list[tuple[int, float]], batch: list[tuple[int, float]], window: int, least: int) -> list[float]:
    """From the whole past of the run, numpy only."""
    past, out = history + batch, []
    for prompt, reward in batch:
        own = [r for q, r in past if q == prompt][-window:]
        pool = own if len(own) >= least else [r for _, r in batch]
        std = np.std(pool)
        out.append(float((reward - np.mean(pool)) / std) if np.ptp(pool) > 0 else 0.0)
    return out


@settings(max_examples=80, deadline=None)
@given(batches, st.integers(2, 4), st.integers(0, 4))
def test_windows_are_the_tail_of_the_whole_history(stream, least, more):
    window = least + more  # a batch may hold more of one prompt: the oldest are forgotten
    tracker, history = PerPromptStatTracker(window, least), []
    for batch in stream:
        advantage = tracker.update([p for p, _ in batch], torch.tensor([float(r) for _, r in batch]))
        expected = naive(history, [(p, float(r)) for p, r in batch], window, least)
        torch.testing.assert_close(advantage, torch.tensor(expected))
        history += [(p, float(r)) for p, r in batch]


def test_a_saved_tracker_continues_exactly():
    prompts: list[tuple] = [("cat", 1), ("dog", 2), ("cat", 1), ("emu", 3)]
    g = torch.Generator().manual_seed(0)
    one, two = PerPromptStatTracker(6, 3), PerPromptStatTracker(6, 3)
    for _ in range(4):
        one.update(prompts, torch.randn(4, generator=g))
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    reward = torch.randn(4, generator=g)
    assert torch.equal(one.update(prompts, reward), two.update(prompts, reward))
    assert json.dumps(one.state_dict()) == json.dumps(two.state_dict())
    with pytest.raises(RunError, match="stat_window=6"):
        PerPromptStatTracker(8, 3).load_state_dict(one.state_dict())


def test_tensors_of_ids_are_integers():
    a, b, reward = PerPromptStatTracker(4, 2), PerPromptStatTracker(4, 2), torch.tensor([1.0, 3.0, 5.0])
    assert torch.equal(a.update(torch.tensor([0, 1, 0]), reward), b.update([0, 1, 0], reward))
    assert a.state_dict() == b.state_dict()


def test_dropped_samples_leave_no_trace():
    with_bad, without = PerPromptStatTracker(4, 2), PerPromptStatTracker(4, 2)
    reward = torch.tensor([1.0, torch.nan, 2.0])
    advantage = with_bad.update(["a", "b", "a"], reward, reward.isfinite())
    assert torch.equal(advantage[[0, 2]], without.update(["a", "a"], reward[[0, 2]]))
    assert advantage[1] == 0
    assert with_bad.state_dict() == without.state_dict()


def test_refusals_remember_nothing():
    tracker = PerPromptStatTracker(3, 2)
    with pytest.raises(InvalidInputError, match=r"reward\[1\] = nan"):
        tracker.update(["a", "b"], torch.tensor([0.0, torch.nan]))
    with pytest.raises(InvalidInputError, match="one reward per prompt"):
        tracker.update(["a", "b"], torch.zeros(2, 1))
    with pytest.raises(InvalidInputError, match="must be a string"):
        tracker.update([1.5], torch.zeros(1))
    with pytest.raises(InvalidInputError, match="No valid reward"):
        tracker.update(["a"], torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    assert tracker.state_dict()["seen"] == []
    with pytest.raises(InvalidInputError, match="min_count <= stat_window"):
        PerPromptStatTracker(4, 5)


def test_more_samples_of_a_prompt_than_the_window_forget_the_oldest():
    """One prompt alone, as one unconditional generator has it: judged by the last rewards, and counted."""
    tracker = PerPromptStatTracker(4, 2)
    reward = torch.tensor([9.0, 5.0, 1.0, 2.0, 3.0, 4.0])
    advantage = tracker.update(["a"] * 6, reward)
    torch.testing.assert_close(advantage, (reward - 2.5) / math.sqrt(1.25))
    assert tracker.forgotten == 2 and tracker.state_dict()["seen"] == [["a", [1.0, 2.0, 3.0, 4.0]]]
    tracker.update(["a"], torch.zeros(1))
    assert tracker.forgotten == 0


def test_which_samples_count_is_said_of_every_one() -> None:
    with pytest.raises(InvalidInputError, match="Shapes must be equal"):
        PerPromptStatTracker(4, 2).update(["a", "b"], torch.ones(2), torch.ones(1, dtype=torch.bool))
