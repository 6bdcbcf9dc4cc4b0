"""Evaluation: one episode for every start state, no more and no less.

Counting the episodes that happen to finish in a number of steps favours short ones (a policy that fails slowly looks
better than it is). Here every seed plays exactly one episode, a copy that is through waits, and a time limit without
success is a failure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.env.stream import derived, executable, own, tensors
from denoiserl.env.vector import put
from denoiserl.errors import BadRun, BadSignal, DenoiseError
from denoiserl.meter import uncounted
from denoiserl.rng import Rng


@dataclass(frozen=True)
class Evaluation:
    """One entry an episode, in the order of the seeds: ``success`` [N] bool (None where the environment never reports
    it), ``returns`` [N] (undiscounted), ``ticks`` [N], ``finished`` [N] (False where ``limit`` cut it), ``seeds``."""

    success: Tensor | None
    returns: Tensor
    ticks: Tensor
    finished: Tensor
    seeds: tuple[int, ...]

    @property
    def outcomes(self) -> dict[str, Tensor]:
        """What a task tells of each episode, float32 [N]: "success" where it is known, "return" and "ticks"."""
        told = {"return": self.returns, "ticks": self.ticks.float()}
        return told if self.success is None else {"success": self.success.float(), **told}

    def summary(self) -> dict[str, float]:
        """Means over the episodes."""
        return {name: float(each.mean()) for name, each in self.outcomes.items()}


def evaluate(
    act: Callable[[Any, Rng], Any],
    env: Any,
    episodes: int,
    seed: int = 0,
    copies: int = 32,
    processes: int = 1,
    limit: int = 100_000,
    watch: Callable[[int, Any], None] | None = None,
) -> Evaluation:
    """Play ``episodes`` episodes of ``env`` (what ``Stream`` takes) with ``act(obs, rng) -> action or (action, _)``.

    Start state i depends on (seed, i) alone, and so does the policy's noise (a row stream an episode), so two policies
    meet the same start states and the number of ``copies`` changes nothing. ``watch(episode, env)`` is called after
    every tick, to render (one process). Nothing here counts against a budget.
    """
    if episodes < 1:
        raise BadSignal(f"an evaluation has at least one episode, not {episodes}")
    owner, spec = own(env, None if hasattr(env, "num_envs") else min(copies, episodes), processes)
    seeds = [derived(seed, i) for i in range(episodes)]
    parts = []
    with uncounted(), torch.no_grad():
        for begin in range(0, episodes, owner.count):
            part = seeds[begin : begin + owner.count]
            spare = [derived(seed, -1 & 0xFFFF, i) for i in range(owner.count - len(part))]
            look = None if watch is None else (lambda i, e, b=begin: watch(b + (i or 0), e))
            parts.append(_round(act, owner, spec, part + spare, len(part), limit, look))
    if not hasattr(env, "num_envs"):
        owner.close()
    success, returns, ticks, finished = zip(*parts, strict=True)
    known = all(s is not None for s in success)
    return Evaluation(
        torch.cat(success) if known else None,
        torch.cat(returns),
        torch.cat(ticks),
        torch.cat(finished),
        tuple(seeds),
    )


def _round(
    act: Callable[[Any, Rng], Any], owner: Any, spec: Any, seeds: list[int], n: int, limit: int, watch: Any
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """One episode in every copy; the first ``n`` count."""
    obs, rng = owner.reset(seeds), Rng.rows(seeds)
    alive = np.arange(owner.count) < n
    returns, ticks = np.zeros(owner.count), np.zeros(owner.count, np.int64)
    success: np.ndarray | None = None
    while alive.any() and ticks.max() < limit:
        answer = act(tensors(obs, spec.obs, owner.name), rng)
        action = answer[0] if isinstance(answer, tuple) else answer
        out = owner.play(executable(action, spec, owner.count, owner.name)[0], alive, 1.0, False, watch)
        returns += np.where(alive, out.raw, 0.0)
        ticks += np.where(alive, out.length, 0)
        if out.success is not None:
            success = (out.success & alive) if success is None else success | (out.success & alive)
        obs = put(obs, alive, out.after)
        alive = alive & ~(out.terminated | out.truncated)
    return (
        None if success is None else torch.from_numpy(success[:n]),
        torch.from_numpy(returns[:n].astype(np.float32)),
        torch.from_numpy(ticks[:n]),
        torch.from_numpy(~alive[:n]),
    )


def filmed(
    act: Callable[[Any, Rng], Any], env: Any, episodes: int, seed: int = 0, size: int = 160, every: int = 2
) -> tuple[list[np.ndarray], list[bool | None]]:
    """The first ``episodes`` of ``evaluate`` as films, uint8 [T, H, W, 3] each with a picture ``every`` so many ticks,
    and whether each succeeded (None where the environment does not say).

    The environment draws itself: ``render(size)``, or ``render()`` of one made with ``render_mode="rgb_array"``.
    """
    frames: list[list[np.ndarray]] = [[] for _ in range(episodes)]
    ticks = [0] * episodes

    def watch(episode: int, one: Any) -> None:
        if ticks[episode] % every == 0:
            frames[episode].append(picture(one, size))
        ticks[episode] += 1

    done = evaluate(act, env, episodes, seed, episodes, watch=watch)
    won: list[bool | None] = [None] * episodes if done.success is None else [bool(w) for w in done.success]
    return [np.stack(f) for f in frames], won


def picture(env: Any, size: int) -> np.ndarray:
    """What an environment draws of itself, uint8 [H, W, 3], about ``size`` pixels high where it can choose."""
    render = getattr(env, "render", None)
    if render is None:
        raise BadRun(f"{type(env).__name__} has no render(), which would draw it")
    sized = "size" in inspect.signature(render).parameters
    try:
        drawn = render(size) if sized else render()
    except DenoiseError:
        raise
    except Exception as error:  # a simulator's own: whoever cannot draw can be judged all the same
        raise BadRun(f"{type(env).__name__} cannot draw itself ({type(error).__name__}: {error})") from error
    if not isinstance(drawn, np.ndarray) or drawn.ndim != 3:
        raise BadRun(f"{type(env).__name__} draws no picture: make it with render_mode='rgb_array'")
    step = max(1, drawn.shape[0] // size)
    return np.ascontiguousarray(drawn[::step, ::step, :3]).astype(np.uint8)
