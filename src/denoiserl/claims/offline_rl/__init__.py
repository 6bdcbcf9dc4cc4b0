"""Claims about recipes of the family offline rl."""
