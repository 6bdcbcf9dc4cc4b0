"""Claims about recipes of the family imitation."""
