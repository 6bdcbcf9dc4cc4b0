"""The border to other libraries: their models, schedulers and adapters, converted once and unmodified.

Inside the library there is one time axis, one estimate and one way to score a step; what another library calls a
timestep, a scheduler or a pipeline becomes that here. ``integrations.diffusers`` takes models and whole pipelines,
``integrations.schedulers`` their noise levels and time grids, ``integrations.transformers`` masked and left-to-right
language models, ``integrations.adapters`` puts LoRA on any of them, and writes and reads it. Nothing here imports those
libraries before it is asked to.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    """Return a module of the border, imported when first asked for."""
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
