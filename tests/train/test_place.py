"""Where a run computes is chosen by measurement, told, and put back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from denoiserl.errors import BadRun
from denoiserl.train.place import EXACT, Place, probe


def test_probe_tells_bf16_from_float32_by_its_error():
    found = probe("cpu", 1, rows=64, width=128)
    assert found["float32 error"] < EXACT < 1e-3 < found["bf16 error"] < 2e-2
    assert all(found[f"{way} speed"] > 0 for way in ("medium", "bf16"))


def test_threads_and_precision_are_set_inside_and_put_back():
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    place = Place(threads=threads + 1, chosen={"matmul": "medium", "bf16": False})
    with pytest.raises(ZeroDivisionError), place.here() as chosen:
        assert torch.get_num_threads() == threads + 1 and torch.get_float32_matmul_precision() == chosen["matmul"]
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads and torch.get_float32_matmul_precision() == matmul


def test_a_medium_product_with_bf16_errors_is_never_float32(monkeypatch):
    found = {"medium error": 3e-3, "medium speed": 9.0, "bf16 speed": 1.0}
    monkeypatch.setattr("denoiserl.train.place.probe", lambda *where: found)
    assert Place(precision="bf16").choose() | {"probe": 0} == {
        "device": "cpu",
        "threads": None,
        "matmul": "highest",
        "bf16": False,
        "probe": 0,
    }
    found |= {"medium error": 1e-6, "bf16 speed": 2.0}
    assert Place(precision="bf16").choose()["matmul"] == "medium" and Place(precision="bf16").choose()["bf16"]
    assert not Place(precision="float32").choose()["bf16"]


class Fails(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError


def test_only_the_network_runs_low_and_its_answer_is_float32():
    torch.manual_seed(0)
    net, x = nn.Linear(64, 64), torch.randn(8, 64)
    exact = net(x)
    place = Place(precision="bf16", chosen={"matmul": "highest", "bf16": True})
    low = copy.deepcopy(place.lower(net))  # a copy is lowered too
    for each in (net, low):
        error = (each(x) - exact).abs().max().item()
        assert each(x).dtype is torch.float32 and 1e-4 < error < 5e-2
    assert (x @ x.T).dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    with pytest.raises(ZeroDivisionError):
        place.lower(Fails())(x)
    assert not torch.is_autocast_enabled("cpu")
    same = Place(chosen={"matmul": "highest", "bf16": False})
    assert not same.lower(nn.Linear(2, 2))._forward_hooks
    with same.net_precision(), place.net_precision():
        assert torch.is_autocast_enabled("cpu")


def test_places_that_do_not_exist_are_refused():
    with pytest.raises(BadRun, match="Did you mean 'float32'"):
        Place(precision="float16")
    with pytest.raises(BadRun, match="no device"):
        Place("gpu")
    with pytest.raises(BadRun, match="threads=0"):
        Place(threads=0)
    if not torch.cuda.is_available():
        with pytest.raises(BadRun, match="no CUDA"):
            Place("cuda:0")
