"""Adapters leave a policy as files that diffusers and peft read, come back, and never break a pipeline silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoiserl import Policy, Rng
from denoiserl.control.best_of_n import BestOfN
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.integrations import adapters
from denoiserl.integrations import diffusers as hub
from denoiserl.integrations.adapters import adapt, load_lora, lora, merge, save_lora
from denoiserl.integrations.adapters.files import METADATA
from denoiserl.integrations.transformers import canvas, causal_policy, masked_policy
from tests.integrations import models

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
LOADED = (diffusers.StableDiffusionPipeline, diffusers.StableDiffusion3Pipeline)  # seconds of import, not of a test
pytestmark = [pytest.mark.filterwarnings(w) for w in models.QUIET]

SCENES = ["a cat", "dog"]


def pipeline(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if kind == "unet":
        return models.stable_diffusion(diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    return models.stable_diffusion_3(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0))


def pictures(pipe: Any) -> Tensor:
    """Its own, from fixed latents."""
    given = {"latents": Rng(1).normal(2, 4, 8, 8), "output_type": "pt", "height": 16, "width": 16}
    return pipe(SCENES, guidance_scale=1.0, num_inference_steps=3, **given).images


def pixels() -> Policy:
    """A small model without text encoders."""
    torch.manual_seed(0)
    return hub.from_pipeline(models.pixels(diffusers.DDIMScheduler()), n=3)


def learn(policy: Policy) -> None:
    """Adapters as they might be after learning: both factors far from where they began."""
    with torch.no_grad():
        for k, p in enumerate(policy.parameters()):
            p.copy_(0.3 * Rng(k).normal(*p.shape))


def drawn(policy: Policy, pipe: Any) -> Tensor:
    return policy.generate(hub.prompts(pipe, SCENES), Rng(2))


@pytest.mark.parametrize("kind", ["unet", "transformer"])
@pytest.mark.parametrize("alpha", [None, 1.0, 12.0])
def test_saved_adapters_paint_the_same_pictures_in_a_fresh_pipeline(
    kind: str, alpha: float | None, tmp_path: Path
) -> None:
    """``load_lora_weights`` reads them, rank and α too; ``load_lora`` as well; merged weights are a whole pipeline."""
    pipe = pipeline(kind)
    plain = pictures(pipe)
    policy = lora(hub.from_pipeline(pipe, n=3), 4, ["to_q", "to_v", "to_out.0"], alpha)
    learn(policy)
    want, sample = pictures(pipe), drawn(policy, pipe)
    assert float((want - plain).abs().max()) > 1e-3
    file = save_lora(policy, tmp_path / "lora")
    fresh = pipeline(kind)
    fresh.load_lora_weights(tmp_path / "lora")
    assert torch.allclose(pictures(fresh), want, atol=1e-5)
    other = pipeline(kind)
    back = load_lora(hub.from_pipeline(other, n=3), tmp_path / "lora")
    assert torch.allclose(drawn(back, other), sample, atol=1e-6)
    assert [p.shape for p in back.parameters()] == [p.shape for p in policy.parameters()]
    assert torch.equal(load_file(save_lora(back, tmp_path / "again")).popitem()[1], load_file(file).popitem()[1])


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_a_pipeline_with_adapters_is_not_saved_broken(kind: str, tmp_path: Path) -> None:
    pipe = pipeline(kind)
    policy = lora(hub.from_pipeline(pipe, n=3), 4, ["to_q", "to_v"], 8.0)
    learn(policy)
    want = pictures(pipe)
    with pytest.raises(RunError, match=r"save_lora\(policy, folder\).*merge\(policy\)"):
        pipe.save_pretrained(tmp_path / "broken")
    copy = policy.weights.snapshot("old")
    with pytest.raises(RunError, match="merge"):
        copy.net.model.get_base_model().save_pretrained(tmp_path / "broken")
    with pytest.raises(RunError, match=r"weights\.load\('old'\)"):
        merge(policy.with_weights("old"))
    merged = merge(policy)
    assert torch.allclose(pictures(pipe), want, atol=1e-5)
    assert torch.allclose(drawn(merged, pipe), drawn(policy, pipe))
    part = pipe.unet if kind == "unet" else pipe.transformer
    part.save_pretrained(tmp_path / "whole")
    other = pipeline(kind, seed=5)
    setattr(other, kind, type(part).from_pretrained(tmp_path / "whole"))
    for name in ("vae", "text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            setattr(other, name, getattr(pipe, name))
    assert torch.allclose(pictures(other), want, atol=1e-5)


def given(kind: str, **settings: Any) -> Any:
    """A pipeline whose model has adapters in diffusers' own way, which have learned."""
    pipe = pipeline(kind)
    part = getattr(pipe, kind)
    part.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_v"], **settings))
    with torch.no_grad():
        for k, (name, p) in enumerate(part.named_parameters()):
            if "lora_" in name:
                p.copy_(0.3 * Rng(k).normal(*p.shape))
    return pipe


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_adapters_that_a_model_put_into_itself_are_merged_and_never_saved_broken(kind: str, tmp_path: Path) -> None:
    pipe = given(kind, lora_alpha=8)
    policy, part = hub.from_pipeline(pipe, n=3), getattr(pipe, kind)
    want = pictures(pipe)
    for again in (lambda: lora(policy, 2, ["to_k"]), lambda: load_lora(policy, tmp_path)):
        with pytest.raises(RunError, match=r"adapters already: take them off, model\.unload_lora\(\).*merge\(policy\)"):
            again()
    with pytest.raises(RunError, match=r"holds adapters.*merge\(policy\)"):
        pipe.save_pretrained(tmp_path / "broken")
    save_lora(policy, tmp_path / "lora")
    fresh = pipeline(kind)
    fresh.load_lora_weights(tmp_path / "lora")
    assert torch.allclose(pictures(fresh), want, atol=1e-5)
    before = drawn(policy, pipe)
    merged = merge(policy)
    assert torch.allclose(drawn(merged, pipe), before, atol=1e-5) and torch.allclose(pictures(pipe), want, atol=1e-5)
    assert not any("lora" in name for name, _ in part.named_modules())
    part.save_pretrained(tmp_path / "whole")
    back = type(part).from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(back[name], p) for name, p in part.state_dict().items())
    assert lora(merged, 2, ["to_k"]).parameters() and getattr(pipe, kind) is part
    fresh.unload_lora_weights()
    lora(hub.from_pipeline(fresh, n=3), 2, ["to_k"])


