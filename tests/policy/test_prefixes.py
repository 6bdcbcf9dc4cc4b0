"""Weights that a wrapper renamed: a prefix is no other network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, time_grid
from denoiserl.core.errors import RunError
from denoiserl.policy.state_dicts import load_checked, strip_prefix
from denoiserl.processes import linear


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.module = nn.Linear(4, 8), nn.Linear(8, 2)  # a user's own part may be called as wrappers are

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return self.module(self.enter(torch.cat((x, t.reshape(-1, 1), t.reshape(-1, 1)), -1)).tanh())


class Wrapper(nn.Module):
    """Holds a network under the name that ``torch.compile`` or ``DataParallel`` gives it."""

    def __init__(self, name: str, net: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, net)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return getattr(self, self.name)(x, t, cond)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "ema_model.", "policy.", "base_model.model.", "module._orig_mod."]
)
def test_a_prefix_of_all_names_is_dropped(prefix: str) -> None:
    net, other = Net(), Net()
    load_checked(other, {prefix + name: value for name, value in net.state_dict().items()})
    assert all(torch.equal(other.state_dict()[name], value) for name, value in net.state_dict().items())


def test_names_that_fit_stay_as_they_are() -> None:
    own = {"module.a.w": 1, "module.b.w": 2}
    assert strip_prefix(own, list(own)) is own
    assert strip_prefix(own, ["c"]) is own


def test_names_that_only_a_wrapper_tells_apart_are_not_merged() -> None:
    """Two networks in one file, one of them wrapped: which is meant cannot be known."""
    tensors = {"a.w": 1, "module.a.w": 2}
    assert strip_prefix(tensors, ["_orig_mod.a.w"]) == tensors


def test_weights_under_two_prefixes_are_refused_by_both() -> None:
    """As ema-pytorch saves them: the average beside what learns."""
    own = Net().state_dict()
    both = {f"{prefix}.{name}": value for prefix in ("ema_model", "online_model") for name, value in own.items()}
    with pytest.raises(RunError, match=r"under the prefix 'ema_model\.' or 'online_model\.'"):
        load_checked(Net(), both)


@pytest.mark.parametrize("name", ["_orig_mod", "module"])
def test_a_policy_saved_around_a_wrapper_loads_around_the_network_and_back(name: str, tmp_path: Path) -> None:
    process, net = Diffusion(linear), Net()
    for at, (saved, given) in enumerate([(Wrapper(name, net), Net()), (net, Wrapper(name, Net()))]):
        plan = process.steps(time_grid(2))
        Policy.of(process, GaussianDenoiser(saved, linear, "v"), (2,), plan).save(tmp_path / str(at))
        found = Policy.load(tmp_path / str(at), net=given).weights.module.state_dict()
        assert [v.tolist() for v in found.values()] == [v.tolist() for v in net.state_dict().values()]
