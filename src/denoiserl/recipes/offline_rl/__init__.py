"""Offline reinforcement learning: improve a policy on logged data alone."""
