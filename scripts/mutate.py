"""Plant mistakes in a file, one at a time, run the tests that should see them, and list those that none saw.

    make mutate ARGS=src/denoiserl/recipes/off_policy/sac.py
    make mutate ARGS="src/denoiserl/losses/value.py --sample 40 --tests tests/losses"

Nothing is written: a child process imports the file with the mistake in it. The mistakes are those of people who write
methods: a turned sign, the other extreme, a mean for a sum, the other network, the other column, a gradient that is not
stopped, a step that is left out. Settings (fields of dataclasses), messages and annotations are left alone.
"""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

ROOT = Path(__file__).resolve().parent.parent

OPERATORS: dict[type, str] = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.BitAnd: "|",
                              ast.BitOr: "&", ast.FloorDiv: "*", ast.Mod: "//", ast.MatMult: "+"}  # fmt: skip
SIGNS: dict[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.BitAnd: "&",
                          ast.BitOr: "|", ast.FloorDiv: "//", ast.Mod: "%", ast.MatMult: "@"}  # fmt: skip
COMPARISONS: dict[type, str] = {ast.Lt: ">", ast.LtE: ">=", ast.Gt: "<", ast.GtE: "<=", ast.Eq: "!=", ast.NotEq: "=="}
EDGES: dict[type, str] = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
"""of counts, where the edge matters; two real numbers are hardly ever equal"""
OTHERS = [("amin", "amax"), ("min", "max"), ("argmin", "argmax"), ("minimum", "maximum"), ("mean", "sum"),
          ("any", "all"), ("zeros", "ones"), ("zeros_like", "ones_like"), ("clamp_min", "clamp_max"),
          ("square", "abs"), ("cumsum", "cumprod"), ("log", "log1p"), ("exp", "expm1"), ("sin", "cos")]  # fmt: skip
OTHER = {a: b for pair in OTHERS for a, b in (pair, pair[::-1])}
STOPS = ("no_grad", "frozen", "inference_mode")
"""contexts that stop gradients"""
SHARES = ("tau", "gamma", "gae_lambda", "denoising_discount", "policy_ema", "ema_decay", "weight_decay",
          "alpha", "beta", "bc_weight", "q_weight", "kl_coef", "inverse_temperature", "temperature_init", "share",
          "quantile", "expectile", "length_quantile", "synthetic_fraction", "top_fraction",
          "data_action_fraction")  # fmt: skip
"""settings of which 1 minus them is a likely mistake"""

SYMMETRIC = ("min", "max", "minimum", "maximum")
"""functions whose arguments may be exchanged"""

THINGS = {"policy", "rng", "opt", "env", "run", "args", "data", "self", "replay", "made"}
"""what nobody takes for a tensor, so that an exchange would only crash"""


class Mistake(NamedTuple):
    """Text to put in place of characters ``begin`` to ``end`` of the file."""

    line: int
    begin: int
    end: int
    text: str


def mistakes(source: str) -> list[Mistake]:
    """All mistakes that can be planted in a file, in the order of its lines."""
    tree = ast.parse(source)
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    known = Known(_columns(tree), _siblings(tree), _numbers(tree))
    found = {
        Mistake(at.lineno, *span, text)
        for node in _method(tree)
        for at, span, text in _plant(node, source, starts, known)
        if source.encode()[slice(*span)].decode() != text
    }
    return sorted(found)


class Known(NamedTuple):
    """What a file tells of its names: ``columns`` of dicts; ``siblings``, names that are easily taken for each other;
    ``numbers``, the nodes inside ``float(...)``, which has no gradient."""

    columns: dict[str, list[str]]
    siblings: dict[str, list[str]]
    numbers: set[int]


def planted(source: str, mistake: Mistake) -> str:
    """The file with the mistake."""
    data = source.encode()
    return (data[: mistake.begin] + mistake.text.encode() + data[mistake.end :]).decode()


