"""Policy gradients: improve a policy by likelihood ratios or weights on its own rollouts."""
