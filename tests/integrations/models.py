"""Upstream models with random weights, from small configurations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

QUIET = ["ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"]
"""what upstream libraries say about their own future"""


def unet(channels: int = 3, size: int = 8, **more: Any) -> Any:
    """A text-conditional UNet: 250 thousand parameters, embeddings of 8 numbers."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size, in_channels=channels, out_channels=channels, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=8, norm_num_groups=8, **more,
    )  # fmt: skip


def plain_unet(classes: int | None = None) -> Any:
    """A UNet without text, on classes if asked."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8, num_class_embeds=classes,
    )  # fmt: skip


def pixels(scheduler: Any) -> Any:
    """A pipeline of pictures without an autoencoder: only what a policy reads of one."""
    return SimpleNamespace(unet=unet(), scheduler=scheduler)


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
        sample_size=16, shift_factor=0.1,
    ).eval()  # fmt: skip


def _words(length: int) -> Any:
    """A tokeniser that spells: one token a letter."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=length)


def _text(length: int, layers: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=54, hidden_size=8, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=length, projection_dim=8, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip


def stable_diffusion(scheduler: Any) -> Any:
    """A whole Stable Diffusion, pictures of 16 x 16."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    vae = autoencoder()
    vae.register_to_config(shift_factor=None)
    made = StableDiffusionPipeline(
        vae, CLIPTextModel(_text(8, 1)).eval(), _words(8), unet(4).eval(), scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def sd3_transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip


def stable_diffusion_3(scheduler: Any) -> Any:
    """A whole Stable Diffusion 3 without its T5."""
    from diffusers import StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    one, two = (CLIPTextModelWithProjection(_text(77, 2)).eval() for _ in range(2))
    words = _words(77)
    made = StableDiffusion3Pipeline(sd3_transformer(), scheduler, autoencoder(), one, words, two, words, None, None)
    made.set_progress_bar_config(disable=True)
    return made


def flux() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip


SIZES = {
    "vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 32,
}  # fmt: skip


def language(name: str) -> Any:
    """A language model of 20 tokens: bert, modernbert or llama."""
    import transformers as hf

    if name == "bert":
        return hf.BertForMaskedLM(hf.BertConfig(**SIZES, pad_token_id=0))
    if name == "modernbert":
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        return hf.ModernBertForMaskedLM(hf.ModernBertConfig(**SIZES, **special))
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES))


def tensors(module: Any) -> dict[str, torch.Tensor]:
    """A copy of a module's parameters."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}
