"""The pages of the recipes: what a docstring says, the options of its ``Args``, commands, verdicts and cost."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from docs_claims import Record, costs, linked, spent, table, verdict

from denoiserl import recipes, tasks
from denoiserl.recipes import FACETS, SIGNALS, Card

PACKAGE = recipes.HERE.parent


RANGES = {
    "Count": "int ≥ 1",
    "CountOrZero": "int ≥ 0",
    "Positive": "float > 0",
    "NonNegative": "float ≥ 0",
    "Fraction": "float in [0, 1]",
    "PositiveFraction": "float in (0, 1]",
}
"""the ranges of ``denoiserl.core.settings`` in words"""


@dataclass(frozen=True)
class Option:
    """An option of the command line. ``default`` is source."""

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Source:
    """A parsed module: the statements that define a name, and what imports bind: (module, name in it or "")."""

    nodes: Mapping[str, list[ast.stmt]]
    imports: Mapping[str, tuple[str, str]]


@cache
def source(path: Path) -> Source:
    """A module, parsed."""
    nodes: dict[str, list[ast.stmt]] = {}
    imports: dict[str, tuple[str, str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            imports |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes.setdefault(node.name, []).append(node)
        else:
            names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            for name in names:
                nodes.setdefault(name, []).append(node)
    return Source(nodes, imports)


def located(module: str, root: Path = PACKAGE.parent) -> Path | None:
    """The file of a dotted name, if it is one."""
    path = root.joinpath(*module.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def recipe(name: str) -> Source:
    """A recipe's module, parsed."""
    return source(recipes.path(name))


