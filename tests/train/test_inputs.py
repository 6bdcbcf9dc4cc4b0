"""What a run is given: its content is known by a fingerprint, and a run goes on with the same or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.core.errors import RunError
from denoiserl.core.imports import load_module
from denoiserl.data import Demonstrations
from denoiserl.experiments.runner import rerun, run
from denoiserl.nn import MLP
from denoiserl.processes import linear
from denoiserl.recipes.imitation import diffusion_policy
from denoiserl.train import Run, fit
from denoiserl.train.inputs import digest, fingerprints

RECIPE = """
from __future__ import annotations
from dataclasses import dataclass, field
import torch
from denoiserl.core.rng import Rng

@dataclass(frozen=True)
class Base:
    data: str = ""
    env: str = ""
    start: str | None = None

@dataclass(frozen=True)
class Args:
    seed: int = 0
    iterations: int = 4
    final_lr_fraction: float = 1.0
    base: Base = Base()

class Total:
    value = 0.0
    def state_dict(self): return {"value": self.value}
    def load_state_dict(self, state): self.value = state["value"]

def train(a, keep):
    rng, total = Rng(a.seed), Total()
    for it in keep.stage("improve").loop(a.iterations, rng=rng, total=total):
        total.value += float(rng.normal(1))
        yield {"total": total.value}
"""


EXTENDABLE = "\ndef may_extend(args): return args['final_lr_fraction'] == 1.0\n"


def recipe(tmp_path: Path, grows: str = ""):
    (tmp_path / "toy.py").write_text(RECIPE + grows)
    return load_module(str(tmp_path / "toy.py"))


def go(toy, folder: Path, iterations: int = 4, final_lr_fraction: float = 1.0, **base):
    args = toy.Args(iterations=iterations, final_lr_fraction=final_lr_fraction, base=toy.Base(**base))
    return run(toy, args, folder, progress=False, tensorboard=False)


def demos(n: int, shift: float = 0.0) -> Demonstrations:
    seen = Rng(0).normal(5 * n, 2)
    return Demonstrations(seen + shift, seen.clone(), torch.arange(1, n + 1) * 5)


def given(tmp_path: Path) -> dict[str, str]:
    """Data, an environment's file and a starting policy."""
    demos(4).save(tmp_path / "data")
    (tmp_path / "world.py").write_text("def make(): ...")
    policy(0).save(tmp_path / "start")
    return {"data": str(tmp_path / "data"), "env": f"{tmp_path / 'world.py'}:make", "start": str(tmp_path / "start")}


def policy(seed: int, codec=None) -> Policy:
    torch.manual_seed(seed)
    process = Diffusion(linear)
    return Policy.of(
        process, GaussianDenoiser(MLP((1, 2), 2, 8), linear, "v"), (1, 2), process.steps(time_grid(2)), codec=codec
    )


