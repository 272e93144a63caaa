"""Stable Diffusion 1.x and 2.x: one CLIP encoder, whose final states enter the UNet by cross-attention."""

from workbench.families.base import Encoder, Family
from workbench.families.unet import check_unet, default_size, latent_shape, pipeline_sites

SD: Family = Family(
    name="sd",
    pipelines=("StableDiffusionPipeline",),
    encoders=(Encoder("text_encoder", "tokenizer"),),
    denoiser="unet",
    sites=lambda pipeline, height, width: pipeline_sites(SD, pipeline, height, width),
    size=default_size,
    latents=latent_shape,
    check=check_unet,
    steps=50,
    guidance=7.5,
)
