"""Tiny parts of pipelines around a transformer of the zoo: autoencoders, ControlNets, schedulers and inputs.

Pictures have 16 x 16 pixels and are half as wide in latents where the pipeline allows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from PIL import Image
from torch import nn

from tests.models.zoo import AXES, FLUX, GAIN, HEADS, SANA, TEXT, WIDTH, WORDS, normal

PIXELS = 16
KINDS = ("prompt", "negative_prompt")
Made = dict[str, Any]
Maker = Callable[[], Made]


def given(*makers: Maker, **values: Any) -> Maker:
    """A function that makes all of these anew: dictionaries, and by name values or what makes them."""

    def make() -> Made:
        made = {name: value for maker in makers for name, value in maker().items()}
        return made | {name: value() if callable(value) else value for name, value in values.items()}

    return make


def awake(model: nn.Module) -> nn.Module:
    """The model with no projection left at zero, so that what it adds changes something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=GAIN / math.sqrt(parameter.shape[-1]))
    return model.eval()


# Inputs


def picture(side: int = PIXELS, seed: int = 0) -> Image.Image:
    return Image.fromarray((normal(side, side, 3, seed=seed).sigmoid() * 255).byte().numpy())


def half() -> Image.Image:
    """A mask of the left half."""
    mask = Image.new("L", (PIXELS, PIXELS))
    mask.paste(255, (0, 0, PIXELS // 2, PIXELS))
    return mask


def film(frames: int, side: int = PIXELS) -> Callable[[], list[Image.Image]]:
    return lambda: [picture(side, seed) for seed in range(frames)]


def of(side: int, frames: int | None = None) -> Maker:
    size = {"height": side, "width": side}
    return lambda: size if frames is None else {**size, "num_frames": frames}


def texts(masks: str = "", channels: int = TEXT, suffix: str = "_embeds", dtype: torch.dtype = torch.long) -> Maker:
    """Embeddings of a prompt and of a negative one; `masks` is how the names of their masks end."""

    def make() -> Made:
        made = {f"{kind}{suffix}": normal(1, WORDS, channels, seed=seed) for seed, kind in enumerate(KINDS)}
        return made | {f"{kind}{masks}": torch.ones(1, WORDS, dtype=dtype) for kind in KINDS if masks}

    return make


def text() -> Made:
    return {"prompt_embeds": normal(1, WORDS, TEXT)}


def pooled() -> Made:
    return {"pooled_prompt_embeds": normal(1, TEXT, seed=3)}


def both_pooled() -> Made:
    return {**pooled(), "negative_pooled_prompt_embeds": normal(1, TEXT, seed=4)}


def by_layer(suffix: str, *shape: int) -> Maker:
    return lambda: {f"{kind}{suffix}": normal(*shape, seed=5 + seed) for seed, kind in enumerate(KINDS)}


def listed() -> Made:
    return {name: [embeddings[0]] for name, embeddings in texts()().items()}


# Schedulers


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def ddim() -> Any:
    return diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def with_flow(vae: Callable[..., Any], *options: Any, **parts: Any) -> Maker:
    return given(**{"vae": lambda: vae(*options).eval(), "scheduler": flow, **parts})


# Autoencoders


def kl(channels: int = 4) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.1,
        scaling_factor=0.5,
    )


# fmt: off
def flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, norm_num_groups=4,
    )


def sana_vae() -> Any:
    return diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3,
        encoder_layers_per_block=(1,) * 3, decoder_layers_per_block=(1,) * 3, encoder_qkv_multiscales=((),) * 3,
        decoder_qkv_multiscales=((),) * 3, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        attention_head_dim=8, downsample_block_type="conv", upsample_block_type="interpolate", decoder_act_fns="silu",
        decoder_norm_types="rms_norm", scaling_factor=0.5,
    )


def qwen_vae(halvings: int = 1, width: int = 4, layers: int = 1) -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=width, z_dim=4, dim_mult=[1] * (halvings + 1), num_res_blocks=layers,
        temperal_downsample=[False] * halvings, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )


def hunyuan_image_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        spatial_compression_ratio=2, sample_size=PIXELS,
    )


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4, scale_factor_spatial=4,
    )


def cog_vae() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=2,
    )


def hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8,) * 4, layers_per_block=1,
        norm_num_groups=4,
    )


def hunyuan15_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo15(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        spatial_compression_ratio=2, temporal_compression_ratio=2,
    )


def ltx_vae() -> Any:
    stages = (True, True, False, False)
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=stages,
        decoder_spatio_temporal_scaling=stages, patch_size=1, patch_size_t=1,
    )