CHANGES = {
    "data": lambda at: demos(4, 1e-6).save(at / "data"),
    "env": lambda at: (at / "world.py").write_text("def make(): return 1"),
    "start": lambda at: policy(1).save(at / "start"),
    "data that is gone": lambda at: shutil.rmtree(at / "data"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_contents_under_the_same_name(tmp_path: Path, change: str) -> None:
    toy, words = recipe(tmp_path), given(tmp_path)
    first = go(toy, tmp_path / "run", **words)
    told = json.loads((tmp_path / "run" / "run.json").read_text())["given"]
    assert set(told) == {"base.data", "base.env", "base.start"}
    again = first | {"repeated": True}
    assert go(toy, tmp_path / "run", **words) == again == rerun(tmp_path / "run", progress=False, tensorboard=False)
    CHANGES[change](tmp_path)
    gone = change.endswith("gone")
    said = r"files that base\.data of .* do not exist here" if gone else f"other contents of base.{change}"
    with pytest.raises(RunError, match=said):
        go(toy, tmp_path / "run", **words)


def test_a_run_says_where_to_go_on_if_its_names_are_of_another_folder(tmp_path: Path, monkeypatch) -> None:
    toy = recipe(tmp_path)
    given(tmp_path)
    monkeypatch.chdir(tmp_path)
    first = go(toy, tmp_path / "run", data="data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(
        RunError, match=r"relative to the current folder\. Run the command in the folder where the run began"
    ):
        rerun(tmp_path / "run", progress=False, tensorboard=False)
    monkeypatch.chdir(tmp_path)
    assert rerun(tmp_path / "run", progress=False, tensorboard=False) == first | {"repeated": True}


def test_only_what_is_named_has_a_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "x").write_text("x")

    @dataclass
    class Args:
        whole: str = "."  # it holds the run's own folder
        runs: str = "runs"
        own: str = "runs/a"
        word: str = "pusht"
        path: Path = Path("x")
        long: str = "x" * 10_000
        zero: str = "\0"
        many: tuple[str, ...] = ("y", "x")
        empty: str = ""

    found = fingerprints(Args(), tmp_path / "runs" / "a")
    assert set(found) == {"path", "many.1"} and found["path"] == found["many.1"]


def test_a_run_that_others_start_from_may_be_evaluated_and_go_on(tmp_path: Path) -> None:
    """Only the policies in its folder are what one starts from."""

    @dataclass
    class Args:
        start: str = str(tmp_path / "run")

    policy(0).save(tmp_path / "run" / "improve" / "best")
    (tmp_path / "run" / "run.json").write_text("{}")
    before = fingerprints(Args(), tmp_path / "other")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    (tmp_path / "run" / "improve" / "state").mkdir()
    (tmp_path / "run" / "improve" / "state" / "tree.json").touch()
    assert fingerprints(Args(), tmp_path / "other") == before
    policy(1).save(tmp_path / "run" / "improve" / "best")
    assert fingerprints(Args(), tmp_path / "other") != before


def test_large_contents_are_told_apart_by_length_ends_and_pieces(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("denoiserl.train.inputs.WHOLE", 1 << 10)

    @dataclass
    class Args:
        data: str = str(tmp_path / "data")

    (tmp_path / "data").mkdir()
    content, seen, tensors = bytearray(5000), set(), set()
    for at in (0, 4999, None):
        if at is not None:
            content[at] ^= 1
        else:
            content += b"\0"
        (tmp_path / "data" / "rows.bin").write_bytes(bytes(content))
        (tmp_path / "data" / "few.bin").write_bytes(b"few")
        seen.add(fingerprints(Args(), tmp_path / "run")["data"])
        tensors.add(digest(torch.tensor(list(content), dtype=torch.uint8)))
    assert len(seen) == len(tensors) == 3


def test_a_digest_is_of_content(tmp_path: Path) -> None:
    base = demos(4)
    same = demos(4)
    assert digest(base) == digest(same) != digest(demos(5))
    odd = same.observations.clone()
    odd[7, 1] += 1e-6
    others = [
        dataclasses.replace(base, observations=odd),
        dataclasses.replace(base, observations=base.observations.double()),
        dataclasses.replace(base, name="other"),
        {"a": base.actions},
        {"b": base.actions},
        [base.actions],
        base.actions.T,
        base.actions.reshape(2, -1),
        torch.zeros(0),
        torch.tensor(True),
        None,
    ]
    assert len({digest(v) for v in [base, *others]}) == 1 + len(others)


@pytest.mark.parametrize("more", [demos(21), demos(20, 1e-3)])
def test_a_loop_does_not_go_on_with_other_data(tmp_path: Path, more: Demonstrations) -> None:
    a = diffusion_policy.Args(num_updates=40, batch_size=8, lr=1e-3)

    def learn(data: Demonstrations, stop: int | None = None) -> int:
        rows = 0
        for _ in diffusion_policy.improve(policy(0), data, a, Rng(0), Run(tmp_path / "state", every=5)):
            rows += 1
            if rows == stop:
                break
        return rows

    learn(demos(20), 14)
    with pytest.raises(RunError, match="began with another data set"):
        learn(more)
    assert 0 < learn(demos(20)) < 40


def test_a_loop_does_not_go_on_with_a_policy_that_reads_data_otherwise(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Scale:
        by: float

        def encode(self, data):
            return data / self.by

        def decode(self, sample):
            return sample * self.by

        def condition(self, cond):
            return cond

        def initial_state(self, cond):
            return None

    def learn(by: float) -> list[int]:
        return list(Run(tmp_path, every=1).loop(3, policy=policy(0, Scale(by))))

    assert learn(2.0) == [0, 1, 2] and learn(2.0) == []
    with pytest.raises(RunError, match="began with another codec of the policy"):
        learn(2.5)


def test_data_in_memory_only_is_not_read_for_a_fingerprint(monkeypatch) -> None:
    monkeypatch.setattr("denoiserl.train.saved_state.digest", lambda given: pytest.fail("a digest was made"))
    list(fit(Diffusion(linear), GaussianDenoiser(MLP((2,), width=8), linear, "v"), torch.randn(8, 2), None, 2, Rng(0)))
    list(Run().loop(2, given=nn.Linear(2, 2)))


def test_more_iterations_go_on_as_the_longer_run_would_have(tmp_path: Path) -> None:
    toy = recipe(tmp_path, EXTENDABLE)
    go(toy, tmp_path / "whole", 9)
    for iterations in (4, 5, 9):
        go(toy, tmp_path / "grown", iterations)
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "grown")]
    assert rows[0] == rows[1]
    told = json.loads((tmp_path / "grown" / "run.json").read_text())
    assert told["args"]["iterations"] == 9 and [each["iterations"] for each in told["resumed"]] == [[4, 5], [5, 9]]
    with pytest.raises(RunError, match=r"args.iterations: 9 there, 8 here"):
        go(toy, tmp_path / "grown", 8)


@pytest.mark.parametrize(("grows", "final_lr_fraction"), [("", 1.0), (EXTENDABLE, 0.0)])
def test_more_iterations_are_refused_where_a_schedule_depends_on_them(tmp_path, grows, final_lr_fraction) -> None:
    toy = recipe(tmp_path, grows)
    go(toy, tmp_path / "run", 4, final_lr_fraction)
    with pytest.raises(RunError, match=r"args.iterations: 4 there, 5 here.*--start"):
        go(toy, tmp_path / "run", 5, final_lr_fraction)
