"""Check the name of a device before anything is computed on it."""

from __future__ import annotations

import torch

from denoiserl.core.errors import RunError


def resolve_device(name: str) -> str:
    """Return the name of a device; for "auto" that of a GPU (CUDA, then MPS) if there is one, else cpu."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def as_device(device: str | torch.device) -> torch.device:
    """Return the device of a name. Raise RunError if there is none of that name, or this torch cannot use it."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RunError(f"There is no device {str(device)!r}: use cpu, cuda, cuda:1 or mps.") from error
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise RunError("This torch sees no CUDA device: use device cpu, or install a CUDA build of torch.")
        if (found.index or 0) >= (count := torch.cuda.device_count()):
            raise RunError(f"There is no device {found}: this machine has {count}, use cuda:0 to cuda:{count - 1}.")
    elif found.type == "mps" and not torch.backends.mps.is_available():
        raise RunError("This torch sees no MPS device: use device cpu.")
    elif found.type not in ("cpu", "mps", "meta"):
        try:
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, ImportError) as error:
            raise RunError(f"This torch cannot use device {found}: use cpu, cuda, cuda:1 or mps.") from error
    return found
