"""Claims of papers, tested here, one file per claim; the results are in ``results/``."""
