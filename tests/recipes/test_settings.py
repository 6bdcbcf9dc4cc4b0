"""Options of all recipes and tasks: one meaning per name, and values that cannot work are refused at once."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import annotated_types
import pytest

from denoiserl import recipes, tasks
from denoiserl.cli import main
from denoiserl.core.errors import RunError
from denoiserl.core.settings import Settings, describe_range
from denoiserl.policy.policy import Policy
from denoiserl.train import Run

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import docs_recipes

FREE = {"reward_scale", "reward_shift", "target_entropy", "guidance_scale", "max_return_drop"}
"""numbers of any size and sign"""
ARGS = {name: recipes.load(name).Args for name in recipes.names()}
MODELS = {f"{name}.model": type(kind().model) for name, kind in ARGS.items() if hasattr(kind(), "model")}
RECORDS = {**ARGS, **MODELS, **{name: tasks.args_type(name) for name in tasks.TASKS}}


def required(record: Any) -> dict[str, str]:
    """Values of the fields without a default."""
    lacks = dataclasses.MISSING
    return {f.name: "x" for f in dataclasses.fields(record) if f.default is lacks and f.default_factory is lacks}


def meaning(words: str) -> str:
    """What an option means: the words before the first semicolon; details of a recipe stand behind it."""
    return words.partition("; ")[0].partition(" (")[0]


def explained_options() -> Iterator[tuple[str, str, str]]:
    """Yield (recipe or task, name, explanation) of all options, those of models too: ``model.lr`` counts as ``lr``."""
    for name in recipes.names():
        for option in docs_recipes.options(docs_recipes.recipe(name)):
            yield name, option.name.rpartition(".")[2], option.meaning
    for name in tasks.TASKS:
        kind = tasks.args_type(name)
        for option in docs_recipes.options(docs_recipes.source(Path(inspect.getfile(kind))), kind.__name__):
            yield f"task {name}", option.name.rpartition(".")[2], option.meaning


def test_an_option_has_one_meaning_in_all_recipes_and_tasks() -> None:
    found: dict[str, dict[str, list[str]]] = {}
    for where, name, words in explained_options():
        assert words, f"{where}: {name} is not explained"
        found.setdefault(name, {}).setdefault(meaning(words), []).append(where)
    assert {"batch_size", "sampling_steps", "pretrain_updates", "num_windows"} <= set(found)
    several = {name: told for name, told in found.items() if len(told) > 1}
    assert not several, several


def test_what_stands_behind_a_meaning_is_no_other_unit() -> None:
    """``refill_every; in decisions`` beside ``in iterations`` is two options: a guess would be accepted silently."""
    wrong = [
        f"{where}: {name}: {words}"
        for where, name, words in explained_options()
        if re.search(r"; (in|per) \w+s\b", words)
    ]
    assert not wrong, wrong


def inner(kind: Any) -> Any:
    """The type beside None."""
    rest = [part for part in get_args(kind) if part is not type(None)]
    return rest[0] if len(rest) == 1 and type(None) in get_args(kind) else kind


def edges(kind: Any) -> list[Any]:
    """The ends of the range of an annotation that belong to it."""
    ends = [getattr(rule, "ge", getattr(rule, "le", None)) for rule in get_args(inner(kind))[1:]]
    return [end for end in ends if end is not None]


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
            case annotated_types.Lt(lt=end):
                found.append(end)
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
        elif get_origin(inner(kind)) is tuple:
            cases += [(field, 0.5), (field, "1,1")]
        elif get_origin(kind) is dict:
            cases += [(field, None), (field, [1]), (field, {"part": float("nan")}), (field, {"part": "much"})]
        if get_origin(inner(kind)) is Literal:
            cases.append((field, "nothing of the kind"))
    assert cases
    for field, value in cases:
        with pytest.raises(RunError, match=rf"^{field}\b.*(give|Known)"):
            record(**required(record) | {field: value})


WEIGHED = ("ddpo", "rwr", "flow_grpo", "tracerl", "diffu_grpo")
RELATIONS = [
    ("reinflow", {"noise_std_min": 0.5}, "noise_std_min = 0.5 is above noise_std_max = 0.24"),
    ("ddpo", {"min_count": 33}, "min_count = 33 is above stat_window = 32"),
    ("ddpo", {"min_count": 1}, "min_count = 1 is out of range.*at least 2"),
    ("tracerl", {"prompt_accuracy_range": (0.8, 0.2)}, "prompt_accuracy_range = .* the lower one first"),
    ("tracerl", {"prompt_accuracy_range": (0.2, 8.0)}, "prompt_accuracy_range = 8.0 is out of range"),
    ("diffu_grpo", {"answer_mask": (0.9, 0.1)}, "answer_mask = .* the lower one first"),
    ("diffu_grpo", {"answer_mask": (0.0, 0.0)}, "answer_mask = .* masks nothing"),
    ("ppo", {"iterations": 2}, "critic_warmup = 2 is not below iterations = 2: give at most 1"),
    ("fpo", {"critic_warmup": 40}, "critic_warmup = 40 is not below iterations = 40"),
    ("dppo", {"critic_warmup": 40}, "critic_warmup = 40 is not below iterations = 40"),
    ("reinflow", {"critic_warmup": 41}, "critic_warmup = 41 is not below iterations = 40"),
    ("beyond_human", {"critic_warmup": 26}, "critic_warmup = 26 is not below iterations = 26"),
    ("beyond_human", {"num_student_episodes": 1001}, "num_student_episodes = 1001 is above max_recorded_episodes"),
    ("gorl", {"iterations": 2}, "a stage has 0.3 of iterations = 2, and critic_warmup = 1"),
    ("sac", {"learning_starts": 15_000}, "iterations = 300 takes 15000 decisions, and .* needs 15001"),
    ("td3", {"iterations": 4}, "iterations = 4 takes 200 decisions, and .* needs 501"),
    ("dsrl", {"iterations": 4}, "iterations = 4 takes 384 decisions"),
    ("synther_sac", {"iterations": 10}, "iterations = 10 takes 500 decisions"),
    *[(name, {"reward_weights": {"a": 0, "b": 0.0}}, "reward_weights = .* no weight other than 0") for name in WEIGHED],
    ("env", {"obs_horizon": 2}, "obs_horizon = 2 needs a policy at start"),
    ("gorl", {"stage_fractions": ()}, "stage_fractions = .* at least 1"),
    ("gorl", {"stage_fractions": (0.0,)}, "stage_fractions = .* no positive share"),
    ("gorl", {"stage_fractions": (2.0, -1.0)}, "stage_fractions = -1.0 is out of range"),
    ("rwr", {"group_size": 1}, "group_size = 1 .* compare_within"),
    ("sac", {"buffer_size": 100}, "batch_size = 256 is above buffer_size = 100"),
    ("td3", {"buffer_size": 100}, "batch_size = 256 is above buffer_size = 100"),
    ("dsrl", {"buffer_size": 100}, "batch_size = 128 is above buffer_size = 100"),
    ("synther_sac", {"buffer_size": 100}, "batch_size = 256 is above buffer_size = 100"),
    ("synther_sac", {"decisions_per_refill": 200}, "decisions_per_refill = 200 .* model.batch_size = 256"),
    ("synther", {"n_step": 2}, "n_step = 2 .* single transitions: give 1"),
    ("pgd", {"n_step": 2}, "n_step = 2 .* single actions"),
    ("shapes", {"objects": (4, 2)}, "objects = .* the lower one first"),
    ("env", {"execution_horizon": 6}, "execution_horizon = 6 is above action_horizon = 5"),
]


@pytest.mark.parametrize(("name", "settings", "words"), RELATIONS)
def test_settings_that_do_not_fit_each_other_are_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=f"^{words}"):
        RECORDS[name](**settings)


def test_settings_that_may_differ_are_accepted() -> None:
    assert ARGS["rwr"](group_size=1, compare_within="batch").group_size == 1
    assert RECORDS["env"](start="a/policy", execution_horizon=8).execution_horizon == 8
    assert ARGS["reinflow"](noise_std_min=0.24).noise_std_max == 0.24


@pytest.mark.parametrize("name", [name.partition(".")[0] for name in MODELS])
def test_the_settings_of_a_model_are_checked(name: str) -> None:
    assert ARGS[name](model={"lr": 0.5}).model == dataclasses.replace(ARGS[name]().model, lr=0.5)
    for value, words in (
        (None, "model = None .*give"),
        ("x", "model = 'x' .*give"),
        ({"lr": -1}, "model.lr = -1 is out of range"),
        ({"lrr": 1}, "model.lrr: .*Did you mean 'lr'"),
    ):
        with pytest.raises(RunError, match=f"^{words}"):
            ARGS[name](model=value)


@pytest.mark.parametrize("name", RECORDS)
def test_the_ends_of_a_range_belong_to_it(name: str) -> None:
    hints = get_type_hints(RECORDS[name], include_extras=True)
    fits: dict[str, Any] = {"rwr": {"compare_within": "batch"}, "ddpo": {"min_count": 2}}.get(name, {})
    fits |= {"batch_size": 1} if "buffer_size" in hints else {}
    fits |= {"model": {"batch_size": 1}} if name == "synther_sac" else {}
    fits |= {"execution_horizon": 1} if name == "env" else {}
    fits |= required(RECORDS[name])
    for field, kind in hints.items():
        for end in edges(kind):
            try:
                assert getattr(RECORDS[name](**{**fits, field: end}), field) == end
            except RunError as error:  # in its range, and too few or too many beside the defaults of others
                assert re.search("is not below|is above|the first update needs|a stage has", str(error)), error


@pytest.mark.parametrize("name", ["sudoku", "shapes"])
def test_a_task_without_imitation_starts_from_an_untrained_policy(name: str) -> None:
    task = tasks.make(name, {"pretrain_updates": 0, "policy_width": 24})
    start = task.start_policy(0, Run())
    with pytest.raises(StopIteration) as end:
        next(start)
    assert isinstance(end.value.value, Policy)


@pytest.mark.parametrize(
    ("name", "field", "value"), [case for case in CASES if case[0] in ("dppo", "flow_grpo", "td3_bc", "mdlm")]
)
def test_the_command_line_refuses_the_same(
    name: str, field: str, value: Any, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", name, f"--{field.replace('_', '-')}={value}"]) == 2
    err = capsys.readouterr().err
    assert f"--{field.replace('_', '-')}" in err and "out of range" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("reinflow", ["--noise-std-min", "0.5"], "noise-std-min = 0.5 is above --noise-std-max"),
        ("ppo", ["--execution-horizon", "6"], "execution-horizon = 6 is above --action-horizon"),
        ("gorl", ["--stage-fractions", "0"], "no positive share"),
        ("synther", ["--model.lr", "-1"], "lr = -1.0 is out of range"),
    ],
)
def test_the_command_line_refuses_what_does_not_fit(
    name: str, options: list[str], words: str, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", name, *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_the_help_shows_ranges(capsys: Any) -> None:
    assert main(["run", "dppo", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 0.99; ≥ 0, ≤ 1)" in told and "(default: 40; ≥ 1)" in told