def options(module: Source, record: str = "Args", root: Path = PACKAGE.parent) -> list[Option]:
    """The fields of a dataclass, its bases' first; what is a dataclass itself is opened: ``base.width``.

    ``root``: the folder in which dotted names of modules are found.
    """
    if record not in module.nodes:
        return []
    found: dict[str, Option] = {}
    for node in module.nodes[record]:
        assert isinstance(node, ast.ClassDef)
        for base in node.bases:
            found |= {o.name: o for o in _opened(module, base, root)}
        for i, field in enumerate(node.body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            key, after = field.target.id, node.body[i + 1] if i + 1 < len(node.body) else None
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meaning = " ".join(str(after.value.value).split()) if said else ""  # type: ignore[union-attr]
            if inner := _opened(module, field.annotation, root):
                given = field.value.keywords if isinstance(field.value, ast.Call) else []
                changed = {k.arg: ast.unparse(k.value) for k in given}
                found |= {
                    f"{key}.{o.name}": replace(o, name=f"{key}.{o.name}", default=changed.get(o.name, o.default))
                    for o in inner
                }
            else:
                default = _default(field.value)
                found[key] = Option(key, kind(field.annotation), default, meaning)
    return list(found.values())


def _default(value: ast.expr | None) -> str:
    """What a field is by default, as it is written: a factory's empty value, or the value."""
    made = {k.arg: ast.unparse(k.value) for k in value.keywords} if isinstance(value, ast.Call) else {}
    empty = {"dict": "{}", "list": "[]"}.get(made.get("default_factory", ""))
    return empty or (ast.unparse(value) if value else "required")


def _opened(module: Source, node: ast.expr, root: Path) -> list[Option]:
    """The fields of the dataclass that an expression names, if it stands here or in a module that is imported here."""
    *place, last = ast.unparse(node).split(".")
    if not place and _record(module, last):
        return options(module, last, root)
    name, inner = module.imports.get(place[0] if place else last, ("", ""))
    file = located(f"{name}.{inner}" if place and inner else name, root)
    if file is None or not _record(found := source(file), last):
        return []
    return options(found, last, root)


def _record(module: Source, name: str) -> bool:
    return any(isinstance(n, ast.ClassDef) and n.decorator_list for n in module.nodes.get(name, ()))


def kind(annotation: ast.expr) -> str:
    """A type in words: ``Literal["a", "b"]`` is what may be written."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Literal"):
        words = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return " or ".join(str(getattr(w, "value", ast.unparse(w))) for w in words)
    if isinstance(annotation, ast.Name) and annotation.id in RANGES:
        return RANGES[annotation.id]
    if isinstance(annotation, ast.BinOp):
        return f"{kind(annotation.left)} or {kind(annotation.right)}"
    return ast.unparse(annotation)


def call(name: str) -> list[str]:
    """``improve`` as one would write it, from its signature."""
    function = next((n for n in recipe(name).nodes.get("improve", ()) if isinstance(n, ast.FunctionDef)), None)
    if function is None:
        return []
    said = {"args": f"{name}.Args()", "rng": "Rng(0)"}
    given = ", ".join(said.get(a.arg, a.arg) for a in function.args.args if a.arg != "run")
    return [
        "On your own policy and signal:",
        "",
        "```python",
        "from denoiserl import Rng",
        f"from denoiserl.recipes import {name}",
        "",
        f"for row in {name}.improve({given}):",
        "    print(row)",
        "```",
        "",
    ]


def commands(name: str, found: Sequence[Option]) -> list[str]:
    """The commands that one would copy."""
    budgets = [o for o in found if o.name in ("iterations", "num_updates")]
    more = f" --{flag(budgets[0].name)} {budgets[0].default.replace('_', '')}" if budgets else ""
    lines = [
        f"denoiserl run {name}",
        f"denoiserl run {name} --seed 1{more}",
        f"denoiserl eval runs/{name}-0",
        f"denoiserl report runs/{name}-0",
    ]
    return ["```console", *(f"$ {line}" for line in lines), "```", ""]


def flag(name: str) -> str:
    """How the command line writes an option."""
    return name.replace("_", "-")


def page(card: Card, records: Sequence[Record], stale: Mapping[str, bool]) -> str:
    """The page of one recipe."""
    found = options(recipe(card.module))
    out = [f"# {card.name}: {card.title.rstrip('.')}", "", f"`{card.module}` · {linked(card.paper)} · learns from "]
    out[-1] += f"{SIGNALS[card.signal]} · {card.family} · [on the map](../map.md)"
    out += ["", linked(card.body), "", "## Run it", "", *commands(card.module, found), *call(card.module)]
    task, given = constants(recipes.path(card.module), "DEFAULT_TASK", "DEFAULT_TASK_ARGS")
    preset = ", ".join(f"`--{flag(k)} {v}`" for k, v in (given or {}).items())
    out += ["## Options", "", *option_table(found), ""]
    out += [f"It runs on the task [`{task}`](../tasks.md#{task}){f' with {preset}' if preset else ''}; `--task` names "]
    out[-1] += "another one, whose options follow in the same command."
    out += [""]
    out += ["## Claims", ""]
    tried = [r for r in records if card.module in r.get("recipes", ())]
    rows = ((f"[{r['name']}](../claims.md#{r['name']})", r["claim"], verdict(r, stale), r["date"]) for r in tried)
    out += table(("claim", "what is claimed", "verdict", "tried"), rows) if tried else ["None has been tried yet.", ""]
    out += ["## Cost", ""]
    if measured := costs(records, card.module):
        rows = ((f"[{r['name']}](../claims.md#{r['name']})", arm, *spent(c)) for r, arm, c in measured)
        out += table(("claim", "arm", "minutes a seed", "memory", "spent"), rows)
    else:
        out += ["Not measured.", ""]
    return "\n".join(out)


def option_table(found: Sequence[Option]) -> list[str]:
    """A table of options."""
    return table(
        ("option", "kind", "default", "meaning"),
        ((f"`--{flag(o.name)}`", o.kind, f"`{o.default}`", o.meaning) for o in found),
    )


def constants(path: Path, *names: str) -> list[Any]:
    """The values of a module's constants, None of those that it has not."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names:
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return [found.get(name) for name in names]


def task_page(cards: Sequence[Card]) -> str:
    """The page of all tasks: what each is, its options, and the recipes that run on it by default."""
    out = [
        "# Tasks",
        "",
        "A task is what a recipe runs on: a policy to start from, a signal to learn from, and held-out trials. "
        "`denoiserl run RECIPE --task NAME` chooses one; its options need no prefix where the recipe has no option of "
        "the same name, and are called `--task.NAME` otherwise. A task of yours is a function in a file, "
        "`--task my_file.py:make_task`.",
        "",
    ]
    default = {c.module: constants(recipes.path(c.module), "DEFAULT_TASK")[0] for c in cards}
    for name, dotted in tasks.TASKS.items():
        path = PACKAGE.parent.joinpath(*dotted.split(".")).with_suffix(".py")
        users = ", ".join(f"[`{k}`](recipes/{k}.md)" for k, v in default.items() if v == name)
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        out += [f"## {name}", "", doc, "", f"Recipes: {users}.", "", *option_table(options(source(path))), ""]
    return "\n".join(out)


def index(cards: Sequence[Card]) -> str:
    """The page of all recipes."""
    out = [
        "# Recipes",
        "",
        "One published system per file: `improve(policy, signal, args, rng)` runs on your policy and your signal. "
        "`denoiserl list` prints this table, `denoiserl run NAME` runs a recipe on its default [task](tasks.md), "
        "`denoiserl run NAME --help` shows its options. "
        "The [map](map.md) sorts them by what they are made of, [claims](claims.md) says what came out when their "
        "papers' sentences were tried, [cost](cost.md) what that took.",
        "",
    ]
    rows = (
        (f"[`{c.module}`](recipes/{c.module}.md)", f"{c.name}: {c.title}", linked(c.paper), SIGNALS[c.signal], c.family)
        for c in cards
    )
    return "\n".join([*out, *table(("recipe", "what it is", "paper", "learns from", "family"), rows)])


def parts(name: str, package: str) -> list[str]:
    """The functions of a package (``advantages``, ``losses``) that a recipe composes, itself or by what it calls.

    Those that only other functions of the floor of pure mathematics use are their affair.
    """
    public = source(PACKAGE / package / "__init__.py").imports
    used = _used(recipes.module_name(name), "improve", {})
    return sorted(n for module, n in used if n in public and module.startswith(f"denoiserl.{package}"))


def _used(module: str, name: str, seen: dict[tuple[str, str], None]) -> dict[tuple[str, str], None]:
    """The (module, name) of this package that a definition uses, and those that these use, down to pure mathematics."""
    file = located(module)
    if (module, name) in seen or file is None:
        return seen
    seen[module, name] = None
    own = tuple(f"denoiserl.{room}" for room in ("advantages", "losses", "distributions", "processes"))
    if module.startswith(own):
        return seen
    here = source(file)
    if name in here.imports and name not in here.nodes:
        return _used(*here.imports[name], seen)
    walked = [n for node in here.nodes.get(name, ()) for n in ast.walk(node)]
    for n in walked:
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in here.imports:
            _used(".".join(here.imports[n.value.id]), n.attr, seen)
        elif isinstance(n, ast.Name) and (n.id in here.nodes or n.id in here.imports):
            used, inner = here.imports.get(n.id, (module, n.id))
            whole = located(f"{used}.{inner}") is not None  # a recipe as a value
            _used(*((f"{used}.{inner}", "improve") if whole else (used, inner)), seen)
    return seen


def runnable(name: str) -> bool:
    """Has the recipe a method and a task?"""
    return {"improve", "DEFAULT_TASK"} <= set(recipe(name).nodes)


def lacking(card: Card) -> list[str]:
    """The facets that a recipe's docstring does not say."""
    return [key for key in FACETS if not card.facets.get(key)]
