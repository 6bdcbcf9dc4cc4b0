"""What every recipe for generators does alike: micro-batches, parts of a reward, generators without prompts."""

from __future__ import annotations

import importlib
import weakref
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, OffPolicyError
from denoiserl.core.precision import net_precision
from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree
from denoiserl.nn import MLP
from denoiserl.policy.codec import IdentityCodec
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import Record, RecordAll, RecordSample
from denoiserl.processes import Diffusion, GaussianDenoiser, ddim, flow_sde, linear, time_grid
from denoiserl.recipes.generators import ddpo, flow_grpo, rwr
from denoiserl.rewards import evaluate_reward

DIM = 3
ARGS: dict[ModuleType, Any] = {
    ddpo: ddpo.Args(iterations=1, num_samples=24, batch_size=50, stat_window=24, min_count=2, lr=1e-3),
    flow_grpo: flow_grpo.Args(iterations=1, num_prompts=4, group_size=6, batch_size=10, sde_window=0, lr=1e-3),
    rwr: rwr.Args(iterations=1, num_prompts=4, group_size=6, batch_size=12, epochs=2, lr=1e-3),
}
every = pytest.mark.parametrize("recipe", ARGS, ids=["ddpo", "flow_grpo", "rwr"])
PROMPTS = torch.eye(4)


def generator(cond: int = 4, codec: Any = None) -> Policy:
    torch.manual_seed(0)
    process, times = Diffusion(linear, flow_sde(0.7)), time_grid(5)
    net = GaussianDenoiser(MLP((DIM,), cond=cond, width=24), linear, "v")
    return Policy.of(process, net, (DIM,), process.steps(times), process.steps(times, ddim(0.0)), codec)


def first(x: Tensor, prompts: Any) -> Tensor:
    return x[:, 0]


