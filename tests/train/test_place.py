"""Where a run computes is what was asked for, told, and put back."""

from __future__ import annotations

import timeit
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Chain, Diffusion, GaussianDenoiser, Masked, Policy, Rng, TokenDenoiser, rescore, time_grid
from denoiserl.core.errors import OffPolicyError, RunError
from denoiserl.core.precision import is_low_precision, net_precision, run_in_precision
from denoiserl.nn import MLP, Transformer
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.processes import cosine, ddim, with_min_std
from denoiserl.train.device import DeviceConfig


def test_threads_and_precision_are_set_inside_and_put_back():
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    place = DeviceConfig(threads=threads + 1, precision="medium")
    with pytest.raises(ZeroDivisionError), place.activate() as chosen:
        assert torch.get_num_threads() == threads + 1 and torch.get_float32_matmul_precision() == chosen["matmul"]
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads and torch.get_float32_matmul_precision() == matmul


@pytest.mark.parametrize(
    ("precision", "matmul", "low"),
    [("float32", "highest", False), ("medium", "medium", False), ("bf16", "highest", True)],
)
def test_a_place_is_what_was_asked_for_and_never_a_matter_of_time(monkeypatch, precision, matmul, low):
    monkeypatch.setattr("time.perf_counter", lambda: pytest.fail("the clock was asked"))
    before = torch.get_float32_matmul_precision()
    with DeviceConfig(precision=precision).activate() as told:
        assert told == {"device": "cpu", "threads": None, "matmul": matmul, "bf16": low}
        assert torch.get_float32_matmul_precision() == matmul and is_low_precision() == low
    assert torch.get_float32_matmul_precision() == before and not is_low_precision()


def watched(net: nn.Module) -> set[torch.dtype]:
    """What ``net`` computes in from now on."""
    seen: set[torch.dtype] = set()

    def note(*_) -> None:
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)

    net.register_forward_pre_hook(note)
    return seen


def drawn(policy: Policy, cond: Tensor | None) -> tuple[Chain, Chain]:
    """The same draw with float32 networks and with bf16 networks."""
    exact = policy.sample_chain(cond, Rng(3), rows=24)
    with DeviceConfig(precision="bf16").activate():
        return exact, policy.sample_chain(cond, Rng(3), rows=24)


def diffusion() -> tuple[Policy, Tensor]:
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.1), clip=1.0)
    net = GaussianDenoiser(MLP((4, 3), cond=5, width=64), cosine, "v")
    return Policy.of(process, net, (4, 3), process.steps(time_grid(6))), torch.randn(24, 5)


def masked() -> tuple[Policy, None]:
    process = Masked(4, "confidence", tokens=2)
    net = TokenDenoiser(Transformer(4, 8, 32, 2))
    return Policy.of(process, net, (8,), process.steps(time_grid(4))), None


@pytest.mark.parametrize("made", [diffusion, masked])
def test_only_networks_run_in_bf16_and_replay_repeats_what_they_drew(made):
    policy, cond = made()
    net = policy.denoiser.net
    seen = watched(net)
    exact, low = drawn(policy, cond)
    assert seen == {torch.float32, torch.bfloat16} and not torch.is_autocast_enabled("cpu")
    assert all(p.dtype is torch.float32 for p in net.parameters())
    assert not torch.equal(exact.log_prob, low.log_prob)
    with DeviceConfig(precision="bf16").activate():
        law, y = rescore(policy.process, policy.denoiser, low, micro_batch_size=24)  # the calls of the run
        same = assert_on_policy(law.log_prob(y), low.log_prob, 1e-3)
        rows = low.steps_at(torch.randperm(low.log_prob.numel()))
        law, y = rescore(policy.process, policy.denoiser, rows, micro_batch_size=7)  # other shapes may round otherwise
        other = assert_on_policy(law.log_prob(y), rows.log_prob, 0.2)
        law.log_prob(y).mean().backward()
    assert same <= other <= 0.2
    assert low.log_prob.dtype is law.log_prob(y).dtype is torch.float32
    assert all(
        leaf.dtype is torch.float32
        for leaf in vars(law).values()
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )
    assert all(p.grad is None or p.grad.dtype is torch.float32 for p in net.parameters())
    seen.clear()
    law, y = rescore(policy.process, policy.denoiser, low)
    assert seen == {torch.float32}  # put back
    with pytest.raises(OffPolicyError):  # the run-time check tells networks of another precision
        assert_on_policy(law.log_prob(y), low.log_prob, 1e-3)


def test_bf16_changes_an_answer_by_its_rounding_and_returns_whole_trees_in_float32():
    net, x = nn.Linear(64, 64), torch.randn(8, 64)
    with net_precision("cpu"):
        low = run_in_precision(net, x)
        told = run_in_precision(lambda v: Answer(net(v), {"std": net(v), "n": [3, net(v)]}), x)
        with pytest.raises(ZeroDivisionError):
            run_in_precision(lambda v: v / (1 // 0), x)
        assert not torch.is_autocast_enabled("cpu") and (x @ x.T).dtype is torch.float32
    assert 1e-4 < (low - net(x)).abs().max().item() < 5e-2
    assert isinstance(told, Answer) and told.extra["n"][0] == 3
    assert {told.mean.dtype, told.extra["std"].dtype, told.extra["n"][1].dtype} == {torch.float32}


class Answer(NamedTuple):
    mean: Tensor
    extra: dict


def test_float32_costs_nothing():
    """At most 0.3 us per call (0.1 on a quiet machine)."""
    bare, seen = (lambda: None), []
    for _ in range(5):
        one, two = (timeit.timeit(f, number=20_000) for f in (bare, lambda: run_in_precision(bare)))
        seen.append((two - one) / 20_000)
    assert min(seen) < 3e-7


def test_places_that_do_not_exist_are_refused():
    with pytest.raises(RunError, match="Did you mean 'float32'"):
        DeviceConfig(precision="float16")
    with pytest.raises(RunError, match="no device"):
        DeviceConfig("gpu")
    with pytest.raises(RunError, match="threads = 0"):
        DeviceConfig(threads=0)
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="no CUDA"):
            DeviceConfig("cuda:0")
