"""The pages made from the ledger: what papers claim and what came out here, and what it cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    """``arXiv 2409.00588`` as a link, wherever it stands."""
    return re.sub(r"arXiv[ :](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def cell(value: Any) -> str:
    """A value as the cell of a table: on one line, its bars escaped."""
    return " ".join(str(value).split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table in Markdown, as lines."""
    lines = [head, ["---"] * len(head), *([cell(v) for v in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def number(x: float) -> str:
    """Three digits, and never an exponent where a person would write none."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def interval(x: Record) -> str:
    """``0.93 [0.9, 0.96]``."""
    return f"{number(x['mean'])} [{number(x['low'])}, {number(x['high'])}]"


def checked(record: Record, where: str) -> Record:
    """A record of the ledger, or an error that says what it lacks."""
    if missing := [key for key in KEYS if key not in record]:
        raise RunError(f"{where}: the record has no {missing[0]!r}: try the claim again.")
    if record["verdict"] not in VERDICTS:
        raise RunError(f"{where}: {record['verdict']!r} is no verdict: one of {', '.join(VERDICTS)}.")
    return record


def verdict(record: Record, stale: Mapping[str, bool]) -> str:
    """The verdict, marked where the code has changed since."""
    return f"**{record['verdict']}**" + (" (stale)" if stale.get(record["name"]) else "")


def claims(records: Sequence[Record], stale: Mapping[str, bool], untried: Sequence[str] = ()) -> str:
    """The page of claims. ``stale``: {claim: has its code changed}; ``untried``: the claims without a record."""
    out = [
        "# Claims",
        "",
        "What the papers say, tried at the size of a laptop: arms, budget and pass condition were written down before "
        "anything ran, arms have equal budgets and paired seeds, and a claim that does not hold stays here. A verdict "
        "is of these tasks, sizes and seeds, not of the paper. **Stale**: a definition that the claim rests on has "
        "changed since it was tried, so that the verdict is of older code. `denoiserl claim NAME` tries one again.",
        "",
    ]
    if records:
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
                for r in records
            ),
        )
    else:
        out += ["No claim has been tried yet.", ""]
    if untried:
        out += [f"Written down, not yet tried: {', '.join(f'`{name}`' for name in untried)}.", ""]
    for r in records:
        out += _claim(r, bool(stale.get(r["name"])))
    return "\n".join(out)


def _claim(r: Record, stale: bool) -> list[str]:
    out = [f"## {r['name']} {{#{r['name']}}}", "", f"> {cell(r['claim'])}", "", f"{linked(r['paper'])}.", ""]
    if stale:
        out += ["!!! warning", "    Stale: the code behind this verdict has changed since it was reached.", ""]
    out += [f"Holds if {_lower(r['pass_condition'])}. **It {_said(r['verdict'])}.** {r['why']}", ""]
    if r.get("comment"):
        out += [r["comment"], ""]
    out += table(
        (f"arm: {r['metric']}", "mean over seeds, 95 % interval", "a seed each"),
        ((arm, interval(x), ", ".join(map(number, x["per_seed"]))) for arm, x in r["arms"].items()),
    )
    if conditions := r.get("conditions"):
        out += table(
            ("condition", "difference, 95 % interval", "margin", "verdict", "smallest excess seen with power 0.8"),
            (
                (c["said"], interval(c["difference"]), number(c["margin"]), c["verdict"], number(c["smallest"]))
                for c in conditions
            ),
        )
    for metric, arms in (r.get("metrics") or {}).items():
        said = "; ".join(f"{arm} {interval(x)}" for arm, x in arms.items())
        out += [f"Also measured, {metric}: {said}.", ""]
    settings = [f"budget of an arm and seed: {number(r['budget'])} {r['unit']}", f"seeds {_list(r['seeds'])}"]
    settings += [f"{r['trials']} trials a seed"] if r.get("trials") else []
    settings += [f"{r['seconds'] / 60:.0f} minutes in all"] if r.get("seconds") else []
    out += ["; ".join([*settings, f"tried on {r['date']}"]).capitalize() + ".", ""]
    if used := r.get("recipes"):
        out += [f"Recipes: {', '.join(f'[`{n}`](recipes/{n}.md)' for n in used)}.", ""]
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
    return {"inconclusive": "is inconclusive: the trials do not say"}.get(verdict, verdict)


def _list(seeds: Sequence[int]) -> str:
    run = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if run else ", ".join(map(str, seeds))


def costs(records: Sequence[Record], recipe: str) -> list[tuple[Record, str, Record]]:
    """(record, arm, cost) of every arm of the ledger that is this recipe: its name, or that and what differs."""
    return [
        (r, arm, spent)
        for r in records
        for arm, spent in (r.get("cost") or {}).items()
        if recipe in r.get("recipes", ()) and re.fullmatch(rf"{re.escape(recipe)}(\W.*)?", arm)
    ]


def spent(cost: Record) -> tuple[str, str, str]:
    """Minutes, memory and what else an arm spent, in words."""
    parts = cost.get("spent") or {}
    memory = cost.get("memory_mb")
    others = ", ".join(f"{number(v)} {unit}" for unit, v in parts.items() if unit != "seconds" and v)
    return f"{cost['seconds'] / 60:.1f}", f"{memory:,.0f} MB" if memory else "not measured", others or "nothing else"


def cost(records: Sequence[Record], recipes: Sequence[str]) -> str:
    """The page of costs: what a seed of each arm took in the runs of the ledger."""
    out = [
        "# Cost",
        "",
        "What one seed of a recipe took in the runs behind the [claims](claims.md), with the settings of the claim and "
        "without its starting policy, which all arms share. Minutes are of one thread of the machine that tried the "
        "claim, memory is the peak of its process.",
        "",
    ]
    rows: list[tuple[str, ...]] = []
    for name in recipes:
        link = f"[`{name}`](recipes/{name}.md)"
        found = costs(records, name)
        rows += [(link, f"[{r['name']}](claims.md#{r['name']})", arm, *spent(c)) for r, arm, c in found]
        if not found:
            rows.append((link, "", "", "not measured", "not measured", ""))
    return "\n".join([*out, *table(("recipe", "claim", "arm", "minutes", "memory", "spent"), rows)])
