"""Minibatches cover their rows once per epoch; means of metrics are those of the rows that have them."""

from __future__ import annotations

import pytest
import torch

from denoiserl import Rng
from denoiserl.train.metric_means import MetricMeans
from denoiserl.train.minibatches import minibatches


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("size", [1, 4, 7, 30, 100])
def test_each_row_comes_once_per_epoch(even: bool, size: int) -> None:
    index = torch.arange(100, 130)
    batches = list(minibatches(index, size, 3, Rng(0), even))
    per_epoch = len(batches) // 3
    epochs = [torch.cat(batches[e * per_epoch : (e + 1) * per_epoch]) for e in range(3)]
    assert all(torch.equal(rows.sort().values, index) for rows in epochs)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_sizes_are_the_batch_size_or_even() -> None:
    assert [len(b) for b in minibatches(10, 4, 1, Rng(0))] == [4, 4, 2]
    assert [len(b) for b in minibatches(10, 4, 1, Rng(0), even=True)] == [5, 5]
    assert [len(b) for b in minibatches(11, 4, 1, Rng(0), even=True)] == [6, 5]
    assert [len(b) for b in minibatches(3, 4, 1, Rng(0), even=True)] == [3]


def test_no_rows_are_no_minibatch_with_a_row() -> None:
    assert sum(len(b) for b in minibatches(torch.empty(0, dtype=torch.long), 4, 2, Rng(0))) == 0


def test_a_number_of_rows_is_their_index() -> None:
    own, given = (list(minibatches(rows, 3, 2, Rng(1))) for rows in (8, torch.arange(8)))
    assert all(torch.equal(a, b) for a, b in zip(own, given, strict=True))


def test_means_are_over_the_updates_that_have_the_number() -> None:
    means = MetricMeans()
    assert not len(means) and means.mean() == {}
    means.add({"loss": 1.0, "kl": torch.tensor(0.5)})
    means.add({"loss": 3.0, "kl": 1.5})
    assert len(means) == 2 and means.mean() == {"loss": 2.0, "kl": 1.0}
    means.add({"loss": 5.0})
    assert len(means) == 3 and means.mean() == {"loss": 3.0, "kl": 1.0}
    means.add({})
    assert means.mean() == {"loss": 3.0, "kl": 1.0}


def test_a_number_is_read_when_it_is_added() -> None:
    value, means = torch.ones(()), MetricMeans()
    means.add({"loss": value})
    value.fill_(9.0)
    assert means.mean() == {"loss": 1.0}
