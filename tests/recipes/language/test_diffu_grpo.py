"""diffu-GRPO beside 2504.12216, section 3: one-pass likelihoods under shared masks, the clipped loss, the reference."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Masked, TokenDenoiser, time_grid
from denoiserl.recipes.language import diffu_grpo
from tests.recipes.kit import Spy, Tape, Words, adam, agree, commit, descend, moments

P, G, N, L, S = 4, 4, 16, 8, 3
BAD = 14
"""the sample of an iteration that has no reward"""
HOLE, END, PAD = 7, 4, 0  # tokens are 0 ... 4; a prompt may hold the id 6, which is none
A = diffu_grpo.Args(
    iterations=3, num_prompts=P, group_size=G, inner_updates=3, prompt_mask=0.5, clip_range=0.03, kl_coef=0.3,
    reference_sync_every=2, invalid_rewards="drop", lr=0.03, max_grad_norm=0.02,
    reward_weights={"near": 4.0, "flat": -1.5},
)  # fmt: skip
SETTINGS = {
    "published": A,
    "in parts": replace(A, micro_batch_size=5, reference_sync_every=1, max_grad_norm=100.0),
    "random masks": replace(A, prompt_mask=0.3, answer_mask=(0.5, 0.9), reference_sync_every=0, max_grad_norm=100.0),
}
CANVASES = torch.tensor(
    [[7, 7, 0, 7, 3, 6, 7, 1], [0, 2, 7, 7, 4, 7, 1, 0], [7, 3, 7, 0, 7, 2, 6, 0], [0, 3, 7, 6, 7, 7, 1, 7]]
)
ASKED = [[0, 1, 1, 2], [3, 2, 2, 0], [1, 3, 3, 2]]


class Asks(Tape):
    """A tape that asks for the prompts of ``ASKED``: the group that ties has a prompt of another group."""

    turn = 0

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        assert (low, high, shape) == (0, len(CANVASES), (P,))
        self.turn += 1
        return self._heard("integers", torch.tensor(ASKED[self.turn - 1]))


class Judge:
    """Two parts, of both signs; the third group ties; one sample of an iteration has none."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.parts: list[dict[str, Tensor]] = []

    def __call__(self, sample: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        x = sample.float()
        near, flat = -(x.mean(1) / 4 - prompts[:, 0] / 7).square() - 0.1, (x[:, 1] - x[:, 4]).square() / 16
        for i in range(len(sample)):
            which = len(self.samples) % N
            near[i] += 0.3 * (2 * which % 5) + 3 * (len(self.samples) >= 2 * N)  # no other group ties; the last rise
            if which // G == 2:
                near[i], flat[i] = -1.7, 0.3
            near[i] = torch.nan if which == BAD else near[i]
            self.samples.append(sample[i].clone())
            self.parts.append({"near": near[i].clone(), "flat": flat[i].clone()})
        return {"near": near, "flat": flat}


def start() -> Policy:
    torch.manual_seed(4)
    process = Masked(5, order="confidence", tokens=2, temperature=0.7, top_k=4, mask_id=HOLE, end=END)
    net = Words(7, L, classes=7)  # it has rows for more than the tokens
    with torch.no_grad():
        net.head.weight[END] *= 0.2  # ends are about as likely everywhere: not sure, and not impossible
        net.head.bias[END] = 0.2
    return Policy.of(process, TokenDenoiser(net), (L,), process.steps(time_grid(S)), codec=InfillCodec(PAD))


@pytest.mark.parametrize("case", list(SETTINGS))
def test_two_updates_are_those_of_the_paper(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffu_grpo, "PATIENCE", 2)
    monkeypatch.setattr(diffu_grpo, "WINDOW", 2)
    a, judge, rng, spy = SETTINGS[case], Judge(), Asks(3), Spy()
    logged = list(diffu_grpo.improve(start(), (judge, CANVASES), a, rng, spy))

    net = start().denoiser.net
    reference, opt = copy.deepcopy(net), adam(net.parameters(), a.lr)
    sides, norms, rewards, cut_short = set(), [], [], False
    for it in range(a.iterations):
        if a.reference_sync_every and it > 0 and it % a.reference_sync_every == 0:
            reference = copy.deepcopy(net)
        canvas = CANVASES[rng.take("integers", P)].repeat_interleave(G, 0)
        left, right = (canvas == PAD).long().cumprod(-1), (canvas == PAD).long().flip(-1).cumprod(-1).flip(-1)
        padding, hole = (left + right).bool(), canvas == HOLE

        def answer(x: Tensor, hole: Tensor = hole) -> Tensor:
            """The holes up to and with the first end of text that is written."""
            ends = ((x == END) & hole).long()
            return hole & (ends.cumsum(-1) - ends == 0)

        sample, uniform = canvas.clone(), rng.take("uniform", S, N, L, 2)
        for k in range(S):
            with torch.no_grad():
                raw = net(sample, torch.tensor([1 - k / S]), {"padding": padding})[..., :5]
            best = raw.topk(4, -1).values[..., -1:]
            policy = (raw / 0.7).masked_fill(raw < best, -math.inf)
            among = (sample == HOLE) & answer(sample)
            token, chosen = commit(policy, raw, among, uniform[k, ..., 0], torch.full((N,), 2))
            sample = torch.where(chosen, token, sample)
        written = answer(sample)
        sample = torch.where(hole & ~written, END, sample)
        cut_short |= bool((written != hole).any())
        agree(torch.stack(judge.samples[it * N : (it + 1) * N]), sample, where="samples")

        parts = judge.parts[it * N : (it + 1) * N]
        near, flat = ([float(p[name]) for p in parts] for name in ("near", "flat"))
        reward = torch.tensor([4 * p - 1.5 * q for p, q in zip(near, flat, strict=True)], dtype=torch.float64)
        valid = [i for i in range(N) if i != BAD]
        advantage, dead = torch.zeros(N, dtype=torch.float64), 0
        for p in range(P):
            group = [i for i in valid if i // G == p]
            advantage[group] = reward[group] - reward[group].mean()
            dead += float(reward[group].max() - reward[group].min()) < 1e-6
        advantage[2 * G : 3 * G] = 0.0  # not the rounding of the mean of a tie
        counts = written.clone()
        counts[BAD] = False

        seen = []
        for _ in range(a.inner_updates):  # masks of this iteration, of which each policy is asked under each
            x = torch.where(rng.take("uniform", N, L) < a.prompt_mask, HOLE, canvas)
            if case == "random masks":
                share = 0.5 + 0.4 * rng.take("uniform", N, 1)
                shown = rng.take("uniform", N, L) >= share
                x = torch.where(shown & hole, sample, x)
            seen.append(x)

        def log_probs(net: Words, x: Tensor, sample: Tensor = sample, padding: Tensor = padding) -> Tensor:
            """log p_i of every token of the sample, from one pass over x as at t = 1 and without the temperature."""
            logits = net(x, torch.ones(len(x)), {"padding": padding})[..., :5].double()
            return logits.log_softmax(-1).gather(-1, sample.clamp_max(4)[..., None])[..., 0]

        with torch.no_grad():
            old, anchor = [log_probs(net, x) for x in seen], [log_probs(reference, x) for x in seen]
        done = []
        for x, before, ref in zip(seen, old, anchor, strict=True):
            i, j = torch.nonzero(counts & (x == HOLE), as_tuple=True)
            logp = log_probs(net, x)[i, j]
            rho = (logp - before[i, j]).exp()
            gain = torch.minimum(rho * advantage[i], rho.clamp(1 - a.clip_range, 1 + a.clip_range) * advantage[i])
            gap = ref[i, j] - logp
            kl = gap.exp() - 1 - gap  # k3(π_θ ‖ π_ref)
            loss = (-gain + a.kl_coef * kl).mean()
            out = (rho - 1).abs() > a.clip_range
            sides |= set(zip((rho > 1)[out].tolist(), advantage[i][out].sign().int().tolist(), strict=True))
            norms.append(descend(opt, loss, a.max_grad_norm))
            done.append([loss.item(), kl.mean().item(), out.double().mean().item()])

        state = spy.states[it + 1]["policy"]
        agree(state["current"], {f"net.{k}": v for k, v in net.state_dict().items()}, where=f"policy after {it}")
        kept = {f"net.{k}": v for k, v in reference.state_dict().items()}
        agree(state["sets"], {"reference": kept}, where=f"reference of {it}")
        rewards.append(float(reward[valid].mean()))
        told = {
            "rollout/reward": rewards[-1],
            "reward/near": sum(near[i] for i in valid) / len(valid),
            "reward/flat": sum(flat) / N,
            "rollout/num_invalid_rewards": 1,
            "rollout/dead_group_fraction": dead / P,
            **dict(
                zip(
                    ("loss/policy", "loss/reference_kl", "ppo/clip_fraction"),
                    torch.tensor(done).mean(0).tolist(),
                    strict=True,
                )
            ),
        }
        told["train/no_improvement"] = float(it + 1 >= 2 and sum(rewards[-2:]) <= sum(rewards[:2]))
        agree(
            logged[it].pop("loss/policy"), told.pop("loss/policy"), 1e-4, f"loss of row {it}"
        )  # gains of both signs nearly cancel
        agree(logged[it], told, where=f"row {it}")
        assert dead >= 1

    agree(moments(spy.named["optimizer"]), moments(opt), where="moments")
    agree(spy.states[-1]["trend"], {"first": rewards[:2], "last": rewards[1:], "n": 3})
    assert [row["train/no_improvement"] for row in logged] == [0.0, 1.0, 0.0]
    assert {(high, good) for high in (False, True) for good in (-1, 1)} <= sides, "ratios left on both sides"
    assert cut_short, "ends"
    assert min(norms) > a.max_grad_norm if case == "published" else max(norms) < a.max_grad_norm


def test_a_mask_that_hides_nothing_teaches_nothing() -> None:
    spy = Spy()
    a = replace(A, iterations=1, answer_mask=(0.0, 1e-9), prompt_mask=0.0)
    (row,) = diffu_grpo.improve(start(), (Judge(), CANVASES), a, Asks(3), spy)
    agree(spy.states[1]["policy"], spy.states[0]["policy"], 0.0)
    assert (
        row.keys().isdisjoint({"loss/policy", "loss/reference_kl", "ppo/clip_fraction"})
        and not spy.named["optimizer"].state
    )
