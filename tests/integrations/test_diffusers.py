"""Unmodified diffusers models and pipelines: the same numbers, improved by reward, saved and loaded, with adapters."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from denoiserl import Policy, Rng
from denoiserl.advantages import group_relative
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.integrations import diffusers as hub
from denoiserl.integrations.adapters import adapt, lora
from denoiserl.integrations.schedulers import steps_like
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.policy.weights import AdapterOff
from denoiserl.processes import ddim, flow_sde
from denoiserl.recipes.generators import flow_grpo
from denoiserl.rewards import repeat_prompts
from denoiserl.train import Run
from tests.integrations import models

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
LOADED = (diffusers.StableDiffusionPipeline, diffusers.StableDiffusion3Pipeline)  # seconds of import, not of a test
pytestmark = [pytest.mark.filterwarnings(w) for w in models.QUIET]

ARGS = flow_grpo.Args(iterations=2, num_prompts=3, group_size=4, sde_window=0, batch_size=6, lr=1e-3, kl_coef=0.0)
SCENES = ["a cat", "dog", "fish"]


def ddim_scheduler(**kwargs: Any) -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, **kwargs)


def asked() -> dict[str, Tensor]:
    """Five prompts with embeddings of their own."""
    return {"encoder_hidden_states": Rng(3).normal(5, 4, 8), "index": torch.arange(5)}


def red(picture: Tensor, prompts: Any) -> Tensor:
    """More red, for prompts with odd numbers; less, for even ones."""
    return picture[:, 0].mean((1, 2)) * (2.0 * (prompts["index"] % 2) - 1)


def test_the_estimate_is_upstreams() -> None:
    """x̂₀ from a direct call at the integer timestep, as a scheduler's step computes it."""
    scheduler, net = ddim_scheduler(), models.unet().eval()
    scheduler.set_timesteps(1000)
    made = hub.denoiser(net, scheduler)
    x, text = Rng(0).normal(4, 3, 8, 8), Rng(1).normal(4, 5, 8)
    for index in (0, 1, 637, 999):
        out = net(x, index, text).sample
        want = scheduler.step(out, index, x).pred_original_sample
        got = made(x, made.embed_time(torch.tensor([(index + 1) / 1000])), made.embed_condition(text)).mean
        assert torch.allclose(got, want, atol=2e-5 * float(want.abs().max()))


def test_every_level_is_an_integer_timestep_and_times_between_are_not() -> None:
    clock = hub.denoiser(models.unet(), ddim_scheduler()).net.embed_time
    assert torch.equal(clock((torch.arange(1000, dtype=torch.float64) + 1).div(1000).float()), torch.arange(1000.0))
    assert clock(torch.tensor([0.5005]))[0] == pytest.approx(499.5, abs=1e-3)
    assert clock(torch.tensor([1e-6]))[0] == 0


def test_flows_read_a_thousand_sigma_and_flux_reads_sigma() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    x, sigma = Rng(0).normal(2, 4, 8, 8), 3 * 0.5 / 2
    context = {"encoder_hidden_states": Rng(1).normal(2, 5, 16), "pooled_projections": Rng(2).normal(2, 16)}
    sd3 = models.sd3_transformer()
    made = hub.denoiser(sd3, scheduler)
    v = sd3(x, timestep=torch.full((2,), 1000 * sigma), **context).sample
    got = made(x, made.embed_time(torch.tensor([0.5])), made.embed_condition(context)).mean
    assert torch.allclose(got, x - sigma * v, atol=1e-6)
    fixed = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
    x, context = Rng(3).normal(2, 16, 16), {k: v[..., :8] for k, v in context.items()}
    net = models.flux()
    made = hub.denoiser(net, scheduler, fixed={k: v.numpy() for k, v in fixed.items()})  # arrays are taken, too
    v = net(x, timestep=torch.full((2,), sigma), **context, **fixed).sample
    got = made(x, made.embed_time(torch.tensor([0.5])), made.embed_condition(context)).mean
    assert torch.allclose(got, x - sigma * v, atol=1e-6)
    assert not any("fixed" in name for name in made.state_dict())


