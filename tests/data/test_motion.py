"""Statistics of motion, on curves whose numbers are known."""

from __future__ import annotations

import math

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.data import Demonstrations
from denoiserl.data.trajectory_metrics import (
    action_spread,
    coverage,
    jerk,
    keep_short_successes,
    motion,
    path_length,
    starts,
)


def circle(n: int, radius: float = 2.0, turn: float = 2 * math.pi) -> torch.Tensor:
    angle = torch.linspace(0, turn, n, dtype=torch.float64)
    return radius * torch.stack([angle.cos(), angle.sin()], -1)


def test_jerk_is_nothing_on_lines_the_second_derivative_on_parabolas_and_four_on_a_zigzag() -> None:
    t = torch.arange(9, dtype=torch.float64)[:, None]
    assert float(jerk(t * torch.tensor([[1.0, -3.0]]) + 5)) == pytest.approx(0)
    assert float(jerk(t**2 * torch.tensor([[1.5, 2.0]]))) == pytest.approx(2 * 2.5)  # a'' = 2 (1.5, 2), of length 5
    assert float(jerk((-1.0) ** t)) == pytest.approx(4)


def test_jerk_of_a_circle_is_its_curvature_however_it_lies() -> None:
    n, radius = 400, 2.0
    step = 2 * math.pi / (n - 1)
    assert float(jerk(circle(n, radius))) == pytest.approx(2 * radius * (1 - math.cos(step)), rel=1e-6)
    turned = circle(n, radius) @ torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q + 7
    assert torch.allclose(jerk(turned), jerk(circle(n, radius)))
    assert torch.allclose(jerk(torch.stack([turned, 3 * turned])), jerk(turned) * torch.tensor([1.0, 3.0]).double())


def test_paths_have_their_lengths() -> None:
    assert float(path_length(circle(2000))) == pytest.approx(4 * math.pi, rel=1e-4)
    line = torch.linspace(0, 1, 7)[:, None] * torch.tensor([3.0, 4.0])
    assert float(path_length(line)) == pytest.approx(5)


def test_spread_is_the_noise_on_the_actions_and_not_what_the_state_explains() -> None:
    g = torch.Generator().manual_seed(0)
    states = torch.rand(3000, 2, generator=g)
    explained = torch.stack([states.sum(1), states[:, 0]], 1)
    noise = torch.randn(3000, 2, generator=g)
    assert action_spread(states, explained) < 0.03 < float(explained.std())
    assert action_spread(states, explained + 0.5 * noise) == pytest.approx(0.5, rel=0.05)
    many = torch.cat([states, torch.full((3000, 1), 4.0)], 1)  # what never changes tells nothing apart
    assert action_spread(many, noise) == pytest.approx(action_spread(states, noise))
    assert action_spread(states * torch.tensor([1000.0, 1.0]), explained) == pytest.approx(
        action_spread(states, explained)
    )


def test_covered_is_the_share_of_states_that_were_kept_near() -> None:
    line = torch.arange(100.0)[:, None]
    assert coverage(line, line) == 1
    assert coverage(line, line[:50]) == pytest.approx(0.51)  # the neighbour of the last one that was kept is near too
    assert coverage(line, line[::2]) == 1
    assert coverage(line, line + 1000) == 0


def demos() -> Demonstrations:
    lengths, won = [4, 6, 8, 10, 20, 5], [True, True, True, True, True, False]
    parts = [(torch.full((n, 2), float(i)), torch.zeros(n, 1)) for i, n in enumerate(lengths)]
    return Demonstrations.of(parts, won)


def test_clean_keeps_short_valid_successes() -> None:
    assert keep_short_successes(demos(), 0.8).lengths.tolist() == [4, 6, 8, 10]
    assert keep_short_successes(demos(), 1.0).lengths.tolist() == [4, 6, 8, 10, 20]
    assert keep_short_successes(demos(), 0.5).lengths.tolist() == [4, 6, 8]
    assert starts(keep_short_successes(demos(), 1.0, lambda o, a: o[:, 0] != 2))[:, 0].tolist() == [0, 1, 3, 4]


def test_clean_without_anything_left_tells_the_counts() -> None:
    with pytest.raises(InvalidInputError, match="5 of 6 episodes succeeded and none of these is valid"):
        keep_short_successes(demos(), 0.8, lambda o, a: o[:, 0] > 99)
    lost = Demonstrations.of([(torch.zeros(3, 2), torch.zeros(3, 1))], [False])
    with pytest.raises(InvalidInputError, match="0 of 1 episodes succeeded"):
        keep_short_successes(lost)
    with pytest.raises(InvalidInputError, match="do not record success"):
        keep_short_successes(Demonstrations.of([(torch.zeros(3, 2), torch.zeros(3, 1))]))
    with pytest.raises(InvalidInputError, match="quantile"):
        keep_short_successes(demos(), 0.0)


def test_motion_of_demonstrations_is_the_mean_of_their_episodes() -> None:
    t = torch.arange(6.0)[:, None]
    two = Demonstrations.of(
        [(t, t**2), (t, 0 * t), (t[:2], t[:2])], [True, True, False]
    )  # two frames have no second difference
    told = motion(two)
    assert told["jerk"] == pytest.approx(1.0) and told["episodes"] == 3
    assert told["spread"] > 0


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="three or more"):
        jerk(torch.zeros(2, 1))
    with pytest.raises(InvalidInputError, match="10 nearest of 5"):
        action_spread(torch.zeros(5, 1), torch.zeros(5, 1))
    with pytest.raises(InvalidInputError, match="at least two"):
        coverage(torch.zeros(1, 2), torch.zeros(3, 2))
