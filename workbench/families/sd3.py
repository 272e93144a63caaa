"""Stable Diffusion 3 and 3.5: a transformer with joint attention of picture and text, trained by flow matching.

Two CLIP encoders' penultimate states stand side by side on channels; T5's states, or zeros where it is left out, follow them as
further tokens. The CLIP encoders' projected end states, side by side, are the pooled vector, which enters every modulation.
"""

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.attention import JointTransformerBlock

from workbench.families.base import PIXELS, POOLED, TEXT, Encoder, Family, Reading, Site
from workbench.families.clip import clip_sites
from workbench.families.joint import joint_sites
from workbench.families.picture import end_sites, grid_of, shift_of, transformer_size
from workbench.families.t5 import t5_sites


def latent_shape(pipeline, height: int, width: int) -> tuple[int, int, int]:
    """Channels, rows and columns of the latents of a picture."""
    config = pipeline.transformer.config
    grid = grid_of(height, width, pipeline.vae_scale_factor, config.patch_size)
    if max(grid) > (most := config.pos_embed_max_size * config.patch_size):
        side = most * pipeline.vae_scale_factor
        raise ValueError(f"height={height}, width={width}: the model has positions for {side} x {side} pixels at most")
    return config.in_channels, *grid


def readings(family: Family, pipeline) -> tuple[Reading, ...]:
    """CLIP's tokens, then T5's, or the zeros in their place."""
    length = family.length_of(pipeline)
    third = ("tokenizer_3",) if getattr(pipeline, "text_encoder_3", None) is not None else ()
    return Reading(("tokenizer", "tokenizer_2"), pipeline.tokenizer_max_length), Reading(third, length or 0)


def encode(pipeline, prompts: str | list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """States and pooled vectors as the denoiser is given them."""
    states, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, device=pipeline.device, do_classifier_free_guidance=False, **SD3.keywords(pipeline)
    )
    return states, pooled


def schedule(pipeline, steps: int, height: int, width: int) -> dict[str, Any]:
    """The shift of the noise levels where it follows the picture's size."""
    if not pipeline.scheduler.config.get("use_dynamic_shifting"):
        return {}
    rows, columns = (
        side // pipeline.vae_scale_factor // pipeline.transformer.config.patch_size for side in (height, width)
    )
    return {"mu": shift_of(pipeline, rows * columns, most=1.16)}


def velocity(
    pipeline, latents: torch.Tensor, noise: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """The denoiser's velocity for latents (row, channel, y, x) with a share of noise (row,)."""
    times = noise * pipeline.scheduler.config.num_train_timesteps
    return pipeline.transformer(latents, encoder_hidden_states=states, pooled_projections=pooled, timestep=times).sample


def sites(pipeline, height: int, width: int) -> list[Site]:
    """All sites, in execution order."""
    *clips, _ = SD3.encoders
    made = [site for encoder in clips for site in clip_sites(pipeline, encoder)]
    for encoder in SD3.present(pipeline)[len(clips) :]:
        made += t5_sites(pipeline, encoder, SD3.length_of(pipeline) or 0)
    transformer, channels = pipeline.transformer, latent_shape(pipeline, height, width)[0]
    grid = latent_shape(pipeline, height, width)[1:]
    patch = transformer.config.patch_size
    patches = (grid[0] // patch, grid[1] // patch)
    tokens = sum(reading.length for reading in SD3.read(SD3, pipeline))
    given, width_ = transformer.config.joint_attention_dim, transformer.inner_dim
    base = Site("", "denoiser", "transformer", "transformer", "", "", "output", TEXT, ())

    def site(kind: str, module: str, axes: tuple[str, ...], *sizes: int, **facts) -> Site:
        return replace(
            base, name=f"transformer.{kind}", kind=kind, module=f"transformer{module}", axes=axes, sizes=sizes, **facts
        )

    tokenizer = SD3.encoders[0].tokenizer
    of_text: dict[str, Any] = {"tokenizer": tokenizer, "from_text": True}
    pixels = patches[0] * patches[1]
    pooled = transformer.config.pooled_projection_dim
    made += [
        site("patches", ".pos_embed", PIXELS, pixels, width_, grid=patches, stream=True),
        site("pooled", ".time_text_embed.text_embedder", POOLED, pooled, port="input", from_text=True),
        site("modulation", ".time_text_embed", POOLED, width_, stream=True),
        site("context", ".context_embedder", TEXT, tokens, given, port="input", **of_text),
        site("context_embedder", ".context_embedder", TEXT, tokens, width_, **of_text),
    ]
    last = len(transformer.transformer_blocks) - 1
    for i, block in enumerate(transformer.transformer_blocks):
        made += joint_sites(
            f"transformer.{i}",
            f"transformer.transformer_blocks.{i}",
            block,
            patches,
            tokens,
            tokenizer,
            last=i == last,
            streams=(1, 0),
        )
    made.append(
        site("noise", "", ("row", "channel", "y", "x"), transformer.out_channels, *grid, grid=grid, stream=True)
    )
    return [*made, *end_sites(pipeline, channels, grid)]


def check(pipeline):
    """Raise ValueError for a transformer that is put together otherwise than Stable Diffusion 3's."""
    transformer = pipeline.transformer
    strange = {type(b).__name__ for b in transformer.transformer_blocks if not isinstance(b, JointTransformerBlock)}
    if strange:
        raise ValueError(
            f"wb.load: the transformer has blocks of the types {', '.join(sorted(strange))}; expected are "
            "JointTransformerBlock"
        )
    if [block.context_pre_only for block in transformer.transformer_blocks].count(True) != 1:
        raise ValueError("wb.load: not the last block of the transformer alone gives no text on (context_pre_only)")
    if getattr(transformer, "image_proj", None) is not None:
        raise ValueError(
            "the transformer has an IP-Adapter, whose image attention has no site; load the model without it"
        )
    if transformer.config.in_channels != pipeline.vae.config.latent_channels:
        raise ValueError(
            f"wb.load: the transformer takes {transformer.config.in_channels} channels, the VAE's latents have "
            f"{pipeline.vae.config.latent_channels}: load a text-to-image checkpoint"
        )


SD3: Family = Family(
    name="sd3",
    pipelines=("StableDiffusion3Pipeline",),
    encoders=(
        Encoder("text_encoder", "tokenizer", skipped=1, pooled=True),
        Encoder("text_encoder_2", "tokenizer_2", skipped=1, pooled=True),
        Encoder("text_encoder_3", "tokenizer_3", optional=True),
    ),
    denoiser="transformer",
    sites=sites,
    size=transformer_size,
    latents=latent_shape,
    check=check,
    steps=28,
    guidance=7.0,
    length=256,
    flow=True,
    encode=encode,
    read=readings,
    schedule=schedule,
    velocity=velocity,
    layers="transformer.*.joint",
    keys="text.k",
    values="text.v",
    maps="transformer.*.cross.probs",
    edited="transformer.context_embedder",
)
