"""Sites of diffusers' `UNet2DConditionModel`, and what a Stable Diffusion pipeline around it must look like."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

from workbench.families.added import added_sites
from workbench.families.base import IMAGE, PIXELS, TEXT, Family, Site
from workbench.families.clip import clip_sites
from workbench.families.picture import end_sites, grid_of


def latent_shape(pipeline, height: int, width: int) -> tuple[int, int, int]:
    """Channels, rows and columns of the latents of a picture."""
    return pipeline.unet.config.in_channels, *grid_of(height, width, pipeline.vae_scale_factor)


def default_size(pipeline) -> tuple[int, int]:
    """Height and width in pixels that the pipeline draws when not told."""
    size = pipeline.unet.config.sample_size
    rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
    return rows * pipeline.vae_scale_factor, columns * pipeline.vae_scale_factor


def pipeline_sites(family: Family, pipeline, height: int, width: int) -> list[Site]:
    """All sites of a pipeline of CLIP encoders, a UNet and a VAE, in execution order."""
    sites = [site for encoder in family.encoders for site in clip_sites(pipeline, encoder)]
    first = family.encoders[0]
    tokens = getattr(pipeline, first.component).config.max_position_embeddings
    channels, *grid = latent_shape(pipeline, height, width)
    sites += unet_sites(pipeline.unet, tokens, (grid[0], grid[1]), first.tokenizer)
    return [*sites, *end_sites(pipeline, channels, (grid[0], grid[1]))]


def unet_sites(unet: torch.nn.Module, tokens: int, grid: tuple[int, int], tokenizer: str) -> list[Site]:
    """Sites of the UNet alone, for prompts of so many tokens and latents of this grid."""
    sites: list[Site] = []
    image = Site("", "denoiser", "unet", "", "", "", "output", IMAGE, (), stream=True)
    grids = [grid]  # of the picture, pushed on the way down and popped on the way up
    papers = 0

    def add(place: str, path: str, block: torch.nn.Module, sampler: str | None):
        nonlocal papers
        attentions = list(getattr(block, "attentions", None) or [])
        here = grids[-1]
        for j, resnet in enumerate(block.resnets):
            at = f"{place}.{j}"
            module = f"{path}.resnets.{j}"
            sizes = (resnet.out_channels, *here)
            site = replace(image, name=f"{at}.resnet", place=at, kind="resnet", module=module)
            sites.append(replace(site, sizes=sizes, grid=here))
            if j < len(attentions) and isinstance(attentions[j], Attention):
                module = f"{path}.attentions.{j}"
                at = place if place == "unet.mid" else at
                sites.extend(added_sites(at, place, module, attentions[j], here, tokens, tokenizer, papers))
                papers += 1
            elif j < len(attentions) and attentions[j] is not None:  # the mid block has one resnet more than attentions
                transformers = attentions[j].transformer_blocks
                for b, transformer in enumerate(transformers):
                    parts = [
                        place,
                        *([] if place == "unet.mid" else [str(j)]),
                        *([str(b)] if len(transformers) > 1 else []),
                    ]
                    module = f"{path}.attentions.{j}.transformer_blocks.{b}"
                    made = list(transformer_sites(parts, module, transformer, here, tokens, tokenizer, papers))
                    papers += any(site.paper is not None for site in made)
                    sites.extend(made)
        if sampler and getattr(block, sampler):
            rows, columns = here
            if sampler == "downsamplers":
                grids.append(((rows + 1) // 2, (columns + 1) // 2))
            else:
                grids.pop()
            sizes = (getattr(block, sampler)[0].out_channels, *grids[-1])
            site = replace(image, name=f"{place}.sampler", place=place, kind="sampler", module=f"{path}.{sampler}.0")
            sites.append(replace(site, sizes=sizes, grid=grids[-1]))

    for i, block in enumerate(unet.down_blocks):
        add(f"unet.down.{i}", f"unet.down_blocks.{i}", block, "downsamplers")
    if unet.mid_block is not None:
        add("unet.mid", "unet.mid_block", unet.mid_block, None)
    for i, block in enumerate(unet.up_blocks):
        add(f"unet.up.{i}", f"unet.up_blocks.{i}", block, "upsamplers")
    noise = (unet.config.out_channels, *grid)
    last = replace(image, name="unet.noise", place="unet", kind="noise", module="unet.conv_out", sizes=noise, grid=grid)
    return [*sites, last]


def transformer_sites(
    parts: Sequence[str],
    path: str,
    block: torch.nn.Module,
    grid: tuple[int, int],
    tokens: int,
    tokenizer: str,
    paper: int,
) -> Iterator[Site]:
    """Sites of one block of self- and cross-attention. parts: of its name, the denoiser's component first. path: of its module."""
    place, neighbours = ".".join(parts), ".".join(parts[:-1]) or parts[0]
    pixels, channels = grid[0] * grid[1], block.attn1.to_q.in_features
    base = Site(
        "",
        "denoiser",
        parts[0].partition(".")[0],
        place,
        "",
        "",
        "output",
        PIXELS,
        (pixels, channels),
        grid=grid,
        block=neighbours,
    )
    for kind, child in (("self", "attn1"), ("cross", "attn2")):
        attention, module = getattr(block, child), f"{path}.{child}"
        if attention is None:  # blocks without a text
            continue
        text = kind == "cross"
        keys, axes = (tokens, TEXT) if text else (pixels, PIXELS)
        own = replace(base, heads=attention.heads, paper=paper if text else None, module=module)
        from_text = replace(own, axes=axes, tokenizer=tokenizer if text else None, grid=None if text else grid)
        inner = attention.to_q.out_features

        def named(site: Site, kind: str, **facts) -> Site:
            return replace(site, name=f"{place}.{kind}", kind=kind, **facts)

        if text:
            sizes = (tokens, attention.to_k.in_features)
            yield named(from_text, "cross.context", port="context", sizes=sizes, from_text=True)
        yield named(own, f"{kind}.q", module=f"{module}.to_q", sizes=(pixels, inner), per_head=True)
        read = dict(sizes=(keys, inner), per_head=True, from_text=text)
        yield named(from_text, f"{kind}.k", module=f"{module}.to_k", **read)
        yield named(from_text, f"{kind}.v", module=f"{module}.to_v", **read)
        yield named(
            own,
            f"{kind}.probs",
            module=f"{module}.probs",
            axes=("row", "head", "pixel", "token" if text else "key"),
            sizes=(attention.heads, pixels, keys),
            tokenizer=from_text.tokenizer,
            per_head=True,
        )
        yield named(own, f"{kind}.z", module=f"{module}.to_out.0", port="input", sizes=(pixels, inner), per_head=True)
        yield named(own, kind, sizes=(pixels, channels))
    yield replace(base, name=f"{place}.ff", kind="ff", module=f"{path}.ff")
    yield replace(base, name=f"{place}.block", kind="block", module=path, stream=True)