def test_layers_that_learned_whole_are_merged_too() -> None:
    pipe = given("unet", modules_to_save=["conv_out"])
    policy = hub.from_pipeline(pipe, n=3)
    before = drawn(policy, pipe)
    assert torch.allclose(drawn(merge(policy), pipe), before, atol=1e-5)
    assert type(pipe.unet.conv_out) is torch.nn.Conv2d


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 8},
        {"lora_alpha": 8, "use_rslora": True},
        {"lora_alpha": 8, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_v": 3}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_a_scale_that_was_set_is_saved(settings: dict[str, Any], tmp_path: Path) -> None:
    pipe, whole = given("unet", **settings), pictures(given("unet", **settings))
    pipe.set_adapters(["default"], [0.25])
    want, policy = pictures(pipe), hub.from_pipeline(pipe, n=3)
    assert not torch.allclose(want, whole, atol=1e-3)
    save_lora(policy, tmp_path)
    fresh, other = pipeline("unet"), pipeline("unet")
    fresh.load_lora_weights(tmp_path)
    assert torch.allclose(pictures(fresh), want, atol=1e-5)
    load_lora(hub.from_pipeline(other, n=3), tmp_path)
    assert torch.allclose(pictures(other), want, atol=1e-5)
    assert pipe.unet.peft_config["default"].lora_alpha == 8
    pipe.set_adapters(["default"], [{"unet": {"mid": 0.5}}])
    with pytest.raises(RunError, match=r"factors from 0\.5 to 1.*set_adapters\(\['default'\], \[1\]\)"):
        save_lora(policy, tmp_path)


def test_a_model_whose_adapters_were_taken_off_saves_again(tmp_path: Path) -> None:
    net = models.unet()
    before = models.tensors(net)
    assert adapt(net, 2, ["to_q"]).unload() is net
    net.save_pretrained(tmp_path)
    again = models.tensors(diffusers.UNet2DConditionModel.from_pretrained(tmp_path))
    assert before.keys() == again.keys() and all(torch.equal(before[k], again[k]) for k in before)


def test_adapters_of_a_language_model_are_pefts_folder(tmp_path: Path) -> None:
    def policy() -> Policy:
        torch.manual_seed(0)
        return masked_policy(models.language("bert"), 19, 6, 2, order="confidence", tokens=3)

    def logits(p: Policy) -> Tensor:
        x = torch.full((2, 6), 19)
        return p.denoiser(x, p.denoiser.embed_time(torch.ones(2)), None).mean

    ours = lora(policy(), 3, ["query", "value"], alpha=7.0)
    learn(ours)
    for layer in ours.denoiser.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 0.5)  # type: ignore[operator]
    save_lora(ours, tmp_path / "lora")
    torch.manual_seed(0)
    theirs = peft.PeftModel.from_pretrained(models.language("bert"), tmp_path / "lora")
    same = masked_policy(theirs, 19, 6, 2, order="confidence", tokens=3)
    assert torch.allclose(logits(same), logits(ours)) and not torch.allclose(logits(ours), logits(policy()))
    back = load_lora(policy(), tmp_path / "lora")
    assert torch.allclose(logits(back), logits(ours)) and len(back.parameters()) == 8
    with pytest.raises(RunError, match="save_lora"):
        ours.denoiser.net.model.get_base_model().save_pretrained(tmp_path / "broken")


