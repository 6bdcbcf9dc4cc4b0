"""Language models of transformers, unmodified: masked ones, and left-to-right ones.

``masked_lm(model, mask)`` and ``causal_lm(model)`` are denoisers of tokens; ``masked_policy`` and ``causal_policy``
put a decoder around them. A left-to-right architecture becomes a masked model with ``attend="all"``, which shows it
every position by a 4-d attention mask. Tokenisers stay outside: prompts are lists of ids, see ``canvas``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from denoiserl.errors import BadRun, BadSignal, nearest
from denoiserl.hub.families import plain
from denoiserl.policy import Infill, Policy
from denoiserl.process import Autoregressive, Logits, Masked, grid

Attend = Literal["own", "all"]


class Net(nn.Module):
    """A language model as a raw network: tokens [B, L] to logits [B, L, V].

    ``attend``: ``own`` leaves the model's attention as it is; ``all`` shows every position to every other, whatever
    the architecture (a Llama that fills masks). ``fill``: an id that stands in for ids beyond the model's vocabulary,
    the open positions of left-to-right decoding, which a causal model never looks at. A condition is None or a dict of
    the model's own arguments, batch first; ``attention_mask`` [B, L] is 0 at padding.
    """

    def __init__(self, model: nn.Module, attend: Attend = "own", fill: int | None = None) -> None:
        super().__init__()
        if attend not in ("own", "all"):
            raise BadRun(nearest(attend, ("own", "all"), "attention"))
        base = plain(model)
        self.known = list(inspect.signature(base.forward).parameters)
        if "input_ids" not in self.known or size(model) is None:
            raise BadRun(f"a {type(base).__name__} is no language model of transformers: it reads no input_ids")
        self.model, self.attend, self.fill = model.eval(), attend, fill

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"model": self.model, "attend": self.attend, "fill": self.fill}

    def encode(self, cond: Any) -> dict[str, Tensor]:
        """The model's own arguments."""
        given = {} if cond is None else cond
        if not isinstance(given, dict):
            raise BadSignal("the condition of a language model is a dict of its arguments, such as attention_mask")
        for name in given:
            if name not in self.known or name == "input_ids":
                raise BadSignal(nearest(name, self.known, "argument of this model"))
        return given

    def forward(self, x: Tensor, clock: Any = None, context: dict[str, Tensor] | None = None) -> Tensor:
        given: dict[str, Any] = dict(context or {})
        if self.fill is not None:
            x = torch.where(x < size(self.model), x, self.fill)  # type: ignore[operator]
        if self.attend == "all":
            given["attention_mask"] = _everyone(x, given.get("attention_mask"), next(self.model.parameters()).dtype)
        if "use_cache" in self.known:
            given["use_cache"] = False
        return self.model(input_ids=x, **given).logits


def _everyone(x: Tensor, real: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, [B, 1, L, L]: 0 between real positions, the least number towards padding."""
    hidden = torch.zeros_like(x, dtype=dtype)
    if real is not None:
        hidden = hidden.masked_fill(real == 0, torch.finfo(dtype).min)
    return hidden[:, None, None, :].expand(-1, 1, x.shape[1], -1)


def size(model: Any) -> int | None:
    """The vocabulary's size, mask and special tokens included."""
    return getattr(getattr(model, "config", None), "vocab_size", None)


def masked_lm(
    model: nn.Module, mask: int, banned: Sequence[int] = (), shift: bool = False, attend: Attend = "own"
) -> Logits:
    """An unmodified masked language model as a denoiser; it never predicts its ``mask`` nor the ids ``banned``.

    ``shift``: row i of the model speaks about token i + 1 (models made from left-to-right ones).
    """
    net, vocab, never = Net(model, attend), size(model), tuple(sorted({mask, *banned}))
    for token in never:
        if vocab is None or not 0 <= token < vocab:
            raise BadRun(f"id {token} is not in the model's vocabulary of {vocab}: resize its embeddings first")
    return Logits(net, shift=shift, banned=never).eval()  # dropout only inside fit


def causal_lm(model: nn.Module, start: int | None = None) -> Logits:
    """An unmodified left-to-right model as a denoiser for ``Autoregressive``.

    Without ``start`` every sequence begins with a given token (a prompt). With it, the model reads that id first and
    writes the first token too.
    """
    return Logits(Net(model, fill=0), shift=start is None, start=start).eval()


def masked_policy(
    model: nn.Module,
    mask: int,
    length: int,
    n: int,
    banned: Sequence[int] = (),
    shift: bool = False,
    attend: Attend = "own",
    **decoder: Any,
) -> Policy:
    """A policy that fills canvases [B, length] in n steps; ``decoder``: ``Masked``'s order, tokens, temperature, ..."""
    denoiser = masked_lm(model, mask, banned, shift, attend)
    process = Masked(size(model) or 0, mask_id=mask, **decoder)
    return Policy.of(process, denoiser, (length,), process.steps(grid(n)), codec=Infill())


def causal_policy(model: nn.Module, length: int, n: int, start: int | None = None, **decoder: Any) -> Policy:
    """A policy that writes canvases [B, length] from left to right, n tokens; open positions hold the id ``vocab``."""
    process = Autoregressive(size(model) or 0, **decoder)
    return Policy.of(process, causal_lm(model, start), (length,), process.steps(grid(n)), codec=Infill())


def canvas(prompts: Sequence[Sequence[int]], length: int, mask: int, end: Sequence[int] = ()) -> Tensor:
    """Prompts (ids) as canvases [P, length]: the prompt, then masks to write on, then the ids ``end``."""
    rows = []
    for i, ids in enumerate(prompts):
        room = length - len(ids) - len(end)
        if room < 1:
            raise BadSignal(f"prompt {i} has {len(ids)} tokens: a canvas of {length} leaves no room for an answer")
        if mask in ids:
            raise BadSignal(f"prompt {i} contains the mask {mask}: it would be written over")
        rows.append([*ids, *[mask] * room, *end])
    return torch.tensor(rows, dtype=torch.int64)
