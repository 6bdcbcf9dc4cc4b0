"""An int is a seed wherever an ``Rng`` is taken."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import denoiserl
from denoiserl import Diffusion, GaussianDenoiser, InvalidInputError, Policy, Rng, make_sampler, renoise, time_grid
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


@pytest.mark.parametrize("rng", [0.0, True, -1, 2**64, "0", None, torch.Generator()])
def test_anything_else_is_refused_with_a_remedy(rng: Any) -> None:
    with pytest.raises(
        InvalidInputError, match=r"rng is an Rng or a seed, an int from 0 on, not .*: give Rng\(0\), or 0"
    ):
        as_rng(rng)


def test_whatever_says_that_it_takes_an_int_does() -> None:
    """Who draws from a parameter ``rng: Rng | int`` makes it an Rng first; others hand it on."""
    wrong = []
    for path in sorted(Path(denoiserl.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            told = [a for a in node.args.args if a.arg == "rng" and a.annotation and "int" in ast.unparse(a.annotation)]
            source = ast.unparse(node)
            if told and "rng." in source.replace("as_rng", "") and "as_rng(" not in source:
                wrong.append(f"{path.name}: {node.name}")
    assert not wrong
