"""The origin of a record: time, commit and versions."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """Return the time, the commit and the versions for a record."""
    return {"created": utc_time(), "commit": commit(), "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of this package, torch and Python."""
    try:
        own = importlib.metadata.version("denoiserl")
    except importlib.metadata.PackageNotFoundError:
        own = "source"
    return {"denoiserl": own, "torch": torch.__version__, "python": platform.python_version()}


def commit() -> str | None:
    """Return the commit of this module's working tree, if there is one; a "+" marks uncommitted changes."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def utc_time() -> str:
    """Return the time in UTC, as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
