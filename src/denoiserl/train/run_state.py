"""A training loop that can be killed, resumed, counted and limited, written as a ``for``.

    for it in run.loop(args.iterations, policy=policy, value=value, opt=opt, rng=rng, env=env):
        ...
        yield {"return": ...}

``Run()`` keeps its state in memory; ``Run(folder)`` restores the state in the folder and yields the remaining iteration
numbers. A run that was killed at any point and resumed gives the same numbers, bit for bit:

- every object that changes is passed to ``loop`` (with ``state_dict`` and ``load_state_dict``), and the global
  generators of torch, numpy and Python are saved with it;
- an object without a state (a simulator) implements ``on_checkpoint(iteration)`` and restarts at the same iterations
  in every run, resumed or not. Such a loop is saved only at these restart points, so a stop loses later iterations;
- saves change no numbers and are complete or absent (``denoiserl.core.serialization.store``).

Restart points do not depend on saves. With ``restart`` there is one every so many iterations. By default there is one
when every object's ``may_restart()`` returns True: a ``Collector`` returns True after whole episodes. Objects without
it restart every 25 iterations.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from denoiserl.core.counters import UNITS, UsageCounter, no_usage_counting
from denoiserl.core.device import as_device
from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.core.serialization import store
from denoiserl.core.settings import Count, Positive, check_value
from denoiserl.core.signals import Interrupted, interrupts
from denoiserl.train.process_state import random_state, set_random_state
from denoiserl.train.saved_state import RESERVED, digest_inputs, find_states, restore_objects, sort_objects

RESTART = 25
"""iterations between restarts of objects without ``may_restart``"""
SOON = 60.0
"""seconds after which the next restart point is saved, unless ``every`` is given"""


class Saves(Protocol):
    """An object that can be saved as a policy."""

    def save(self, path: Path, /) -> Any: ...


class Stopped(Interrupted):
    """Raised after a signal, when the loop has finished its iteration and saved its state; it says what was saved."""


@dataclass
class Position:
    """Position of the running loop. ``total`` is None for a loop that only a budget ends."""

    stage: str
    iteration: int
    total: int | None
    first: int
    """first iteration of this process"""


class Run:
    """State and budget of a run.

    ``every``: iterations between saves (default: a tenth of the loop, or a minute). ``restart``: iterations between
    restarts of objects without a state (default: they decide). ``budget``: the most of any unit of
    ``denoiserl.core.counters.UNITS``, or of "seconds" in loops. A loop ends at the first iteration at which it is
    reached; the stages of a run share its budget. Spending is counted over the whole life of a Run.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        device: torch.device | str = "cpu",
        every: int | None = None,
        budget: Mapping[str, float] | None = None,
        restart: int | None = None,
    ) -> None:
        for unit, most in (budget or {}).items():
            if unit not in (*UNITS, "seconds"):
                raise RunError(unknown_name_message(unit, (*UNITS, "seconds"), "unit of a budget"))
            check_value(Positive, most, f"budget {unit}")
        check_value(Count | None, every, "every")
        check_value(Count | None, restart, "restart")
        self.folder = None if folder is None else Path(folder)
        self.device, self.every, self.budget = as_device(device), every, dict(budget or {})
        self.restart = restart
        self.name, self.parent = "", None
        self.meter, self.seconds, self.best_score = UsageCounter(), 0.0, None
        self.mark: Callable[[], int] | None = None
        """returns the number of metric rows on disk; called at every save (the runner sets it, on the root)"""
        self.watch: Callable[[Position], None] | None = None
        """called after every iteration (the runner sets it, on the root)"""
        self.cut: dict[str, tuple[int, int]] = {}
        """{stage: (iterations made, iterations planned)} of the loops that a budget ended (kept on the root)"""
        self.free = 0.0
        """seconds of evaluations, which count for no loop (kept on the root)"""
        self._active: list[Position] = []
        self._stages: dict[str, Run] = {}
        self._ran = False

    name: str
    parent: Run | None
    top: float | None

    def __repr__(self) -> str:
        parts = [str(self.folder or "in memory"), *(f"{most:g} {unit}" for unit, most in self.budget.items())]
        return f"Run({', budget '.join(parts)})"

    def stage(self, name: str, budget: Mapping[str, float] | None = None) -> Run:
        """Return the run of a named part, in a subfolder; its spending counts here too."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in RESERVED:
            raise RunError(
                f"{name!r} cannot name a stage: letters, digits and _.- only, and none of {', '.join(RESERVED)}."
            )
        if name in self._stages:
            return self._stages[name]
        stage = Run(self.folder and self.folder / name, self.device, self.every, budget, self.restart)
        stage.name, stage.parent = f"{self.name}/{name}".strip("/"), self
        stage.meter.parent = self.meter
        if self.folder is not None:  # in memory, a Run may be used for many runs in turn
            self._stages[name] = stage
        return stage

    def loop(self, n: int | None, *, given: Any = None, **named: Any) -> Iterator[int]:
        """Yield the remaining iteration numbers of 0 ... n-1, after restoring the named objects.

        ``given``: a tree of inputs that the loop does not change (data, prompts). Raise RunError if a resumed loop has
        other inputs, or a policy with another codec. Named objects that are ``None`` are ignored. Ctrl-C, SIGTERM
        and SIGHUP let the iteration finish, save, and raise ``Stopped``; a second one stops at once. With objects that
        have ``on_checkpoint``, an interrupted loop resumes from its last save.
        """
        if n is None and not any(k.budget for k in self._line()):
            raise RunError("A loop with n=None needs a budget: Run(budget={'seconds': 60}).")
        if self.folder is not None and self._ran:
            raise RunError(
                f"The stage {self.name!r} has run already: give each loop a stage, run.stage('improve').loop(...)."
            )
        self._ran, self.best_score = True, None
        kept, borders = sort_objects(named)
        data = {} if self.folder is None else digest_inputs(given, kept)
        every = self.every or (100 if n is None else max(1, math.ceil(n / 10)))
        at = Position(self.name, 0, n, 0)
        if self.folder is not None:
            store.remove_partial_writes(self.folder)
        if self.folder is not None and store.exists(self.folder / "state"):
            at.iteration = at.first = self._restore(kept, data)
            if n is not None and at.iteration > n:
                raise RunError(f"{self.folder} holds {at.iteration} iterations, more than {n}: use a new folder.")
        saved, saved_at = at.iteration, time.perf_counter()
        active = self._root()._active
        active.append(at)
        try:
            with self.meter.open(), interrupts(self.folder is not None) as caught:
                for thing in borders:
                    thing.on_checkpoint(at.iteration)
                while (n is None or at.iteration < n) and not self.exhausted_budget():
                    began, line, free = time.perf_counter(), self._line(), self._root().free
                    before = [k.seconds for k in line]
                    yield at.iteration
                    took = time.perf_counter() - began - (self._root().free - free)
                    for k, s in zip(line, before, strict=True):  # an inner loop has already counted its part
                        k.seconds = max(k.seconds, s + took)
                    at.iteration += 1
                    done = at.iteration == n or self.exhausted_budget() is not None
                    if done or self._fresh(borders, at.iteration):
                        soon = self.every is None and time.perf_counter() - saved_at > SOON
                        due = done or soon or at.iteration // every > saved // every
                        if self.folder is not None and (due or caught):
                            self._save(at.iteration, kept, data)
                            saved, saved_at = at.iteration, time.perf_counter()
                        for thing in borders:
                            thing.on_checkpoint(at.iteration)
                    if (watch := self._root().watch) is not None:
                        watch(at)
                    if caught:
                        of = "" if n is None else f" of {n}"
                        raise Stopped(
                            caught[0], f"Stopped: {saved}{of} iterations of {self.name or 'the run'} are saved."
                        )
                if n is not None and at.iteration < n:
                    self._root().cut[self.name or "the run"] = (at.iteration, n)
        finally:
            active[:] = [a for a in active if a is not at]

    def _fresh(self, borders: list[Any], iteration: int) -> bool:
        """Return whether this is a restart point of all objects with ``on_checkpoint``."""
        ready = [thing.may_restart() for thing in borders if hasattr(thing, "may_restart")]
        if self.restart is None and ready:
            return all(ready)
        return not borders or iteration % (self.restart or RESTART) == 0

    def current_loop(self) -> Position | None:
        """Return the position of the innermost running loop of this run, or None."""
        active = self._root()._active
        return active[-1] if active else None

    @contextmanager
    def uncharged(self) -> Iterator[None]:
        """Exclude the code inside the context from the usage, units and seconds; for evaluations during training."""
        began = time.perf_counter()
        try:
            with no_usage_counting():
                yield
        finally:
            self._root().free += time.perf_counter() - began

    def count(self, unit: str, n: int = 1) -> None:
        """Add ``n`` to the usage of ``unit``, for work that the library does not count itself."""
        self.meter.add(unit, n)

    def usage(self) -> dict[str, float]:
        """Return the spending of this run and its stages, in every unit and in seconds."""
        return {**self.meter.counts, "seconds": self.seconds}

    def exhausted_budget(self) -> str | None:
        """Return the unit whose budget is used up, here or in a parent run, else None."""
        for keep in self._line():
            spent = keep.usage()
            for unit, most in keep.budget.items():
                if spent[unit] >= most:
                    return unit
        return None

    def best(self, policy: Saves, score: float) -> bool:
        """Save ``policy`` as ``best`` if its held-out ``score`` (higher is better) exceeds all before; return whether
        it did.
        """
        score = float(score)
        if not math.isfinite(score):
            raise InvalidInputError(
                f"The held-out score is {score}: return a finite one, so that policies can be ranked."
            )
        if self.best_score is not None and score <= self.best_score:
            return False
        self.best_score = score
        if self.folder is not None:
            policy.save(self.folder / "best")
        return True

    def save_start(self, policy: Saves) -> None:
        """Save ``policy`` as ``start``, from which improvement begins; a run that is already improved keeps its own."""
        if self.folder is not None and not find_states(self.folder / "improve"):
            policy.save(self.folder / "start")

    def save_last(self, policy: Saves) -> None:
        """Save ``policy`` as ``last``."""
        if self.folder is not None:
            policy.save(self.folder / "last")

    def _line(self) -> list[Run]:
        return [self, *(self.parent._line() if self.parent else [])]

    def _root(self) -> Run:
        return self._line()[-1]

    def _save(self, iteration: int, kept: dict[str, Any], data: dict[str, str]) -> None:
        assert self.folder is not None
        mark = self._root().mark
        state = {
            "stage": self.name,
            "iteration": iteration,
            "spent": dict(self.meter.counts),
            "seconds": self.seconds,
            "best_score": self.best_score,
            "rows": mark() if mark else 0,
            "named": {name: thing.state_dict() for name, thing in kept.items()},
            "random": random_state(),
            "given": data,
        }
        store.write(self.folder / "state", state)

    def _restore(self, kept: dict[str, Any], data: dict[str, str]) -> int:
        assert self.folder is not None
        state = restore_objects(self.folder / "state", kept, data)
        more = state["seconds"] - self.seconds
        for keep in self._line():
            keep.seconds += more
        self.meter.restore(state["spent"])
        self.best_score = state["best_score"]
        set_random_state(state["random"])
        return state["iteration"]
