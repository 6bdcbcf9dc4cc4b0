"""Make the pages of recipes, families and tasks: docstring, options of ``Args``, commands, verdicts and cost."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from docs_claims import Record, costs, family_title, linked, recipe_link, spent, table, verdict

from denoiserl import recipes, tasks
from denoiserl.recipes import FACETS, SIGNALS, Card

PACKAGE = recipes.HERE.parent


RANGES = {
    "Count": "int ≥ 1",
    "CountOrZero": "int ≥ 0",
    "CountFromTwo": "int ≥ 2",
    "Positive": "float > 0",
    "NonNegative": "float ≥ 0",
    "Fraction": "float in [0, 1]",
    "PositiveFraction": "float in (0, 1]",
    "FractionBelowOne": "float in [0, 1)",
    "OpenFraction": "float in (0, 1)",
    "Counts": "one or more ints ≥ 1",
    "Shares": "one or more floats ≥ 0",
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
    """Parse a module."""
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
    """Return the file of a dotted name, or None."""
    path = root.joinpath(*module.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def recipe(name: str) -> Source:
    """Parse a recipe's module."""
    return source(recipes.path(name))


def options(module: Source, record: str = "Args", root: Path = PACKAGE.parent) -> list[Option]:
    """Return the fields of a dataclass, its bases' first. A field that is a dataclass is expanded: ``base.width``.

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
    """Return the source of a field's default: a factory's empty value, or the value."""
    made = {k.arg: ast.unparse(k.value) for k in value.keywords} if isinstance(value, ast.Call) else {}
    empty = {"dict": "{}", "list": "[]"}.get(made.get("default_factory", ""))
    return empty or (ast.unparse(value) if value else "required")


def _opened(module: Source, node: ast.expr, root: Path) -> list[Option]:
    """Return the fields of the dataclass that an expression names, if it is defined or imported in this module."""
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
    """Return a type in words. ``Literal["a", "b"]`` becomes "a or b"."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Literal"):
        words = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return " or ".join(str(getattr(w, "value", ast.unparse(w))) for w in words)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        if ast.unparse(annotation.value) == "Annotated":
            return kind(annotation.slice.elts[0])
        return f"{ast.unparse(annotation.value)}[{', '.join(map(kind, annotation.slice.elts))}]"
    if isinstance(annotation, ast.Name) and annotation.id in RANGES:
        return RANGES[annotation.id]
    if isinstance(annotation, ast.BinOp):
        return f"{kind(annotation.left)} or {kind(annotation.right)}"
    return ast.unparse(annotation)


def call(name: str) -> list[str]:
    """Return an example call of ``improve``, made from its signature."""
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
    """Return example commands."""
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
    """Return the name of an option on the command line."""
    return name.replace("_", "-")


def page(card: Card, records: Sequence[Record], stale: Mapping[str, bool]) -> str:
    """Return the page of one recipe."""
    found = options(recipe(card.module))
    path = recipes.path(card.module)
    out = [f"# {card.name}: {card.title.rstrip('.')}", "", f"`{card.module}` · {linked(card.paper)} · learns from "]
    out[-1] += f"{SIGNALS[card.signal]} · {card.family} · [on the map](../../map.md) · "
    out[-1] += f"[which method?](../../which.md) · source `recipes/{path.parent.name}/{path.name}`"
    out += ["", split_equations(linked(card.body)), ""]
    out += ["## Run it", "", *commands(card.module, found), *call(card.module)]
    task, given = constants(path, "DEFAULT_TASK", "DEFAULT_TASK_ARGS")
    preset = ", ".join(f"`--{flag(k)} {v}`" for k, v in (given or {}).items())
    out += ["## Options", "", *option_table(found), ""]
    out += [f"The default task is [`{task}`](../../tasks.md#{task}){f' with {preset}' if preset else ''}; "]
    out[-1] += "`--task` chooses another one. The options of the task follow in the same command, as do the "
    out[-1] += "[options of every run](../index.md#options-of-every-run)."
    out += [""]
    out += ["## Claims", ""]
    tried = [r for r in records if card.module in r.get("recipes", ())]
    rows = ((f"[{r['name']}](../../claims.md#{r['name']})", r["claim"], verdict(r, stale), r["date"]) for r in tried)
    out += table(("claim", "what is claimed", "verdict", "tested"), rows) if tried else ["None is tested yet.", ""]
    out += ["## Cost", ""]
    if measured := costs(records, card.module):
        rows = ((f"[{r['name']}](../../claims.md#{r['name']})", arm, *spent(c)) for r, arm, c in measured)
        out += table(("claim", "arm", "minutes per seed", "memory", "spent"), rows)
    else:
        out += ["Not measured.", ""]
    return "\n".join(out)


