"""Codecs: maps between data units and model units, for samples and for conditions."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import Tree, tensors


class Codec(Protocol):
    """A map between data units and model units: a frozen dataclass of numbers and tensors, saved with the policy."""

    def encode(self, data: Tree) -> Tree:
        """Convert data to model units."""
        ...

    def decode(self, sample: Tree) -> Tree:
        """Convert model units to data."""
        ...

    def condition(self, cond: Tree) -> Tree:
        """Convert a condition in data units (an observation, a prompt) to the denoiser's condition."""
        ...

    def initial_state(self, cond: Tree) -> Tree:
        """Return the state that a chain starts from if the condition fixes a part; None: the process's prior."""
        ...


@dataclass(frozen=True)
class IdentityCodec:
    """The codec of data in model units."""

    def encode(self, data: Tree) -> Tree:
        """Return ``data``."""
        return data

    def decode(self, sample: Tree) -> Tree:
        """Return ``sample``."""
        return sample

    def condition(self, cond: Tree) -> Tree:
        """Return ``cond``."""
        return cond

    def initial_state(self, cond: Tree) -> Tree:
        """Return None, the prior."""
        return None


def check_execution_horizon(execute: Any, event_shape: tuple[int, ...], codec: Any) -> int | None:
    """Return how many actions of a chunk are executed; None, all, is returned as it is.

    Raise InvalidInputError if the event is no chunk of actions [H, d], or if ``execute`` is not a whole number from 1
    to H (to the actions that the codec decodes, if it has a number ``execute``).
    """
    if execute is None:
        return None
    if len(event_shape) != 2:
        raise InvalidInputError(
            f"the policy decides {list(event_shape)}, not a chunk of actions [H, d]: it has no execution horizon; give "
            "None"
        )
    most = int(getattr(codec, "execute", event_shape[0]))
    if isinstance(execute, bool) or not isinstance(execute, numbers.Integral) or not 1 <= int(execute) <= most:
        raise InvalidInputError(
            f"execution_horizon is between 1 and the chunk's {most} actions, not {execute!r}: give an int, or None for "
            "all"
        )
    return int(execute)


def _ids(canvas: Any) -> Any:
    """Convert a canvas of ids to a tensor [B, L]. Raise InvalidInputError if it holds no whole numbers."""
    if canvas is None:
        return None
    canvas = tensors(canvas)
    if not isinstance(canvas, Tensor):
        raise InvalidInputError(
            "a prompt is a canvas of ids [B, L], not text or lists of different lengths: tokenize texts, and fill ids "
            "up with denoiserl.integrations.transformers.canvas(ids, length, mask)"
        )
    if canvas.is_floating_point() or canvas.is_complex() or canvas.dtype == torch.bool:
        raise InvalidInputError(f"a canvas holds ids, whole numbers, not {canvas.dtype}: give canvas.long()")
    return canvas.long()


@dataclass(frozen=True)
class InfillCodec:
    """The codec of prompts that are canvases [B, L]: tokens, and masks to be filled in. The chain starts from them.

    A canvas may come with the network's own arguments, as a dict: ``{"canvas": tokens, "attention_mask": ...}``.
    ``pad``: the id that fills short canvases on the left or right. The network gets ``padding`` [B, L], True in the
    runs of ``pad`` at both ends of a canvas, unless the dict has ``padding`` or ``attention_mask``. Inside a prompt the
    id is an ordinary token, and generated tokens are never padding (``pad`` may be the end of text).
    """

    pad: int | None = None

    def encode(self, data: Tree) -> Tree:
        """Return ``data``: tokens are model units."""
        return data

    def decode(self, sample: Tree) -> Tree:
        """Return ``sample``: tokens are data units."""
        return sample

    def condition(self, cond: Tree) -> Tree:
        """Return the network's own arguments and the padding, or None; the prompt itself is in the state."""
        canvas = self.initial_state(cond)
        given = {k: v for k, v in cond.items() if k != "canvas"} if isinstance(cond, dict) else {}
        if self.pad is not None and canvas is not None and not {"padding", "attention_mask"} & given.keys():
            given["padding"] = self.padding_mask(canvas)
        return given or None

    def initial_state(self, cond: Tree) -> Tree:
        """Return the canvas."""
        if isinstance(cond, dict) and "canvas" not in cond:
            raise InvalidInputError(
                f"a prompt of several parts holds its tokens as 'canvas'; this one has {sorted(cond)}: name them so, "
                "or give the tokens alone"
            )
        return _ids(cond["canvas"] if isinstance(cond, dict) else cond)

    def padding_mask(self, canvas: Tensor) -> Tensor:
        """Return the runs of ``pad`` at both ends of each row, [B, L] bool."""
        blank = (canvas == self.pad).long()
        return (blank.cumprod(-1) + blank.flip(-1).cumprod(-1).flip(-1)).bool()
