"""Normalisers, windows and demonstrations: exact round trips, brute force, and clear refusals."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data import ActionChunkCodec, Demonstrations, EpochSampler, Normalizer, windows


def data() -> torch.Tensor:
    x = Rng(0).normal(500, 4) * torch.tensor([1.0, 100.0, 0.01, 1.0]) + torch.tensor([0.0, 1e3, 0.0, 0.0])
    x[:, 3] = 7.0
    return x


def test_minmax_maps_the_range_to_one_and_back():
    x = data()
    normal = Normalizer.fit(x)
    z = normal.normalize(x)
    for d in range(3):
        assert float(z[:, d].min()) == pytest.approx(-1, abs=1e-4) and float(z[:, d].max()) == pytest.approx(
            1, abs=1e-4
        )
    torch.testing.assert_close(normal.denormalize(z), x, rtol=1e-5, atol=1e-4)


def test_std_standardises():
    x = data()
    z = Normalizer.fit(x, "std").normalize(x)
    torch.testing.assert_close(z.mean(0)[:3], torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(0)[:3], torch.ones(3), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", ["minmax", "std"])
def test_a_constant_dimension_is_zero_and_reported(kind):
    normal = Normalizer.fit(data(), kind)
    assert normal.constant.tolist() == [False, False, False, True]
    assert "[3]" in normal.report()
    moved = data()
    moved[:, 3] = 9.0
    assert float(normal.normalize(moved)[:, 3].abs().max()) == 0
    assert normal.denormalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))[:, 3].tolist() == [7.0] * 5


def test_bad_data_are_refused_by_dimension():
    x = data()
    x[3, 1], x[9, 2] = torch.nan, torch.inf
    with pytest.raises(InvalidInputError, match=r"\[1, 2\] \(2 rows\)"):
        Normalizer.fit(x)
    normal = Normalizer.fit(data())
    far = data()
    far[11, 1] = 5e4
    with pytest.raises(InvalidInputError, match="dimension 1 holds 50000"):
        normal.check(far)
    normal.check(data())
    with pytest.raises(InvalidInputError, match="4 dimensions"):
        normal.normalize(torch.zeros(2, 3))
    with pytest.raises(InvalidInputError, match="Did you mean 'minmax'"):
        Normalizer.fit(data(), "minmx")  # type: ignore[arg-type]


def test_run_time_clips_and_counts():
    normal = Normalizer.fit(data())
    x = data()
    x[:7, 1] += 1e4
    clipped = normal.clip(x)
    assert clipped.count == 7 and float(clipped.value.abs().max()) == 1.0
    assert normal.clip(x, limit=1e4).count == 0


def test_a_normaliser_is_its_fields():
    normal = Normalizer.fit(data())
    again = Normalizer.from_state({k: v.tolist() for k, v in normal.state_dict().items()})
    assert torch.equal(again.normalize(data()), normal.normalize(data()))


def brute(lengths, horizon, history, execute):
    """Windows as a loop over padded episodes."""
    found, start = [], 0
    for length in lengths:
        padded = [0] * (history - 1) + list(range(length)) + [length - 1] * (execute - 1)
        for i in range(len(padded) - horizon + 1):
            found.append([start + p for p in padded[i : i + horizon]])
        start += length
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 6), st.data())
def test_windows_equal_brute_force(lengths, horizon, more):
    history = more.draw(st.integers(1, horizon))
    execute = more.draw(st.integers(1, horizon - history + 1))
    ends = torch.tensor(lengths).cumsum(0)
    expected = brute(lengths, horizon, history, execute)
    if not expected:
        with pytest.raises(InvalidInputError, match="as long as a window"):
            windows(ends, horizon, history, execute)
        return
    made = windows(ends, horizon, history, execute)
    assert made.frames(made.all_indices).tolist() == expected
    owner = torch.bucketize(made.frames(made.all_indices), ends, right=True)
    assert bool((owner == made.episode[:, None]).all())  # no window crosses into another episode


def test_windows_mark_what_is_repeated():
    made = windows(torch.tensor([4]), horizon=4, history=2, execute=3)
    assert made.frames(made.all_indices).tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3], [2, 3, 3, 3]]
    assert made.real.sum(-1).tolist() == [3, 4, 3, 2]
    obs, action = torch.arange(4.0)[:, None], 10 * torch.arange(4.0)[:, None]
    index = torch.tensor([2, 0])
    assert made.observations({"state": obs}, index)["state"].squeeze(-1).tolist() == [[1, 2], [0, 0]]
    assert made.actions(action, index).squeeze(-1).tolist() == [[10, 20, 30, 30], [0, 0, 10, 20]]
    now = made.frames(made.all_indices)[:, 1]  # entry T_o - 1 is now: every frame is acted from exactly once
    assert now.tolist() == [0, 1, 2, 3]


def test_windows_refuse_the_impossible():
    with pytest.raises(InvalidInputError, match="T_o"):
        windows(torch.tensor([5]), 4, history=5)
    with pytest.raises(InvalidInputError, match="T_a"):
        windows(torch.tensor([5]), 4, history=2, execute=4)
    with pytest.raises(InvalidInputError, match="increasing"):
        windows(torch.tensor([5, 5]), 4)


def test_batches_visit_everything_once_an_epoch_and_resume():
    batches, rng = EpochSampler(10), Rng(0)
    seen = torch.cat([batches.sample(rng, 4) for _ in range(5)])
    assert seen[:10].sort().values.tolist() == list(range(10)) == seen[10:].sort().values.tolist()
    batches.sample(rng, 3)
    saved, stream = batches.state_dict(), rng.state_dict()
    ahead = [batches.sample(rng, 4) for _ in range(4)]
    other, other_rng = EpochSampler(10), Rng(9)
    other.load_state_dict(saved)
    other_rng.load_state_dict(stream)
    assert all(torch.equal(a, other.sample(other_rng, 4)) for a in ahead)
    with pytest.raises(InvalidInputError, match="11 windows"):
        EpochSampler(11).load_state_dict(saved)


def demos() -> Demonstrations:
    lengths = [3, 1, 4]
    parts = [({"state": torch.full((n, 2), float(i))}, torch.full((n, 1), float(i))) for i, n in enumerate(lengths)]
    return Demonstrations.of(parts, success=[True, False, True], returns=[1.0, 0.0, 3.0], name="toy")


def test_demos_filter_and_count():
    kept = demos().successful()
    assert kept.lengths.tolist() == [3, 4] and kept.actions.unique().tolist() == [0.0, 2.0]
    assert kept.episode(1)[0]["state"].shape == (4, 2)
    assert demos().statistics() == {
        "episodes": 3.0,
        "frames": 8.0,
        "length": pytest.approx(8 / 3),
        "success": pytest.approx(2 / 3),
        "return": pytest.approx(4 / 3),
    }
    with pytest.raises(InvalidInputError, match="no episode is left"):
        demos().take(torch.tensor([False, False, False]))
    with pytest.raises(InvalidInputError, match="none of the 2 demonstrated episodes succeeded, and only those count"):
        replace(demos().take(torch.tensor([0, 2])), success=torch.tensor([False, False])).successful()
    with pytest.raises(InvalidInputError, match="one of each per frame"):
        Demonstrations(torch.zeros(3, 1), torch.zeros(4, 1), torch.tensor([4]))


def test_demos_are_saved_whole(tmp_path):
    before = demos()
    after = Demonstrations.load(before.save(tmp_path / "demos"))
    assert torch.equal(after.actions, before.actions) and torch.equal(after.ends, before.ends)
    assert torch.equal(after.observations["state"], before.observations["state"])
    assert after.success.tolist() == [True, False, True] and after.name == "toy"
    from denoiserl.core.serialization import store

    store.write(tmp_path / "other", {"kind": "something else"})
    with pytest.raises(RunError, match="no demonstrations"):
        Demonstrations.load(tmp_path / "other")


def test_robot_codec_round_trip_and_its_description():
    from denoiserl.core.serialization.config import from_config, to_config

    rng = Rng(1)
    made = Demonstrations.of([(5 + rng.normal(50, 3), 0.3 * rng.normal(50, 2))])
    robot = ActionChunkCodec.fit(made)
    chunk = made.actions[:8].reshape(2, 4, 2)
    torch.testing.assert_close(robot.decode(robot.encode(chunk)), chunk, atol=1e-5, rtol=0)
    assert float(robot.encode(made.actions).abs().max()) == pytest.approx(1.0)
    assert float(robot.condition(torch.full((1, 3), 1e6)).max()) == robot.limit
    torch.testing.assert_close(robot.decode(torch.full((1, 1, 2), 9.0))[0, 0], made.actions.amax(0), atol=1e-6, rtol=0)
    again = from_config(to_config(robot))
    assert torch.equal(again.encode(chunk), robot.encode(chunk))


def test_episodes_taken_and_joined_are_those_of_the_list():
    """``take`` by mask, by index in any order and twice the same; ``concat`` with what only some of the parts tell."""
    made = demos()
    for keep in (torch.tensor([True, False, True]), torch.tensor([2, 0, 2]), torch.tensor([1])):
        index = keep.nonzero().flatten().tolist() if keep.dtype == torch.bool else keep.tolist()
        part = made.take(keep)
        assert [part.episode(i)[1].tolist() for i in range(len(part))] == [made.episode(i)[1].tolist() for i in index]
        assert part.observations["state"][:, 0].tolist() == part.actions[:, 0].tolist()
        assert part.success.tolist() == [[True, False, True][i] for i in index] and part.name == "toy"
        assert part.returns.tolist() == [[1.0, 0.0, 3.0][i] for i in index]
    assert torch.equal(made.episode(-1)[1], made.episode(2)[1])
    with pytest.raises(IndexError):
        made.episode(3)
    both = Demonstrations.concat([made, replace(made, returns=None)])
    assert both.ends.tolist() == [3, 4, 8, 11, 12, 16] and both.returns is None and len(both.success) == 6


def test_windows_hold_two_numbers_a_window_and_tell_their_frames_when_asked():
    made = windows(torch.tensor([50_000]), horizon=32)
    held = sum(v.numel() for v in vars(made).values() if isinstance(v, torch.Tensor))
    assert held <= 2 * len(made) + 2, "two numbers a window, and two an episode"
    index = torch.tensor([7, 40_000])
    assert torch.equal(made.frames(index)[:, 0], made.begin[index])


def test_a_full_buffer_takes_its_columns_over():
    from denoiserl.data import ReplayBuffer

    rows = {
        "obs": torch.randn(6, 2), "next_obs": torch.randn(6, 2), "action": torch.randn(6, 1, 1),
        "reward": torch.randn(6), "terminated": torch.tensor([False] * 5 + [True]),
        "length": torch.ones(6, dtype=torch.int64),
    }  # fmt: skip
    made = ReplayBuffer.of(rows)
    assert len(made) == 6 and made.columns["obs"].data_ptr() == rows["obs"].data_ptr()
    drawn = {k: v.flatten(0, 1) for k, v in made.sample(6, Rng(0), 0.9, steps=3, batches=10).items()}
    at = (drawn["obs"][:, None] == rows["obs"]).all(-1).int().argmax(1)
    assert torch.equal(drawn["reward"], rows["reward"][at]), "no decision follows another: returns have one row"
    assert torch.allclose(drawn["discount"], 0.9 * (at != 5).float())
    with pytest.raises(InvalidInputError, match="NaN or infinity"):
        ReplayBuffer.of({**rows, "reward": torch.full((6,), torch.nan)})
