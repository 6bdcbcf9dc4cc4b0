"""The machinery of claims: a study with pass conditions, its ledger, and how verdicts are confirmed."""
