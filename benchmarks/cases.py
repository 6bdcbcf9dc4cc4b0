"""What is timed: sampling, scoring, micro-batches, batch gathering. Every case answers plain rows of numbers.

Two floors. ``naive``: the network called K times as one writes it first, time embedding and condition inside each
call; the targets are ratios to it. ``bare``: the same with both computed beforehand, so nothing but the forward passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import race
from denoiserl import Chain, Diffusion, GaussianDenoiser, RecordAll, RecordSample, Rng, make_sampler, rescore, time_grid
from denoiserl.data.windows import EpochSampler, windows
from denoiserl.nn import MLP, UNet1D
from denoiserl.processes import StepTable, ddim, linear, with_min_std

CONDITION = 11


@dataclass(frozen=True)
class Case:
    """A denoiser of a size that robot policies use, and its K steps."""

    name: str
    net: MLP | UNet1D
    event: tuple[int, ...]
    k: int

    @property
    def denoiser(self) -> GaussianDenoiser:
        """The network as a denoiser (the same module, not a copy)."""
        return GaussianDenoiser(self.net, linear, "v")

    @property
    def process(self) -> Diffusion:
        """Rectified flow whose every step has a density."""
        return Diffusion(linear, with_min_std(ddim(1.0), 0.1))

    @property
    def steps(self) -> StepTable:
        """K uniform steps."""
        return self.process.steps(time_grid(self.k))

    def chain(self, batch: int) -> Chain:
        """A recorded run."""
        rng = Rng(1)
        cond = rng.normal(batch, CONDITION)
        return make_sampler(self.process, self.denoiser, self.steps, self.event)(cond, rng)


def cases() -> list[Case]:
    """MLP 3 x 512 over 12 numbers (4 actions of 3) with 20 steps; UNet1D 64/128/256 over 16 x 4 with 10 steps."""
    torch.manual_seed(0)
    mlp = Case("MLP 3x512", MLP(12, cond=CONDITION).eval(), (12,), 20)
    unet = Case("UNet1D 64/128/256", UNet1D((16, 4), cond=CONDITION).eval(), (16, 4), 10)
    return [mlp, unet]


def floors(case: Case, batch: int) -> dict[str, Callable[[], None]]:
    """The naive and the bare loop over the network, under inference mode."""
    net, rng = case.net, Rng(2)
    x, cond = rng.normal(batch, *case.event), rng.normal(batch, CONDITION)
    times = time_grid(case.k)[:-1].float()
    full = [t.expand(batch) for t in times]
    with torch.inference_mode():
        clocks, context = [net.embed_time(t[None]) for t in times], net.embed_condition(cond)

    def naive() -> None:
        with torch.inference_mode():
            for t in full:
                net(x, net.embed_time(t), net.embed_condition(cond))

    def bare() -> None:
        with torch.inference_mode():
            for c in clocks:
                net(x, c, context)

    return {"naive": naive, "bare": bare}


def sampling(case: Case, batch: int, compiled: bool, seconds: float, least: int) -> dict[str, Any]:
    """Drawing samples, and drawing with chain and log-probs recorded, against both floors."""
    rng = Rng(0)
    cond = rng.normal(batch, CONDITION)
    work: dict[str, Callable[[], Any]] = dict(floors(case, batch))
    first = 0.0
    for name, record in (("sample", RecordSample()), ("record", RecordAll())):
        draw = make_sampler(case.process, case.denoiser, case.steps, case.event, record=record)
        work[name] = lambda draw=draw: draw(cond, rng)
        if compiled:
            fast = make_sampler(case.process, case.denoiser, case.steps, case.event, record=record, compile=True)
            start = time.perf_counter()
            fast(cond, rng)
            first = max(first, time.perf_counter() - start)
            work[f"{name} compiled"] = lambda fast=fast: fast(cond, rng)
    result = race(work, seconds, least)
    row: dict[str, Any] = {"net": case.name, "steps": case.k, "batch": batch, "rounds": result.rounds}
    row["ms"] = {name: 1e3 * result.median(name) for name in work}
    for floor in ("naive", "bare"):
        row[f"to {floor}"] = {name: result.ratio(name, floor) for name in work}
    if compiled:
        row["first compiled call s"] = first
    return row


def scoring(case: Case, batch: int, micro: int | None, seconds: float, least: int) -> dict[str, Any]:
    """Replay of all K steps of ``batch`` chains, without and with gradients; floor: the bare network, same pieces."""
    chain, denoiser, net = case.chain(batch), case.denoiser, case.net
    rows = chain.steps_at()
    assert isinstance(rows.x, Tensor) and isinstance(rows.cond, Tensor)
    with torch.no_grad():
        clocks, context = net.embed_time(chain.steps.times[:-1].float())[rows.step], net.embed_condition(rows.cond)
    assert context is not None
    n = len(rows)
    size = micro or 1024
    pieces = [slice(low, low + size) for low in range(0, n, size)]
    states: Tensor = rows.x

    def bare() -> list[Tensor]:
        return [net(states[part], clocks[part], context[part]) for part in pieces]

    def score() -> Tensor:
        law, y = rescore(case.process, denoiser, chain, micro)
        return law.log_prob(y)

    def without(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                work()

        return run

    def descend(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            out = work()
            (out if isinstance(out, Tensor) else torch.stack([part.sum() for part in out])).mean().backward()
            net.zero_grad()

        return run

    work = {"bare": without(bare), "replay": without(score)}
    work |= {"bare, backward": descend(bare), "replay, backward": descend(score)}
    result = race(work, seconds, least)
    return {
        "net": case.name,
        "chains": batch,
        "rows": n,
        "micro": micro,
        "rounds": result.rounds,
        "us a row": {name: 1e6 * result.median(name) / n for name in work},
        "ratio": {
            "replay": result.ratio("replay", "bare"),
            "replay, backward": result.ratio("replay, backward", "bare, backward"),
        },
    }


def micro(case: Case, batch: int, sizes: list[int], seconds: float, least: int) -> list[dict[str, Any]]:
    """Replay of ``batch`` chains in micro-batches of several sizes, against one call for all rows."""
    chain, denoiser, net = case.chain(batch), case.denoiser, case.net
    n = chain.log_prob.numel()
    sizes = [size for size in sizes if size < n] + [n]

    def score(size: int) -> None:
        with torch.no_grad():
            law, y = rescore(case.process, denoiser, chain, size)
            law.log_prob(y)

    def descend(size: int) -> None:
        law, y = rescore(case.process, denoiser, chain, size)
        law.log_prob(y).mean().backward()
        net.zero_grad()

    rows = []
    forward = race({str(s): lambda s=s: score(s) for s in sizes}, seconds, least)
    backward = race({str(s): lambda s=s: descend(s) for s in sizes}, seconds, least)
    for size in map(str, sizes):
        for name, result in (("replay", forward), ("replay, backward", backward)):
            rows.append(
                {
                    "net": case.name,
                    "rows": n,
                    "micro": int(size),
                    "what": name,
                    "us a row": 1e6 * result.median(size) / n,
                    "to one call": result.ratio(size, str(n)),
                }
            )
    return rows


def gather(seconds: float, least: int, batch: int = 256) -> dict[str, Any]:
    """A shuffled batch of windows (2 observations of 11, 16 actions of 3) of 100 000 frames, and its indexing alone."""
    rng = Rng(0)
    found = windows(torch.arange(200, 100_001, 200), horizon=16, history=2)
    frames = int(found.bounds[-1, 1]) + 1
    obs, act = rng.normal(frames, CONDITION), rng.normal(frames, 3)
    batches = EpochSampler(found)
    index = batches.sample(rng, batch)
    chunk = found.frames(index)

    def draw() -> None:
        where = batches.sample(rng, batch)
        found.observations(obs, where)
        found.actions(act, where)

    def floor() -> None:
        obs[chunk[:, :2]]
        act[chunk]

    result = race({"indexing": floor, "batch": draw}, seconds, least)
    return {"windows": batch, "ms": {name: 1e3 * result.median(name) for name in result.seconds}}
