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

from denoiserl.core.counters import no_usage_counting
from denoiserl.core.errors import DenoiseRLError, InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.core.tree import tree_map
from denoiserl.data.rollout import Fault
from denoiserl.envs import remarks, units
from denoiserl.envs.backends.sync import derive_seed
from denoiserl.envs.backends.vector import assign_rows
from denoiserl.envs.collector import make_backend
from denoiserl.envs.spaces import decides, prepare_actions, tensors

SUCCESS, HELD, REACHED = "success", "success_at_end", "steps_to_success"

WORDS = {
    SUCCESS: ("episodes that succeed at any tick", "%"),
    HELD: ("episodes that end in success", "%"),
    REACHED: ("until the first success, of episodes that succeed", ""),
    "return": ("return of an episode", ""),
    "length": ("steps of an episode", ""),
}
"""what ``Evaluation.outcomes`` are, and their units"""


@dataclass(frozen=True)
class Evaluation:
    """One entry an episode, in the order of the seeds.

    ``success`` [N] bool: reported at any tick (None where the environment never reports it); ``held`` [N] bool: the
    last report; ``first`` [N]: the tick of the first success, counted from 1, 0 where there was none. ``returns`` [N]
    (undiscounted), ``ticks`` [N], ``finished`` [N] (False where ``limit`` cut it), ``seeds``. ``crashed`` [N]: the
    environment raised or gave NaN; such an episode is a failure. ``notes``: sentences that belong to the numbers.
    """

    success: Tensor | None
    returns: Tensor
    ticks: Tensor
    finished: Tensor
    seeds: tuple[int, ...]
    held: Tensor
    first: Tensor
    crashed: Tensor
    notes: tuple[str, ...] = ()

    @property
    def outcomes(self) -> dict[str, Tensor]:
        """Return the outcomes of each episode, float32 [N]: see ``WORDS``; those of success only where it is known.

        "steps_to_success" is NaN for episodes without success, and left out where no episode has any.
        """
        told = {"return": self.returns, "length": self.ticks.float()}
        if self.success is None:
            return told
        told = {SUCCESS: self.success.float(), HELD: self.held.float(), **told}
        if bool(self.success.any()):
            told[REACHED] = torch.where(self.success, self.first.float(), torch.nan)
        return told

    def summary(self) -> dict[str, float]:
        """Means over the episodes; "ticks to success" is the mean over those that succeed."""
        return {name: float(each.nanmean()) for name, each in self.outcomes.items()}


def evaluate(
    act: Callable[..., Any],
    env: Any,
    episodes: int,
    seed: int = 0,
    copies: int = 32,
    processes: int = 1,
    limit: int = 100_000,
    watch: Callable[[int, Any], None] | None = None,
) -> Evaluation:
    """Play ``episodes`` episodes of ``env`` (what ``Collector`` takes) with ``act(obs, rng) -> action or (action, _)``.

    Start state i depends on (seed, i) alone, and so does the policy's noise (a row stream an episode), so two policies
    meet the same start states and the number of ``copies`` changes nothing. ``watch(episode, env)`` is called after
    every tick, to render (one process). Nothing here counts against a budget.

    An episode that crashes counts as a failure; EnvFault is raised if all do, or if a vector environment does. Warns
    (``Remark``) of crashes, of starts that are alike, solved before acting, or not repeated by the same seed, and of a
    policy (``control.acting.eval_actor``) in other units than the environment.
    """
    if episodes < 1:
        raise InvalidInputError(f"an evaluation has at least one episode, not {episodes}")
    act, codec = decides(act), getattr(getattr(act, "policy", None), "codec", None)
    owner, spec = make_backend(env, None if hasattr(env, "num_envs") else min(copies, episodes), processes, None)
    seeds = [derive_seed(seed, i) for i in range(episodes)]
    parts: list[_Round] = []
    with no_usage_counting(), torch.no_grad():
        for begin in range(0, episodes, owner.count):
            part = seeds[begin : begin + owner.count]
            spare = [derive_seed(seed, -1 & 0xFFFF, i) for i in range(owner.count - len(part))]
            look = None if watch is None else (lambda i, e, b=begin: watch(b + (i or 0), e))
            parts.append(_round(act, owner, spec, part + spare, len(part), limit, look, not parts, codec))
    if not hasattr(env, "num_envs"):
        owner.close()
    reports = any(p.reports for p in parts)
    first, held, returns, ticks, finished, solved = (
        np.concatenate([getattr(p, name) for p in parts])
        for name in ("first", "held", "returns", "ticks", "finished", "solved")
    )
    at = np.cumsum([0, *(len(p.first) for p in parts)])
    faults = {int(b) + i: fault for b, p in zip(at, parts, strict=False) for i, fault in p.faults.items()}
    lost = np.isin(np.arange(episodes), list(faults))
    notes = (
        *remarks.crash_notes(faults, episodes, owner.name),
        *(note for p in parts for note in p.notes),
        *remarks.alike([s for p in parts for s in p.starts], ticks.tolist(), returns.tolist(), owner.name),
        *remarks.early_success_notes(int(solved.sum()), episodes, owner.name),
        *remarks.sudden(np.where(solved, 0, first), ticks, episodes, owner.name),
    )
    remarks.remark(notes)
    return Evaluation(
        torch.from_numpy((first > 0) & ~lost) if reports else None,
        torch.from_numpy(returns.astype(np.float32)),
        torch.from_numpy(ticks),
        torch.from_numpy(finished & ~lost),
        tuple(seeds),
        torch.from_numpy((held > 0) & ~lost),
        torch.from_numpy(np.where(lost, 0, first)),
        torch.from_numpy(lost),
        notes,
    )


