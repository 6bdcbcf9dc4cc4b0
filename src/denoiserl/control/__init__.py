"""Act with a policy in environments, and choose among what it proposes."""
