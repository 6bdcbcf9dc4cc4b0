"""Step environments: one by one, in worker processes, as Gymnasium vector environments or batched."""
