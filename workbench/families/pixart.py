"""PixArt-alpha and -Sigma: a transformer whose blocks look at the picture, then at what T5 says of the prompt, its padding masked.

T5's states are projected once, for all blocks. A prompt's padding is masked in every block: the mask is the row's own prompt's, so that
another prompt's text may stand in for it only where it has as many tokens (`Family.masked`). The transformer of PixArt-alpha predicts a
variance behind the noise, which no scheduler reads. Sigma reads more tokens of a prompt, by its own default, than alpha.
"""

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock

from workbench.families.base import IMAGE, PIXELS, POOLED, TEXT, Encoder, Family, Reading, Site
from workbench.families.picture import end_sites, grid_of, transformer_size
from workbench.families.t5 import t5_sites
from workbench.families.unet import transformer_sites


def latent_shape(pipeline, height: int, width: int) -> tuple[int, int, int]:
    """Channels, rows and columns of the latents of a picture."""
    config = pipeline.transformer.config
    return config.in_channels, *grid_of(height, width, pipeline.vae_scale_factor, config.patch_size)


def own(pipeline) -> Family:
    """Which of the two a pipeline is."""
    return PIXART_SIGMA if type(pipeline).__name__ in PIXART_SIGMA.pipelines else PIXART


def readings(family: Family, pipeline) -> tuple[Reading, ...]:
    """T5's tokens."""
    return (Reading(("tokenizer",), family.length_of(pipeline) or 0),)


def encode(pipeline, prompts: str | list[str]) -> tuple[torch.Tensor, None]:
    """States as the denoiser is given them; there is no pooled vector."""
    states, *_ = pipeline.encode_prompt(
        prompts,
        do_classifier_free_guidance=False,
        device=pipeline.device,
        clean_caption=True,
        max_sequence_length=own(pipeline).length_of(pipeline),
    )
    return states, None


def given(pipeline, site: Site, states: torch.Tensor) -> torch.Tensor:
    """What a site's module is given for a prompt of these states: in the blocks they are projected."""
    projection = pipeline.transformer.caption_projection
    return states if site.place == "transformer" or projection is None else projection(states)


def schedule(pipeline, steps: int, height: int, width: int) -> dict[str, Any]:
    """Nothing beside their number; ValueError for a single step of alpha, behind which it takes something else than latents."""
    if steps == 1 and own(pipeline) is PIXART:
        raise ValueError(
            f"num_inference_steps=1: in a single step a {type(pipeline).__name__} takes the scheduler's guess of the end in place of its "
            "latents, which interventions do not reach; give 2 or more"
        )
    return {}


def sites(pipeline, height: int, width: int) -> list[Site]:
    """All sites, in execution order."""
    family, transformer = own(pipeline), pipeline.transformer
    (encoder,) = family.encoders
    config, (channels, *grid) = transformer.config, latent_shape(pipeline, height, width)
    (reading,) = family.read(family, pipeline)
    patches = (grid[0] // config.patch_size, grid[1] // config.patch_size)
    width_, tokens = transformer.inner_dim, reading.length
    base = Site("", "denoiser", "transformer", "transformer", "", "", "output", TEXT, ())

    def site(kind: str, module: str, axes: tuple[str, ...], *sizes: int, **facts) -> Site:
        path = f"transformer.{module}" if module else "transformer"
        return replace(base, name=f"transformer.{kind}", kind=kind, module=path, axes=axes, sizes=sizes, **facts)

    made = [*t5_sites(pipeline, encoder, tokens)]
    made.append(site("patches", "pos_embed", PIXELS, patches[0] * patches[1], width_, grid=patches, stream=True))
    made.append(site("timestep", "adaln_single.emb.timestep_embedder", POOLED, width_))
    if (
        transformer.adaln_single.emb.use_additional_conditions
    ):  # the resolution's own rows are heights and widths in turn: no site
        made.append(site("aspect_ratio", "adaln_single.emb.aspect_ratio_embedder", POOLED, width_ // 3))
    made.append(
        site("conditions", "adaln_single.emb", POOLED, width_, stream=True)
    )  # their sum; the last norm reads it too
    made.append(site("modulation", "adaln_single", POOLED, 6 * width_, stream=True))
    if transformer.caption_projection is not None:
        of_text: dict[str, Any] = {"tokenizer": encoder.tokenizer, "from_text": True}
        made.append(
            site("context", "caption_projection", TEXT, tokens, config.caption_channels, port="input", **of_text)
        )
        made.append(site("caption", "caption_projection", TEXT, tokens, width_, **of_text))
    for i, block in enumerate(transformer.transformer_blocks):
        path = f"transformer.transformer_blocks.{i}"
        made += transformer_sites(["transformer", str(i)], path, block, patches, tokens, encoder.tokenizer, i)
    learned = transformer.out_channels == 2 * channels
    noise = site("noise", "", IMAGE, channels, *grid, grid=(grid[0], grid[1]), stream=True)
    if learned:
        variance = replace(
            noise, name="transformer.variance", kind="variance", span=(channels, 2 * channels), read=False
        )
        made += [replace(noise, span=(0, channels)), variance]
    else:
        made.append(noise)
    return [*made, *end_sites(pipeline, channels, (grid[0], grid[1]))]


def check(pipeline):
    """Raise ValueError for a transformer that is put together otherwise than PixArt's."""
    transformer = pipeline.transformer
    config, blocks = transformer.config, transformer.transformer_blocks
    strange = {
        type(block).__name__
        for block in blocks
        if not isinstance(block, BasicTransformerBlock) or block.attn2 is None or block.norm_type != "ada_norm_single"
    }
    if strange:
        raise ValueError(
            f"wb.load: the transformer has blocks of the types {', '.join(sorted(strange))} that are no self- then cross-attention "
            "behind one modulation (ada_norm_single)"
        )
    if config.in_channels != pipeline.vae.config.latent_channels:
        raise ValueError(
            f"wb.load: the transformer takes {config.in_channels} channels, the VAE's latents have "
            f"{pipeline.vae.config.latent_channels}: load a text-to-image checkpoint"
        )
    if transformer.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ValueError(
            f"wb.load: the transformer takes {config.in_channels} channels and gives {transformer.out_channels}; expected are as many, "
            "or twice as many, noise and variance"
        )


PIXART: Family = Family(
    name="pixart",
    pipelines=("PixArtAlphaPipeline",),
    encoders=(Encoder("text_encoder", "tokenizer"),),
    denoiser="transformer",
    sites=sites,
    size=transformer_size,
    latents=latent_shape,
    check=check,
    steps=20,
    guidance=4.5,
    length=120,
    encode=encode,
    read=readings,
    schedule=schedule,
    layers="transformer.*.cross",
    maps="transformer.*.cross.probs",
    edited="transformer.*.cross.{k,v}",
    halves=True,
    given=given,
    masked=True,
    call={"use_resolution_binning": False},
)
PIXART_SIGMA: Family = replace(PIXART, pipelines=("PixArtSigmaPipeline",), length=300)
