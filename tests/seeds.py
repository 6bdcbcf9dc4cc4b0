"""Shift the seeds of a test run: what a learner reaches must not hang on the seed that a test was written with.

``pytest --seed-shift 1`` adds a constant to every seed that torch, numpy, Python or ``Rng`` is given, in the tests and
in the library alike. A test of numbers that another process or a file holds, or of seeds themselves, carries
``@pytest.mark.fixed_seed``.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

STEP = 7919


def apply(number: int) -> None:
    """Add ``number`` · 7919 to every seed that this process is given from now on."""
    if not number:
        return
    more = number * STEP

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            super().manual_seed((int(seed) + more) % 2**63)
            return self

    class SeedSequence(np.random.SeedSequence):
        def __init__(self, entropy: Any = None, **named: Any) -> None:
            if isinstance(entropy, int | np.integer):
                entropy = int(entropy) + more
            elif entropy is not None:
                entropy = [int(n) for n in entropy] + [more]
            super().__init__(entropy, **named)

    manual_seed, default_rng, seed_python = torch.manual_seed, np.random.default_rng, random.seed
    torch.Generator = Generator  # type: ignore[misc]
    torch.manual_seed = lambda seed: manual_seed((int(seed) + more) % 2**63)  # type: ignore[assignment]
    np.random.SeedSequence = SeedSequence  # type: ignore[misc]
    np.random.default_rng = lambda seed=None: default_rng(  # type: ignore[assignment]
        seed + more if isinstance(seed, int | np.integer) else seed
    )
    random.seed = lambda a=None, version=2: seed_python(a + more if isinstance(a, int) else a, version)  # type: ignore

    from denoiserl.core.rng import Rng

    rows = Rng.rows.__func__  # type: ignore[attr-defined]

    def shifted(cls: type[Rng], seeds: Any, device: Any = "cpu") -> Rng:
        numbers = np.asarray(seeds if isinstance(seeds, np.ndarray | torch.Tensor) else list(seeds))
        return rows(cls, (numbers.astype(np.int64) + more).tolist(), device)

    Rng.rows = classmethod(shifted)  # type: ignore[assignment]
