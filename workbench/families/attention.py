"""Attention whose probabilities exist as a tensor, for diffusers' `Attention` modules.

Fused attention never materialises them. The explicit path is installed on the layers in use only, for as long as a run lasts.
"""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange

from workbench.families.base import Site
from workbench.weights import fused

# those whose arithmetic the explicit path repeats; any other (sliced, LoRA of old, IP-Adapter, PAG) is refused
PLAIN = ("AttnProcessor", "AttnProcessor2_0")


class ExplicitAttention:
    """Softmax attention in the open; scores in float32, as the fused kernels keep them: float16 would overflow."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **ignored):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            rearrange(x, "row i (head c) -> row head i c", head=attn.heads)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        probs = (query.float() @ key.float().transpose(-1, -2) * attn.scale).softmax(-1)
        probs = attn.probs(probs.to(value.dtype))
        return attn.to_out[1](attn.to_out[0](rearrange(probs @ value, "row head i c -> row i (head c)")))


def give_probs(module: torch.nn.Module):
    """Give every attention of a denoiser a child through which probabilities pass while they are in use."""
    for part in module.modules():
        if isinstance(part, Attention) and "probs" not in part._modules:
            part.probs = torch.nn.Identity()


def attention_of(pipeline, site: Site) -> Attention | None:
    """The attention module that a site belongs to; None for other sites."""
    path = site.module
    while path:
        component, _, rest = path.partition(".")
        module = getattr(pipeline, component).get_submodule(rest)
        if isinstance(module, Attention):
            return module
        if not rest:
            return None
        path = path.rpartition(".")[0]
    return None


def check_attention(pipeline, site: Site):
    """Raise ValueError for a site of an attention that is not computed as its site says."""
    attention = attention_of(pipeline, site) if site.heads is not None and site.part == "denoiser" else None
    if attention is None:
        return
    if site.per_head and fused(attention):
        raise ValueError(
            f"{site.name}: the projections are fused (fuse_qkv_projections), so that q, k and v have no module of their own; call "
            "pipeline.unfuse_qkv_projections()"
        )
    processor = type(attention.processor).__name__
    if site.axes[1] == "head" and processor not in PLAIN:
        raise ValueError(
            f"{site.name}: the layer computes attention by {processor}, whose probabilities are not those of plain attention; "
            "call pipeline.unet.set_default_attn_processor()"
        )


@contextmanager
def explicit_attention(pipeline, sites: Sequence[Site]):
    """Give the attentions of these probabilities an explicit softmax, for as long as the block lasts."""
    found = (attention_of(pipeline, site) for site in sites if site.axes[1] == "head")
    before = [(attention, attention.processor) for attention in dict.fromkeys(found) if attention is not None]
    try:
        for attention, _ in before:
            attention.processor = ExplicitAttention()
        yield
    finally:
        for attention, processor in before:
            attention.processor = processor
