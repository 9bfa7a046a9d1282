"""Untrained parts of the shapes model and the folder format they are shipped in."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from .shapes import BACKGROUNDS, COLOURS, IMAGE_SIZE, KINDS

MAX_TOKENS = 32
TRAIN_TIMESTEPS = 1000
_TEXT_WIDTH = 128


def build_tokenizer() -> T5Tokenizer:
    """Word-level unigram tokenizer; letters are the fallback for words outside the caption language."""
    words = ["a", "an", "small", *COLOURS, *KINDS, "left", "right", "of", "above", "below", "on", *BACKGROUNDS]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [("▁" + word, -1.0) for word in [*words, "background"]]
    # Whole words must always win over a spelling of the same word, hence the much lower score.
    vocab += [(piece, -20.0) for piece in "▁abcdefghijklmnopqrstuvwxyz0123456789.,'-"]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=MAX_TOKENS)


def build_text_encoder(vocab_size: int) -> T5EncoderModel:
    """Two-layer T5 encoder of width 128, with random weights."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=_TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="relu",
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def build_vae() -> AutoencoderKL:
    """Autoencoder from (3, 128, 128) images in [-1, 1] to (4, 16, 16) latents, with random weights."""
    return AutoencoderKL(
        # Few channels at full resolution: that is where a decoder on CPU spends its time.
        block_out_channels=(16, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def build_transformer() -> PixArtTransformer2DModel:
    """Twelve-block PixArt transformer of width 224; starts as the zero function, as in DiT."""
    model = PixArtTransformer2DModel(
        num_attention_heads=8,
        attention_head_dim=28,
        in_channels=4,
        out_channels=4,
        num_layers=12,
        cross_attention_dim=224,
        sample_size=16,
        patch_size=2,
        caption_channels=_TEXT_WIDTH,
        norm_type="ada_norm_single",
    )
    _zero_outputs(model)
    return model


@torch.no_grad()
def _zero_outputs(model: PixArtTransformer2DModel) -> None:
    for layer in (model.adaln_single.linear, model.proj_out):
        layer.weight.zero_()
        layer.bias.zero_()
    for block in model.transformer_blocks:
        # Gates start at zero through the table and the shared projection; cross attention has no gate of its own.
        block.scale_shift_table.zero_()
        block.attn2.to_out[0].weight.zero_()
        block.attn2.to_out[0].bias.zero_()


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ for flow matching: x = (1 - sigma) x0 + sigma noise, timestep = 1000 sigma, target noise - x0."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
    )


def build_pipeline(
    vae: AutoencoderKL, text_encoder: T5EncoderModel, transformer: PixArtTransformer2DModel
) -> PixArtAlphaPipeline:
    """The whole text-to-image pipeline around trained parts."""
    return PixArtAlphaPipeline(build_tokenizer(), text_encoder, vae, transformer, build_scheduler())
