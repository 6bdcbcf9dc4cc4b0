"""Load what a user gives to learn from a reward: prompts from a file, and a reward function of texts and samples."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.core.imports import import_object
from denoiserl.core.rng import Rng
from denoiserl.rewards import rate

FEW = 5
"""number of prompts below which none is held out"""


@dataclass(frozen=True)
class PromptList:
    """Prompts of a user: ``texts``, and the other fields of their rows, {name: list}."""

    texts: tuple[str, ...]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, index: Sequence[int]) -> dict[str, list[Any]]:
        """Return the rows ``index`` as {"prompts": texts, **columns}."""
        columns = {"prompts": list(self.texts), **self.columns}
        return {name: [values[i] for i in index] for name, values in columns.items()}


def load_prompts(word: str) -> PromptList:
    """Return the prompts that a word names.

    | word | prompts |
    |---|---|
    | prompts.txt | one per line; empty lines are left out |
    | prompts.jsonl | one row per line, {"prompt": text, ...}; other fields reach the reward by their names |
    | my_file.py:prompts | a function without arguments that returns a list of texts, or of such rows |

    Repeated prompts are kept once, with a warning. Raise RunError for a missing or empty file, or other rows.
    """
    place, _, function = word.rpartition(":")
    if place and not Path(word).exists():
        rows = list(import_object(f"{place}:{function}")())
    else:
        rows = _read_rows(Path(word))
    found: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(rows):
        row = {"prompt": row} if isinstance(row, str) else row
        if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise RunError(f'{word}: prompt {i + 1} is {row!r}: give texts, or rows such as {{"prompt": "a cat"}}')
        found.setdefault(row["prompt"], dict(row))
    if not found:
        raise RunError(f"{word} holds no prompt: give at least one, one per line")
    if len(found) < len(rows):
        warnings.warn(f"{word}: {len(rows) - len(found)} repeated prompts are left out", stacklevel=2)
    names = dict.fromkeys(name for row in found.values() for name in row if name != "prompt")
    if "prompts" in names:
        raise RunError(f'{word} has a field "prompts", which the reward gets as the texts: rename it')
    return PromptList(tuple(found), {name: [row.get(name) for row in found.values()] for name in names})


def _read_rows(path: Path) -> list[Any]:
    if not path.is_file():
        raise RunError(f"There are no prompts at {path}: give a text file, a .jsonl file, or my_file.py:prompts")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is no text in UTF-8 ({error.reason}): save it as UTF-8") from None
    if path.suffix != ".jsonl":
        return [line for line in lines if line]
    rows = []
    for i, line in enumerate(lines):
        if line:
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise RunError(f"{path}, line {i + 1} is no JSON ({error}): correct it") from None
    return rows


def split_prompts(count: int, held_out_fraction: float) -> tuple[list[int], list[int]]:
    """Return the numbers of the training prompts and of the held-out ones; the same split for all seeds.

    Of fewer than ``FEW`` prompts, or with a fraction of 0, all are in both parts.
    """
    if count < FEW or held_out_fraction == 0:
        return list(range(count)), list(range(count))
    order = Rng(0).permutation(count).tolist()
    held_out = min(count - 1, max(1, round(held_out_fraction * count)))
    return sorted(order[held_out:]), sorted(order[:held_out])


def load_reward(word: str, prompts: PromptList, kind: str) -> Callable[[Any, Sequence[int]], Any]:
    """Return ``reward(samples, index)`` of the function that a word names; ``index``: numbers of the prompts.

    The function takes the samples (``kind``: what they are), and by name what it asks for: ``prompts`` (the texts), or
    fields of the prompts' rows. It returns one number per sample: a list, an array or a tensor; None is no answer.
    Raise RunError for a function that asks for something else.
    """
    function = import_object(word)
    if not callable(function):
        raise RunError(f"{word} is a {type(function).__name__}: name a function ({kind}, prompts) -> one number each")
    parameters = list(inspect.signature(function).parameters.values())
    known = {"prompts", *prompts.columns}
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise RunError(f"{word} takes no samples: its first parameter is the list of {kind}")
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = [p.name for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    second_is_prompts = len(names) == 1 and names[0] not in known and not prompts.columns
    for p in parameters[1:]:
        if p.name in names and p.name not in known and p.default is p.empty and not second_is_prompts:
            raise RunError(f"{word}: {unknown_name_message(p.name, known, 'field of the prompts')}")

    def reward(samples: Any, index: Sequence[int]) -> Any:
        rows = prompts.select(index)
        if second_is_prompts:
            return function(samples, rows["prompts"])
        return function(samples, **{n: v for n, v in rows.items() if takes_all or n in names})

    return reward


def trial_rewards(reward: Any, sample: Any, prompts: Any) -> dict[str, Tensor]:
    """Return the rewards of trials, float32 [n] on the CPU: the total, and named parts if there are any.

    A trial without an answer (None or NaN) counts as the lowest reward of the others, and ``missing_reward`` is their
    share. Raise InvalidInputError if no trial has an answer.
    """
    total, named = rate(reward, sample, prompts)
    found = {"reward": total, **({} if set(named) == {"reward"} else named)}
    known = total.isfinite()
    if not bool(known.any()):
        raise InvalidInputError(f"the reward gave no number in {len(total)} trials: it must answer some of them")
    if not bool(known.all()):
        found = {name: torch.where(known, v, v[known].min()) for name, v in found.items()}
        found["missing_reward"] = (~known).float()
    return {name: value.cpu() for name, value in found.items()}


@contextmanager
def quiet_hub(*libraries: Any) -> Iterator[None]:
    """Hide the bars and advice of diffusers or transformers inside the context; errors are raised as ever."""
    before = [(each.logging, each.logging.get_verbosity()) for each in (library.utils for library in libraries)]
    for logging, _ in before:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logging, level in before:
            logging.set_verbosity(level)
            logging.enable_progress_bar()


def to_pictures(sample: Tensor) -> list[Any]:
    """Return images [B, C, H, W] in [0, 1] as a list of PIL pictures; one channel is grey."""
    from PIL import Image

    if sample.ndim != 4 or sample.shape[1] not in (1, 3):
        raise InvalidInputError(f"samples of shape {list(sample.shape[1:])} are no pictures: take them as tensors")
    levels = (sample.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in levels]
