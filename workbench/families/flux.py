"""FLUX.1 (dev, schnell): blocks with a stream for text and one for the picture, then blocks with one stream of both.

T5's states are the text; CLIP's pooled end state enters every modulation, beside the timestep and, in dev, the guidance, which is an
input: the batch is never doubled. Latents are packed, 2 x 2 of them to one of the denoiser's pixels.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange

from workbench.families.base import PIXELS, POOLED, TEXT, Encoder, Family, Reading, Site
from workbench.families.clip import clip_sites
from workbench.families.joint import joint_sites, single_sites
from workbench.families.picture import end_sites, grid_of, shift_of
from workbench.families.t5 import t5_sites

PATCH = 2  # rows of latents in a pixel of the denoiser's


def size(pipeline) -> tuple[int, int]:
    """Height and width in pixels that the pipeline draws when not told."""
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    return side, side


def latent_shape(pipeline, height: int, width: int) -> tuple[int, int, int]:
    """Channels, rows and columns of the latents of a picture, not packed."""
    grid = grid_of(height, width, pipeline.vae_scale_factor, PATCH)
    return pipeline.transformer.config.in_channels // PATCH**2, *grid


def readings(family: Family, pipeline) -> tuple[Reading, ...]:
    """T5's tokens alone: of CLIP's states the denoiser is given none."""
    return (Reading(("tokenizer_2",), family.length_of(pipeline) or 0),)


def encode(pipeline, prompts: str | list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """States and pooled vectors as the denoiser is given them."""
    states, pooled, _ = pipeline.encode_prompt(prompts, None, device=pipeline.device, **FLUX.keywords(pipeline))
    return states, pooled


def schedule(pipeline, steps: int, height: int, width: int) -> dict[str, Any]:
    """Noise levels, and their shift, which follows the picture's size."""
    _, rows, columns = latent_shape(pipeline, height, width)
    mu = shift_of(pipeline, rows // PATCH * (columns // PATCH), most=1.15)
    return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": mu}


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (row, channel, y, x) as the pipeline keeps them between its steps: (row, pixel, channel)."""
    return rearrange(latents, "row c (y i) (x j) -> row (y x) (c i j)", i=PATCH, j=PATCH)


def unpack(packed: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The reverse, for latents of so many rows and columns."""
    rows, columns = grid[0] // PATCH, grid[1] // PATCH
    return rearrange(packed, "row (y x) (c i j) -> row c (y i) (x j)", y=rows, x=columns, i=PATCH, j=PATCH)


def velocity(
    pipeline, latents: torch.Tensor, noise: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """The denoiser's velocity for latents (row, channel, y, x) with a share of noise (row,), at the family's guidance."""
    rows, columns = latents.shape[-2:]
    places = pipeline._prepare_latent_image_ids(
        len(latents), rows // PATCH, columns // PATCH, latents.device, latents.dtype
    )
    guidance = torch.full_like(noise, FLUX.guidance) if pipeline.transformer.config.guidance_embeds else None
    found = pipeline.transformer(
        hidden_states=pack(latents),
        timestep=noise,
        guidance=guidance,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        txt_ids=torch.zeros(states.shape[1], 3, device=latents.device, dtype=latents.dtype),
        img_ids=places,
    )
    return unpack(found.sample, (rows, columns))


def sites(pipeline, height: int, width: int) -> list[Site]:
    """All sites, in execution order."""
    clip, t5 = FLUX.encoders
    tokens = FLUX.length_of(pipeline) or 0
    made = [*clip_sites(pipeline, clip), *t5_sites(pipeline, t5, tokens)]
    transformer = pipeline.transformer
    channels, rows, columns = latent_shape(pipeline, height, width)
    grid, patches = (rows, columns), (rows // PATCH, columns // PATCH)
    inner, config = transformer.inner_dim, transformer.config
    pixels = patches[0] * patches[1]
    base = Site("", "denoiser", "transformer", "transformer", "", "", "output", TEXT, ())

    def site(kind: str, module: str, axes: tuple[str, ...], *sizes: int, **facts) -> Site:
        path = f"transformer.{module}"
        return replace(base, name=f"transformer.{kind}", kind=kind, module=path, axes=axes, sizes=sizes, **facts)

    of_text: dict[str, Any] = {"tokenizer": t5.tokenizer, "from_text": True}
    made.append(site("patches", "x_embedder", PIXELS, pixels, inner, grid=patches, stream=True))
    if config.guidance_embeds:
        made.append(site("guidance", "time_text_embed.guidance_embedder", POOLED, inner))
    made += [
        site(
            "pooled",
            "time_text_embed.text_embedder",
            POOLED,
            config.pooled_projection_dim,
            port="input",
            from_text=True,
        ),
        site("modulation", "time_text_embed", POOLED, inner, stream=True),
        site("context", "context_embedder", TEXT, tokens, config.joint_attention_dim, port="input", **of_text),
        site("context_embedder", "context_embedder", TEXT, tokens, inner, **of_text),
    ]
    common: dict[str, Any] = dict(grid=patches, tokens=tokens, tokenizer=t5.tokenizer)
    for i, block in enumerate(transformer.transformer_blocks):
        path = f"transformer.transformer_blocks.{i}"
        made += joint_sites(f"transformer.{i}", path, block, last=False, streams=(1, 0), text_first=False, **common)
    doubles = len(transformer.transformer_blocks)
    last = doubles + len(transformer.single_transformer_blocks) - 1
    for i, block in enumerate(transformer.single_transformer_blocks, doubles):
        path = f"transformer.single_transformer_blocks.{i - doubles}"
        made += single_sites(f"transformer.{i}", path, block, last=i == last, **common)
    noise = site("noise", "proj_out", PIXELS, pixels, config.in_channels, grid=patches, stream=True)
    return [*made, noise, *end_sites(pipeline, channels, grid)]


def check(pipeline):
    """Raise ValueError for a transformer that is put together otherwise than FLUX's."""
    transformer = pipeline.transformer
    if getattr(transformer, "encoder_hid_proj", None) is not None:
        raise ValueError(
            "the transformer has an IP-Adapter, whose image attention has no site; load the model without it"
        )
    wanted = PATCH**2 * pipeline.vae.config.latent_channels
    if transformer.config.in_channels != wanted or transformer.out_channels != wanted:
        raise ValueError(
            f"wb.load: the transformer takes {transformer.config.in_channels} channels, the VAE's packed latents have {wanted}: a "
            "filling, depth or otherwise conditioned model; load a text-to-image checkpoint"
        )


FLUX: Family = Family(
    name="flux",
    pipelines=("FluxPipeline",),
    encoders=(Encoder("text_encoder", "tokenizer"), Encoder("text_encoder_2", "tokenizer_2")),
    denoiser="transformer",
    sites=sites,
    size=size,
    latents=latent_shape,
    check=check,
    steps=28,
    guidance=3.5,
    length=512,
    flow=True,
    encode=encode,
    read=readings,
    schedule=schedule,
    velocity=velocity,
    packing=(pack, unpack),
    clock=1000.0,
    layers="transformer.*.joint",
    keys="text.k",
    values="text.v",
    maps="transformer.*.cross.probs",
    edited="transformer.context_embedder",
)
