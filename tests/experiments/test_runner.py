"""Runs: killed and resumed they are the same run to the byte; other settings are refused; all can be read."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.imports import load_module
from denoiserl.core.progress import format_duration, show_progress
from denoiserl.core.serialization import store
from denoiserl.core.serialization.args_json import diff_settings, from_json, to_json
from denoiserl.experiments.runner import load_run, rerun, run
from denoiserl.train.metrics_log import MetricsLog
from denoiserl.train.progress import LoopProgress
from denoiserl.train.run_state import Position

RECIPE = '''
"""A toy: regression in two stages, with everything that can be lost on the way."""
from __future__ import annotations
import random, time
from dataclasses import dataclass
import numpy, torch
from torch import nn
from denoiserl.core.serialization import store
from denoiserl.core.counters import count_usage
from denoiserl.core.rng import Rng
from denoiserl.train import EMA, adamw, optimizer_step, warmup_cosine

@dataclass(frozen=True)
class Args:
    seed: int = 3
    imitate: int = 12
    improve: int = 24
    lr: float = 0.01
    nap: float = 0.0

class Env:
    def on_checkpoint(self, iteration):
        self.state = torch.full((4,), float(iteration))
    def step(self):
        count_usage("env_steps", 4)
        self.state = 0.9 * self.state + torch.randn(4)
        return self.state

class Saved(nn.Sequential):
    def save(self, path):
        store.write(path, self.state_dict())

def train(a, keep):
    net, rng, env = Saved(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 4)), Rng(a.seed), Env()
    first = keep.stage("imitate")
    opt = adamw(net.parameters(), a.lr)
    for _ in first.loop(a.imitate, net=net, opt=opt, rng=rng):
        time.sleep(a.nap)
        yield optimizer_step(opt, (net(rng.normal(6, 4)) - 1).square().mean())
    yield {"imitated": sum(p.sum().item() for p in net.parameters())}
    second = keep.stage("improve")
    opt = adamw(net.parameters(), a.lr)
    lr, ema = warmup_cosine(opt, 3, a.improve), EMA(net)
    for it in second.loop(a.improve, net=net, opt=opt, lr=lr, ema=ema, rng=rng, env=env):
        time.sleep(a.nap)
        told = optimizer_step(opt, (net(env.step()) - random.random()).square().mean() + numpy.random.rand(), clip=1.0)
        lr.step(), ema.update()
        second.best(net, -told["loss"])
        yield {**told, "spent": second.usage()["env_steps"], "odd": float("nan")}
    ema.copy_to(net)
    keep.save_last(net)
    yield {"done": True}
'''


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "toy.py").write_text(RECIPE)
    return load_module(str(tmp_path / "toy.py"))


def go(recipe, folder, **more):
    return run(recipe, recipe.Args(), folder, **{"save_every": 5, "progress": False, "tensorboard": False, **more})


def left(folder):
    """Everything that two equal runs leave alike."""
    return {
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        "last": (folder / "last" / store.TENSORS).read_bytes(),
        "best": (folder / "improve" / "best" / store.TENSORS).read_bytes(),
        "state": (folder / "improve" / "state" / store.TENSORS).read_bytes(),
        "lines": len((folder / "clock.jsonl").read_text().splitlines()),
    }


def script(tmp_path, folder, nap=0.0):
    file = tmp_path / f"start_{folder.name}.py"
    file.write_text(
        "import torch\ntorch.set_num_threads(1)\nfrom denoiserl.experiments.runner import load_module as module, run\n"
        f"m = module({str(tmp_path / 'toy.py')!r})\n"
        f"run(m, m.Args(nap={nap}), {str(folder)!r}, save_every=5, progress=False, tensorboard=False)\n"
    )
    return file


@pytest.mark.fixed_seed
def test_killed_anywhere_and_resumed_it_is_the_same_run(tmp_path, recipe, start):
    # a life lasts at most 0.17 s: at 20 ms per iteration the first three end before 25 of the 36 on any machine
    run(recipe, recipe.Args(nap=0.02), tmp_path / "whole", save_every=5, progress=False, tensorboard=False)
    folder, chance, deaths = tmp_path / "killed", random.Random(0), 0
    while True:
        process = start(script(tmp_path, folder, nap=0.02))
        while process.is_alive() and not (folder / "run.json").exists():
            time.sleep(0.002)
        process.join(0.05 + 0.12 * chance.random() if deaths < 5 else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        deaths += 1
    assert process.exitcode == 0 and deaths >= 3
    assert left(folder) == left(tmp_path / "whole")


@pytest.mark.fixed_seed
def test_ctrl_c_ends_in_order_with_130_and_the_same_command_goes_on(tmp_path, recipe, start):
    folder = tmp_path / "stopped"
    process = start(script(tmp_path, folder, nap=0.02))
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_bytes():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130 and store.read_json(folder / "run.json")["finished"] is None
    assert store.read_structure(folder / "imitate" / "state")["iteration"] == len(
        (folder / "metrics.jsonl").read_text().splitlines()
    )
    rerun(folder, progress=False, tensorboard=False)
    run(recipe, recipe.Args(nap=0.02), tmp_path / "whole", save_every=5, progress=False, tensorboard=False)
    assert left(folder) == left(tmp_path / "whole")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (2, "Stopped before the first save: nothing is kept. Run the same command again to start again"),
        (9, "Stopped at once: the last save is kept. Run the same command again to resume"),
    ],
)
def test_a_stop_at_once_says_whether_anything_was_saved(tmp_path, recipe, monkeypatch, capsys, rows, words):
    whole = recipe.train

    def interrupted(args, keep):
        for _, row in zip(range(rows), whole(args, keep), strict=False):
            yield row
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train", interrupted)
    with pytest.raises(SystemExit) as stop:
        go(recipe, tmp_path / "stopped")
    assert stop.value.code == 130 and words in capsys.readouterr().err


def test_a_run_tells_what_it_is_and_returns_what_it_did(tmp_path, recipe):
    told = go(recipe, tmp_path / "r")
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert told["rows"] == len(rows) == 12 + 1 + 24 + 1 and told["last"] == rows[-1]
    assert [(r["stage"], r["iteration"]) for r in rows[10:14]] == [
        ("imitate", 10),
        ("imitate", 11),
        (None, None),
        ("improve", 0),
    ]
    assert rows[-2]["spent"] == told["spent"]["env_steps"] == 24 * 4 and told["spent"]["updates"] == 36
    assert rows[-2]["odd"] == "nan"
    found, args, record = load_run(tmp_path / "r")
    assert args == found.Args() and record["seed"] == 3 and record["versions"]["torch"] == torch.__version__
    assert record["finished"] and record["place"] == told["place"]
    before = left(tmp_path / "r")
    assert rerun(tmp_path / "r", progress=False, tensorboard=False)["last"] == rows[-1]
    assert left(tmp_path / "r") == before


def test_other_settings_are_refused_by_name(tmp_path, recipe):
    go(recipe, tmp_path / "r")
    with pytest.raises(RunError, match=r"args\.lr: 0\.01 there, 0\.1 here.*new folder"):
        run(recipe, recipe.Args(lr=0.1), tmp_path / "r", save_every=5)
    with pytest.raises(RunError, match=r"threads: None there, 2 here; save_every: 5 there, 6 here"):
        go(recipe, tmp_path / "r", threads=2, save_every=6)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(RunError, match=r"holds thesis\.txt"):
        go(recipe, tmp_path / "mine")
    with pytest.raises(RunError, match=r"does not exist"):
        rerun(tmp_path / "nowhere")


def test_a_run_that_failed_before_its_first_row_does_not_keep_its_folder(tmp_path, recipe, monkeypatch):
    """A mistyped setting is mended in place; what has rows or a save stays as it was begun."""
    train = recipe.train

    def failing(args, keep):
        raise RunError("there are no data 'nix'")
        yield {}

    monkeypatch.setattr(recipe, "train", failing)
    with pytest.raises(RunError, match="nix"):
        run(recipe, recipe.Args(lr=0.1), tmp_path / "r", progress=False)
    monkeypatch.setattr(recipe, "train", train)
    go(recipe, tmp_path / "r")
    assert json.loads((tmp_path / "r" / "run.json").read_text())["args"]["lr"] == 0.01
    with pytest.raises(RunError, match=r"args\.lr"):
        run(recipe, recipe.Args(lr=0.1), tmp_path / "r", save_every=5)


def interrupt(folder: Path) -> None:
    """Let the record say that the run has not finished."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"finished": None}))


