"""F and B: what they promise whatever their weights, and the rank of what B says."""

from __future__ import annotations

import math

import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.nn.forward_backward import ForwardBackward, effective_rank

kinds = pytest.mark.parametrize("attention", [0, 2])


def net(attention: int) -> ForwardBackward:
    torch.manual_seed(1)
    return ForwardBackward(3, (2, 2), 10, 16, attention)


def inputs(n: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(n, 3, generator=g), torch.rand(n, 2, 2, generator=g) * 2 - 1, torch.randn(n, 10, generator=g)


@kinds
def test_rows_do_not_see_each_other_and_b_lies_on_its_sphere(attention: int) -> None:
    """Attention is over parts of a row: row 3 alone is row 3 of the batch."""
    made, (cond, action, z) = net(attention), inputs()
    f, b = made.forward_embedding(cond, action, z), made.backward_embedding(cond)
    assert f.shape == (2, 7, 10)
    one = slice(3, 4)
    assert torch.allclose(made.forward_embedding(cond[one], action[one], z[one]), f[:, one], atol=1e-5)
    assert torch.allclose(made.backward_embedding(cond[one]), b[one], atol=1e-5)
    assert torch.allclose(b.norm(dim=1), torch.full((7,), math.sqrt(10)))


@kinds
def test_f_depends_on_state_action_and_task_and_its_heads_differ(attention: int) -> None:
    made, given = net(attention), inputs()
    f = made.forward_embedding(*given)
    assert not torch.allclose(f[0], f[1])
    for i in range(3):
        other = list(given)
        other[i] = other[i].flip(0)
        assert float((made.forward_embedding(*other) - f).detach().abs().amax((0, 2))[:2].min()) > 1e-4
    assert torch.allclose(made.value(*given), torch.einsum("cbd,bd->cb", f, given[2]), atol=1e-6)


@kinds
def test_every_parameter_learns_from_one_or_the_other_answer(attention: int) -> None:
    made, given = net(attention), inputs()
    (made.value(*given).sum() + made.backward_embedding(given[0])[:, 0].sum()).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for name, p in made.named_parameters()
               if not name.endswith("self_attn.in_proj_bias"))  # fmt: skip


@kinds
def test_it_is_rebuilt_from_its_description(attention: int) -> None:
    made, given = net(attention), inputs()
    again = from_config(to_config(made))
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.forward_embedding(*given), made.forward_embedding(*given))


def test_the_effective_rank_counts_even_directions() -> None:
    """k orthogonal directions of equal strength have rank k, and a weak one adds little."""
    for k in (1, 3, 6):
        assert effective_rank(torch.eye(8)[:k].repeat(5, 1)) == pytest.approx(k)
    weak = torch.eye(4)[:2] * torch.tensor([[1.0], [0.01]])
    assert 1 < effective_rank(weak) < 1.01
    with pytest.raises(InvalidInputError, match="finite"):
        effective_rank(torch.full((2, 2), float("nan")))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RunError, match="share a width of 10"):
        ForwardBackward(3, 2, width=10, attention=1)
    cond, action, z = inputs()
    with pytest.raises(InvalidInputError, match="events of shape"):
        net(0).forward_embedding(cond, action.flatten(1), z)
    with pytest.raises(InvalidInputError, match="events of shape"):
        net(0).forward_embedding(cond, action, z[:, :4])
