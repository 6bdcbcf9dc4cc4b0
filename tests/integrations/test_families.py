"""Networks and pipelines by class: those that are known agree with upstream, and the others are refused by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Policy, Rng
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.integrations import diffusers as hub
from denoiserl.integrations.families import LEVELS, PIPELINES, REVERSE, flow_levels
from denoiserl.integrations.schedulers import convert, steps_like
from denoiserl.processes import Diffusion, ddim
from denoiserl.recipes.generators import flow_grpo
from tests.integrations import models

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.filterwarnings(w) for w in models.QUIET]
KIN = [  # loaded here: seconds of import, not of a test
    getattr(diffusers, name)
    for name in (
        "AnimateDiffPipeline",
        "LatentConsistencyModelPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionXLControlNetPipeline",
    )
]
Flow = diffusers.FlowMatchEulerDiscreteScheduler


def end(policy: Policy, cond: Any, z: Tensor) -> Tensor:
    """Where the policy's own chain of served steps ends."""
    return policy.sample_chain(cond, Rng(0), use_eval_steps=True, start=(z, 0)).sample


@pytest.mark.parametrize("levels", [1000, 500])
def test_aura_flow_reads_sigma(levels: int) -> None:
    """The pipeline's latents, from the same noise: wrong by far with 1000 sigma. Half of σ where levels are 500."""
    torch.manual_seed(0)
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=16, caption_projection_dim=32, pos_embed_max_size=64,
    ).eval()  # fmt: skip
    pipeline = diffusers.AuraFlowPipeline(None, None, models.autoencoder(), net, Flow(levels, shift=1.0))
    pipeline.set_progress_bar_config(disable=True)
    z, text = Rng(1).normal(2, 4, 8, 8), Rng(2).normal(2, 5, 16)
    given = {"prompt_embeds": text, "prompt_attention_mask": torch.ones(2, 5), "latents": z, "output_type": "latent"}
    want = pipeline(**given, guidance_scale=1.0, num_inference_steps=4, height=16, width=16).images
    policy = hub.from_pipeline(pipeline, n=4)
    assert torch.allclose(end(policy, {"encoder_hidden_states": text}, z), want, atol=1e-4)
    assert hub.from_pipeline(pipeline, size=(32, 32)).event_shape == (4, 16, 16)
    with pytest.raises(RunError, match="at most 32 pixels per side"):
        hub.from_pipeline(pipeline, size=(36, 32))
    policy.denoiser.net.levels = 1000
    assert not torch.allclose(end(policy, {"encoder_hidden_states": text}, z), want, atol=1e-2)


@pytest.mark.parametrize("levels", [1000, 500])
def test_flux_and_chroma_read_sigma_and_serve_even_steps(levels: int) -> None:
    """By hand, packed, with the shift of their size; the last call is at 1/n, not at 1/1000."""
    torch.manual_seed(0)
    n, z, text, pooled = 4, Rng(1).normal(2, 16, 16), Rng(2).normal(2, 5, 8), Rng(3).normal(2, 8)
    scheduler, vae = Flow(levels, use_dynamic_shifting=True), models.autoencoder()
    chroma = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    ).eval()  # fmt: skip
    kinds: list[tuple[Any, Any, Any, Any]] = [
        (models.flux(), diffusers.FluxPipeline, 4 * [None], {"pooled_prompt_embeds": pooled}),
        (chroma, diffusers.ChromaPipeline, 2 * [None], {"prompt_attention_mask": torch.ones(2, 5)}),
    ]
    for net, kind, encoders, more in kinds:
        pipeline = kind(scheduler, vae, *encoders, net)
        pipeline.set_progress_bar_config(disable=True)
        with pytest.raises(RunError, match=rf"a {kind.__name__} .*sigmas=torch.linspace"):
            hub.from_pipeline(pipeline, n=n)
        given = {"prompt_embeds": text, "latents": z, "output_type": "latent", "height": 16, "width": 16, **more}
        want = pipeline(**given, guidance_scale=1.0, num_inference_steps=n).images
        places = pipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
        denoiser = hub.denoiser(net, scheduler, 16, {"img_ids": places, "txt_ids": torch.zeros(5, 3)})
        cond = {"encoder_hidden_states": text} | ({} if net is chroma else {"pooled_projections": pooled})
        process = Diffusion(convert(scheduler, 16).schedule, ddim(0.0))
        fresh = Flow(levels, use_dynamic_shifting=True)  # the pipeline's own has been told its sigmas
        even = steps_like(fresh, process, n, sigmas=torch.linspace(1, 1 / n, n))
        followed, usual = steps_like(scheduler, process, n), steps_like(fresh, process, n)
        for steps, same in ((even, True), (followed, True), (usual, False)):
            got = end(Policy.of(process, denoiser, (16, 16), steps), cond, z)
            assert torch.allclose(got, want, atol=1e-4) == same


