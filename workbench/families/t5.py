"""Sites of a T5 text encoder (transformers' `T5EncoderModel`).

Its attention keeps a bias of relative positions inside, so that its probabilities have no site.
"""

from collections.abc import Iterator
from dataclasses import replace

from workbench.families.base import TEXT, Encoder, Site


def t5_sites(pipeline, encoder: Encoder, tokens: int) -> Iterator[Site]:
    """Embedding, every layer's attention with its parts, mlp and states, and the final states, for prompts of so many tokens.

    Attention, in order: q, k, v; z, the heads' results side by side, which the output projection makes "out" of; "attention", which
    equals "out". Of the mlp: what goes into the activation, "wi" or, gated, "wi_0" and "wi_1"; "wo"; "mlp", which equals "wo".
    """
    name, module = encoder.component, getattr(pipeline, encoder.component)
    config, blocks = module.config, module.encoder.block
    base = Site("", "text", name, name, "", "", "output", TEXT, (tokens, config.d_model), tokenizer=encoder.tokenizer)

    def site(place: str, kind: str, module: str, **facts) -> Site:
        return replace(base, name=f"{place}.{kind}", place=place, kind=kind, module=module, **facts)

    yield site(name, "embedding", f"{name}.encoder.embed_tokens")
    for i, block in enumerate(blocks):
        place, path = f"{name}.{i}", f"{name}.encoder.block.{i}"
        attention, mlp = f"{path}.layer.0.SelfAttention", f"{path}.layer.1.DenseReluDense"
        here = {"depth": i / max(1, len(blocks) - 1)}
        inner = config.num_heads * config.d_kv
        apart = here | {"heads": config.num_heads, "per_head": True, "sizes": (tokens, inner)}
        for kind in ("q", "k", "v"):
            yield site(place, kind, f"{attention}.{kind}", **apart)
        yield site(place, "z", f"{attention}.o", port="input", **apart)
        yield site(place, "out", f"{attention}.o", **here)
        yield site(place, "attention", attention, heads=config.num_heads, **here)
        dense = block.layer[1].DenseReluDense
        for kind in ("wi", "wi_0", "wi_1"):
            if hasattr(dense, kind):
                yield site(place, kind, f"{mlp}.{kind}", sizes=(tokens, config.d_ff), **here)
        yield site(place, "wo", f"{mlp}.wo", **here)
        yield site(place, "mlp", mlp, **here)
        yield site(place, "hidden", path, stream=True, **here)
    yield site(name, "final", f"{name}.encoder.final_layer_norm", stream=True)
