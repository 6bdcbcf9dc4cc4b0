"""Checks of sample values: finite, of sane scale, inside action bounds, vocabularies and the range of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.doctor.finding import Finding
from denoiserl.policy.codec import IdentityCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Autoregressive, Diffusion, Masked


def check_ranges(policy: Policy, sample: Tensor, decoded: Tensor, spec: Any = None) -> Finding:
    """Check samples in model units and in data units: finite, of sane scale, inside bounds and vocabularies.

    ``spec``: ``Collector.spec`` of the environment, if there is one.
    """
    name = "values"
    for what, v in (("model units", sample), ("data units", decoded)):
        if v.is_floating_point() and not bool(v.isfinite().all()):
            said = f"{int((~v.isfinite()).sum())} of {v.numel()} numbers of samples in {what} are NaN or infinite"
            return Finding(name, "error", said, "Check the weights, the codec and both ends of the schedule.")
    if isinstance(policy.process, Masked | Autoregressive):
        return _tokens(policy.process, sample)
    if not sample.is_floating_point():
        return Finding(name, "ok", f"{len(sample.unique())} different actions in {len(sample)} samples")
    found = _scale(policy, sample)
    if spec is not None and spec.choices is None:
        found = _box(decoded, spec) or found
    elif spec is None and _picture(policy):
        found = _pictures(policy, decoded) or found
    return found


def _tokens(process: Masked | Autoregressive, tokens: Tensor) -> Finding:
    if bool(((tokens < 0) | (tokens >= process.vocab)).any()):
        least, most = int(tokens.min()), int(tokens.max())
        said = f"samples hold tokens {least} to {most}, the vocabulary is 0 to {process.vocab - 1}"
        return Finding(
            "values", "error", said, "Remove surplus outputs: TokenDenoiser(net, vocab=...), or correct Masked(vocab)."
        )
    return Finding("values", "ok", f"{len(tokens.unique())} of {process.vocab} tokens occur in {len(tokens)} samples")


def _scale(policy: Policy, sample: Tensor) -> Finding:
    std, most = sample.flatten(1).std(0), float(sample.abs().max())
    constant = (
        (std <= 1e-4 * std.mean()).nonzero().flatten().tolist() if float(std.mean()) > 0 else list(range(len(std)))
    )
    said = f"samples in model units have std {float(std.mean()):.2g}, largest {most:.2g}"
    if len(constant) == len(std):
        return Finding("values", "error", f"{said}: all samples are equal", "Train the network; see 'network'.")
    process = policy.process
    if isinstance(process, Diffusion) and process.clip is not None:
        at = float((sample.abs() >= 0.999 * process.clip).float().mean())
        said += f", {at:.0%} at the clip of {process.clip:g}"
        if at > 0.5:
            return Finding("values", "warning", said, "Most numbers are clipped: use the codec's scale of training.")
    if not 0.02 < float(std.mean()) < 5:
        return Finding("values", "warning", said, "Diffusion needs data of about unit scale: normalise in the codec.")
    if constant:
        return Finding("values", "note", f"{said}; constant dimensions: {constant[:8]}")
    return Finding("values", "ok", said)


def _box(decoded: Tensor, spec: Any) -> Finding | None:
    """Compare actions [n, (T_a,) d] with the environment's bounds."""
    actions = decoded.detach().cpu().float()
    if spec.action and tuple(actions.shape[-len(spec.action) :]) != tuple(spec.action):
        said = f"a chunk is {list(actions.shape[1:])}, the environment takes actions {list(spec.action)}"
        return Finding("values", "error", said, "The last axis of the event is one action: check event and codec.")
    low, high = (torch.as_tensor(np.asarray(v), dtype=torch.float32) for v in (spec.low, spec.high))
    slack = 1e-3 * (high - low).nan_to_num(posinf=0.0)
    outside = (actions < low - slack) | (actions > high + slack)
    share, flat = float(outside.float().mean()), actions.flatten(0, -2) if actions.ndim > 1 else actions[:, None]
    width = (high - low).flatten()
    constant = (flat.std(0) <= 1e-4 * torch.where(width.isfinite(), width, 1.0)).nonzero().flatten().tolist()
    each = outside.flatten(0, -2).float().mean(0) if actions.ndim > 1 else outside.float()[None].mean(1)
    if share > 0.02:
        worst = int(each.argmax())
        return Finding(
            "values",
            "warning",
            f"{share:.0%} of the actions lie outside the environment's bounds and are clipped (dimension {worst}: "
            f"{float(each[worst]):.0%})",
            "Clipped parts have no effect and no gradient: fit the codec to the bounds, or rescale the actions.",
        )
    if float(((flat.amax(0) - flat.amin(0)) / torch.where(width.isfinite() & (width > 0), width, 1.0)).max()) < 0.02:
        said = "actions use less than 2 % of the environment's bounds in every dimension"
        return Finding("values", "warning", said, "Check that the codec returns actions in the environment's units.")
    if constant:
        return Finding("values", "note", f"constant action dimensions: {constant}")
    return None


def _picture(policy: Policy) -> bool:
    return len(policy.event_shape) == 3 and policy.event_shape[0] in (1, 3, 4)


def _pictures(policy: Policy, decoded: Tensor) -> Finding | None:
    """Compare images with [−1, 1] where no codec clamps them."""
    over = float((decoded.abs() > 1.05).float().mean())
    if isinstance(policy.codec, IdentityCodec) and over > 0.1:
        said = f"{over:.0%} of the pixels lie outside [-1, 1] by more than 5 %"
        return Finding("values", "warning", said, "Rewards see values that no image shows: clip or clamp in the codec.")
    return None
