"""Sizes of language models, from their configurations and embeddings: vocabulary, positions, tolerance."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import RunError


def text_config(model: Any) -> Any:
    """Return the configuration of a model's text part, or None."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def size(model: Any) -> int | None:
    """Return the size of the vocabulary, mask and special tokens included; None if it is unknown."""
    return getattr(text_config(model), "vocab_size", None)


def input_rows(base: Any) -> int:
    """Return the number of ids that a model can read: its embedding's rows, or the vocabulary's size if unknown."""
    try:
        return base.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return size(base) or 0


def first_position(base: nn.Module) -> int:
    """Return the number of a model's first position: 2 for some (Nystromformer, YOSO, MRA)."""
    own = next((b for name, b in base.named_buffers() if name.endswith("position_ids")), None)
    return 0 if own is None or own.is_meta or own.numel() == 0 else int(own.flatten()[0])


def counts_from(model: nn.Module) -> int | None:
    """Return the padding id from which a model counts its own positions (RoBERTa and relatives); else None."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "padding_idx"):  # I-BERT's is no nn.Embedding
            return getattr(module, "padding_idx", None)
    return None


def tokens(model: nn.Module, vocab: int | None) -> int:
    """Return how many ids are tokens: ``vocab``, or the model's rows. Raise RunError if ``vocab`` exceeds the rows."""
    rows = size(model) or 0
    if vocab is None:
        if rows % 64 == 0:
            warnings.warn(
                f"the model has {rows} rows of vocabulary, a multiple of 64, as padded vocabularies have: pass "
                "vocab=len(tokenizer), or ids without a token may be drawn",
                stacklevel=3,
            )
        return rows
    if not 0 < vocab <= rows:
        raise RunError(f"vocab={vocab} does not fit the model's vocabulary of {rows} rows: give 1 to {rows}")
    return vocab


def check_length(model: nn.Module, length: int) -> None:
    """Raise RunError if sequences of ``length`` have more positions than the model."""
    most, own = getattr(text_config(model), "max_position_embeddings", None), counts_from(model)
    most = most if most is None or own is None else most - own - 1
    if most is not None and 0 < most < length:
        raise RunError(
            f"sequences of {length} do not fit a model of {most} positions: make them shorter, or raise its "
            "max_position_embeddings if it was trained to go beyond"
        )


def tolerance(weight: Tensor) -> float:
    """Return the relative difference above which two outputs differ by more than rounding."""
    return torch.finfo(weight.dtype if weight.is_floating_point() else torch.bfloat16).eps ** 0.5
