"""Faults of single environments: one that raises, returns NaN, hangs or dies.

    error     raise ``EnvFault`` with the environment and the step; a run continues from its last save
    restart   make the environment again and reset it with a new seed; the lost decision is masked

A lost decision has no executed step, no reward and itself as successor; it is ``done`` but not ``terminated``.
Advantages stop there and bootstrap from the last valid state, so nothing is learned from the fault.

This module imports only NumPy, as ``chunk`` does.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.data.rollout import Fault

OnFault = Literal["error", "restart"]
"""what a collector does about a fault"""

WAYS = ("error", "restart")

IN_A_ROW = 3
"""lost decisions or failed resets of one environment in a row, after which restarting stops"""


class EnvFault(InvalidInputError):
    """An environment fails; ``fault`` says which one, when and how."""

    def __init__(self, fault: Fault, name: str, cure: str = "", trace: str = "") -> None:
        cure = cure or "repair the environment, or drop that episode and continue: Collector(..., on_fault='restart')"
        which = "an environment" if fault.env is None else f"environment {fault.env}"
        super().__init__(f"{which} of {name} {fault.what}, at step {fault.step} of its episode: {cure}{trace}")
        self.fault, self.name = fault, name


def check_on_fault(on_fault: str) -> str:
    """Return ``on_fault``. Raise InvalidInputError if it is unknown."""
    if on_fault not in WAYS:
        raise InvalidInputError(f"on_fault: {unknown_name_message(on_fault, WAYS, 'value')}")
    return on_fault


def describe_exception(error: BaseException) -> str:
    """Return an exception as ``what`` of a fault."""
    message = str(error)
    return f"raised {type(error).__name__}{': ' if message else ''}{message}"


def find_nonfinite(observation: Any, where: str = "") -> dict[int, str]:
    """Return the rows of [B, ...] (an array, or a dict of arrays) with NaN or infinity, and a sentence for each.

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


def refuse(observation: Any, name: str, steps: Any = None, numbers: Any = None) -> None:
    """Raise EnvFault if observations [B, ...] hold NaN or infinity."""
    for row, what in find_nonfinite(observation).items():
        env, step = row if numbers is None else numbers[row], 0 if steps is None else int(steps[row])
        raise EnvFault(Fault(env, step, what), name, "the simulation has diverged: bound its actions")


def refuse_reward(raw: np.ndarray, name: str, steps: Any) -> None:
    """Raise EnvFault if rewards [B] hold NaN or infinity."""
    if not np.isfinite(raw).all():
        row = int(np.argmax(~np.isfinite(raw)))
        raise EnvFault(Fault(row, int(steps[row]), "gave a reward of NaN or infinity"), name)
