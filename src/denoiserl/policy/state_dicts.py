"""State dicts of networks: names without wrappers, checked shapes, and fingerprints."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import RunError

SAMPLE = 256
"""numbers of a tensor that its fingerprint reads"""


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a fingerprint of tensors: names, shapes, precisions, and ``SAMPLE`` evenly spread numbers of each."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().reshape(-1)
        sha.update(f"{name} {tuple(tensors[name].shape)} {value.dtype}".encode())
        some = value[:: max(1, value.numel() // SAMPLE)].cpu().contiguous()
        sha.update(some.view(torch.uint8).numpy().tobytes() if some.numel() else b"")
    return sha.hexdigest()


WRAPPERS = ("_orig_mod", "module")
"""parts that ``torch.compile``, ``DataParallel`` and ``AveragedModel`` add to the names of a network"""


def strip_prefix(tensors: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return ``tensors`` under ``names`` if they differ by a prefix or a wrapper alone; else unchanged.

    A prefix that all keys share (``module.``, ``ema_model.``, ``base_model.model.``) is dropped if more of ``names``
    are found without it. The parts of a name in ``WRAPPERS`` are ignored at any depth, on both sides.
    """
    names = set(names)
    best, found = tensors, len(names & tensors.keys())
    own = _bare(names)
    for depth in range(len(_prefix(tensors)) + 1):
        if found == len(names):
            break
        keys = {key: key.split(".", depth)[-1] for key in tensors}
        bare = _bare(keys.values())
        for known in ({}, {key: own[short] for short, key in bare.items() if short in own}):
            made = {known.get(key, key): tensors[full] for full, key in keys.items()}
            if len(made) == len(tensors) and len(names & made.keys()) > found:
                best, found = made, len(names & made.keys())
    return best


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Return names by their form without wrappers; names that share a form are left out."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(part for part in name.split(".") if part not in WRAPPERS), []).append(name)
    return {short: full[0] for short, full in groups.items() if len(full) == 1}


def _prefix(names: Iterable[str]) -> list[str]:
    """Return the leading parts that all names share, the last part of a name excepted."""
    parts = [name.split(".")[:-1] for name in names]
    same = zip(*parts, strict=False) if parts else ()
    return [each[0] for each in itertools.takewhile(lambda each: len(set(each)) == 1, same)]


def load_checked(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load a state dict. A wrapper's prefix is dropped; raise RunError with names and shapes if the rest differs."""
    own = module.state_dict()
    tensors = strip_prefix(tensors, own)
    check_same_shapes(own, tensors, "the network")
    module.load_state_dict(tensors)


def check_same_shapes(own: dict[str, Tensor], tensors: dict[str, Tensor], what: str) -> None:
    """Raise RunError if the names or shapes of tensors differ from those of ``own``."""
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{k}: {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in sorted(own.keys() & tensors.keys())
        if own[k].shape != tensors[k].shape
    ]
    if missing or surplus or shapes:
        first = f".{missing[0]}" if missing else ""
        under = [key.removesuffix(first[1:]) for key in surplus if first and key.endswith(first)]
        hint = f". They lie under the prefix {' or '.join(map(repr, under))}: give the tensors of one" if under else ""
        raise RunError(
            f"these weights belong to another network, or other parts of it are frozen ({what}): missing "
            f"{missing[:5]}, surplus {surplus[:5]}, other shapes {shapes[:5]}{hint}"
        )
