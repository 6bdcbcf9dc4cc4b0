"""Tables of steps: their rows, parts of them, and rows gathered for a batch; and times that are stratified."""

from __future__ import annotations

import pytest
import torch

from denoiserl import Rng
from denoiserl.processes import Diffusion, StepTable, cosine, ddim, draw_stratified_times, linear, time_grid, window

TIMES = torch.tensor([1.0, 0.7, 0.4, 0.2, 0.0], dtype=torch.float64)
COLUMN = torch.tensor([3.0, 5.0, 7.0, 11.0], dtype=torch.float64)


def table() -> StepTable:
    return StepTable(TIMES, {"c": COLUMN, "d": -COLUMN}, (False, True, True, False))


def test_a_row_runs_from_its_time_to_the_next_one() -> None:
    rows = [(s.index, s.t, s.s, s.table, s.dense) for s in (table()[k] for k in range(4))]
    assert len(table()) == 4 and rows == [
        (0, 1.0, 0.7, {"c": 3.0, "d": -3.0}, False),
        (1, 0.7, 0.4, {"c": 5.0, "d": -5.0}, True),
        (2, 0.4, 0.2, {"c": 7.0, "d": -7.0}, True),
        (3, 0.2, 0.0, {"c": 11.0, "d": -11.0}, False),
    ]


def test_rows_on_a_device_hold_the_same_numbers_as_tensors(device: str) -> None:
    rows = table().on(torch.device(device))
    for k, (row, plain) in enumerate(zip(rows, table().rows, strict=True)):
        assert (row.index, row.t, row.s, row.dense) == (k, plain.t, plain.s, plain.dense)
        for name, value in row.table.items():
            assert value.dtype == torch.float32 and value.ndim == 0 and value.device.type == device
            assert float(value) == plain.table[name]


def test_gathered_rows_are_those_that_were_asked_for(device: str) -> None:
    index = torch.tensor([[2, 1], [1, 2]], device=device)
    step = table().gather(index)
    assert step.table["c"].tolist() == [[7.0, 5.0], [5.0, 7.0]] and step.table["d"].tolist() == [[-7.0, -5.0], [-5, -7]]
    torch.testing.assert_close(step.t, torch.tensor([[0.4, 0.7], [0.7, 0.4]], device=device))
    torch.testing.assert_close(step.s, torch.tensor([[0.2, 0.4], [0.4, 0.2]], device=device))
    assert step.dense is None  # of rows of both kinds nobody knows
    one = StepTable(TIMES, {}, (True,) * 4).gather(index)
    assert one.dense is True and StepTable(TIMES, {}, (False,) * 4).gather(index).dense is False


@pytest.mark.parametrize(("low", "high"), [(0, 4), (0, 1), (1, 3), (2, 4), (3, 4)])
def test_a_part_has_the_steps_of_the_whole(low: int, high: int) -> None:
    part = table().slice_steps(low, high)
    assert len(part) == high - low and part.times.tolist() == TIMES[low : high + 1].tolist()
    for k, row in enumerate(part.rows):
        whole = table()[low + k]
        assert row == whole._replace(index=k)


def test_parts_that_are_no_part_are_refused() -> None:
    for low, high in ((2, 2), (3, 1), (-1, 2), (0, 5)):
        with pytest.raises(ValueError, match="not a part"):
            table().slice_steps(low, high)


def test_two_parts_in_turn_are_the_chain() -> None:
    """A linear chain of the two parts' coefficients multiplies to the whole one's."""
    whole = Diffusion(cosine, window(ddim(1.0), 1, 3)).steps(time_grid(6))
    parts = whole.slice_steps(0, 2), whole.slice_steps(2, 6)
    assert [d for p in parts for d in p.dense] == list(whole.dense)
    for name in ("c_0", "c_x", "std"):
        assert torch.equal(torch.cat([p.table[name] for p in parts]), whole.table[name])


def test_stratified_times_are_uniform_inside_their_strata_and_come_in_random_order() -> None:
    """Over 20 thousand rows: the place inside a stratum has mean ½ and variance 1/12, every column every stratum."""
    n, rows = 4, 20_000
    t = draw_stratified_times((rows, n), Rng(0)).double() * n
    inside = t - t.floor()
    assert abs(float(inside.mean()) - 0.5) < 5 * (1 / 12 / (n * rows)) ** 0.5
    assert float(inside.var()) == pytest.approx(1 / 12, rel=0.02)
    share = torch.stack([(t.floor() == k).double().mean(0) for k in range(n)])
    assert float((share - 1 / n).abs().max()) < 5 * (3 / 16 / rows) ** 0.5
    assert bool((t.floor().sort(-1).values == torch.arange(n)).all())


def test_stratified_times_keep_away_from_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for low in (0.0, 1.0):
        monkeypatch.setattr(Rng, "uniform", lambda self, *shape, low=low: torch.full(shape, low))
        t = draw_stratified_times((3, 1), Rng(0))
        assert t.shape == (3, 1) and bool((t > 0).all() and (t < 1).all())
    monkeypatch.undo()
    assert draw_stratified_times((2, 3, 4), Rng(0)).shape == (2, 3, 4)
    assert torch.equal(
        draw_stratified_times((5, 4), Rng.rows(range(5)))[3:4], draw_stratified_times((1, 4), Rng.rows([3]))
    )


def test_a_flow_has_no_rows_with_a_density_and_its_stochastic_twin_all_but_the_last() -> None:
    assert Diffusion(linear, ddim(0.0)).steps(time_grid(3)).dense == (False,) * 3
    assert Diffusion(linear, ddim(1.0)).steps(time_grid(3)).dense == (True, True, False)
