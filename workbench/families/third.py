"""A third stream through blocks of joint attention: words that are in no prompt (ConceptAttention, arXiv 2502.04320, section 4).

The words go through the text's own weights. Their queries look at the picture's keys and at the words' own; picture and text look
at neither. So what a word becomes is what the picture makes of it, and the picture is what it is without.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention
from einops import rearrange

from workbench.families.base import Site

Rotation = tuple[torch.Tensor, torch.Tensor]
Module = Callable[..., torch.Tensor]


def is_rotary(attention: torch.nn.Module) -> bool:
    """Whether keys and queries are turned by their place in the picture."""
    return isinstance(attention, FluxAttention)


def rotation_of(denoiser: torch.nn.Module, grid: tuple[int, int]) -> Rotation:
    """How far FLUX turns keys of the picture's pixels, row by row; words, as the prompt's, stand at zero and are not turned."""
    places = torch.zeros(*grid, 3, device=denoiser.device)
    places[..., 1], places[..., 2] = torch.arange(grid[0])[:, None], torch.arange(grid[1])
    return denoiser.pos_embed(places.flatten(0, 1))


def without_pooled(modulation: torch.Tensor, pooled: torch.Tensor, embedder: Module) -> torch.Tensor:
    """The modulation as it would be of a pooled vector of zeros, which is a term of it. embedder: of the pooled vector."""
    terms = [embedder(each).float() for each in (torch.zeros_like(pooled), pooled)]
    return (modulation.float() + terms[0] - terms[1]).to(modulation.dtype)


def through_block(
    site: Site,
    attention: torch.nn.Module,
    call: Callable[[str], Module],
    words: torch.Tensor,
    modulation: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotation: Rotation | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the words' queries get in a block, before the output projection, and the words behind the block: (row, word, channel).

    site: the block's attention. call: a module of the pipeline by its path, to be called beside the run. words: (row, word, channel).
    modulation: (row, channel). key, value: the picture's projections, (row, pixel, channel). rotation: of its keys.
    """
    block = site.module.removesuffix(".attn")

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return rearrange(projected, "row i (head c) -> row head i c", head=attention.heads)

    def normed(name: str, projected: torch.Tensor) -> torch.Tensor:
        return projected if getattr(attention, name) is None else call(f"{site.module}.{name}")(projected)

    if attention.context_pre_only:  # the last block: the words go no further
        given, gates = call(f"{block}.norm1_context")(words, modulation), ()
    else:
        given, *gates = call(f"{block}.norm1_context")(words, emb=modulation)
    query, own_key, own_value = (heads(call(f"{site.module}.add_{part}_proj")(given)) for part in "qkv")
    query, own_key, key = normed("norm_added_q", query), normed("norm_added_k", own_key), normed("norm_k", heads(key))
    if rotation is not None:
        key = apply_rotary_emb(key, rotation, sequence_dim=2)
    mixed = F.scaled_dot_product_attention(query, torch.cat([key, own_key], 2), torch.cat([heads(value), own_value], 2))
    mixed = rearrange(mixed, "row head i c -> row i (head c)")
    if not gates:
        return mixed, words
    gate, shift, scale, mlp_gate = (each[:, None] for each in gates)
    words = words + gate * call(f"{site.module}.to_add_out")(mixed)
    given = call(f"{block}.norm2_context")(words) * (1 + scale) + shift
    return mixed, words + mlp_gate * call(f"{block}.ff_context")(given)
