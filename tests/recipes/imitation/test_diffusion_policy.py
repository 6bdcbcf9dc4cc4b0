"""Diffusion Policy beside 2303.04137: windows, times, noise, the loss, clipping, rates, the average, the rows.

In 104 updates the rate rises and falls, and the average runs; the first two are computed anew.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer
from denoiserl.integrations.lerobot.policy import LeRobotCodec
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, cosine, ddim, linear, time_grid
from denoiserl.recipes.imitation import diffusion_policy
from tests.recipes.kit import Spy, Tape, adam, agree, answer, descend, moments

pytestmark = pytest.mark.usefixtures("double")

H, D, S, T_A, LIMIT = 4, 2, 3, 3, 1.2
T = 1e-6
ENDS = torch.tensor([5, 7, 8, 14])
SEEN = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.6, 0.9, 2.0])
ACTED = torch.tensor([0.1, 0.4]), torch.tensor([4.0, 5.0])
A = diffusion_policy.Args(num_updates=2, batch_size=7, lr=0.02)
CASES = {
    "noise": replace(A, obs_horizon=2, num_updates=104, lr=0.2),  # ε̂ of a cosine, repeated actions have no loss
    "flow": replace(A, mask_padding=False),  # v̂ of a straight line, what is repeated is imitated
    "velocity": replace(A, obs_horizon=2),  # v̂ of a cosine, for a policy whose chunks begin one tick ago
    "stacked": A,  # the same, of data that hold two observations as one
}


LATE = ("velocity", "stacked")


def start(case: str) -> Policy:
    torch.manual_seed(5)
    schedule = linear if case == "flow" else cosine
    process = Diffusion(schedule, ddim(1.0), clip=1.0, weight="noise" if case == "noise" else "velocity")
    seen, acted = (  # observations go far beyond one scale, as standardised ones do
        replace(Normalizer.identity(len(c)), centre=c, scale=s, low=c - far * s, high=c + far * s)
        for (c, s), far in ((SEEN, 6.0), (ACTED, 1.0))
    )
    codec = (
        LeRobotCodec(seen, acted, {"observation.state": S}, 2, T_A)
        if case in LATE
        else ActionChunkCodec(seen, acted, LIMIT)
    )
    net = MLP((H, D), S if case == "flow" else 2 * S, 8, 2, 8)
    net.leave.weight.data.mul_(0.1 if case == "noise" else 4.0)  # its gradients are short, the others' are clipped
    return Policy.of(
        process,
        GaussianDenoiser(net, schedule, "eps" if case == "noise" else "v"),
        (H, D),
        process.steps(time_grid(3)),
        codec=codec,
    )


def demonstrated(case: str) -> Demonstrations:
    torch.manual_seed(6)
    return Demonstrations(2 * torch.randn(14, 2 * S if case == "stacked" else S), 3 * torch.rand(14, D) - 1, ENDS)


@pytest.mark.parametrize("case", CASES)
def test_two_updates_are_those_of_the_paper(case: str) -> None:
    a, made, data, rng = CASES[case], start(case).with_execution_horizon(T_A), demonstrated(case), Tape(3)
    spy = Spy(rng)
    logged = list(diffusion_policy.improve(made, data, a, rng, spy))
    assert made.weights.execute == T_A

    T_o, past = a.obs_horizon, 1 if case in LATE else 0
    chunks, counts, conditions = [], [], []
    for first, end in zip([0, *ENDS.tolist()], ENDS.tolist(), strict=False):
        L = end - first
        for now in range(L):
            if now + (H - past) > L + (T_A - 1):
                break  # a window reaches over the end by T_a − 1 ticks
            ticks = [now + j for j in range(H - past)] + [now - past for _ in range(past)]  # now first, the past last
            place = [first + min(max(t, 0), L - 1) for t in ticks]
            chunks.append((data.actions[place] - ACTED[0]) / ACTED[1])
            counts.append(torch.tensor([0 <= t < L for t in ticks])[:, None].expand(H, D))
            seen = [first + max(now - j, 0) for j in reversed(range(T_o))]
            assert isinstance(data.observations, Tensor)
            seen = (data.observations[seen].view(-1, S) - SEEN[0]) / SEEN[1]
            conditions.append((seen if case in LATE else seen.clamp(-LIMIT, LIMIT)).flatten())
    x0s, real, conds = torch.stack(chunks), torch.stack(counts), torch.stack(conditions)
    if not a.mask_padding:
        real = torch.ones_like(real)
    sizes = real[:, :, 0].sum(1).unique().tolist()
    assert sizes == ([4] if case == "flow" else [1, 2, 3, 4] if case in LATE else [2, 3, 4])

    net = spy.start["denoiser"]
    opt, seen, norms, warmup = adam(net.parameters(), a.lr), [], [], min(100, a.num_updates)
    for it in range(2):
        i = rng.take("integers", a.batch_size)
        u, order = rng.take("uniform", (a.batch_size + 1) // 2), rng.take("permutation", a.batch_size)
        half = (torch.arange(len(u)) + u) / a.batch_size  # one in each stratum, and its mirror image
        t = torch.cat([half, 1 - half[: a.batch_size // 2]])[order]
        x0, eps, live, d = x0s[i], rng.take("normal", a.batch_size, H, D), real[i], t
        if case == "flow":
            alpha, sigma = 1 - d, d
        else:
            alpha = torch.cos((d + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
            sigma = (1 - alpha**2).sqrt()
        alpha, sigma = alpha[:, None, None], sigma[:, None, None]
        found = answer(net.net, alpha * x0 + sigma * eps, t, conds[i]).float()
        wanted = {"noise": eps, "flow": eps - x0}.get(case, alpha * eps - sigma * x0)
        each = ((found - wanted) ** 2 * live).sum((1, 2)) / live.sum((1, 2))
        for group in opt.param_groups:
            group["lr"] = a.lr * (it + 1) / warmup
        norms.append(descend(opt, each.mean(), 1.0))
        seen.append(each.mean())
        agree(spy.states[it + 1]["denoiser"], net.state_dict(), T, f"weights after update {it}")
    held = spy.states[2]["opt"]["state"]
    agree([held[k][m] for k in held for m in ("exp_avg", "exp_avg_sq")], moments(opt), T, "moments")
    if a.num_updates == 2:  # a row an update
        agree(logged, [{"loss/denoising": seen[k], "train/grad_norm": norms[k]} for k in range(2)], T, "rows")
    else:  # a row of two
        agree(logged[0], {"loss/denoising": (seen[0] + seen[1]) / 2, "train/grad_norm": norms[1]}, T, "row")
        assert len(logged) == 52
    assert all((norm < 1) == (case == "noise") for norm in norms)

    average: dict[str, Tensor] = {}
    for n in range(a.num_updates):  # the average of the weights is what acts
        rate = (n + 1) / warmup if n < 100 else 0.5 * (1 + math.cos(math.pi * (n - 100) / 4))
        agree(spy.states[n]["opt"]["param_groups"][0]["lr"], a.lr * rate, 1e-9, f"rate of update {n}")
        decay = min(1 - (1 + n) ** -0.75, 0.9999)
        for k, v in spy.states[n + 1]["denoiser"].items():
            average[k] = v if n == 0 else decay * average[k] + (1 - decay) * v
    agree(made.denoiser.state_dict(), average, T, "the average")
