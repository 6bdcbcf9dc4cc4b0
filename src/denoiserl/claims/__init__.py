"""Claims: what the papers say, tried here, one file a claim; what came out lies in ``results/``."""