def test_classes_condition_a_unet_without_text() -> None:
    net, scheduler = models.plain_unet(classes=4).eval(), ddim_scheduler(prediction_type="sample")
    made, x, kind = hub.denoiser(net, scheduler), Rng(0).normal(3, 3, 8, 8), torch.tensor([0, 3, 1])
    got = made(x, made.embed_time(torch.tensor([0.2])), made.embed_condition(kind)).mean
    assert torch.equal(got, net(x, 199, class_labels=kind).sample)
    free = hub.denoiser(models.plain_unet(), scheduler)
    assert free(x, free.embed_time(torch.tensor([0.2])), free.embed_condition(None)).mean.shape == x.shape


def test_a_policy_draws_the_pictures_of_stable_diffusion(tmp_path: Path) -> None:
    """From the same latents, prompt and steps: pipeline and policy agree; saved and loaded, bit for bit."""
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = models.stable_diffusion(scheduler)
    policy, prompts, z = hub.from_pipeline(pipeline, n=10), hub.prompts(pipeline, SCENES), Rng(1).normal(3, 4, 8, 8)
    want = pipeline(SCENES, guidance_scale=1.0, num_inference_steps=10, latents=z, output_type="pt").images

    def draw(who: Policy) -> Tensor:
        return who.codec.decode(who.sample_chain(prompts, Rng(0), use_eval_steps=True, start=(z, 0)).sample)

    assert torch.allclose(draw(policy), want, atol=1e-5) and float(want.std()) > 0.05
    policy.save(tmp_path / "policy")
    torch.manual_seed(9)
    other = models.stable_diffusion(scheduler)
    other.vae.load_state_dict(pipeline.vae.state_dict())
    assert not torch.allclose(draw(hub.from_pipeline(other, n=10)), want, atol=1e-3)
    assert torch.equal(draw(hub.load(tmp_path / "policy", other)), draw(policy))
    latent = policy.codec.encode(want)
    mode = pipeline.vae.encode(2 * want - 1).latent_dist.mode() * pipeline.vae.config["scaling_factor"]
    assert torch.allclose(latent, mode, atol=1e-6)


