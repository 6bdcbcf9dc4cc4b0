"""The replay buffer: n-step returns against dynamic programming and by hand, resumes, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.core.serialization import store
from denoiserl.core.tree import all_finite, tree_map
from denoiserl.data import ReplayBuffer
from denoiserl.data.rollout import Rollout

GAMMA = 0.9


class Walk:
    """A Markov reward process over 5 states in copies; state 0 ends the episode, and so does a limit that nobody sees.

    A decision lasts 1, 2 or 3 ticks, drawn with the step, and a share of the steps does not happen at all.
    """

    def __init__(self, copies: int, seed: int, limit: int = 6, dead: float = 0.1) -> None:
        self.rng = Rng(seed)
        self.limit, self.dead, self.copies = limit, dead, copies
        self.move = Rng(100).uniform(5, 5).softmax(-1)
        self.state = self.rng.integers(1, 5, copies)
        self.age = torch.zeros(copies, dtype=torch.int64)
        self.serial = 0

    def length(self, state: Tensor) -> Tensor:
        return 1 + state % 3

    def collect(self, steps: int) -> Rollout:
        rows: list[dict[str, Tensor]] = []
        for _ in range(steps):
            alive = self.rng.uniform(self.copies) >= self.dead
            draw = (self.rng.uniform(self.copies, 1) > self.move[self.state].cumsum(-1)).sum(-1).clamp_max(4)
            after = torch.where(alive, draw, self.state)
            self.age = self.age + alive
            terminated = alive & (after == 0)
            done = terminated | (alive & (self.age >= self.limit))
            length = torch.where(alive, self.length(self.state), 0)
            rows.append(
                {
                    "obs": self.state[:, None].float(), "next_obs": after[:, None].float(),
                    "action": torch.zeros(self.copies, 1), "reward": alive * (self.state.float() + after),
                    "terminated": terminated, "done": done, "num_executed": length,
                    "executed_mask": torch.arange(3) < length[:, None],
                }
            )  # fmt: skip
            fresh = self.rng.integers(1, 5, self.copies)
            self.state, self.age = torch.where(done, fresh, after), torch.where(done, 0, self.age)
        return Rollout(**{k: torch.stack([r[k] for r in rows]) for k in rows[0]})

    def value(self) -> Tensor:
        """V [5] of the endless process by dynamic programming: V(s) = Σ p(s'|s) (s + s' + γ^len(s) V(s')), V(0) = 0."""
        states = torch.arange(5)
        reward = (self.move * (states[:, None] + states[None])).sum(-1)
        reward[0] = 0.0
        discount = GAMMA ** self.length(states).float()
        kept = self.move * discount[:, None]
        kept[0] = kept[:, 0] = 0.0
        return torch.linalg.solve(torch.eye(5) - kept, reward)


def everything(buffer: ReplayBuffer, steps: int) -> dict[str, Any]:
    """The targets of all rows, in place order: what ``sample`` would draw."""

    class All(Rng):
        def integers(self, low: int, high: int, *shape: int) -> Tensor:
            return torch.arange(high)

    return buffer.sample(len(buffer), All(0), GAMMA, steps)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_values_that_satisfy_the_targets_are_those_of_dynamic_programming(steps: int) -> None:
    """Chunks, n-step returns, true ends, time limits that bootstrap, steps that did not happen, short collects."""
    walk, buffer = Walk(400, 1), ReplayBuffer(200_000)
    for _ in range(60):
        buffer.add(walk.collect(2))
    rows = everything(buffer, steps)
    at, to = rows["obs"].long().flatten(), rows["next_obs"].long().flatten()
    one = torch.nn.functional.one_hot(at, 5).float()
    count = one.sum(0).clamp_min(1)
    reward = one.T @ rows["reward"] / count
    kept = one.T @ (torch.nn.functional.one_hot(to, 5) * rows["discount"][:, None]) / count[:, None]
    found = torch.linalg.solve(torch.eye(5) - kept, reward)
    assert torch.allclose(found[1:], walk.value()[1:], rtol=0.02), (found, walk.value())


def test_returns_go_on_over_the_seam_of_a_full_buffer() -> None:
    """Seven decisions of one endless episode in five places: the sixth lies in the first place, behind the fifth."""
    state, buffer = torch.arange(8.0)[:, None, None], ReplayBuffer(5)
    for some in (slice(0, 4), slice(4, 7)):
        after = state[1:][some]
        yes = torch.ones(len(after), 1, dtype=torch.bool)
        parts = (state[some], after, 0 * after, state[some, 0], ~yes, ~yes, yes.long(), yes[..., None])
        buffer.add(Rollout(*parts))
    rows = everything(buffer, 3)
    for first, reward, last, discount in zip(
        rows["obs"].flatten().tolist(), rows["reward"], rows["next_obs"], rows["discount"], strict=True
    ):
        taken = range(int(first), min(int(first) + 3, 7))
        assert float(reward) == pytest.approx(sum(GAMMA**i * k for i, k in enumerate(taken)))
        assert float(last) == taken[-1] + 1 and float(discount) == pytest.approx(GAMMA ** len(taken))
    assert sorted(rows["obs"].flatten().tolist()) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("capacity", [10_000, 37])
def test_returns_are_those_of_the_record(capacity: int) -> None:
    """Against sums over the whole record, with rows overwritten, and collects of several lengths."""
    walk, buffer = Walk(3, 5), ReplayBuffer(capacity)
    parts, serial = [], 0
    for steps in (1, 4, 2, 7, 1, 1, 3):
        ep = walk.collect(steps)
        ids = serial + torch.arange(ep.reward.numel()).view(ep.reward.shape)
        serial += ep.reward.numel()
        parts.append((ep, ids))
        buffer.add(ep, id=ids)
    ep = {
        k: torch.cat([getattr(p, k) for p, _ in parts]) for k in ("reward", "num_executed", "done", "terminated", "obs")
    }
    ep["next_obs"], ids = torch.cat([p.next_obs for p, _ in parts]), torch.cat([i for _, i in parts])
    alive = torch.cat([p.valid for p, _ in parts])
    rows = everything(buffer, 3)
    assert len(rows["id"]) == min(capacity, int(alive.sum()))
    for i, row in enumerate(rows["id"].tolist()):
        t, b = (ids == row).nonzero()[0].tolist()
        total, weight, left = 0.0, 1.0, 3
        while True:
            if alive[t, b]:
                total += weight * float(ep["reward"][t, b])
                weight *= GAMMA ** int(ep["num_executed"][t, b])
                after, ended, left = ep["next_obs"][t, b], bool(ep["terminated"][t, b]), left - 1
            over = alive[t, b] and ep["done"][t, b]
            t += 1
            if left == 0 or over or t == len(alive):
                break
        assert float(rows["reward"][i]) == pytest.approx(total, rel=1e-5)
        assert float(rows["discount"][i]) == pytest.approx(0.0 if ended else weight, rel=1e-5)
        assert torch.equal(rows["next_obs"][i], after) and bool(rows["terminated"][i]) == ended


def test_returns_do_not_run_across_a_reset_that_nobody_announced() -> None:
    walk, buffer = Walk(50, 2, limit=1000, dead=0.0), ReplayBuffer(1000)
    buffer.add(walk.collect(1))
    walk.state = 1 + (walk.state % 4)  # the copies were reset between two collects
    buffer.add(walk.collect(1))
    rows, single = everything(buffer, 2), everything(buffer, 1)
    moved = single["next_obs"][:50] != single["obs"][50:]
    assert bool(moved.any())
    assert torch.equal(rows["reward"][:50][moved[:, 0]], single["reward"][:50][moved[:, 0]])


def test_returns_do_not_run_across_a_decision_that_was_lost_to_a_fault() -> None:
    """It is not live, but done: what comes after it is another episode."""
    ep = Walk(6, 2, limit=1000, dead=0.0).collect(3)
    ep.terminated[:], ep.done[:] = False, False
    ep.executed_mask[1, :3], ep.done[1, :3] = False, True
    buffer = ReplayBuffer(100)
    buffer.add(ep)
    rows, single = everything(buffer, 3), everything(buffer, 1)
    assert len(buffer) == 15
    assert torch.equal(rows["reward"][:3], single["reward"][:3])
    assert bool((rows["reward"][3:6] > single["reward"][3:6]).all())


def test_rows_are_drawn_uniformly() -> None:
    walk, buffer = Walk(4, 3), ReplayBuffer(20)
    for i in range(8):
        buffer.add(walk.collect(1), id=4 * i + torch.arange(4)[None])
    drawn = buffer.sample(20, Rng(0), GAMMA, batches=2000)["id"]
    assert drawn.shape == (2000, 20)
    counts = drawn.flatten().bincount()
    counts = counts[counts > 0].float()
    assert len(counts) == 20 and float((counts / 2000 - 1).abs().max()) < 5 / 2000**0.5


def same(a: ReplayBuffer, b: ReplayBuffer) -> bool:
    one, two = (r.sample(16, Rng(7), GAMMA, 3, batches=4) for r in (a, b))
    return all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("capacity", [1000, 50])
def test_a_resumed_buffer_is_the_same_buffer(tmp_path: Path, capacity: int) -> None:
    """Rows that came after the save are gone, whether they had reached the file or not."""
    walk, buffer = Walk(5, 4), ReplayBuffer(capacity, folder=tmp_path / "rows")
    whole = ReplayBuffer(capacity)
    for round_ in range(6):
        for _ in range(5):
            ep = walk.collect(3)
            buffer.add(ep)
            whole.add(ep)
        store.write(tmp_path / "state", {"replay": buffer.state_dict()})
        if round_ == 3:  # killed after an append whose state was never written, then resumed
            buffer.add(Walk(5, 99).collect(8))
            buffer.state_dict()
        buffer = ReplayBuffer(capacity, folder=tmp_path / "rows")
        buffer.load_state_dict(store.read(tmp_path / "state")["replay"])
        assert same(buffer, whole)
    again = ReplayBuffer(capacity)
    again.load_state_dict(whole.state_dict())
    assert same(again, whole)
    kept = sum(p.stat().st_size for p in (tmp_path / "rows").iterdir())
    row = kept / min(whole.count, 4 * capacity)
    assert kept <= 4 * capacity * row, "old files go"


def test_a_save_writes_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk, buffer = Walk(50, 4, dead=0.0), ReplayBuffer(100_000, folder=tmp_path)
    asked: list[int] = []
    rows = buffer._rows
    monkeypatch.setattr(buffer, "_rows", lambda at: asked.append(len(at)) or rows(at))
    for _ in range(3):
        buffer.add(walk.collect(20))
        buffer.state_dict()
    assert sum(asked) == 3000 + 3, "each row once, and one a save for the layout"


def test_damage_is_refused(tmp_path: Path) -> None:
    buffer = ReplayBuffer(100, folder=tmp_path)
    buffer.add(Walk(5, 4).collect(10))
    state = buffer.state_dict()
    file = tmp_path / "rows-0.bin"
    whole = file.read_bytes()
    for damaged, said in ((whole[:-3], "rows that the saved state needs"), (b"\x01" + whole[1:], "checksum")):
        file.write_bytes(damaged)
        with pytest.raises(RunError, match=said):
            ReplayBuffer(100, folder=tmp_path).load_state_dict(state)
    file.unlink()
    with pytest.raises(RunError, match="is missing"):
        ReplayBuffer(100, folder=tmp_path).load_state_dict(state)
    with pytest.raises(RunError, match="capacity of 100, this one of 99"):
        ReplayBuffer(99, folder=tmp_path).load_state_dict(state)
    with pytest.raises(RunError, match="in a folder"):
        ReplayBuffer(100).load_state_dict(state)


def test_what_does_not_fit_is_refused() -> None:
    walk, buffer = Walk(5, 4, dead=0.0), ReplayBuffer(40)
    with pytest.raises(RunError, match="at least one"):
        ReplayBuffer(0)
    ep = walk.collect(4)
    with pytest.raises(InvalidInputError, match="reward holds NaN"):
        buffer.add(Rollout(**{**vars(ep), "reward": ep.reward + torch.nan}))
    with pytest.raises(InvalidInputError, match="at once"):
        buffer.add(walk.collect(9))
    buffer.add(ep)
    with pytest.raises(InvalidInputError, match="holds 20 decisions, fewer than a batch of 32"):
        buffer.sample(32, Rng(0), GAMMA)
    with pytest.raises(InvalidInputError, match="one buffer per kind of row"):
        buffer.add(Rollout(**{**vars(ep), "action": ep.action.repeat(1, 1, 2)}))
    with pytest.raises(InvalidInputError, match="columns"):
        buffer.add(ep, noise=ep.action)
    assert len(buffer) == 20


def test_observations_may_be_trees() -> None:
    ep = Walk(5, 4).collect(10)
    split = tree_map(lambda v: {"a": v, "b": {"c": -v}}, {"obs": ep.obs, "next_obs": ep.next_obs})
    plain, buffer = ReplayBuffer(100), ReplayBuffer(100)
    plain.add(ep)
    buffer.add(Rollout(**{**vars(ep), **split}))
    rows, known = everything(buffer, 2), everything(plain, 2)
    assert torch.equal(rows["obs"]["a"], known["obs"]) and torch.equal(rows["next_obs"]["b"]["c"], -known["next_obs"])
    assert torch.equal(rows["reward"], known["reward"])


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_numbers_that_are_not_finite_are_found_wherever_they_stand(bad):
    for dtype in (torch.float16, torch.float32, torch.float64):
        good = torch.full((7, 3), torch.finfo(dtype).max, dtype=dtype)  # finite, though its sum is not
        assert all_finite({"a": good, "b": torch.arange(3), "c": (None, -good)})
        for place in range(good.numel()):
            worse = torch.linspace(-1, 1, 21, dtype=dtype).reshape(7, 3)
            worse.view(-1)[place] = bad
            assert not all_finite({"a": good, "b": worse})
    cancelled = torch.tensor([torch.inf, -torch.inf, 1.0])
    assert not all_finite(cancelled)
