"""FB beside 2209.14935, appendix B: tasks, targets, F and B, the actor, slow networks, the rows, answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.control.zero_shot import TaskConditionedCodec
from denoiserl.data import Demonstrations, Normalizer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep, time_grid
from denoiserl.recipes.zero_shot import fb
from tests.recipes.kit import Spy, Tape, adam, agree, answer, descend, moments

H, D, S, Z, LIMIT = 2, 2, 3, 4, 1.3
MEAN, STD = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.7, 1.4, 1.0])
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 2.0])
T = 1e-6
ENDS = torch.tensor([4, 8, 9, 12, 16, 22])
ENDED = torch.tensor([True, True, True, False, True, True])
A = fb.Args(
    num_updates=2,
    batch_size=13,
    lr=0.02,
    representation_width=8,
    ortho_weight=0.7,
    gamma=0.8,
    tau=0.3,
    goal_task_fraction=0.6,
    target_noise=0.5,
    target_noise_clip=0.4,
)
CASES = {"perceptrons": A, "attention": replace(A, attention_layers=1)}
pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.filterwarnings("ignore:B has collapsed")]


def start() -> Policy:
    torch.manual_seed(4)
    process, seen = OneStep(), replace(Normalizer.identity(S), centre=MEAN, scale=STD)
    net = Actor(MLP((H, D), S + Z, 8, 2, 0, False, activation="relu", out=(H, 2 * D)))
    net.net.leave.bias.data.view(H, 2 * D)[:, :D] = torch.tensor([1.5, -1.5])  # decisions near the edge of the box
    codec = TaskConditionedCodec(replace(TanhCodec.from_box(LOW, HIGH, seen), limit=LIMIT), torch.zeros(Z))
    return Policy.of(
        process, net, (H, D), process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0), codec
    )


def recorded() -> EpisodeDataset:
    torch.manual_seed(6)
    acted = LOW + (HIGH - LOW) * torch.rand(22, D)
    acted[::3, 0] = 3.0  # on the edge of the box, where no decision is
    demos = Demonstrations(torch.randn(22, S), acted, ENDS)
    return EpisodeDataset(demos, torch.randn(22), torch.randn(6, S), ENDED, LOW, HIGH)


@pytest.mark.parametrize("case", CASES)
def test_two_updates_are_those_of_the_paper(case: str) -> None:
    a, made, data, rng = CASES[case], start(), recorded(), Tape(3)
    spy = Spy(rng)
    logged = list(fb.improve(made, data, a, rng, spy))

    policy, slow = spy.start["policy"], spy.start["represent_target"]
    net, both = policy.weights.module, policy.weights.control.verifier.represent
    agree(slow.state_dict(), both.state_dict(), 0.0)
    opt = adam([*both.parameters(), *net.parameters()], a.lr, betas=(0.9, 0.99))

    rows = []
    for first, end, last, ended in zip([0, *ENDS.tolist()], ENDS.tolist(), data.last, ENDED.tolist(), strict=False):
        for now in range(first, end - H + 1):  # a decision is seen to its end
            over = now + H == end
            after = last if over else data.demos.observations[now + H]
            discount = 0.0 if over and ended else a.gamma**H
            action = (data.demos.actions[now : now + H] - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)
            discount = torch.tensor(discount).float()
            rows.append((data.demos.observations[now], action.clamp(-0.999, 0.999), after, discount))
    s, acted, s_, gamma = (torch.stack([row[k] for row in rows]) for k in range(4))
    s, s_ = (((v - MEAN) / STD).clamp(-LIMIT, LIMIT) for v in (s, s_))
    assert len(rows) == 16 and int((gamma == 0).sum()) == 4

    def mu(seen: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(answer(net, torch.zeros(len(seen), H, D), 1.0, torch.cat([seen, z], 1)).mean)

    drawn = set()
    for it in range(a.num_updates):
        i = rng.take("integers", a.batch_size)
        obs, action, after, discount = s[i], acted[i], s_[i], gamma[i]
        drawn |= set(discount.tolist())
        with torch.no_grad():
            reached = both.backward_embedding(obs[rng.take("permutation", a.batch_size)])
            mixed = rng.take("uniform", a.batch_size, 1) < a.goal_task_fraction
            z = torch.where(mixed, reached, rng.take("normal", a.batch_size, Z))
            z = math.sqrt(Z) * z / z.square().sum(1, keepdim=True).sqrt()
            eps = (a.target_noise * rng.take("normal", a.batch_size, H, D)).clamp(
                -a.target_noise_clip, a.target_noise_clip
            )
            a_ = mu(after, z) + eps
            assert bool((a_.abs() > 1).any())
            a_ = a_.clamp(-1, 1)
            target = (
                torch.einsum("kid,jd->kij", slow.forward_embedding(after, a_, z), slow.backward_embedding(after))
                .min(0)
                .values
            )
        F, B = both.forward_embedding(obs, action, z), both.backward_embedding(after)
        loss = torch.zeros(())
        for k in range(2):  # equation 24: the diagonal is what came next, all else are independent states
            for i in range(a.batch_size):
                m = B @ F[k, i]
                others = torch.arange(a.batch_size) != i
                bellman = (m - discount[i] * target[i])[others]
                loss = loss + (0.5 * (bellman**2).mean() - m[i]) / a.batch_size
        for i in range(a.batch_size):  # equation 26: ‖E[B Bᵀ] − I‖²
            others = torch.arange(a.batch_size) != i
            loss = loss + a.ortho_weight * (((B @ B[i])[others] ** 2).mean() - 2 * B[i] @ B[i]) / a.batch_size
        parameters = [p.requires_grad_(False) for p in both.parameters()]  # Q is climbed, not taught
        value = (both.forward_embedding(obs, mu(obs, z), z) * z).sum(-1).min(0).values.mean()
        for p in parameters:
            p.requires_grad_(True)
        norm = descend(opt, loss - value)
        with torch.no_grad():
            for p, q in zip(slow.parameters(), both.parameters(), strict=True):
                p.copy_((1 - a.tau) * p + a.tau * q)

        state = spy.states[it + 1]
        agree(state["policy"], policy.state_dict(), T, f"policy, F and B after update {it}")
        agree(state["represent_target"], slow.state_dict(), T, f"slow F and B after update {it}")
        share = torch.linalg.svdvals(B.detach()) ** 2
        share = share / share.sum()
        told = {"loss/fb": loss, "q/policy": value, "loss/total": loss - value, "train/grad_norm": norm}
        told["fb/effective_rank"] = (-(share * share.log()).sum()).exp()
        agree(logged[it], told, T, f"row {it}")
    agree(moments(spy.named["optimizer"]), moments(opt), T, "moments")
    assert drawn == {0.0, float(torch.tensor(a.gamma**H).float())}, "a true end was in a batch"

    reward = torch.randn(22)
    told = fb.policy_for_reward(made, data.demos.observations, reward)
    with torch.no_grad():
        z = (
            reward[:, None] * both.backward_embedding(((data.demos.observations - MEAN) / STD).clamp(-LIMIT, LIMIT))
        ).mean(0)
        z = math.sqrt(Z) * z / z.square().sum().sqrt()
        best = mu(((torch.ones(5, S) - MEAN) / STD).clamp(-LIMIT, LIMIT), z.expand(5, -1))
    agree(told.codec.z, z, T, "the task of a reward")
    agree(told.generate(torch.ones(5, S), Tape(1)), (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * best, T, "served")
