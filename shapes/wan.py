"""shapes-video: a Wan transformer and its text encoder, trained jointly by flow matching."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from .components import TEXT_WIDTH, WORDS, build_tokenizer
from .flow import CAPTION_DROPOUT, CAPTION_TOKENS, DRAWS, TRAIN_TIMESTEPS, add_noise, tokenize
from .recipe import ModelRecipe, TrainingBatch
from .shapes import IMAGE_SIZE
from .video_checker import check_clip
from .video_vae import LATENT_CHANNELS, VIDEO_VAE, load_vae
from .videos import FRAMES, clip_caption, clip_prompts, draw_clips, sample_clip


def tokenizer() -> T5Tokenizer:
    """Build the model's tokenizer: that of the image models, with the words of motion."""
    return build_tokenizer(CAPTION_TOKENS, (*WORDS, "moving", "up", "down"))


class TextToVideo(nn.Module):
    """The two trained parts as one module, from caption tokens and noisy latents to velocity."""

    def __init__(self, text_encoder: UMT5EncoderModel, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity of each row.

        Args:
            ids: int64 [S, 16], captions of S clips; row r of `latents` belongs to clip r // K.
            mask: int64 [S, 16], 0 where `ids` is padding.
            latents: noisy, float32 [S K, 16, 3, 8, 8].
            sigma: float32 [S K] in 0..1.

        Returns:
            float32 [S K, 16, 3, 8, 8].
        """
        # As the pipeline does: zeros where the text is padding, and no mask for the transformer.
        text = self.text_encoder(ids, attention_mask=mask)[0] * mask[..., None]
        return self.transformer(
            latents,
            timestep=sigma * TRAIN_TIMESTEPS,
            encoder_hidden_states=text.repeat_interleave(latents.shape[0] // ids.shape[0], 0),
            return_dict=False,
        )[0]


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """Build a two-layer UMT5 encoder of width 128 with random weights."""
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return UMT5EncoderModel(config)


def build_transformer() -> WanTransformer3DModel:
    """Build a Wan transformer of eight blocks of width 192, which starts as the zero function, as in DiT."""
    model = WanTransformer3DModel(
        # The autoencoder is coarse enough: every latent is a token.
        patch_size=(1, 1, 1),
        num_attention_heads=8,
        attention_head_dim=24,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        ffn_dim=768,
        num_layers=8,
        rope_max_seq_len=64,
    )
    layers = [model.condition_embedder.time_proj, model.proj_out, *(block.attn2.to_out[0] for block in model.blocks)]
    # Gates start at zero through the tables and the shared projection; cross attention has no gate of its own.
    tables = [block.scale_shift_table for block in model.blocks]
    for parameter in [*tables, *(layer.weight for layer in layers), *(layer.bias for layer in layers)]:
        nn.init.zeros_(parameter)
    return model


def parts(start_from: Path | None) -> TextToVideo:
    """Load text encoder and transformer of a pipeline folder in float32, or build them with random weights."""
    if start_from is None:
        return TextToVideo(build_text_encoder(len(tokenizer())), build_transformer())
    text_encoder = UMT5EncoderModel.from_pretrained(start_from / "text_encoder", dtype=torch.float32)
    transformer = WanTransformer3DModel.from_pretrained(start_from / "transformer", torch_dtype=torch.float32)
    return TextToVideo(text_encoder, transformer)


def _normalised(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(part).view(1, -1, 1, 1, 1) for part in (vae.config.latents_mean, vae.config.latents_std))
    return (latents - mean) / std


class ClipStream:
    """Noisy latents of fresh clips, some without their caption, and their velocity."""

    def __init__(self, vae_folder: Path, rng: random.Random) -> None:
        self.vae, self.tokenizer, self.rng = load_vae(vae_folder), tokenizer(), rng

    @torch.no_grad()
    def next(self, count: int) -> TrainingBatch:
        """Make inputs for `TextToVideo` of `count` clips with four draws of noise each."""
        clips = [sample_clip(self.rng) for _ in range(count)]
        texts = ["" if self.rng.random() < CAPTION_DROPOUT else clip_caption(clip) for clip in clips]
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.vae.encode(draw_clips(clips)).latent_dist.mode()
        latents = _normalised(self.vae, latents.float())
        noisy, sigma, velocity = add_noise(latents.repeat_interleave(DRAWS, 0))
        return TrainingBatch((*tokenize(self.tokenizer, texts), noisy, sigma), velocity)


def build_pipeline(model: TextToVideo, vae_folder: Path) -> WanPipeline:
    """Build the text-to-video pipeline, sampled by UniPC."""
    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
    )
    return WanPipeline(tokenizer(), model.text_encoder, load_vae(vae_folder), scheduler, model.transformer)


RECIPE = ModelRecipe(
    vae=VIDEO_VAE,
    parts=parts,
    stream=ClipStream,
    pipeline=build_pipeline,
    defaults={
        "guidance_scale": 2.5,
        "num_inference_steps": 20,
        "height": IMAGE_SIZE,
        "width": IMAGE_SIZE,
        "num_frames": FRAMES,
        "max_sequence_length": CAPTION_TOKENS,
    },
    prompts=clip_prompts,
    check=check_clip,
)
