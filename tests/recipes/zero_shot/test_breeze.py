"""BREEZE beside 2510.15382: tasks, proposals, F and B, the implied reward, V, the policy, averages, rates, the rows.

In 17 updates the rate falls and restarts twice; the first two are computed anew.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.control.zero_shot import TaskConditionedCodec
from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, cosine, ddim, time_grid, with_min_std
from denoiserl.recipes.zero_shot import breeze
from tests.recipes.kit import Spy, Tape, adam, agree, answer, descend, moments

H, D, S, Z, LIMIT, CLIP, ETA = 2, 2, 3, 4, 1.3, 1.4, 0.7
SEEN = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.7, 1.4, 1.0])
ACTED = torch.tensor([1.0, 1.0]), torch.tensor([2.2, 0.8])
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 2.0])  # beyond what the policy can say in one dimension
T = 1e-6
ENDS = torch.tensor([4, 8, 9, 12, 16, 22])
ENDED = torch.tensor([True, True, True, False, True, True])
A = breeze.Args(
    num_updates=17, batch_size=15, lr=0.02, weight_decay=0.3, representation_width=8, ortho_weight=0.7, gamma=0.8,
    tau=0.3, policy_ema=0.2, goal_task_fraction=0.4, expectile=0.8, bellman_weight=0.4, inverse_temperature=40.0,
    num_proposals=4, data_action_fraction=0.5, num_candidates=5,
)  # fmt: skip
CASES = {"best of four": A, "attention": replace(A, num_proposals=1, attention_layers=1)}
pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.filterwarnings("ignore:B has collapsed")]


def start() -> Policy:
    torch.manual_seed(4)
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.2), clip=CLIP)
    seen, acted = (replace(Normalizer.identity(len(c)), centre=c, scale=s) for c, s in (SEEN, ACTED))
    net = GaussianDenoiser(MLP((H, D), S + Z, 8, 2, 8), cosine, "v")
    serve = process.steps(time_grid(2, spacing="quadratic"), ddim(ETA))
    codec = TaskConditionedCodec(ActionChunkCodec(seen, acted, LIMIT), torch.zeros(Z))
    return Policy.of(process, net, (H, D), process.steps(time_grid(3)), serve, codec)


def recorded() -> EpisodeDataset:
    torch.manual_seed(6)
    acted = LOW + (HIGH - LOW) * torch.rand(22, D)
    demos = Demonstrations(torch.randn(22, S), acted, ENDS)
    return EpisodeDataset(demos, torch.randn(22), torch.randn(6, S), ENDED, LOW, HIGH)


def levels(t: Tensor | float) -> tuple[Tensor, Tensor]:
    """α and σ of 2102.09672, equation 17; α stays above 1e-4."""
    d = torch.as_tensor(t)
    alpha = torch.cos((d + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    alpha = alpha.clamp_min(1e-4)
    return alpha, (1 - alpha**2).sqrt()


def G(gauss: torch.nn.Module, cond: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
    """Actions by DDIM with a share of noise, equations 12 and 16 of 2010.02502."""
    x = noise
    for k, (t, s) in enumerate(((1.0, 0.25), (0.25, 0.0))):
        (a_t, s_t), (a_s, s_s) = levels(t), levels(s)
        x0 = answer(gauss, x, t, cond).mean.clamp(-CLIP, CLIP)  # type: ignore[arg-type]
        eps = (x - a_t * x0) / s_t
        std = ETA * s_s / s_t * (1 - a_t**2 / a_s**2).sqrt()
        x = a_s * x0 + (s_s**2 - std**2).sqrt() * eps + std * fresh[k]
    return x


@pytest.mark.parametrize("case", CASES)
def test_two_updates_are_those_of_the_paper(case: str) -> None:
    a, made, data, rng = CASES[case], start(), recorded(), Tape(3)
    spy, logged, shown = Spy(rng), [], []
    for row in breeze.improve(made, data, a, rng, spy):
        logged.append(row)
        shown.append({k: v.clone() for k, v in made.denoiser.state_dict().items()})  # who is judged

    policy, slow, V = spy.start["policy"], spy.start["represent_target"], spy.start["value"]
    net, average, both = policy.weights.module, policy.weights.sets["ema"], policy.weights.control.verifier.represent
    agree(slow.state_dict(), both.state_dict(), 0.0)
    agree(average.state_dict(), net.state_dict(), 0.0)
    opt = adam([*both.parameters(), *V.parameters(), *net.parameters()], a.lr, a.weight_decay, (0.9, 0.99))

    rows = []
    for first, end, last, ended in zip([0, *ENDS.tolist()], ENDS.tolist(), data.last, ENDED.tolist(), strict=False):
        for now in range(first, end - H + 1):  # a decision is seen to its end
            over, known = now + H == end, now + 2 * H <= end
            after = last if over else data.demos.observations[now + H]
            discount = torch.tensor(0.0 if over and ended else a.gamma**H).float()
            chunk = (data.demos.actions[now : now + H] - ACTED[0]) / ACTED[1]
            following = data.demos.actions[now + H : now + 2 * H] if known else torch.zeros(H, D)
            following = ((following - ACTED[0]) / ACTED[1]).clamp(-1, 1)
            rows.append((data.demos.observations[now], chunk, after, discount, following, torch.tensor(known)))
    s, chunks, s_, gamma, follow, knows = (torch.stack([row[k] for row in rows]) for k in range(6))
    s, s_ = (((v - SEEN[0]) / SEEN[1]).clamp(-LIMIT, LIMIT) for v in (s, s_))
    assert len(rows) == 16 and int((gamma == 0).sum()) == 4

    drawn, sources, capped = set(), set(), set()
    for it in range(2):
        i = rng.take("integers", a.batch_size)
        obs, chunk, after, discount = s[i], chunks[i], s_[i], gamma[i]
        action, following, known = chunk.clamp(-1, 1), follow[i], knows[i]
        drawn |= set(discount.tolist())
        with torch.no_grad():
            reached = both.backward_embedding(obs[rng.take("permutation", a.batch_size)])
            mixed = rng.take("uniform", a.batch_size, 1) < a.goal_task_fraction
            z = torch.where(mixed, reached, rng.take("normal", a.batch_size, Z))
            z = math.sqrt(Z) * z / z.square().sum(1, keepdim=True).sqrt()

            K = a.num_proposals  # of the average's proposals the best by Q, or what followed in the data
            many, tasks = after.repeat_interleave(K, 0), z.repeat_interleave(K, 0)
            noise, fresh = rng.take("normal", a.batch_size * K, H, D), rng.take("normal", 2, a.batch_size * K, H, D)
            plans = G(average, torch.cat([many, tasks], 1), noise, fresh)
            assert bool((plans.abs() > 1).any())
            plans = plans.clamp(-1, 1)
            q = (both.forward_embedding(many, plans, tasks) * tasks).sum(-1).min(0).values.view(a.batch_size, K)
            a_ = plans.view(a.batch_size, K, H, D)[torch.arange(a.batch_size), q.argmax(1)]
            data_s = known & (rng.take("uniform", a.batch_size) < a.data_action_fraction)
            a_ = torch.where(data_s[:, None, None], following, a_)
            sources |= set(zip(known.tolist(), data_s.tolist(), strict=True))
            target = (
                torch.einsum("kid,jd->kij", slow.forward_embedding(after, a_, z), slow.backward_embedding(after))
                .min(0)
                .values
            )
            ahead = V(torch.cat([after, z], 1))
        F, B = both.forward_embedding(obs, action, z), both.backward_embedding(after)
        loss = torch.zeros(())
        for k in range(2):  # L_FB
            for i in range(a.batch_size):
                m = B @ F[k, i]
                others = torch.arange(a.batch_size) != i
                loss = loss + (0.5 * ((m - discount[i] * target[i])[others] ** 2).mean() - m[i]) / a.batch_size
        for i in range(a.batch_size):  # L_ortho
            others = torch.arange(a.batch_size) != i
            loss = loss + a.ortho_weight * (((B @ B[i])[others] ** 2).mean() - 2 * B[i] @ B[i]) / a.batch_size
        with torch.no_grad():  # r_z(s') = B(s')ᵀ E[B Bᵀ]⁻¹ z, with a thousandth of the mean eigenvalue on the diagonal
            cov = torch.stack([torch.outer(b, b) for b in B]).mean(0)
            cov = cov + 1e-3 * cov.diagonal().mean() * torch.eye(Z)
            r_z = torch.stack([b @ torch.linalg.inv(cov) @ w for b, w in zip(B, z, strict=True)])
            y = r_z + discount * ahead
        Q = (F * z).sum(-1)
        bellman = ((Q - y) ** 2).mean()
        v, least = V(torch.cat([obs, z], 1)), Q.detach().min(0).values
        v_loss = (torch.where(least < v, 1 - a.expectile, a.expectile) * (least - v) ** 2).mean()
        weight = (a.inverse_temperature * (least - v.detach())).exp().clamp(max=100)
        capped |= set((weight == 100).tolist())

        u, order = rng.take("uniform", (a.batch_size + 1) // 2), rng.take("permutation", a.batch_size)
        half = (torch.arange(len(u)) + u) / a.batch_size
        t = torch.cat([half, 1 - half[: a.batch_size // 2]])[order]
        (alpha, sigma), eps = levels(t), rng.take("normal", a.batch_size, H, D)
        alpha, sigma = alpha[:, None, None], sigma[:, None, None]
        found = answer(net.net, alpha * chunk + sigma * eps, t, torch.cat([obs, z], 1)).float()
        each = ((found - (alpha * eps - sigma * chunk)) ** 2).mean((1, 2))
        regress = (weight * each).mean()
        total = loss + a.bellman_weight * bellman + v_loss + regress
        for group in opt.param_groups:
            group["lr"] = a.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * it / 5)))
        norm = descend(opt, total)
        with torch.no_grad():
            for p, q in zip(slow.parameters(), both.parameters(), strict=True):
                p.copy_((1 - a.tau) * p + a.tau * q)
            for p, q in zip(average.parameters(), net.parameters(), strict=True):
                p.copy_((1 - a.policy_ema) * p + a.policy_ema * q)

        state = spy.states[it + 1]
        agree(state["policy"]["current"], net.state_dict(), T, f"policy after update {it}")
        agree(state["policy"]["sets"]["ema"], average.state_dict(), T, f"average policy after update {it}")
        agree(state["policy"]["control"], policy.weights.control.state_dict(), T, f"F and B after update {it}")
        agree(state["represent_target"], slow.state_dict(), T, f"slow F and B after update {it}")
        agree(state["value"], V.state_dict(), T, f"V after update {it}")
        agree(shown[it], average.state_dict(), T, f"who is judged after update {it}")
        share = torch.linalg.svdvals(B.detach()) ** 2
        share = share / share.sum()
        told = {
            "loss/fb": loss,
            "loss/bellman": bellman,
            "loss/value": v_loss,
            "loss/policy": regress,
            "awr/weight": weight.mean(),
        }
        told |= {"v/data": v.mean(), "fb/effective_rank": (-(share * share.log()).sum()).exp()}
        agree(logged[it], told | {"loss/total": total, "train/grad_norm": norm}, T, f"row {it}")
    held = spy.states[2]["optimizer"]["state"]
    agree([held[k][m] for k in held for m in ("exp_avg", "exp_avg_sq")], moments(opt), T, "moments")
    assert drawn == {0.0, float(torch.tensor(a.gamma**H).float())}, "a true end was in a batch"
    assert sources == {(True, True), (True, False), (False, False)} and capped == {True, False}

    assert len(logged) == 17
    for n in range(17):
        done = n / 5 if n < 5 else (n - 5) / 10 if n < 15 else (n - 15) / 20
        rate = a.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
        agree(spy.states[n]["optimizer"]["param_groups"][0]["lr"], rate, 1e-9, f"rate of update {n}")
    agree(made.denoiser.state_dict(), spy.states[-1]["policy"]["sets"]["ema"], 0.0, "the average is what serves")

    policy.weights.control.load_state_dict(spy.states[-1]["policy"]["control"])
    reward, obs, tape = torch.randn(22), torch.randn(6, S), Tape(8)
    told = breeze.policy_for_reward(made, data.demos.observations, reward)
    with torch.no_grad():
        z = (
            reward[:, None]
            * both.backward_embedding(((data.demos.observations - SEEN[0]) / SEEN[1]).clamp(-LIMIT, LIMIT))
        ).mean(0)
        z = math.sqrt(Z) * z / z.square().sum().sqrt()
        agree(told.codec.z, z, T, "the task of a reward")
        served, n = told.generate(obs, tape), 6 * a.num_candidates
        many = ((obs - SEEN[0]) / SEEN[1]).clamp(-LIMIT, LIMIT).repeat_interleave(a.num_candidates, 0)
        cond = torch.cat([many, z.expand(n, -1)], 1)
        plans = G(made.denoiser, cond, tape.take("normal", n, H, D), tape.take("normal", 2, n, H, D))
        q = (
            (both.forward_embedding(many, plans.clamp(-1, 1), z.expand(n, -1)) * z)
            .sum(-1)
            .min(0)
            .values.view(6, a.num_candidates)
        )
        best = plans.view(6, a.num_candidates, H, D)[torch.arange(6), q.argmax(1)]
    assert len(q.argmax(1).unique()) > 1
    agree(served, ACTED[0] + ACTED[1] * best.clamp(-1, 1), T, "served")
