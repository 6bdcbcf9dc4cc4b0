"""What a module's source says: what defines each of its names, and which free names a definition uses.

``ast`` alone, no import: code can be read where the simulator that it needs is not installed. ``reach`` follows the
names from one module to the next.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from denoiserl.core.errors import RunError

LOOSE = "(on import)"
"""the name under which a module's statements that bind nothing are kept"""


@dataclass(frozen=True)
class Import:
    """What an import binds a name to: ``name`` of ``module``, or the module itself."""

    module: str
    name: str | None = None


class Source:
    """A parsed module: what defines each of its names, what its imports bind, and the statements that bind nothing."""

    def __init__(self, name: str, package: bool, tree: ast.Module) -> None:
        self.name, self.package = name, package
        self.nodes: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, Import] = {}
        self.stars: list[str] = []
        self.loose: list[ast.stmt] = []
        self._digests: dict[str, str] = {}
        self._uses: dict[str, list[tuple[Import | None, tuple[str, ...]]]] = {}
        above = name.split(".") if package else name.split(".")[:-1]
        for statement in tree.body:
            if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
                continue  # what a script does when it is run is not what it means to who imports it
            names = _bound([statement], above)
            self.imports |= {n: i for n, i in names.items() if i}
            self.stars += [i.module for n, i in names.items() if n.endswith("*") and i]
            defined = [n for n, i in names.items() if i is None]
            for n in defined:
                self.nodes.setdefault(n, []).append(statement)
            if not (defined or _silent(statement)):
                self.loose.append(statement)
        if self.loose:
            self.nodes[LOOSE] = self.loose
        self._above = above

    @cached_property
    def public(self) -> list[str]:
        """What ``__all__`` says, else every definition without a leading underscore (and a package's own imports)."""
        for node in self.nodes.get("__all__", ()):
            value = getattr(node, "value", None)
            if isinstance(value, ast.List | ast.Tuple) and all(isinstance(e, ast.Constant) for e in value.elts):
                return [str(e.value) for e in value.elts if isinstance(e, ast.Constant)]
        names = [*self.nodes, *(self.imports if self.package else ())]
        return [n for n in names if not n.startswith("_") and n != LOOSE and not n.endswith("*")]

    def digest(self, name: str) -> str:
        """The hash of a definition."""
        if name not in self._digests:
            self._digests[name] = short("\n".join(_plain(node) for node in self.nodes[name]))
        return self._digests[name]

    def uses(self, name: str) -> list[tuple[Import | None, tuple[str, ...]]]:
        """The free names of a definition with their attributes; with the import where that is the definition's own."""
        if name not in self._uses:
            visitor = _Uses(self._above)
            for node in self.nodes[name]:
                visitor.visit(node)
            self._uses[name] = list(dict.fromkeys(visitor.found))
        return self._uses[name]


@lru_cache(maxsize=1024)
def parse(path: Path, changed: int, size: int, module: str) -> Source:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise RunError(f"{path}: line {error.lineno} is not Python ({error.msg}).") from None
    return Source(module, path.name == "__init__.py", tree)


def _silent(node: ast.stmt) -> bool:
    """Statements that do nothing but import, and docstrings: also under ``if TYPE_CHECKING`` and ``try``."""
    parts = [n for n in ast.walk(node) if isinstance(n, ast.stmt)]
    still = ast.Pass | ast.Import | ast.ImportFrom | ast.If | ast.Try
    return all(isinstance(n, still) or (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)) for n in parts)


def _imports(node: ast.Import | ast.ImportFrom, above: list[str]) -> dict[str, Import | None]:
    if isinstance(node, ast.Import):
        split = {a: a.name.split(".")[0] for a in node.names}
        return {a.asname or split[a]: Import(a.name if a.asname else split[a]) for a in node.names}
    base = above[: len(above) + 1 - node.level] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    bare = node.level and not module  # ``from . import x`` in a file of the user's, which has no package
    made = {a.asname or a.name: Import(a.name) if bare else Import(module, a.name) for a in node.names}
    return {(f"{module}.*" if n == "*" else n): (Import(module) if n == "*" else i) for n, i in made.items()}