def every_network() -> list[str]:
    found = {name for name in dir(diffusers) if "Transformer" in name and name.endswith("Model")}
    return sorted(found | set(REVERSE) | set(LEVELS))


def test_a_network_is_known_or_told_never_guessed() -> None:
    """All transformers of diffusers, as flows: four are known, those that run backwards stay refused."""
    names = every_network()
    assert len(names) > 40 and all(hasattr(diffusers, name) for name in (*LEVELS, *REVERSE))
    for name in names:
        net = type(name, (nn.Module,), {})()
        if name in LEVELS:
            assert flow_levels(net, True, None) == LEVELS[name]
            with pytest.raises(RunError, match=rf"{name} reads .* leave it out"):
                flow_levels(net, False, 1001 - LEVELS[name])
            assert (
                flow_levels(net, False, None, 500) == LEVELS[name] / 2 == flow_levels(net, False, LEVELS[name] / 2, 500)
            )
            with pytest.raises(RunError, match=rf"{name} reads .* leave it out"):
                flow_levels(net, False, LEVELS[name], 500)
            continue
        with pytest.raises(RunError, match=rf"a {name} .*levels="):
            flow_levels(net, False, None)
        if name in REVERSE:
            with pytest.raises(RunError, match=rf"a {name} reads 1 − σ or returns data minus noise"):
                flow_levels(net, False, 1)
            continue
        assert flow_levels(net, False, 1) == 1 and flow_levels(net, False, 1000) == 1000
        with pytest.raises(RunError, match=rf"a {name} .*use_dynamic_shifting=False"):
            flow_levels(net, True, 1000)


class Mine(nn.Module):
    """A user's own network around one of diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.sd3_transformer()

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True):
        text = {"encoder_hidden_states": encoder_hidden_states, "pooled_projections": encoder_hidden_states[:, 0]}
        return self.inner(hidden_states, timestep=timestep, **text, return_dict=return_dict)


def test_a_network_of_ones_own_says_what_it_reads() -> None:
    net, x, text = Mine().eval(), Rng(0).normal(2, 4, 8, 8), Rng(1).normal(2, 5, 16)
    with pytest.raises(RunError, match=r"a Mine is not known: .*levels=1000.*levels=1 "):
        hub.denoiser(net, Flow())
    with pytest.raises(RunError, match=r"levels=500\) .*levels=0\.5 "):
        hub.denoiser(net, Flow(500))
    ours = hub.denoiser(net, Flow(), levels=1000)
    got = ours(x, ours.embed_time(torch.tensor([0.3])), ours.embed_condition(text)).mean
    assert torch.allclose(got, x - 0.3 * net(x, torch.full((2,), 300.0), text)[0], atol=1e-6)
    assert hub.denoiser(net, diffusers.DDIMScheduler(100)).net.levels == 100
    with pytest.raises(RunError, match="levels=1000 would be wrong"):
        hub.denoiser(net, diffusers.DDIMScheduler(100), levels=1000)


def bundle(**parts: Any) -> Any:
    """Parts of a latent diffusion model."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return SimpleNamespace(**{"unet": models.unet(4), "scheduler": scheduler, "vae": models.autoencoder(), **parts})


def every_pipeline() -> list[str]:
    return sorted(name for name in dir(diffusers) if name.endswith("Pipeline") and name != "DiffusionPipeline")


def test_a_pipeline_that_is_not_known_is_refused_by_name() -> None:
    names, parts = every_pipeline(), vars(bundle())

    def call(self: Any, prompt: str, num_inference_steps: int = 50) -> None: ...

    assert len(names) > 150 and set(PIPELINES) <= set(names)
    for name in names:
        pipeline = type(name, (), {"__call__": call})()
        vars(pipeline).update(parts)
        if name not in PIPELINES:
            with pytest.raises(RunError, match=rf"a {name} .*build the policy by hand"):
                hub.from_pipeline(pipeline)
        if name not in ("StableDiffusionPipeline", "StableDiffusion3Pipeline"):
            with pytest.raises(RunError, match=rf"text encoding of a {name}.*own arguments"):
                hub.prompts(pipeline, ["a cat"])


TAKES = {
    "AnimateDiff": "num_frames",
    "LatentConsistency": "timestep_cond",
    "ControlNet": "control",
    "Img2Img": "image",
    "Inpaint": "mask_image",
    "PAG": "pag_scale",
    "Adapter": "image",
}


