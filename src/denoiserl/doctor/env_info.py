"""Versions and hardware for a bug report."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata

import torch


def env_info(commit: str | None = None) -> str:
    """Return versions, machine and the packages of every extra, one per line. ``commit``: of the working tree."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus += ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    threads = {name: os.environ.get(name, "unset") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    lines = {
        "denoiserl": _version("denoiserl") + (f" at commit {commit}" if commit else ""),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "OS": platform.platform(),
        "CPU": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "devices": ", ".join(["cpu", *gpus]),
        "threads": ", ".join([f"torch {torch.get_num_threads()}", *(f"{k} {v}" for k, v in threads.items())]),
    }
    for extra, names in _requirements().items():
        lines[f"[{extra}]" if extra else "needed"] = ", ".join(f"{name} {_version(name)}" for name in names)
    return "\n".join(f"{name:<11}{said}" for name, said in lines.items())


def _requirements() -> dict[str, list[str]]:
    """Return the packages that denoiserl requires by extra; those without an extra are under ""."""
    try:
        requirements = metadata.requires("denoiserl") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in requirements:
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)", line)
        if name and name[0] != "denoiserl":  # an extra that combines others
            found.setdefault(extra[1] if extra else "", []).append(name[0])
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
