"""Renderers and verifiers of the small image domains, without any learning."""
