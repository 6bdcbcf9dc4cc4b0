"""Tasks: starting policies, a signal to learn from, and held-out trials. A recipe knows no task."""
