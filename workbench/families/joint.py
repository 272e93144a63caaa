"""Joint attention of picture and text (Esser et al. 2024, arXiv 2403.03206): two streams, each with projections of its own, look at
both together. Sites name the streams; in which order a pipeline joins them is known here alone.

Probabilities are four parts, by who looks at what: "self.probs" (pixel, key) and "cross.probs" (pixel, token) of the picture's
queries, "text.image.probs" (token, pixel) and "text.text.probs" (token, key) of the text's. The attention as a whole is "joint", by what it
gives the picture; it equals "image.out". "text.normed" is what the text's projections are given, where these are its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange

from workbench.families.base import PIXELS, TEXT, Site

IMAGE_PROBS, TEXT_PROBS = ("self.probs", "cross.probs"), ("text.image.probs", "text.text.probs")
# by a part's kind, the name of the child through which it passes, and its axes
PARTS = {
    "self.probs": ("image_image", ("row", "head", "pixel", "key")),
    "cross.probs": ("image_text", ("row", "head", "pixel", "token")),
    "text.image.probs": ("text_image", ("row", "head", "token", "pixel")),
    "text.text.probs": ("text_text", ("row", "head", "token", "key")),
}


def is_joint(attention: torch.nn.Module) -> bool:
    """Whether an attention has projections of the text's own beside the picture's."""
    return getattr(attention, "add_k_proj", None) is not None


def give_joint_probs(attention: torch.nn.Module):
    """Give a joint attention children through which the parts of its probabilities pass while they are in use."""
    if "joint_probs" not in attention._modules:
        attention.joint_probs = torch.nn.ModuleDict({child: torch.nn.Identity() for child, _ in PARTS.values()})


def _heads(attention, *values: torch.Tensor) -> list[torch.Tensor]:
    return [rearrange(value, "row i (head c) -> row head i c", head=attention.heads) for value in values]


def _normed(query: torch.Tensor, key: torch.Tensor, norms: Sequence) -> tuple[torch.Tensor, ...]:
    return tuple(x if norm is None else norm(x) for x, norm in zip((query, key), norms))


class ExplicitJointAttention:
    """Softmax attention over both streams in the open; scores in float32, as the fused kernels keep them.

    The sum over keys does not depend on their order, so that picture and text need not be joined as the pipeline joins them.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **ignored):
        query, key, value = _heads(attn, *(part(hidden_states) for part in (attn.to_q, attn.to_k, attn.to_v)))
        query, key = _normed(query, key, (attn.norm_q, attn.norm_k))
        scale = query.shape[-1] ** -0.5
        if encoder_hidden_states is None:  # the picture alone, in blocks that have a second attention
            probs = (query.float() @ key.float().transpose(-1, -2) * scale).softmax(-1)
            mixed = attn.probs(probs.to(value.dtype)) @ value
            return self._out(attn, mixed)
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_query, text_key, text_value = _heads(attn, *(part(encoder_hidden_states) for part in projections))
        text_query, text_key = _normed(text_query, text_key, (attn.norm_added_q, attn.norm_added_k))
        keys, pixels = torch.cat([key, text_key], 2).float(), key.shape[2]

        def looked(query: torch.Tensor, to_image: str, to_text: str) -> torch.Tensor:
            probs = (query.float() @ keys.transpose(-1, -2) * scale).softmax(-1).to(value.dtype)
            parts = probs[..., :pixels], probs[..., pixels:]
            at_image, at_text = (attn.joint_probs[name](part) for name, part in zip((to_image, to_text), parts))
            return at_image @ value + at_text @ text_value

        image = looked(query, "image_image", "image_text")
        text = rearrange(looked(text_query, "text_image", "text_text"), "row head i c -> row i (head c)")
        text = text if attn.context_pre_only else attn.to_add_out(text)
        return self._out(attn, image), text

    def _out(self, attn, mixed: torch.Tensor) -> torch.Tensor:
        return attn.to_out[1](attn.to_out[0](rearrange(mixed, "row head i c -> row i (head c)")))


