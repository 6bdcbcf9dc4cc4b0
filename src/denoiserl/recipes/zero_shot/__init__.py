"""Zero-shot reinforcement learning: learn once, answer any reward afterwards."""
