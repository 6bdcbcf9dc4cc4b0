"""Imitation: learn a policy from demonstrations."""
