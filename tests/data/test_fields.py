"""Fields: what is recognised, what comes back, what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.data.column_transforms import ColumnTransforms


def table(n: int = 500) -> torch.Tensor:
    """continuous, constant, circle (2), one-hot (3), binary, angle."""
    rng = Rng(0)
    turn = 6 * rng.uniform(n, 1) - 3
    hot = torch.nn.functional.one_hot(rng.integers(0, 3, n), 3).float()
    coin = 4.0 - 3 * (rng.uniform(n, 1) < 0.1).float()
    flat = torch.full((n, 1), 7.0)
    return torch.cat([5 + 2 * rng.normal(n, 1), flat, turn.cos(), turn.sin(), hot, coin, turn], 1)


def test_kinds_are_recognised_and_everything_comes_back() -> None:
    data = table()
    made = ColumnTransforms.fit(data, {8: "angle"})
    assert [f.kind for f in made.fields] == ["continuous", "constant", "circle", "one-hot", "binary", "angle"]
    assert made.size == 1 + 0 + 2 + 3 + 1 + 2 and made.width == 9
    z = made.encode(data)
    torch.testing.assert_close(made.decode(z), data, rtol=1e-5, atol=1e-5)
    assert float(z[:, 0].mean()) == pytest.approx(0, abs=1e-5) and float(z[:, 0].std()) == pytest.approx(1, abs=0.01)
    assert made.column_slice(2) == made.column_slice(3) == slice(1, 3) and made.column_slice(7) == slice(6, 7)


def test_whatever_is_decoded_is_of_its_kind() -> None:
    made = ColumnTransforms.fit(table(), {8: "angle"})
    x = made.decode(3 * Rng(5).normal(1000, made.size))
    assert torch.equal(x[:, 1], torch.full((1000,), 7.0))
    torch.testing.assert_close(x[:, 2:4].square().sum(1), torch.ones(1000))
    assert torch.equal(x[:, 4:7].sum(1), torch.ones(1000)) and set(x[:, 4:7].unique().tolist()) == {0.0, 1.0}
    assert set(x[:, 7].unique().tolist()) == {1.0, 4.0}
    assert bool((x[:, 8].abs() <= math.pi + 1e-5).all())


def test_a_projection_to_the_circle_keeps_the_direction() -> None:
    made = ColumnTransforms.fit(table(), {8: "angle"})
    z = made.encode(table())
    grown = z.clone()
    circle = made.fields[2]
    raw = circle.centre + circle.scale * z[:, 1:3]
    grown[:, 1:3] = (3 * raw - circle.centre) / circle.scale
    torch.testing.assert_close(made.decode(grown)[:, 2:4], table()[:, 2:4], rtol=1e-4, atol=1e-5)


def test_angles_on_both_sides_of_the_cut_are_neighbours() -> None:
    """Standardised radians would put π − ε and −π + ε six apart, and a mean of them in between at 0."""
    turn = torch.tensor([[math.pi - 0.01], [-math.pi + 0.01], [0.0], [1.5], [-1.5]])
    made = ColumnTransforms.fit(turn, {0: "angle"})
    z = made.encode(turn)
    assert float((z[0] - z[1]).norm()) < 0.1
    assert abs(float(made.decode(z[:2].mean(0, keepdim=True)))) == pytest.approx(math.pi, abs=1e-3)


def test_quantiles_make_spikes_normal_and_stay_in_range() -> None:
    rng = Rng(1)
    spiked = torch.where(rng.uniform(5000) < 0.02, 100 + 10 * rng.normal(5000), rng.normal(5000))[:, None]
    made = ColumnTransforms.fit(spiked, {0: "quantile"})
    z = made.encode(spiked)
    assert float(z.std()) == pytest.approx(1.0, abs=0.03) and float(z.abs().max()) < 4
    order = spiked.flatten().argsort()
    assert bool((z.flatten()[order].diff() >= 0).all())
    back = made.decode(rng.normal(20_000, 1))
    assert float((back > 50).float().mean()) == pytest.approx(0.02, abs=0.01)
    assert float(back.min()) >= float(spiked.min()) and float(back.max()) <= float(spiked.max())
    tied = torch.cat([torch.zeros(900, 1), torch.linspace(1, 2, 100)[:, None]])
    again = ColumnTransforms.fit(tied, {0: "quantile"})
    torch.testing.assert_close(again.decode(again.encode(tied)), tied, rtol=0, atol=0.02)


def test_an_end_that_is_often_met_is_a_limit_and_another_is_not() -> None:
    data = Rng(3).normal(2000, 1).clamp_max(0.8)
    x = ColumnTransforms.fit(data).decode(3 * Rng(4).normal(2000, 1))
    assert float(x.max()) == pytest.approx(0.8) and float(x.min()) < float(data.min())


def test_what_fits_nothing_is_refused_by_its_column() -> None:
    data = table()
    data[3, 6] = float("nan")
    with pytest.raises(InvalidInputError, match=r"column\(s\) \[6\] hold NaN or infinity in 1 rows"):
        ColumnTransforms.fit(data)
    with pytest.raises(InvalidInputError, match="wrapped angle"):
        ColumnTransforms.fit(table(), {0: "angle"})
    with pytest.raises(InvalidInputError, match="column 0 is not binary"):
        ColumnTransforms.fit(table(), {0: "binary"})
    with pytest.raises(InvalidInputError, match="Did you mean 'binary'"):
        ColumnTransforms.fit(table(), {0: "binry"})
