"""Claims about recipes of the family off policy."""
