"""Sites of a CLIP text encoder, and its attention in the open while probabilities are in use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from workbench.families.base import POOLED, TEXT, Encoder, Site

EXPLICIT = "workbench_explicit"  # what transformers calls the attention below
PROBS = ("row", "head", "token", "key")


def inner(encoder: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """The encoder proper and its path: it is nested in some versions and classes of transformers, not in others."""
    return (encoder.text_model, ".text_model") if "text_model" in encoder._modules else (encoder, "")


def clip_sites(pipeline, encoder: Encoder) -> Iterator[Site]:
    """Embedding, every layer's attention with its parts, mlp and states, the final states and, where there is one, the pooled vector.

    Attention, in order: q, k, v; probs (row, head, token that looks, key that is looked at); z, the heads' results side by side, which
    the output projection makes "out" of; "attention", which equals "out".
    """
    name, module = encoder.component, getattr(pipeline, encoder.component)
    body, nesting = inner(module)
    path, config = f"{name}{nesting}", module.config
    tokens, width, heads = config.max_position_embeddings, config.hidden_size, config.num_attention_heads
    layers = len(body.encoder.layers)
    projected = hasattr(module, "text_projection")

    base = Site("", "text", name, name, "", "", "output", TEXT, (tokens, width), tokenizer=encoder.tokenizer)

    def site(place: str, kind: str, module: str, **facts) -> Site:
        return replace(base, name=f"{place}.{kind}", place=place, kind=kind, module=module, **facts)

    yield site(name, "embedding", f"{path}.embeddings.token_embedding")
    for i in range(layers):
        layer, place = f"{path}.encoder.layers.{i}", f"{name}.{i}"
        here = {"read": i < layers - encoder.skipped or encoder.pooled, "depth": i / max(1, layers - 1)}
        apart = here | {"heads": heads, "per_head": True}
        for kind in ("q", "k", "v"):
            yield site(place, kind, f"{layer}.self_attn.{kind}_proj", **apart)
        yield site(place, "probs", f"{layer}.self_attn.probs", axes=PROBS, sizes=(heads, tokens, tokens), **apart)
        yield site(place, "z", f"{layer}.self_attn.out_proj", port="input", **apart)
        yield site(place, "out", f"{layer}.self_attn.out_proj", **here)
        yield site(place, "attention", f"{layer}.self_attn", heads=heads, **here)
        yield site(place, "fc1", f"{layer}.mlp.fc1", sizes=(tokens, config.intermediate_size), **here)
        yield site(place, "fc2", f"{layer}.mlp.fc2", **here)
        yield site(place, "mlp", f"{layer}.mlp", **here)
        yield site(place, "hidden", layer, stream=True, **here)
    read = not encoder.skipped or encoder.pooled
    yield site(name, "final", f"{path}.final_layer_norm", read=read, stream=True)
    if projected:
        size = (module.text_projection.out_features,)
        path = f"{name}.text_projection"
        yield site(name, "pooled", path, axes=POOLED, sizes=size, tokenizer=None, read=encoder.pooled, from_text=True)


def give_text_probs(encoder: torch.nn.Module):
    """Give every attention of a text encoder a child through which probabilities pass while they are in use."""
    for layer in getattr(getattr(inner(encoder)[0], "encoder", None), "layers", ()):  # T5 has blocks, and no such child
        if "probs" not in layer.self_attn._modules:
            layer.self_attn.probs = torch.nn.Identity()


def _explicit(module, query, key, value, attention_mask, scaling=None, **ignored):
    """Softmax attention as transformers' eager path has it, (row, head, token, channel) each; scores in float32.

    Returns (row, token, head, channel) and the probabilities, which pass through the attention's child on their way.
    """
    scores = query.float() @ key.float().transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    else:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    probs = module.probs(scores.softmax(-1).to(value.dtype))
    return (probs @ value).transpose(1, 2).contiguous(), probs


AttentionInterface.register(EXPLICIT, _explicit)
AttentionMaskInterface.register(EXPLICIT, eager_mask)


@contextmanager
def explicit_text_attention(pipeline, sites: Sequence[Site]):
    """Compute attention in the open in the text encoders of these probabilities, for as long as the block lasts."""
    used = {site.component for site in sites if site.part == "text" and "head" in site.axes}
    configs = [inner(getattr(pipeline, component))[0].config for component in sorted(used)]
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = EXPLICIT
        yield
    finally:
        for config, implementation in zip(configs, before):
            config._attn_implementation = implementation