def test_a_damaged_run_is_refused_and_nothing_is_cut(tmp_path, recipe):
    go(recipe, tmp_path / "r")
    rows = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "r" / "metrics.jsonl").write_text("".join(rows[:20]))
    interrupt(tmp_path / "r")
    with pytest.raises(RunError, match=r"metrics\.jsonl has 20 rows, the saved state has 37"):
        go(recipe, tmp_path / "r")
    state = tmp_path / "r" / "improve" / "state" / store.TENSORS
    (tmp_path / "r" / "metrics.jsonl").write_text("".join(rows))
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"improve/state/tensors"):
        go(recipe, tmp_path / "r")
    assert (tmp_path / "r" / "metrics.jsonl").read_text().splitlines(keepends=True)[:37] == rows[:37]


def test_two_runs_of_one_process_cannot_share_a_folder(tmp_path, recipe):
    class Twice:
        __recipe__, Args = "twice.py", recipe.Args

        @staticmethod
        def train(a, keep):
            with pytest.raises(RunError, match="Another process"):
                go(recipe, keep.folder)
            yield {"refused": 1}

    assert go(Twice, tmp_path / "r")["last"]["refused"] == 1


def test_two_processes_cannot_share_a_folder_and_a_killed_one_frees_it(tmp_path, start):
    (tmp_path / "toy.py").write_text(
        "import time\nfrom dataclasses import dataclass\n@dataclass(frozen=True)\nclass Args:\n    nap: float = 0.0\n"
        "def train(a, keep):\n    (keep.folder.parent / 'begun').touch()\n"
        "    while not (keep.folder.parent / 'go').exists():\n        time.sleep(0.01)\n    yield {'done': True}\n"
    )
    waits, folder = load_module(str(tmp_path / "toy.py")), tmp_path / "r"
    process = start(script(tmp_path, folder))
    while process.is_alive() and not (tmp_path / "begun").exists():
        time.sleep(0.002)
    with pytest.raises(RunError, match=r"Another process runs in .*: wait for it, or give another folder"):
        go(waits, folder)
    assert process.is_alive(), "the refusal disturbs nothing"
    process.kill()
    process.join()
    (tmp_path / "go").touch()
    assert go(waits, folder)["last"]["done"]


