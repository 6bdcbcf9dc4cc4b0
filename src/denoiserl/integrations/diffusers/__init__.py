"""Models and pipelines of diffusers, unmodified: as denoisers, codecs and whole policies.

``denoiser(model, scheduler)`` wraps a UNet or a transformer. ``from_pipeline(pipeline)`` makes a policy of a loaded
text-to-image pipeline (latents through its autoencoder) or of a pixel-space one. ``prompts(pipeline, texts)`` encodes
text once; conditions are embeddings after that. No classifier-free guidance is applied: the conditional model itself is
sampled, scored and trained.
"""

from denoiserl.integrations.diffusers.codecs import PixelCodec, VAECodec
from denoiserl.integrations.diffusers.network import Net, denoiser
from denoiserl.integrations.diffusers.pipelines import from_pipeline, load, prompts

__all__ = ["Net", "PixelCodec", "VAECodec", "denoiser", "from_pipeline", "load", "prompts"]
