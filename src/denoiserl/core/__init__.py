"""Errors, randomness, trees of tensors, usage counters and imports by name. All packages use them."""
