"""Sites of a CLIP text encoder."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from workbench.families.base import POOLED, TEXT, Encoder, Site


def inner(encoder: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """The encoder proper and its path: it is nested in some versions and classes of transformers, not in others."""
    return (encoder.text_model, ".text_model") if "text_model" in encoder._modules else (encoder, "")


def clip_sites(pipeline, encoder: Encoder) -> Iterator[Site]:
    """Embedding, every layer's attention, mlp and states, the final states and, where there is one, the pooled vector."""
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
        yield site(place, "out", f"{layer}.self_attn.out_proj", **here)
        yield site(place, "attention", f"{layer}.self_attn", heads=heads, **here)
        yield site(place, "fc1", f"{layer}.mlp.fc1", sizes=(tokens, config.intermediate_size), **here)
        yield site(place, "fc2", f"{layer}.mlp.fc2", **here)
        yield site(place, "mlp", f"{layer}.mlp", **here)
        yield site(place, "hidden", layer, **here)
    yield site(name, "final", f"{path}.final_layer_norm", read=not encoder.skipped or encoder.pooled)
    if projected:
        size = (module.text_projection.out_features,)
        path = f"{name}.text_projection"
        yield site(name, "pooled", path, axes=POOLED, sizes=size, tokenizer=None, read=encoder.pooled)
