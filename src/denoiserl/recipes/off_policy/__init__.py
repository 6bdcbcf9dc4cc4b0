"""Off-policy actor-critic: improve a policy from a replay buffer while it acts."""
