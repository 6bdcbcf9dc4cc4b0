"""Act with a policy in environments, and choose among its plans."""
