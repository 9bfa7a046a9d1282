"""A tiny Qwen-Image pipeline as a folder: xDiT's runner has the model, and xDiT no pipeline for it."""

from __future__ import annotations

from pathlib import Path

import diffusers
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from tests.tiny import seeded
from tests.tiny_parts import CHANNELS, TEXT

_ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VAE = {
    "base_dim": 8,
    "z_dim": CHANNELS,
    "dim_mult": [1] * 4,
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.0] * CHANNELS,
    "latents_std": [1.0] * CHANNELS,
}


def checkpoint(folder: Path) -> Path:
    """Write the whole pipeline to `folder`."""
    with seeded(0):
        pipe = diffusers.QwenImagePipeline(
            transformer=diffusers.QwenImageTransformer2DModel(
                in_channels=4 * CHANNELS,
                out_channels=CHANNELS,
                num_layers=4,
                num_attention_heads=4,
                attention_head_dim=16,
                joint_attention_dim=TEXT,
                axes_dims_rope=(4, 6, 6),
            ),
            vae=diffusers.AutoencoderKLQwenImage(**_VAE),
            text_encoder=_encoder(),
            tokenizer=_tokenizer(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    pipe.save_pretrained(folder)
    return folder


def _tokenizer() -> transformers.Qwen2Tokenizer:
    words = [*sorted(ByteLevel.alphabet()), *_ENDS]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=list(_ENDS[1:]))


def _encoder() -> transformers.Qwen2_5_VLForConditionalGeneration:
    small = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    rotary = {"type": "mrope", "mrope_section": [1, 1, 2]}
    text = {"vocab_size": 300, "hidden_size": TEXT, **small, "rope_scaling": rotary, "eos_token_id": 256}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)
