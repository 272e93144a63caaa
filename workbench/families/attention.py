"""Attention whose probabilities exist as a tensor, for diffusers' `Attention` modules.

Fused attention never materialises them. The explicit path is installed on the layers in use only, for as long as a run lasts.
"""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnAddedKVProcessor,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from einops import rearrange

from workbench.families.added import ExplicitAddedAttention
from workbench.families.base import Site
from workbench.families.clip import explicit_text_attention
from workbench.families.joint import ExplicitJointAttention, ExplicitRotaryAttention, give_joint_probs, is_joint
from workbench.weights import acting_weight, fused

# what an attention may have besides projections, which the explicit path does not repeat
EXTRAS = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "added_kv_proj_dim")


class ExplicitAttention:
    """Softmax attention in the open; scores in float32, as the fused kernels keep them: float16 would overflow."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **ignored):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            rearrange(x, "row i (head c) -> row head i c", head=attn.heads)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = query.float() @ key.float().transpose(-1, -2) * attn.scale
        if attention_mask is not None:  # (row, 1, token), of a prompt's padding
            scores = scores + attention_mask[:, None].float()
        probs = attn.probs(scores.softmax(-1).to(value.dtype))
        return attn.to_out[1](attn.to_out[0](rearrange(probs @ value, "row head i c -> row i (head c)")))


# by the path that the pipeline takes, the explicit one that repeats its arithmetic; any other (sliced, IP-Adapter, PAG, a user's own)
# is refused at probabilities
EXPLICIT = {
    AttnProcessor: ExplicitAttention,
    AttnProcessor2_0: ExplicitAttention,
    AttnAddedKVProcessor: ExplicitAddedAttention,
    AttnAddedKVProcessor2_0: ExplicitAddedAttention,
    JointAttnProcessor2_0: ExplicitJointAttention,
    FluxAttnProcessor: ExplicitRotaryAttention,
}
ATTENTIONS = (Attention, FluxAttention)
PLAIN = tuple(EXPLICIT)
# those that call each projection once, as a module; others may fuse them, or call them for something else too
APART = (*PLAIN, SlicedAttnProcessor, SlicedAttnAddedKVProcessor, XFormersAttnProcessor)


def give_probs(module: torch.nn.Module):
    """Give every attention of a denoiser a child through which probabilities pass while they are in use."""
    for part in module.modules():
        if isinstance(part, Attention) and "probs" not in part._modules:
            part.probs = torch.nn.Identity()
        if isinstance(part, FluxAttention) or (isinstance(part, Attention) and is_joint(part)):
            give_joint_probs(part)


def attention_of(pipeline, site: Site) -> torch.nn.Module | None:
    """The attention module that a site belongs to; None for other sites."""
    path = site.module
    while path:
        component, _, rest = path.partition(".")
        module = getattr(pipeline, component).get_submodule(rest)
        if isinstance(module, ATTENTIONS):
            return module
        if not rest:
            return None
        path = path.rpartition(".")[0]
    return None


def output_weight(pipeline, site: Site) -> torch.Tensor:
    """The matrix (out, in) that the heads' results of an attention pass through, its adapters' part included.

    Of FLUX's blocks of one stream these are the first columns of the block's projection, which takes the feed-forward's behind them.
    """
    attention = attention_of(pipeline, site)
    if attention is None:
        raise ValueError(f"{site.name} is no attention's")
    if getattr(attention, "to_out", None) is not None:
        return acting_weight(attention.to_out[0])
    block = getattr(pipeline, site.component).get_submodule(site.module.partition(".")[2].rpartition(".")[0])
    return acting_weight(block.proj_out)[:, : attention.to_v.out_features]


def check_attention(pipeline, site: Site):
    """Raise ValueError for a site of an attention that is not computed as its site says."""
    attention = attention_of(pipeline, site) if site.per_head and site.part == "denoiser" else None
    if attention is None:
        return
    processor, back = type(attention.processor), _plain_again(pipeline, site)
    if fused(attention):
        raise ValueError(
            "the projections are fused (fuse_qkv_projections), so that q, k and v have no module of their own; call "
            "pipeline.unfuse_qkv_projections()"
        )
    if processor not in APART:
        raise ValueError(
            f"the layer computes attention by {processor.__name__}, which may use its projections otherwise than plain "
            f"attention does; call {back}"
        )
    if "head" not in site.axes:
        return
    if processor not in PLAIN:
        raise ValueError(
            f"the layer computes attention by {processor.__name__}, which never has its probabilities whole; call {back}"
        )
    if EXPLICIT.get(processor, ExplicitAttention) is not ExplicitAttention:
        return
    extras = [name for name in EXTRAS if getattr(attention, name, None) is not None]
    extras += ["residual_connection"] if attention.residual_connection else []
    extras += ["rescale_output_factor"] if attention.rescale_output_factor != 1 else []
    if extras:
        raise ValueError(
            f"the layer's attention has {', '.join(extras)}, which the path that shows probabilities lacks; name sites that "
            "are no probabilities"
        )


def _plain_again(pipeline, site: Site) -> str:
    """How to bring a denoiser's own attention back, as an error says it."""
    if hasattr(getattr(pipeline, site.component), "set_default_attn_processor"):
        return f"pipeline.{site.component}.set_default_attn_processor()"
    plain = FluxAttnProcessor if isinstance(attention_of(pipeline, site), FluxAttention) else JointAttnProcessor2_0
    return f"pipeline.{site.component}.set_attn_processor({plain.__name__}())"


@contextmanager
def explicit_attention(pipeline, sites: Sequence[Site]):
    """Give the attentions of these probabilities an explicit softmax, for as long as the block lasts."""
    found: dict[torch.nn.Module, Site] = {}
    for site in sites:
        if "head" in site.axes and site.part == "denoiser" and (attention := attention_of(pipeline, site)) is not None:
            found[attention] = site
    before = [(attention, attention.processor) for attention in found]
    try:
        for attention, site in found.items():
            explicit = EXPLICIT.get(type(attention.processor), ExplicitAttention)
            lengths = {f"{axis}s": site.axis(axis) for axis in ("pixel", "token") if axis in site.axes}
            attention.processor = explicit(**lengths) if explicit is ExplicitRotaryAttention else explicit()
        with explicit_text_attention(pipeline, sites):
            yield
    finally:
        for attention, processor in before:
            attention.processor = processor
