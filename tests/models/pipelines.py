"""One tiny random pipeline for each family and task; nothing is fetched. Texts are given as embeddings.

Transformers are those of the zoo, everything else is in `parts.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from tests.models.parts import (
    Made,
    Maker,
    adapted,
    allegro_vae,
    both_pooled,
    by_layer,
    clip_parts,
    cog_vae,
    ddim,
    film,
    flux2_vae,
    flux_net,
    given,
    half,
    hunyuan15_vae,
    hunyuan_image_vae,
    hunyuan_net,
    hunyuan_vae,
    kl,
    listed,
    ltx2_parts,
    ltx_vae,
    magvit,
    mixed_guidance,
    mochi_vae,
    of,
    picture,
    plain_guidance,
    pooled,
    qwen_net,
    qwen_vae,
    sana_net,
    sana_vae,
    sd3_net,
    siglip_parts,
    stable_audio_parts,
    text,
    texts,
    unipc,
    wan_vae,
    with_flow,
    z_image_net,
)
from tests.models.zoo import TEXT, WIDTH, WORDS, build, normal
from tests.tiny import seeded


@dataclass(frozen=True)
class Task:
    """A pipeline.

    Attributes:
        pipeline: its class in diffusers.
        family: what its model is called.
        task: what it makes of what.
        transformer: class of its transformer.
        parts: makes its other components; those that it does not make are None.
        call: makes the arguments of a call.
        config: changes of the transformer in the zoo.
        finish: changes the pipeline after it was built.
    """

    pipeline: str
    family: str
    task: str
    transformer: str
    parts: Maker
    call: Maker
    config: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[Any], None] = lambda pipe: None

    @property
    def name(self) -> str:
        return f"{self.pipeline}: {self.task}"

    def build(self) -> Any:
        kind = getattr(diffusers, self.pipeline)
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        missing = {each.name: None for each in parameters if each.default is each.empty}
        with seeded(1):
            parts: Made = {"transformer": build(self.transformer, self.config), **self.parts()}
        pipe = kind(**{**missing, **parts})
        self.finish(pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe


TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINTING, EDITING = "text to image", "image to image", "inpainting", "editing"
CONTROL, CONTROLNET = "a control picture", "ControlNet"
TEXT_TO_VIDEO, IMAGE_TO_VIDEO, VIDEO_TO_VIDEO = "text to video", "image to video", "video to video"

# six of eight steps, so that masks are the same with and without it
LATE = {"strength": 0.75, "num_inference_steps": 8}
MASK, QWEN_MASK = "_attention_mask", "_embeds_mask"
MASKED = texts(MASK)
EXACT = {"use_resolution_binning": False}
NO_NEGATIVE = {"negative_prompt": None}

SMALL, VIDEO, LARGE, CLIP = of(16), of(16, 3), of(64), of(64, 5)
WAN_CLIP = given(texts(), of(32, 5), guidance_scale=3.0)

STILL, STILL_2 = with_flow(kl), with_flow(kl, 2)
QWEN, WAN, HUNYUAN, LTX = with_flow(qwen_vae), with_flow(wan_vae), with_flow(hunyuan_vae), with_flow(ltx_vae)
FLUX_TEXT = given(text, pooled, SMALL)
QWEN_TEXT = given(texts(QWEN_MASK), SMALL, true_cfg_scale=3.0)
SD3_TEXT = given(texts(), both_pooled, SMALL, guidance_scale=3.0)
SANA_TEXT = given(MASKED, of(32), **NO_NEGATIVE, **EXACT)
HUNYUAN_TEXT = given(MASKED, both_pooled, CLIP)
HUNYUAN_DIT_TEXT = given(
    MASKED, by_layer("_embeds_2", 1, WORDS, TEXT), texts("_attention_mask_2"), SMALL, original_size=(16, 16), **EXACT
)
TWO_TEXTS = given(texts(QWEN_MASK), texts("_embeds_mask_2", suffix="_embeds_2"))
Z_TEXT = given(listed, SMALL, guidance_scale=3.0)
KANDINSKY_TEXT = given(
    texts(suffix="_embeds_qwen"),
    by_layer("_embeds_clip", 1, TEXT),
    prompt_cu_seqlens=lambda: torch.tensor([0, WORDS], dtype=torch.int32),
    negative_prompt_cu_seqlens=lambda: torch.tensor([0, WORDS], dtype=torch.int32),
)
LTX_TEXT = given(MASKED, of(32, 9))
SANA_CLIP = given(MASKED, of(32), frames=5, **NO_NEGATIVE, **EXACT)

FLUX_T, FLUX2_T = "FluxTransformer2DModel", "Flux2Transformer2DModel"
QWEN_T, SD3_T, SANA_T = "QwenImageTransformer2DModel", "SD3Transformer2DModel", "SanaTransformer2DModel"
CHROMA_T, Z_T, HUNYUAN_DIT_T = "ChromaTransformer2DModel", "ZImageTransformer2DModel", "HunyuanDiT2DModel"
WAN_T, COG_T, HUNYUAN_T = "WanTransformer3DModel", "CogVideoXTransformer3DModel", "HunyuanVideoTransformer3DModel"
LTX_T, SKYREELS_T, SANA_VIDEO_T = (
    "LTXVideoTransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "SanaVideoTransformer3DModel",
)
COG = given(vae=lambda: cog_vae().eval(), scheduler=lambda: diffusers.CogVideoXDDIMScheduler())
COG_CONFIG = {"sample_frames": 3, "temporal_compression_ratio": 2, "use_rotary_positional_embeddings": True}
BLIND = {"image_dim": None, "added_kv_proj_dim": None}  # Wan without an encoder of pictures


def small_by_default(pipe: Any) -> None:
    pipe.default_sample_size = 8


def in_small_sizes(pipe: Any) -> None:
    pipe.resolutions = [(16, 16)]


# fmt: off
TASKS = (
    Task("FluxPipeline", "FLUX.1", TEXT_TO_IMAGE, FLUX_T, STILL_2, FLUX_TEXT),
    Task(
        "FluxPipeline", "FLUX.1", "IP-Adapter", FLUX_T, STILL_2,
        given(
            FLUX_TEXT, ip_adapter_image_embeds=lambda: [normal(1, 1, 8, seed=5)],
            negative_ip_adapter_image_embeds=lambda: [torch.zeros(1, 1, 8)],
        ),
        finish=adapted,
    ),
    Task(
        "FluxPipeline", "FLUX.1", "two calls in each step", FLUX_T, STILL_2,
        given(FLUX_TEXT, texts(), both_pooled, true_cfg_scale=3.0),
    ),
    Task(
        "FluxImg2ImgPipeline", "FLUX.1", IMAGE_TO_IMAGE, FLUX_T, STILL_2, given(FLUX_TEXT, image=picture, **LATE),
    ),
    Task(
        "FluxInpaintPipeline", "FLUX.1", INPAINTING, FLUX_T, STILL_2,
        given(FLUX_TEXT, image=picture, mask_image=half, **LATE),
    ),
    Task(
        "FluxFillPipeline", "FLUX.1", "filling", FLUX_T, STILL_2,
        given(FLUX_TEXT, image=picture, mask_image=half), {"in_channels": 32, "out_channels": 8},
    ),
    Task(
        "FluxKontextPipeline", "FLUX.1", EDITING, FLUX_T, STILL_2,
        given(FLUX_TEXT, image=picture, max_area=256, _auto_resize=False),
    ),
    Task(
        "FluxControlNetPipeline", "FLUX.1", CONTROLNET, FLUX_T, with_flow(kl, 2, controlnet=flux_net),
        given(FLUX_TEXT, control_image=picture),
    ),
    Task(
        "FluxControlPipeline", "FLUX.1", CONTROL, FLUX_T, STILL_2, given(FLUX_TEXT, control_image=picture),
        {"in_channels": 16, "out_channels": 8},
    ),
    Task("Flux2Pipeline", "FLUX.2", TEXT_TO_IMAGE, FLUX2_T, with_flow(flux2_vae), given(text, SMALL)),
    Task(
        "Flux2Pipeline", "FLUX.2", EDITING, FLUX2_T, with_flow(flux2_vae),
        given(text, SMALL, image=lambda: picture(64)),
    ),
    Task(
        "Flux2KleinPipeline", "FLUX.2 Klein", TEXT_TO_IMAGE, FLUX2_T, with_flow(flux2_vae),
        given(texts(), SMALL, guidance_scale=3.0),
    ),
    Task("QwenImagePipeline", "Qwen-Image", TEXT_TO_IMAGE, QWEN_T, QWEN, QWEN_TEXT),
    Task(
        "QwenImageImg2ImgPipeline", "Qwen-Image", IMAGE_TO_IMAGE, QWEN_T, QWEN,
        given(QWEN_TEXT, image=picture, **LATE),
    ),
    Task(
        "QwenImageInpaintPipeline", "Qwen-Image", INPAINTING, QWEN_T, QWEN,
        given(QWEN_TEXT, image=picture, mask_image=half, **LATE),
    ),
    # it makes a million pixels of each picture, whatever its size
    Task(
        "QwenImageEditPipeline", "Qwen-Image", EDITING, QWEN_T, with_flow(qwen_vae, 7, 1, 0),
        given(QWEN_TEXT, of(1024), image=picture),
    ),
    Task(
        "QwenImageControlNetPipeline", "Qwen-Image", CONTROLNET, QWEN_T, with_flow(qwen_vae, controlnet=qwen_net),
        given(QWEN_TEXT, control_image=picture),
    ),
    Task("StableDiffusion3Pipeline", "Stable Diffusion 3", TEXT_TO_IMAGE, SD3_T, STILL, SD3_TEXT),
    Task(
        "StableDiffusion3Img2ImgPipeline", "Stable Diffusion 3", IMAGE_TO_IMAGE, SD3_T, STILL,
        given(SD3_TEXT, image=picture, **LATE),
    ),
    Task(
        "StableDiffusion3InpaintPipeline", "Stable Diffusion 3", INPAINTING, SD3_T, with_flow(kl, 16),
        given(SD3_TEXT, image=picture, mask_image=half, **LATE), {"in_channels": 16, "out_channels": 16},
    ),
    Task(
        "StableDiffusion3ControlNetPipeline", "Stable Diffusion 3", CONTROLNET, SD3_T,
        with_flow(kl, controlnet=sd3_net), given(SD3_TEXT, control_image=picture),
    ),
    Task(
        "PixArtSigmaPipeline", "PixArt", TEXT_TO_IMAGE, "PixArtTransformer2DModel",
        given(STILL, scheduler=ddim), given(MASKED, SMALL, **NO_NEGATIVE, **EXACT),
    ),
    Task("SanaPipeline", "Sana", TEXT_TO_IMAGE, SANA_T, with_flow(sana_vae), SANA_TEXT),
    Task(
        "SanaControlNetPipeline", "Sana", CONTROLNET, SANA_T, with_flow(sana_vae, controlnet=sana_net),
        given(SANA_TEXT, control_image=lambda: picture(32)),
    ),
    Task(
        "SanaSprintPipeline", "Sana Sprint", TEXT_TO_IMAGE, SANA_T,
        with_flow(sana_vae, scheduler=lambda: diffusers.SCMScheduler()),
        given(text, of(32), prompt_attention_mask=lambda: torch.ones(1, WORDS), intermediate_timesteps=None, **EXACT),
        {"guidance_embeds": True},
    ),
    Task(
        "HunyuanDiTPipeline", "HunyuanDiT", TEXT_TO_IMAGE, HUNYUAN_DIT_T,
        given(STILL, scheduler=ddim, requires_safety_checker=False), HUNYUAN_DIT_TEXT,
    ),
    Task(
        "HunyuanDiTControlNetPipeline", "HunyuanDiT", CONTROLNET, HUNYUAN_DIT_T,
        given(STILL, scheduler=ddim, requires_safety_checker=False, controlnet=hunyuan_net),
        given(HUNYUAN_DIT_TEXT, control_image=picture),
    ),
    Task(
        "Lumina2Pipeline", "Lumina 2", TEXT_TO_IMAGE, "Lumina2Transformer2DModel", STILL,
        given(MASKED, LARGE, **NO_NEGATIVE),
    ),
    Task(
        "LuminaPipeline", "Lumina", TEXT_TO_IMAGE, "LuminaNextDiT2DModel", STILL,
        given(MASKED, LARGE, **NO_NEGATIVE),
    ),
    Task(
        "HiDreamImagePipeline", "HiDream", TEXT_TO_IMAGE, "HiDreamImageTransformer2DModel", STILL,
        given(texts(suffix="_embeds_t5"), by_layer("_embeds_llama3", 8, 1, WORDS, TEXT), both_pooled, SMALL),
        finish=small_by_default,
    ),
    Task(
        "ChromaPipeline", "Chroma", TEXT_TO_IMAGE, CHROMA_T, STILL_2, given(texts(MASK, dtype=torch.bool), SMALL),
    ),
    Task(
        "ChromaImg2ImgPipeline", "Chroma", IMAGE_TO_IMAGE, CHROMA_T, STILL_2,
        given(texts(MASK, dtype=torch.bool), SMALL, image=picture, **LATE),
    ),
    Task("ZImagePipeline", "Z-Image", TEXT_TO_IMAGE, Z_T, STILL, Z_TEXT),
    Task("ZImageImg2ImgPipeline", "Z-Image", IMAGE_TO_IMAGE, Z_T, STILL, given(Z_TEXT, image=picture, **LATE)),
    Task(
        "ZImageInpaintPipeline", "Z-Image", INPAINTING, Z_T, STILL,
        given(Z_TEXT, image=picture, mask_image=half, **LATE),
    ),
    Task(
        "ZImageControlNetPipeline", "Z-Image", CONTROLNET, Z_T, with_flow(kl, controlnet=z_image_net),
        given(Z_TEXT, control_image=picture),
    ),
    Task(
        "AuraFlowPipeline", "AuraFlow", TEXT_TO_IMAGE, "AuraFlowTransformer2DModel", STILL, given(MASKED, SMALL),
    ),
    Task("CogView4Pipeline", "CogView 4", TEXT_TO_IMAGE, "CogView4Transformer2DModel", STILL, given(texts(), SMALL)),
    Task(
        "CogView4ControlPipeline", "CogView 4", CONTROL, "CogView4Transformer2DModel", STILL,
        given(texts(), SMALL, control_image=picture), {"in_channels": 8},
    ),
    Task(
        "CogView3PlusPipeline", "CogView 3", TEXT_TO_IMAGE, "CogView3PlusTransformer2DModel",
        with_flow(kl, scheduler=lambda: diffusers.CogVideoXDDIMScheduler()), given(texts(), SMALL),
    ),
    Task(
        "PRXPipeline", "PRX", TEXT_TO_IMAGE, "PRXTransformer2DModel", STILL,
        given(MASKED, SMALL, **NO_NEGATIVE, **EXACT),
    ),
    Task("BriaPipeline", "Bria", TEXT_TO_IMAGE, "BriaTransformer2DModel", STILL_2, given(texts(), SMALL)),
    Task(
        "OvisImagePipeline", "Ovis", TEXT_TO_IMAGE, "OvisImageTransformer2DModel", STILL_2,
        given(texts(), SMALL, **NO_NEGATIVE),
    ),
    Task(
        "HunyuanImagePipeline", "HunyuanImage", TEXT_TO_IMAGE, "HunyuanImageTransformer2DModel",
        with_flow(hunyuan_image_vae, guider=mixed_guidance), given(TWO_TEXTS, SMALL),
    ),
    Task(
        "Kandinsky5T2IPipeline", "Kandinsky 5", TEXT_TO_IMAGE, "Kandinsky5Transformer3DModel", STILL,
        given(KANDINSKY_TEXT, SMALL), finish=in_small_sizes,
    ),
    Task(
        "Krea2Pipeline", "Krea 2", TEXT_TO_IMAGE, "Krea2Transformer2DModel", QWEN,
        given(texts(QWEN_MASK, dtype=torch.bool), by_layer("_embeds", 1, WORDS, 4, TEXT), SMALL), {"in_channels": 16},
    ),
    Task(
        "NucleusMoEImagePipeline", "Nucleus-Image", TEXT_TO_IMAGE, "NucleusMoEImageTransformer2DModel", QWEN,
        given(texts(QWEN_MASK), SMALL),
    ),
    Task(
        "ErnieImagePipeline", "ERNIE-Image", TEXT_TO_IMAGE, "ErnieImageTransformer2DModel", with_flow(flux2_vae),
        given(listed, SMALL, use_pe=False),
    ),
    Task("WanPipeline", "Wan", TEXT_TO_VIDEO, WAN_T, WAN, WAN_CLIP, BLIND),
    Task(
        "WanImageToVideoPipeline", "Wan", IMAGE_TO_VIDEO, WAN_T, given(WAN, clip_parts),
        given(WAN_CLIP, image=lambda: picture(32)), {"in_channels": 12},
    ),
    Task(
        "WanImageToVideoPipeline", "Wan", "first and last frame", WAN_T, given(WAN, clip_parts),
        given(WAN_CLIP, image=lambda: picture(32), last_image=lambda: picture(32, 1)),
        {"in_channels": 12, "pos_embed_seq_len": 10},
    ),
    Task(
        "WanVideoToVideoPipeline", "Wan", VIDEO_TO_VIDEO, WAN_T, WAN,
        given(texts(), of(32), guidance_scale=3.0, video=film(5, 32), **LATE), BLIND,
    ),
    Task(
        "WanVACEPipeline", "Wan", "control videos", "WanVACETransformer3DModel", WAN,
        given(WAN_CLIP, video=film(5, 32)), {"vace_in_channels": 24},
    ),
    Task(
        "LucyEditPipeline", "Wan", EDITING, WAN_T, WAN, given(WAN_CLIP, video=film(5, 32)), {"in_channels": 8, **BLIND},
    ),
    Task(
        "ChronoEditPipeline", "ChronoEdit", EDITING, "ChronoEditTransformer3DModel", given(WAN, clip_parts),
        given(WAN_CLIP, image=lambda: picture(32)), {"in_channels": 12, "image_dim": 8, "added_kv_proj_dim": WIDTH},
    ),
    Task("CogVideoXPipeline", "CogVideoX", TEXT_TO_VIDEO, COG_T, COG, given(texts(), VIDEO), COG_CONFIG),
    Task(
        "CogVideoXImageToVideoPipeline", "CogVideoX", IMAGE_TO_VIDEO, COG_T, COG,
        given(texts(), VIDEO, image=picture), {**COG_CONFIG, "in_channels": 8},
    ),
    Task(
        "CogVideoXVideoToVideoPipeline", "CogVideoX", VIDEO_TO_VIDEO, COG_T, COG,
        given(texts(), SMALL, video=film(3), **LATE), COG_CONFIG,
    ),
    Task(
        "CogVideoXFunControlPipeline", "CogVideoX", "a control video", COG_T, COG,
        given(texts(), SMALL, control_video=film(3)), {**COG_CONFIG, "in_channels": 8},
    ),
    Task("HunyuanVideoPipeline", "HunyuanVideo", TEXT_TO_VIDEO, HUNYUAN_T, HUNYUAN, HUNYUAN_TEXT),
    Task(
        "HunyuanVideoImageToVideoPipeline", "HunyuanVideo", IMAGE_TO_VIDEO, HUNYUAN_T, HUNYUAN,
        given(HUNYUAN_TEXT, image=lambda: picture(64), true_cfg_scale=3.0), {"image_condition_type": "token_replace"},
    ),
    Task(
        "HunyuanSkyreelsImageToVideoPipeline", "HunyuanVideo", IMAGE_TO_VIDEO, HUNYUAN_T, HUNYUAN,
        given(HUNYUAN_TEXT, image=lambda: picture(64), true_cfg_scale=3.0), {"in_channels": 8},
    ),
    # two requests of the scheduler in one call
    Task(
        "HunyuanVideoFramepackPipeline", "FramePack", IMAGE_TO_VIDEO, "HunyuanVideoFramepackTransformer3DModel",
        given(HUNYUAN, siglip_parts),
        given(HUNYUAN_TEXT, num_frames=9, latent_window_size=2, image=lambda: picture(64)),
    ),
    Task(
        "HunyuanVideo15Pipeline", "HunyuanVideo 1.5", TEXT_TO_VIDEO, "HunyuanVideo15Transformer3DModel",
        with_flow(hunyuan15_vae, guider=plain_guidance), given(TWO_TEXTS, VIDEO), {"in_channels": 9},
    ),
    Task("LTXPipeline", "LTX-Video", TEXT_TO_VIDEO, LTX_T, LTX, LTX_TEXT),
    Task(
        "LTXImageToVideoPipeline", "LTX-Video", IMAGE_TO_VIDEO, LTX_T, LTX, given(LTX_TEXT, image=lambda: picture(32)),
    ),
    Task("LTXConditionPipeline", "LTX-Video", "conditions", LTX_T, LTX, given(LTX_TEXT, image=lambda: picture(32))),
    Task(
        "LTX2Pipeline", "LTX-2", "text to video and audio", "LTX2VideoTransformer3DModel", ltx2_parts,
        given(
            texts(MASK, WIDTH), of(32, 5), frame_rate=25.0, stg_scale=0.0, modality_scale=1.0, audio_stg_scale=0.0,
            audio_modality_scale=1.0, spatio_temporal_guidance_blocks=None,
        ),
        {"in_channels": 4, "out_channels": 4, "audio_in_channels": 4, "audio_out_channels": 4,
         "caption_channels": WIDTH},
    ),
    Task(
        "StableAudioPipeline", "Stable Audio", "text to audio", "StableAudioDiTModel", stable_audio_parts,
        given(
            texts(), audio_end_in_s=5.0, attention_mask=lambda: torch.ones(1, WORDS),
            negative_attention_mask=lambda: torch.ones(1, WORDS),
        ),
        {"global_states_input_dim": 2 * TEXT},
    ),
    Task(
        "MochiPipeline", "Mochi", TEXT_TO_VIDEO, "MochiTransformer3DModel",
        with_flow(mochi_vae, scheduler=lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)),
        given(MASKED, of(64, 7)),
    ),
    Task(
        "AllegroPipeline", "Allegro", TEXT_TO_VIDEO, "AllegroTransformer3DModel",
        given(vae=lambda: allegro_vae().eval(), scheduler=ddim),
        given(MASKED, of(64, 8), clean_caption=False, **NO_NEGATIVE),
        {"attention_head_dim": 24, "cross_attention_dim": 48},
    ),
    Task(
        "LattePipeline", "Latte", TEXT_TO_VIDEO, "LatteTransformer3DModel", given(STILL, scheduler=ddim),
        given(texts(), SMALL, video_length=2, clean_caption=False, **NO_NEGATIVE),
    ),
    Task("SkyReelsV2Pipeline", "SkyReels V2", TEXT_TO_VIDEO, SKYREELS_T, WAN, WAN_CLIP),
    # a scheduler of its own for each frame of the latents
    Task(
        "SkyReelsV2DiffusionForcingPipeline", "SkyReels V2", "diffusion forcing", SKYREELS_T,
        given(WAN, scheduler=unipc), given(WAN_CLIP, prompt=None, base_num_frames=5, overlap_history=None),
    ),
    Task("SanaVideoPipeline", "Sana Video", TEXT_TO_VIDEO, SANA_VIDEO_T, WAN, SANA_CLIP),
    Task(
        "SanaImageToVideoPipeline", "Sana Video", IMAGE_TO_VIDEO, SANA_VIDEO_T, WAN,
        given(SANA_CLIP, image=lambda: picture(32)),
    ),
    Task(
        "Kandinsky5T2VPipeline", "Kandinsky 5", TEXT_TO_VIDEO, "Kandinsky5Transformer3DModel", HUNYUAN,
        given(KANDINSKY_TEXT, CLIP),
    ),
    Task(
        "EasyAnimatePipeline", "EasyAnimate", TEXT_TO_VIDEO, "EasyAnimateTransformer3DModel", with_flow(magvit),
        given(MASKED, CLIP),
    ),
)
# fmt: on

LEFT_OUT: dict[str, str] = {
    "AceStepPipeline": "takes no embeddings of a prompt: it needs a language model and an encoder of conditions",
    "ChromaInpaintPipeline": "stops in diffusers: it asks Chroma's config for guidance_embeds, which is not there",
    "ConsisIDPipeline": "needs OpenCV, and models that find and describe faces",
    "CosmosTextToWorldPipeline": "needs cosmos_guardrail, which fetches models",
    "LongCatImagePipeline": "takes no embeddings without a prompt: it needs a language model",
    "OmniGenPipeline": "takes no embeddings of a prompt: it needs a tokenizer of its own",
    "QwenImageEditPlusPipeline": "as QwenImageEditPipeline, with a million pixels for each of several pictures",
}
