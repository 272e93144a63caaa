"""Stable Diffusion XL: two CLIP encoders, penultimate states joined; the second's pooled vector enters beside the timestep.

Encoder 1's last layer and final states are read by nothing. Encoder 2's act through the pooled vector alone.
"""

from workbench.families.base import Encoder, Family
from workbench.families.unet import check_unet, default_size, latent_shape, pipeline_sites

SDXL: Family = Family(
    name="sdxl",
    pipelines=("StableDiffusionXLPipeline",),
    encoders=(
        Encoder("text_encoder", "tokenizer", skipped=1),
        Encoder("text_encoder_2", "tokenizer_2", skipped=1, pooled=True),
    ),
    denoiser="unet",
    sites=lambda pipeline, height, width: pipeline_sites(SDXL, pipeline, height, width),
    size=default_size,
    latents=latent_shape,
    check=check_unet,
    steps=50,
    guidance=5.0,
)
