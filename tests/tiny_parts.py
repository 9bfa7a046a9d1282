"""The parts around a tiny transformer: autoencoder, text encoders and tokenizers, all made offline."""

from __future__ import annotations

import string
from typing import Any

import diffusers
import transformers
from tokenizers.pre_tokenizers import ByteLevel

CHANNELS = 4
TEXT = 32  # width of the text stream in every family

_CLIP = {"flux": (TEXT,), "sd3": (TEXT // 2, TEXT // 2)}  # SD3 puts two side by side


def autoencoder(family: str) -> Any:
    """Build an autoencoder with CHANNELS latent channels that shrinks images by 8, as every family's does."""
    width = (8, 8, 8, 8)
    common: dict[str, Any] = {"block_out_channels": width, "latent_channels": CHANNELS, "norm_num_groups": 4}
    if family == "flux2":
        return diffusers.AutoencoderKLFlux2(**common).eval()
    if family == "wan":
        plain = {"latents_mean": [0.0] * CHANNELS, "latents_std": [1.0] * CHANNELS}
        return diffusers.AutoencoderKLWan(base_dim=8, z_dim=CHANNELS, num_res_blocks=1, **plain).eval()
    shift = {"shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False}
    return diffusers.AutoencoderKL(
        **common,
        down_block_types=("DownEncoderBlock2D",) * len(width),
        up_block_types=("UpDecoderBlock2D",) * len(width),
        **(shift if family in _CLIP else {}),
    ).eval()


def encoders(family: str, text: bool) -> dict[str, Any]:
    """Return the family's text encoders and tokenizers by component name, or None for each without `text`.

    Raises:
        ValueError: FLUX.2 with text.
    """
    if family == "flux2" and text:
        raise ValueError("a tiny FLUX.2 takes embeddings only; its text encoder is a language model")
    names = [f"{kind}{number}" for number in _numbers(family) for kind in ("text_encoder", "tokenizer")]
    optional = {"image_encoder": None, "feature_extractor": None} if family in _CLIP else {}
    if not text:
        return {**dict.fromkeys(names), **optional}
    parts = [part for width in _CLIP.get(family, ()) for part in (_clip(family, width), clip_tokenizer())]
    parts += [] if family == "dit" else [_umt5() if family == "wan" else _t5(), t5_tokenizer()]
    return {**dict(zip(names, parts, strict=True)), **optional}


def _numbers(family: str) -> list[str]:
    if family == "dit":
        return []
    return ["", "_2", "_3"][: len(_CLIP.get(family, ())) + 1]


def _clip(family: str, width: int) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    kind = transformers.CLIPTextModelWithProjection if family == "sd3" else transformers.CLIPTextModel
    return kind(config).eval()


def _t5() -> Any:
    config = transformers.T5Config(vocab_size=128, d_model=TEXT, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config).eval()


def _umt5() -> Any:
    config = transformers.UMT5Config(vocab_size=128, d_model=TEXT, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return transformers.UMT5EncoderModel(config).eval()


def clip_tokenizer() -> Any:
    """Return a CLIP tokenizer without merges: one token for each byte, 512 opens and 513 closes."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> Any:
    """Return a T5 tokenizer that spells: one token for each printable letter."""
    letters = string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
