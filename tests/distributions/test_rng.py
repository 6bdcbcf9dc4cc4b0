"""Randomness: row 7 is row 7, streams are saved exactly, and the numbers have the laws they claim."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from denoiserl import Rng

KINDS = ("normal", "uniform")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 33])
def test_a_row_is_itself_in_any_batch(kind: str, rows: int, device: str) -> None:
    whole = getattr(Rng.rows(range(64), device), kind)(64, 5, 3)
    part = getattr(Rng.rows(range(7, 7 + rows), device), kind)(rows, 5, 3)
    assert torch.equal(whole[7 : 7 + rows], part)


def test_a_chains_noise_is_that_of_its_row(device: str) -> None:
    whole = Rng.rows([5, 9, 7], device).noise("normal", 4, 3, (2, 2))
    assert whole.shape == (4, 3, 2, 2)
    assert torch.equal(whole[:, 2:], Rng.rows([7], device).noise("normal", 4, 1, (2, 2)))


def test_integers_and_permutations_are_per_row_too() -> None:
    whole, part = Rng.rows(range(10)), Rng.rows([7])
    assert torch.equal(whole.integers(3, 19, 10, 50)[7:8], part.integers(3, 19, 1, 50))
    assert torch.equal(whole.permutation(11)[7:8], part.permutation(11))


def test_taken_rows_go_on_where_they_stand() -> None:
    whole = Rng.rows(range(6))
    whole.normal(6, 3)
    part = whole.take(torch.tensor([4, 1]))
    assert torch.equal(whole.uniform(6, 2)[[4, 1]], part.uniform(2, 2))


def test_draws_one_by_one_are_the_draws_at_once() -> None:
    one, many = Rng.rows(range(3)), Rng.rows(range(3))
    assert torch.equal(torch.cat([one.normal(3, 2), one.normal(3, 4)], 1), many.normal(3, 6))


@pytest.mark.parametrize("rows", [False, True])
def test_a_saved_stream_goes_on_exactly(rows: bool) -> None:
    rng = Rng.rows(range(4)) if rows else Rng(3)
    rng.normal(4, 5)
    state = rng.state_dict()
    ahead = [rng.normal(4, 2), rng.uniform(4, 3), rng.integers(0, 9, 4, 2), rng.permutation(6)]
    again = Rng(0)
    again.load_state_dict(state)
    for want, got in zip(
        ahead, [again.normal(4, 2), again.uniform(4, 3), again.integers(0, 9, 4, 2), again.permutation(6)], strict=True
    ):
        assert torch.equal(want, got)


@pytest.mark.parametrize("rows", [False, True])
def test_normals_are_normal_and_uniforms_uniform(rows: bool, device: str) -> None:
    rng = Rng.rows(range(400), device) if rows else Rng(1, device)
    normal, uniform = rng.normal(400, 500).flatten().cpu(), rng.uniform(400, 500).flatten().cpu()
    n = len(normal)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) - moment**2)
        assert abs(float((normal**power).mean()) - moment) < 4.5 * spread / math.sqrt(n)
    assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-4
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert float(normal.abs().max()) > 4  # tails exist


def test_streams_of_neighbouring_rows_are_uncorrelated() -> None:
    draws = Rng.rows(range(256)).normal(256, 2000).double()
    correlation = torch.corrcoef(draws) - torch.eye(256, dtype=torch.float64)
    assert float(correlation.abs().max()) < 6 / math.sqrt(2000)
    lagged = (draws[:-1, :-1] * draws[1:, 1:]).mean()  # number i of a row against number i + 1 of the next
    assert abs(float(lagged)) < 5 / math.sqrt(draws[1:, 1:].numel())


def test_all_32_bits_that_normals_use_change_with_row_and_counter() -> None:
    bits = Rng.rows(range(2000))._bits(2000, 4)
    for k in range(64):
        share = float(((bits >> k) & 1).double().mean())
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(8000)


def test_a_spawned_stream_is_new_and_reproducible() -> None:
    parent, twin = Rng(7), Rng(7)
    a, b = parent.spawn(), parent.spawn()
    assert torch.equal(a.normal(50), twin.spawn().normal(50))
    x, y, z = Rng(7).normal(5000), Rng(7).spawn().normal(5000), b.normal(5000)
    for p, q in ((x, y), (x, z), (y, z)):
        assert abs(float((p * q).mean())) < 5 / math.sqrt(5000)


def test_integers_are_uniform() -> None:
    for rng in (Rng(0), Rng.rows(range(100))):
        counts = torch.bincount(rng.integers(2, 9, 100, 300).flatten() - 2, minlength=7)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="3 row streams"):
        Rng.rows(range(3)).normal(4, 2)
    with pytest.raises(ValueError, match="spawn from the batch stream"):
        Rng.rows(range(3)).spawn()
    with pytest.raises(ValueError, match=r"Rng\.rows"):
        Rng(0).take([0])
    with pytest.raises(ValueError, match="no integer"):
        Rng(0).integers(3, 3, 2)
