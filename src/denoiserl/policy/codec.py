"""Codecs: maps between data units and model units, for samples and for conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import Tree, tensors


class Codec(Protocol):
    """Data units ↔ model units. A frozen dataclass whose fields are numbers and tensors, so that it is saved."""

    def encode(self, data: Tree) -> Tree:
        """Data to model units."""
        ...

    def decode(self, sample: Tree) -> Tree:
        """Model units to data."""
        ...

    def condition(self, cond: Tree) -> Tree:
        """A condition in data units (an observation, a prompt) to what the denoiser encodes."""
        ...

    def initial_state(self, cond: Tree) -> Tree:
        """The state that a chain starts from, where the condition fixes part of it; None: the process's prior."""
        ...


@dataclass(frozen=True)
class IdentityCodec:
    """Data are in model units already."""

    def encode(self, data: Tree) -> Tree:
        """Nothing changes."""
        return data

    def decode(self, sample: Tree) -> Tree:
        """Nothing changes."""
        return sample

    def condition(self, cond: Tree) -> Tree:
        """Nothing changes."""
        return cond

    def initial_state(self, cond: Tree) -> Tree:
        """The prior."""
        return None


def _ids(canvas: Any) -> Any:
    """Return a canvas of ids, a tensor, numpy array or lists, as a tensor [B, L]. Raise InvalidInputError for anything
    else."""
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
    """Prompts are canvases [B, L]: tokens, with masks where something is to be written. The chain starts there.

    A canvas may come with the network's own arguments, as a dict: ``{"canvas": tokens, "attention_mask": ...}``.
    ``pad``: the id that fills short canvases up on the left or right. The network is told, ``padding`` [B, L] is True
    in the runs of ``pad`` at both ends of a canvas, unless the dict says itself what is hidden. Inside a prompt the id
    is an ordinary token, and what is written later never counts as padding (``pad`` may be the end of text).
    """

    pad: int | None = None

    def encode(self, data: Tree) -> Tree:
        """Tokens are tokens."""
        return data

    def decode(self, sample: Tree) -> Tree:
        """Tokens are tokens."""
        return sample

    def condition(self, cond: Tree) -> Tree:
        """The network's own arguments and the padding; it sees the prompt in the state. None where there are none."""
        canvas = self.initial_state(cond)
        given = {k: v for k, v in cond.items() if k != "canvas"} if isinstance(cond, dict) else {}
        if self.pad is not None and canvas is not None and not {"padding", "attention_mask"} & given.keys():
            given["padding"] = self.padding_mask(canvas)
        return given or None

    def initial_state(self, cond: Tree) -> Tree:
        """The canvas."""
        if isinstance(cond, dict) and "canvas" not in cond:
            raise InvalidInputError(
                f"a prompt of several parts holds its tokens as 'canvas'; this one has {sorted(cond)}: name them so, "
                "or give the tokens alone"
            )
        return _ids(cond["canvas"] if isinstance(cond, dict) else cond)

    def padding_mask(self, canvas: Tensor) -> Tensor:
        """[B, L] bool: the runs of ``pad`` at both ends of each row."""
        blank = (canvas == self.pad).long()
        return (blank.cumprod(-1) + blank.flip(-1).cumprod(-1).flip(-1)).bool()