def _method(node: ast.AST, inside: bool = False) -> Iterator[ast.AST]:
    """The nodes of what is computed: bodies of functions, without messages, annotations, defaults and docstrings."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if inside:
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "args") and isinstance(
            node, ast.FunctionDef | ast.AnnAssign | ast.arg
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            warns = isinstance(child, ast.Expr) and "warn" in ast.dump(child)[:200]
            if not text and not warns:
                yield from _method(child, inside or isinstance(node, ast.FunctionDef | ast.Lambda))


def _columns(tree: ast.Module) -> dict[str, list[str]]:
    """{name of a dict: the words that it is asked for}."""
    asked: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and _is_word(node.slice):
            word = f'"{node.slice.value}"'
            if word not in asked.setdefault(node.value.id, []):
                asked[node.value.id].append(word)
    return asked


def _siblings(tree: ast.Module) -> dict[str, list[str]]:
    """Names that are assigned together (``now, after = ...``), and networks that are called alike (``slow(x)`` and
    ``critic(x)``), in one function."""
    groups: list[set[str]] = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        own = {n.arg for n in function.args.args}
        own |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        called: dict[int, set[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store):
                groups.append({e.id for e in node.elts if isinstance(e, ast.Name) and e.id != "_"})
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in own:
                called.setdefault(len(node.args), set()).add(node.func.id)
        groups += called.values()
    told: dict[str, set[str]] = {}
    for group in groups:
        for name in group - THINGS:
            told.setdefault(name, set()).update(group - THINGS - {name})
    return {name: sorted(others) for name, others in told.items()}


def _numbers(tree: ast.Module) -> set[int]:
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("float", "int", "bool")
        for inner in ast.walk(node)
    }


def _is_word(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_count(node: ast.AST) -> bool:
    """Whether a side of a comparison counts something: a whole number, or a length."""
    whole = isinstance(node, ast.Constant) and isinstance(node.value, int)
    return whole or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len")


def _plant(
    node: ast.AST, source: str, starts: list[int], known: Known
) -> Iterator[tuple[ast.expr | ast.stmt, tuple[int, int], str]]:
    """The mistakes at one node: where it is, the span that is replaced, the new text."""

    def span(n: ast.expr | ast.stmt) -> tuple[int, int]:
        assert n.end_lineno is not None and n.end_col_offset is not None
        return starts[n.lineno - 1] + n.col_offset, starts[n.end_lineno - 1] + n.end_col_offset

    def text(n: ast.expr | ast.stmt) -> str:
        return source.encode()[slice(*span(n))].decode()

    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if not (isinstance(node.op, ast.Add) and (_is_word(node.left) or _is_word(node.right))):
            between = span(node.left)[1], span(node.right)[0]
            middle = source.encode()[slice(*between)].decode()
            yield node, between, middle.replace(SIGNS[type(node.op)], OPERATORS[type(node.op)], 1)
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield node, span(node), "pass"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield node, span(node), f"({text(node.operand)})"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        kind, between = type(node.ops[0]), (span(node.left)[1], span(node.comparators[0])[0])
        yield node, between, f" {COMPARISONS[kind]} "
        if kind in EDGES and (_is_count(node.left) or _is_count(node.comparators[0])):
            yield node, between, f" {EDGES[kind]} "
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, span(node), str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield node, span(node), f"{node.value + 1}" if isinstance(node.value, int) else f"{1.5 * node.value + 0.1}"
    elif isinstance(node, ast.IfExp):
        yield node, span(node), f"({text(node.orelse)} if {text(node.test)} else {text(node.body)})"
    elif isinstance(node, ast.If) and not isinstance(node.body[0], ast.Raise):
        yield node, span(node.test), f"not ({text(node.test)})"
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and _is_word(node.slice):
        for other in known.columns[node.value.id]:
            if other != f'"{node.slice.value}"':
                yield node, span(node.slice), other
    elif isinstance(node, ast.Attribute) and node.attr in SHARES and isinstance(node.ctx, ast.Load):
        yield node, span(node), f"(1 - {text(node)})"
    elif isinstance(node, ast.With):
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in STOPS:
                yield call, span(call), '__import__("contextlib").nullcontext()'
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield node, span(node), "pass"
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        for other in known.siblings.get(node.id, []):
            yield node, span(node), other
    elif isinstance(node, ast.Call):
        yield from _calls(node, source, span, text, known)


def _calls(
    node: ast.Call, source: str, span: Any, text: Any, known: Known
) -> Iterator[tuple[ast.expr, tuple[int, int], str]]:
    name = ast.unparse(node.func).split(".")[-1]
    if name in OTHER:
        end = span(node.func)[1]
        yield node, (end - len(name), end), OTHER[name]
    if name in ("detach", "sign") and isinstance(node.func, ast.Attribute) and id(node) not in known.numbers:
        yield node, span(node), text(node.func.value)
    plain = [arg for arg in node.args if not isinstance(arg, ast.Starred)]
    pairs = [(plain[1], plain[2])] if name == "where" and len(plain) == 3 else list(pairwise(plain))
    for one, two in pairs:
        if (
            {text(one), text(two)} & THINGS
            or isinstance(two, ast.Constant)
            or name in ("isinstance", "getattr", "hasattr", *SYMMETRIC)
        ):
            continue
        between = source.encode()[span(one)[1] : span(two)[0]].decode()
        yield node, (span(one)[0], span(two)[1]), f"{text(two)}{between}{text(one)}"
    for keyword in node.keywords:
        if keyword.arg not in (None, "dtype", "device", "strict") and (len(node.args) or len(node.keywords) > 1):
            begin, end = span(keyword.value)
            data = source.encode()
            begin = data.rfind(keyword.arg.encode(), 0, begin)
            rest = data[end:]
            if rest.lstrip().startswith(b","):
                end += rest.index(b",") + 1
            yield node, (begin, end), ""


def tests_of(path: Path) -> list[list[str]]:
    """The tests that should see a mistake in ``path``, the likeliest first; the next are run if the first see none."""
    tests, package = ROOT / "tests", path.relative_to(ROOT / "src" / "denoiserl").parent
    oracles = sorted((tests / "recipes").glob("*/test_*.py"))
    if package.parts[:1] == ("recipes",):
        rounds = [[tests / package / f"test_{path.stem}.py"], _naming(path.stem, tests / "recipes")]
    elif not package.parts:
        rounds = [_naming(rf"denoiserl\.{path.stem}", tests), oracles]
    else:
        own = tests / package.parts[0]
        rounds = [[own], oracles, [p for p in _naming(_public(path), tests) if own not in p.parents]]
    found = [[str(p) for p in some if p.exists()] for some in rounds]
    return [some for some in found if some]


def _public(path: Path) -> str:
    """A pattern of the public classes and functions of a file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = (n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name[0] != "_")
    return f"(?:{'|'.join(names)})"