def test_a_lora_without_settings_is_read_by_its_shapes(tmp_path: Path) -> None:
    """As diffusers reads it: ranks that differ from layer to layer, α = r."""
    policy = lora(hub.from_pipeline(pipeline("unet"), n=3), 4, ["to_q", "to_v"])
    learn(policy)
    tensors = load_file(save_lora(policy, tmp_path))
    narrow = {k: (v[:2] if "lora_A" in k else v[:, :2]).contiguous() if "to_q" in k else v for k, v in tensors.items()}
    save_file(narrow, tmp_path / "bare.safetensors")
    fresh, other = pipeline("unet"), pipeline("unet")
    fresh.load_lora_weights(tmp_path, weight_name="bare.safetensors")
    back = load_lora(hub.from_pipeline(other, n=3), tmp_path / "bare.safetensors")
    assert torch.allclose(pictures(other), pictures(fresh), atol=1e-6)
    assert {p.shape[0] for n, p in back.denoiser.named_parameters() if "lora_A" in n} == {2, 4}


def test_files_that_are_no_lora_of_this_model_are_refused(tmp_path: Path) -> None:
    tensors = load_file(file := save_lora(lora(pixels(), 4, ["to_q", "to_v"]), tmp_path))
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert json.loads(header[METADATA])["unet.lora_alpha"] == 4
    asked = Rng(3).normal(2, 4, 8)

    def refused(match: str, given: dict[str, Tensor], told: dict[str, str] | None = None) -> None:
        """And the policy is as it was."""
        save_file(given, tmp_path / "bad.safetensors", told)
        fresh = pixels()
        before = fresh.generate(asked, Rng(0))
        with pytest.raises(RunError, match=match):
            load_lora(fresh, tmp_path / "bad.safetensors")
        assert torch.equal(fresh.generate(asked, Rng(0)), before)
        assert not any("lora" in name for name, _ in fresh.denoiser.named_modules())

    refused("belongs to another model", {k.replace("attn1", "attn9"): v for k, v in tensors.items()})
    refused("does not fill", dict(list(tensors.items())[1:]), header)
    refused("not peft's layout", {k.replace("lora_A", "lora_down"): v for k, v in tensors.items()})
    refused("text_encoder", {**tensors, "text_encoder.layers.0.lora_A.weight": torch.zeros(4, 8)})
    told = json.loads(header[METADATA])
    refused("has use_magic", tensors, {METADATA: json.dumps({**told, "unet.use_magic": True})})
    for held in (b"xx", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"):
        (tmp_path / "bad.safetensors").write_bytes(held)
        with pytest.raises(RunError, match=r"bad\.safetensors is no whole safetensors file .*git lfs pull"):
            load_lora(pixels(), tmp_path / "bad.safetensors")
    bare, state = pixels(), torch.get_rng_state()
    loaded = load_lora(bare, file)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RunError, match="adapters already"):
        load_lora(loaded, file)
    with pytest.raises(RunError, match="adapters already"):
        lora(loaded, 4, ["to_q"])
    with pytest.raises(RunError, match="is no LoRA of one model"):
        load_lora(pixels(), tmp_path / "nothing")
    with pytest.raises(RunError, match=r"has 0 adapters \(none\)"):
        save_lora(pixels(), tmp_path)
    whole = peft.LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["conv_out"])
    pipe = models.pixels(diffusers.DDIMScheduler())
    pipe.unet = peft.get_peft_model(pipe.unet, whole)
    with pytest.raises(RunError, match=r"conv_out.* whole layers"):
        save_lora(hub.from_pipeline(pipe, n=3), tmp_path)


