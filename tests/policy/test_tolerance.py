"""How far replay may lie from the record follows from what numbers are computed in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from denoiserl.core.errors import OffPolicyError
from denoiserl.core.precision import net_precision
from denoiserl.policy.likelihood import assert_on_policy, tolerance_of


def test_weights_in_low_precision_are_held_to_be_low_precision() -> None:
    recorded, gap = torch.zeros(4), torch.full((4,), 0.05)
    single, low = nn.Linear(2, 2), nn.Linear(2, 2).to(torch.bfloat16)
    assert assert_on_policy(recorded + gap, recorded, None, low) == pytest.approx(0.05)
    for net in (single, None):
        with pytest.raises(OffPolicyError):
            assert_on_policy(recorded + gap, recorded, None, net)
    with pytest.raises(OffPolicyError):
        assert_on_policy(recorded + gap, recorded, 0.01, low)  # what is asked for decides
    with net_precision("cpu"):
        assert_on_policy(recorded + gap, recorded, None, single)
    assert_on_policy(recorded[:0], recorded[:0])  # nothing to compare


def test_coarser_numbers_have_wider_tolerances() -> None:
    kinds = [tolerance_of(nn.Linear(2, 2).to(kind)) for kind in (torch.float32, torch.float16, torch.bfloat16)]
    assert kinds == [1e-3, 0.03, 0.2], "as documented"
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(torch.bfloat16))
    assert tolerance_of(mixed) == kinds[-1]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")  # products in TF32
        assert tolerance_of(nn.Linear(2, 2)) == kinds[1]
    finally:
        torch.set_float32_matmul_precision(before)
