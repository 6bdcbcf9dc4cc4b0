"""Denoisers and policies of language models, and canvases of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.integrations.transformers.network import Attend, Net
from denoiserl.integrations.transformers.sizes import check_length, size, text_config, tokens
from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Autoregressive, Masked, TokenDenoiser, time_grid


def masked_lm(
    model: nn.Module,
    mask: int,
    banned: Sequence[int] = (),
    shift: bool = False,
    attend: Attend = "own",
    vocab: int | None = None,
) -> TokenDenoiser:
    """Return an unmodified masked language model as a denoiser; it never predicts its ``mask`` nor ``banned`` ids.

    ``shift``: row i of the model predicts token i + 1 (models made from left-to-right ones). ``vocab``: number of ids
    that are tokens, ``len(tokenizer)``; later rows of the model are never predicted (None: it has no such rows). Raise
    RunError for an id outside the vocabulary.
    """
    net, rows, never = Net(model, attend), size(model), sorted({mask, *banned})
    for token in never:
        if rows is None or not 0 <= token < rows:
            raise RunError(f"id {token} is not in the model's vocabulary of {rows}: resize its embeddings first")
    known = tokens(model, vocab)
    return TokenDenoiser(net, shift, known, tuple(v for v in never if v < known)).eval()  # dropout only inside fit


def causal_lm(model: nn.Module, start: int | None = None, vocab: int | None = None) -> TokenDenoiser:
    """Return an unmodified left-to-right model as a denoiser for ``Autoregressive``.

    Without ``start`` every sequence begins with a given token (a prompt). With it, the model reads that id first and
    predicts the first token too. ``vocab``: see ``masked_lm``. Raise RunError if the model reads later tokens.
    """
    net = Net(model, fill=0)
    return TokenDenoiser(net, start is None, tokens(model, vocab), start=start).eval()


def masked_policy(
    model: nn.Module,
    mask: int,
    length: int,
    n: int,
    banned: Sequence[int] = (),
    shift: bool = False,
    attend: Attend = "own",
    vocab: int | None = None,
    pad: int | Literal["model"] | None = "model",
    **decoder: Any,
) -> Policy:
    """Return a policy that fills canvases [B, length] in n steps.

    ``decoder``: ``Masked``'s order, tokens, temperature, end. ``pad``: the id that pads short canvases on either side
    and is hidden from the model (see ``InfillCodec``), by default the model's ``pad_token_id``. Arguments of the model
    come with a canvas in a dict, ``{"canvas": tokens, "attention_mask": mask}``. ``vocab``: see ``masked_lm``.
    """
    denoiser = masked_lm(model, mask, banned, shift, attend, vocab)
    check_length(model, length)
    process = Masked(denoiser.vocab or 0, mask_id=mask, **decoder)
    return Policy.of(process, denoiser, (length,), process.steps(time_grid(n)), codec=InfillCodec(_pad(model, pad)))


def causal_policy(
    model: nn.Module,
    length: int,
    n: int,
    start: int | None = None,
    vocab: int | None = None,
    pad: int | Literal["model"] | None = "model",
    **decoder: Any,
) -> Policy:
    """Return a policy that writes canvases [B, length] from left to right, n tokens.

    Open positions hold the id ``vocab``, by default the model's. ``pad``: see ``masked_policy``; ``decoder``:
    temperature, top_k, end.
    """
    denoiser = causal_lm(model, start, vocab)
    check_length(model, length)
    process = Autoregressive(denoiser.vocab or 0, **decoder)
    return Policy.of(process, denoiser, (length,), process.steps(time_grid(n)), codec=InfillCodec(_pad(model, pad)))


def _pad(model: nn.Module, pad: int | str | None) -> Any:
    return getattr(text_config(model), "pad_token_id", None) if pad == "model" else pad


def canvas(prompts: Sequence[Sequence[int]], length: int, mask: int, end: Sequence[int] = ()) -> Tensor:
    """Return prompts (ids) as canvases [P, length]: the prompt, then masks to fill, then the ids ``end``.

    An ``end`` that equals the padding's id would be hidden: make the policy with ``pad=None`` then.
    """
    rows = []
    for i, ids in enumerate(prompts):
        if isinstance(prompts, str) or isinstance(ids, str | int):
            raise InvalidInputError(
                "prompts are lists of ids, one per row: pass tokenizer(texts)['input_ids'], or [ids] for one"
            )
        room = length - len(ids) - len(end)
        if room < 1:
            raise InvalidInputError(
                f"prompt {i} has {len(ids)} tokens: a canvas of {length} has no room for an answer; make it longer"
            )
        if mask in ids:
            raise InvalidInputError(f"prompt {i} contains the mask {mask}, which would be overwritten: remove it")
        rows.append([*ids, *[mask] * room, *end])
    return torch.tensor(rows, dtype=torch.int64)
