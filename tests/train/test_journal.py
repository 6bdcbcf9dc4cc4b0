"""What TensorBoard gets of a long run: every value at first, then fewer and fewer, and always the last one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from denoiserl.train.metrics_log import SHOWN, MetricsLog
from denoiserl.train.run_state import Position

pytest.importorskip("tensorboard")


def test_long_runs_are_thinned_and_keep_what_is_rare_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[int]] = {}

    class Writer:
        def __init__(self, *given: Any, **more: Any) -> None: ...
        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.setdefault(name, []).append(step)

        def close(self) -> None: ...

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Writer)
    journal, n = MetricsLog(tmp_path), 6 * SHOWN + 7
    for i in range(n):
        row = {"loss": 1.0, **({"held-out": 0.5} if i % 500 == 499 else {})}
        journal.write(row, Position("", i, n, 0))
    journal.close()
    assert told["held-out"] == list(range(499, n, 500))
    loss = told["loss"]
    assert loss[:SHOWN] == list(range(SHOWN)) and loss[-1] == n - 1 and loss == sorted(set(loss))
    assert len(loss) < 3.5 * SHOWN and max(b - a for a, b in pairwise(loss)) <= 8
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == n