@pytest.mark.parametrize("kind", KIN, ids=lambda kind: kind.__name__)
def test_an_input_that_would_be_ignored_is_named(kind: Any) -> None:
    pipeline = kind.__new__(kind)
    parts = {"scheduler": diffusers.DDIMScheduler(clip_sample=False), "vae": models.autoencoder()}
    vars(pipeline).update(parts)
    if "3" in kind.__name__:
        vars(pipeline)["transformer"] = models.sd3_transformer()
    else:
        vars(pipeline)["unet"] = models.unet(4)
    if kind.__name__.startswith("LatentConsistency"):
        pipeline.unet.register_to_config(time_cond_proj_dim=8)
    word = next(word for name, word in TAKES.items() if name in kind.__name__)
    with pytest.raises(RunError, match=rf"a {kind.__name__} also takes .*{word}.* would ignore it"):
        hub.from_pipeline(pipeline)


def test_parts_that_would_be_ignored_are_named() -> None:
    """Whatever the object that holds them is called."""
    with pytest.raises(RunError, match="also takes controlnet"):
        hub.from_pipeline(bundle(controlnet=nn.Linear(1, 1)))
    picture = ("encoder_hid_dim_type", "ip_image_proj", "IP-Adapter")
    for setting, value, word in (picture, ("time_cond_proj_dim", 8, "timestep_cond")):
        net = models.unet(4)
        net.register_to_config(**{setting: value})
        with pytest.raises(RunError, match=word):
            hub.from_pipeline(bundle(unet=net))
        with pytest.raises(InvalidInputError, match="also needs"):
            hub.denoiser(net, diffusers.DDIMScheduler()).embed_condition(torch.zeros(1, 4, 8))


def test_latents_are_not_clipped() -> None:
    """A scheduler made from another one's settings clips by default; the advice that is given is accepted and exact."""
    with pytest.raises(RunError, match=r"DDIMScheduler\.from_config\(pipeline\.scheduler\.config, clip_sample=False\)"):
        hub.from_pipeline(bundle(scheduler=diffusers.DDIMScheduler()))
    mended = diffusers.DDIMScheduler.from_config(diffusers.DDIMScheduler().config, clip_sample=False)
    assert hub.from_pipeline(bundle(scheduler=mended)).process.clip is None
    assert hub.from_pipeline(models.pixels(diffusers.DDIMScheduler())).process.clip == 1.0


def test_parts_without_their_settings_are_refused_in_a_sentence() -> None:
    other = models.autoencoder()
    other.register_to_config(latents_mean=[0.0] * 4)
    tiny = diffusers.AutoencoderTiny(encoder_block_out_channels=(8,), decoder_block_out_channels=(8,),
                                     num_encoder_blocks=(1,), num_decoder_blocks=(1,))  # fmt: skip
    wrong = {
        "reads None channels": {"unet": nn.Linear(1, 1)},
        "a Linear is no AutoencoderKL": {"vae": nn.Linear(1, 1)},
        "a AutoencoderTiny is no AutoencoderKL": {"vae": tiny},
        "latents_mean": {"vae": other},
        "a NoneType is no scheduler": {"scheduler": None},
        "a Linear is no scheduler": {"scheduler": nn.Linear(1, 1)},
        "neither a unet nor a transformer": {"unet": None},
    }
    for match, parts in wrong.items():
        with pytest.raises(RunError, match=match):
            hub.from_pipeline(bundle(**parts))
    unsized = models.unet(4)
    unsized.register_to_config(sample_size=None)
    with pytest.raises(RunError, match="no picture size"):
        hub.from_pipeline(bundle(unet=unsized))


def test_arguments_that_a_network_cannot_do_without_are_named() -> None:
    sd3, flux, kinds = models.sd3_transformer(), models.flux(), models.plain_unet(classes=4)
    with pytest.raises(InvalidInputError, match="SD3Transformer2DModel also needs pooled_projections"):
        hub.denoiser(sd3, Flow()).embed_condition(torch.zeros(1, 5, 16))
    with pytest.raises(
        InvalidInputError, match="FluxTransformer2DModel also needs pooled_projections, txt_ids, img_ids"
    ):
        hub.denoiser(flux, Flow()).embed_condition(torch.zeros(1, 5, 8))
    with pytest.raises(InvalidInputError, match="UNet2DModel also needs class_labels"):
        hub.denoiser(kinds, diffusers.DDIMScheduler()).embed_condition(None)


