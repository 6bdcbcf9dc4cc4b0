"""Step copies of an environment: one by one, in worker processes, as Gymnasium vector environments or batched."""
