"""Supervised denoising: learn clean data from a noisier version of it, at random times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, batch_size, first, leaves, micro_rows, tree_map
from denoiserl.train.ema import EMA
from denoiserl.train.metric_means import Metrics
from denoiserl.train.optimizer_steps import accumulate, optimizer_step
from denoiserl.train.optimizers import adamw, check_optimizer_covers, warmup_cosine
from denoiserl.train.run_state import Run


class FitProcess(Protocol):
    """The part of a process that ``fit`` needs."""

    def noise(self, x0: Any, t: Tensor, rng: Rng, loss_mask: Any = None) -> Any: ...
    def loss(self, denoise: Any, noised: Any, context: Any) -> Tensor: ...


@dataclass(frozen=True)
class TrainingRows:
    """``size`` rows that are computed on demand, for data whose rows overlap or do not fit into memory.

    ``take(index [n])`` returns a dict of their "x0", and optionally "cond", "loss_mask" and "counts". ``given``: the
    tree that they are computed from, for the fingerprint of a run.
    """

    size: int
    take: Callable[[Tensor], dict[str, Any]]
    given: Any = None


def draw_antithetic_times(n: int, rng: Rng | int, edge: float = 1e-5) -> Tensor:
    """Draw times [n] in (0, 1): each is uniform, together they are evenly spread, in random order.

    t_i = (i + u_i) / n, one in each of n strata, with t_{n-1-i} = 1 - t_i: antithetic pairs. The mean of a loss that is
    linear in t has no variance (n even); that of a smooth loss has O(1/n³) instead of O(1/n). The order is random, so
    no row of data is tied to its time. ``edge`` keeps times away from 0 and 1, where a process may divide by zero. An
    Rng with row streams gives independent times, because there no row may depend on another.
    """
    rng = as_rng(rng)
    if rng.keys is not None:
        return rng.uniform(n).clamp(edge, 1 - edge)
    u = rng.uniform((n + 1) // 2)
    half = (torch.arange(len(u), device=u.device) + u) / n
    return torch.cat((half, 1 - half[: n // 2]))[rng.permutation(n)].clamp(edge, 1 - edge)


def training_losses(
    process: FitProcess,
    denoise: Any,
    x0: Tree,
    cond: Tree | None,
    rng: Rng | int,
    loss_mask: Tree | None = None,
    t: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Return the denoising loss [B] of each row of ``x0`` [B, *event], each at its own time (``t``, or stratified).

    Entries outside ``loss_mask`` stay clean. Entries outside ``counts`` are noised and have no loss.
    """
    rng = as_rng(rng, first(x0).device)
    return process.loss(denoise, _noise(process, x0, rng, loss_mask, t, counts), denoise.embed_condition(cond))


def _noise(
    process: FitProcess, x0: Tree, rng: Rng, loss_mask: Tree | None, t: Tensor | None, counts: Tensor | None
) -> Any:
    """Return every row noised at its own time, with the entries that have a loss as ``mask``."""
    if t is None:
        t = draw_antithetic_times(batch_size(x0), rng).to(first(x0).device)
    noised = process.noise(x0, t, rng, loss_mask)
    if counts is None:
        return noised
    return noised._replace(mask=counts if loss_mask is None else counts & loss_mask)


def _pieces(
    process: FitProcess, denoise: Any, part: dict[str, Any], rng: Rng, micro_batch_size: int
) -> Iterator[Tensor]:
    """Yield ``training_losses``, ``micro_batch_size`` rows at a time; noise and times are those of the whole batch."""
    noised = _noise(process, part["x0"], rng, part["loss_mask"], None, part["counts"])
    for i in torch.arange(batch_size(part["x0"]), device=noised.t.device).split(
        micro_rows(micro_batch_size, batch_size(part["x0"]))
    ):
        some, cond = (tree_map(lambda v, i=i: v[i], what) for what in (tuple(noised), part["cond"]))
        yield process.loss(denoise, type(noised)(*some), denoise.embed_condition(cond))


