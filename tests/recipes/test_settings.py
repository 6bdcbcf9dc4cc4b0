"""Options of all recipes and tasks: one meaning per name, and values that cannot work are refused at once."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import annotated_types
import pytest

from denoiserl import recipes, tasks
from denoiserl.cli import main
from denoiserl.core.errors import RunError
from denoiserl.core.settings import Settings, describe_range

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import docs_recipes

FREE = {"reward_scale", "reward_shift", "target_entropy", "guidance_scale", "max_return_drop"}
"""numbers of any size and sign"""
RECORDS = {**{n: recipes.load(n).Args for n in recipes.names()}, **{n: tasks.args_type(n) for n in tasks.TASKS}}


def meaning(words: str) -> str:
    """What an option means: the words before the first semicolon; details of a recipe stand behind it."""
    return words.partition("; ")[0].partition(" (")[0]


def test_an_option_has_one_meaning_in_all_recipes() -> None:
    found: dict[str, dict[str, list[str]]] = {}
    for name in recipes.names():
        for option in docs_recipes.options(docs_recipes.recipe(name)):
            if "." not in option.name:
                assert option.meaning, f"{name}: {option.name} is not explained"
                found.setdefault(option.name, {}).setdefault(meaning(option.meaning), []).append(name)
    several = {name: told for name, told in found.items() if len(told) > 1}
    assert not several, several


def inner(kind: Any) -> Any:
    """The type beside None."""
    rest = [part for part in get_args(kind) if part is not type(None)]
    return rest[0] if len(rest) == 1 and type(None) in get_args(kind) else kind


def outside(kind: Any) -> list[Any]:
    """Values just outside the range of an annotation."""
    found = []
    for rule in get_args(inner(kind))[1:]:
        whole = get_args(inner(kind))[0] is int
        match rule:
            case annotated_types.Ge(ge=end):
                found.append(end - 1 if whole else end - 0.001)
            case annotated_types.Gt(gt=end):
                found.append(end)
            case annotated_types.Le(le=end):
                found.append(end + 1 if whole else end + 0.001)
    return found


CASES = [
    (name, field.name, value)
    for name, record in RECORDS.items()
    for field in dataclasses.fields(record)
    for value in outside(get_type_hints(record, include_extras=True)[field.name])
]


@pytest.mark.parametrize("name", RECORDS)
def test_every_number_says_its_range(name: str) -> None:
    record = RECORDS[name]
    hints = get_type_hints(record, include_extras=True)
    assert issubclass(record, Settings)
    free = {f.name for f in dataclasses.fields(record) if inner(hints[f.name]) in (int, float)}
    assert free <= FREE


@pytest.mark.parametrize("name", RECORDS)
def test_what_cannot_work_is_refused_when_the_record_is_made(name: str) -> None:
    record = RECORDS[name]
    hints = get_type_hints(record, include_extras=True)
    cases = [(field, value) for other, field, value in CASES if other == name]
    for field, kind in hints.items():
        if describe_range(kind):
            cases += [(field, float("nan")), (field, "many"), (field, True)]
            cases += [(field, 2.5)] if get_args(inner(kind))[0] is int else []
        if get_origin(inner(kind)) is Literal:
            cases.append((field, "nothing of the kind"))
    assert cases
    for field, value in cases:
        with pytest.raises(RunError, match=rf"^{field}\b.*(give|Known)"):
            record(**{field: value})


@pytest.mark.parametrize(
    ("name", "field", "value"), [case for case in CASES if case[0] in ("dppo", "flow_grpo", "td3_bc", "mdlm")]
)
def test_the_command_line_refuses_the_same(
    name: str, field: str, value: Any, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", name, f"--{field.replace('_', '-')}={value}"]) == 2
    err = capsys.readouterr().err
    assert field in err and "out of range" in err and not list(tmp_path.iterdir())


def test_the_help_shows_ranges(capsys: Any) -> None:
    assert main(["run", "dppo", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 0.99; ≥ 0, ≤ 1)" in told and "(default: 40; ≥ 1)" in told
