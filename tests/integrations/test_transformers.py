"""Unmodified transformers models: the same numbers, improved by a verifier, saved and loaded, with adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoiserl import Policy, Rng
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.integrations import transformers as hub
from denoiserl.integrations.adapters import adapt, lora
from denoiserl.policy.weights import AdapterOff
from denoiserl.recipes.language import tracerl
from denoiserl.train import fit
from tests.integrations import models

pytest.importorskip("transformers")
pytestmark = [pytest.mark.filterwarnings(w) for w in models.QUIET]

MASK, WANTED, LENGTH = 3, 7, 12
NAMES = {"bert": ["query", "value"], "modernbert": ["Wqkv"], "llama": ["q_proj", "v_proj"]}
ARGS = tracerl.Args(
    iterations=2, num_prompts=2, group_size=8, epochs=1, batch_size=64, prompt_accuracy_range=(0.0, 1.0), lr=1e-2
)


def policy(name: str) -> Policy:
    attend = "all" if name == "llama" else "own"
    return hub.masked_policy(models.language(name), MASK, LENGTH, 4, banned=(0,), attend=attend, order="confidence")


def puzzles() -> Tensor:
    return hub.canvas([[5, 6], [7, 8, 9]], LENGTH, MASK, end=[2])


def reward(tokens: Tensor, prompts: Tensor) -> Tensor:
    """A verifiable count: the share of written positions that hold the wanted token."""
    hole = prompts == MASK
    return ((tokens == WANTED) & hole).sum(-1) / hole.sum(-1)


@pytest.mark.parametrize("name", NAMES)
def test_tracerl_improves_an_unmodified_masked_model(name: str, tmp_path: Path) -> None:
    """Two iterations from random weights: on policy, weights learn, the policy survives a save and a load."""
    made = policy(name)
    chain = made.sample_chain(puzzles(), Rng(0))
    law, y = made.rescore(chain)
    assert torch.equal(law.log_prob(y), chain.log_prob)
    written = chain.sample
    assert isinstance(written, Tensor) and not bool(((written == MASK) | (written == 0)).any())
    assert torch.equal(written[:, [0, 1, -1]], puzzles()[:, [0, 1, -1]])
    before = models.tensors(made.weights.module)
    rows = list(tracerl.improve(made, (reward, puzzles()), ARGS, Rng(1)))
    assert len(rows) == 2 and all(row["rollout/num_learned_steps"] > 0 for row in rows)
    after = models.tensors(made.weights.module)
    assert sum(not torch.equal(before[k], after[k]) for k in before) > 0.9 * len(before)
    made.save(tmp_path / "policy")
    with pytest.raises(RunError, match="make it and pass it"):
        Policy.load(tmp_path / "policy")
    torch.manual_seed(7)
    back = Policy.load(tmp_path / "policy", net=models.language(name))
    assert torch.equal(back.generate(puzzles(), Rng(5)), made.generate(puzzles(), Rng(5)))


@pytest.mark.parametrize("name", NAMES)
def test_learning_follows_the_reward(name: str) -> None:
    rows = list(tracerl.improve(policy(name), (reward, puzzles()), replace(ARGS, iterations=20, lr=1e-2), Rng(1)))
    assert rows[-1]["rollout/reward"] > rows[0]["rollout/reward"] + 0.3


@pytest.mark.parametrize("name", NAMES)
def test_adapters_learn_alone_and_the_reference_is_free(name: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    made = policy(name)
    plain = made.generate(puzzles(), Rng(5))
    made = lora(made, 4, NAMES[name])
    assert torch.equal(made.generate(puzzles(), Rng(5)), plain)
    made.weights.snapshot("reference")
    before = models.tensors(made.weights.module)
    list(tracerl.improve(made, (reward, puzzles()), replace(ARGS, lr=0.1), Rng(1)))
    after = models.tensors(made.weights.module)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all("lora_" in k for k in changed)
    assert isinstance(made.weights.using("reference"), AdapterOff)
    drawn = made.generate(puzzles(), Rng(5))
    assert torch.equal(made.with_weights("reference").generate(puzzles(), Rng(5)), plain)
    made.save(tmp_path / "policy")
    torch.manual_seed(7)
    back = Policy.load(tmp_path / "policy", net=adapt(models.language(name), 4, NAMES[name]))
    assert torch.equal(back.generate(puzzles(), Rng(5)), drawn)


def test_dropout_learns_and_never_decides() -> None:
    """Upstream's dropout is on while imitating and off again after it: a chain replays to the same numbers."""
    made = policy("bert")
    net = made.weights.module.net.model
    data, modes = Rng(0).integers(4, 20, 50, LENGTH), set()
    hook = net.register_forward_pre_hook(lambda module, _: modes.add(module.training))
    assert len(list(fit(made.process, made.denoiser, data, None, 3, Rng(1), batch=4))) == 3 and modes == {True}
    hook.remove()
    assert not net.training
    chain = made.sample_chain(puzzles(), Rng(0))
    law, y = made.rescore(chain)
    assert torch.equal(law.log_prob(y), chain.log_prob)


