"""Modes of a network: evaluation for checks, and gradient checkpointing without dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluation(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Set eval mode and full precision inside, without compilation and gradients, for a check of the network."""
    training = [m for m in net.modules() if m.training]
    net.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def checkpoint_in_eval(model: nn.Module | None) -> Iterator[None]:
    """Let layers of transformers with gradient checkpointing recompute their activations in eval mode too.

    They checkpoint only in training mode, so that flag is set around the checkpoint; their forward runs in eval mode.
    """
    layers: list[Any] = [] if model is None else [m for m in model.modules() if _recomputes(m) and not m.training]
    before = [layer._gradient_checkpointing_func for layer in layers]
    for layer, func in zip(layers, before, strict=True):
        layer.training, layer._gradient_checkpointing_func = True, partial(_in_eval, layer, func)
    try:
        yield
    finally:
        for layer, func in zip(layers, before, strict=True):
            layer.training, layer._gradient_checkpointing_func = False, func


def _recomputes(layer: Any) -> bool:
    named = any(c.__name__ == "GradientCheckpointingLayer" for c in type(layer).__mro__)
    return named and layer.gradient_checkpointing


def _in_eval(layer: nn.Module, func: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    """Run the checkpoint ``func(forward, *args)`` with the layer in eval mode, now and in the recomputation."""

    def quiet(*given: Any) -> Any:
        mode, layer.training = layer.training, False
        try:
            return forward(*given)
        finally:
            layer.training = mode

    return func(quiet, *args)
