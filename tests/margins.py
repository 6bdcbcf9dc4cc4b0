"""Measure how far every bound of the tests lies from what is compared with it, in standard deviations over seeds.

    scripts/margins.sh [pytest arguments]     # eight runs with shifted seeds, then the table

A bound that lies less than three standard deviations from what is learned fails on some machine: processors round
otherwise and learn otherwise.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

NUMBER = r"(?<![\d.])(?:np\.float\d+\()?(-?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan))\)?"
TENSOR = re.compile(r"tensor\(([^,()]+)[^()]*\)")
COMPARISON = re.compile(rf"{NUMBER} (<=|>=|<|>) {NUMBER}")
APPROXIMATE = re.compile(rf"{NUMBER} == {NUMBER} ± {NUMBER}")
REPEATS = 50
"""A line that a test passes more often is recorded so many times."""


class Recorder:
    """Append one line per comparison that held: test, line, how often before, what was compared."""

    def __init__(self, path: str, shift: int) -> None:
        self.path, self.shift, self.seen = Path(path), shift, defaultdict(int)

    def pytest_assertion_pass(self, item: pytest.Item, lineno: int, orig: str, expl: str) -> None:
        place = (item.nodeid, lineno)
        self.seen[place] += 1
        if self.seen[place] > REPEATS or (held := first_comparison(expl)) is None:
            return
        row = {"test": item.nodeid, "line": lineno, "nth": self.seen[place], "shift": self.shift, "assert": orig}
        with self.path.open("a") as file:
            file.write(json.dumps({**row, "held": held}) + "\n")


def first_comparison(text: str) -> list[tuple[float, str, float]] | None:
    """Return the comparisons of numbers in the first line of an explanation; None if there are none."""
    line, found, start = TENSOR.sub(r"\1", text.splitlines()[0]), [], 0
    while (match := COMPARISON.search(line, start)) is not None:
        found.append((float(match[1]), match[2], float(match[3])))
        start = match.start(3)
    for value, wanted, tolerance in APPROXIMATE.findall(line):
        off, width = float(value) - float(wanted), float(tolerance)  # what is wanted may move with the seed
        found += [(off, "<=", width), (off, ">=", -width)]
    return found or None


def tight(rows: list[dict], least: float = 3.0) -> list[tuple[float, str, int, str, list[float]]]:
    """Return the comparisons whose gap is less than ``least`` standard deviations over seeds, the tightest first."""
    held: dict[tuple, dict[int, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        for i, (a, sign, b) in enumerate(row["held"]):
            place = (row["test"], row["line"], row["nth"], i, row["assert"])
            held[place][row["shift"]] = (a, b) if sign[0] == "<" else (b, a)
    tightest: dict[tuple[str, int], Any] = {}
    for (test, line, _, _, text), sides in held.items():
        values = [larger - smaller for smaller, larger in sides.values()]
        if len(values) < 2 or not all(map(math.isfinite, values)):
            continue
        distance = in_deviations(values)
        if all(a > 0 and b > 0 for a, b in sides.values()):  # what spans decades is judged by its factors
            distance = max(distance, in_deviations([abs(math.log(a / b)) for a, b in sides.values()]))
        if distance < tightest.get((test, line), (least,))[0]:  # a line may be passed often: its nearest is told
            tightest[test, line] = (distance, test, line, text, values)
    return sorted(tightest.values())


def in_deviations(gaps: list[float]) -> float:
    """Return the mean of gaps over their deviation; infinity where all are equal."""
    spread = statistics.stdev(gaps)
    return statistics.mean(gaps) / spread if spread > 1e-9 * max(map(abs, gaps)) else math.inf


if __name__ == "__main__":
    for distance, test, line, text, values in tight(
        [json.loads(x) for x in Path(sys.argv[1]).read_text().splitlines()]
    ):
        print(f"{distance:5.2f}  {test}:{line}\n       {text}\n       {' '.join(f'{v:.3g}' for v in values)}")
