"""Where episodes of flat rows end: successors, masks, jumps and flags, against episodes that are known."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data.ends import check_inner_ends, split_episodes
from denoiserl.data.formats import any as recordings
from denoiserl.data.transitions import to_transitions

h5py = pytest.importorskip("h5py")
EPISODES, TICKS = 10, 20
LAST = np.arange(EPISODES * TICKS) % TICKS == TICKS - 1
NEVER = np.zeros(EPISODES * TICKS, bool)


def walks(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations and successors of walkers that start far apart and go 0.1 at most."""
    rng = np.random.default_rng(seed)
    step = 0.1 * rng.uniform(-1, 1, (EPISODES, TICKS, 2))
    angle = 2.4 * np.arange(EPISODES)[:, None]  # starts on a circle, each far from the one before
    seen = 5 * np.stack([np.cos(angle), np.sin(angle)], -1) + np.concatenate([0 * step[:, :1], step.cumsum(1)], 1)
    flat = lambda v: v.reshape(-1, 2).astype(np.float32)  # noqa: E731
    return flat(seen[:, :-1]), flat(seen[:, 1:])


SEEN, AFTER = walks()


def stored(path: Path, **more: Any) -> Path:
    n = len(more.get("observations", SEEN))
    columns = {"observations": SEEN, "actions": np.zeros((n, 1), np.float32), "rewards": np.ones(n, np.float32), **more}
    if path.suffix == ".npz":
        np.savez(path, **columns)
        return path
    with h5py.File(path, "w") as file:
        for name, value in columns.items():
            file[name] = value
    return path


