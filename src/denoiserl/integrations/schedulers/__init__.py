"""Schedulers of diffusers as a schedule, a prediction type and a grid of times.

Their timestep i of K is time (i + 1)/K here, because their table starts at the first noisy level and the time axis at
clean data. A flow's sigma is σ. Known faults of schedulers are not reproduced by default:

- DDIM guesses the previous timestep as i − ⌊K/n⌋, which is not the next visited one except with ``leading`` spacing;
- FlowMatchEuler applies its shift to times whose last one is shifted already, so its last sigma is too large.

``faithful=True`` reproduces both, for comparison with pictures that were made with them.
"""

from denoiserl.integrations.schedulers.convention import Convention, FixedLarge, convert
from denoiserl.integrations.schedulers.grids import grid_like, steps_like

__all__ = ["Convention", "FixedLarge", "convert", "grid_like", "steps_like"]
