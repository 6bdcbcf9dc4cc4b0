"""Chains: running a process, and the record that learning reads.

``make_sampler`` makes a function that draws; the ``Chain`` it returns keeps the states around every recorded step that
has a density, and its log-probability. ``chain.steps_at(index)`` picks steps of any rows, shuffled as a minibatch wants
them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import NoDensityError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, cat, describe_shapes, first, index_rows, tree_map
from denoiserl.core.tree import batch_size as count_rows
from denoiserl.distributions.base import NO_DENSITY_HELP
from denoiserl.policy.recorder import WAIT, Recorder
from denoiserl.processes.base import Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser


def flatten(tree: Any, axes: int) -> Any:
    """Merge the leading ``axes`` axes of every leaf."""
    return tree_map(lambda v: v.flatten(0, axes - 1) if axes > 1 else v, tree)


def select(tree: Any, index: Tensor) -> Any:
    """Rows ``index`` of every leaf (index_select: its gradient is a fast scatter)."""
    return tree_map(lambda v: v.index_select(0, index), tree)


@dataclass(frozen=True)
class ChainSteps:
    """Steps picked from chains: what a minibatch is made of. N rows.

    ``x``, ``y`` [N, *event] before and after the step; ``step`` [N] its row of the table; ``log_prob`` [N] as
    recorded; ``cond`` [N, ...]; ``owner`` [N] the chain that the step belongs to; ``live`` [N, *event] or None.
    """

    steps: StepTable
    x: Tree
    y: Tree
    step: Tensor
    log_prob: Tensor
    cond: Tree
    chain_index: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        return f"ChainSteps({len(self)} steps, x {describe_shapes(self.x, 1)}, {self.step.device})"

    def select(self, index: Any) -> ChainSteps:
        """Some of the rows."""
        pick = {k: tree_map(lambda v: v[index], getattr(self, k)) for k in ("x", "y", "cond", "mask")}
        return replace(
            self, **pick, step=self.step[index], log_prob=self.log_prob[index], chain_index=self.chain_index[index]
        )


@dataclass(frozen=True, eq=False)
class Chain:
    """The record of a run.

    ``states`` [*b, R + 1, *event]: the states around the recorded range of steps. ``at``: which of its R steps have a
    density; S of them. ``step`` [S]: their rows in the table ``steps``. ``log_prob`` [*b, S]: as drawn. ``sample``
    [*b, *event]: the final state. ``cond``: the raw condition, so that replay encodes it again with gradients.
    ``live`` [*b, *event]: factors that count (None: all). ``version``: of the weights that drew it.
    """

    steps: StepTable
    states: Tree
    recorded: Tensor
    step: Tensor
    log_prob: Tensor
    sample: Tree
    cond: Tree
    mask: Tensor | None = None
    version: int = 0

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch shape *b."""
        return tuple(self.log_prob.shape[:-1])

    @property
    def x(self) -> Tree:
        """[*b, S, *event]: the state before each recorded step."""
        self._recorded()
        return tree_map(lambda v: v.index_select(len(self.batch), self.recorded), self.states)

    @property
    def y(self) -> Tree:
        """[*b, S, *event]: the state after each recorded step."""
        self._recorded()
        return tree_map(lambda v: v.index_select(len(self.batch), self.recorded + 1), self.states)

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        event = describe_shapes(self.sample, len(self.batch))
        return (
            f"Chain(batch {list(self.batch)}, event {event}, {len(self)} of {len(self.steps)} steps recorded, "
            f"{self.log_prob.device})"
        )

    def _recorded(self) -> None:
        if len(self.step) == 0:
            raise NoDensityError(
                f"this chain recorded no step with a density: {NO_DENSITY_HELP}; record=RecordAll() keeps the states"
            )

    def steps_at(self, index: Tensor | None = None) -> ChainSteps:
        """Steps by flat index into [*b, S] (all of them by default), as rows that learning can shuffle."""
        self._recorded()
        axes, n = len(self.batch), len(self.step)
        total = self.log_prob.numel()
        index = torch.arange(total, device=self.log_prob.device) if index is None else index
        owner, j = index // n, index % n
        at = self.recorded[j]

        def pick(v: Tensor, shift: int) -> Tensor:
            return v.flatten(0, axes - 1)[owner, at + shift]

        return ChainSteps(
            self.steps,
            tree_map(lambda v: pick(v, 0), self.states),
            tree_map(lambda v: pick(v, 1), self.states),
            self.step[j],
            self.log_prob.reshape(-1)[index],
            select(flatten(self.cond, axes), owner),
            owner,
            None if self.mask is None else self.mask.flatten(0, axes - 1)[owner],
        )

    def with_condition(self, cond: Tree = None, mask: Tensor | None = None) -> Chain:
        """The same record with its conditions stored elsewhere (observations are kept once), or with dead factors."""
        return replace(self, cond=self.cond if cond is None else cond, mask=self.mask if mask is None else mask)

    def take(self, index: Any) -> Chain:
        """Some chains, by an index into the leading batch axis."""
        part = {k: tree_map(lambda v: v[index], getattr(self, k)) for k in ("states", "sample", "cond", "mask")}
        log_prob = self.log_prob[index]
        if log_prob.ndim < 2:
            raise ValueError("one chain alone has no batch axis: take it with a slice or a list, chain.take([i])")
        return replace(self, **part, log_prob=log_prob)