@pytest.mark.parametrize("levels", [1000, 500])
def test_a_policy_draws_the_pictures_of_stable_diffusion_3(levels: int) -> None:
    """With the scheduler's double shift and its levels; and its training chain is Flow-GRPO's, on policy."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(levels, shift=3.0)
    pipeline = models.stable_diffusion_3(scheduler)
    policy, prompts, z = hub.from_pipeline(pipeline, n=6), hub.prompts(pipeline, SCENES), Rng(1).normal(3, 4, 8, 8)
    want = pipeline(
        SCENES, guidance_scale=1.0, num_inference_steps=6, latents=z, output_type="pt", height=16, width=16
    ).images
    same = replace(policy, eval_steps=steps_like(scheduler, policy.process, 6, ddim(0.0), faithful=True))
    got = policy.codec.decode(same.sample_chain(prompts, Rng(0), use_eval_steps=True, start=(z, 0)).sample)
    assert torch.allclose(got, want, atol=1e-5)
    honest = policy.codec.decode(policy.sample_chain(prompts, Rng(0), use_eval_steps=True, start=(z, 0)).sample)
    assert not torch.allclose(honest, want, atol=1e-3)
    assert policy.process.transition == flow_sde() and all(policy.train_steps.dense)
    chain = policy.sample_chain(prompts, Rng(0))
    law, y = policy.rescore(chain)
    assert_on_policy(law.log_prob(y), chain.log_prob, 1e-3)


def test_an_autoencoder_that_overflows_in_float16_is_computed_in_float32() -> None:
    """Where its settings say so, as upstream; afterwards it is float16 again."""
    torch.manual_seed(0)
    vae, z, x = models.autoencoder(), Rng(0).normal(2, 4, 8, 8), Rng(1).normal(2, 3, 16, 16)
    with torch.no_grad():
        for conv in (vae.decoder.conv_in, vae.encoder.conv_in):
            conv.weight.mul_(3e5)
    vae.half()
    for upcast in (True, False):
        vae.register_to_config(force_upcast=upcast)
        codec = hub.VAECodec(vae, 1.0)
        made = codec.decode(z)
        assert bool(made.isfinite().all() and codec.encode(x).isfinite().all()) == upcast
        assert next(vae.parameters()).dtype == torch.float16
        if upcast:
            want = (deepcopy(vae).float().decode(z).sample / 2 + 0.5).clamp(0, 1)
            assert torch.allclose(made, want, atol=1e-6) and made.dtype == torch.float32
            codec.decode(z.clone().requires_grad_()).sum().backward()
            vae.half()


def test_flow_grpo_improves_an_unmodified_unet(tmp_path: Path) -> None:
    """Two iterations from random weights: on policy, weights learn, the policy survives a save and a load."""
    policy = hub.from_pipeline(models.pixels(ddim_scheduler()), n=4)
    net = policy.weights.module.net.model
    assert type(net) is diffusers.UNet2DConditionModel and not net.training
    chain = policy.sample_chain(asked(), Rng(0))
    law, y = policy.rescore(chain)
    assert torch.equal(law.log_prob(y), chain.log_prob)
    before = models.tensors(net)
    rows = list(flow_grpo.improve(policy, (red, asked()), replace(ARGS, kl_coef=0.1), Rng(1), Run()))
    assert (
        len(rows) == 2
        and all(row["rollout/dead_group_fraction"] == 0 for row in rows)
        and rows[1]["loss/reference_kl"] > 0
    )
    after = models.tensors(net)
    assert sum(not torch.equal(before[k], after[k]) for k in before) > 0.9 * len(before)
    policy.save(tmp_path / "policy")
    with pytest.raises(RunError, match=r"unet_2d_condition.UNet2DConditionModel: make it and pass it"):
        Policy.load(tmp_path / "policy")
    torch.manual_seed(7)
    back = Policy.load(tmp_path / "policy", net=models.unet())
    assert torch.equal(back.generate(asked(), Rng(5)), policy.generate(asked(), Rng(5)))


def test_an_update_makes_rewarded_pictures_likelier() -> None:
    """One step with a small rate: Σ Â log p of the pictures that it learned from rises, whatever the random weights."""
    policy = hub.from_pipeline(models.pixels(diffusers.DDIMScheduler()), n=3)
    a = replace(ARGS, iterations=1, num_prompts=2, group_size=24, batch_size=48, clip_range=0.2, lr=1e-6)
    rng = Rng(1)
    seen = repeat_prompts(asked(), rng.integers(0, 5, a.num_prompts), a.group_size)
    chain = policy.sample_chain(seen, rng)

    def redder(picture: Tensor, prompts: Any) -> Tensor:
        return picture[:, 0].mean((1, 2)) - picture[:, 1:].mean((1, 2, 3))

    advantage = group_relative(
        redder(policy.codec.decode(chain.sample), seen).reshape(a.num_prompts, a.group_size), "batch"
    )
    list(flow_grpo.improve(policy, (redder, asked()), a, Rng(1)))
    law, y = policy.rescore(chain)
    assert float((advantage.flatten()[:, None] * (law.log_prob(y) - chain.log_prob)).mean()) > 0.05


def test_adapters_learn_alone_and_the_reference_is_free(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    policy = hub.from_pipeline(models.pixels(ddim_scheduler()), n=4)
    plain = policy.generate(asked(), Rng(5))
    policy = lora(policy, 4, ["to_q", "to_v"])
    assert torch.equal(policy.generate(asked(), Rng(5)), plain)
    before = models.tensors(policy.weights.module)
    list(flow_grpo.improve(policy, (red, asked()), replace(ARGS, lr=0.05, clip_range=0.99, kl_coef=0.1), Rng(1)))
    after = models.tensors(policy.weights.module)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all("lora_" in k for k in changed)
    assert isinstance(policy.weights.using("reference"), AdapterOff)
    drawn = policy.generate(asked(), Rng(5))
    assert not torch.equal(drawn, plain)
    assert torch.equal(policy.with_weights("reference").generate(asked(), Rng(5)), plain)
    policy.save(tmp_path / "policy")
    torch.manual_seed(7)
    back = Policy.load(tmp_path / "policy", net=adapt(models.unet(), 4, ["to_q", "to_v"]))
    assert torch.equal(back.generate(asked(), Rng(5)), drawn)


def test_adapters_are_refused_where_they_do_not_fit() -> None:
    pytest.importorskip("peft")
    with pytest.raises(RunError, match="Did you mean 'to_q'"):
        adapt(models.unet(), 4, ["to_qq"])
    with pytest.raises(RunError, match="rank"):
        adapt(models.unet(), 0, ["to_q"])
    with pytest.raises(RunError, match=r"r=2\.0 is no rank"):
        adapt(models.unet(), 2.0, ["to_q"])  # type: ignore[arg-type]
    with pytest.raises(RunError, match="alpha=0 is not positive"):
        adapt(models.unet(), 2, ["to_q"], alpha=0)
    policy = hub.from_pipeline(models.pixels(ddim_scheduler()), n=4)
    policy.weights.snapshot("ema")
    with pytest.raises(RunError, match="ema already"):
        lora(policy, 4, ["to_q"])


def test_half_precision_states_stay_float32() -> None:
    policy = hub.from_pipeline(models.pixels(ddim_scheduler()), n=3)
    policy.weights.module.net.model.to(torch.bfloat16)
    chain = policy.sample_chain(asked(), Rng(0))
    law, y = policy.rescore(chain)
    assert chain.sample.dtype == torch.float32 and torch.equal(law.log_prob(y), chain.log_prob)


def test_conditions_and_pipelines_that_do_not_fit_are_refused() -> None:
    made = hub.denoiser(models.unet(), ddim_scheduler())
    with pytest.raises(InvalidInputError, match="Did you mean 'encoder_hidden_states'"):
        made.embed_condition({"encoder_hidden_state": torch.zeros(1, 4, 8)})
    with pytest.raises(InvalidInputError, match="needs a condition"):
        made.embed_condition(None)
    with pytest.raises(InvalidInputError, match="condition is a ndarray"):
        made.embed_condition(torch.zeros(1, 4, 8).numpy())
    with pytest.raises(RunError, match="a NoneType is no network"):
        hub.denoiser(None, ddim_scheduler())  # type: ignore[arg-type]
    with pytest.raises(RunError, match="timestep"):
        hub.denoiser(torch.nn.Linear(2, 2), ddim_scheduler())
    with pytest.raises(RunError, match="neither a unet nor a transformer"):
        hub.from_pipeline(SimpleNamespace(scheduler=ddim_scheduler()))
    with pytest.raises(RunError, match="multiple"):
        hub.from_pipeline(
            SimpleNamespace(unet=models.unet(4), scheduler=ddim_scheduler(), vae=models.autoencoder()), size=(15, 16)
        )


def test_sizes_and_numbers_of_steps_that_do_not_fit_are_refused_before_anything_is_drawn() -> None:
    pipeline = models.stable_diffusion(ddim_scheduler())
    for size in (16, "16", ("16", "16"), (16.0, 16.0), (0, 16), (-16, 16), (16,), (16, 16, 3)):
        with pytest.raises(RunError, match=r"is no size: give \(height, width\) in pixels"):
            hub.from_pipeline(pipeline, size=size)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="has 1000 noise levels, too few for 2000 steps"):
        hub.from_pipeline(pipeline, n=2000)
    flow = models.stable_diffusion_3(diffusers.FlowMatchEulerDiscreteScheduler())
    assert hub.from_pipeline(flow, size=(32, 32)).event_shape == (4, 16, 16)
    for size, match in (((36, 32), "at most 32 pixels per side: not 36 by 32"), ((18, 16), "cut by patches of 4")):
        with pytest.raises(RunError, match=match):
            hub.from_pipeline(flow, size=size)


def test_texts_come_in_any_sequence() -> None:
    pipeline = models.stable_diffusion(ddim_scheduler())
    want = hub.prompts(pipeline, SCENES)
    for texts in (numpy.array(SCENES), (scene for scene in SCENES), tuple(SCENES)):
        assert all(torch.equal(want[k], v) for k, v in hub.prompts(pipeline, texts).items())
    for wrong in ("a cat", [], numpy.array([1, 2]), 3, None):
        with pytest.raises(InvalidInputError, match="a list of texts"):
            hub.prompts(pipeline, wrong)  # type: ignore[arg-type]
