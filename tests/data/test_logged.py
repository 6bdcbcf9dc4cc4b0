"""Logged data: rows against a loop, what is unknown and what ends, files there and back, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data import Demonstrations
from denoiserl.data.formats import any as recordings
from denoiserl.data.formats import lerobot as lerobot_dataset
from denoiserl.data.formats import minari
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.transitions import has_reward_contrast, to_transitions, transitions

h5py = pytest.importorskip("h5py")


def ragged(seed: int = 0, lengths: tuple[int, ...] = (5, 1, 9, 2)) -> EpisodeDataset:
    """Episodes of several lengths; every number in them is its own, so a mix-up shows."""
    torch.manual_seed(seed)
    episodes = [(torch.randn(n, 3), torch.rand(n, 2) * 2 - 1) for n in lengths]
    ended = torch.tensor([True, False, False, True])[: len(lengths)]
    demos = Demonstrations.of(episodes, ended.tolist(), name="ragged")
    one = torch.ones(2)
    return EpisodeDataset(demos, torch.randn(sum(lengths)), torch.randn(len(lengths), 3), ended, -one, one)


@pytest.mark.parametrize(("chunk", "n"), [(1, 1), (1, 3), (2, 1), (3, 2), (20, 1)])
def test_rows_are_what_a_walk_through_the_episodes_sees(chunk: int, n: int) -> None:
    """Tick by tick: act, add up, stop at the end; also for chunks longer than every episode."""
    data, gamma = ragged(), 0.9
    rows = to_transitions(data, chunk, n, gamma)
    assert data.rewards is not None and data.terminated is not None
    at = 0
    for e, length in enumerate(data.demos.lengths.tolist()):
        begin = int(data.demos.ends[e]) - length
        seen, done = data.demos.episode(e)
        for t in range(length):
            total, discount, here, over = 0.0, 1.0, t, False
            while here < t + n * chunk and not over:
                total += discount * float(data.rewards[begin + here])
                discount, here, over = discount * gamma, here + 1, here + 1 == length
            true_end = over and bool(data.terminated[e])
            after = data.last[e] if over else seen[here]
            assert float(rows.reward[at]) == pytest.approx(total, abs=1e-5)
            assert float(rows.discount[at]) == pytest.approx(0.0 if true_end else discount)
            assert torch.equal(rows.next_obs[at], after) and torch.equal(rows.obs[at], seen[t])
            assert torch.equal(rows.action[at], torch.stack([done[min(t + k, length - 1)] for k in range(chunk)]))
            assert int(rows.length[at]) == here - t and bool(rows.terminated[at]) == true_end
            at += 1
    assert at == len(rows)


def test_a_buffer_gives_the_rows_back_with_their_discount() -> None:
    rows = to_transitions(ragged(), 2, 2, 0.8)
    drawn = (
        to_transitions(ragged(), 2, 2, 0.8, seen=lambda v: 10 * v).replay(4, done=lambda v: -v).sample(17, Rng(0), 0.8)
    )
    match = (drawn["reward"][:, None] == rows.reward).int().argmax(1)
    assert torch.equal(drawn["obs"], 10 * rows.obs[match]) and torch.equal(drawn["next_obs"], 10 * rows.next_obs[match])
    assert torch.equal(drawn["action"], -rows.action[match])
    assert torch.allclose(drawn["discount"], rows.discount[match])
    with pytest.raises(InvalidInputError, match="17 decisions, fewer than a batch of 18"):
        rows.replay(18)


def test_what_nobody_knows_is_left_out_and_what_ended_is_kept() -> None:
    """Without last observations, rows that would bootstrap from there go; those that truly end need none."""
    data = ragged()
    whole, part = to_transitions(data, 1, 2), to_transitions(replace(data, last=None), 1, 2)
    known = whole.terminated | (whole.length == 2)
    for a, b in ((part.obs, whole.obs), (part.reward, whole.reward), (part.terminated, whole.terminated)):
        inner = torch.ones(17, dtype=torch.bool)
        for e in (1, 2):  # cut by a time limit: the last two ticks look beyond it
            end, length = int(data.demos.ends[e]), int(data.demos.lengths[e])
            inner[end - min(2, length) : end] = False
        assert torch.equal(a, b[inner]) and bool((known | ~inner).all())
    counted = to_transitions(
        Demonstrations(data.demos.observations, data.demos.actions, data.demos.ends, data.demos.success)
    )
    assert counted.reward.sum() == 2 and torch.equal(counted.reward > 0, counted.terminated), "success is the reward"
    with pytest.raises(InvalidInputError, match="neither rewards nor success"):
        to_transitions(replace(data, rewards=None, demos=replace(data.demos, success=None)))


def test_single_transitions_are_a_recording_and_come_back() -> None:
    rows = to_transitions(ragged())
    made = transitions(rows.obs, rows.action[:, 0], rows.reward, rows.next_obs, rows.terminated, rows.low, rows.high)
    again = to_transitions(made)
    for name in ("obs", "action", "reward", "next_obs", "terminated", "discount", "low", "high"):
        assert torch.equal(getattr(again, name), getattr(rows, name)), name
    with pytest.raises(InvalidInputError, match="reward has the shape"):
        transitions(rows.obs, rows.action[:, 0], rows.reward[:, None], rows.next_obs, rows.terminated)


def test_what_cannot_be_learned_from_is_refused_by_row() -> None:
    data = ragged()
    assert data.rewards is not None and data.terminated is not None
    wrong = data.demos.actions.clone()
    wrong[7, 1] = 1.5
    with pytest.raises(InvalidInputError, match="row 7 of ragged acts"):
        to_transitions(replace(data, demos=replace(data.demos, actions=wrong)))
    edge = data.demos.actions.clone()
    edge[7] = torch.tensor([1.0, -1.0])
    assert len(to_transitions(replace(data, demos=replace(data.demos, actions=edge)))) == 17, (
        "the edge of the box is inside"
    )
    nan = data.rewards.clone()
    nan[3] = torch.nan
    with pytest.raises(InvalidInputError, match="row 3 of the rewards of ragged holds NaN"):
        to_transitions(replace(data, rewards=nan))
    with pytest.raises(InvalidInputError, match="row 2 of the last observations"):
        to_transitions(replace(data, last=data.last.index_fill(0, torch.tensor([2]), torch.inf)))
    with pytest.raises(InvalidInputError, match="no return at a discount of 1"):
        to_transitions(replace(data, terminated=torch.zeros(4, dtype=torch.bool)), gamma=1.0)
    assert bool((to_transitions(data, gamma=1.0).discount[-1] == 0).all())
    with pytest.raises(InvalidInputError, match="at least one"):
        to_transitions(data, n=0)


def test_equal_rewards_say_nothing_unless_ends_do() -> None:
    data = ragged()
    ones, never = torch.ones(17), torch.zeros(4, dtype=torch.bool)
    assert has_reward_contrast(data)
    assert not has_reward_contrast(replace(data, rewards=0 * ones))
    assert has_reward_contrast(replace(data, rewards=-ones)), "minus one a tick until a true end: the sooner the better"
    assert not has_reward_contrast(replace(data, rewards=-ones, terminated=never))


def same(a: EpisodeDataset, b: EpisodeDataset) -> None:
    x, y = to_transitions(a), to_transitions(b)
    for name in ("obs", "action", "reward", "next_obs", "terminated"):
        assert torch.equal(getattr(x, name), getattr(y, name)), name


def test_a_flat_file_loses_nothing_and_the_other_formats_are_recognised(tmp_path: Path) -> None:
    data = ragged()
    again = recordings.read(recordings.write(tmp_path / "a.hdf5", data))
    same(data, again)
    assert again.demos.success is not None and data.demos.success is not None
    assert torch.equal(again.demos.success, data.demos.success) and torch.equal(again.low, data.low)
    same(data, recordings.read(minari.write(tmp_path / "m", data)))
    same(data, recordings.read(tmp_path / "m" / "data" / "main_data.hdf5"))
    data.demos.save(tmp_path / "own")
    assert to_transitions(recordings.read(tmp_path / "own")).reward.sum() == 2
    with pytest.raises(RunError, match="exists already"):
        recordings.write(tmp_path / "a.hdf5", data)


def test_a_lerobot_folder_is_recognised(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    data = ragged()
    lerobot_dataset.write(tmp_path / "l", data, 10, "ragged")
    rows = to_transitions(recordings.read(tmp_path / "l"))
    same_rows = to_transitions(replace(data, last=None))
    assert torch.equal(rows.obs, same_rows.obs) and torch.equal(rows.action, same_rows.action)


def d4rl(path: Path, **more: np.ndarray) -> Path:
    """Three episodes of 4, 3 and 2 rows: an end, a time limit, and what the file stopped in."""
    rng = np.random.default_rng(0)
    columns = {
        "observations": rng.normal(size=(9, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (9, 2)).astype(np.float32),
        "rewards": np.arange(9, dtype=np.float32),
        "terminals": np.eye(9, dtype=bool)[3],
        "timeouts": np.eye(9, dtype=bool)[6],
        **more,
    }
    with h5py.File(path, "w") as file:
        for name, value in columns.items():
            if value is not None:
                file[name] = value
    return path


def test_a_file_that_tells_of_no_end_is_one_episode_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="marks no end: its 9 rows are read as one episode"):
        data = recordings.read(d4rl(tmp_path / "x.hdf5", terminals=np.zeros(9, bool), timeouts=None))  # type: ignore[arg-type]
    assert len(data.demos) == 1


def test_a_bare_d4rl_file_is_read_as_its_own_reader_does(tmp_path: Path) -> None:
    """Without successors, a cut episode gives its last row up for what was seen there."""
    data = recordings.read(d4rl(tmp_path / "x.hdf5"))
    rows = to_transitions(data)
    with h5py.File(tmp_path / "x.hdf5") as file:
        seen = torch.from_numpy(file["observations"][()])
    assert data.demos.lengths.tolist() == [4, 2, 1]
    assert rows.reward.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert rows.terminated.tolist() == [False, False, False, True, False, False, False]
    assert torch.equal(rows.next_obs[[0, 1, 2, 4, 5, 6]], seen[[1, 2, 3, 5, 6, 8]])


def test_successors_tell_where_episodes_end_when_nothing_else_does(tmp_path: Path) -> None:
    seen = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    after = np.concatenate([seen[1:], seen[:1] + 1])
    after[6] += 1  # row 7 does not begin where row 6 led
    path = d4rl(tmp_path / "x.h5", observations=seen, next_observations=after, timeouts=None)  # type: ignore[arg-type]
    rows = to_transitions(recordings.read(path))
    assert recordings.read(path).demos.lengths.tolist() == [4, 3, 2]
    assert torch.equal(rows.next_obs, torch.from_numpy(after)) and len(rows) == 9


def test_a_file_that_is_none_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no"):
        recordings.read(tmp_path / "nothing.hdf5")
    with pytest.raises(InvalidInputError, match="rewards"):
        recordings.read(d4rl(tmp_path / "a.hdf5", rewards=None))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="9 actions and 8 of rewards"):
        recordings.read(d4rl(tmp_path / "b.hdf5", rewards=np.zeros(8)))
    broken = np.zeros((9, 3), np.float32)
    broken[5] = np.nan
    with pytest.raises(InvalidInputError, match=r"row 1 of observations of episode 1 of c\.hdf5 holds NaN"):
        recordings.read(d4rl(tmp_path / "c.hdf5", observations=broken))
    (tmp_path / "d.hdf5").write_text("no")
    with pytest.raises(RunError, match="cannot be read as HDF5"):
        recordings.read(tmp_path / "d.hdf5")
    (tmp_path / "e.xyz").write_text("no")
    with pytest.raises(RunError, match="one file is HDF5"):
        recordings.read(tmp_path / "e.xyz")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "notes.xyz").write_text("no")
    with pytest.raises(RunError, match="no dataset known here"):
        recordings.read(tmp_path / "f")


@pytest.mark.parametrize("outside", ["error", "clip"])
def test_actions_outside_a_known_box_are_refused_or_clipped(tmp_path: Path, outside: str) -> None:
    path = d4rl(tmp_path / "x.hdf5", action_low=-np.full(2, 0.2, np.float32), action_high=np.full(2, 0.2, np.float32))
    if outside == "clip":
        assert float(recordings.read(path, "clip").demos.actions.abs().max()) == pytest.approx(0.2)
    else:
        with pytest.raises(InvalidInputError, match="out_of_bounds_actions='clip'"):
            recordings.read(path)


def test_actions_beyond_the_end_of_an_episode_are_not_real() -> None:
    """A chunk of 3 that starts at tick t of an episode of T executes min(3, T − t) actions; the rest repeat the last.
    A buffer keeps that as a column only where it says something."""
    rows = to_transitions(ragged(), 3, 2)
    wanted = [[t + k < length for k in range(3)] for length in (5, 1, 9, 2) for t in range(length)]
    assert rows.real.tolist() == wanted
    drawn = rows.replay().sample(17, Rng(0), rows.gamma)
    match = (drawn["reward"][:, None] == rows.reward).int().argmax(1)
    assert torch.equal(drawn["real"], torch.tensor(wanted)[match])
    single = to_transitions(ragged(), 1, 2)
    assert bool(single.real.all()) and "real" not in single.replay().columns
