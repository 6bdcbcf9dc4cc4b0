"""Shapes in docstrings are shapes, not Markdown: ``[*batch, steps]`` keeps its star. An extension of griffe."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


def escaped(text: str) -> str:
    """Escape the stars and brackets of every ``[...]`` outside code."""

    def shape(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith("`") else re.sub(r"([*\[\]])", r"\\\1", found[0])

    # Code first (left alone), then brackets that are not links.
    return re.sub(r"``.*?``|`[^`]*`|\[[^\[\]\n]*\](?![(])", shape, text, flags=re.S)


class Shapes(Extension):
    """Escapes the docstring of every object that is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called once an object, after its members."""
        if obj.docstring:
            obj.docstring.value = escaped(obj.docstring.value)
