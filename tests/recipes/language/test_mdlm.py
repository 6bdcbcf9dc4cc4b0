"""MDLM beside 2406.07524, equation 10, and LLaDA's prompted form, 2502.09992, equation 5: masks, losses, average."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Masked, TokenDenoiser, time_grid
from denoiserl.recipes.language import mdlm
from tests.recipes.kit import Spy, Tape, Words, adam, agree, descend, moments

N, L, PAD = 5, 6, 0
A = mdlm.Args(num_updates=4, batch_size=7, lr=0.03)
TOKENS = torch.tensor(
    [[0, 1, 3, 4, 2, 0], [3, 2, 1, 4, 0, 0], [2, 0, 4, 1, 3, 1], [1, 1, 4, 3, 0, 0], [0, 0, 2, 3, 0, 1]]
)
PADDING = torch.tensor(  # the runs of 0 at both ends; inside a row it is a token
    [[1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]]
).bool()
ANSWER = torch.tensor(  # of two rows the first 0 behind the text is its end
    [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
).bool()
BARE = TOKENS.masked_fill(TOKENS == 2, 4)


def start(case: str) -> Policy:
    torch.manual_seed(4)
    bare = case == "bare"  # the mask is one of the network's own tokens, which has rows for more
    process = Masked(5, mask_id=2) if bare else Masked(5)
    net = TokenDenoiser(Words(5, L, classes=7 if bare else 5))
    with torch.no_grad():
        net.net.head.weight.mul_(3)  # type: ignore[union-attr, operator]  # gradients that are clipped
    return Policy.of(process, net, (L,), process.steps(time_grid(3)), codec=None if bare else InfillCodec(PAD))


@pytest.mark.parametrize("case", ["bare", "padded", "prompted"])
def test_updates_are_those_of_the_paper(case: str) -> None:
    bare, prompted = case == "bare", case == "prompted"
    a = replace(A, micro_batch_size=3) if prompted else A
    made, rng, spy, modes = start(case), Tape(3), Spy(), []
    made.denoiser.net.register_forward_hook(lambda net, *_: modes.append(net.training))
    tokens = BARE if bare else TOKENS
    logged = list(mdlm.improve(made, {"tokens": tokens, "loss_mask": ANSWER} if prompted else tokens, a, rng, spy))

    net = start(case).denoiser
    opt, mask, norms = adam(net.parameters(), a.lr), 2 if bare else 5, []
    live = ANSWER if prompted else torch.ones(N, L, dtype=torch.bool) if bare else ~PADDING
    padding = PADDING & ~ANSWER if prompted else PADDING
    mean = {k: v.clone() for k, v in net.state_dict().items()}
    for n in range(a.num_updates):
        i = rng.take("integers", a.batch_size)
        u = (torch.arange(4) + rng.take("uniform", 4)) / a.batch_size
        t = torch.cat([u, 1 - u[:3]])[rng.take("permutation", a.batch_size)]  # antithetic: t and 1 − t
        hidden = (rng.take("uniform", a.batch_size, L) < t[:, None]) & live[i]
        x = tokens[i].masked_fill(hidden, mask)
        logits = net.net(x, t, None if bare else {"padding": padding[i]}).double()[..., :5]
        if bare:
            logits[..., mask] = -math.inf  # the mask is never an answer
        logp = logits.log_softmax(-1)
        loss = torch.zeros((), dtype=torch.float64)
        for b in range(a.batch_size):  # (1/t) Σ −log p(x₀_i | x_t) over masked i, a token of the answer
            terms = [logp[b, j, tokens[i[b], j]] for j in range(L) if hidden[b, j]]
            loss = loss - sum(terms) / t[b] / live[i[b]].sum() / a.batch_size
        opt.param_groups[0]["lr"] = a.lr * 0.5 * (1 + math.cos(math.pi * n / a.num_updates))
        norms.append(descend(opt, loss, 1.0))
        decay = min(1 - (1 + n) ** -0.75, 0.9999)
        mean = {k: decay * mean[k] + (1 - decay) * v for k, v in net.state_dict().items()}

        agree(spy.states[n + 1]["denoiser"], net.state_dict(), where=f"network after update {n}")
        agree(spy.states[n + 1]["average"], {"n": n + 1, "values": mean}, where=f"average after update {n}")
        agree(logged[n], {"loss/denoising": loss, "train/grad_norm": norms[-1]}, where=f"row {n}")

    agree(moments(spy.named["opt"]), moments(opt), where="moments")
    agree(made.denoiser.state_dict(), mean, where="what is kept is the average")
    assert max(norms) > 1 and len(logged) == a.num_updates
    assert modes and all(modes) and not made.denoiser.training


def test_the_bound_is_that_of_the_paper() -> None:
    """2502.09992, equation 6: k of L positions are hidden, k even in 1 ... L; (L/k) Σ log p(x₀_i | x_k), per token."""
    made, rng, draws = start("bare"), Tape(3), 3
    with torch.no_grad():
        found = float(made.elbo(BARE, None, rng, draws).mean()) / L

    place = rng.take("uniform", N, draws).argsort(-1)
    u = (place + rng.take("uniform", N, draws)) / draws
    score, total = rng.take("uniform", N, draws, L), 0.0
    for b in range(N):
        for d in range(draws):
            k = int(u[b, d] * L) + 1
            hidden = score[b, d].argsort()[:k]
            x = BARE[b].clone()
            x[hidden] = 2
            with torch.no_grad():
                logits = made.denoiser.net(x[None], torch.tensor([k / L]))[0, :, :5].double()
            logits[:, 2] = -math.inf
            total += L / k * float(logits.log_softmax(-1)[hidden, BARE[b, hidden]].sum())
    agree(found, total / N / draws / L)
