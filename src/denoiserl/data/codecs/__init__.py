"""Codecs: maps between data units and model units, for observations and for actions."""