def test_a_left_to_right_architecture_sees_everything() -> None:
    """The 4-d mask equals upstream's own switch, and differs from the causal model."""
    llama, x = models.language("llama").eval(), Rng(0).integers(4, 20, 3, LENGTH)
    seen = hub.Net(llama, "all")(x)
    assert torch.allclose(seen, llama(input_ids=x, is_causal=False).logits, atol=1e-6)
    assert not torch.allclose(seen, llama(input_ids=x).logits, atol=1e-2)
    assert torch.equal(hub.Net(llama)(x), llama(input_ids=x).logits)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_not_seen(name: str) -> None:
    """Logits of a short row are those of the row alone, whatever its padding holds."""
    net = hub.Net(models.language(name), "all" if name == "llama" else "own")
    x, real = Rng(0).integers(4, 20, 2, 8), torch.ones(2, 8, dtype=torch.int64)
    real[:, 5:] = 0
    assert torch.allclose(net(x, None, {"attention_mask": real})[:, :5], net(x[:, :5]), atol=1e-5)


@pytest.mark.parametrize("start", [None, 1])
def test_left_to_right_decoding(start: int | None) -> None:
    """One causal pass scores every step; the chain rule over upstream's own logits gives the same number."""
    llama = models.language("llama").eval()
    made = hub.causal_policy(llama, 8, 8 if start is not None else 6, start=start, temperature=0.7)
    open_ = 20
    prompts = torch.full((3, 8), open_) if start is not None else hub.canvas([[4, 5], [6, 7], [8, 9]], 8, open_)
    chain = made.sample_chain(prompts, Rng(0))
    law, y = made.rescore(chain)
    assert torch.allclose(law.log_prob(y), chain.log_prob, atol=1e-5)
    full = chain.sample
    assert isinstance(full, Tensor)
    seen = full if start is None else torch.cat([torch.full((3, 1), start), full], 1)
    logp = (llama(input_ids=seen).logits[:, :-1] / 0.7).log_softmax(-1).gather(-1, seen[:, 1:, None])[..., 0]
    assert torch.allclose(chain.log_prob.sum(-1), logp[:, -chain.log_prob.shape[1] :].sum(-1), atol=1e-4)


def test_shifted_rows_speak_about_the_next_token() -> None:
    llama = models.language("llama").eval()
    x = Rng(0).integers(4, 20, 2, 6)
    found = hub.masked_lm(llama, MASK, shift=True, attend="all")(x, None, {}).mean
    raw = hub.Net(llama, "all")(x)
    keep = [i for i in range(20) if i != MASK]
    assert isinstance(found, Tensor) and torch.equal(found[:, 1:, keep], raw[:, :-1, keep])
    assert bool((found[..., MASK] == -torch.inf).all())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RunError, match="not in the model's vocabulary of 20"):
        hub.masked_lm(models.language("bert"), mask=20)
    with pytest.raises(RunError, match="no language model"):
        hub.masked_lm(torch.nn.Linear(2, 2), mask=1)
    with pytest.raises(RunError, match="attention 'everyone'"):
        hub.masked_lm(models.language("bert"), MASK, attend="everyone")
    with pytest.raises(InvalidInputError, match="Did you mean 'attention_mask'"):
        hub.masked_lm(models.language("bert"), MASK).embed_condition({"attention_masks": torch.ones(1, 2)})
    with pytest.raises(InvalidInputError, match="no room"):
        hub.canvas([[1, 2, 4]], 3, MASK)
    with pytest.raises(InvalidInputError, match="prompt 1 contains the mask"):
        hub.canvas([[1], [MASK]], 4, MASK)