def stack(chains: list[Chain]) -> Chain:
    """Chains of equal shape along a new leading axis (time)."""
    head = chains[0]
    for c in chains[1:]:
        if len(c) != len(head) or not torch.equal(c.step, head.step) or c.version != head.version:
            raise ValueError("chains are stacked when they recorded the same steps under one version of the weights")
    joined = {}
    for name in ("states", "sample", "cond", "mask"):
        parts = [getattr(c, name) for c in chains]
        joined[name] = None if parts[0] is None else tree_map(lambda *v: torch.stack(v), parts[0], *parts[1:])
    return replace(head, **joined, log_prob=torch.stack([c.log_prob for c in chains]))


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
    """Record nothing but the sample."""


NOISE = 1 << 22
"""numbers of noise that are drawn at once"""

Record = RecordAll | RecordWindow | RecordSample
Draw = Callable[..., Chain]


def _span(record: Record, n: int) -> tuple[int, int]:
    if isinstance(record, RecordSample):
        return n, n
    low, high = (record.first, record.last) if isinstance(record, RecordWindow) else (0, n)
    if not 0 <= low < high <= n:
        raise ValueError(f"the window [{low}, {high}) does not fit a chain of {n} steps")
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
    """A function ``draw(cond, rng, start=None, rows=None) -> Chain`` that runs the process from noise to data.

    ``cond``: a tree whose leaves lead with the rows (or None with ``rows=`` given). ``start=(x, k)`` begins at state x
    before step k. ``differentiable_steps``: that many last steps are differentiable (reward gradients). ``record``:
    which steps the chain keeps; ``RecordSample()`` is the fast path. ``compile`` compiles the whole loop (first call:
    tens of seconds). The noise of a step is drawn when its turn comes, that of small chains at once; with ``Rng.rows``
    row 7 is row 7 in any batch size. ``draw(..., micro=)``: rows of one call of the network; their noise is the same
    however many run together.
    """
    n = len(steps)
    if not 0 <= differentiable_steps <= n:
        raise ValueError(f"differentiable_steps is between 0 and the chain's {n} steps, not {differentiable_steps}")
    low, high = _span(record, n)
    kind, shape = process.noise_shape(tuple(event))

    def loop(
        x: Any, noise: Tensor | Iterable[Tensor | None], context: Any, clock: Sequence[Any], rows: Sequence[Step],
        begin: int, keep: Recorder, switch: int,
    ) -> Any:  # fmt: skip
        """All steps; those from ``switch`` on are differentiable."""
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
        """The chain of rows that share every call of the network."""
        device, count = first(x).device, count_rows(x)
        keep = Recorder(steps, low, high, wait=sys.maxsize if compile else WAIT)
        with torch.inference_mode(not differentiable_steps), torch.set_grad_enabled(differentiable_steps > 0):
            context, clock = denoise.embed_condition(cond), _clocks(denoise, steps, device)
            table = steps.rows if compile else steps.on(device)  # a compiler wants numbers
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
        micro: int | None = None,
    ) -> Chain:
        trees = [tree for tree in (cond, None if start is None else start[0]) if tree is not None]
        given = [*map(count_rows, trees), *([] if rows is None else [rows])]
        if not given:
            raise ValueError("an unconditional draw needs rows=: how many samples")
        if len(set(given)) > 1:
            raise ValueError(f"the condition, the start and rows= disagree about the number of rows: {given}")
        count, rng = given[0], as_rng(rng, first(trees[0]).device if trees else "cpu")
        cond = cond if start is None else process.condition(cond, start[0])
        begin = 0 if start is None else start[1]
        if not 0 <= begin < n:
            raise ValueError(f"a chain of {n} steps cannot start at step {begin}")
        with torch.inference_mode(not differentiable_steps), torch.set_grad_enabled(False):
            if start is None:
                law = process.prior((count, *event), rng.device)
                prior_kind, prior_shape = ("normal", tuple(event)) if law.has_density else (kind, ())
                x = law.sample(getattr(rng, prior_kind)(count, *prior_shape) if law.has_density else None)
            else:
                x = start[0]
        if micro is not None and micro < 1:
            raise ValueError(f"micro is a number of rows a network call, not {micro}")
        if micro is None or micro >= count:
            noise = _noises(rng, kind, count, shape, steps.dense[begin:])
            return together(cond, x, rng.noise(kind, n - begin, count, shape) if compile else noise, begin)
        pieces, noise = [], list(_noises(rng, kind, count, shape, steps.dense[begin:]))
        for at in range(0, count, micro):
            part = slice(at, at + micro)
            some: Any = [None if eps is None else eps[part] for eps in noise]
            some = torch.stack(some) if compile else some
            pieces.append(together(index_rows(cond, part), index_rows(x, part), some, begin))
        return _join(pieces, cond)

    return draw


