"""Errors, randomness, trees of tensors, usage counters and imports by name: what everything else stands on."""
