"""One tiny entry for every diffusion transformer class of diffusers: how to build it and what to call it with.

Widths are 32 (two heads of 16) where the class lets them be, texts have six tokens of 16 channels, images are 8 x 8
latents or the sixteen tokens of 4 x 4 patches, videos have two such frames, and every call holds a batch of two (of
one for Cosmos 3, which packs a single video into a sequence).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from torch import nn

BATCH = 2
SIDE = 8  # of images and frames in latents, half of it in patches
FRAMES = 2
TEXT = 16  # channels of the text
WORDS = 6
PATCHES = (SIDE // 2) ** 2
GAIN = 0.5  # of weights drawn here: at full size, outputs change far more from step to step than trained ones do


@dataclass(frozen=True)
class Entry:
    """A class: its constructor's arguments, those of a forward, and the ones of them that change between steps."""

    config: dict[str, Any]
    arguments: Callable[[], dict[str, Any]]
    latents: str = "hidden_states"
    timestep: str = "timestep"
    noise: tuple[float, float] = (1000.0, 0.0)  # the timestep at pure noise and at the clean end, as pipelines give it
    lift: float = 1.0  # of all matrices, for classes without biases, whose gates would come out near zero


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(channels: int = 4) -> torch.Tensor:
    return normal(BATCH, channels, SIDE, SIDE)


