"""Renderers and checkers of the small picture domains, without any learning."""
