"""Claims about recipes of the family language."""
