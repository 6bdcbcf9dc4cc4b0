"""Codecs: convert observations and actions between data units and model units."""