def _join(pieces: list[Chain], cond: Tree) -> Chain:
    """Chains of different rows of one run as one, with the conditions ``cond`` of all."""
    states, sample, log_prob = (cat([getattr(c, k) for c in pieces]) for k in ("states", "sample", "log_prob"))
    return replace(pieces[0], states=states, sample=sample, log_prob=log_prob, cond=cond)


def _noises(rng: Rng, kind: str, count: int, shape: tuple[int, ...], dense: Sequence[bool]) -> Iterator[Tensor | None]:
    """The noise of every step, [count, *shape] each. Steps are drawn together while that is at most ``NOISE`` numbers;
    with row streams, steps without a density draw nothing, and every number stays where it was."""
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
    """The denoiser's clock for every step of the grid, each with a leading axis of one."""
    return _rows(denoise.embed_time(steps.times[:-1].float().to(device)), len(steps))


def _rows(tree: Any, n: int) -> Sequence[Any]:
    """A tree whose leaves lead with n as n trees whose leaves lead with 1."""
    if tree is None:
        return [None] * n
    if isinstance(tree, dict):
        parts = zip(*(_rows(v, n) for v in tree.values()), strict=True)
        return [dict(zip(tree, part, strict=True)) for part in parts]
    if isinstance(tree, tuple | list):
        return [type(tree)(part) for part in zip(*(_rows(v, n) for v in tree), strict=True)]
    return tree.split(1)