def test_targets_are_names_or_one_pattern() -> None:
    def layers(targets: Any) -> set[str]:
        model = adapt(models.unet(), 2, targets)
        return {n.split(".lora_A")[0].rsplit(".", 1)[-1] for n, _ in model.named_parameters() if "lora_A" in n}

    assert layers(["to_q", "to_v"]) == layers(r".*attn\d\.to_[qv]") == {"to_q", "to_v"}
    assert {"to_k", "proj", "linear_1"} <= layers("all-linear")
    wrong: list[tuple[Any, str]] = [
        ("to_q", r"give \['to_q'\]"),
        ("to_qq", "Did you mean 'to_q'"),
        ("*", "no regular expression"),
        ([], "names no layer"),
        (["to_q", "t"], "no layer to adapt 't'"),
    ]
    for bad, match in wrong:
        with pytest.raises(RunError, match=match):
            adapt(models.unet(), 2, bad)


@pytest.mark.filterwarnings("error:fan_in_fan_out")
def test_the_layers_of_gpt2_are_adapted() -> None:
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    policy = causal_policy(transformers.GPT2LMHeadModel(config), 6, 4)
    prompt = canvas([[1, 2]], 6, 20)
    before = policy.generate(prompt, Rng(0))
    policy = lora(policy, 2, ["c_attn"])
    assert torch.equal(policy.generate(prompt, Rng(0)), before) and len(policy.parameters()) == 2
    with torch.no_grad():
        for p in policy.parameters():
            p.fill_(1.0)
    chain = policy.sample_chain(prompt, Rng(0))
    law, y = policy.rescore(chain)
    assert torch.allclose(law.log_prob(y), chain.log_prob, atol=1e-5)


def test_a_compiled_network_is_wrapped_and_adapted_before_it_is_compiled() -> None:
    net = models.unet().eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    compiled = torch.compile(net, backend="eager")
    ours, plain = (hub.denoiser(model, scheduler) for model in (compiled, net))
    x, text, t = Rng(0).normal(2, 3, 8, 8), Rng(1).normal(2, 4, 8), torch.tensor([0.5, 0.5])
    with torch.compiler.set_stance("force_eager"):  # what a compiler makes of it is not the point
        got, want = (d(x, d.embed_time(t), d.embed_condition(text)).mean for d in (ours, plain))
    assert torch.equal(got, want)
    with pytest.raises(RunError, match=r"model\._orig_mod, then compile"):
        adapt(compiled, 2, ["to_q"])
    with pytest.raises(InvalidInputError, match="Did you mean 'encoder_hidden_states'"):
        ours.embed_condition({"encoder_hidden_state": text})


def test_adapters_change_nothing_of_how_a_policy_is_served(tmp_path: Path) -> None:
    control = BestOfN(torch.nn.Identity(), 1)
    made = pixels().with_controller(control)
    made.weights.execute = 3
    adapted = adapters.lora(made, 2, ["to_q"])
    path = adapters.save_lora(adapted.with_controller(None), tmp_path)
    plain = pixels().with_controller(control)
    plain.weights.execute = 3
    read = adapters.load_lora(plain, path)
    for policy in (adapted, read, adapters.merge(adapted)):
        assert policy.weights.control is control and policy.weights.execute == 3


def test_merging_says_what_low_precision_loses(recwarn: pytest.WarningsRecorder) -> None:
    """A change of 7e-4 of the weights lies between two numbers of bf16; float32 keeps it."""
    for dtype, told in ((torch.bfloat16, 1), (torch.float32, 0)):
        made = adapters.lora(pixels(), 2, ["to_q"])
        made.weights.module.to(dtype)
        with torch.no_grad():
            for name, p in made.weights.module.named_parameters():
                if "lora_B" in name:
                    p.copy_(1e-4 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        recwarn.clear()
        adapters.merge(made)
        said = [str(w.message) for w in recwarn if "lost to rounding" in str(w.message)]
        assert len(said) == told, said
        if said:
            assert float(said[0].split(" %")[0]) > 50 and "policy.weights.module.float()" in said[0]
