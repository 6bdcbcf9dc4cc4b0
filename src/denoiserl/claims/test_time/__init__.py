"""Claims about recipes of the family test time."""