class ExplicitRotaryAttention:
    """The same of attention with rotary positions, which count along text, then picture.

    pixels, tokens: how many a value has of each, one of them, where both come as one stream.
    """

    def __init__(self, pixels: int | None = None, tokens: int | None = None):
        self.pixels, self.tokens = pixels, tokens

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        def split(value: torch.Tensor) -> torch.Tensor:
            return value.unflatten(-1, (attn.heads, -1))

        query, key, value = (split(part(hidden_states)) for part in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text = [split(part(encoder_hidden_states)) for part in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
            text[:2] = attn.norm_added_q(text[0]), attn.norm_added_k(text[1])
            query, key, value = (torch.cat(pair, 1) for pair in zip(text, (query, key, value)))
            tokens = encoder_hidden_states.shape[1]
        else:
            tokens = self.tokens if self.tokens is not None else hidden_states.shape[1] - (self.pixels or 0)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(each, image_rotary_emb, sequence_dim=1) for each in (query, key))
        query, key, value = (rearrange(each, "row i head c -> row head i c") for each in (query, key, value))
        scores = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
        probs, mixed = scores.softmax(-1).to(value.dtype), []
        for stream, own in (("image", slice(tokens, None)), ("text", slice(0, tokens))):
            at_image = attn.joint_probs[f"{stream}_image"](probs[:, :, own, tokens:])
            at_text = attn.joint_probs[f"{stream}_text"](probs[:, :, own, :tokens])
            both = at_image @ value[:, :, tokens:] + at_text @ value[:, :, :tokens]
            mixed.append(rearrange(both, "row head i c -> row i (head c)"))
        image, text_mixed = mixed
        if encoder_hidden_states is None:
            return torch.cat([text_mixed, image], 1)
        image = attn.to_out[1](attn.to_out[0](image))
        return image, attn.to_add_out(text_mixed)


def _probs(named: Callable[..., Site], kinds: Sequence[str], picture: Site, words: Site) -> Iterator[Site]:
    """The parts of one stream's probabilities. named: what makes a site of a kind. picture, words: the streams' sites with heads."""
    for kind in kinds:
        child, axes = PARTS[kind]
        of_image = kinds is IMAGE_PROBS
        sizes = {"pixel": picture.axis("pixel"), "token": words.axis("token")}
        sizes["key"] = sizes["pixel" if of_image else "token"]
        yield replace(
            named(picture if of_image else words, kind, f"joint_probs.{child}"),
            axes=axes,
            sizes=(picture.heads or 0, *(sizes[axis] for axis in axes[2:])),
            tokenizer=words.tokenizer if "token" in axes else None,
            grid=picture.grid if "pixel" in axes else None,
            span=None,
            together=tuple(kinds),
        )


def joint_sites(
    place: str,
    path: str,
    block: torch.nn.Module,
    grid: tuple[int, int],
    tokens: int,
    tokenizer: str,
    *,
    last: bool,
    streams: tuple[int, int],
    text_first: bool = True,
) -> Iterator[Site]:
    """Sites of a block with a stream for the picture and one for the text, in execution order.

    last: whether the block gives no text on, so that what its text's queries see is lost. streams: which of the values that the block
    gives is the picture, and which the text. text_first: whether the text's output projection runs before the picture's.
    """
    attention, module, pixels = block.attn, f"{path}.attn", grid[0] * grid[1]
    width, inner, heads = attention.to_q.in_features, attention.to_q.out_features, attention.heads
    base = Site("", "denoiser", place.partition(".")[0], place, "", "", "output", PIXELS, (), block=place)
    image = replace(base, sizes=(pixels, width), grid=grid)
    text = replace(base, axes=TEXT, sizes=(tokens, width), tokenizer=tokenizer)
    picture = replace(image, sizes=(pixels, inner), heads=heads, per_head=True)
    words = replace(text, sizes=(tokens, inner), heads=heads, per_head=True)

    def named(site: Site, kind: str, child: str, **facts) -> Site:
        return replace(site, name=f"{place}.{kind}", kind=kind, module=f"{module}.{child}", **facts)

    yield replace(named(text, "text.normed", ""), module=f"{path}.norm1_context", stream=True)
    for kind in ("q", "k", "v"):
        yield named(picture, f"image.{kind}", f"to_{kind}")
    for kind in ("q", "k", "v"):
        yield named(words, f"text.{kind}", f"add_{kind}_proj", read=not (last and kind == "q"))
    yield from _probs(named, IMAGE_PROBS, picture, words)
    yield from (replace(site, read=not last) for site in _probs(named, TEXT_PROBS, picture, words))
    of_image = [named(picture, "image.z", "to_out.0", port="input"), named(image, "image.out", "to_out.0")]
    of_text = (
        [] if last else [named(words, "text.z", "to_add_out", port="input"), named(text, "text.out", "to_add_out")]
    )
    yield from [*of_text, *of_image] if text_first else [*of_image, *of_text]
    yield replace(named(image, "joint", ""), module=module, heads=heads)
    if getattr(block, "attn2", None) is not None:
        module = f"{path}.attn2"
        for kind in ("q", "k", "v"):
            yield named(picture, f"second.{kind}", f"to_{kind}")
        keys = dict(axes=PARTS["self.probs"][1], sizes=(heads, pixels, pixels))
        yield named(picture, "second.probs", "probs", **keys)
        yield named(picture, "second.z", "to_out.0", port="input")
        yield named(image, "second.out", "to_out.0")
    yield replace(named(image, "image.ff", ""), module=f"{path}.ff")
    if not last:
        yield replace(named(text, "text.ff", ""), module=f"{path}.ff_context")
    own = [("image.block", image, streams[0]), *([] if last else [("text.block", text, streams[1])])]
    for kind, site, item in sorted(own, key=lambda each: each[2]):
        yield replace(site, name=f"{place}.{kind}", kind=kind, module=path, item=item, stream=True)


def single_sites(
    place: str,
    path: str,
    block: torch.nn.Module,
    grid: tuple[int, int],
    tokens: int,
    tokenizer: str,
    *,
    last: bool,
) -> Iterator[Site]:
    """Sites of a block with one stream of text, then picture, whose attention and feed-forward stand side by side.

    last: whether no block follows, so that the text's part is lost.
    """
    attention, pixels = block.attn, grid[0] * grid[1]
    width, heads = attention.to_q.in_features, attention.heads
    base = Site("", "denoiser", place.partition(".")[0], place, "", "", "output", PIXELS, (), block=place)
    image = replace(base, sizes=(pixels, width), grid=grid, span=(tokens, tokens + pixels))
    text = replace(base, axes=TEXT, sizes=(tokens, width), tokenizer=tokenizer, span=(0, tokens))
    picture, words = (replace(site, heads=heads, per_head=True) for site in (image, text))

    def named(site: Site, kind: str, child: str, **facts) -> Site:
        return replace(site, name=f"{place}.{kind}", kind=kind, module=f"{path}.attn.{child}".rstrip("."), **facts)

    def both(kind: str, child: str, *, read: bool, per_head: bool = False, width: int = width) -> Iterator[Site]:
        for stream, site in (("image", picture if per_head else image), ("text", words if per_head else text)):
            sizes = (site.sizes[0], width)
            yield named(site, f"{stream}.{kind}", child, sizes=sizes, read=read or stream == "image")

    for site in both("ff", "", read=not last, width=block.mlp_hidden_dim):
        yield replace(site, module=f"{path}.act_mlp")
    for kind in ("q", "k", "v"):
        yield from both(kind, f"to_{kind}", read=kind != "q" or not last, per_head=True)
    yield from _probs(named, IMAGE_PROBS, picture, words)
    yield from (replace(site, read=not last) for site in _probs(named, TEXT_PROBS, picture, words))
    yield from both("z", "", read=not last, per_head=True)
    yield named(image, "joint", "", heads=heads)
    for site in both("out", "", read=not last):
        yield replace(site, module=f"{path}.proj_out")
    for kind, site, item, read in (("text.block", text, 0, not last), ("image.block", image, 1, True)):
        yield replace(
            site, name=f"{place}.{kind}", kind=kind, module=path, item=item, span=None, stream=True, read=read
        )
