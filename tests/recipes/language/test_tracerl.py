"""TraceRL beside 2509.06949, section 4: rows of the decoder's own steps, their exact probability, the clipped loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Masked, TokenDenoiser, time_grid
from denoiserl.recipes.language import tracerl
from tests.recipes.kit import Spy, Tape, Words, adam, agree, commit, descend, moments

pytestmark = pytest.mark.usefixtures("double")

P, G, N, L, S = 6, 4, 24, 8, 3
BAD = 14
"""the sample of an iteration that has no reward"""
END, PAD = 4, 0  # tokens are 0 ... 4; a prompt may hold the id 6, which is none
TOKENS = tracerl.Args(
    iterations=3, num_prompts=P, group_size=G, epochs=2, batch_size=7, clip_range=0.05, kl_coef=1.0, min_step_nll=0.9,
    likelihood="tokens", invalid_rewards="drop", reward_weights={"right": 1.5, "flat": -0.5}, lr=0.05, lr_warmup=2,
)  # fmt: skip
EXACT = replace(
    TOKENS, likelihood=None, clip_range=0.05, prompt_accuracy_range=(0.2, 0.8), advantage_scale="batch",
    reward_weights={"right": 1.0}, lr_warmup=0, batch_size=4, lr=0.04, min_step_nll=1.5, kl_coef=0.5,
    micro_batch_size=3,
)  # fmt: skip
SETTINGS = {"tokens": TOKENS, "exact": EXACT}
HOLE, BLOCK = {"tokens": 7, "exact": 5}, {"tokens": None, "exact": 5}
"""of the exact case the mask is one of the network's own tokens, and answers are written in blocks"""
CANVASES = torch.tensor(
    [[7, 7, 0, 7, 3, 6, 7, 1], [0, 2, 7, 7, 4, 7, 1, 0], [7, 3, 7, 0, 7, 2, 6, 0], [0, 7, 7, 6, 7, 7, 7, 7]]
)
ASKED = [[0, 1, 1, 2, 3, 2], [3, 2, 2, 0, 1, 0], [1, 3, 3, 2, 0, 3]]


class Asks(Tape):
    """A tape that asks for the prompts of ``ASKED``: the group that ties has a prompt of another group."""

    turn = 0

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        assert (low, high, shape) == (0, len(CANVASES), (P,))
        self.turn += 1
        return self._heard("integers", torch.tensor(ASKED[self.turn - 1]))


