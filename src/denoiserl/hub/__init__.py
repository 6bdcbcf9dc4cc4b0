"""The border to other libraries: their models, schedulers and adapters, converted once and unmodified.

Inside the library there is one time axis, one estimate and one way to score a step; what another library calls a
timestep, a scheduler or a pipeline becomes that here. ``hub.diffusers`` takes models and whole pipelines,
``hub.schedulers`` their noise levels and time grids, ``hub.transformers`` masked and left-to-right language models,
``hub.adapters`` puts LoRA on any of them. Nothing here imports those libraries before it is asked to.
"""
