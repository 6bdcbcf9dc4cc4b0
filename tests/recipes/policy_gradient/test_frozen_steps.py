"""A policy whose first denoising steps are frozen is one policy: what learned is what is drawn, saved and improved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.control.acting import learner
from denoiserl.core.errors import InvalidInputError
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.policy.sampler import RecordSample, make_sampler
from denoiserl.processes import Relay, cosine, ddim, with_min_std
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.recipes.policy_gradient import beyond_human, dppo, gorl
from denoiserl.train import Run
from denoiserl.train.fit import training_losses

gymnasium = pytest.importorskip("gymnasium")
STEPS = 5
SEEN = torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Near(gymnasium.Env):
    """Reward −|a − 0.8|, four ticks."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seen, self.ticks = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.seen, {}

    def step(self, action: Any) -> Any:
        self.ticks += 1
        return self.seen, -float(np.abs(action - 0.8).sum()), False, self.ticks >= 4, {}


def policy(net: nn.Module | None = None) -> Policy:
    torch.manual_seed(0)
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.2), clip=1.0)
    made = net or MLP((2, 1), cond=2, width=32, depth=2)
    steps, serve = process.steps(time_grid(STEPS)), process.steps(time_grid(STEPS), ddim(1.0))
    return Policy.of(process, GaussianDenoiser(made, cosine, "v"), (2, 1), steps, serve)


ARGS = dppo.Args(
    iterations=3,
    num_envs=8,
    rollout_steps=4,
    finetune_denoising_steps=2,
    lr=5e-3,
    batch_size=64,
    epochs=3,
    clip_range=0.1,
    clip_range_noisiest=0.1,
)


def improve(made: Policy, a: dppo.Args = ARGS, keep: Run | None = None) -> Policy:
    torch.manual_seed(1)  # of the critic
    for _ in dppo.improve(made, Collector(Near, a.num_envs, 1), a, Rng(5), keep):
        pass
    return made


def turns(made: Policy, clone: Denoiser, serve: bool) -> torch.Tensor:
    """Draw by hand: the clone's weights run the first steps and the ones that learned run the last two."""
    table = made.eval_steps if serve else made.train_steps
    early = make_sampler(made.process, clone, table.slice_steps(0, STEPS - 2), made.event_shape, record=RecordSample())
    late = make_sampler(
        made.process, learner(made), table.slice_steps(STEPS - 2, STEPS), made.event_shape, record=RecordSample()
    )
    rng = Rng(3)
    return late(SEEN, rng, start=(early(SEEN, rng).sample, 0)).sample


@pytest.mark.parametrize("serve", [True, False])
def test_the_policy_that_is_drawn_is_the_one_that_learned(serve: bool) -> None:
    clone = policy().denoiser
    made = improve(policy())
    drawn = made.sample_chain(SEEN, Rng(3), record=RecordSample(), use_eval_steps=serve).sample
    assert torch.allclose(drawn, turns(made, clone, serve), atol=1e-5)
    alone = make_sampler(
        made.process,
        learner(made),
        made.eval_steps if serve else made.train_steps,
        made.event_shape,
        record=RecordSample(),
    )
    assert not torch.allclose(drawn, alone(SEEN, Rng(3)).sample, atol=1e-2), "one network for all steps is another"


def test_what_is_saved_is_what_learned_and_learns_on(tmp_path: Path) -> None:
    made = improve(policy())
    again = Policy.load(made.save(tmp_path / "p"))
    assert torch.equal(again.generate(SEEN, Rng(3)), made.generate(SEEN, Rng(3)))
    assert len(again.parameters()) == len(policy().parameters()), "what is frozen stays frozen"
    assert isinstance(again.denoiser, Relay)
    frozen = [p.clone() for p in again.denoiser.first.parameters()]
    for on in (made, again):
        improve(on, replace(ARGS, finetune_denoising_steps=None))
    assert torch.equal(again.generate(SEEN, Rng(3)), made.generate(SEEN, Rng(3)))
    assert all(torch.equal(p, q) for p, q in zip(frozen, again.denoiser.first.parameters(), strict=True))
    fewer = improve(made, replace(ARGS, finetune_denoising_steps=1))
    assert torch.equal(Policy.load(fewer.save(tmp_path / "q")).generate(SEEN, Rng(3)), fewer.generate(SEEN, Rng(3)))
    with pytest.raises(InvalidInputError, match="at most 1, not 4"):
        improve(fewer, replace(ARGS, finetune_denoising_steps=4))


