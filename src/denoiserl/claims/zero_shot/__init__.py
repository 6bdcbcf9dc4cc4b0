"""Claims about recipes of the family zero shot."""