def test_threads_are_the_runs_and_then_the_callers_again(tmp_path, recipe):
    class Asks:
        __recipe__, Args = "asks.py", recipe.Args

        @staticmethod
        def train(a, keep):
            yield {"threads": torch.get_num_threads()}

    before = torch.get_num_threads()
    assert go(Asks, tmp_path / "r", threads=before + 1)["last"]["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_a_budget_may_grow_and_the_run_goes_on(tmp_path, recipe):
    assert go(recipe, tmp_path / "r", budget={"updates": 20})["spent"]["updates"] == 20
    assert go(recipe, tmp_path / "r", budget={"updates": 30})["spent"]["updates"] == 30


def test_tensorboard_hides_what_was_repeated(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "metrics.jsonl").touch()
    at = Position("improve", 0, 9, 0)
    for first, last in ((0, 5), (3, 7)):
        journal = MetricsLog(tmp_path, rows=first)
        at.first = first
        for at.iteration in range(first, last):
            journal.write({"return": 10.0 * first + at.iteration}, at)
        journal.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tb" / "improve")).Reload().Scalars("return")
    assert [(e.step, e.value) for e in events] == [(0, 0), (1, 1), (2, 2), (3, 33), (4, 34), (5, 35), (6, 36)]


def test_rows_of_a_repeated_iteration_are_not_written_twice(tmp_path):
    outer = Position("", 2, 9, 0)
    journal = MetricsLog(tmp_path, tensorboard=False)
    journal.write({"a": 1}, outer)
    journal.write({"b": 1}, None)
    journal.close()
    journal = MetricsLog(tmp_path, rows=2, tensorboard=False)
    for row, at in (({"a": 1}, outer), ({"c": 1}, outer), ({"b": 1}, None), ({"d": torch.tensor(2.5)}, None)):
        journal.write(row, at)
    journal.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [next(reversed(r.items())) for r in rows] == [("a", 1), ("b", 1), ("c", 1), ("d", 2.5)]
    with pytest.raises(InvalidInputError, match="'video' is a Tensor"):
        journal.write({"video": torch.zeros(2, 3)}, outer)
    with pytest.raises(InvalidInputError, match="'stage'"):
        journal.write({"stage": "mine"}, outer)


def test_without_a_terminal_progress_is_lines_with_the_time_left():
    stream, at = io.StringIO(), Position("improve", 0, 4, 0)
    with show_progress(stream=stream, every=0.0) as display:
        shown = LoopProgress(display)
        shown.update(at)
        for at.iteration in (1, 4):
            shown.row({"stage": "improve", "iteration": 0, "loss/policy": 2, "eval/return": -12.3456, "note": "x"})
            time.sleep(0.01)
            shown.update(at)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "improve 1/4 25%, 0:00 left  eval/return=-12.35 loss/policy=2"
    assert lines[-1] == "improve 4/4 100%, in 0:00  eval/return=-12.35 loss/policy=2"
    assert [format_duration(s) for s in (59.6, 3600, 3725)] == ["1:00", "1:00:00", "1:02:05"]


class Colour(Enum):
    RED = "r"


@dataclass(frozen=True)
class Vp:
    eta: float = 1.0


@dataclass(frozen=True)
class Flow:
    churn: float = 0.7


@dataclass(frozen=True)
class Everything:
    process: Vp | Flow = Flow()
    plain: Vp = Vp()
    widths: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None
    colour: Colour = Colour.RED
    lr: float = 1.0
    seed: int = 0


@pytest.mark.parametrize(
    "args",
    [
        Everything(),
        Everything(Vp(0.5), Vp(2), (3,), (2, "b"), ["x"], {"a": 1.0}, Path("/tmp/x"), Colour.RED, 2, 7),
        Everything(folder=Path("here"), widths=()),
    ],
)
def test_args_come_back_from_json(args):
    assert from_json(Everything, json.loads(json.dumps(to_json(args)))) == args


def test_args_that_are_no_values_or_unknown_are_refused():
    with pytest.raises(RunError, match=r"args\.names is a set"):
        to_json(Everything(names={1}))
    with pytest.raises(RunError, match="Did you mean 'seed'"):
        from_json(Everything, {"seeds": 1})
    assert diff_settings({"a": {"b": 1}, "c": 2}, {"a": {"b": 1.0}, "c": 2}) == ["a.b: 1 there, 1.0 here"]