class Judge:
    """Shares of right answers: group 1 below 0.2, 5 above 0.8, others between; group 2 ties; one of 3 has none."""

    def __init__(self, tie: bool = False) -> None:
        self.samples: list[Tensor] = []
        self.parts: list[dict[str, Tensor]] = []
        self.tie = tie

    def __call__(self, sample: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        right = 0.06 * (sample.float() * torch.linspace(0.1, 1, L)).sum(1).cos().square()
        flat = (sample[:, 1] - sample[:, 4]).float().square() / 64
        for i in range(len(sample)):
            which = len(self.samples) % N
            right[i] += 0.03 * (2 * which % 5) + [0.3, 0.02, 0.0, 0.152, 0.55, 0.8][which // G]
            if self.tie or which // G == 2:
                right[i], flat[i] = 0.6, 0.3
            right[i] = torch.nan if which == BAD and not self.tie else right[i]
            self.samples.append(sample[i].clone())
            self.parts.append({"right": right[i].clone(), "flat": flat[i].clone()})
        return {"right": right, "flat": flat}


def start(case: str) -> Policy:
    torch.manual_seed(10)
    hole, block = HOLE[case], BLOCK[case]
    if case == "tokens":
        process = Masked(5, order="confidence", tokens=2, temperature=0.8, top_k=3, mask_id=hole, end=END)
    else:
        process = Masked(
            6, order="confidence", tokens=2, temperature=1.4, top_p=0.93, mask_id=hole, end=END, block=block
        )
    net = Words(7, L, classes=6 if case == "exact" else 5)
    with torch.no_grad():
        net.head.weight[END] *= 0.2  # ends are about as likely everywhere: not sure, and not impossible
        net.head.bias[END] = 0.5
    return Policy.of(process, TokenDenoiser(net), (L,), process.steps(time_grid(S)), codec=InfillCodec(PAD))


def answer(x: Tensor, hole: Tensor) -> Tensor:
    """The holes up to and with the first end of text that is written."""
    ends = ((x == END) & hole).long()
    return hole & (ends.cumsum(-1) - ends == 0)


def opened(case: str, x: Tensor, hole: Tensor) -> Tensor:
    """Where the decoder may write: masks before the end, in the first block that has any."""
    free = (x == HOLE[case]) & answer(x, hole)
    if BLOCK[case] is not None:
        block = (torch.arange(L) - hole.int().argmax(-1, keepdim=True)) // BLOCK[case]
        free &= block == torch.where(free, block, L).min(-1, keepdim=True).values
    return free


def decoder(case: str, net: Words, x: Tensor, t: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, L, V] of the network and of its decoder: at a temperature, and of the likeliest tokens alone."""
    raw = net(x, t, {"padding": padding}).double()
    if case == "tokens":
        warm = raw / 0.8
        return raw, warm.masked_fill(warm < warm.topk(3, -1).values[..., -1:], -math.inf)
    raw[..., HOLE[case]] = -math.inf  # the mask is never an answer
    warm = raw / 1.4
    best, order = warm.sort(-1, descending=True)
    p = best.softmax(-1)
    kept = torch.zeros_like(warm, dtype=torch.bool).scatter(-1, order, p.cumsum(-1) - p < 0.93)
    return raw, warm.masked_fill(~kept, -math.inf)


def scored(raw: Tensor, logits: Tensor, x: Tensor, y: Tensor, free: Tensor, live: Tensor) -> tuple[dict, Tensor]:
    """log p_i(y_i) of every token that a step wrote, {i: ...}, and log P(S, y_S | x) of the whole step; of live ones.

    P = Π_{i∈S} p_i(y_i) Π_{j open, j∉S} F_j, F_j = Σ_v p_j(v) [(c_j(v), j) ranks below the weakest commitment].
    """
    logp, c = logits.log_softmax(-1), raw.detach().log_softmax(-1)
    wrote = [i for i in range(L) if x[i] != y[i]]
    tokens = {i: logp[i, y[i]] for i in wrote if live[i]}
    worst, place = min((float(c[i, y[i]]), -i) for i in wrote)
    joint = sum(tokens.values(), torch.zeros(()))
    for j in range(L):
        if free[j] and j not in wrote and live[j]:
            below = [
                v for v in range(logp.shape[-1]) if logp[j, v] > -math.inf and (float(c[j, v]), -j) < (worst, place)
            ]
            joint = joint + (logp[j, below].logsumexp(0) if below else -math.inf)
    return tokens, joint


def ratios_of(
    case: str, net: Words, x: Tensor, t: Tensor, padding: Tensor, y: Tensor, free: Tensor, live: Tensor
) -> list[list[Tensor]]:
    """What the ratios are of, log-probabilities row by row: of every token that was written, or of the whole step."""
    raw, logits = decoder(case, net, x, t, padding)
    each = [scored(raw[i], logits[i], x[i], y[i], free[i], live[i]) for i in range(len(x))]
    return [list(tokens.values()) if case == "tokens" else [joint] for tokens, joint in each]


@pytest.mark.parametrize("case", list(SETTINGS))
def test_updates_are_those_of_the_paper(case: str) -> None:
    a, judge, rng, spy = SETTINGS[case], Judge(), Asks(3), Spy()
    canvases = CANVASES.masked_fill(CANVASES == 7, HOLE[case])
    made = start(case)
    logged = list(tracerl.improve(made, (judge, canvases), a, rng, spy))

    net = start(case).denoiser.net
    opt, kinds, norms = adam(net.parameters(), a.lr), set(), []
    for it in range(a.iterations):
        canvas = canvases[rng.take("integers", P)].repeat_interleave(G, 0)
        left, right = (canvas == PAD).long().cumprod(-1), (canvas == PAD).long().flip(-1).cumprod(-1).flip(-1)
        padding, hole = (left + right).bool(), canvas == HOLE[case]

        sample, uniform, steps = canvas.clone(), rng.take("uniform", S, N, L, 2), []
        for k in range(S):
            with torch.no_grad():
                raw, logits = decoder(case, net, sample, torch.tensor([1 - k / S]), padding)
            free = opened(case, sample, hole)
            token, chosen = commit(logits.float(), raw, free, uniform[k, ..., 0], torch.full((N,), 2))
            after = torch.where(chosen, token, sample)
            steps.append((sample, after, free, raw, logits))
            sample = after
        live = answer(sample, hole)
        sample = torch.where(hole & ~live, END, sample)
        agree(torch.stack(judge.samples[it * N : (it + 1) * N]), sample, where="samples")

        parts = judge.parts[it * N : (it + 1) * N]
        named = {name: [float(p[name]) for p in parts] for name in ("right", "flat")}
        reward = torch.tensor([sum(w * named[k][i] for k, w in a.reward_weights.items()) for i in range(N)]).double()
        valid = [i for i in range(N) if i != BAD]
        advantage = torch.zeros(N, dtype=torch.float64)
        whole = reward[valid].std(correction=0)
        for p in range(P):
            group = [i for i in valid if i // G == p]
            mean, std = reward[group].mean(), reward[group].std(correction=0)
            kept = a.prompt_accuracy_range is None or a.prompt_accuracy_range[0] <= mean <= a.prompt_accuracy_range[1]
            if kept and p != 2:
                advantage[group] = (reward[group] - mean) / (std if a.advantage_scale == "std" else whole)

        rows = []  # (owner, step) of the steps that teach, chain by chain
        for b in range(N):
            for k, (x, y, free, raw, logits) in enumerate(steps):
                wrote = (x[b] != y[b]).nonzero()[:, 0].tolist()
                if not wrote or advantage[b] == 0:
                    continue
                _, drawn = scored(raw[b], logits[b], x[b], y[b], free[b], free[b])
                if drawn < -a.min_step_nll and bool(live[b, wrote].any()):
                    rows.append((b, k))
                    kinds |= {"dead"} if not bool(live[b][free[b]].all()) else set()
                else:
                    kinds |= {"sure"} if drawn >= -a.min_step_nll else {"behind the end"}
        owner, step = (torch.tensor(v) for v in zip(*rows, strict=True))

        x, y, free = (torch.stack([steps[k][n][b] for b, k in rows]) for n in range(3))
        given = 1 - step / S, padding[owner], y, free, live[owner]
        with torch.no_grad():
            old = ratios_of(case, net, x, *given)
        for group in opt.param_groups:  # up in ``warmup`` iterations, then down a cosine
            rise, fall = a.lr_warmup, a.iterations - a.lr_warmup
            group["lr"] = a.lr * ((it + 1) / rise if it < rise else 0.5 * (1 + math.cos(math.pi * (it - rise) / fall)))
        losses, lost, all_of_them, skipped = [], 0, 0, 0
        for _ in range(a.epochs):
            for index in rng.take("permutation", len(rows)).split(a.batch_size):
                terms, gaps = [], []
                asked = ratios_of(case, net, x[index], *(v[index] for v in given))
                for i, new in zip(index.tolist(), asked, strict=True):
                    A = advantage[owner[i]]
                    for now, before in zip(new, old[i], strict=True):
                        all_of_them += 1
                        if now == -math.inf:  # the decoder would no longer do it
                            lost += 1
                            continue
                        rho, gap = (now - before).exp(), float(now.detach() - before)
                        gain = torch.minimum(rho * A, rho.clamp(1 - a.clip_range, 1 + a.clip_range) * A)
                        k3 = (before - now).exp() - 1 - (before - now)
                        terms.append(-gain + a.kl_coef * k3)
                        gaps.append(gap)
                        if abs(math.exp(gap) - 1) > a.clip_range:
                            kinds.add((gap > 0, bool(A > 0)))
                if not terms:
                    skipped += 1
                    continue
                loss = torch.stack(terms).mean()
                losses.append(loss.item())
                norms.append(descend(opt, loss, 1.0))
        kinds |= {"lost"} if lost else set()

        state = spy.states[it + 1]["policy"]
        agree(state["current"], {f"net.{k}": v for k, v in net.state_dict().items()}, where=f"policy after {it}")
        told = {
            "rollout/reward": reward[valid].mean(),
            "reward/right": sum(named["right"][i] for i in valid) / len(valid),
            "reward/flat": sum(named["flat"]) / N,
            "rollout/num_invalid_rewards": 1,
            "rollout/dead_group_fraction": 1 / P,
            "rollout/num_learned_steps": len(rows),
            "loss/impossible_fraction": lost / all_of_them,
            "train/skipped_updates": skipped,
        }
        if it == 0 and case == "exact":
            told["ppo/flipped_fraction"] = 0.0
        agree(
            logged[it].pop("loss/policy"), sum(losses) / len(losses), 1e-4, f"loss of row {it}"
        )  # gains nearly cancel
        if gaps:  # of the last minibatch, KL(π_old ‖ π)
            kl = sum(math.exp(gap) - 1 - gap for gap in gaps) / len(gaps)
            agree(logged[it].pop("ppo/approx_kl"), kl, 1e-4, f"KL of row {it}")
        agree(logged[it], told, where=f"row {it}")

    agree(moments(spy.named["optimizer"]), moments(opt), where="moments")
    assert spy.named.keys() >= {"policy", "optimizer", "lr_schedule", "rng"}
    assert kinds >= {"dead", "sure", (False, False), (False, True), (True, False), (True, True)}, kinds
    if case == "tokens":
        assert "behind the end" in kinds
        assert min(norms) < 1 < max(norms), "gradients that are clipped, and some that are not"


@pytest.mark.parametrize("case", list(SETTINGS))
def test_what_an_update_has_made_impossible_carries_no_loss(case: str) -> None:
    a, spy = replace(SETTINGS[case], iterations=1, batch_size=1, lr=3.0, lr_warmup=0), Spy()
    canvases = CANVASES.masked_fill(CANVASES == 7, HOLE[case])
    (row,) = tracerl.improve(start(case), (Judge(), canvases), a, Asks(3), spy)
    steps = {int(state["step"]) for state in spy.named["optimizer"].state.values()}
    assert (
        steps == {a.epochs * row["rollout/num_learned_steps"] - row["train/skipped_updates"]}
        and row["train/skipped_updates"] > 0
    )
    assert 0 < row["loss/impossible_fraction"] < 1
    if case == "exact":
        agree(
            row["loss/impossible_fraction"],
            row["train/skipped_updates"] / (a.epochs * row["rollout/num_learned_steps"]),
        )


@pytest.mark.parametrize("mean", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_prompts_are_kept_at_both_ends_of_the_range(mean: float) -> None:
    """Of four answers to a prompt 0 to 4 are right. Those between ¼ and ¾ teach; where all are alike, nothing does."""
    right = torch.tensor([1.0 if i < 4 * mean else 0.0 for i in range(G)]).repeat(P)
    canvases = CANVASES.masked_fill(CANVASES == 7, HOLE["exact"])
    for accuracy, kept in (((0.25, 0.75), 0.25 <= mean <= 0.75), ((0.3, 0.7), mean == 0.5)):
        a = replace(
            EXACT,
            iterations=1,
            prompt_accuracy_range=accuracy,
            min_step_nll=1e-3,
            reward_weights={},
            epochs=1,
            micro_batch_size=None,
        )
        (row,) = tracerl.improve(start("exact"), (lambda sample, prompts: right, canvases), a, Asks(3))
        assert (row["rollout/num_learned_steps"] > 0) == kept, accuracy


def test_the_learning_rate_moves_on_where_nothing_teaches() -> None:
    """Up in the first of three iterations and down a cosine of the other two, although the rewards of all tie."""
    spy, canvases = Spy(), CANVASES.masked_fill(CANVASES == 7, HOLE["exact"])
    a = replace(EXACT, iterations=3, lr_warmup=1)
    rows = list(tracerl.improve(start("exact"), (Judge(tie=True), canvases), a, Asks(3), spy))
    rates = [state["optimizer"]["param_groups"][0]["lr"] for state in spy.states]
    agree(rates, [a.lr, a.lr, a.lr / 2, 0.0])
    assert [row["rollout/num_learned_steps"] for row in rows] == [0, 0, 0]


def test_ties_teach_nothing() -> None:
    spy = Spy()
    canvases, a = CANVASES.masked_fill(CANVASES == 7, HOLE["exact"]), replace(EXACT, iterations=1)
    (row,) = tracerl.improve(start("exact"), (Judge(tie=True), canvases), a, Asks(3), spy)
    agree(spy.states[1]["policy"], spy.states[0]["policy"], 0.0)
    agree(
        row,
        {
            "rollout/reward": 0.6,
            "reward/right": 0.6,
            "reward/flat": 0.3,
            "rollout/num_invalid_rewards": 0,
            "rollout/dead_group_fraction": 1,
            "rollout/num_learned_steps": 0,
        },
    )
    assert not spy.named["optimizer"].state
