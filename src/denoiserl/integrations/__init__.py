"""Models, schedulers and adapters of other libraries, converted once and unmodified.

Inside the library there is one time axis, one estimate and one way to score a step. This package converts another
library's timesteps, schedulers and pipelines to them. ``integrations.diffusers`` reads models and whole pipelines,
``integrations.schedulers`` their noise levels and time grids, ``integrations.transformers`` masked and left-to-right
language models. ``integrations.adapters`` puts LoRA on any of them, and writes and reads it. These libraries are only
imported when needed.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    """Return a module of this package, imported on first access."""
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
