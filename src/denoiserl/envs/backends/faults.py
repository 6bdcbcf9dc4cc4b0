"""Faults of single copies: a copy that raises, gives NaN, hangs or dies is named, and the stream stops or goes on.

    stop      ``EnvFault`` with the copy, the environment and the tick; a run goes on from its last save
    restart   the copy is made anew and reset with a seed of its own; the decision that was lost is masked

A lost decision has no executed tick, no reward and itself as successor, and it is ``done`` but not ``terminated``: sums
of credit stop there and bootstrap from the last state that was seen, so nothing is learned from what went wrong.

Only numpy here, as in ``chunk``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.data.rollout import Fault

OnFault = Literal["error", "restart"]
"""what a stream does about a fault"""

WAYS = ("error", "restart")

IN_A_ROW = 3
"""lost decisions or failed resets of one copy, without a good one between, after which a restart is no cure"""


class EnvFault(InvalidInputError):
    """An environment that cannot be learned from as it is; ``fault`` says which copy, when and what."""

    def __init__(self, fault: Fault, name: str, cure: str = "", trace: str = "") -> None:
        cure = cure or "repair the environment, or lose that episode and go on: Collector(..., on_fault='restart')"
        who = "a copy" if fault.copy is None else f"copy {fault.copy}"
        super().__init__(f"{who} of {name} {fault.what}, at tick {fault.tick} of its episode: {cure}{trace}")
        self.fault, self.name = fault, name


def check_on_fault(on_fault: str) -> str:
    """``on_fault``, known."""
    if on_fault not in WAYS:
        raise InvalidInputError(f"on_fault: {unknown_name_message(on_fault, WAYS, 'way to meet a fault')}")
    return on_fault


def describe_exception(error: BaseException) -> str:
    """An exception as ``what`` of a fault."""
    told = str(error)
    return f"raised {type(error).__name__}{': ' if told else ''}{told}"


def find_nonfinite(observation: Any, where: str = "") -> dict[int, str]:
    """The rows of [B, ...] (an array, or a dict of arrays) that hold NaN or infinity, and a sentence on each.

    A NaN observation silently becomes a NaN action.
    """
    if isinstance(observation, dict):
        found: dict[int, str] = {}
        for key, value in observation.items():
            found = {**find_nonfinite(value, f" ({key!r})"), **found}
        return found
    if observation.dtype.kind != "f" or np.count_nonzero(np.isfinite(observation)) == observation.size:
        return {}
    bad = ~np.isfinite(observation.reshape(len(observation), -1))
    return {
        int(row): f"returned NaN or infinity in its observation{where}, entries {np.flatnonzero(bad[row])[:8].tolist()}"
        for row in np.flatnonzero(bad.any(1))
    }


def refuse(observation: Any, name: str, ticks: Any = None, numbers: Any = None) -> None:
    """Refuse NaN or infinity in [B, ...], naming the copy."""
    for row, what in find_nonfinite(observation).items():
        copy, tick = row if numbers is None else numbers[row], 0 if ticks is None else int(ticks[row])
        raise EnvFault(Fault(copy, tick, what), name, "the simulation has diverged: bound its actions")


def refuse_reward(raw: np.ndarray, name: str, ticks: Any) -> None:
    """Refuse NaN or infinity among rewards [B], naming the copy."""
    if not np.isfinite(raw).all():
        row = int(np.argmax(~np.isfinite(raw)))
        raise EnvFault(Fault(row, int(ticks[row]), "gave a reward of NaN or infinity"), name)