def test_a_network_that_reads_its_texts_twice_needs_nothing_more() -> None:
    """DeepFloyd's: a "text" embedding is made of the same embeddings, as upstream."""
    torch.manual_seed(0)
    net = models.unet(addition_embed_type="text", addition_embed_type_num_heads=2).eval()
    made = hub.denoiser(net, diffusers.DDPMScheduler(prediction_type="sample", clip_sample=False))
    x, text = Rng(0).normal(2, 3, 8, 8), Rng(1).normal(2, 5, 8)
    got = made(x, made.embed_time(torch.tensor([0.2])), made.embed_condition(text)).mean
    assert torch.equal(got, net(x, 199, text).sample)


def red(picture: Tensor, prompts: Any) -> Tensor:
    return picture[:, 0].mean((1, 2))


def test_texts_are_not_prompts() -> None:
    policy = hub.from_pipeline(models.pixels(diffusers.DDIMScheduler()), n=2)
    with pytest.raises(InvalidInputError, match=r"prompts\(pipeline, texts\)"):
        policy.sample_chain(["a cat", "a dog"], Rng(0))
    with pytest.raises(InvalidInputError, match="The prompts are texts"):
        next(iter(flow_grpo.improve(policy, (red, ["a cat", "a dog"]), flow_grpo.Args(sde_window=0), Rng(0))))
    with pytest.raises(InvalidInputError, match="a list of texts"):
        hub.prompts(models.pixels(None), [1, 2])  # type: ignore[list-item]
    with pytest.raises(RunError, match="text encoding of a SimpleNamespace"):
        hub.prompts(models.pixels(None), ["a cat"])


def test_stable_diffusion_xl_is_told_its_size() -> None:
    """With the scheduler that is advised for the one it ships with; its conditions are given by hand."""
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=8, norm_num_groups=8, addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 8, use_linear_projection=True,
    ).eval()  # fmt: skip
    shipped = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipeline = diffusers.StableDiffusionXLPipeline(models.autoencoder(), None, None, None, None, net, shipped)
    pipeline.vae.register_to_config(shift_factor=None)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(RunError, match=r"clipping is DDIMScheduler\.from_config") as refusal:
        hub.from_pipeline(pipeline)
    advice = str(refusal.value).partition("clipping is ")[2]
    pipeline.scheduler = eval(advice, {**vars(diffusers), "pipeline": pipeline})
    z, text, pooled = Rng(1).normal(2, 4, 8, 8), Rng(2).normal(2, 5, 8), Rng(3).normal(2, 8)
    given = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "latents": z, "height": 16, "width": 16}
    want = pipeline(**given, guidance_scale=1.0, num_inference_steps=6, output_type="pt").images
    policy = hub.from_pipeline(pipeline, n=6)
    with pytest.raises(InvalidInputError, match="also needs added_cond_kwargs"):
        policy.generate(text, Rng(0))
    sizes = torch.tensor([16.0, 16.0, 0.0, 0.0, 16.0, 16.0]).expand(2, 6)
    cond = {"encoder_hidden_states": text, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    faithful = steps_like(pipeline.scheduler, policy.process, 6, ddim(0.0), faithful=True)
    same = replace(policy, eval_steps=faithful)
    assert torch.allclose(policy.codec.decode(end(same, cond, z)), want, atol=1e-4)


@pytest.mark.parametrize("kind", ["DDIMPipeline", "DDPMPipeline"])
def test_pictures_without_prompts(kind: str) -> None:
    """The pipeline's own pictures from its own noise; DDPM's steps with the noise that it draws."""
    torch.manual_seed(0)
    net, n = models.plain_unet().eval(), 5
    made = diffusers.DDIMScheduler if kind == "DDIMPipeline" else diffusers.DDPMScheduler
    pipeline = getattr(diffusers, kind)(net, made(clip_sample=True))
    pipeline.set_progress_bar_config(disable=True)
    given = {"eta": 0.0} if kind == "DDIMPipeline" else {}
    drawn = pipeline(2, torch.Generator().manual_seed(3), num_inference_steps=n, output_type="np", **given).images
    want = torch.as_tensor(drawn).permute(0, 3, 1, 2)
    policy = hub.from_pipeline(pipeline, n=n, transition=convert(pipeline.scheduler).transition)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    clock = policy.denoiser.embed_time(policy.train_steps.times[:-1].float())
    with torch.no_grad():
        for k, step in enumerate(policy.train_steps.rows):
            row = {name: v[k : k + 1] for name, v in clock.items()}
            law = policy.process.reverse(policy.denoiser(x, row, policy.denoiser.embed_condition(None)), x, step)
            last = k == n - 1
            noise = torch.zeros_like(x) if kind == "DDIMPipeline" or last else torch.randn(x.shape, generator=generator)
            x = law.sample(noise)
    assert torch.allclose(policy.codec.decode(x), want, atol=1e-4)