def video(channels: int = 4, frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    return normal(BATCH, channels, frames, SIDE, SIDE, seed=seed)


def frames_first(channels: int = 4) -> torch.Tensor:
    return normal(BATCH, FRAMES, channels, SIDE, SIDE)


def tokens(channels: int = 8, length: int = PATCHES, seed: int = 0) -> torch.Tensor:
    return normal(BATCH, length, channels, seed=seed)


def sound(channels: int = 8, length: int = 12, seed: int = 0) -> torch.Tensor:
    return normal(BATCH, channels, length, seed=seed)


def text(channels: int = TEXT, words: int = WORDS) -> torch.Tensor:
    return normal(BATCH, words, channels, seed=1)


def vector(channels: int = TEXT) -> torch.Tensor:
    return normal(BATCH, channels, seed=2)


def at(value: float = 500.0, *more: int) -> torch.Tensor:
    return torch.full((BATCH, *more), value)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(BATCH, *shape, dtype=dtype)


def mask(words: int = WORDS) -> torch.Tensor:
    return ones(words, dtype=torch.bool)


def grid(axes: int = 3, frames: int = 1, first: int = 0) -> torch.Tensor:
    """Positions of the tokens of an image or video: rows and columns last, frames before them."""
    axis = torch.arange(SIDE // 2)
    places = torch.cartesian_prod(torch.arange(first, first + frames), axis, axis)
    return nn.functional.pad(places, (axes - 3, 0)).float()


def positions(axes: int = 3) -> dict[str, torch.Tensor]:
    return dict(img_ids=grid(axes), txt_ids=torch.zeros(WORDS, axes))


def frame_numbers(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count).expand(BATCH, -1)


def patched(frames: int = 1) -> dict[str, int]:
    return dict(num_frames=frames, height=SIDE // 2, width=SIDE // 2)


def turns(length: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = normal(BATCH, length, channels // 2, seed=3).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def plain(latents: torch.Tensor, now: float = 500.0) -> dict[str, torch.Tensor]:
    return dict(hidden_states=latents, timestep=at(now), encoder_hidden_states=text())


def sizes() -> dict[str, torch.Tensor]:
    return dict(target_size=at(64.0, 2), crop_coords=at(0.0, 2))


def no_sizes() -> dict[str, Any]:
    return dict(added_cond_kwargs=dict(resolution=None, aspect_ratio=None))


def cosmos_omni() -> dict[str, Any]:
    """One video as its pipeline packs it: text, then the patches of the video, all frames of them noisy."""
    patches = torch.arange(WORDS, WORDS + FRAMES * PATCHES)
    shape = (FRAMES, SIDE // 2, SIDE // 2)
    words = torch.arange(WORDS)
    return dict(
        input_ids=words + 1,
        text_indexes=words,
        position_ids=torch.cat([words.expand(3, -1), grid(frames=FRAMES).T.long() + WORDS], dim=1),
        und_len=WORDS,
        sequence_length=WORDS + len(patches),
        vision_tokens=[normal(1, 4, FRAMES, SIDE, SIDE)],
        vision_token_shapes=[shape],
        vision_sequence_indexes=patches,
        vision_mse_loss_indexes=patches,
        vision_timesteps=torch.full((len(patches),), 500.0),
        vision_noisy_frame_indexes=[torch.arange(FRAMES)],
    )


def minimax_packed() -> dict[str, Any]:
    """Video, text and audio in one sequence, at one timestep for all."""
    lengths = (FRAMES * PATCHES, WORDS, 12)  # in the order of their tags
    tags = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    film, words, heard = torch.arange(sum(lengths)).split(lengths)
    places = torch.arange(sum(lengths))[:, None].repeat(1, 3)
    places[film] = grid(frames=FRAMES).long()
    return dict(
        hidden_states=tokens(16, lengths[0]),
        audio_hidden_states=tokens(8, lengths[2], seed=4),
        encoder_hidden_states=text(),
        timestep=torch.full((1,), 0.5),
        timestep_indices=torch.zeros_like(tags),
        token_tags=tags,
        position_ids=places,
        video_indices=film,
        audio_indices=heard,
        text_indices=words,
    )


# fmt: off
HEADS = dict(num_attention_heads=2, attention_head_dim=16)
WIDTH = 32
AXES = (4, 6, 6)  # of rotary embeddings, together the width of a head
SINGLE = dict(num_layers=4, num_single_layers=4)
IMAGE = dict(in_channels=4, out_channels=4, sample_size=SIDE, patch_size=2)
VIDEO = dict(in_channels=4, out_channels=4, patch_size=(1, 2, 2))
WAN = dict(**HEADS, **VIDEO, text_dim=TEXT, freq_dim=16, ffn_dim=64, num_layers=4)
PIXART = dict(
    **{**HEADS, **IMAGE, "out_channels": 8}, num_layers=4, cross_attention_dim=WIDTH, caption_channels=TEXT,
    norm_type="ada_norm_single", use_additional_conditions=False,
)
FLUX = dict(**HEADS, **SINGLE, in_channels=8, joint_attention_dim=TEXT, axes_dims_rope=AXES)
COGVIDEO = dict(
    **HEADS, in_channels=4, out_channels=4, num_layers=4, time_embed_dim=16, text_embed_dim=TEXT, sample_width=SIDE,
    sample_height=SIDE, sample_frames=4 * FRAMES - 3, max_text_seq_length=WORDS,
)
COGVIEW = dict(
    **HEADS, in_channels=4, out_channels=4, num_layers=4, text_embed_dim=TEXT, time_embed_dim=16, condition_dim=8,
)
HUNYUAN = dict(**HEADS, in_channels=4, out_channels=4, num_refiner_layers=4, rope_axes_dim=AXES, text_embed_dim=TEXT)
JOY = dict(in_channels=4, hidden_size=WIDTH, num_attention_heads=2, text_dim=TEXT, num_layers=4, rope_dim_list=AXES)
LTX2 = dict(
    **HEADS, in_channels=8, out_channels=8, cross_attention_dim=WIDTH, audio_in_channels=8, audio_out_channels=8,
    audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16, num_layers=4,
    caption_channels=TEXT,
)
SANA = dict(
    **HEADS, in_channels=4, out_channels=4, num_layers=4, num_cross_attention_heads=2, cross_attention_head_dim=16,
    cross_attention_dim=WIDTH, caption_channels=TEXT, sample_size=SIDE,
)

ZOO: dict[str, Entry] = {
    "AceStepTransformer1DModel": Entry(
        dict(
            hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, in_channels=24, audio_acoustic_hidden_dim=8, sliding_window=4, encoder_hidden_size=TEXT,
        ),
        lambda: dict(
            hidden_states=tokens(), timestep=(now := at(0.5)), timestep_r=now, encoder_hidden_states=text(),
            context_latents=tokens(16, seed=4),
        ),
        noise=(1.0, 0.0),
    ),
    "AllegroTransformer3DModel": Entry(
        dict(**HEADS, num_layers=4, cross_attention_dim=WIDTH, caption_channels=TEXT),
        lambda: plain(video()),
    ),
    "AnyFlowFARTransformer3DModel": Entry(
        dict(**WAN, compressed_patch_size=(1, 4, 4), chunk_partition=(1, 1)),
        lambda: dict(
            hidden_states=frames_first(), timestep=(now := at(500.0, FRAMES)), r_timestep=now,
            encoder_hidden_states=text(), chunk_partition=[1, 1],
        ),
    ),
    "AnyFlowTransformer3DModel": Entry(
        WAN,
        lambda: dict(
            hidden_states=frames_first(), timestep=(now := at(500.0, FRAMES)), r_timestep=now,
            encoder_hidden_states=text(),
        ),
    ),
    "AuraFlowTransformer2DModel": Entry(
        dict(
            **HEADS, **IMAGE, num_mmdit_layers=4, num_single_dit_layers=4, joint_attention_dim=TEXT,
            caption_projection_dim=WIDTH, pos_embed_max_size=PATCHES,
        ),
        lambda: plain(image(), 0.5),
        noise=(1.0, 0.0), lift=1.5,
    ),
    "BriaFibo2Transformer2DModel": Entry(
        dict(
            in_channels=4, dim=WIDTH, n_layers=4, n_refiner_layers=4, n_heads=2, cap_feat_dim=TEXT,
            injection_layer_ids=(1, 3), perceiver_num_layers=4, min_num_gist_tokens=4, max_num_gist_tokens=8,
            gist_step=4, gist_min_text_len=4, gist_max_text_len=16, axes_dims=AXES, axes_lens=(64, 32, 32),
        ),
        lambda: dict(
            hidden_states=image(), timestep=at(0.5), encoder_hidden_states=normal(BATCH, 3, WORDS, TEXT, seed=1),
        ),
        noise=(1.0, 0.0),
    ),
    "BriaFiboTransformer2DModel": Entry(
        dict(**FLUX, text_encoder_dim=TEXT),
        lambda: dict(**plain(tokens()), text_encoder_layers=[text() for _ in range(8)], **positions()),
    ),
    "BriaTransformer2DModel": Entry(FLUX, lambda: dict(**plain(tokens()), **positions())),
    "ChromaTransformer2DModel": Entry(
        dict(**FLUX, approximator_num_channels=16, approximator_hidden_dim=32, approximator_layers=4),
        lambda: dict(**plain(tokens(), 0.5), attention_mask=mask(WORDS + PATCHES), **positions()),
        noise=(1.0, 0.0),
    ),
    "ChronoEditTransformer3DModel": Entry(WAN, lambda: plain(video())),
    "CogVideoXTransformer3DModel": Entry(COGVIDEO, lambda: plain(frames_first())),
    "CogView3PlusTransformer2DModel": Entry(
        dict(**COGVIEW, pos_embed_max_size=SIDE, sample_size=SIDE),
        lambda: dict(**plain(image()), original_size=at(64.0, 2), **sizes()),
    ),
    "CogView4Transformer2DModel": Entry(
        dict(**COGVIEW, sample_size=SIDE, rope_axes_dim=(8, 8)),
        lambda: dict(**plain(image()), original_size=at(64.0, 2), **sizes()),
    ),
    "ConsisIDTransformer3DModel": Entry(
        dict(
            **{**COGVIDEO, "num_attention_heads": 3, "num_layers": 8}, is_train_face=True, cross_attn_interval=2,
            cross_attn_dim_head=8, cross_attn_num_heads=2, LFE_id_dim=8, LFE_vit_dim=8, LFE_depth=5, LFE_dim_head=8,
            LFE_num_heads=2, LFE_num_id_token=2, LFE_num_querie=2, LFE_output_dim=WIDTH, LFE_ff_mult=1, LFE_num_scale=1,
        ),
        lambda: dict(**plain(frames_first()), id_cond=vector(8), id_vit_hidden=[tokens(8, 3, seed=4)]),
    ),
    "Cosmos3OmniTransformer": Entry(
        dict(
            dtype="float32", head_dim=16, hidden_size=WIDTH, intermediate_size=64, latent_channel=4,
            num_attention_heads=2, num_hidden_layers=4, num_key_value_heads=1, patch_latent_dim=16, vocab_size=32,
            rope_axes_dim=(4, 2, 2),
        ),
        cosmos_omni,
        latents="vision_tokens", timestep="vision_timesteps",
    ),
    "CosmosTransformer3DModel": Entry(
        dict(
            **HEADS, **VIDEO, num_layers=4, text_embed_dim=TEXT, adaln_lora_dim=8, max_size=(4, SIDE, SIDE),
            concat_padding_mask=False,
        ),
        lambda: plain(video(), 0.5),
        noise=(1.0, 0.0),
    ),
    "DiTTransformer2DModel": Entry(
        dict(**{**HEADS, **IMAGE, "out_channels": 8}, num_layers=4, num_embeds_ada_norm=10),
        lambda: dict(hidden_states=image(), timestep=at(), class_labels=torch.tensor([1, 7])),
    ),
    "EasyAnimateTransformer3DModel": Entry(
        dict(
            **HEADS, in_channels=4, out_channels=4, patch_size=2, num_layers=8, mmdit_layers=4, time_embed_dim=16,
            text_embed_dim=TEXT,
        ),
        lambda: plain(video()),
    ),
    "ErnieImageTransformer2DModel": Entry(
        dict(
            hidden_size=WIDTH, num_attention_heads=2, num_layers=4, ffn_hidden_size=64, in_channels=8, out_channels=8,
            text_in_dim=TEXT, rope_axes_dim=AXES,
        ),
        lambda: dict(
            hidden_states=normal(BATCH, 8, SIDE // 2, SIDE // 2), timestep=at(), text_bth=text(),
            text_lens=torch.tensor([WORDS, WORDS - 2]),
        ),
    ),
    "Flux2Transformer2DModel": Entry(
        {**FLUX, "axes_dims_rope": (4, 4, 4, 4)},
        lambda: dict(**plain(tokens(), 0.5), guidance=at(4.0), **positions(4)),
        noise=(1.0, 0.0), lift=1.5,
    ),
    "Flux3Transformer2DModel": Entry(
        {**FLUX, "cond_in_channels": 8, "axes_dims_rope": (4, 4, 4, 4)},
        lambda: dict(
            **plain(tokens(), 0.5), image_cond_hidden_states=tokens(seed=4), image_cond_ids=grid(4, first=10),
            **positions(4),
        ),
        noise=(1.0, 0.0), lift=1.5,
    ),
    "FluxTransformer2DModel": Entry(
        dict(**FLUX, pooled_projection_dim=TEXT, guidance_embeds=True),
        lambda: dict(**plain(tokens(), 0.5), pooled_projections=vector(), guidance=at(3.5), **positions()),
        noise=(1.0, 0.0),
    ),
    "GlmImageTransformer2DModel": Entry(
        dict(**COGVIEW, prior_vq_quantizer_codebook_size=32),
        lambda: dict(
            **plain(image()), prior_token_id=torch.arange(PATCHES).expand(BATCH, -1), prior_token_drop=~mask(PATCHES),
            **sizes(),
        ),
    ),
    "HeliosTransformer3DModel": Entry(
        dict(**WAN, rope_dim=AXES),
        lambda: dict(
            **plain(video()), indices_hidden_states=frame_numbers(8, FRAMES),
            indices_latents_history_short=frame_numbers(6, 2), indices_latents_history_mid=frame_numbers(4, 2),
            indices_latents_history_long=frame_numbers(0, 4), latents_history_short=video(seed=4),
            latents_history_mid=video(seed=5), latents_history_long=video(frames=4, seed=6),
        ),
    ),
    "HiDreamImageTransformer2DModel": Entry(
        dict(
            **HEADS, **SINGLE, patch_size=2, in_channels=4, caption_channels=[TEXT, TEXT], text_emb_dim=TEXT,
            num_routed_experts=2, num_activated_experts=1, axes_dims_rope=AXES, max_resolution=(SIDE, SIDE),
            llama_layers=list(range(8)), force_inference_output=True,
        ),
        lambda: dict(
            hidden_states=image(), timesteps=at(), encoder_hidden_states_t5=text(),
            encoder_hidden_states_llama3=normal(8, BATCH, WORDS, TEXT, seed=3), pooled_embeds=vector(),
        ),
        timestep="timesteps",
    ),
    "HunyuanDiT2DModel": Entry(
        dict(
            **HEADS, in_channels=4, patch_size=2, sample_size=SIDE, hidden_size=WIDTH, num_layers=8,
            cross_attention_dim=TEXT, cross_attention_dim_t5=TEXT, pooled_projection_dim=TEXT, text_len=WORDS,
            text_len_t5=WORDS, use_style_cond_and_image_meta_size=False,
        ),
        lambda: dict(
            **plain(image()), text_embedding_mask=mask(), encoder_hidden_states_t5=text(),
            text_embedding_mask_t5=mask(),
        ),
    ),
    "HunyuanImageTransformer2DModel": Entry(
        {**HUNYUAN, **SINGLE, "patch_size": (2, 2), "text_embed_2_dim": TEXT, "rope_axes_dim": (8, 8)},
        lambda: dict(
            **plain(image()), encoder_attention_mask=mask(), encoder_hidden_states_2=text(),
            encoder_attention_mask_2=mask(),
        ),
    ),
    "HunyuanVideo15Transformer3DModel": Entry(
        dict(**HUNYUAN, num_layers=4, patch_size=2, text_embed_2_dim=TEXT, image_embed_dim=8),
        lambda: dict(
            **plain(video()), encoder_attention_mask=mask(), encoder_hidden_states_2=text(),
            encoder_attention_mask_2=mask(), image_embeds=tokens(8, 3, seed=4),
        ),
    ),
    "HunyuanVideoFramepackTransformer3DModel": Entry(
        dict(
            **HUNYUAN, **SINGLE, pooled_projection_dim=TEXT, has_image_proj=True, image_proj_dim=8,
            has_clean_x_embedder=True,
        ),
        lambda: dict(
            **plain(video()), encoder_attention_mask=mask(), pooled_projections=vector(),
            image_embeds=tokens(8, 3, seed=4), indices_latents=frame_numbers(10, FRAMES)[0], guidance=at(6000.0),
            latents_clean=video(frames=2, seed=5), indices_latents_clean=frame_numbers(8, 2)[0],
            latents_history_2x=video(frames=2, seed=6), indices_latents_history_2x=frame_numbers(6, 2)[0],
            latents_history_4x=video(frames=4, seed=7), indices_latents_history_4x=frame_numbers(0, 4)[0],
        ),
    ),
    "HunyuanVideoTransformer3DModel": Entry(
        dict(**HUNYUAN, **SINGLE, pooled_projection_dim=TEXT),
        lambda: dict(**plain(video()), encoder_attention_mask=mask(), pooled_projections=vector(), guidance=at(6000.0)),
    ),
    # text and image are one sequence, told apart by their indicators
    "Ideogram4Transformer2DModel": Entry(
        dict(
            **HEADS, in_channels=8, num_layers=4, intermediate_size=64, adaln_dim=16, llm_features_dim=TEXT,
            mrope_section=(4, 2, 2),
        ),
        lambda: dict(
            hidden_states=tokens(8, WORDS + PATCHES), timestep=at(0.5),
            encoder_hidden_states=text(words=WORDS + PATCHES),
            position_ids=torch.cat([torch.zeros(WORDS, 3), grid()]).expand(BATCH, -1, -1),
            segment_ids=ones(WORDS + PATCHES, dtype=torch.long),
            indicator=torch.tensor([3] * WORDS + [2] * PATCHES).expand(BATCH, -1),
        ),
        noise=(0.0, 1.0),
    ),
    "JoyImageEditPlusTransformer3DModel": Entry(
        JOY,
        lambda: dict(
            **plain(normal(BATCH, PATCHES, 4, 1, 2, 2)), encoder_hidden_states_mask=ones(WORDS),
            shape_list=[[(1, SIDE // 2, SIDE // 2)]] * BATCH,
        ),
    ),
    "JoyImageEditTransformer3DModel": Entry(JOY, lambda: plain(video())),
    "Kandinsky5Transformer3DModel": Entry(
        dict(
            in_text_dim=TEXT, in_text_dim2=TEXT, time_dim=16, model_dim=WIDTH, ff_dim=64, num_text_blocks=4,
            num_visual_blocks=4, axes_dims=AXES,
        ),
        lambda: dict(
            **plain(normal(BATCH, FRAMES, SIDE, SIDE, 4)), pooled_projections=vector(),
            visual_rope_pos=[torch.arange(size) for size in (FRAMES, SIDE // 2, SIDE // 2)],
            text_rope_pos=torch.arange(WORDS),
        ),
    ),
    "Kandinsky6SRTransformer3DModel": Entry(
        dict(
            in_visual_dim=4, out_visual_dim=4, time_dim=16, model_dim=WIDTH, ff_dim=64, num_visual_blocks=4,
            axes_dims=AXES,
        ),
        lambda: dict(hidden_states=normal(BATCH, FRAMES, SIDE, SIDE, 9), timestep=at()),
    ),
    "Kandinsky6Transformer3DModel": Entry(
        dict(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=TEXT, in_text_dim2=TEXT, time_dim=16, model_dim=WIDTH,
            ff_dim=64, num_text_blocks=4, num_visual_blocks=4, axes_dims=AXES, visual_cond=False, in_audio_dim=4,
            out_audio_dim=4,
        ),
        lambda: dict(
            **plain(normal(BATCH, FRAMES, SIDE, SIDE, 4)), pooled_projections=vector(),
            audio_hidden_states=tokens(4, 12, seed=4),
        ),
    ),
    "Krea2Transformer2DModel": Entry(
        dict(
            **HEADS, in_channels=8, num_layers=4, num_key_value_heads=1, intermediate_size=64, timestep_embed_dim=16,
            text_hidden_dim=TEXT, num_text_layers=4, text_num_attention_heads=2, text_num_key_value_heads=2,
            text_intermediate_size=32, num_layerwise_text_blocks=4, num_refiner_text_blocks=4, axes_dims_rope=AXES,
        ),
        lambda: dict(
            hidden_states=tokens(), encoder_hidden_states=normal(BATCH, WORDS, 4, TEXT, seed=1), timestep=at(0.5),
            position_ids=torch.cat([torch.zeros(WORDS, 3), grid()]),
        ),
        noise=(1.0, 0.0),
    ),
    "LTX2VideoTransformer3DModel": Entry(
        LTX2,
        lambda: dict(
            hidden_states=tokens(length=FRAMES * PATCHES), audio_hidden_states=tokens(length=12, seed=4),
            encoder_hidden_states=text(), audio_encoder_hidden_states=text(), timestep=(now := at()), sigma=now,
            encoder_attention_mask=mask(), audio_encoder_attention_mask=mask(), audio_num_frames=12, **patched(FRAMES),
        ),
    ),
    "LTXVideoTransformer3DModel": Entry(
        dict(**HEADS, in_channels=8, out_channels=8, cross_attention_dim=WIDTH, num_layers=4, caption_channels=TEXT),
        lambda: dict(**plain(tokens(length=FRAMES * PATCHES)), encoder_attention_mask=mask(), **patched(FRAMES)),
    ),
    "LatteTransformer3DModel": Entry(
        dict(
            **{name: value for name, value in PIXART.items() if name != "use_additional_conditions"},
            norm_elementwise_affine=False, activation_fn="gelu-approximate", attention_bias=True,
            num_embeds_ada_norm=1000, video_length=FRAMES,
        ),
        lambda: plain(video()),
    ),
    "LongCatAudioDiTTransformer": Entry(
        dict(dit_dim=WIDTH, dit_depth=4, dit_heads=2, dit_text_dim=TEXT, latent_dim=8),
        lambda: dict(**plain(tokens(), 0.5), encoder_attention_mask=mask(), latent_cond=tokens(seed=4)),
        noise=(1.0, 0.0),
    ),
    "LongCatImageTransformer2DModel": Entry(
        dict(**FLUX, pooled_projection_dim=TEXT),
        lambda: dict(**plain(tokens(), 0.5), **positions()),
        noise=(1.0, 0.0),
    ),
    "Lumina2Transformer2DModel": Entry(
        dict(
            in_channels=4, hidden_size=WIDTH, num_layers=4, num_refiner_layers=4, num_attention_heads=2, num_kv_heads=1,
            multiple_of=8, axes_dim_rope=AXES, axes_lens=(32, 16, 16), cap_feat_dim=TEXT,
        ),
        lambda: dict(**plain(image(), 0.5), encoder_attention_mask=mask()),
        noise=(0.0, 1.0),
    ),
    "LuminaNextDiT2DModel": Entry(
        dict(
            in_channels=4, hidden_size=WIDTH, num_layers=4, num_attention_heads=2, num_kv_heads=1, multiple_of=8,
            cross_attention_dim=TEXT,
        ),
        lambda: dict(
            **plain(image(), 0.5), encoder_mask=mask(), image_rotary_emb=get_2d_rotary_pos_embed_lumina(16, 16, 16),
            cross_attention_kwargs={},
        ),
        noise=(0.0, 1.0),
    ),
    "MiniMaxH3Transformer3DModel": Entry(
        dict(
            **HEADS, hidden_size=WIDTH, num_layers=4, num_refiner_layers=4, ffn_dim=64, in_channels=4,
            audio_in_channels=8, text_dim=TEXT, freq_dim=16, time_embed_hidden_dim=32, time_embed_dim=16,
            rope_freq_dim=2,
        ),
        minimax_packed,
        noise=(0.0, 1.0),
    ),
    "MiniMaxMusic3Transformer1DModel": Entry(
        dict(
            **HEADS, in_channels=8, condition_dim=TEXT, num_layers=4, ff_inner_dim=64, rotary_dim=8,
            fourier_embedding_dim=16,
        ),
        lambda: dict(hidden_states=sound(), timestep=at(0.5), encoder_hidden_states=text(words=12)),
        noise=(0.0, 1.0),
    ),
    "MochiTransformer3DModel": Entry(
        dict(
            **HEADS, num_layers=4, pooled_projection_dim=TEXT, in_channels=4, text_embed_dim=TEXT, time_embed_dim=16,
            max_sequence_length=WORDS,
        ),
        lambda: dict(**plain(video()), encoder_attention_mask=mask()),
        noise=(0.0, 1000.0),
    ),
    "MotifVideoTransformer3DModel": Entry(
        dict(
            **HEADS, in_channels=4, out_channels=4, num_layers=4, num_single_layers=8, num_decoder_layers=4,
            text_embed_dim=TEXT, image_embed_dim=8, rope_axes_dim=AXES,
        ),
        lambda: dict(**plain(video()), encoder_attention_mask=mask(), image_embeds=tokens(8, 3, seed=4)),
    ),
    "NucleusMoEImageTransformer2DModel": Entry(
        dict(
            **HEADS, in_channels=16, out_channels=4, num_layers=8, joint_attention_dim=TEXT, axes_dims_rope=AXES,
            num_experts=4, moe_intermediate_dim=16, mlp_ratio=6.0, capacity_factors=2.0,
        ),
        lambda: dict(
            **plain(tokens(16), 0.5), img_shapes=[(1, SIDE // 2, SIDE // 2)] * BATCH, encoder_hidden_states_mask=mask(),
        ),
        noise=(1.0, 0.0),
    ),
    "OmniGenTransformer2DModel": Entry(
        dict(
            hidden_size=WIDTH, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64, num_layers=4,
            pad_token_id=0, vocab_size=32, pos_embed_max_size=16, time_step_dim=16,
            rope_scaling=dict(long_factor=[1.0] * 8, short_factor=[1.0] * 8),
        ),
        lambda: dict(
            hidden_states=image(), timestep=at(0.5), input_ids=torch.arange(1, 1 + WORDS).expand(BATCH, -1),
            input_img_latents=[], input_image_sizes={}, attention_mask=ones(WORDS + 1 + PATCHES, WORDS + 1 + PATCHES),
            position_ids=frame_numbers(0, WORDS + 1 + PATCHES),
        ),
        noise=(0.0, 1.0),
    ),
    "OvisImageTransformer2DModel": Entry(
        dict(**FLUX, out_channels=8),
        lambda: dict(**plain(tokens(), 0.5), **positions()),
        noise=(1.0, 0.0),
    ),
    "PRXTransformer2DModel": Entry(
        dict(in_channels=4, context_in_dim=TEXT, hidden_size=WIDTH, num_heads=2, depth=4, axes_dim=[8, 8]),
        lambda: plain(image(), 0.5),
        noise=(1.0, 0.0),
    ),
    "PixArtTransformer2DModel": Entry(PIXART, lambda: dict(**plain(image()), **no_sizes())),
    "PriorTransformer": Entry(
        dict(**HEADS, num_layers=4, embedding_dim=TEXT, num_embeddings=WORDS),
        lambda: dict(**plain(normal(BATCH, TEXT)), proj_embedding=vector(), attention_mask=mask()),
    ),
    # four image tokens take the place of each marked token of the text
    "QwenImage21Transformer2DModel": Entry(
        dict(**HEADS, in_channels=8, out_channels=8, num_layers=4, context_in_dim=TEXT, axes_dims_rope=AXES),
        lambda: dict(
            **plain(tokens(), 0.5), img_shapes=[[(1, SIDE // 2, SIDE // 2)]] * BATCH,
            img_mask=torch.tensor([False] * WORDS + [True] * (PATCHES // 4)).expand(BATCH, -1),
            encoder_hidden_states_mask=mask(),
        ),
        noise=(1.0, 0.0), lift=1.5,
    ),
    "QwenImageTransformer2DModel": Entry(
        dict(**HEADS, in_channels=16, out_channels=4, num_layers=4, joint_attention_dim=TEXT, axes_dims_rope=AXES),
        lambda: dict(
            **plain(tokens(16), 0.5), encoder_hidden_states_mask=mask(),
            img_shapes=[[(1, SIDE // 2, SIDE // 2)]] * BATCH,
        ),
        noise=(1.0, 0.0),
    ),
    "RFD4ProteinaTransformer": Entry(
        dict(
            nlayers=4, token_dim=WIDTH, nheads=2, dim_cond=16, pair_repr_dim=16, latent_dim=8, t_emb_dim=16,
            xt_pair_dist_dim=8, feats_seq=("xt_bb_ca", "xt_local_latents"),
            feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"), feats_pair_repr=("xt_bb_ca_pair_dists",),
            update_pair_repr_every_n=1, tri_mult_c=8,
        ),
        lambda: dict(
            bb_ca=tokens(3), local_latents=tokens(8, seed=4), bb_ca_time=(now := at(0.5)), local_latents_time=now,
            padding_mask=mask(PATCHES),
            conditioning=dict(is_in_context_conditioning=~mask(PATCHES), supports_local_latent=mask(PATCHES)),
        ),
        latents="bb_ca", timestep="bb_ca_time", noise=(0.0, 1.0),
    ),
    "SD3Transformer2DModel": Entry(
        dict(
            **HEADS, **IMAGE, num_layers=4, joint_attention_dim=TEXT, caption_projection_dim=WIDTH,
            pooled_projection_dim=TEXT, pos_embed_max_size=SIDE, dual_attention_layers=(0, 1),
        ),
        lambda: dict(**plain(image()), pooled_projections=vector()),
    ),
    "SanaTransformer2DModel": Entry(SANA, lambda: plain(image())),
    "SanaVideoTransformer3DModel": Entry(dict(**SANA, patch_size=(1, 2, 2)), lambda: plain(video())),
    "SanaWMLTX2RefinerTransformer3DModel": Entry(
        LTX2,
        lambda: dict(
            **plain(tokens(length=FRAMES * PATCHES)), video_rotary_emb=turns(FRAMES * PATCHES, WIDTH),
            encoder_attention_mask=mask(),
        ),
    ),
    "SanaWMTransformer3DModel": Entry(
        dict(
            in_channels=4, num_layers=4, hidden_size=WIDTH, num_attention_heads=2, linear_head_dim=16,
            caption_channels=TEXT,
        ),
        lambda: dict(
            hidden_states=video(), timestep=at(500.0, 1, FRAMES), encoder_hidden_states=text(),
            encoder_attention_mask=mask(),
        ),
    ),
    "SkyReelsV2Transformer3DModel": Entry(WAN, lambda: plain(video())),
    "StableAudio3DiTModel": Entry(
        dict(
            io_channels=8, embed_dim=WIDTH, depth=4, num_heads=2, cond_token_dim=TEXT, global_cond_dim=TEXT,
            local_add_cond_dim=4, timestep_features_dim=16, num_memory_tokens=4,
        ),
        lambda: dict(
            **plain(sound(), 0.5), global_hidden_states=vector(), encoder_attention_mask=mask(),
            local_add_cond=sound(4, seed=4),
        ),
        noise=(1.0, 0.0),
    ),
    "StableAudioDiTModel": Entry(
        dict(
            **HEADS, sample_size=12, in_channels=8, num_layers=4, num_key_value_attention_heads=1, out_channels=8,
            cross_attention_dim=TEXT, time_proj_dim=16, global_states_input_dim=TEXT, cross_attention_input_dim=TEXT,
        ),
        lambda: dict(
            **plain(sound(), 0.5), global_hidden_states=vector()[:, None],
            rotary_embedding=get_1d_rotary_pos_embed(8, 13, use_real=True, repeat_interleave_real=False),
        ),
        noise=(1.0, 0.0),
    ),
    "T5FilmDecoder": Entry(
        dict(input_dims=8, targets_length=12, d_model=WIDTH, num_layers=4, num_heads=2, d_kv=16, d_ff=64),
        lambda: dict(
            encodings_and_masks=[(text(WIDTH), mask())], decoder_input_tokens=tokens(8, 12), decoder_noise_time=at(0.5),
        ),
        latents="decoder_input_tokens", timestep="decoder_noise_time", noise=(1.0, 0.0),
    ),
    "Transformer2DModel": Entry(
        dict(**PIXART, norm_elementwise_affine=False, num_embeds_ada_norm=1000),
        lambda: dict(**plain(image()), **no_sizes()),
    ),
    "UniDiffuserModel": Entry(
        dict(
            **{**HEADS, **IMAGE}, text_dim=TEXT, clip_img_dim=TEXT, num_text_tokens=WORDS, num_layers=8,
            use_timestep_embedding=True, use_data_type_embedding=True, block_type="unidiffuser",
        ),
        lambda: dict(
            latent_image_embeds=image(), image_embeds=tokens(TEXT, 1, seed=4), prompt_embeds=text(),
            timestep_img=(now := at()), timestep_text=now,
        ),
        latents="latent_image_embeds", timestep="timestep_img",
    ),
    "WanAnimateTransformer3DModel": Entry(
        dict(
            **{**WAN, "in_channels": 12, "num_layers": 8}, latent_channels=4, image_dim=8, added_kv_proj_dim=WIDTH,
            motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
            motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        ),
        lambda: dict(
            **plain(video(12, 3)), encoder_hidden_states_image=tokens(8, 3, seed=4), pose_hidden_states=video(seed=5),
            face_pixel_values=normal(BATCH, 3, 5, 16, 16, seed=6),
        ),
    ),
    "WanTransformer3DModel": Entry(
        dict(**WAN, image_dim=8, added_kv_proj_dim=WIDTH),
        lambda: dict(**plain(video()), encoder_hidden_states_image=tokens(8, 3, seed=4)),
    ),
    "WanVACETransformer3DModel": Entry(
        dict(**{**WAN, "num_layers": 8}, vace_layers=[0, 2, 4, 6], vace_in_channels=8),
        lambda: dict(**plain(video()), control_hidden_states=video(8, seed=4)),
    ),
    "ZImageTransformer2DModel": Entry(
        dict(
            in_channels=4, dim=WIDTH, n_layers=4, n_refiner_layers=4, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT,
            axes_dims=list(AXES), axes_lens=[128, 32, 32],
        ),
        lambda: dict(x=list(image()[:, :, None]), t=at(0.5), cap_feats=list(text())),
        latents="x", timestep="t", noise=(0.0, 1.0),
    ),
}
# fmt: on

LEFT_OUT: dict[str, str] = {
    "DreamLiteTransformer2DModel": "a part of the DreamLite U-Net: it takes features of that, not latents",
    "MiniMaxMusic3RVQDepthDecoder": "predicts codes one after another, no denoiser: it takes neither latents nor time",
    "TransformerTemporalModel": "a part of U-Nets: it takes features of those, and ignores the timestep it is given",
    "UVit2DModel": "unmasks tokens: it takes token numbers in place of latents, and no timestep",
    "WanAnimate2Transformer3DModel": "needs the keys and values of a pass over the reference before its first step, "
    "and attends to them through a mask that torch compiles",
}


def build(name: str, changes: dict[str, Any] | None = None) -> nn.Module:
    """The tiny model, in eval mode: seeded, and with no gate or projection left at zero.

    `changes` are of its config.

    What a class does not initialise at all is NaN here, by torch's own switch for that, and drawn with the zeros.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True)
        try:
            model = getattr(diffusers, name)(**{**ZOO[name].config, **(changes or {})})
        finally:
            torch.use_deterministic_algorithms(deterministic)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.nan_to_num().any():
                    fan_in = parameter.shape[1] if parameter.ndim > 1 else 4
                    parameter.normal_(std=GAIN / math.sqrt(fan_in))
                elif parameter.ndim > 1:
                    parameter.mul_(ZOO[name].lift)
    return model.eval()


def output_of(result: Any) -> torch.Tensor | list[torch.Tensor]:
    """The prediction in what a forward returned, whichever way it was asked to return it."""
    if isinstance(result, torch.Tensor):
        return result
    return result[0]


def arguments_at(entry: Entry, latents: torch.Tensor | list[torch.Tensor], fraction: float) -> dict[str, Any]:
    """The arguments with these latents, and this fraction of the way from noise to clean as their timestep.

    An argument that is the very tensor of the timestep, as the time of a second modality, moves with it.
    """
    arguments = entry.arguments()
    first, last = entry.noise
    old = arguments[entry.timestep]
    new = torch.full_like(old, first + fraction * (last - first))
    moved = {name: new if value is old else value for name, value in arguments.items()}
    return {**moved, entry.latents: latents}


def overlap(output: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a sampling loop combines of the two: the first channels where one has more, the last tokens of sequences.

    More channels come out where variances are predicted as well, more go in where conditions are joined to the
    latents, and a text that shares the sequence comes out before the image.
    """
    for axis, (out, held) in enumerate(zip(output.shape, latents.shape, strict=True)):
        size = min(out, held)
        last = output.ndim == 3 and axis == 1
        output = output.narrow(axis, out - size if last else 0, size)
        latents = latents.narrow(axis, held - size if last else 0, size)
    return output, latents
