"""Generators: improve a sampler of images or other data by a reward on its samples."""
