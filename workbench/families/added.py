"""Attention of the picture to itself, to which the text's keys and values are added (Nichol et al. 2021, arXiv 2112.10741, section 2.3;
diffusers' `SimpleCrossAttn` blocks, of DeepFloyd IF).

A pixel's query looks at text and picture together: "cross.probs" (pixel, token) and "self.probs" (pixel, key) are the two parts of one
softmax. The text's keys and values follow from the text alone. "cross" is what the attention as a whole adds to the picture, "block" the
picture behind it.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from einops import rearrange

from workbench.families.base import IMAGE, PIXELS, TEXT, Site
from workbench.families.joint import PARTS

TOGETHER = ("cross.probs", "self.probs")  # in the order in which they pass


class ExplicitAddedAttention:
    """The same in the open; scores in float32, as the fused kernels keep them."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **ignored):
        def heads(value: torch.Tensor) -> torch.Tensor:
            return rearrange(value, "row i (head c) -> row head i c", head=attn.heads)

        pixels = rearrange(hidden_states, "row c y x -> row (y x) c")
        pixels = attn.group_norm(pixels.transpose(1, 2)).transpose(1, 2)
        text = (
            encoder_hidden_states if attn.norm_cross is None else attn.norm_encoder_hidden_states(encoder_hidden_states)
        )
        query = heads(attn.to_q(pixels))
        keys, values = [heads(attn.add_k_proj(text))], [heads(attn.add_v_proj(text))]
        if not attn.only_cross_attention:
            keys, values = [*keys, heads(attn.to_k(pixels))], [*values, heads(attn.to_v(pixels))]
        scores = query.float() @ torch.cat(keys, 2).float().transpose(-1, -2) * query.shape[-1] ** -0.5
        parts = scores.softmax(-1).to(query.dtype).split([key.shape[2] for key in keys], -1)
        children = [attn.joint_probs[PARTS[kind][0]] for kind in TOGETHER]
        mixed = sum(child(part) @ value for child, part, value in zip(children, parts, values))
        out = attn.to_out[1](attn.to_out[0](rearrange(mixed, "row head i c -> row i (head c)")))
        return hidden_states + rearrange(out, "row (y x) c -> row c y x", y=hidden_states.shape[2])


def added_sites(
    place: str,
    block: str,
    path: str,
    attention: torch.nn.Module,
    grid: tuple[int, int],
    tokens: int,
    tokenizer: str,
    paper: int,
) -> Iterator[Site]:
    """Sites of one attention, in execution order. block: what it shares with its neighbours. path: of its module."""
    pixels, channels, inner = grid[0] * grid[1], attention.to_q.in_features, attention.to_q.out_features
    heads, alone = attention.heads, attention.only_cross_attention
    image = Site("", "denoiser", "unet", place, "", "", "output", PIXELS, (pixels, channels), grid=grid, block=block)
    image = replace(image, heads=heads)
    text = replace(image, axes=TEXT, tokenizer=tokenizer, grid=None, paper=paper, from_text=True)

    def named(site: Site, kind: str, child: str, *sizes: int, **facts) -> Site:
        module = f"{path}.{child}" if child else path
        return replace(site, name=f"{place}.{kind}", kind=kind, module=module, sizes=sizes or site.sizes, **facts)

    yield named(text, "cross.context", "", tokens, attention.add_k_proj.in_features, port="context")
    yield named(image, "cross.q", "to_q", pixels, inner, paper=paper, per_head=True)
    for kind in ("k", "v"):
        yield named(text, f"cross.{kind}", f"add_{kind}_proj", tokens, inner, per_head=True)
    for kind in () if alone else ("k", "v"):
        yield named(image, f"self.{kind}", f"to_{kind}", pixels, inner, per_head=True)
    together = TOGETHER[:1] if alone else TOGETHER
    lengths = {"cross.probs": tokens, "self.probs": pixels}
    for kind in together:
        child, axes = PARTS[kind]
        facts = dict(paper=paper, tokenizer=tokenizer) if kind == "cross.probs" else {}
        sizes = (heads, pixels, lengths[kind])
        yield named(
            image,
            kind,
            f"joint_probs.{child}",
            *sizes,
            axes=axes,
            per_head=True,
            together=() if alone else together,
            **facts,
        )
    yield named(image, "cross.z", "to_out.0", pixels, inner, port="input", paper=paper, per_head=True)
    yield named(image, "cross", "to_out.0", paper=paper)
    yield named(image, "block", "", channels, *grid, axes=IMAGE, heads=None, stream=True)