def test_a_resumed_run_of_the_last_steps_ends_where_a_whole_one_ends(tmp_path: Path) -> None:
    whole = improve(policy(), keep=Run(tmp_path / "whole", every=1))
    half = policy()
    torch.manual_seed(1)
    rows = dppo.improve(half, Collector(Near, 8, 1), ARGS, Rng(5), Run(tmp_path / "half", every=1))
    next(rows)
    next(rows)
    del rows
    resumed = improve(policy(), keep=Run(tmp_path / "half", every=1))
    assert torch.equal(whole.generate(SEEN, Rng(0)), resumed.generate(SEEN, Rng(0)))
    assert torch.equal(whole.with_weights("base").generate(SEEN, Rng(0)), policy().generate(SEEN, Rng(0))), (
        "base is the clone"
    )


def test_replay_and_loss_agree_with_the_chain_about_the_border() -> None:
    made = improve(policy())
    chain = made.sample_chain(SEEN, Rng(3))
    law, y = made.rescore(chain)
    assert torch.allclose(law.log_prob(y), chain.log_prob, atol=1e-4)
    rows = chain.steps_at(torch.randperm(chain.log_prob.numel(), generator=torch.Generator().manual_seed(1)))
    law, y = made.rescore(rows)
    assert torch.allclose(law.log_prob(y), rows.log_prob, atol=1e-4)
    t = torch.linspace(0.01, 0.99, 64)
    assert isinstance(made.denoiser, Relay)
    early, late, both = (
        training_losses(made.process, d, torch.zeros(64, 2, 1), SEEN, Rng(2), t=t)
        for d in (made.denoiser.first, made.denoiser.last, made.denoiser)
    )
    assert torch.allclose(both, torch.where(t > made.denoiser.until, early, late), atol=1e-6)


def test_the_border_is_a_time_on_every_table() -> None:
    made = improve(policy())
    relay = made.denoiser
    assert isinstance(relay, Relay)
    for n in (1, 2, 3, 10):
        table = made.process.steps(time_grid(n), ddim(0.0))  # type: ignore[call-arg]
        served = replace(made, eval_steps=table).generate(SEEN, Rng(3))
        early = int((table.times[:-1] > relay.until).sum())
        x, rng = None, Rng(3)
        for denoise, low, high in ((relay.first, 0, early), (relay.last, early, n)):
            if low < high:
                part = make_sampler(
                    made.process, denoise, table.slice_steps(low, high), made.event_shape, record=RecordSample()
                )
                x = part(SEEN, rng, start=None if x is None else (x, 0)).sample
        assert x is not None and torch.allclose(x, served, atol=1e-6)


class Own(nn.Module):
    """A network of a user's, that has to be handed over on loading."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, clock: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        t = clock.reshape(-1, 1).expand(len(x), 1)
        return self.map(torch.cat([x.flatten(1), t, context], 1)).unflatten(1, (2, 1))


def test_a_network_that_is_handed_over_on_loading_is_two(tmp_path: Path) -> None:
    made = improve(policy(Own()))
    again = Policy.load(made.save(tmp_path / "p"), net=Own())
    assert torch.equal(again.generate(SEEN, Rng(3)), made.generate(SEEN, Rng(3)))
    improve(again, replace(ARGS, finetune_denoising_steps=None))
    assert isinstance(again.denoiser, Relay) and isinstance(made.denoiser, Relay)
    pairs = zip(again.denoiser.first.parameters(), made.denoiser.first.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_a_network_that_is_made_anew_for_all_steps_is_not_half_frozen() -> None:
    made = improve(policy())
    made = replace(made, eval_steps=made.process.steps(time_grid(STEPS), ddim(0.0)))  # type: ignore[call-arg]
    for recipe, a in ((gorl, gorl.Args()), (beyond_human, beyond_human.Args())):
        with pytest.raises(InvalidInputError, match="frozen weights"):
            list(recipe.improve(made, Collector(Near, 4, 1), a, Rng(0)))  # type: ignore[arg-type]


def test_a_relay_is_given_a_border_inside_the_chain() -> None:
    class Nothing(Denoiser):
        def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
            return Estimate(x)

    with pytest.raises(ValueError, match="at a time in"):
        Relay(Nothing(), Nothing(), 1.0)
