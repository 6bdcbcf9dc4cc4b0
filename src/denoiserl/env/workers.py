"""Copies of an environment in a few worker processes: one message a chunk, not one a tick.

Each worker owns a block of copies as ``Singles`` does, so the numbers are the same as in one process, bit for bit.
Workers start when they are made and are first waited for when they are first used, so their imports overlap with other
work. As ever with processes, a script that starts them needs ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import multiprocessing
import traceback
import weakref
from typing import Any

import numpy as np

from denoiserl.env.chunk import Outcome
from denoiserl.env.single import Make, Singles


def _serve(pipe: Any, make: Make, count: int, name: str, first: int) -> None:
    """The worker: owns its copies and answers messages until told to stop."""
    try:
        copies = Singles(make, count, name, first)
        pipe.send(("ready", None))
        while True:
            what, given = pipe.recv()
            if what == "close":
                break
            pipe.send(("ok", getattr(copies, what)(*given)))
        copies.close()
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send(("error", f"{error}\n{traceback.format_exc()}"))


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {k: _join([p[k] for p in parts]) for k in parts[0]}
    return np.concatenate(parts)


class Workers:
    """``count`` copies made by ``make`` (importable by name) in ``processes`` processes."""

    def __init__(self, make: Make, count: int, processes: int, name: str = "the environment") -> None:
        context: Any = multiprocessing.get_context("spawn")
        if "forkserver" in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])  # torch is imported once, not once a worker
        self.name = name
        self.blocks = [len(part) for part in np.array_split(np.arange(count), min(processes, count))]
        self.pipes: list[Any] = []
        self.processes: list[Any] = []
        for k, size in enumerate(self.blocks):
            ours, theirs = context.Pipe()
            given = (theirs, make, size, name, sum(self.blocks[:k]))
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self.waiting = True
        self._stop = weakref.finalize(self, _stop, self.pipes, self.processes)

    @property
    def count(self) -> int:
        return sum(self.blocks)

    def _receive(self, k: int) -> Any:
        try:
            kind, value = self.pipes[k].recv()
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError(
                f"worker {k} of {self.name} died (exit code {self.processes[k].exitcode}): use processes=1 to see why"
            ) from error
        if kind == "error":
            first = value.splitlines()[0]
            kinds = FloatingPointError if "returned NaN" in first else ChildProcessError
            raise kinds(f"{first}\n(in worker {k})\n{value}")
        return value

    def _all(self, what: str, given: list[tuple[Any, ...]]) -> list[Any]:
        if self.waiting:
            for k in range(len(self.pipes)):
                self._receive(k)
            self.waiting = False
        for pipe, part in zip(self.pipes, given, strict=True):
            pipe.send((what, part))
        return [self._receive(k) for k in range(len(self.pipes))]

    def reset(self, seeds: list[int]) -> Any:
        """A new episode in every copy, seeded: observations [B, ...]."""
        edges = np.cumsum(self.blocks)[:-1]
        parts = np.split(np.array(seeds, dtype=object), edges)
        return _join(self._all("reset", [(list(p),) for p in parts]))

    def play(
        self, actions: np.ndarray, alive: np.ndarray, gamma: float, restart: bool = True, watch: Any = None
    ) -> Outcome:
        """One chunk [B, T_a, ...] in every copy that is ``alive`` [B]. Copies elsewhere cannot be watched."""
        if watch is not None:
            raise ValueError("copies in worker processes cannot be watched: use processes=1")
        edges = np.cumsum(self.blocks)[:-1]
        parts = zip(np.split(actions, edges), np.split(alive, edges), strict=True)
        got: list[Outcome] = self._all("play", [(a, b, gamma, restart) for a, b in parts])
        known = any(g.success is not None for g in got)
        success = [np.zeros(len(g.length), bool) if g.success is None else g.success for g in got]
        return Outcome(
            _join([g.after for g in got]),
            _join([g.start for g in got]),
            np.concatenate([g.reward for g in got]),
            np.concatenate([g.raw for g in got]),
            np.concatenate([g.terminated for g in got]),
            np.concatenate([g.truncated for g in got]),
            np.concatenate([g.length for g in got]),
            np.concatenate(success) if known else None,
        )

    def close(self) -> None:
        """Stop the workers."""
        self._stop()


def _stop(pipes: list[Any], processes: list[Any]) -> None:
    for pipe in pipes:
        try:
            pipe.send(("close", None))
            pipe.close()
        except OSError:
            pass
    for process in processes:
        process.join(2)
        if process.is_alive():
            process.terminate()
            process.join(2)
