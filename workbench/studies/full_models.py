"""Full-size models by their public configurations: on PyTorch's meta device, where nothing takes memory, and narrow copies.

A narrow copy has as many layers of each kind, and so the same sites, but few channels: what an experiment would draw on it is what it
would draw on the model. Weights are random; nothing is downloaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from workbench.studies import tiny, tiny_transformers

UNET = dict(
    sample_size=64,
    layers_per_block=2,
    block_out_channels=(320, 640, 1280, 1280),
    cross_attention_dim=768,
    attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
CLIP_L = dict(
    vocab_size=49408,
    max_position_embeddings=77,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=768,
)
BIG_G = dict(
    vocab_size=49408,
    max_position_embeddings=77,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
)
T5_XXL = dict(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)
NEWER_VAE = dict(VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
XL_UNET = dict(
    sample_size=128,
    layers_per_block=2,
    block_out_channels=(320, 640, 1280),
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    use_linear_projection=True,
    transformer_layers_per_block=(1, 2, 10),
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
)
SD3_MEDIUM = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=24,
    attention_head_dim=64,
    num_attention_heads=24,
    joint_attention_dim=4096,
    caption_projection_dim=1536,
    pooled_projection_dim=2048,
    pos_embed_max_size=192,
)
FLUX_DEV = dict(
    in_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
)
PATCHES = 64 * 64  # of FLUX's pictures of 1024 pixels, as of SD3's


@dataclass(frozen=True)
class FullModel:
    """A full-size model.

    parts: its modules by name, made under the device that is current. given: what its denoiser is called with, for so many rows.
    latents: of a picture, (channel, y, x). tokens: that each text encoder reads. halves: 2 where guidance doubles the batch.
    narrow: the copy.
    """

    pixels: int
    parts: Callable[[], dict[str, nn.Module]]
    given: Callable[[int], dict[str, Any]]
    latents: tuple[int, int, int]
    tokens: Mapping[str, int]
    halves: int
    narrow: Callable[[], DiffusionPipeline]

    def rows(self, images: int) -> dict[str, Any]:
        """What the denoiser is called with for so many images, guided."""
        return self.given(self.halves * images)


def clip(config: Mapping[str, Any], kind: type = CLIPTextModelWithProjection) -> nn.Module:
    return kind(CLIPTextConfig(**config))


def sd15_parts() -> dict[str, nn.Module]:
    unet = UNet2DConditionModel(**UNET)
    return dict(unet=unet, vae=AutoencoderKL(**VAE), text_encoder=clip(CLIP_L, CLIPTextModel))


def sdxl_parts() -> dict[str, nn.Module]:
    both = dict(text_encoder=clip(CLIP_L, CLIPTextModel), text_encoder_2=clip(BIG_G))
    return dict(unet=UNet2DConditionModel(**XL_UNET), vae=AutoencoderKL(**VAE | dict(sample_size=1024)), **both)


def sd3_parts() -> dict[str, nn.Module]:
    three = dict(
        text_encoder=clip(CLIP_L), text_encoder_2=clip(BIG_G), text_encoder_3=T5EncoderModel(T5Config(**T5_XXL))
    )
    return dict(transformer=SD3Transformer2DModel(**SD3_MEDIUM), vae=AutoencoderKL(**NEWER_VAE), **three)


def flux_parts() -> dict[str, nn.Module]:
    both = dict(text_encoder=clip(CLIP_L, CLIPTextModel), text_encoder_2=T5EncoderModel(T5Config(**T5_XXL)))
    return dict(transformer=FluxTransformer2DModel(**FLUX_DEV), vae=AutoencoderKL(**NEWER_VAE), **both)


def sd15_given(rows: int) -> dict[str, Any]:
    return dict(
        sample=torch.empty(rows, 4, 64, 64),
        timestep=torch.empty(rows),
        encoder_hidden_states=torch.empty(rows, 77, 768),
    )


def sdxl_given(rows: int) -> dict[str, Any]:
    added = dict(text_embeds=torch.empty(rows, 1280), time_ids=torch.empty(rows, 6))
    return dict(
        sample=torch.empty(rows, 4, 128, 128),
        timestep=torch.empty(rows),
        encoder_hidden_states=torch.empty(rows, 77, 2048),
        added_cond_kwargs=added,
    )


def sd3_given(rows: int) -> dict[str, Any]:
    return dict(
        hidden_states=torch.empty(rows, 16, 128, 128),
        timestep=torch.empty(rows),
        encoder_hidden_states=torch.empty(rows, 77 + 256, 4096),
        pooled_projections=torch.empty(rows, 2048),
    )


def flux_given(rows: int) -> dict[str, Any]:
    return dict(
        hidden_states=torch.empty(rows, PATCHES, 64),
        timestep=torch.empty(rows),
        guidance=torch.empty(rows),
        encoder_hidden_states=torch.empty(rows, 512, 4096),
        pooled_projections=torch.empty(rows, 768),
        img_ids=torch.empty(PATCHES, 3),
        txt_ids=torch.empty(512, 3),
    )


def deepened(pipeline: DiffusionPipeline, scheduler=None) -> DiffusionPipeline:
    """A tiny pipeline with as many layers of text encoders as the full ones have."""
    depths = dict(CLIPTextModel=12, CLIPTextModelWithProjection=12, T5EncoderModel=24)
    deeper: dict[str, Any] = {}
    for number, name in enumerate(("text_encoder", "text_encoder_2", "text_encoder_3")):
        if (old := getattr(pipeline, name, None)) is None:
            continue
        layers, tokenizer = depths[type(old).__name__], getattr(pipeline, name.replace("text_encoder", "tokenizer"))
        if isinstance(old, T5EncoderModel):
            deeper[name] = tiny_transformers.t5(tokenizer, old.config.d_model, layers=layers)
        else:
            layers = BIG_G["num_hidden_layers"] if number == 1 else layers
            width = old.config.hidden_size
            deeper[name] = tiny.text_encoder(pipeline.tokenizer, width, type(old), layers=layers)
    pipeline.register_modules(**deeper)
    if scheduler is not None:
        pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def narrow_sd15() -> DiffusionPipeline:
    unet = UNET | dict(sample_size=8, block_out_channels=(8, 8, 16, 16), cross_attention_dim=16, attention_head_dim=2)
    return deepened(tiny.sd(unet), tiny.scheduler("pndm"))


def narrow_sdxl() -> DiffusionPipeline:
    few = dict(sample_size=8, block_out_channels=(8, 16, 16), cross_attention_dim=40, attention_head_dim=(1, 2, 2))
    added = dict(addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24)
    return deepened(tiny.sdxl(XL_UNET | few | added), tiny.scheduler("euler"))


def narrow_sd3() -> DiffusionPipeline:
    return deepened(tiny_transformers.stable_diffusion_3(with_t5=True, num_layers=SD3_MEDIUM["num_layers"]))


def narrow_flux() -> DiffusionPipeline:
    depth = {name: FLUX_DEV[name] for name in ("num_layers", "num_single_layers")}
    return deepened(tiny_transformers.flux(**depth))


CLIPS = dict(text_encoder=77)
FULL = {
    "SD 1.5": FullModel(512, sd15_parts, sd15_given, (4, 64, 64), CLIPS, 2, narrow_sd15),
    "SDXL": FullModel(1024, sdxl_parts, sdxl_given, (4, 128, 128), CLIPS | dict(text_encoder_2=77), 2, narrow_sdxl),
    "SD3 medium": FullModel(
        1024,
        sd3_parts,
        sd3_given,
        (16, 128, 128),
        CLIPS | dict(text_encoder_2=77, text_encoder_3=256),
        2,
        narrow_sd3,
    ),
    "FLUX.1 dev": FullModel(
        1024, flux_parts, flux_given, (16, 128, 128), CLIPS | dict(text_encoder_2=512), 1, narrow_flux
    ),
}


def random_pipeline(name: str, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    """A full-size model with random weights, between the narrow copy's tokenizers, of 77 tokens, and its scheduler."""
    narrow, before = FULL[name].narrow(), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            parts = {each: part.eval() for each, part in FULL[name].parts().items()}
    finally:
        torch.set_default_dtype(before)
    for each in ("tokenizer", "tokenizer_2"):
        if each in narrow.components:
            narrow.components[each].model_max_length = 77
    return type(narrow)(**narrow.components | parts)
