"""DeepFloyd IF, stage I: a UNet that draws 64 x 64 pixels themselves, of what T5 says of 77 tokens.

The text comes in by three ways: projected, as keys and values that are added to self-attention's, in most models behind a norm of each
layer's own; and pooled, beside the timestep. The UNet predicts the noise and, behind it, a variance that its scheduler reads.
"""

from dataclasses import replace
from typing import Any

import torch

from workbench.families.base import POOLED, TEXT, Encoder, Family, Reading, Site
from workbench.families.picture import between_steps, grid_of
from workbench.families.t5 import t5_sites
from workbench.families.unet import unet_sites

TOKENS = 77  # that the pipeline reads, whatever the tokenizer would
LEARNED = ("learned", "learned_range")
SPLITTING = ("DDPMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")  # noise from variance
BLOCKS = (
    "ResnetDownsampleBlock2D",
    "SimpleCrossAttnDownBlock2D",
    "UNetMidBlock2DSimpleCrossAttn",
    "SimpleCrossAttnUpBlock2D",
    "ResnetUpsampleBlock2D",
)


def size(pipeline) -> tuple[int, int]:
    """Height and width in pixels that the pipeline draws when not told."""
    side = pipeline.unet.config.sample_size
    return side, side


def shape(pipeline, height: int, width: int) -> tuple[int, int, int]:
    """Channels, rows and columns of what is denoised: pixels."""
    halvings = sum(bool(block.downsamplers) for block in pipeline.unet.down_blocks)
    return pipeline.unet.config.in_channels, *grid_of(height, width, 1, 2**halvings)


def readings(family: Family, pipeline) -> tuple[Reading, ...]:
    """T5's tokens."""
    return (Reading(("tokenizer",), TOKENS),)