def check_unet(pipeline):
    """Raise ValueError for a UNet whose text does not enter by cross-attention alone, or that takes more than latents."""
    unet, vae = pipeline.unet, pipeline.vae
    kind = type(pipeline).__name__
    if unet.config.in_channels != vae.config.latent_channels:
        raise ValueError(
            f"wb.load: the UNet takes {unet.config.in_channels} channels, the VAE's latents have {vae.config.latent_channels}: an "
            f"inpainting, upscaling or otherwise conditioned model, which {kind} cannot draw with; load a text-to-image checkpoint"
        )
    for name, block in unet.named_modules():
        if type(block).__name__ == "Transformer2DModel":
            strange = [
                b
                for b in block.transformer_blocks
                if not isinstance(b, BasicTransformerBlock) or b.only_cross_attention
            ]
            if strange:
                raise ValueError(
                    f"wb.load: unet.{name} holds {type(strange[0]).__name__} blocks that are not self- then cross-attention"
                )
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    known = (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "UNetMidBlock2DCrossAttn",
        "UNetMidBlock2D",
        "UpBlock2D",
        "CrossAttnUpBlock2D",
    )
    if unknown := sorted({type(block).__name__ for block in blocks if block is not None} - set(known)):
        raise ValueError(
            f"wb.load: the UNet has blocks of the types {', '.join(unknown)}; supported are {', '.join(known)}"
        )
