"""Claims about recipes of the family generators."""
