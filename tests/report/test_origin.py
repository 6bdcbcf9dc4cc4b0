"""The command on a report makes the same run again, and the words are those of the recipe."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from denoiserl import recipes, tasks
from denoiserl.cli import main
from denoiserl.core.errors import RunError
from denoiserl.core.imports import load_module
from denoiserl.core.serialization.args_json import flat, to_json
from denoiserl.experiments import experiment, run_record, runner
from denoiserl.report.html import Code, Prose
from denoiserl.report.provenance import command, load_run, paragraphs, parse_description, reproduction_section


def run(place: Path, **record: object) -> Path:
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps(record))
    return place


def other(args: object) -> object:
    """The same options, every one of them changed."""
    changed = {}
    for f in dataclasses.fields(args):  # type: ignore[arg-type]
        value = getattr(args, f.name)
        if dataclasses.is_dataclass(value):
            changed[f.name] = other(value)
        elif isinstance(value, bool):
            changed[f.name] = not value
        elif isinstance(value, int | float):
            changed[f.name] = value * 2 + 1 if isinstance(value, int) else value / 2 + 0.1
        elif isinstance(value, tuple) and value and isinstance(value[0], int | float):
            changed[f.name] = tuple(v + 1 if isinstance(v, int) else v / 2 for v in value)
    if hasattr(args, "obs_horizon"):
        changed["start"] = "runs/other"  # which more than one observation needs
    return dataclasses.replace(args, **changed)  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["tracerl", "dppo", "ddpo", "diffu_grpo", "sac"])
def test_the_command_gives_the_options_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Any, Path, dict[str, Any]]] = []

    def start(program: Any, args: Any, folder: Path, **settings: Any) -> None:
        started.append((args, folder, settings))
        raise SystemExit(0)

    monkeypatch.setattr(runner, "run", start)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    recipe, task = recipes.load(name), tasks.args_type(recipes.load(name).DEFAULT_TASK)
    usual = task(**getattr(recipe, "DEFAULT_TASK_ARGS", {}))
    for i, (args, base) in enumerate(((recipe.Args(), usual), (other(recipe.Args()), other(usual)))):
        made = experiment.Args(name, to_json(args), recipe.DEFAULT_TASK, to_json(base), seed=3 * i)
        record = {"program": experiment.__name__, "args": to_json(made), "device": "cuda:1", "precision": "bf16"}
        record |= {
            "threads": 4,
            "save_every": None,
            "env_restart_every": 7,
            "budget": {"env_steps": 5000, "seconds": 60.5},
            "seed": made.seed,
        }
        record["about"] = json.loads(json.dumps(experiment.run_description(made)))
        line = shlex.split(command(load_run(run(tmp_path / str(i), **record))))
        assert line[:3] == ["denoiserl", "run", name]
        assert main(line[1:]) == 0
        given, folder, settings = started.pop()
        assert to_json(given) == to_json(made) and folder == Path(f"runs/{i}") and not settings.pop("numbered")
        wanted = {name: record[name] for name in ("device", "precision", "threads", "save_every", "env_restart_every")}
        assert settings == wanted | {"budget": record["budget"], "progress": True}


def test_defaults_are_not_said_and_the_usual_folder_is_not_named(tmp_path: Path) -> None:
    made = experiment.Args("mdlm", {}, "sudoku", seed=3)
    record = {"args": to_json(made), "seed": 3, "device": "cpu", "precision": "float32", "threads": 1}
    place = run(
        tmp_path / "mdlm-sudoku-3-2", program=experiment.__name__, about=experiment.run_description(made), **record
    )
    assert command(load_run(place)) == "denoiserl run mdlm --seed 3"


def test_another_task_is_named(tmp_path: Path) -> None:
    made = experiment.Args("td3_bc", {}, "offline", {"data": "ring"}, seed=0)
    place = run(tmp_path / "td3_bc-offline-0", about=experiment.run_description(made), seed=0)
    assert command(load_run(place)) == "denoiserl run td3_bc --task.data ring"
    made = experiment.Args("dppo", {}, "offline", {}, seed=0)
    place = run(tmp_path / "dppo-offline-0", about=experiment.run_description(made), seed=0)
    assert command(load_run(place)) == "denoiserl run dppo --task offline"


def test_flags_that_are_switched_off_and_words_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        '"""MINE: a program of my own\n\npaper: none\n\nIt does this.\n"""\nfrom dataclasses import dataclass\n'
        "@dataclass(frozen=True)\nclass Inner:\n    slow: bool = True\n    two_words: str = 'x'\n"
        "@dataclass(frozen=True)\nclass Args:\n    loud: bool = False\n    inner: Inner = Inner()\n"
        "def train(a, keep): yield {}\n"
    )
    program = load_module(str(tmp_path / "mine.py"))
    args = program.Args(True, program.Inner(False, "a b"))
    about = run_record.describe_program(program, args)
    made = load_run(run(tmp_path / "mine", program=str(tmp_path / "mine.py"), args=to_json(args), about=about))
    line = shlex.split(command(made))
    assert line[:3] == ["denoiserl", "run", "mine.py"]  # and not where it lay on this machine
    assert tyro.cli(program.Args, args=line[3:]) == args
    assert (made.description.name, made.description.title, made.description.body) == (
        "MINE",
        "a program of my own",
        "It does this.",
    )
    assert any("folder of the recipe" in getattr(p, "text", "") for p in reproduction_section([made]).pieces)


def test_a_record_that_says_little_leaves_its_numbers(tmp_path: Path) -> None:
    said = {"name": "gone", "run": "gone", "options": {"lr": 1.0, "task.n": [1, 2]}}
    made = load_run(run(tmp_path / "old", about=said))
    assert made.defaults is None
    assert made.changed_options == {"lr": 1.0, "task.n": [1, 2]}  # all of them: the defaults are not known
    assert command(made) == "denoiserl run gone --lr 1.0 --task.n 1 2 --out runs/old"
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "run.json").write_text("[]")
    with pytest.raises(RunError, match="not an object"):
        load_run(tmp_path / "list")


def test_the_words_are_those_of_the_card() -> None:
    for name in recipes.names():
        card, said = recipes.describe(name), parse_description(recipes.load(name).__doc__ or "", name)
        assert (said.name, said.title, said.fields["paper"], said.fields["signal"]) == (
            card.name,
            card.title,
            card.paper,
            card.signal,
        )
        assert said.body == card.body


def test_equations_keep_their_lines() -> None:
    one, two, three = paragraphs("Text that\ngoes on.\n\n    L = a\n      + b\n\nEnd.")
    assert one == Prose("Text that goes on.") and two == Code("L = a\n  + b") and three == Prose("End.")


def test_names_of_classes_are_no_options() -> None:
    assert flat({"kind": "mine", "base": {"kind": "Base", "lr": 1, "deep": {"kind": "D", "x": None}}}) == {
        "kind": "mine",
        "base.lr": 1,
        "base.deep.x": None,
    }


def test_wall_time_adds_the_parts_of_a_resumed_run(tmp_path: Path) -> None:
    place = run(tmp_path / "r", program="x")
    assert load_run(place).seconds is None
    seconds = [1.0, 2.0, 5.0, 0.5, 3.0]
    (place / "clock.jsonl").write_text("".join(json.dumps({"seconds": s}) + "\n" for s in seconds))
    assert load_run(place).seconds == 8.0


def test_versions_that_differ_are_told_run_by_run(tmp_path: Path) -> None:
    one = run(tmp_path / "a", program="x", commit="a" * 40 + "+", versions={"torch": "2.6", "python": "3.11"})
    two = run(tmp_path / "b", program="x", commit="b" * 40, versions={"torch": "2.7", "python": "3.11"})
    pieces = reproduction_section([load_run(one), load_run(two)]).pieces
    assert any(isinstance(p, Prose) and "python 3.11" in p.text and "torch" not in p.text for p in pieces)
    table = next(p for p in pieces if hasattr(p, "rows"))
    assert table.rows == [("a", "2.6", "aaaaaaaaaa+"), ("b", "2.7", "bbbbbbbbbb")]  # type: ignore[union-attr]
