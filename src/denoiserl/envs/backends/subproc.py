"""Step environments in a few worker processes: one message per chunk, not one per step.

Each worker owns a block of environments as ``SyncBackend`` does, so the numbers equal those of one process bit for bit.
Workers start at once and are first waited for when they are first used, so their imports overlap with other work. A
message costs nearly a millisecond. Workers therefore pay only if the environments of one take longer than that per
decision. 8 Pendulums are five times slower in two workers than in one process. A script that starts processes needs
``if __name__ == "__main__":``.

A worker that does not answer within ``timeout`` seconds, or has died, is a fault of the environment that it was
stepping. It can be restarted; the episodes of its other environments are lost too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
import weakref
from typing import Any

import numpy as np

from denoiserl.core.errors import DenoiseRLError, InvalidInputError, RunError
from denoiserl.data.rollout import Fault
from denoiserl.envs.backends.chunk import ChunkResult
from denoiserl.envs.backends.faults import EnvFault, check_on_fault, describe_exception
from denoiserl.envs.backends.sync import Make, SyncBackend, derive_seed

PATIENCE = 300.0
"""seconds in which a worker has to answer"""
IMPORTS = 120.0
"""least time in seconds that a worker has to start"""


def _serve(pipe: Any, make: Make, count: int, name: str, first: int, on_fault: str, heartbeat: Any) -> None:
    """Run a worker: make its environments and answer messages until "close"."""
    try:
        envs = SyncBackend(make, count, name, first, on_fault, heartbeat)
        pipe.send(("ready", None))
        while True:
            what, given = pipe.recv()
            if what == "close":
                break
            made = getattr(envs, what)(*given)
            pipe.send(("ok", (made, envs.solved) if what == "reset" else made))
        envs.close()
    except (EOFError, KeyboardInterrupt):
        pass
    except EnvFault as error:
        pipe.send(("fault", (tuple(error.fault), traceback.format_exc())))
    except DenoiseRLError as error:  # an environment with unreadable results
        pipe.send(("refusal", str(error)))
    except Exception as error:
        pipe.send(("error", (describe_exception(error), traceback.format_exc())))


class _Silent(Exception):
    """A worker hangs or has died; the message says which."""


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {k: _join([p[k] for p in parts]) for k in parts[0]}
    return np.concatenate(parts)


class SubprocBackend:
    """``count`` environments made by ``make`` (importable by name) in ``processes`` processes."""

    def __init__(
        self,
        make: Make,
        count: int,
        processes: int,
        name: str = "the environment",
        on_fault: str = "error",
        timeout: float | None = None,
    ) -> None:
        self.context: Any = multiprocessing.get_context("spawn")
        if "forkserver" in multiprocessing.get_all_start_methods():
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload([__name__])  # import torch once, not once per worker
        self.make, self.name, self.on_fault = make, name, check_on_fault(on_fault)
        self.timeout = PATIENCE if timeout is None else timeout
        self.blocks = [len(part) for part in np.array_split(np.arange(count), min(processes, count))]
        self.edges = np.cumsum(self.blocks)[:-1]
        self.pipes: list[Any] = [None] * len(self.blocks)
        self.processes: list[Any] = [None] * len(self.blocks)
        self.heartbeats: list[Any] = [None] * len(self.blocks)
        self.renewed = [0] * len(self.blocks)
        self.starts: list[Any] = [None] * len(self.blocks)
        self.begun = [np.zeros(size, bool) for size in self.blocks]  # which episodes began with success
        self.early: tuple[Fault, ...] = ()
        for k in range(len(self.blocks)):
            self._launch(k)
        self.waiting = set(range(len(self.blocks)))
        self._stop = weakref.finalize(self, _stop, self.pipes, self.processes)

    @property
    def count(self) -> int:
        return sum(self.blocks)

    @property
    def solved(self) -> np.ndarray:
        return np.concatenate(self.begun)

    def _launch(self, k: int) -> None:
        ours, theirs = self.context.Pipe()
        self.heartbeats[k] = self.context.RawArray("q", [-1, 0])
        first = sum(self.blocks[:k])
        given = (theirs, self.make, self.blocks[k], self.name, first, self.on_fault, self.heartbeats[k])
        process = self.context.Process(target=_serve, args=given, daemon=True)
        process.start()
        theirs.close()
        self.pipes[k], self.processes[k] = ours, process

    def _receive(self, k: int, timeout: float) -> Any:
        try:
            if not self.pipes[k].poll(timeout):
                raise _Silent(f"has not answered for {timeout:g} s")
            kind, value = self.pipes[k].recv()
        except (EOFError, ConnectionError) as error:
            self.processes[k].join(2)
            raise _Silent(f"took its process down (exit code {self.processes[k].exitcode})") from error
        if kind == "fault":
            raise EnvFault(Fault(*value[0]), self.name, trace=f"\n(in worker {k})\n{value[1]}")
        if kind == "refusal":
            raise InvalidInputError(value)
        if kind == "error":
            raise ChildProcessError(f"worker {k} of {self.name} {value[0]}\n{value[1]}")
        return value

    def _send(self, k: int, what: str, given: tuple[Any, ...]) -> None:
        if k in self.waiting:
            try:
                self._receive(k, max(self.timeout, IMPORTS))
            except _Silent as silent:
                where = f"worker {k} of {self.name} {silent} while it made its environments"
                raise ChildProcessError(f"{where}: use processes=1 to see why") from silent
            self.waiting.discard(k)
        with contextlib.suppress(OSError):  # a dead worker is noticed when its answer is awaited
            self.pipes[k].send((what, given))

    def _renew(self, k: int, silent: _Silent) -> tuple[Fault, ...]:
        """Raise EnvFault with the environment, or restart worker k; all its environments lose their decision."""
        env, step = self.heartbeats[k]
        which = f"environment {env}" if env >= 0 else "it"
        fault = Fault(env if env >= 0 else None, step, f"{silent} (worker {k})")
        self.processes[k].kill()
        self.processes[k].join(2)
        if self.on_fault == "error":
            raise EnvFault(fault, self.name) from silent
        self.pipes[k].close()
        self._launch(k)
        self.waiting.add(k)
        self.renewed[k] += 1
        first = sum(self.blocks[:k])
        mine = range(first, first + self.blocks[k])
        self._send(k, "reset", ([derive_seed(self.seeds[i], 1 << 20, self.renewed[k]) for i in mine],))
        try:
            self.starts[k], self.begun[k] = self._receive(k, self.timeout)
        except _Silent as again:
            raise EnvFault(fault, self.name, f"started again, it {again} when reset: repair the environment") from again
        lost = f"lost its episode with worker {k}, which {which} held up"
        return (fault, *(Fault(i, 0, lost) for i in mine if i != env))

    def reset(self, seeds: list[int]) -> Any:
        """Start a new episode in every environment, seeded; return observations [B, ...]."""
        self.seeds, self.renewed = list(seeds), [0] * len(self.blocks)
        for k, part in enumerate(np.split(np.array(seeds, dtype=object), self.edges)):
            self._send(k, "reset", (list(part),))
        for k in range(len(self.blocks)):
            try:
                self.starts[k], self.begun[k] = self._receive(k, self.timeout)
            except _Silent as silent:
                self.early += self._renew(k, silent)
        return _join(self.starts)

    def step_chunk(
        self, actions: np.ndarray, active: np.ndarray, gamma: float, restart: bool = True, on_step: Any = None
    ) -> ChunkResult:
        """Execute one chunk [B, T_a, ...] in every environment that is ``active`` [B]. ``on_step`` is not supported."""
        if on_step is not None:
            raise RunError("environments in worker processes cannot be watched: use processes=1")
        for k, (a, b) in enumerate(zip(np.split(actions, self.edges), np.split(active, self.edges), strict=True)):
            self._send(k, "step_chunk", (a, b, gamma, restart))
        got = [self._played(k, part) for k, part in enumerate(np.split(active, self.edges))]
        faults, self.early = self.early + tuple(f for g in got for f in g.faults), ()
        known = any(g.last_success is not None for g in got)
        last_success = [np.full(len(g.length), -1, np.int8) if g.last_success is None else g.last_success for g in got]
        return ChunkResult(
            _join([g.after for g in got]),
            _join([g.start for g in got]),
            np.concatenate([g.reward for g in got]),
            np.concatenate([g.raw for g in got]),
            np.concatenate([g.terminated for g in got]),
            np.concatenate([g.truncated for g in got]),
            np.concatenate([g.length for g in got]),
            np.concatenate([g.first for g in got]),
            np.concatenate(last_success) if known else None,
            faults,
        )

    def _played(self, k: int, active: np.ndarray) -> ChunkResult:
        """Return the result of worker k, or a lost decision of all its environments."""
        try:
            outcome = self._receive(k, self.timeout)
        except _Silent as silent:
            before, none, zero = self.starts[k], np.zeros(len(active), bool), np.zeros(len(active))
            faults = self._renew(k, silent)
            still = zero.astype(np.int64)
            return ChunkResult(before, self.starts[k], zero, zero, none, active.copy(), still, still, None, faults)
        self.starts[k] = outcome.start
        return outcome

    def close(self) -> None:
        """Stop the workers."""
        self._stop()


def _stop(pipes: list[Any], processes: list[Any]) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.send(("close", None))
            pipe.close()
    for process in processes:
        process.join(2)
        if process.is_alive():
            process.kill()
            process.join(2)
