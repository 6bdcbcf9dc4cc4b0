"""Samplers: ``make_sampler`` returns a function that runs a process and draws chains."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, cat, first, index_rows, tree_map
from denoiserl.core.tree import batch_size as count_rows
from denoiserl.policy.chain import Chain
from denoiserl.policy.recorder import WAIT, Recorder
from denoiserl.processes.base import Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser


@dataclass(frozen=True)
class RecordAll:
    """Record every step."""


@dataclass(frozen=True)
class RecordWindow:
    """Record the steps first ≤ k < last."""

    first: int
    last: int


@dataclass(frozen=True)
class RecordSample:
    """Record the sample alone."""


NOISE = 1 << 22
"""noise numbers that are drawn at once"""

Record = RecordAll | RecordWindow | RecordSample
Draw = Callable[..., Chain]


def _span(record: Record, n: int) -> tuple[int, int]:
    if isinstance(record, RecordSample):
        return n, n
    low, high = (record.first, record.last) if isinstance(record, RecordWindow) else (0, n)
    if not 0 <= low < high <= n:
        raise InvalidInputError(f"the window [{low}, {high}) does not fit a chain of {n} steps")
    return low, high


def make_sampler(
    process: Process,
    denoise: Denoiser,
    steps: StepTable,
    event: tuple[int, ...],
    differentiable_steps: int = 0,
    record: Record = RecordAll(),
    compile: bool = False,
) -> Draw:
    """Return ``draw(cond, rng, start=None, rows=None, micro_batch_size=None) -> Chain``, which runs the process.

    ``cond``: a tree whose leaves lead with the rows (or None, with ``rows`` given). ``start=(x, k)`` begins at state x
    before step k. ``micro_batch_size``: rows per call of the network; it does not change the noise.

    ``differentiable_steps``: number of last steps with gradients (reward gradients). ``record``: the steps that the
    chain keeps; ``RecordSample()`` is fastest. ``compile`` compiles the whole loop (first call: tens of seconds). Noise
    is drawn step by step, for small chains at once. With ``Rng.rows`` the sample of a row does not depend on the batch.
    """
    n = len(steps)
    if not 0 <= differentiable_steps <= n:
        raise InvalidInputError(
            f"differentiable_steps is between 0 and the chain's {n} steps, not {differentiable_steps}"
        )
    low, high = _span(record, n)
    kind, shape = process.noise_shape(tuple(event))

    def loop(
        x: Any, noise: Tensor | Iterable[Tensor | None], context: Any, clock: Sequence[Any], rows: Sequence[Step],
        begin: int, keep: Recorder, switch: int,
    ) -> Any:  # fmt: skip
        """Run all steps; those from ``switch`` on are differentiable."""
        for k, eps in enumerate(noise.unbind() if isinstance(noise, Tensor) else noise, begin):
            if k == switch:
                torch.set_grad_enabled(True)  # until the context around the loop ends
            keep.before(k, x)
            law = process.reverse(denoise(x, clock[k], context), x, rows[k])
            x = law.sample(eps)
            keep.after(k, law, x)
        return x

    fast = torch.compile(loop, dynamic=False) if compile else loop

    def together(cond: Tree, x: Any, noise: Tensor | Iterable[Tensor | None], begin: int) -> Chain:
        """Return the chain of rows that share every call of the network."""
        device, count = first(x).device, count_rows(x)
        keep = Recorder(steps, low, high, wait=sys.maxsize if compile else WAIT)
        with torch.inference_mode(not differentiable_steps), torch.set_grad_enabled(differentiable_steps > 0):
            context, clock = denoise.embed_condition(cond), _clocks(denoise, steps, device)
            table = steps.rows if compile else steps.on(device)  # the compiler needs numbers
            torch.set_grad_enabled(False)
            x = fast(x, noise, context, clock, table, begin, keep, n - differentiable_steps)
        count_usage("denoiser_calls", n - begin)
        count_usage("denoiser_rows", (n - begin) * count)
        sample = (
            x if differentiable_steps else tree_map(Tensor.clone, x)
        )  # an ordinary tensor, whatever mode the loop ran in
        return Chain(steps, sample=sample, cond=cond, **keep.parts(sample, begin))

    def draw(
        cond: Tree,
        rng: Rng | int,
        start: tuple[Tree, int] | None = None,
        rows: int | None = None,
        micro_batch_size: int | None = None,
    ) -> Chain:
        trees = [tree for tree in (cond, None if start is None else start[0]) if tree is not None]
        count, rng = count_samples(trees, rows), as_rng(rng, first(trees[0]).device if trees else "cpu")
        rng.require_rows(count)
        cond = cond if start is None else process.condition(cond, start[0])
        begin = 0 if start is None else start[1]
        if not 0 <= begin < n:
            raise InvalidInputError(f"a chain of {n} steps cannot start at step {begin}")
        with torch.inference_mode(not differentiable_steps), torch.set_grad_enabled(False):
            if start is None:
                law = process.prior((count, *event), rng.device)
                prior_kind, prior_shape = ("normal", tuple(event)) if law.has_density else (kind, ())
                x = law.sample(getattr(rng, prior_kind)(count, *prior_shape) if law.has_density else None)
            else:
                x = start[0]
        size = count if micro_batch_size is None else micro_batch_size
        if size < 1 and micro_batch_size is not None:
            raise InvalidInputError(f"micro_batch_size is a number of rows per network call, at least 1, not {size}")
        if size >= count:
            noise = _noises(rng, kind, count, shape, steps.dense[begin:])
            return together(cond, x, rng.noise(kind, n - begin, count, shape) if compile else noise, begin)
        pieces, noise = [], list(_noises(rng, kind, count, shape, steps.dense[begin:]))
        for at in range(0, count, size):
            part = slice(at, at + size)
            some: Any = [None if eps is None else eps[part] for eps in noise]
            some = torch.stack(some) if compile else some
            pieces.append(together(index_rows(cond, part), index_rows(x, part), some, begin))
        return _join(pieces, cond)

    return draw


def count_samples(trees: list[Tree], rows: int | None) -> int:
    """Return the number of rows of conditions and starts, or ``rows``. Raise InvalidInputError if they disagree."""
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, numbers.Integral) or rows < 0):
        raise InvalidInputError(f"rows= is the number of samples, an int from 0 on, not {rows!r}: give rows=4")
    given = [*map(count_rows, trees), *([] if rows is None else [int(rows)])]
    if not given:
        raise InvalidInputError("a draw without condition needs rows=, the number of samples: give observations, or it")
    if len(set(given)) > 1:
        raise InvalidInputError(
            f"the condition, the start and rows= disagree about the number of rows, {given}: make them equal"
        )
    return given[0]


def _join(pieces: list[Chain], cond: Tree) -> Chain:
    """Join chains of different rows of one run, with the conditions ``cond`` of all."""
    states, sample, log_prob = (cat([getattr(c, k) for c in pieces]) for k in ("states", "sample", "log_prob"))
    return replace(pieces[0], states=states, sample=sample, log_prob=log_prob, cond=cond)


def _noises(rng: Rng, kind: str, count: int, shape: tuple[int, ...], dense: Sequence[bool]) -> Iterator[Tensor | None]:
    """Yield the noise of every step, [count, *shape] each.

    Steps are drawn together up to ``NOISE`` numbers. With a stream per row, the noise of steps without a density is
    skipped, which leaves all other numbers as they are.
    """
    size = math.prod((count, *shape))
    block = max(1, NOISE // max(size, 1))
    for at in range(0, len(dense), block):
        part = dense[at : at + block]
        if rng.keys is None or any(part):
            yield from rng.noise(kind, len(part), count, shape).unbind()
        else:
            rng.skip(len(part) * math.prod(shape))
            yield from [None] * len(part)


def _clocks(denoise: Denoiser, steps: StepTable, device: torch.device) -> Sequence[Any]:
    """Return the embedded time of every step of the grid, each with a leading axis of one."""
    return _rows(denoise.embed_time(steps.times[:-1].float().to(device)), len(steps))


def _rows(tree: Any, n: int) -> Sequence[Any]:
    """Split a tree whose leaves lead with n into n trees whose leaves lead with 1."""
    if tree is None:
        return [None] * n
    if isinstance(tree, dict):
        parts = zip(*(_rows(v, n) for v in tree.values()), strict=True)
        return [dict(zip(tree, part, strict=True)) for part in parts]
    if isinstance(tree, tuple | list):
        return [type(tree)(part) for part in zip(*(_rows(v, n) for v in tree), strict=True)]
    return tree.split(1)