def mochi_vae() -> Any:
    return diffusers.AutoencoderKLMochi(
        latent_channels=4, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )


def allegro_vae() -> Any:
    return diffusers.AutoencoderKLAllegro(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2,
    )


def magvit() -> Any:
    return diffusers.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2,
    )


def ltx2_parts() -> Made:
    """Autoencoders of video and sound, what prepares the text for each, and what makes sound of a spectrogram."""
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), timestep_conditioning=False, patch_size=1, decoder_causal=False,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", mid_block_add_attention=False,
        mel_bins=8,
    )
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]],
    )
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH, text_proj_in_factor=1, video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split",
    )
    parts = {"vae": vae, "audio_vae": audio_vae, "vocoder": vocoder, "connectors": connectors}
    return {**{name: part.eval() for name, part in parts.items()}, "scheduler": flow()}


def stable_audio_parts() -> Made:
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=8,
        channel_multiples=[2, 4], sampling_rate=4,
    )
    projection = diffusers.StableAudioProjectionModel(TEXT, TEXT, min_value=0, max_value=32)
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_schedule="exponential", sigma_data=1.0, prediction_type="v_prediction",
    )
    return {"vae": vae.eval(), "projection_model": projection.eval(), "scheduler": scheduler}


# ControlNets


def flux_net() -> nn.Module:
    config = {**FLUX, "num_layers": 2, "num_single_layers": 2, "pooled_projection_dim": TEXT, "guidance_embeds": True}
    return awake(diffusers.FluxControlNetModel(**config))


def qwen_net() -> nn.Module:
    return awake(diffusers.QwenImageControlNetModel(
        **HEADS, in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=TEXT, axes_dims_rope=AXES,
    ))


def sd3_net() -> nn.Module:
    return awake(diffusers.SD3ControlNetModel(
        **HEADS, sample_size=8, in_channels=4, num_layers=2, joint_attention_dim=TEXT, caption_projection_dim=WIDTH,
        pooled_projection_dim=TEXT, pos_embed_max_size=8,
    ))


def hunyuan_net() -> nn.Module:
    return awake(diffusers.HunyuanDiT2DControlNetModel(
        **HEADS, in_channels=4, patch_size=2, sample_size=8, hidden_size=WIDTH, transformer_num_layers=8,
        cross_attention_dim=TEXT, cross_attention_dim_t5=TEXT, pooled_projection_dim=TEXT, text_len=WORDS,
        text_len_t5=WORDS, use_style_cond_and_image_meta_size=False,
    ))


def sana_net() -> nn.Module:
    return awake(diffusers.SanaControlNetModel(**{**SANA, "num_layers": 2}))


def z_image_net() -> nn.Module:
    return awake(diffusers.ZImageControlNetModel(
        control_layers_places=[0, 2], control_refiner_layers_places=[0, 2], control_in_dim=4, dim=WIDTH,
        n_refiner_layers=4, n_heads=2, n_kv_heads=2,
    ))


# What sees pictures


def clip_parts() -> Made:
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
    )
    size = {"height": 16, "width": 16}
    processor = transformers.CLIPImageProcessorPil(size=size, crop_size=size)
    return {"image_encoder": transformers.CLIPVisionModel(config).eval(), "image_processor": processor}


def siglip_parts() -> Made:
    config = transformers.SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
    )
    extractor = transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    return {"image_encoder": transformers.SiglipVisionModel(config).eval(), "feature_extractor": extractor}
# fmt: on


def adapted(pipe: Any) -> None:
    """Give FLUX.1 an IP-Adapter of four tokens for embeddings [1, 8], as its loader reads one from a file."""
    channels, tokens = 8, 4
    projection = {"proj.weight": normal(tokens * TEXT, channels), "proj.bias": torch.zeros(tokens * TEXT)}
    projection |= {"norm.weight": torch.ones(TEXT), "norm.bias": torch.zeros(TEXT)}
    adapter = {}
    for block in range(len(pipe.transformer.transformer_blocks)):
        for kind in ("k", "v"):
            adapter[f"{block}.to_{kind}_ip.weight"] = GAIN * normal(WIDTH, TEXT, seed=block)
            adapter[f"{block}.to_{kind}_ip.bias"] = torch.zeros(WIDTH)
    pipe.transformer._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])


def mixed_guidance() -> Any:
    return AdaptiveProjectedMixGuidance()


def plain_guidance() -> Any:
    return ClassifierFreeGuidance()