def quiet(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return recordings.read(path)


@pytest.mark.parametrize("flag", ["missing", "late", "none"])
def test_what_is_learned_from_are_the_stored_successors(tmp_path: Path, flag: str) -> None:
    """Row by row, whatever the time limits say; where they contradict, a word with the row."""
    wrong = {"missing": NEVER, "late": np.roll(LAST, 1), "none": None}[flag]
    cut = {} if wrong is None else {"timeouts": wrong}
    path = stored(tmp_path / "a.hdf5", next_observations=AFTER, terminals=NEVER, **cut)
    if wrong is None:
        data = quiet(path)
    else:
        with pytest.warns(
            UserWarning, match=r"next_observations of 9 rows of a.hdf5 are not the next row .*first in row 19"
        ):
            data = recordings.read(path)
    rows = to_transitions(data)
    assert torch.equal(rows.obs, torch.from_numpy(SEEN)) and torch.equal(rows.next_obs, torch.from_numpy(AFTER))
    assert data.demos.lengths.tolist() == [TICKS] * EPISODES


def test_right_flags_are_believed_without_a_word(tmp_path: Path) -> None:
    """Also where the environment teleports inside an episode, successors are rounded, or ends are numbers."""
    seen, after = SEEN.copy(), AFTER.copy()
    seen[47:60] += 30
    after[46:60] += 30
    near = after * (1 + 1e-7 * np.random.default_rng(0).choice([-1, 1], after.shape))
    for k, kind in enumerate((bool, np.float32, np.int64)):
        path = stored(
            tmp_path / f"{k}.hdf5", observations=seen, next_observations=near, terminals=NEVER.astype(kind),
            timeouts=LAST.astype(kind)[:, None],
        )  # fmt: skip
        assert quiet(path).demos.lengths.tolist() == [TICKS] * EPISODES


def test_jumps_without_limits_and_successors_are_ends_and_told(tmp_path: Path) -> None:
    some = LAST & (np.arange(200) // TICKS % 5 < 2)
    with pytest.warns(UserWarning, match=r"stores no timeouts, and 5 gaps .* first after row 59"):
        data = recordings.read(stored(tmp_path / "a.hdf5", terminals=some))
    rows = to_transitions(data)
    assert len(data.demos) == EPISODES and float((rows.next_obs - rows.obs).norm(dim=1).max()) < 0.2
    assert int(rows.terminated.sum()) == 4


def test_a_teleport_is_told_and_kept_where_limits_are_stored(tmp_path: Path) -> None:
    seen = SEEN.copy()
    seen[47:60] += 30
    with pytest.warns(UserWarning, match=r"a.hdf5 jumps far .*\(1 gap, first after row 46\): teleports"):
        data = recordings.read(stored(tmp_path / "a.hdf5", observations=seen, terminals=NEVER, timeouts=LAST))
    assert data.demos.lengths.tolist() == [TICKS - 1] * EPISODES
    assert torch.equal(to_transitions(data).next_obs[44], torch.from_numpy(seen[47])), "the teleport is learned from"


def test_limits_one_row_off_are_found_by_the_jumps_beside_them(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="9 of them lie one row beside an end"):
        rows = to_transitions(
            recordings.read(
                stored(tmp_path / "a.hdf5", terminals=NEVER, timeouts=np.roll(LAST, 1) & (LAST.cumsum() > 0))
            )
        )
    assert float((rows.next_obs - rows.obs).norm(dim=1).max()) < 0.2


def test_smooth_contacts_and_angles_that_wrap_are_no_jumps() -> None:
    """Long tails, flags that flip, and an angle over its seam: steps of an environment."""
    rng = np.random.default_rng(0)
    angle = (0.1 * np.arange(400) + np.pi) % (2 * np.pi) - np.pi
    flag = (np.arange(400) // 70 % 2).astype(float)
    speed = rng.laplace(size=400)
    seen = np.stack([angle, flag, speed], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = split_episodes("x", seen, np.eye(400, dtype=bool)[200])
    assert found.stop.tolist() == [200, 399] and found.ended.tolist() == [True, False]


def test_an_episode_that_says_again_that_it_is_over_is_told(tmp_path: Path) -> None:
    """As agents that stand at a goal are recorded; episodes of one row each are not."""
    line = np.tile(np.linspace(0, 1, 60, dtype=np.float32)[:, None], (3, 2))
    at_goal = np.tile(np.arange(60) >= 40, 3)
    more = {"observations": line, "terminals": at_goal, "timeouts": np.tile(np.arange(60) == 59, 3)}
    with pytest.warns(UserWarning, match=r"57 rows of a.hdf5 are ends.* first in row 40"):
        data = recordings.read(stored(tmp_path / "a.hdf5", **more))
    assert torch.equal(to_transitions(data).discount == 0, torch.from_numpy(at_goal)), "each is a true end"
    every = np.ones(200, bool)
    single = quiet(stored(tmp_path / "b.hdf5", terminals=every, timeouts=NEVER))
    assert len(single.demos) == 200


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
def test_masks_are_true_ends_and_terminals_end_trajectories(tmp_path: Path, ending: str) -> None:
    """OGBench: two trajectories of five; the first succeeds in row 2 and goes on."""
    seen = np.arange(10, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    masks = 1 - np.eye(10, dtype=np.float32)[2]
    path = stored(
        tmp_path / f"cube{ending}", observations=seen, next_observations=seen + 1, masks=masks,
        terminals=np.array([0, 0, 0, 0, 1] * 2, np.float32), rewards=masks - 1,
    )  # fmt: skip
    rows = to_transitions(recordings.read(path), gamma=0.9)
    assert torch.allclose(rows.discount, 0.9 * torch.from_numpy(masks))
    assert torch.equal(rows.next_obs, torch.from_numpy(seen + 1))


def test_ogbench_without_rewards_has_trajectories_and_no_true_end(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", observations=SEEN, actions=np.zeros((200, 1)), terminals=LAST.astype(np.float32))
    data = quiet(tmp_path / "a.npz")
    assert data.rewards is None and data.terminated is not None and not bool(data.terminated.any())
    assert data.demos.lengths.tolist() == [TICKS - 1] * EPISODES, "the last row is what was seen last"
    assert torch.equal(data.last, torch.from_numpy(SEEN[LAST]))


def test_columns_that_mean_something_else_are_refused_by_name(tmp_path: Path) -> None:
    bad: dict[str, tuple[dict[str, Any], str]] = {
        "counts": ({"terminals": 2 * LAST}, "row 19 of terminals of counts.hdf5 is 2: ends are zeros and ones"),
        "nan": ({"terminals": np.where(LAST, np.nan, 0.0)}, "row 19 of terminals of nan.hdf5 is nan"),
        "dones": ({"dones": LAST}, "stores dones, which mix true ends and time limits"),
        "wide": ({"terminals": LAST, "rewards": np.ones((200, 2))}, r"rewards of .*wide.hdf5 are \[200, 2\]"),
        "text": ({"terminals": LAST, "rewards": np.full(200, b"x")}, "rewards of .*text.hdf5 are .S1, not numbers"),
        "after": ({"terminals": LAST, "next_observations": SEEN[:, :1]}, r"next_observations of .* are \[200, 1\]"),
        "empty": ({"terminals": LAST[:0], "observations": SEEN[:0]}, "holds no row"),
    }
    for name, (columns, said) in bad.items():
        with pytest.raises((RunError, InvalidInputError), match=said):
            recordings.read(stored(tmp_path / f"{name}.hdf5", **columns))
    both = quiet(stored(tmp_path / "both.hdf5", dones=LAST, timeouts=LAST & (np.arange(200) > 100)))
    assert both.terminated is not None and both.terminated.tolist() == [True] * 5 + [False] * 5


def test_flags_inside_an_episode_are_refused_or_told() -> None:
    early = np.array([0, 0, 1, 0, 1], bool)
    with pytest.raises(
        InvalidInputError, match=r"episode 3 of x truncated in row 2 and goes on to row 4.*exclude_episodes=\(3,\)"
    ):
        check_inner_ends("x", 3, early & False, early)
    with pytest.warns(UserWarning, match="episode 3 of x terminated in row 2"):
        check_inner_ends("x", 3, early, refuse=False)
    check_inner_ends("x", 0, np.array([0, 0, 1], bool), np.array([0, 0, 1], bool))


def test_a_file_of_one_row_is_read(tmp_path: Path) -> None:
    more = {"observations": SEEN[:1], "terminals": NEVER[:1], "timeouts": LAST[19:20]}
    data = quiet(stored(tmp_path / "one.hdf5", next_observations=AFTER[:1], **more))
    assert torch.equal(to_transitions(data).next_obs, torch.from_numpy(AFTER[:1]))
    with pytest.raises(InvalidInputError, match="holds no episode of two rows"):
        recordings.read(stored(tmp_path / "bare.hdf5", **more))
    np.savez(tmp_path / "flat.npz", observations=SEEN, actions=1.0, terminals=NEVER)
    with pytest.raises(InvalidInputError, match=r"actions of .* is a single value"):
        recordings.read(tmp_path / "flat.npz")


@pytest.mark.parametrize("flag", ["timeouts", "terminals"])
def test_a_file_of_one_episode_whose_end_is_told_needs_no_word(tmp_path: Path, flag: str) -> None:
    last = np.arange(TICKS) == TICKS - 1
    told = {"terminals": np.zeros(TICKS, bool), "timeouts": np.zeros(TICKS, bool), flag: last}
    found = quiet(stored(tmp_path / "a.hdf5", observations=SEEN[:TICKS], **told))
    assert len(found.demos) == 1 and found.terminated.tolist() == [flag == "terminals"]


def test_the_start_of_the_next_episode_is_no_successor_of_one_that_a_time_limit_cut(tmp_path: Path) -> None:
    """Successors made by moving the rows up by one: those at time limits belong to other episodes."""
    moved = np.concatenate([SEEN[1:], SEEN[-1:]])
    path = stored(tmp_path / "a.hdf5", next_observations=moved, terminals=NEVER, timeouts=LAST)
    with pytest.warns(UserWarning, match=r"of 9 time limits of a.hdf5 are the start of the next .*first in row 19"):
        rows = to_transitions(recordings.read(path))
    true = {tuple(row) for row in AFTER}
    assert len(rows) == EPISODES * (TICKS - 1) and all(tuple(row) in true for row in rows.next_obs.numpy())
    ended = recordings.read(stored(tmp_path / "b.hdf5", next_observations=moved, terminals=LAST, timeouts=NEVER))
    assert len(ended.demos.actions) == EPISODES * TICKS, "what follows a true end is not learned from"
    goes_on = np.zeros(EPISODES * TICKS, bool)
    goes_on[[4, 9]] = True  # limits in the midst of a walk that goes on: its next row is what followed
    path = stored(tmp_path / "c.hdf5", next_observations=AFTER, terminals=NEVER, timeouts=LAST | goes_on)
    assert len(quiet(path).demos.actions) == EPISODES * TICKS


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_successors_are_compared_in_the_precision_in_which_they_are_stored(tmp_path: Path, kind: str) -> None:
    seen, after = SEEN.astype(np.float64) * np.pi, AFTER.astype(np.float64) * np.pi
    path = stored(
        tmp_path / "a.hdf5", observations=seen, next_observations=after.astype(kind), terminals=NEVER, timeouts=LAST
    )
    assert len(quiet(path).demos) == EPISODES


def test_a_hole_in_the_observations_is_refused_in_its_own_row(tmp_path: Path) -> None:
    hole = SEEN.copy()
    hole[27, 1] = np.nan
    path = stored(tmp_path / "a.hdf5", observations=hole, next_observations=AFTER, terminals=NEVER, timeouts=LAST)
    with pytest.raises(InvalidInputError, match="row 7 of observations of episode 1"):
        quiet(path)


def test_columns_that_are_no_arrays_of_numbers_are_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.hdf5", terminals=LAST, action_low=np.array([b"x"]), action_high=np.ones(1))
    with pytest.raises(InvalidInputError, match=r"action_low and action_high of .* store numbers"):
        recordings.read(path)
    hole = stored(tmp_path / "b.hdf5", terminals=LAST, action_low=np.array([np.nan]), action_high=np.ones(1))
    with pytest.raises(InvalidInputError, match=r"action_low or action_high of .* holds NaN: store infinity"):
        recordings.read(hole)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file["rewards/sparse"] = np.ones(len(SEEN))
    with pytest.raises(InvalidInputError, match=r"rewards of .* has parts \(sparse\)"):
        recordings.read(path)
    with pytest.raises(RunError, match="'3-1' runs backwards"):
        recordings.read(path, exclude_episodes="3-1")


@pytest.mark.parametrize("flags", ["timeouts", "terminals"])
def test_bursts_of_what_mostly_rests_are_no_ends(tmp_path: Path, flags: str) -> None:
    """A pusher moves now and then, far beyond its usual step and never far across its table."""
    rng = np.random.default_rng(0)
    burst = rng.uniform(size=(EPISODES, 40, 1)) < 0.1
    step = np.where(burst, 0.03, 1e-4) * rng.choice([-1, 1], (EPISODES, 40, 2))
    seen = (rng.uniform(size=(EPISODES, 1, 2)) + step.cumsum(1)).reshape(-1, 2)
    last = np.arange(len(seen)) % 40 == 39
    told = {"terminals": ~last & last, "timeouts": last} if flags == "timeouts" else {"terminals": last}
    assert len(quiet(stored(tmp_path / "a.hdf5", observations=seen, actions=np.zeros((len(seen), 1)), **told,
                            rewards=np.ones(len(seen)))).demos) == EPISODES  # fmt: skip


TRUE = LAST & (np.arange(200) < 20)
LIMIT = LAST & ~TRUE


@pytest.mark.parametrize("ending", [".hdf5", ".npz"])
@pytest.mark.parametrize(
    "column", ["timeout", "truncations", "truncateds", "truncated", "is_last", "episode_terminals", "dones"]
)
def test_ends_under_other_names_keep_episodes_from_running_across_resets(
    tmp_path: Path, column: str, ending: str
) -> None:
    """Of smooth rows, in which no jump tells of them."""
    smooth = np.linspace(0, 1, 200, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    value = LAST if column in ("is_last", "episode_terminals", "dones") else LIMIT
    more = {"observations": smooth, "terminals": TRUE, column: value.astype(np.float32)}
    data = quiet(stored(tmp_path / f"a{ending}", **more))
    assert data.demos.lengths.tolist() == [TICKS] + [TICKS - 1] * (EPISODES - 1)
    assert data.terminated.tolist() == [True] + [False] * (EPISODES - 1)


def test_time_limits_of_other_names_part_dones_and_trajectories_of_masks(tmp_path: Path) -> None:
    parted = quiet(stored(tmp_path / "a.hdf5", dones=LAST, truncations=LIMIT))
    assert parted.terminated.tolist() == [True] + [False] * (EPISODES - 1)
    masks = 1 - TRUE.astype(np.float32)
    masked = {"next_observations": AFTER, "masks": masks, "terminals": TRUE, "truncations": LIMIT}
    found = quiet(stored(tmp_path / "b.hdf5", **masked))
    assert found.demos.lengths.tolist() == [TICKS] * EPISODES
    assert found.terminated.tolist() == [True] + [False] * (EPISODES - 1)


def test_dones_that_repeat_the_terminals_do_not_hide_that_no_limits_are_stored(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="stores no timeouts, and 8 gaps"):
        data = recordings.read(stored(tmp_path / "a.hdf5", terminals=TRUE, dones=TRUE))
    assert len(data.demos) == EPISODES
    same = quiet(stored(tmp_path / "b.hdf5", terminals=TRUE, dones=LAST, timeouts=LIMIT, is_last=LAST, timeout=LAST))
    fewer = quiet(stored(tmp_path / "c.hdf5", terminals=TRUE, dones=LAST & (np.arange(200) < 99), timeouts=LIMIT))
    for data in (same, fewer):
        assert data.terminated.tolist() == [True] + [False] * (EPISODES - 1)


def test_ends_that_contradict_each_other_are_refused_by_name_and_row(tmp_path: Path) -> None:
    late = np.roll(LIMIT, -1)
    bad = [
        ({"timeouts": LIMIT, "truncations": late}, "timeouts and truncations of .* different time limits.* in row 38"),
        ({"truncations": LIMIT, "is_last": TRUE}, "truncations and is_last of .* different time limits.* in row 39"),
        ({"timeouts": late, "dones": LAST}, "timeouts and dones of .* different time limits, first in row 39"),
        ({"dones": LIMIT}, "row 19 of terminals of .* is 1 and of dones 0"),
        ({"truncations": 2 * LIMIT}, "row 39 of truncations of .* is 2: ends are zeros and ones"),
        ({"is_last": LAST[:-1]}, "holds 200 actions and 199 of is_last"),
    ]
    for k, (columns, said) in enumerate(bad):
        with pytest.raises(InvalidInputError, match=said):
            recordings.read(stored(tmp_path / f"{k}.hdf5", terminals=TRUE, **columns))


@pytest.mark.parametrize("ending", [".hdf5", ".npz"])
def test_columns_that_are_not_read_are_named_once(tmp_path: Path, ending: str) -> None:
    """But what D4RL and OGBench store beside their data is not."""
    usual = {"terminals": TRUE, "timeouts": LIMIT, "infos/qpos": SEEN, "metadata/algorithm": "sac", "qvel": SEEN}
    quiet(stored(tmp_path / f"a{ending}", **usual))
    more = {"episode_ids": np.arange(200) // TICKS, "discount": np.ones(200), "infos/success": LAST}
    with pytest.warns(UserWarning) as told:
        data = recordings.read(stored(tmp_path / f"b{ending}", **usual, **more))
    assert len(told) == 1 and told[0].filename == __file__
    names = str(told[0].message).removeprefix(f"b{ending} stores ").split(", which are not read")[0].split(", ")
    assert sorted(names) == ["discount", "episode_ids"] and data.demos.success is not None
    masked = {"masks": 1.0 - TRUE, "terminals": LAST, "dones": TRUE}
    with pytest.warns(UserWarning, match=f"c{ending} stores dones, which is not read"):
        recordings.read(stored(tmp_path / f"c{ending}", **masked))


@pytest.mark.parametrize("unit", [1e-9, 1e-4, 1.0, 1e4])
def test_hidden_ends_are_found_in_whatever_units_rows_are_stored(tmp_path: Path, unit: float) -> None:
    """A step of 1/200 of a walk is an end in metres as in nanometres, and beside a column of zeros."""
    walk = np.cumsum(np.full((200, 2), unit / 200), 0) * [1, 0]
    after = np.concatenate([walk[1:], walk[-1:] + unit / 200 * np.array([1, 0])])
    after[59, 0] += unit / 200
    for k, (kind, other) in enumerate(((np.float64, np.float64), (np.float32, np.float32), (np.float64, np.float32))):
        more = {"observations": walk.astype(kind), "next_observations": after.astype(other), "terminals": TRUE}
        assert quiet(stored(tmp_path / f"{k}.hdf5", **more)).demos.lengths.tolist() == [20, 40, 140]


def test_hidden_ends_of_a_walk_far_from_zero_are_found(tmp_path: Path) -> None:
    walk = 1000 + np.linspace(0, 0.02, 200)[:, None]
    after = np.concatenate([walk[1:], walk[-1:]])
    after[59] += 9e-4
    more = {"observations": walk, "next_observations": after, "terminals": TRUE}
    assert quiet(stored(tmp_path / "a.hdf5", **more)).demos.lengths.tolist() == [20, 40, 140]


@pytest.mark.parametrize(
    ("kind", "unit"),
    [("float16", 1e-4), ("float16", 1.0), ("float16", 1e3), ("float32", 1e-9), ("float32", 1.0), ("float32", 1e4)],
)
def test_rounding_and_columns_of_zeros_are_no_ends_in_any_units(tmp_path: Path, kind: str, unit: float) -> None:
    seen, after = (np.pad(unit * v.astype(np.float64) / 2, ((0, 0), (0, 1))) for v in (SEEN, AFTER))
    seen[:, 1] += unit  # an offset
    after[:, 1] += unit
    for k, (a, b) in enumerate(((seen, after.astype(kind)), (seen.astype(kind), after))):
        path = stored(tmp_path / f"{k}.hdf5", observations=a, next_observations=b, terminals=TRUE, timeouts=LIMIT)
        assert len(quiet(path).demos) == EPISODES
    passed = after.astype(np.float32).astype(np.float64)  # stored wide, after it was narrow
    path = stored(tmp_path / "w.hdf5", observations=seen, next_observations=passed, terminals=TRUE, timeouts=LIMIT)
    assert len(quiet(path).demos) == EPISODES
