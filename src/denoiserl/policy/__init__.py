"""A policy: its process, denoiser, codec and weights; the chains that it draws, and how likely they are."""
