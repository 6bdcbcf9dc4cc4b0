"""The whole examination: a healthy policy passes, nothing is changed, what was not measured is said."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from denoiserl import Masked, OneStep, Policy, Rng, time_grid
from denoiserl.core.errors import RunError
from denoiserl.data import ActionChunkCodec, Normalizer
from denoiserl.doctor import Finding, examine, print_findings, worst_level
from denoiserl.nn import MLP, Transformer
from denoiserl.oracles import sudoku
from denoiserl.policy.codec import IdentityCodec, InfillCodec
from denoiserl.processes import GaussianHead, TokenDenoiser, cosine
from tests.doctor.test_signal import Reach, robot
from tests.doctor.worlds import PM, TWO, Oracle, generator, policy, reward


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {f.name: f for f in findings}


def test_a_healthy_generator_passes() -> None:
    found = named(examine(generator(), reward=reward, prompts=PM.prompts, rng=Rng(1)))
    assert worst_level(found.values()) in ("ok", "note")
    assert {"prediction", "condition", "values", "noise", "first ratio", "memory", "speed", "reward", "groups"} <= set(
        found
    )
    assert found["prediction"].level == found["first ratio"].level == "ok"


def test_a_network_that_is_wrapped_wrongly_fails_with_its_kind() -> None:
    sick = policy(Oracle(PM, cosine, "eps"), PM.dim, predicts="v")
    found = named(examine(sick, reward=reward, prompts=PM.prompts))
    assert found["prediction"].level == "error"
    assert "'eps'" in found["prediction"].remedy


def test_a_robot_policy_is_played() -> None:
    found = named(examine(robot(), env=lambda: Reach(0.0)))
    assert found["success"].level == "ok"
    assert found["values"].level == "ok"


def test_a_language_model_is_examined() -> None:
    torch.manual_seed(0)
    net = Transformer(sudoku.VOCAB, sudoku.CELLS, 16, 1, position="grid")
    process = Masked(sudoku.VOCAB, "confidence", tokens=4)
    made = Policy.of(process, TokenDenoiser(net), (sudoku.CELLS,), process.steps(time_grid(3)), codec=InfillCodec())
    canvases = sudoku.puzzles(sudoku.grids(), 40, Rng(0))[0]
    found = named(examine(made, reward=sudoku.reward, prompts=canvases, num_samples=32, group_size=4))
    assert found["first ratio"].level == "ok"
    assert "stopped" not in " ".join(f.message for f in found.values())
    few = replace(made, train_steps=process.steps(time_grid(1)), eval_steps=process.steps(time_grid(1)))
    assert "steps of 4 tokens" in named(examine(few, prompts=canvases, num_samples=16))["drawing"].message


def test_nothing_is_changed() -> None:
    made = generator()
    made.weights.snapshot("reference")
    before = {k: v.clone() for k, v in made.weights.module.state_dict().items()}
    made.weights.module.train()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    examine(made, reward=reward, prompts=PM.prompts, num_samples=16)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # type: ignore[index]
    assert torch.equal(states[0], after[0])
    assert np.array_equal(states[1], after[1])
    assert states[2] == after[2]
    assert all(torch.equal(before[k], v) for k, v in made.weights.module.state_dict().items())
    assert made.weights.module.training
    assert all(p.grad is None for p in made.parameters())


def test_an_examination_is_repeatable() -> None:
    def said() -> list[str]:
        found = examine(generator(), reward=reward, prompts=PM.prompts, rng=Rng(3), num_samples=16)
        return [f.message for f in found if f.name not in ("speed", "memory")]

    assert said() == said()


def test_what_cannot_be_drawn_from_says_what_is_missing() -> None:
    found = examine(policy(MLP(2, cond=3, width=8), 2))
    assert [f.name for f in found] == ["drawing"]
    assert "condition" in found[0].message
    assert "prompts" in found[0].remedy


def test_a_robot_codec_says_what_is_observed() -> None:
    codec = ActionChunkCodec(Normalizer.fit(Rng(0).normal(50, 3)), Normalizer.fit(Rng(1).normal(50, 2)))
    made = replace(policy(MLP((4, 2), cond=3, width=16), 2), event_shape=(4, 2), codec=codec)
    found = named(examine(made))
    assert found["condition"].level == "ok"
    assert "not measured" in found["success"].message


def test_a_gaussian_policy_is_examined() -> None:
    """One decision a chain: no noise levels, a density, and success as the others have it."""
    head = GaussianHead(MLP((1, 1), cond=1, width=8, time=0), 1, std=0.5)
    process = OneStep()
    made = Policy.of(process, head, (1, 1), process.steps(time_grid(1)))
    found = named(examine(made, env=lambda: Reach(0.0)))
    assert found["prediction"].level == found["noise"].level == "note"
    assert found["first ratio"].level == found["densities"].level == "ok"
    assert "success" in found


def test_a_broken_reward_is_a_finding_and_stops_nothing() -> None:
    def broken(x: Tensor, prompts: Tensor) -> Tensor:
        raise KeyError("prompt")

    found = named(examine(generator(), reward=broken, prompts=PM.prompts, num_samples=16))
    assert found["reward"].level == "error"
    assert "prompt" in found["reward"].message
    flat = named(examine(generator(), reward=lambda x, p: torch.ones(len(x)), prompts=PM.prompts, num_samples=16))
    assert flat["reward"].level == "error"


def test_a_generator_without_prompts_is_rewarded() -> None:
    found = named(examine(policy(Oracle(TWO, cosine, "v"), 2), reward=lambda x, p: x[:, 0]))
    assert found["reward"].level == "ok"
    assert "groups" not in found


def test_a_codec_that_fails_is_found_before_anything_else() -> None:
    class Breaks(IdentityCodec):
        def decode(self, sample: Tensor) -> Tensor:
            raise OSError("the autoencoder is gone")

    found = examine(replace(generator(), codec=Breaks()), prompts=PM.prompts)
    assert "autoencoder is gone" in found[0].message


def test_findings_come_as_they_are_made_and_nonsense_is_refused() -> None:
    seen: list[Finding] = []
    assert examine(generator(), prompts=PM.prompts, num_samples=16, on_finding=seen.append) == seen
    with pytest.raises(RunError, match="one of them"):
        examine(generator(), env="CartPole-v1", reward=reward)
    with pytest.raises(RunError, match="groups"):
        examine(generator(), num_samples=8, group_size=8)
    with pytest.raises(RunError, match="remedy"):
        Finding("x", "error", "it broke")
    with pytest.raises(RunError, match="Did you mean 'warning'"):
        Finding("x", "warnin", "it broke")  # type: ignore[arg-type]


def test_findings_are_printed_with_their_remedies() -> None:
    out = io.StringIO()
    console = Console(file=out, width=60, highlight=False)
    found = [
        Finding("values", "ok", "as they should be"),
        Finding("reward", "error", "all 64 rewards are 0, " * 4, "Ask it about data."),
        Finding("memory", "note", "not known here"),
    ]
    print_findings(found, console)
    text = out.getvalue()
    lines = text.splitlines()
    assert lines[0].split() == ["✓", "values", "as", "they", "should", "be"]
    assert "→ Ask it about data." in text
    assert all(len(line) <= 60 for line in lines)
    assert lines[-1] == "3 checks: 1 error, 1 note."
    assert worst_level(found) == "error"
    assert worst_level([]) == "ok"


def test_data_that_are_no_pair_are_refused_with_the_pair() -> None:
    """Clean data alone would be cut in two: their first row as the data, their second as the conditions."""
    made = generator()
    for wrong in (PM.sample(PM.prompts, Rng(0)), {"x": torch.zeros(2, 2)}, (torch.zeros(3, 2),)):
        with pytest.raises(RunError, match=r"pair.*\(x0, None\)"):
            examine(made, data=wrong)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="3 rows of data with 4 conditions"):
        examine(made, data=(torch.zeros(3, 2), torch.zeros(4, 6)))


def test_prompts_that_are_texts_are_told_so() -> None:
    (found,) = examine(generator(), reward=reward, prompts=["a cat", "a dog"])
    assert found.level == "error" and "Encode texts" in found.message