@dataclass(frozen=True)
class _Round:
    """An episode of n copies, arrays [n]; ``starts``: first observations, ``faults``: of copies that crashed."""

    first: np.ndarray
    held: np.ndarray
    returns: np.ndarray
    ticks: np.ndarray
    finished: np.ndarray
    solved: np.ndarray
    reports: bool
    starts: list[bytes]
    faults: dict[int, Fault]
    notes: list[str]


def _round(
    act: Callable[[Any, Rng], Any],
    owner: Any,
    spec: Any,
    seeds: list[int],
    n: int,
    limit: int,
    watch: Any,
    ask: bool,
    codec: Any,
) -> _Round:
    """One episode in every copy; the first ``n`` count. ``ask``: whether the environment follows its seeds, and has the
    units of the policy's ``codec`` (None: not asked)."""
    obs, notes = remarks.compare_resets(owner, seeds, owner.reset) if ask else (owner.reset(seeds), [])
    if ask and codec is not None:
        begun = tree_map(lambda v: v[:n], tensors(obs, spec.obs, owner.name))
        notes += units.unfit(codec, owner, spec)
        notes += units.unseen(codec, begun, f"the first observations of {owner.name}", every=True)
    starts, rng, solved = [remarks.row(obs, i) for i in range(n)], Rng.rows(seeds), owner.solved[:n].copy()
    alive = np.arange(owner.count) < n
    returns, (ticks, first) = np.zeros(owner.count), np.zeros((2, owner.count), np.int64)
    held, reports = np.zeros(owner.count, np.int8), False
    faults: dict[int, Fault] = {}
    while alive.any() and ticks.max() < limit:
        answer = act(tensors(obs, spec.obs, owner.name), rng)
        action = answer[0] if isinstance(answer, tuple) else answer
        out = owner.play(prepare_actions(action, spec, owner.count, owner.name)[0], alive, 1.0, False, watch)
        for fault in out.faults:  # of this decision, or of a start that could not be had
            if fault.copy is not None and alive[fault.copy]:
                faults.setdefault(fault.copy, fault)
                alive[fault.copy] = False
        if out.held is not None:
            reports = True
            first = np.where(alive & (first == 0) & (out.first > 0), ticks + out.first, first)
            held = np.where(alive & (out.held >= 0), out.held, held)
        returns += np.where(alive, out.raw, 0.0)
        ticks += np.where(alive, out.length, 0)
        obs = assign_rows(obs, alive, out.after)
        alive = alive & ~out.done
    return _Round(first[:n], held[:n], returns[:n], ticks[:n], ~alive[:n], solved, reports, starts, faults, notes)


def record_video(
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
            frames[episode].append(render_frame(one, size))
        ticks[episode] += 1

    with remarks.remarks():  # said where the numbers are
        done = evaluate(act, env, episodes, seed, episodes, watch=watch)
    won: list[bool | None] = [None] * episodes if done.success is None else [bool(w) for w in done.success]
    blank = [np.zeros_like(next((f[0] for f in frames if f), np.zeros((size, size, 3), np.uint8)))]
    return [np.stack(f or blank) for f in frames], won  # an episode that crashed at once has no picture


def render_frame(env: Any, size: int) -> np.ndarray:
    """What an environment draws of itself, uint8 [H, W, 3], about ``size`` pixels high where it can choose."""
    render = getattr(env, "render", None)
    if render is None:
        raise RunError(f"{type(env).__name__} has no render(), which would draw it")
    sized = "size" in inspect.signature(render).parameters
    try:
        drawn = render(size) if sized else render()
    except DenoiseRLError:
        raise
    except Exception as error:  # a simulator's own: whoever cannot draw can be judged all the same
        raise RunError(f"{type(env).__name__} cannot draw itself ({type(error).__name__}: {error})") from error
    if not isinstance(drawn, np.ndarray) or drawn.ndim != 3:
        raise RunError(f"{type(env).__name__} draws no picture: make it with render_mode='rgb_array'")
    step = max(1, drawn.shape[0] // size)
    return np.ascontiguousarray(drawn[::step, ::step, :3]).astype(np.uint8)