def _naming(word: str, folder: Path) -> list[Path]:
    """The tests below a folder, oracles apart, whose text holds a word."""
    files = [f for f in sorted(folder.glob("**/test_*.py")) if f.parent.parent.name != "recipes"]
    return [f for f in files if re.search(rf"\b{word}\b", f.read_text(encoding="utf-8"))]


def run(path: Path, source: str, rounds: list[list[str]], limit: float) -> tuple[bool, float]:
    """Whether a test saw the mistake in ``source`` (so does one that does not end in time), and the seconds it took."""
    began = time.monotonic()
    for tests in rounds:
        child = os.fork()
        if child == 0:
            os.setsid()
            _child(path, source, tests)
        end = time.monotonic() + limit
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                break
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return True, time.monotonic() - began
            time.sleep(0.02)
        if os.waitstatus_to_exitcode(status) != 0:
            return True, time.monotonic() - began
    return False, time.monotonic() - began


def _child(path: Path, source: str, tests: list[str]) -> None:
    """Import ``path`` as ``source`` and run the tests; never returns."""
    own = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader, name):
        if Path(loader.get_filename(name)) == path:
            return compile(source, str(path), "exec", dont_inherit=True)
        return own(loader, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    import pytest

    code = 3
    try:
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    finally:
        os._exit(code)


def main() -> None:
    """Plant, run, list."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path, help="a file of src/denoiserl")
    p.add_argument("--tests", nargs="*", help="what should see them (default: the file's oracle, then its folder)")
    p.add_argument("--lines", help="only in these lines: 80-140")
    p.add_argument("--sample", type=int, help="so many of them, drawn evenly (default: all)")
    p.add_argument("--seed", type=int, default=0, help="of the draw")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes side by side")
    p.add_argument("--list", action="store_true", help="list the mistakes and run nothing")
    a = p.parse_args()
    path = a.file.resolve()
    source = path.read_text(encoding="utf-8")
    found = mistakes(source)
    if a.lines:
        low, _, high = a.lines.partition("-")
        found = [m for m in found if int(low) <= m.line <= int(high or low)]
    if a.sample is not None and a.sample < len(found):
        found = sorted(random.Random(a.seed).sample(found, a.sample))
    if a.list:
        print("\n".join(said(source, m) for m in found))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    import gymnasium  # noqa: F401 - forked children find them imported
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports the compiler, once for all children
    rounds = [[t] for t in a.tests] if a.tests else tests_of(path)
    print("running the tests without a mistake, to know that they are green", flush=True)
    seen, took = run(path, source, rounds, 600)
    if seen:
        sys.exit(f"{' '.join(chain(*rounds))}: not green without a mistake, so they can see none")
    print(f"{len(found)} mistakes in {a.file}; the tests take {took:.1f} s", flush=True)
    limit = 10 + 5 * took
    lost: list[Mistake] = []
    with ThreadPoolExecutor(a.jobs) as pool:
        for i, (m, (caught, _)) in enumerate(
            zip(found, pool.map(lambda m: run(path, planted(source, m), rounds, limit), found), strict=True), 1
        ):
            if not caught:
                lost.append(m)
                print(said(source, m), flush=True)
            if sys.stderr.isatty():
                print(f"\r{i}/{len(found)}, {len(lost)} not seen", end="", file=sys.stderr)
    print(f"{len(found) - len(lost)} of {len(found)} seen ({1 - len(lost) / max(1, len(found)):.0%})")


def said(source: str, mistake: Mistake) -> str:
    """A line of the report."""
    old, new = (text.splitlines()[mistake.line - 1].strip() for text in (source, planted(source, mistake) + "\n" * 9))
    return f"  line {mistake.line}: {old}\n       becomes {new}"


if __name__ == "__main__":
    main()