def _bound(body: Iterable[ast.AST], above: list[str]) -> dict[str, Import | None]:
    """The names that statements bind in their own scope: None, or what an import binds them to."""
    names: dict[str, Import | None] = {}
    away: set[str] = set()
    todo = list(body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= _imports(node, above)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            away |= set(node.names)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names[node.id] = None
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            for field in ("name", "rest"):  # what ``except`` and ``match`` bind are words, not Name nodes
                if isinstance(word := getattr(node, field, None), str):
                    names[word] = None
            todo += ast.iter_child_nodes(node)
    return {n: i for n, i in names.items() if n not in away}


class _Uses(ast.NodeVisitor):
    """Collects the free names of a definition as chains ``("module", "name")``, each scope by Python's rules."""

    def __init__(self, above: list[str]) -> None:
        self.above = above
        self.scopes: list[dict[str, Import | None]] = []
        self.found: list[tuple[Import | None, tuple[str, ...]]] = []
        self.typing = False  # inside an annotation, where a string is a name

    def record(self, chain: tuple[str, ...]) -> None:
        for scope in reversed(self.scopes):
            if chain[0] in scope:
                if (imported := scope[chain[0]]) is not None:
                    self.found.append((imported, chain[1:]))
                return
        for scope in self.scopes:
            self.found += [(i, chain) for n, i in scope.items() if n.endswith("*") and i]
        self.found.append((None, chain))

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.record((node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            chain, root = [root.attr, *chain], root.value
        if isinstance(root, ast.Name):
            self.record((root.id, *chain))
        else:
            self.visit(root)

    def within(self, scope: dict[str, Import | None], *nodes: ast.AST) -> None:
        self.scopes.append(scope)
        for node in nodes:
            self.visit(node)
        self.scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, node.args):
            self.visit(part)
        if node.returns:
            self.annotation(node.returns)
        self.within(self.arguments(node.args) | _bound(node.body, self.above), *node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self.within(self.arguments(node.args), node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(part)
        # Names of a class body are not seen by its methods: only its imports are kept, so that none is missed.
        self.within({n: i for n, i in _bound(node.body, self.above).items() if i}, *node.body)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        self.visit(node.generators[0].iter)  # in the scope around it
        self.within(_bound([g.target for g in node.generators], self.above), *ast.iter_child_nodes(node))

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_arg(self, node: ast.arg) -> None:
        if node.annotation:
            self.annotation(node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.annotation(node.annotation)
        for part in (node.target, *([node.value] if node.value else [])):
            self.visit(part)

    def annotation(self, node: ast.AST) -> None:
        outer, self.typing = self.typing, True
        self.visit(node)
        self.typing = outer

    def visit_Subscript(self, node: ast.Subscript) -> None:
        literal = self.typing and ast.unparse(node.value).endswith("Literal")
        for part in [node.value] if literal else [node.value, node.slice]:
            self.visit(part)

    def visit_Constant(self, node: ast.Constant) -> None:
        if self.typing and isinstance(node.value, str):
            try:
                self.visit(ast.parse(node.value, mode="eval").body)
            except SyntaxError:
                return  # text in ``Annotated``

    @staticmethod
    def arguments(a: ast.arguments) -> dict[str, Import | None]:
        every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
        return {arg.arg: None for arg in every}


def _plain(node: ast.AST) -> str:
    """A syntax tree in words, the same on every Python: without positions, docstrings and what is empty."""
    parts: list[str] = []
    for field, value in ast.iter_fields(node):
        if field in ("ctx", "kind", "type_comment") or value is None or value == []:
            continue
        parts.append(f"{field}={_value(value)}")
    return f"{type(node).__name__}({','.join(parts)})"


def _value(value: object) -> str:
    if isinstance(value, ast.AST):
        return _plain(value)
    if isinstance(value, list):
        kept: Iterator = (v for v in value if not (isinstance(v, ast.Expr) and isinstance(v.value, ast.Constant)))
        return f"[{','.join(_value(v) for v in kept)}]"
    return repr(value)


def short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
