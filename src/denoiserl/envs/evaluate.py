"""Evaluate a policy: exactly one episode per start state.

Counting the episodes that finish within a number of steps favours short ones, so a policy that fails slowly looks
better than it is. Here every seed plays one episode, a finished environment waits, and a time limit without success is
a failure.
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
from denoiserl.core.progress import say, track
from denoiserl.core.rng import Rng
from denoiserl.core.tree import tree_map
from denoiserl.data.rollout import Fault
from denoiserl.envs import remarks, units
from denoiserl.envs.backends.make import make_backend
from denoiserl.envs.backends.sync import derive_seed
from denoiserl.envs.backends.vector import assign_rows
from denoiserl.envs.spaces import as_actor, prepare_actions, tensors

SUCCESS, HELD, REACHED = "success", "success_at_end", "steps_to_success"

WORDS = {
    SUCCESS: ("episodes that succeed at any step", "%"),
    HELD: ("episodes that end in success", "%"),
    REACHED: ("until the first success, of episodes that succeed", ""),
    "return": ("return of an episode", ""),
    "length": ("steps of an episode", ""),
}
"""descriptions and units of ``Evaluation.outcomes``"""


@dataclass(frozen=True)
class Evaluation:
    """Results with one entry per episode, in the order of the seeds.

    ``success`` [N] bool: reported at any step (None if the environment never reports it). ``last_success`` [N] bool:
    the last report. ``first`` [N]: the step of the first success, counted from 1; 0 for none. ``returns`` [N]:
    undiscounted. ``lengths`` [N]: steps. ``finished`` [N]: False where ``max_episode_steps`` cut the episode.
    ``crashed`` [N]: the environment raised or returned NaN; such an episode is a failure. ``notes``: warnings about
    these numbers.
    """

    success: Tensor | None
    returns: Tensor
    lengths: Tensor
    finished: Tensor
    seeds: tuple[int, ...]
    last_success: Tensor
    first: Tensor
    crashed: Tensor
    notes: tuple[str, ...] = ()

    @property
    def outcomes(self) -> dict[str, Tensor]:
        """The outcomes of each episode, float32 [N] (see ``WORDS``); those of success only if it is reported.

        "steps_to_success" is NaN for episodes without success, and absent if no episode succeeds.
        """
        found = {"return": self.returns, "length": self.lengths.float()}
        if self.success is None:
            return found
        found = {SUCCESS: self.success.float(), HELD: self.last_success.float(), **found}
        if bool(self.success.any()):
            found[REACHED] = torch.where(self.success, self.first.float(), torch.nan)
        return found

    def summary(self) -> dict[str, float]:
        """Return the means of the outcomes; "steps_to_success" is the mean over successful episodes."""
        return {name: float(each.nanmean()) for name, each in self.outcomes.items()}


def evaluate(
    act: Callable[..., Any],
    env: Any,
    episodes: int,
    seed: int = 0,
    num_envs: int = 32,
    processes: int = 1,
    max_episode_steps: int = 100_000,
    on_step: Callable[[int, Any], None] | None = None,
) -> Evaluation:
    """Play ``episodes`` episodes of ``env`` (what ``Collector`` takes) with ``act(obs, rng) -> action or (action, _)``.

    Start state and policy noise of episode i depend on (seed, i) alone. Two policies therefore meet the same start
    states, and ``num_envs`` does not change the result. ``on_step(episode, env)`` is called after every step, for
    rendering (one process only). Nothing here counts against a budget.

    An episode that crashes counts as a failure. Raise EnvFault if all crash, or if a vector environment does. Warn
    (``Remark``) of crashes, and of a policy (``control.acting.eval_actor``) with other units than the environment. Warn
    of start states that are equal, successful before the first action, or not repeated by the same seed.
    """
    if episodes < 1:
        raise InvalidInputError(f"an evaluation has at least one episode, not {episodes}")
    act, codec = as_actor(act), getattr(getattr(act, "policy", None), "codec", None)
    owner, spec = make_backend(env, None if hasattr(env, "num_envs") else min(num_envs, episodes), processes, None)
    seeds = [derive_seed(seed, i) for i in range(episodes)]
    parts: list[_Round] = []
    with no_usage_counting(), torch.no_grad(), track("episodes", episodes) as advance:
        for begin in range(0, episodes, owner.count):
            part = seeds[begin : begin + owner.count]
            spare = [derive_seed(seed, -1 & 0xFFFF, i) for i in range(owner.count - len(part))]
            look = None if on_step is None else (lambda i, e, b=begin: on_step(b + (i or 0), e))
            parts.append(
                _round(act, owner, spec, part + spare, len(part), max_episode_steps, look, not parts, codec, advance)
            )
    if not hasattr(env, "num_envs"):
        owner.close()
    reports = any(p.reports for p in parts)
    first, last_success, returns, lengths, finished, solved = (
        np.concatenate([getattr(p, name) for p in parts])
        for name in ("first", "last_success", "returns", "lengths", "finished", "solved")
    )
    at = np.cumsum([0, *(len(p.first) for p in parts)])
    faults = {int(b) + i: fault for b, p in zip(at, parts, strict=False) for i, fault in p.faults.items()}
    lost = np.isin(np.arange(episodes), list(faults))
    notes = (
        *remarks.crash_notes(faults, episodes, owner.name),
        *(note for p in parts for note in p.notes),
        *remarks.equal_start_notes(
            [s for p in parts for s in p.starts], lengths.tolist(), returns.tolist(), owner.name
        ),
        *remarks.early_success_notes(int(solved.sum()), episodes, owner.name),
        *remarks.first_step_success_notes(np.where(solved, 0, first), lengths, episodes, owner.name),
    )
    remarks.remark(notes)
    return Evaluation(
        torch.from_numpy((first > 0) & ~lost) if reports else None,
        torch.from_numpy(returns.astype(np.float32)),
        torch.from_numpy(lengths),
        torch.from_numpy(finished & ~lost),
        tuple(seeds),
        torch.from_numpy((last_success > 0) & ~lost),
        torch.from_numpy(np.where(lost, 0, first)),
        torch.from_numpy(lost),
        notes,
    )


@dataclass(frozen=True)
class _Round:
    """One episode of n environments, arrays [n]; ``starts``: first observations; ``faults``: {index: fault} of
    crashes."""

    first: np.ndarray
    last_success: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
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
    max_episode_steps: int,
    on_step: Any,
    ask: bool,
    codec: Any,
    advance: Callable[[int], None],
) -> _Round:
    """Play one episode in every environment; the first ``n`` count.

    ``ask``: check whether the environment follows its seeds, and has the units of the policy's ``codec`` (None: no
    check). ``advance(k)`` is called when k episodes have ended.
    """
    obs, notes = remarks.compare_resets(owner, seeds, owner.reset) if ask else (owner.reset(seeds), [])
    if ask and codec is not None:
        begun = tree_map(lambda v: v[:n], tensors(obs, spec.obs, owner.name))
        notes += units.unit_remarks(codec, owner, spec)
        notes += units.range_remarks(codec, begun, f"the first observations of {owner.name}", every=True)
    starts, rng, solved = [remarks.row(obs, i) for i in range(n)], Rng.rows(seeds), owner.solved[:n].copy()
    active = np.arange(owner.count) < n
    returns, (lengths, first) = np.zeros(owner.count), np.zeros((2, owner.count), np.int64)
    last_success, reports = np.zeros(owner.count, np.int8), False
    faults: dict[int, Fault] = {}
    while active.any() and lengths.max() < max_episode_steps:
        steps_before = lengths.max()
        answer = act(tensors(obs, spec.obs, owner.name), rng)
        action = answer[0] if isinstance(answer, tuple) else answer
        out = owner.step_chunk(prepare_actions(action, spec, owner.count, owner.name)[0], active, 1.0, False, on_step)
        for fault in out.faults:  # of this decision, or of a failed reset
            if fault.env is not None and active[fault.env]:
                faults.setdefault(fault.env, fault)
                active[fault.env] = False
        if out.last_success is not None:
            reports = True
            first = np.where(active & (first == 0) & (out.first > 0), lengths + out.first, first)
            last_success = np.where(active & (out.last_success >= 0), out.last_success, last_success)
        returns += np.where(active, out.raw, 0.0)
        lengths += np.where(active, out.length, 0)
        obs = assign_rows(obs, active, out.after)
        advance(int((active & out.done)[:n].sum()))
        active = active & ~out.done
        if steps_before < remarks.PATIENCE <= lengths.max() and active[:n].all():
            say(remarks.endless_note(owner.name))
    return _Round(
        first[:n], last_success[:n], returns[:n], lengths[:n], ~active[:n], solved, reports, starts, faults, notes
    )


def record_video(
    act: Callable[[Any, Rng], Any], env: Any, episodes: int, seed: int = 0, size: int = 160, every: int = 2
) -> tuple[list[np.ndarray], list[bool | None]]:
    """Return videos of the first ``episodes`` of ``evaluate``, uint8 [T, H, W, 3] each, and whether each succeeded.

    A video has one frame per ``every`` steps. Success is None if the environment does not report it. The environment
    renders itself: ``render(size)``, or ``render()`` if it was made with ``render_mode="rgb_array"``.
    """
    frames: list[list[np.ndarray]] = [[] for _ in range(episodes)]
    steps = [0] * episodes

    def on_step(episode: int, one: Any) -> None:
        if steps[episode] % every == 0:
            frames[episode].append(render_frame(one, size))
        steps[episode] += 1

    with remarks.remarks():  # reported with the numbers
        done = evaluate(act, env, episodes, seed, episodes, on_step=on_step)
    won: list[bool | None] = [None] * episodes if done.success is None else [bool(w) for w in done.success]
    blank = [np.zeros_like(next((f[0] for f in frames if f), np.zeros((size, size, 3), np.uint8)))]
    return [np.stack(f or blank) for f in frames], won  # an episode that crashed at once has no frame


def render_frame(env: Any, size: int) -> np.ndarray:
    """Return the environment's own image, uint8 [H, W, 3], about ``size`` pixels high.

    Raise RunError if it has no ``render`` or cannot render.
    """
    render = getattr(env, "render", None)
    if render is None:
        raise RunError(f"{type(env).__name__} has no render(): add one that returns an image")
    sized = "size" in inspect.signature(render).parameters
    try:
        drawn = render(size) if sized else render()
    except DenoiseRLError:
        raise
    except Exception as error:  # a simulator's own: evaluation works without images
        raise RunError(f"{type(env).__name__} cannot render ({type(error).__name__}: {error})") from error
    if not isinstance(drawn, np.ndarray) or drawn.ndim != 3:
        raise RunError(f"{type(env).__name__} renders no image: make it with render_mode='rgb_array'")
    step = max(1, drawn.shape[0] // size)
    return np.ascontiguousarray(drawn[::step, ::step, :3]).astype(np.uint8)
