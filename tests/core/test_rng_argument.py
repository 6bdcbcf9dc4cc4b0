"""An int is a seed wherever an ``Rng`` is taken."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import denoiserl
from denoiserl import Diffusion, GaussianDenoiser, InvalidInputError, Policy, Rng, make_sampler, renoise, time_grid
from denoiserl.control.squashed_actions import add_clipped_noise
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.core import rng as core_rng
from denoiserl.core.rng import as_rng
from denoiserl.data import ReplayBuffer
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.transitions import to_transitions
from denoiserl.envs.toy import fork2d, ring
from denoiserl.nn import MLP
from denoiserl.processes import ddim, linear
from denoiserl.stats.interval import bootstrap
from denoiserl.train import fit
from denoiserl.train.minibatches import minibatches

PROCESS = Diffusion(linear, ddim(1.0))
STEPS = PROCESS.steps(time_grid(3))
COND = torch.ones(4, 2)


def policy() -> Policy:
    torch.manual_seed(0)
    return Policy.of(PROCESS, GaussianDenoiser(MLP((2, 1), 2, width=8), linear, "v"), (2, 1), STEPS)


def buffer() -> ReplayBuffer:
    rows = {"obs": COND, "next_obs": COND, "action": torch.zeros(4, 1, 1), "reward": torch.arange(4.0)}
    ends = {"terminated": torch.ones(4, dtype=torch.bool), "length": torch.ones(4, dtype=torch.int64)}
    return ReplayBuffer.of(rows | ends)


def demonstrations(rng: Any) -> Any:
    return to_transitions(EpisodeDataset.of(ring.demonstrations(8, rng))).action


CALLS: dict[str, Callable[[Any], Any]] = {
    "generate": lambda rng: policy().generate(COND, rng),
    "sample_chain": lambda rng: policy().sample_chain(COND, rng).states,
    "elbo": lambda rng: policy().elbo(torch.zeros(4, 2, 1), COND, rng, 2),
    "draw": lambda rng: make_sampler(PROCESS, policy().denoiser, STEPS, (2, 1))(COND, rng).sample,
    "noise": lambda rng: PROCESS.noise(torch.zeros(4, 2, 1), torch.full((4,), 0.5), rng).x,
    "process": lambda rng: PROCESS.renoise(torch.zeros(4, 2, 1), 2, rng).x,
    "clipped": lambda rng: add_clipped_noise(torch.zeros(4, 2), 0.1, 0.2, rng),
    "critics": lambda rng: next(TwinCritics(2, (2, 1), 1e-3, 0.1, rng, width=8).net.parameters()).detach(),
    "renoise": lambda rng: renoise(PROCESS, torch.zeros(4, 2, 1), 2, rng).x,
    "replay": lambda rng: buffer().sample(4, rng, 0.9)["reward"],
    "data": demonstrations,
    "world": lambda rng: fork2d.demonstrations(2, rng).actions,
    "minibatches": lambda rng: torch.stack(list(minibatches(8, 4, 2, rng))),
    "fit": lambda rng: [
        r["loss/denoising"] for r in fit(PROCESS, policy().denoiser, torch.zeros(4, 2, 1), COND, 2, rng, batch=2)
    ],
    "bootstrap": lambda rng: bootstrap(list(range(9)), rng, draws=100).low,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_int_is_its_seed(call: Callable[[Any], Any]) -> None:
    one, other, third = (torch.as_tensor(call(rng)) for rng in (5, Rng(5), np.int64(5)))
    assert torch.equal(one, other) and torch.equal(one, third)


def test_an_rng_is_itself_and_an_int_takes_the_device() -> None:
    rng = Rng.rows([1, 2])
    assert as_rng(rng, "meta") is rng
    assert as_rng(3).device == torch.device("cpu") and as_rng(2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize("make", [as_rng, Rng])
@pytest.mark.parametrize("rng", [0.0, True, -1, 2**64, "0", None, torch.Generator()])
def test_anything_else_is_refused_with_a_remedy(rng: Any, make: Any) -> None:
    with pytest.raises(
        InvalidInputError,
        match=r"rng is an Rng or a seed, an int from 0 on \(below 2\*\*64\), not .*: give Rng\(0\), or 0",
    ):
        make(rng)


@pytest.mark.fixed_seed
@pytest.mark.parametrize(
    "seeds", [[1.5, 2.0], [True, False], [-1, 2], [2**64], None, 3, "12", [[1], [2]], torch.ones(2)]
)
def test_streams_of_rows_take_one_seed_each(seeds: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"one seed per row, ints from 0 on .*: give Rng\.rows\(\[0, 1"):
        Rng.rows(seeds)


@pytest.mark.parametrize("kind", [">i8", "uint64", "int32"])
def test_seeds_of_rows_come_in_any_kind_of_int(kind: str) -> None:
    expected = Rng.rows([3, 5]).normal(2, 4)
    given: list[Any] = [np.array([3, 5], kind), (np.int64(3), 5), (seed for seed in (3, 5)), torch.tensor([3, 5])]
    for seeds in given:
        assert torch.equal(Rng.rows(seeds).normal(2, 4), expected)
    assert torch.equal(Rng.rows([2**64 - 1]).normal(1, 4), Rng.rows(torch.tensor([-1])).normal(1, 4))


@pytest.mark.parametrize("rng", [[Rng(0), Rng(1)], [0, 1], np.arange(2)])
def test_a_list_of_seeds_is_referred_to_rows(rng: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"Rng\.rows\(\[0, 1, \.\.\.\]\) for one stream per row"):
        as_rng(rng)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_row_streams_serve_their_own_number_of_rows(count: int) -> None:
    for call in ("generate", "sample_chain", "draw"):
        with pytest.raises(InvalidInputError, match=f"{count} row streams, and the number of rows is 4"):
            CALLS[call](Rng.rows(range(count)))


CALLBACKS = {
    "Controller.generate": "Policy.generate calls it with an Rng",
    "BestOfN.generate": "a controller",
    "SoftmaxOfN.generate": "a controller",
    "LatentController.generate": "a controller",
    "FitProcess.noise": "fit calls it with an Rng",
}
"""public functions that take an Rng alone, and why: only the library calls them"""
LOOPS = (ast.While, ast.Lambda, ast.FunctionDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def public_functions(tree: ast.Module | ast.ClassDef, owner: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the functions and methods whose names, and those of their classes, do not begin with an underscore."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node, f"{node.name}.")
        if isinstance(node, ast.FunctionDef) and (node.name in ("__init__", "__call__") or node.name[0] != "_"):
            yield owner + node.name, node


def uses(node: ast.AST, weight: int = 1) -> int:
    """Count the uses of ``rng``; one that draws, or that stands in a loop, counts as two."""
    if isinstance(node, ast.FunctionDef | ast.Lambda) and any(a.arg == "rng" for a in node.args.args):
        return 0
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rng":
        return 2
    if isinstance(node, ast.Name):
        return weight * (node.id == "rng")
    if isinstance(node, ast.For):
        return uses(node.iter, weight) + sum(uses(part, 2) for part in node.body)
    return sum(uses(part, 2 if isinstance(node, LOOPS) else weight) for part in ast.iter_child_nodes(node))


def test_every_public_function_takes_an_int_for_an_rng() -> None:
    """Who draws from ``rng``, or hands it on twice, makes it an Rng first: else both uses get the same numbers."""
    root, wrong, kept = Path(denoiserl.__file__).parent, [], set()
    for path in sorted(root.rglob("*.py")):
        for name, function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            taken = [a for a in (*function.args.args, *function.args.kwonlyargs) if a.arg == "rng" and a.annotation]
            if not taken or path == Path(core_rng.__file__):
                continue
            if ast.unparse(taken[0].annotation) == "Rng" and name in CALLBACKS:  # type: ignore[arg-type]
                kept.add(name)
            elif "int" not in ast.unparse(taken[0].annotation):  # type: ignore[arg-type]
                wrong.append(f"{path.relative_to(root)}: {name} takes an Rng alone")
            elif sum(uses(part) for part in function.body) > 1 and "as_rng(" not in ast.unparse(function):
                wrong.append(f"{path.relative_to(root)}: {name} does not call as_rng")
    assert not wrong
    assert kept == set(CALLBACKS)
