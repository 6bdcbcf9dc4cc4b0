"""How fast the library is, as ratios to the bare network: ``python -m benchmarks.run``."""
