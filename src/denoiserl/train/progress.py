"""Progress of a run's loops: a task per stage, with the newest results beside it."""

from __future__ import annotations

from typing import Any

from denoiserl.core.progress import ProgressDisplay, ProgressTask
from denoiserl.train.run_state import Position

RESULTS = ("success", "return", "reward", "score")
"""metrics that say how good a policy is"""


class LoopProgress:
    """The running loop of a run in a display: its iterations, the time left, held-out results, rollouts and loss."""

    def __init__(self, display: ProgressDisplay) -> None:
        self.display = display
        self.stage: str | None = None
        self.task: ProgressTask | None = None
        self.known: dict[str, float] = {}

    def update(self, at: Position) -> None:
        """Show that an iteration is done."""
        if self.task is None or at.stage != self.stage:
            self.close()
            self.stage, self.known = at.stage, {}
            self.task = self.display.add(at.stage or "run", at.total, at.first)
        self.display.update(self.task, at.iteration, select_numbers(self.known))
        if at.iteration == at.total:
            self.close()

    def row(self, row: dict[str, Any]) -> None:
        """Store the newest metrics; held-out ones stay until there are newer ones."""
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "iteration"}
        self.known = {**self.known, **numbers}

    def close(self) -> None:
        """End the running task; its line stays."""
        if self.task is not None:
            self.display.update(self.task, newest=select_numbers(self.known))
            self.display.end(self.task, keep=True)
        self.task = None


def select_numbers(known: dict[str, float], most: int = 4) -> str:
    """Return the most telling metrics as text: held-out results, those of rollouts, losses, then others."""
    results = [f"{group}/{name}" for group in ("eval", "rollout") for name in RESULTS]
    order = [k for k in results if k in known]
    for start in ("eval/", "loss/", "rollout/", ""):
        order += [k for k in known if k.startswith(start) and k not in order]
        if len(order) >= most:
            break
    return " ".join(f"{k}={known[k]:.4g}" for k in order[:most])
