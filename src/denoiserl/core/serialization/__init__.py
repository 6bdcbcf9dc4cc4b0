"""Store trees of tensors on disk, and turn records and settings into plain data and back."""
