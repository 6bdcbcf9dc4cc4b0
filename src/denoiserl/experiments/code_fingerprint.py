"""Reach: which definitions a piece of code rests on, and a fingerprint of them; source is parsed, nothing is imported.

A verdict is stale when the code behind it has changed. "The code behind it" is neither one file nor the whole package:
it is every definition that can be reached from the claim by following names.

    reached(["denoiserl.recipes.policy_gradient.dppo.improve"])      {full name: hash of its syntax tree}
    fingerprint(["denoiserl.recipes.policy_gradient.dppo.improve"])  one hash of them all

| what a definition uses | what is reached |
|---|---|
| a name of its module, or an imported one | its definition, through re-exports and lazy imports in functions |
| ``module.name`` | that definition of the module |
| a module as a value (passed on, stored, ``getattr``) | all that is public in it: ``__all__``, or no underscore |
| a class | all of its methods, its bases, the annotations of its fields |
| a definition | the annotations of its arguments, and statements of its module that bind no name |

Comments, docstrings and positions are not hashed, nor are definitions that nobody reaches. To reach too much makes a
verdict stale too often, too little makes it a lie: in doubt, more is reached. Not seen are methods of arguments
without an annotation, ``import_module`` of a computed name, and other packages (whose versions belong beside the hash).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.experiments.source_index import LOOSE, Import, Source, parse, short


def reachable_definitions(roots: Iterable[str], package: str = "denoiserl") -> dict[str, str]:
    """{full name: hash} of every definition that ``roots`` rest on, sorted.

    A root is a module, an object of one ("denoiserl.recipes.policy_gradient.dppo.improve"), or the path of a file; of a
    module or file everything counts. ``package`` is followed, and where a root is not of it, the modules that lie
    beside that root. Raises RunError for a root that does not exist, and for source that is not Python.
    """
    return {name: digest for name, (digest, _) in _followed(roots, package).items()}


def uses(roots: Iterable[str], package: str = "denoiserl") -> dict[str, tuple[str, ...]]:
    """Return {full name: full names of the definitions that it names itself}, of all ``reachable_definitions``."""
    return {name: used for name, (_, used) in _followed(roots, package).items()}


def fingerprint(roots: Iterable[str], package: str = "denoiserl") -> str:
    """Return one hash of ``reachable_definitions``, 16 hexadecimal digits: the same as long as none of them changes."""
    # With what each name means there: an import that exchanges two functions changes neither of them.
    lines = (f"{name} {digest} {' '.join(used)}" for name, (digest, used) in _followed(roots, package).items())
    return short("\n".join(lines))


def _followed(roots: Iterable[str], package: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    roots = [roots] if isinstance(roots, str) else list(roots)
    library = _Library(package, roots)
    todo = [found for root in roots for found in library.root(root)]
    done: dict[str, tuple[str, tuple[str, ...]]] = {}
    while todo:
        source, name = todo.pop()
        if (key := f"{source.name}.{name}") in done:
            continue
        found = [(source, LOOSE)] if source.loose and name != LOOSE else []
        for imported, chain in source.uses(name):
            found += library.via(imported, chain) if imported else library.look(source, chain)
        done[key] = source.digest(name), tuple(dict.fromkeys(f"{s.name}.{n}" for s, n in found))
        todo += found
    return dict(sorted(done.items()))


class _Library:
    """Where modules lie, and what names mean in them."""

    def __init__(self, package: str, roots: list[str]) -> None:
        self.package = package
        self.sources: dict[str, Source | None] = {}
        here = Path(__file__).resolve().parents[2]
        places = [here, *(Path(p or ".") for p in sys.path)]
        home = next((p for p in places if (p / package / "__init__.py").is_file()), None)
        if home is None:
            raise RunError(f"the package {package!r} is not found: install it, or put its folder on sys.path")
        self.home, self.folders = home, []
        for root in roots:
            if root.endswith(".py"):
                self.folders.append(Path(root).resolve().parent)
            elif (top := root.split(".")[0]) != package:
                self.folders += [p for p in places if (p / f"{top}.py").is_file() or (p / top).is_dir()][:1]

    def source(self, module: str) -> Source | None:
        """A module that is followed, or None."""
        if module not in self.sources:
            self.sources[module] = self._find(module)
        return self.sources[module]

    def _find(self, module: str) -> Source | None:
        *above, last = parts = module.split(".")
        for folder in [self.home] if parts[0] == self.package else self.folders:
            for path in (folder.joinpath(*parts, "__init__.py"), folder.joinpath(*above, f"{last}.py")):
                if path.is_file():
                    return parse(path, path.stat().st_mtime_ns, path.stat().st_size, module)
        return None

    def root(self, root: str) -> list[tuple[Source, str]]:
        """What a root stands for."""
        path = Path(root)
        if root.endswith(".py") and not path.is_file():
            raise RunError(f"The file {root} does not exist: check the path.")
        parts = [path.stem] if root.endswith(".py") else root.split(".")
        for n in range(len(parts), 0, -1):
            if (source := self.source(".".join(parts[:n]))) is None:
                continue
            if n == len(parts):
                return [(source, name) for name in source.nodes] + ([(source, LOOSE)] if source.loose else [])
            if found := self.look(source, tuple(parts[n:])):
                return found
            what = f"definition in {source.name}"
            raise RunError(unknown_name_message(parts[n], {*source.nodes, *source.imports} - {LOOSE}, what))
        raise RunError(f"There is no module {root!r} to start from: name a module, an object of one, or a file.")

    def look(self, source: Source, chain: tuple[str, ...], seen: frozenset[str] = frozenset()) -> list:
        """The definitions that ``a.b.c`` means in a module; none for builtins and for other packages."""
        head, rest = chain[0], chain[1:]
        if (here := f"{source.name}.{head}") in seen:
            return []
        seen |= {here}
        found = [(source, head)] if head in source.nodes else []
        if head in source.imports:
            found += self.via(source.imports[head], rest, seen)
        if found or head in source.imports:
            return found
        if source.package and self.source(here):
            return self.via(Import(here), rest, seen)
        for star in source.stars:
            if (other := self.source(star)) and (found := self.look(other, chain, seen)):
                return found
        # A module that makes names when asked for them may make this one; builtins come here too, and find nothing.
        return [(source, "__getattr__")] if len(seen) > 1 and "__getattr__" in source.nodes else []

    def via(self, imported: Import, rest: tuple[str, ...], seen: frozenset[str] = frozenset()) -> list:
        """The definitions that a chain of attributes means, from what an import has bound."""
        source = self.source(imported.module)
        if imported.name is not None:
            if source is not None:
                return self.look(source, (imported.name, *rest), seen | {""})
            return self.via(Import(f"{imported.module}.{imported.name}"), rest, seen)  # a folder without __init__
        if source is None:
            return self.via(Import(f"{imported.module}.{rest[0]}"), rest[1:], seen) if rest else []
        if rest:
            return self.look(source, rest, seen | {""})
        if (here := f"{source.name}.*") in seen:
            return []
        return [found for name in source.public for found in self.look(source, (name,), seen | {here})]