def fit(
    process: FitProcess,
    denoiser: torch.nn.Module,
    x0: Tree | TrainingRows,
    cond: Tree | None,
    updates: int,
    rng: Rng | int,
    *,
    batch: int = 256,
    lr: float = 1e-3,
    decay: float = 0.0,
    warmup: int = 0,
    clip: float | None = 1.0,
    ema: EMA | bool = True,
    opt: Optimizer | None = None,
    loss_mask: Tree | None = None,
    counts: Tensor | None = None,
    run: Run | None = None,
    log: int | None = None,
    micro_batch_size: int | None = None,
) -> Iterator[Metrics]:
    """Train ``denoiser`` in place on the rows of ``x0`` given ``cond`` and yield the mean loss every ``log`` updates.

    Rows are drawn with replacement; ``TrainingRows`` as ``x0`` carry their own cond, live and counts. The optimiser is
    AdamW with warm-up and cosine decay of the learning rate, or ``opt`` at its own constant rate. ``loss_mask`` and
    ``counts``: see ``training_losses``. With ``ema`` the denoiser ends with the moving average of its weights.
    ``micro_batch_size``: rows per forward pass; the update is that of the whole batch. With a folder in ``run`` the fit
    can be killed and resumed. It is a generator: ``for row in fit(...)``.
    """
    rng = as_rng(rng, next(denoiser.parameters()).device)
    run = Run() if run is None else run
    source = (
        x0
        if isinstance(x0, TrainingRows)
        else _stored({"x0": x0, "cond": cond, "loss_mask": loss_mask, "counts": counts})
    )
    if source is x0 and any(v is not None for v in (cond, loss_mask, counts)):
        raise InvalidInputError("TrainingRows carry their own cond, live and counts: let take return them")
    device = next(denoiser.parameters()).device
    schedule = None
    if opt is None:
        opt = adamw([p for p in denoiser.parameters() if p.requires_grad], lr, decay)
        schedule = warmup_cosine(opt, min(warmup, updates), updates)
    check_optimizer_covers(opt, denoiser)
    average = EMA(denoiser) if ema is True else (ema or None)
    log = max(1, updates // 50) if log is None else log
    mean_loss, mode = _Mean(), denoiser.training
    denoiser.train()
    named = {"denoiser": denoiser, "opt": opt, "schedule": schedule, "average": average, "rng": rng, "seen": mean_loss}
    for it in run.loop(updates, given=source.given, **named):
        index = rng.integers(0, source.size, batch)
        part = {**NONE, **tree_map(lambda v: v.to(device, non_blocking=True), source.take(index))}
        if micro_batch_size is None:
            each = training_losses(
                process, denoiser, part["x0"], part["cond"], rng, part["loss_mask"], counts=part["counts"]
            )
            row = optimizer_step(opt, each.mean(), clip)
            del each
        else:
            row = accumulate(opt, _pieces(process, denoiser, part, rng, micro_batch_size), batch, clip)
        if schedule is not None:
            schedule.step()
        if average is not None:
            average.update()
        mean_loss.add(row["loss"])
        if (it + 1) % log == 0 or it + 1 == updates:
            yield {"loss/denoising": mean_loss.take(), "train/grad_norm": row["grad_norm"]}
    if average is not None:
        average.copy_to(denoiser)
    denoiser.train(mode)


NONE: dict[str, Any] = dict.fromkeys(("cond", "loss_mask", "counts"))


def _stored(data: dict[str, Any]) -> TrainingRows:
    """Return the rows of tensors [N, ...] as ``TrainingRows``."""
    size = _checked(data)
    data = tree_map(lambda v: v.contiguous(), data)
    return TrainingRows(size, lambda index: tree_map(lambda v: v.index_select(0, index.to(v.device)), data), data)


class _Mean:
    """A running mean with a state, so that it survives a resume."""

    def __init__(self) -> None:
        self.total, self.n = 0.0, 0

    def add(self, value: float) -> None:
        self.total, self.n = self.total + value, self.n + 1

    def take(self) -> float:
        mean = self.total / self.n
        self.total, self.n = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, float]:
        return {"total": self.total, "n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.n = state["total"], state["n"]


def _checked(data: dict[str, Any]) -> int:
    n = batch_size(data["x0"])
    if n == 0:
        raise InvalidInputError("There are no rows to fit: x0 is empty.")
    for name, tree in data.items():
        for leaf in leaves(tree):
            if len(leaf) != n:
                raise InvalidInputError(f"x0 has {n} rows and {name} has {len(leaf)}: give one for every row.")
            if leaf.is_floating_point() and not torch.isfinite(leaf).all():
                raise InvalidInputError(f"{name} holds numbers that are not finite: drop or repair these rows.")
    return n