def weights(policy: Policy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def rows(recipe: ModuleType, policy: Policy, reward: Any, prompts: Any = PROMPTS, **changes: Any) -> list[dict]:
    return list(recipe.improve(policy, (reward, prompts), replace(ARGS[recipe], **changes), Rng(1)))


class Calls(nn.Module):
    """A network that remembers how many rows each of its calls had."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net, []
        self.embed_condition, self.embed_time = net.embed_condition, net.embed_time

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        self.rows.append(len(x))
        return self.net(x, clock, context)


WAYS = {"numpy": lambda v: v.numpy(), "float64": lambda v: v.double(), "doubles": lambda v: v.double().numpy(),
        "lists": lambda v: v.tolist()}  # fmt: skip


@every
@pytest.mark.parametrize("way", WAYS)
def test_prompts_may_be_arrays_and_lists_of_numbers(recipe: ModuleType, way: str) -> None:
    given: list[Any] = []

    def reward(x: Tensor, prompts: Any) -> Tensor:
        given.append(prompts)
        return x[:, 0]

    assert rows(recipe, generator(), reward, WAYS[way](PROMPTS)) == rows(recipe, generator(), first)
    assert all(isinstance(v, Tensor) and v.dtype == torch.float32 for v in given)


@every
@pytest.mark.parametrize("micro", [1, 7, 1000])
def test_micro_batches_change_no_number(recipe: ModuleType, micro: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of one update to 1e-6, and no call of network, decoder or reward with more rows."""
    seen: list[Tensor] = []

    def descend(opt: Any, loss: Tensor, clip: Any, params: Any) -> dict[str, float]:
        seen.append(torch.cat([p.grad.flatten() for g in opt.param_groups for p in g["params"]]))
        opt.zero_grad()
        return {"loss": float(loss), "grad_norm": 0.0}

    def reward(x: Tensor, prompts: Tensor) -> Tensor:
        asked.append(len(x))
        return x[:, 0]

    monkeypatch.setattr(importlib.import_module("denoiserl.train.optimizer_steps"), "_descend", descend)
    told = []
    for size in (None, micro):
        asked: list[int] = []
        policy = generator()
        policy.weights.module.net = calls = Calls(policy.weights.module.net)  # type: ignore[assignment]
        told.append(rows(recipe, policy, reward, micro_batch_size=size)[0])
        if size is not None:
            assert max(calls.rows) <= size and max(asked) <= size and sum(asked) == 24
    half = len(seen) // 2
    for whole, split in zip(seen[:half], seen[half:], strict=True):
        assert float(whole.norm()) > 1e-3
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)
    for name, value in told[0].items():
        assert told[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("rng", [lambda: Rng(3), lambda: Rng.rows(range(10))], ids=["batch", "rows"])
@pytest.mark.parametrize("record", [RecordAll(), RecordSample()], ids=["all", "sample"])
def test_noise_belongs_to_rows_however_many_are_drawn_together(rng: Any, record: Record) -> None:
    policy, cond = generator(), torch.randn(10, 4)
    streams = [rng() for _ in range(3)]
    whole = policy.sample_chain(cond, streams[0], record=record)
    for stream, micro in zip(streams[1:], (1, 4), strict=True):
        split = policy.sample_chain(cond, stream, record=record, micro_batch_size=micro)
        for name in ("states", "sample", "log_prob"):
            torch.testing.assert_close(getattr(split, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
        assert torch.equal(split.step, whole.step) and split.cond is whole.cond
        assert stream.state_dict().keys() == streams[0].state_dict().keys()
        assert torch.equal(stream.normal(10, 1), streams[0].normal(10, 1)) if stream is streams[1] else True
    with pytest.raises(ValueError, match="number of rows per network call"):
        policy.sample_chain(cond, Rng(0), micro_batch_size=0)


def test_a_chain_that_starts_somewhere_is_split_too() -> None:
    """With gradients through its last steps, from states of the caller's."""
    policy, cond, x = generator(), torch.randn(6, 4), torch.randn(6, DIM)
    draw = policy.make_sampler(differentiable_steps=2)
    whole, split = (draw(cond, Rng(0), start=(x, 1), micro_batch_size=micro) for micro in (None, 4))
    torch.testing.assert_close(split.sample, whole.sample)
    for chain in (whole, split):
        assert isinstance(chain.sample, Tensor)
        policy.weights.module.zero_grad()
        chain.sample.sum().backward()
        assert float(weights(policy).norm()) > 0 and all(p.grad is not None for p in policy.parameters())


@pytest.mark.parametrize("recipe", [ddpo, flow_grpo], ids=["ddpo", "flow_grpo"])
@pytest.mark.parametrize("micro", [None, 9])
def test_nothing_of_a_minibatch_is_alive_when_the_next_one_runs(
    recipe: ModuleType, micro: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    replay = Policy.rescore

    def watched(self: Policy, record: Any, micro_batch_size: int | None = None, weights: str | None = None) -> Any:
        if weights is None:
            assert all(ref() is None for ref in alive)
        law, y = replay(self, record, micro_batch_size, weights)
        alive.extend(weakref.ref(v) for v in (law.mean, record.cond))  # type: ignore[union-attr]
        return law, y

    monkeypatch.setattr(Policy, "rescore", watched)
    rows(recipe, generator(), first, micro_batch_size=micro, iterations=2)
    assert len(alive) >= 8


@every
def test_the_weights_of_parts_reach_the_method(recipe: ModuleType) -> None:
    """A weighted part is the reward itself, whatever other parts say; parts are logged."""

    def parts(x: Tensor, prompts: Tensor) -> dict[str, Any]:
        return {"good": x[:, 0].tolist(), "noise": 100 * x[:, 1].numpy(), "none": [None] * len(x)}

    alone, weighted = generator(), generator()
    rows(recipe, alone, lambda x, p: 2 * x[:, 0])
    (row,) = rows(recipe, weighted, parts, reward_weights={"good": 2.0})
    assert torch.equal(weights(alone), weights(weighted))
    assert row["reward/good"] == pytest.approx(row["rollout/reward"] / 2) and "reward/noise" in row


@every
def test_an_answer_that_is_missing_is_dropped(recipe: ModuleType) -> None:
    def some(x: Tensor, prompts: Tensor) -> list[float | None]:
        return [None, *x[1:, 0].tolist()]

    (row,) = rows(recipe, generator(), some, invalid_rewards="drop")
    assert row["rollout/num_invalid_rewards"] == 1
    with pytest.raises(InvalidInputError, match=r"reward\[0\]"):
        rows(recipe, generator(), some, invalid_rewards="error")


class Numbered(IdentityCodec):
    """Prompts that say which sample it is; the network sees nothing of them."""

    def condition(self, cond: Tree) -> Tree:
        return None


WORLDS = [(None, None), (64, None), ({"index": torch.arange(8)}, Numbered())]


@every
@pytest.mark.parametrize(("prompts", "codec"), WORLDS, ids=["none", "number", "index"])
def test_a_generator_without_prompts_improves(recipe: ModuleType, prompts: Any, codec: Any) -> None:
    """What is rewarded grows from a share of 0.23 to 0.48 to one of 0.95 to 1 (eight seeds of every recipe)."""
    changes: dict[str, Any] = {
        ddpo: {"iterations": 15, "num_samples": 64, "batch_size": 400, "stat_window": 128, "clip_range": 0.1},
        flow_grpo: {"iterations": 15, "group_size": 16, "batch_size": 64, "clip_range": 0.1, "kl_coef": 0.0},
        rwr: {"iterations": 5, "group_size": 16, "inverse_temperature": 5.0},
    }[recipe]
    told = rows(recipe, generator(0, codec), lambda x, p: x[:, 0] > 0.5, prompts, lr=5e-3, **changes)
    assert told[0]["rollout/reward"] < 0.6 and told[-1]["rollout/reward"] > 0.8


@every
def test_prompts_that_are_texts_are_refused_with_the_remedy(recipe: ModuleType) -> None:
    with pytest.raises(InvalidInputError, match="Encode texts once"):
        rows(recipe, generator(), first, ["a cat", "a dog"])


@pytest.mark.parametrize("recipe", [ddpo, flow_grpo], ids=["ddpo", "flow_grpo"])
def test_the_first_ratio_is_held_to_the_precision_that_networks_have(recipe: ModuleType, monkeypatch: Any) -> None:
    """Low precision rounds by the shape of a batch; a tolerance that is given is what counts."""
    told, real = [], recipe.check_first_ratio
    with pytest.raises(OffPolicyError, match=r"above 0\.25"):
        real(generator(), torch.zeros(3), torch.tensor([0.0, 0.0, 0.3]), 0.25)
    real(generator(), torch.zeros(3), torch.tensor([0.0, 0.0, 0.2]), 0.25)
    with net_precision("cpu"):
        assert rows(recipe, generator(), first)
    off = generator()
    monkeypatch.setattr(recipe, "check_first_ratio", lambda *given: told.append(given[-1]) or real(*given))
    rows(recipe, off, first, ratio_tolerance=0.25)
    rows(recipe, off, first)
    assert 0.25 in told and None in told


def test_a_reward_that_cannot_be_split_is_asked_once_by_default() -> None:
    """Ranks within a batch need the whole batch: without micro-batches it comes in one call."""
    x = torch.randn(9, 2)
    assert evaluate_reward(lambda v, p: v[:, 0].argsort().argsort().float(), x, None).total.sum() == 36


@every
def test_the_reward_that_is_told_is_the_total(recipe: ModuleType) -> None:
    """Also where a part of it has its name."""

    def parts(x: Tensor, prompts: Any) -> dict[str, Tensor]:
        return {"reward": x[:, 0], "dropped": 3 + 0 * x[:, 0]}

    (row,) = rows(recipe, generator(), parts, reward_weights={"reward": 0.0, "dropped": 2.0})
    assert row["rollout/reward"] == 6.0 and row["rollout/num_invalid_rewards"] == 0
