"""Language models as people have them: padding on either side, surplus rows, positions, and models that do not fit."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Policy, Rng, time_grid
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.integrations import transformers as hub
from denoiserl.policy.codec import InfillCodec
from denoiserl.processes import Masked, TokenDenoiser
from tests.integrations import models

hf = pytest.importorskip("transformers")
pytestmark = [pytest.mark.filterwarnings(w) for w in models.QUIET]

MASK, PAD, VOCAB = 19, 0, 20
SIZES = {**models.SIZES, "initializer_range": 0.5}
LLAMA = {**SIZES, "num_key_value_heads": 4}


def model(name: str) -> Any:
    """A model of 20 tokens whose weights are large enough to tell positions and tokens apart."""
    torch.manual_seed(0)
    made = {
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES, pad_token_id=PAD)),
        "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES, pad_token_id=PAD)),
        "distilbert": lambda: hf.DistilBertForMaskedLM(
            hf.DistilBertConfig(
                vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=32,
                pad_token_id=PAD, initializer_range=0.5,
            )
        ),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.5)
        ),
        "opt": lambda: hf.OPTForCausalLM(
            hf.OPTConfig(
                vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=32, word_embed_proj_dim=32,
            )
        ),
        "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1)),
        "t5": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
    }  # fmt: skip
    return made[name]().eval()


def padded(short: list[int], length: int, side: str) -> list[int]:
    blank = [PAD] * (length - len(short))
    return blank + short if side == "left" else short + blank


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "llama", "gpt2"])
def test_a_prompt_padded_on_either_side_is_the_prompt_alone(name: str, side: str) -> None:
    """The probabilities of its first step, alone and beside a longer prompt: by default from the model's pad id."""
    short, long = [5, 6, 7, MASK, MASK, MASK], [8, 9, 5, 6, 7, 8, 9, 5, MASK, MASK, MASK]
    attend: Any = "all" if name == "llama" else "own"
    pad: Any = "model" if "bert" in name else PAD
    probability = []
    for rows in ([short], [padded(short, 11, side), long]):
        canvas = torch.tensor(rows)
        if name == "gpt2":
            policy = hub.causal_policy(model(name), canvas.shape[1], 3, vocab=MASK, pad=pad)
        else:
            policy = hub.masked_policy(
                model(name), MASK, canvas.shape[1], 3, attend=attend, pad=pad, order="left", tokens=1
            )
        context = policy.denoiser.embed_condition(policy.codec.condition(canvas))
        with torch.no_grad():
            logits = policy.denoiser(canvas, torch.ones(len(canvas)), context).mean[0]
        at = slice(5, 11) if side == "left" and len(rows) > 1 else slice(0, 6)
        probability.append(logits[at].softmax(-1)[3:])  # where it writes
        chain = policy.sample_chain(canvas, Rng.rows(range(len(rows))))
        law, y = policy.rescore(chain)
        assert torch.allclose(law.log_prob(y).detach(), chain.log_prob, atol=1e-4)
    assert torch.allclose(*probability, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_padding_told_by_a_mask_equals_padding_told_by_its_id(name: str) -> None:
    canvas = torch.tensor([padded([5, 6, MASK, MASK], 8, "left"), [4, 5, 6, 7, 8, 9, MASK, MASK]])
    by_id = hub.masked_policy(model(name), MASK, 8, 2, order="confidence", tokens=1)
    by_mask = hub.masked_policy(model(name), MASK, 8, 2, order="confidence", tokens=1, pad=None)
    told = {"canvas": torch.where(canvas == PAD, 11, canvas), "attention_mask": (canvas != PAD).long()}
    a, b = by_id.sample_chain(canvas, Rng(0)), by_mask.sample_chain(told, Rng(0))
    assert torch.allclose(a.log_prob, b.log_prob, atol=1e-4)
    assert torch.equal(a.sample[canvas == MASK], b.sample[canvas == MASK])
    with pytest.raises(InvalidInputError, match="Did you mean 'attention_mask'"):
        by_mask.generate({"canvas": canvas, "attention_masks": canvas}, Rng(0))


def test_padding_before_a_start_symbol_is_refused() -> None:
    policy = hub.causal_policy(model("llama"), 4, 2, start=1, vocab=MASK, pad=PAD)
    with pytest.raises(InvalidInputError, match="pad canvases on the right"):
        policy.generate(torch.tensor([[PAD, 5, MASK, MASK]]), Rng(0))


def test_surplus_rows_are_never_drawn_where_the_tokens_are_counted() -> None:
    torch.manual_seed(0)
    wide = hf.BertForMaskedLM(hf.BertConfig(**{**models.SIZES, "vocab_size": 64}))
    policy = hub.masked_policy(wide, 49, 8, 4, vocab=50, order="confidence", tokens=2)
    assert int(policy.generate(hub.canvas([[5, 6]] * 256, 8, 49), Rng(0)).max()) < 49
    left = hub.causal_policy(hf.LlamaForCausalLM(hf.LlamaConfig(**{**models.SIZES, "vocab_size": 64})), 8, 6, vocab=50)
    assert int(left.generate(torch.tensor([[5, 6] + [50] * 6]).expand(128, 8), Rng(0)).max()) < 50
    with pytest.warns(UserWarning, match=r"64 rows.*vocab=len\(tokenizer\)"):
        hub.masked_lm(wide, 49)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hub.masked_lm(wide, 49, vocab=64)
    for vocab in (0, 65):
        with pytest.raises(RunError, match=f"vocab={vocab} does not fit the model's vocabulary of 64"):
            hub.masked_lm(wide, 49, vocab=vocab)


class Wide(nn.Module):
    """Remote code: a head wider than the vocabulary that the configuration counts."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=20)
        self.body, self.head = nn.Embedding(24, 8), nn.Linear(8, 24)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.head(self.body(input_ids)))


def test_a_head_wider_than_the_vocabulary_is_cut() -> None:
    policy = hub.masked_policy(Wide(), MASK, 6, 2, order="confidence", tokens=2)
    assert int(policy.generate(hub.canvas([[5, 6]] * 64, 6, MASK), Rng(0)).max()) < MASK


def test_a_vocabulary_in_the_text_part_of_a_configuration_is_found() -> None:
    whole = Wide()
    whole.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=20, max_position_embeddings=8))
    assert hub.size(whole) == 20
    with pytest.raises(RunError, match="sequences of 9 do not fit a model of 8"):
        hub.masked_policy(whole, MASK, 9, 4, order="confidence")


@pytest.mark.parametrize(("name", "most"), [("bert", 32), ("roberta", 31), ("llama", 32), ("gpt2", 32)])
def test_positions_are_checked_when_the_policy_is_made(name: str, most: int) -> None:
    hub.masked_policy(model(name), MASK, most, 4, order="confidence")
    with pytest.raises(RunError, match=f"{most + 1} do not fit a model of {most}"):
        hub.masked_policy(model(name), MASK, most + 1, 4, order="confidence")
    if name in ("llama", "gpt2"):
        with pytest.raises(RunError, match=f"{most + 1} do not fit a model of {most}"):
            hub.causal_policy(model(name), most + 1, most)


@pytest.mark.parametrize(
    ("name", "attend", "says"),
    [
        ("t5", "own", "T5ForConditionalGeneration is an encoder-decoder"),
        ("mamba", "all", "MambaForCausalLM .*attend='all'"),
        ("opt", "all", "OPTForCausalLM .*attend='all'"),
    ],
)
def test_models_that_cannot_fill_masks_say_so(name: str, attend: Any, says: str) -> None:
    with pytest.raises(RunError, match=says):
        hub.masked_lm(model(name), MASK, attend=attend)


@pytest.mark.parametrize("headless", ["BertModel", "BertForSequenceClassification", "BertForTokenClassification"])
def test_a_model_without_a_language_head_is_refused(headless: str) -> None:
    policy = hub.masked_policy(getattr(hf, headless)(hf.BertConfig(**models.SIZES)), MASK, 6, 2, order="confidence")
    with pytest.raises(RunError, match=f"{headless} has no language-model head"):
        policy.generate(hub.canvas([[5, 6]], 6, MASK), Rng(0))


@pytest.mark.parametrize("name", ["bert", "llama", "opt"])
def test_recomputed_activations_are_those_of_eval_mode(name: str) -> None:
    """Told to recompute, the layers run again in the backward pass; values and gradients do not change."""
    x, found, calls = Rng(0).integers(4, 18, 2, 6), [], []
    for recompute in (False, True):
        net = hub.Net(model(name))
        if recompute:
            net.model.gradient_checkpointing_enable()
        layers = [m for m in net.model.modules() if type(m).__name__.endswith(("DecoderLayer", "BertLayer"))]
        count = [0]
        inner = nn.Linear.forward

        def counted(self: nn.Linear, given: Tensor, inner: Any = inner, count: list = count) -> Tensor:
            count[0] += 1
            return inner(self, given)

        nn.Linear.forward = counted  # type: ignore[method-assign]
        try:
            logits = net(x)
            first = count[0]
            logits.log_softmax(-1)[..., 5].sum().backward()
        finally:
            nn.Linear.forward = inner  # type: ignore[method-assign]
        calls.append(count[0] - first)
        found.append((logits.detach(), next(net.model.parameters()).grad))
        assert layers and not any(m.training for m in net.model.modules())
    assert calls[0] == 0 and calls[1] > 0
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_dropout_of_a_recomputed_layer_is_that_of_imitation_alone() -> None:
    net = hub.Net(model("opt"))
    net.model.gradient_checkpointing_enable()
    x = Rng(0).integers(4, 18, 2, 6)
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))
    assert not net.eval().model.training


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", ["unit", "rotary"])
def test_our_transformer_does_not_see_padding(position: str, side: str) -> None:
    from denoiserl.nn import Transformer

    torch.manual_seed(0)
    net, process = (
        Transformer(MASK, 11, width=16, depth=2, heads=2, position=position),
        Masked(MASK, "confidence", tokens=1),
    )
    short, long = [5, 6, 7, MASK, MASK], [8, 9, 5, 6, 7, 8, 9, 5, 6, MASK, MASK]
    found = []
    for rows in ([short], [padded(short, 11, side), long]):
        canvas = torch.tensor(rows)
        policy = Policy.of(
            process, TokenDenoiser(net), canvas.shape[1:], process.steps(time_grid(2)), codec=InfillCodec(PAD)
        )
        law, _ = policy.rescore(policy.sample_chain(canvas, Rng(0)))
        at = slice(6, 11) if side == "left" and len(rows) > 1 else slice(0, 5)
        found.append(law.logits[0, 0, at].softmax(-1))  # type: ignore[union-attr]
    assert torch.allclose(*found, atol=1e-5)


def test_padding_is_a_run_at_an_end_of_the_canvas() -> None:
    canvas = torch.tensor([[0, 0, 5, 0, 3, 3, 0], [5, 3, 3, 3, 3, 3, 3]])
    seen = InfillCodec(0).condition(canvas)["padding"]
    assert seen.tolist() == [[True, True, False, False, False, False, True], [False] * 7]
    given = {"canvas": canvas, "attention_mask": canvas}
    assert InfillCodec(0).condition(given).keys() == {"attention_mask"} and torch.equal(
        InfillCodec(0).initial_state(given), canvas
    )
    assert InfillCodec().condition(canvas) is None and InfillCodec(0).condition(None) is None


def test_a_model_without_an_attention_mask_fills_whole_canvases_and_nothing_shorter() -> None:
    sizes = {k: v for k, v in SIZES.items() if k != "num_attention_heads"}
    policy = hub.masked_policy(hf.FNetForMaskedLM(hf.FNetConfig(**sizes, pad_token_id=PAD)), MASK, 6, 6)
    whole = torch.tensor([[5, 6, MASK, MASK, MASK, MASK]])
    assert bool((policy.generate(whole, Rng(0)) != MASK).all())
    with pytest.raises(InvalidInputError, match="takes no attention_mask, so padding cannot be hidden"):
        policy.generate(torch.tensor([[5, 6, MASK, MASK, PAD, PAD]]), Rng(0))


def test_holes_are_never_padding() -> None:
    """Were they hidden, the network would not hear what it has written there."""
    with pytest.raises(InvalidInputError, match=r"pad=0 is the mask.s id too.*pad=None"):
        hub.masked_policy(model("bert"), PAD, 8, 8, vocab=VOCAB)
    with pytest.raises(InvalidInputError, match="pad=20 is the mask's id too"):
        hub.causal_policy(model("llama"), 8, 8, pad=VOCAB)
    process = Masked(VOCAB, mask_id=MASK)
    with pytest.raises(InvalidInputError, match="pad=19 is the mask's id too"):
        Policy.of(process, TokenDenoiser(nn.Identity()), (8,), process.steps(time_grid(8)), codec=InfillCodec(MASK))
    made = hub.masked_policy(model("bert"), PAD, 8, 8, vocab=VOCAB, pad=None, order="confidence", tokens=1)
    canvas = hub.canvas([[5, 6, 7]], 8, PAD)
    context = made.denoiser.embed_condition(made.codec.condition(canvas))
    one, two = (canvas.index_put((torch.tensor(0), torch.tensor(3)), torch.tensor(v)) for v in (11, 12))
    heard = [made.denoiser(x, made.denoiser.embed_time(torch.ones(1)), context).mean[0, 4:, 1:] for x in (one, two)]
    assert float((heard[0] - heard[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_ids_that_are_none_are_refused_by_their_place(name: str) -> None:
    """-100 marks ignored labels, and ids beyond the vocabulary belong to another tokenizer."""
    made = (
        hub.masked_policy(model(name), MASK, 4, 4, vocab=VOCAB)
        if name == "bert"
        else hub.causal_policy(model(name), 4, 4)
    )
    hole = MASK if name == "bert" else VOCAB
    with pytest.raises(InvalidInputError, match="row 1 holds -100 at position 2"):
        made.generate(torch.tensor([[1, 2, 3, hole], [1, 2, -100, hole]]), Rng(0))
    live = torch.tensor([[False, True, True, True]])
    with pytest.raises(InvalidInputError, match="row 0 holds -100 at position 3"):
        made.elbo(torch.tensor([[1, 2, 3, -100]]), None, Rng(0), 64, mask=live)
    with pytest.raises(InvalidInputError, match="row 0 holds 27 at position 3, and ids are 0 to 19"):
        made.elbo(torch.tensor([[1, 2, 3, 27]]), None, Rng(0), 64, mask=live)


def decoder(name: str, **config: Any) -> Any:
    """A model of the BERT family made for left-to-right writing, or not."""
    torch.manual_seed(0)
    kind = {"RobertaForCausalLM": hf.RobertaConfig}.get(name, hf.BertConfig)
    return getattr(hf, name)(kind(**models.SIZES, pad_token_id=PAD, **config)).eval()


def paligemma() -> Any:
    text = hf.GemmaConfig(**LLAMA, head_dim=8, pad_token_id=PAD)
    eye = hf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = hf.PaliGemmaConfig(text_config=text, vision_config=eye, image_token_index=VOCAB - 1, projection_dim=32)
    return hf.PaliGemmaForConditionalGeneration(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["RobertaForCausalLM", "BertLMHeadModel"])
def test_a_model_that_reads_later_tokens_does_not_write_from_left_to_right(name: str, dtype: torch.dtype) -> None:
    """Open positions would be read as text, and the first token would depend on the length of the canvas."""
    if dtype == torch.float32:
        with pytest.raises(RunError, match=rf"{name} reads later tokens too.*is_decoder=True.*masked_policy"):
            hub.causal_policy(decoder(name), 8, 4)
    with pytest.raises(RunError, match="reads later tokens too"):
        hub.causal_lm(decoder(name, initializer_range=0.5).to(dtype))
    hub.causal_lm(decoder(name, is_decoder=True, initializer_range=0.5).to(dtype))


@pytest.mark.parametrize("made", [lambda: decoder("BertForMaskedLM"), paligemma])
def test_masked_models_and_models_of_a_seen_prefix_do_not_write_from_left_to_right(made: Any) -> None:
    with pytest.raises(RunError, match="reads later tokens too"):
        hub.causal_policy(made(), 8, 4)


@pytest.mark.parametrize("name", ["gpt2", "opt", "mamba", "llama"])
def test_causal_models_of_any_kind_and_precision_write_from_left_to_right(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        hub.causal_policy(model(name).to(dtype), 8, 4)


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_prompt_of_another_tokenizer_is_refused_by_its_place(name: str, end: int | None) -> None:
    """A causal model would read token 0 instead. Ids that the policy does not count are read where there are rows."""
    if name == "bert":
        made, hole = hub.masked_policy(model(name), MASK, 5, 5, vocab=15, end=end), MASK
    else:
        made, hole = hub.causal_policy(model(name), 5, 5, vocab=15, end=end), 15
    with pytest.raises(InvalidInputError, match="row 1 holds 77 at position 2, and ids are 0 to 19"):
        made.generate(torch.tensor([[5, 6, 17, hole, hole], [5, 6, 77, hole, hole]]), Rng(0))
    drawn = made.generate(torch.tensor([[5, 6, 17, hole, hole]]), Rng(0))
    assert drawn[0, :3].tolist() == [5, 6, 17] and int(drawn[0, 3:].max()) < 15
    live = torch.tensor([[False, False, False, True, True]])
    with pytest.raises(InvalidInputError, match="row 0 holds 77 at position 2"):
        made.elbo(torch.tensor([[5, 6, 77, 1, 2]]), None, Rng(0), 1, mask=live)


def test_rows_of_the_embedding_count_and_not_the_configuration() -> None:
    policy = hub.masked_policy(model("bert"), MASK, 4, 2, order="confidence")
    policy.denoiser.net.model.config.vocab_size = 10  # type: ignore[union-attr]
    assert hub.Net(policy.denoiser.net.model).rows == VOCAB and hub.Net(Wide()).rows == 20


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_canvases_come_as_tensors_arrays_and_lists_and_not_as_texts(name: str) -> None:
    made = hub.masked_policy(model(name), MASK, 6, 3) if name == "bert" else hub.causal_policy(model(name), 6, 3)
    canvas = hub.canvas([[5, 6, 7], [7, 8, 9]], 6, MASK if name == "bert" else VOCAB)
    drawn = made.generate(canvas, Rng(0))
    for same in (canvas.tolist(), canvas.numpy(), canvas.numpy().astype("int32"), canvas.int()):
        assert torch.equal(made.generate(same, Rng(0)), drawn)
        assert torch.equal(made.generate({"canvas": same}, Rng(0)), drawn)
    for text in ("hello", ["hello", "you"], [[5, 6, 7], [5]]):
        with pytest.raises(
            InvalidInputError, match=r"canvas of ids \[B, L\].*tokenize.*integrations.transformers.canvas"
        ):
            made.generate(text, Rng(0))
    with pytest.raises(InvalidInputError, match=r"whole numbers, not torch.float32: give canvas.long\(\)"):
        made.generate(canvas.float(), Rng(0))
    with pytest.raises(InvalidInputError, match=r"rows of ids \[B, 6\], not \[6\]"):
        made.generate(canvas[0].tolist(), Rng(0))


@pytest.mark.parametrize("prompts", ["hello", ["hello"], [5, 6, 7]])
def test_a_canvas_is_made_of_ids(prompts: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"lists of ids, one per row: pass tokenizer\(texts\)\['input_ids'\]"):
        hub.canvas(prompts, 8, MASK)


def leaky(name: str) -> Any:
    torch.manual_seed(0)
    if name == "RecurrentGemmaForCausalLM":
        sizes = {**SIZES, "num_hidden_layers": 3, "head_dim": 8, "num_key_value_heads": 4, "pad_token_id": PAD}
        made = hf.RecurrentGemmaForCausalLM(hf.RecurrentGemmaConfig(**sizes))
    elif name == "ConvBertForMaskedLM":
        made = hf.ConvBertForMaskedLM(hf.ConvBertConfig(**SIZES, embedding_size=32, pad_token_id=PAD))
    else:
        made = hf.NystromformerForMaskedLM(hf.NystromformerConfig(**SIZES, pad_token_id=PAD))
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made.eval()


@pytest.mark.parametrize("name", ["ConvBertForMaskedLM", "NystromformerForMaskedLM"])
def test_models_that_see_padding_in_spite_of_their_mask_fill_whole_canvases_alone(name: str) -> None:
    policy = hub.masked_policy(leaky(name), MASK, 6, 4)
    assert bool((policy.generate([[5, 6, MASK, MASK, MASK, MASK]], Rng(0)) != MASK).all())
    for canvas in ([5, 6, MASK, MASK, PAD, PAD], [PAD, PAD, 5, 6, MASK, MASK]):
        with pytest.raises(InvalidInputError, match=f"{name} sees padding on the .* whole length"):
            policy.generate([canvas], Rng(0))


@pytest.mark.parametrize("name", ["Nystromformer", "Yoso", "Mra", "IBert"])
def test_whole_canvases_are_counted_from_the_first_position_of_the_model(name: str) -> None:
    """These begin at 2, or behind their padding's id, and the mask of no padding does not move them."""
    torch.manual_seed(0)
    made = getattr(hf, f"{name}ForMaskedLM")(getattr(hf, f"{name}Config")(**SIZES, pad_token_id=PAD)).eval()
    policy, x = hub.masked_policy(made, MASK, 6, 4), torch.tensor([[5, 6, 7, 8, MASK, MASK]])
    with torch.no_grad():
        found = policy.denoiser(x, torch.ones(1), policy.denoiser.embed_condition(policy.codec.condition(x))).mean
        assert torch.allclose(found[..., :MASK], made(input_ids=x).logits[..., :MASK], atol=1e-4)


def test_a_recurrent_model_that_remembers_padding_is_padded_on_the_right() -> None:
    policy = hub.causal_policy(leaky("RecurrentGemmaForCausalLM"), 6, 2)
    policy.generate([[5, 6, VOCAB, VOCAB, PAD, PAD]], Rng(0))
    with pytest.raises(InvalidInputError, match=r"sees padding on the left .*pad on the other side"):
        policy.generate([[PAD, PAD, 5, 6, VOCAB, VOCAB]], Rng(0))


def test_padding_is_asked_about_without_dropout_and_training_goes_on() -> None:
    net = hub.Net(model("bert")).train()
    net.embed_condition({"attention_mask": torch.tensor([[1, 1, 0]])})
    assert all(m.training for m in net.modules())


def test_an_upstream_assertion_without_words_becomes_a_sentence() -> None:
    torch.manual_seed(0)
    xlm = hf.XLMWithLMHeadModel(hf.XLMConfig(vocab_size=VOCAB, emb_dim=32, n_layers=2, n_heads=4, pad_index=PAD))
    with pytest.raises(RunError, match=r"XLMWithLMHeadModel takes no 4-d attention mask.*AssertionError"):
        hub.masked_lm(xlm, MASK, attend="all")
