"""Policies: process, denoiser, codec and weights; chains that a policy draws, and their likelihoods."""
