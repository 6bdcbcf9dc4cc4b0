"""Make the pages of claims and costs from the ledger."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from denoiserl import recipes
from denoiserl.core.errors import RunError

Record = Mapping[str, Any]
VERDICTS = ("holds", "does not hold", "inconclusive")
KEYS = (
    "name",
    "claim",
    "paper",
    "pass_condition",
    "metric",
    "arms",
    "budget",
    "unit",
    "seeds",
    "verdict",
    "why",
    "date",
)


def linked(text: str) -> str:
    """Replace every ``arXiv 2409.00588`` by a link."""
    return re.sub(r"arXiv[ :](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def cell(value: Any) -> str:
    """Return a value as the cell of a table: on one line, its bars escaped."""
    return " ".join(str(value).split()).replace("|", "\\|")


def page_of(recipe: str) -> str:
    """Return the path of a recipe's page: ``recipes/FAMILY/NAME.md``."""
    return f"recipes/{recipes.path(recipe).parent.name}/{recipe}.md"


def recipe_link(recipe: str, root: str = "") -> str:
    """Return a link to a recipe's page. ``root`` leads from the page of the link to the root of the site."""
    return f"[`{recipe}`]({root}{page_of(recipe)})"


def family_title(package: Path) -> tuple[str, str]:
    """Return the title and the sentence of a family, from the docstring ``Title: sentence`` of its package."""
    title, _, sentence = (ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or "").partition(": ")
    return title, sentence[:1].upper() + sentence[1:]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *([cell(v) for v in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def number(x: float) -> str:
    """Format a number with three digits, and without an exponent from 1000 on."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def interval(x: Record) -> str:
    """Format a mean with its interval: ``0.93 [0.9, 0.96]``."""
    return f"{number(x['mean'])} [{number(x['low'])}, {number(x['high'])}]"


def checked(record: Record, where: str) -> Record:
    """Return a record of the ledger. Raise RunError if a key is missing or the verdict is unknown."""
    if missing := [key for key in KEYS if key not in record]:
        raise RunError(f"{where}: the record has no {missing[0]!r}: test the claim again.")
    if record["verdict"] not in VERDICTS:
        raise RunError(f"{where}: {record['verdict']!r} is no verdict: one of {', '.join(VERDICTS)}.")
    return record


def verdict(record: Record, stale: Mapping[str, bool]) -> str:
    """Return the verdict, with "(stale)" if the code has changed since."""
    return f"**{record['verdict']}**" + (" (stale)" if stale.get(record["name"]) else "")


def claims(records: Sequence[Record], stale: Mapping[str, bool], untried: Sequence[str] = ()) -> str:
    """Return the page of claims, by family. ``stale``: {claim: has its code changed}; ``untried``: without a record."""
    out = [
        "# Claims",
        "",
        "A claim is a sentence of a paper, tested here at the size of a laptop. Arms, budget and pass condition were "
        "written down before anything ran. Arms have equal budgets and paired seeds. A claim that does not hold stays "
        "here. A verdict is about these tasks, sizes and seeds, not about the paper. **Stale**: a module that the "
        "claim depends on was edited since the test, so the verdict is about older code.",
        "",
    ]
    if not records:
        out += ["No claim has been tested yet.", ""]
    if untried:
        out += [f"Written down, not yet tested: {', '.join(f'`{name}`' for name in untried)}.", ""]
    for family, group in groupby(sorted(records, key=lambda r: r["family"]), key=lambda r: r["family"]):
        found = list(group)
        out += [f"## {family_title(recipes.HERE / family)[0]} {{#{family}}}", ""]
        head = ("claim", "paper", "verdict", "stale", "budget", "date")
        out += table(
            head,
            (
                (
                    f"[`{r['name']}`](#{r['name']})",
                    linked(r["paper"]),
                    f"**{r['verdict']}**",
                    "stale" if stale.get(r["name"]) else "no",
                    f"{number(r['budget'])} {r['unit']}, {len(r['seeds'])} seeds",
                    r["date"],
                )
                for r in found
            ),
        )
        for r in found:
            out += _claim(r, bool(stale.get(r["name"])))
    return "\n".join(out)


def _claim(r: Record, stale: bool) -> list[str]:
    out = [f"### {r['name']} {{#{r['name']}}}", "", f"> {cell(r['claim'])}", "", f"{linked(r['paper'])}.", ""]
    if stale:
        out += ["!!! warning", "    Stale: the code behind this verdict has changed since the test.", ""]
    out += [f"Holds if {_lower(r['pass_condition'])}. **It {_said(r['verdict'])}.** {r['why']}", ""]
    if r.get("comment"):
        out += [r["comment"], ""]
    out += table(
        (f"arm: {r['metric']}", "mean over seeds, 95 % interval", "one number per seed"),
        ((arm, interval(x), ", ".join(map(number, x["per_seed"]))) for arm, x in r["arms"].items()),
    )
    if conditions := r.get("conditions"):
        out += table(
            ("condition", "difference, 95 % interval", "margin", "verdict", "smallest detectable excess, power 0.8"),
            (
                (
                    c["said"],
                    interval(c["difference"]),
                    number(c["margin"]),
                    c["verdict"],
                    number(c["min_detectable_effect"]),
                )
                for c in conditions
            ),
        )
    for metric, arms in (r.get("metrics") or {}).items():
        said = "; ".join(f"{arm} {interval(x)}" for arm, x in arms.items())
        out += [f"Also measured, {metric}: {said}.", ""]
    settings = [f"budget per arm and seed: {number(r['budget'])} {r['unit']}", f"seeds {_list(r['seeds'])}"]
    settings += [f"{r['trials']} trials per seed"] if r.get("trials") else []
    settings += [f"{r['seconds'] / 60:.0f} minutes in all"] if r.get("seconds") else []
    out += ["; ".join([*settings, f"tested on {r['date']}"]).capitalize() + ".", ""]
    if used := r.get("recipes"):
        out += [f"Recipes: {', '.join(map(recipe_link, used))}.", ""]
    for c in r.get("confirmed") or []:
        code = f"commit `{str(c['commit'])[:12]}`" if c.get("commit") else "later code"
        out += [f"Confirmed on {c['date']}: {code} gives the same numbers for seed {c['seed']} of all arms.", ""]
    out += [text + "\n" for key in ("calibrated", "note") if (text := str(r.get(key) or ""))]
    origin = [f"{name} {version}" for name, version in (r.get("versions") or {}).items()]
    origin += [f"commit `{str(r['commit'])[:12]}`"] if r.get("commit") else []
    return [*out, f"From {', '.join(origin)}.", ""] if origin else out


def _lower(text: str) -> str:
    text = text.strip().rstrip(".")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _said(verdict: str) -> str:
    return {"inconclusive": "is inconclusive: the trials do not decide"}.get(verdict, verdict)


def _list(seeds: Sequence[int]) -> str:
    run = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if run else ", ".join(map(str, seeds))


def costs(records: Sequence[Record], recipe: str) -> list[tuple[Record, str, Record]]:
    """Return (record, arm, cost) of every arm of the ledger that runs this recipe, with or without other settings."""
    return [
        (r, arm, spent)
        for r in records
        for arm, spent in (r.get("cost") or {}).items()
        if recipe in r.get("recipes", ()) and re.fullmatch(rf"{re.escape(recipe)}(\W.*)?", arm)
    ]


def spent(cost: Record) -> tuple[str, str, str]:
    """Return minutes, memory and the other costs of an arm as text."""
    parts = cost.get("spent") or {}
    memory = cost.get("memory_mb")
    others = ", ".join(f"{number(v)} {unit}" for unit, v in parts.items() if unit != "seconds" and v)
    return f"{cost['seconds'] / 60:.1f}", f"{memory:,.0f} MB" if memory else "not measured", others or "nothing else"


def cost(records: Sequence[Record], recipes: Sequence[str]) -> str:
    """Return the page of costs: time, memory and budget per seed of each arm in the ledger."""
    out = [
        "# Cost",
        "",
        "The cost of one seed of a recipe in the runs behind the [claims](claims.md), with the claim's settings. The "
        "starting policy, which all arms share, is not included. Minutes are of one CPU thread; memory is the peak of "
        "the process.",
        "",
    ]
    rows: list[tuple[str, ...]] = []
    for name in recipes:
        link = recipe_link(name)
        found = costs(records, name)
        rows += [(link, f"[{r['name']}](claims.md#{r['name']})", arm, *spent(c)) for r, arm, c in found]
        if not found:
            rows.append((link, "", "", "not measured", "not measured", ""))
    return "\n".join([*out, *table(("recipe", "claim", "arm", "minutes", "memory", "spent"), rows)])
