"""Write two small models with random weights, in the formats of diffusers and transformers, to try the commands on.

    python examples/tiny_models.py

tiny_pipeline is a Stable Diffusion 3 of 16 x 16 pixels. tiny_language_model is a BERT that knows digits, + and =.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def pipeline(folder: Path) -> None:
    """Write a Stable Diffusion 3: transformer, autoencoder, two text encoders that read letters."""
    import diffusers
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    words = transformers.CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)
    text = transformers.CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=32, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    one, two = (transformers.CLIPTextModelWithProjection(text).eval() for _ in range(2))
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=64, pooled_projection_dim=64,
        pos_embed_max_size=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=16, shift_factor=0.1,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = diffusers.StableDiffusion3Pipeline(transformer, scheduler, vae, one, words, two, words, None, None)
    made.save_pretrained(folder)


def language_model(folder: Path) -> None:
    """Write a masked language model with its tokenizer: one token per character."""
    import transformers
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    known = ["[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", *"0123456789+="]
    raw = Tokenizer(WordLevel({token: i for i, token in enumerate(known)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    special = {"pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", **special).save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(
        vocab_size=len(known), intermediate_size=128, max_position_embeddings=32, pad_token_id=0, **sizes
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)


def main(folder: str | Path = ".") -> None:
    torch.manual_seed(0)
    pipeline(Path(folder) / "tiny_pipeline")
    language_model(Path(folder) / "tiny_language_model")
    print("Written: tiny_pipeline (diffusers) and tiny_language_model (transformers).")


if __name__ == "__main__":
    main()