def encode(pipeline, prompts: str | list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States as the denoiser is given them, and what it pools of them."""
    states, _ = pipeline.encode_prompt(prompts, False, device=pipeline.device, clean_caption=True)
    unet = pipeline.unet
    pooled = None if unet.config.addition_embed_type is None else unet.add_embedding(states.to(unet.dtype))
    return states, pooled


def given(pipeline, site: Site, states: torch.Tensor) -> torch.Tensor:
    """What a site's module is given for a prompt of these states: at attention they are projected, then normed by the layer's own norm."""
    if site.place == "unet":
        return states
    projected = pipeline.unet.encoder_hid_proj(states)
    if site.kind == "cross.context":
        return projected
    attention = pipeline.unet.get_submodule(site.module.partition(".")[2].rpartition(".")[0])
    return projected if attention.norm_cross is None else attention.norm_encoder_hidden_states(projected)


def schedule(pipeline, steps: int, height: int, width: int) -> dict[str, Any]:
    """Nothing beside their number; ValueError for a scheduler that does not take what the UNet predicts."""
    scheduler = pipeline.scheduler
    name, variance = type(scheduler).__name__, scheduler.config.get("variance_type", "none")
    if variance == "none":
        why = "has no variance_type, which the pipeline asks for"
    elif variance in LEARNED and name not in SPLITTING:
        why = f"does not part the noise from the variance that the UNet predicts with it (variance_type={variance!r})"
    else:
        return {}
    raise ValueError(
        f"the scheduler {name} {why}; set pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, "
        f"variance_type='learned_range'), or DPMSolverMultistepScheduler's; known are {', '.join(SPLITTING)}"
    )


def pictures(pipeline, output) -> tuple[torch.Tensor, list[bool] | None]:
    """Pictures of the pixels that were denoised, which the pipeline gives as they are, unchecked; and what its safety checker says."""
    images = (output.images / 2 + 0.5).clamp(0, 1)
    if pipeline.safety_checker is None:
        return images, None
    with torch.no_grad():
        pixels = images.detach().cpu().permute(0, 2, 3, 1).float().numpy().copy()
        _, *flags = pipeline.run_safety_checker(pixels, images.device, images.dtype)
    return images, [any(of_one) for of_one in zip(*flags)]


def sites(pipeline, height: int, width: int) -> list[Site]:
    """All sites, in execution order."""
    (encoder,) = DEEPFLOYD.encoders
    unet, (channels, *grid) = pipeline.unet, shape(pipeline, height, width)
    config = unet.config
    base = Site("", "denoiser", "unet", "unet", "", "", "output", TEXT, (), tokenizer=encoder.tokenizer, from_text=True)

    def site(kind: str, module: str, *sizes: int, **facts) -> Site:
        return replace(base, name=f"unet.{kind}", kind=kind, module=f"unet.{module}", sizes=sizes, **facts)

    made = [*t5_sites(pipeline, encoder, TOKENS)]
    if config.addition_embed_type is not None:
        made.append(site("pooled", "add_embedding", unet.add_embedding.proj.out_features, axes=POOLED, tokenizer=None))
    made.append(site("context", "encoder_hid_proj", TOKENS, config.encoder_hid_dim, port="input"))
    made.append(site("context_embedder", "encoder_hid_proj", TOKENS, unet.encoder_hid_proj.out_features))
    *layers, predicted = unet_sites(unet, TOKENS, (grid[0], grid[1]), encoder.tokenizer)
    noise = replace(predicted, sizes=(channels, *grid), span=(0, channels))
    variance = replace(noise, name="unet.variance", kind="variance", span=(channels, 2 * channels))
    scheduler = pipeline.scheduler
    read = type(scheduler).__name__ == "DDPMScheduler" and scheduler.config.variance_type in LEARNED
    return [*made, *layers, noise, replace(variance, read=read), between_steps(channels, (grid[0], grid[1]))]


def check(pipeline):
    """Raise ValueError for a UNet that is put together otherwise than stage I's."""
    unet = pipeline.unet
    config, blocks = unet.config, [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    if unknown := sorted({type(block).__name__ for block in blocks} - set(BLOCKS)):
        raise ValueError(
            f"wb.load: the UNet has blocks of the types {', '.join(unknown)}; DeepFloyd IF's are {', '.join(BLOCKS)}"
        )
    if config.out_channels != 2 * config.in_channels:
        raise ValueError(
            f"wb.load: the UNet takes {config.in_channels} channels and gives {config.out_channels}, expected are twice as many, noise and "
            "variance: a super-resolution or inpainting model; load stage I"
        )
    if config.encoder_hid_dim_type != DEEPFLOYD.projection or config.addition_embed_type not in (None, "text"):
        raise ValueError(
            f"wb.load: the UNet is given encoder_hid_dim_type={config.encoder_hid_dim_type!r}, "
            f"addition_embed_type={config.addition_embed_type!r}; expected are 'text_proj' and 'text' or None"
        )


DEEPFLOYD: Family = Family(
    name="deepfloyd",
    pipelines=("IFPipeline",),
    encoders=(Encoder("text_encoder", "tokenizer"),),
    denoiser="unet",
    sites=sites,
    size=size,
    latents=shape,
    check=check,
    steps=100,
    guidance=7.0,
    encode=encode,
    read=readings,
    schedule=schedule,
    halves=True,
    decoder=None,
    pictures=pictures,
    given=given,
    projection="text_proj",
    refused={
        name: "draws from a smaller picture, of another stage, that no world or seed names; study stage I, an IFPipeline"
        for name in ("IFSuperResolutionPipeline", "StableDiffusionUpscalePipeline")
    }
    | {
        name: "draws from a picture that no world or seed names; load the checkpoint into an IFPipeline"
        for name in (
            "IFImg2ImgPipeline",
            "IFInpaintingPipeline",
            "IFImg2ImgSuperResolutionPipeline",
            "IFInpaintingSuperResolutionPipeline",
        )
    },
)