def split_equations(text: str, width: int = 84) -> str:
    """Break indented lines longer than ``width`` at their wide gaps, so that a page shows one equation per line."""
    lines = text.splitlines()
    long = {x for x in lines if x[:4].isspace() and len(x) > width}
    return "\n".join(re.sub(r"(?<=\S) {3,}", "\n        ", x) if x in long else x for x in lines)


def option_table(found: Sequence[Option]) -> list[str]:
    """Return a table of options."""
    return table(
        ("option", "kind", "default", "meaning"),
        ((f"`--{flag(o.name)}`", o.kind, f"`{o.default}`", o.meaning) for o in found),
    )


def constants(path: Path, *names: str) -> list[Any]:
    """Return the values of a module's constants, None for those that it lacks."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names:
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return [found.get(name) for name in names]


def task_page(cards: Sequence[Card]) -> str:
    """Return the page of tasks: their docstrings, their options, and the recipes that run on them by default."""
    out = [
        "# Tasks",
        "",
        "A recipe runs on a task: a policy to start from, a signal to learn from, and held-out trials. "
        "`denoiserl run RECIPE --task NAME` chooses one. The options of the task follow in the same command; an option "
        "is called `--task.NAME` if the recipe has an option of the same name. To use your own task, pass a function "
        "in a file: `--task my_file.py:make_task`.",
        "",
    ]
    default = {c.module: constants(recipes.path(c.module), "DEFAULT_TASK")[0] for c in cards}
    for name, dotted in tasks.TASKS.items():
        path = PACKAGE.parent.joinpath(*dotted.split(".")).with_suffix(".py")
        users = ", ".join(recipe_link(k) for k, v in default.items() if v == name)
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        out += [f"## {name}", "", doc, "", f"Recipes: {users}.", "", *option_table(options(source(path))), ""]
    return "\n".join(out)


def card_table(cards: Sequence[Card], root: str) -> list[str]:
    """Return a table of recipes. ``root`` leads from the page of the table to the root of the site."""
    rows = (
        (recipe_link(c.module, root), f"{c.name}: {c.title}", linked(c.paper), SIGNALS[c.signal], c.family)
        for c in cards
    )
    return table(("recipe", "what it is", "paper", "learns from", "kind of update"), rows)


def families(cards: Sequence[Card]) -> dict[str, list[Card]]:
    """Return the recipes of each family, which is the folder of their source."""
    names = sorted({recipes.path(c.module).parent.name for c in cards})
    return {name: [c for c in cards if recipes.path(c.module).parent.name == name] for name in names}


def family_page(family: str, cards: Sequence[Card]) -> str:
    """Return the index page of a family."""
    title, sentence = family_title(recipes.HERE / family)
    return "\n".join([f"# {title}", "", sentence, "", *card_table(cards, "../../")])


def index(cards: Sequence[Card]) -> str:
    """Return the page of all recipes, by family."""
    out = [
        "# Recipes",
        "",
        "One published system per file: `improve(policy, signal, args, rng)` runs on your policy and your signal. "
        "`denoiserl list` prints these tables, `denoiserl run NAME` runs a recipe on its default [task](../tasks.md), "
        "`denoiserl run NAME --help` shows its options. [Which method](../which.md) helps you choose. The "
        "[map](../map.md) sorts the recipes by their components. [Claims](../claims.md) has the tests of sentences "
        "from the papers, [cost](../cost.md) the time and memory of these tests.",
        "",
    ]
    for family, found in families(cards).items():
        title, sentence = family_title(recipes.HERE / family)
        out += [f"## [{title}]({family}/index.md)", "", sentence, "", *card_table(found, "../")]
    run = source(PACKAGE / "cli" / "run_options.py")
    common = [o for name in ("ExperimentOptions", "MachineOptions") for o in options(run, name) if o.name != "task"]
    out += ["## Options of every run", "", "`denoiserl run` has these options for all recipes, beside `--task`.", ""]
    return "\n".join([*out, *option_table(common)])


def parts(name: str, package: str) -> list[str]:
    """Return the functions of a package (``advantages``, ``losses``) that a recipe calls, directly or indirectly.

    Calls inside the packages of pure mathematics are not followed.
    """
    public = source(PACKAGE / package / "__init__.py").imports
    used = _used(recipes.module_name(name), "improve", {})
    return sorted(n for module, n in used if n in public and module.startswith(f"denoiserl.{package}"))


def _used(module: str, name: str, seen: dict[tuple[str, str], None]) -> dict[tuple[str, str], None]:
    """Return the (module, name) pairs of this library that a definition uses, directly or indirectly."""
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
    """Return whether the recipe has ``improve`` and a default task."""
    return {"improve", "DEFAULT_TASK"} <= set(recipe(name).nodes)


def lacking(card: Card) -> list[str]:
    """Return the facets that a recipe's docstring lacks."""
    return [key for key in FACETS if not card.facets.get(key)]
