"""Warnings about evaluations: equal start states, crashed episodes.

``evaluate`` and ``record`` warn with ``Remark``; results are stored together with these sentences.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from denoiserl.data.rollout import Fault
from denoiserl.envs.backends.faults import EnvFault

ALIKE = "begin with the same observation"


PATIENCE = 1000
"""environment steps after which an environment is named in which no episode has ended"""


class Remark(UserWarning):
    """A warning that belongs to the numbers of an evaluation or a data set."""


@contextmanager
def remarks() -> Iterator[list[str]]:
    """Collect the sentences of ``Remark`` warnings raised inside, each once; other warnings pass through."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Remark)
        try:
            yield said
        finally:
            said += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, Remark))
    for w in caught:
        if not issubclass(w.category, Remark):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def remark(sentences: Sequence[str]) -> None:
    """Warn of each sentence, with the stack level of the caller's caller."""
    for sentence in sentences:
        warnings.warn(sentence, Remark, stacklevel=3)


def row(tree: Any, i: int) -> bytes:
    """Return row i of observations [B, ...] as bytes, for comparison."""
    if isinstance(tree, dict):
        return b"".join(row(tree[k], i) for k in sorted(tree))
    return np.ascontiguousarray(tree[i]).tobytes()


def equal_start_notes(starts: Sequence[bytes], lengths: Any, returns: Any, name: str) -> list[str]:
    """Return a list with the warning about equal first observations, or an empty list.

    ``lengths`` and ``returns`` [N] are those of the episodes. A bandit (one start state, single-step episodes, returns
    that differ) gets no warning: its episodes are samples of the policy.
    """
    n, distinct = len(starts), len(set(starts))
    bandit = distinct == 1 and max(lengths, default=0) <= 1 and len(set(returns)) > 1
    if distinct == n or bandit:
        return []
    many = f"{distinct} distinct start{'' if distinct == 1 else 's'} of {n}"
    if distinct == 1:
        return [
            f"{many}: all episodes of {name} {ALIKE}. If nothing else differs, these are not {n} trials but one: make "
            "reset(seed=...) draw the start from its seed"
        ]
    return [f"{many}: episodes of {name} that {ALIKE} may be the same trial"]


def compare_resets(owner: Any, seeds: list[int], begin: Callable[[list[int]], Any]) -> tuple[Any, list[str]]:
    """Return the observations of ``begin(seeds)`` and a list of warnings.

    The list has one warning if the environment ignores its seeds, and is empty otherwise. To find out, one environment
    is reset twice with the same seed. Workers and batched environments are not checked.
    """
    before = owner.first_observation(seeds) if hasattr(owner, "first_observation") else None
    obs = begin(seeds)
    if before is None or _near(before, obs):
        return obs, []
    return obs, [
        f"the same seed gives other starts: {owner.name} ignores reset(seed=...), so these trials cannot be repeated "
        "and policies do not meet the same ones. In reset, seed the generator that draws the starts"
    ]


def _near(one: Any, many: Any) -> bool:
    """Return whether the first row of ``many`` equals ``one``, up to rounding."""
    if isinstance(many, dict):
        return isinstance(one, dict) and all(_near(one.get(k), v) for k, v in many.items())
    first = np.asarray(one)
    return first.shape == many.shape[1:] and (
        first.dtype.kind not in "fiub" or np.allclose(first, many[0], rtol=1e-4, atol=1e-6, equal_nan=True)
    )


def crash_notes(faults: dict[int, Fault], n: int, name: str) -> list[str]:
    """Return a list with the warning about crashed episodes, or an empty list. Raise EnvFault if all ``n`` crashed.

    ``faults``: {number of the episode: fault}.
    """
    if not faults:
        return []
    number, first = min(faults.items())
    if len(faults) == n:
        raise EnvFault(first, name, "every episode crashed: repair the environment, or the actions of the policy")
    numbers = ", ".join(map(str, sorted(faults)[:8])) + (", ..." if len(faults) > 8 else "")
    return [
        f"{len(faults)} of {n} episodes of {name} crashed and count as failures, with the return they had until then: "
        f"{numbers}. Episode {number} {first.what}, at step {first.step}"
    ]


def endless_note(name: str) -> str:
    """Return the sentence about an environment in which no episode ends."""
    return (
        f"No episode of {name} has ended after {PATIENCE} steps: if none ever ends, give a limit "
        "(--max-episode-steps N, or max_episode_steps=N)."
    )


def early_success_notes(count: int, n: int, name: str) -> list[str]:
    """Return a list with the warning that ``count`` of ``n`` episodes were solved at reset, or an empty list."""
    if not count:
        return []
    return [
        f"{count} of {n} episodes of {name} were solved before acting: reset reports success, whatever the policy does"
    ]


def first_step_success_notes(first: np.ndarray, lengths: np.ndarray, n: int, name: str) -> list[str]:
    """Return a list with the warning about episodes that succeed in their first step, or an empty list.

    ``first`` [N]: the step of the first success. Episodes of a single step give no warning.
    """
    count = int((first == 1).sum())
    if not count or lengths.max() <= 1:
        return []
    return [f"{count} of {n} episodes of {name} succeeded in their first step: check whether they begin solved"]
