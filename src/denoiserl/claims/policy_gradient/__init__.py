"""Claims about recipes of the family policy gradient."""
