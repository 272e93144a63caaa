"""What is told and replaced in FLUX's blocks, of two streams and of one, by plain hooks on a pipeline that the workbench never saw."""

from contextlib import ExitStack
from functools import cache

import pytest
import torch
from cases import hooked
from diffusers.models.embeddings import apply_rotary_emb
from test_transformers import GUIDED, LENGTH, LION, ZEBRA, apart, draw, pair

import workbench as wb
from workbench.text import text_of

FEW = dict(num_inference_steps=1, guidance_scale=3.0)
DOUBLES = 2  # blocks of two streams, before those of one


@pytest.fixture(scope="module")
def flux():
    """A model and a plain pipeline that no test changes."""
    return cache(pair)("flux")


def in_block(plain, number: int) -> tuple[torch.nn.Module, torch.Tensor, list[torch.nn.Module]]:
    """Attention, output matrix of its results, and projections of a block: those of the picture, or of both; then those of the text."""
    transformer = plain.transformer
    if number < DOUBLES:
        attention = transformer.transformer_blocks[number].attn
        own = ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj")
        return attention, attention.to_out[0].weight, [getattr(attention, name) for name in own]
    block = transformer.single_transformer_blocks[number - DOUBLES]
    width = block.attn.to_q.out_features
    return (
        block.attn,
        block.proj_out.weight[:, :width],
        [getattr(block.attn, name) for name in ("to_q", "to_k", "to_v")],
    )


def test_contribution_of_the_texts_tokens_to_the_picture(flux):
    """At one step, in each block: what the subject's values add to the picture's rows, through the attention's own columns."""
    model, plain = flux
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra"),), {})
    found = wb.attention_contribution(model, prompts, wb.AttentionSpec(seeds=(0,), **FEW))
    own = list(text_of(model.pipeline, ZEBRA).of("zebra"))
    turned = []

    def keep(module, given, made):
        turned.append(made)

    for number in range(4):
        attention, out, parts = in_block(plain, number)
        with ExitStack() as stack:
            stack.callback(plain.transformer.pos_embed.register_forward_hook(keep).remove)
            seen = [stack.enter_context(hooked(part)) for part in parts]
            draw(plain, [ZEBRA], **FEW)
        heads = [each[0][0].unflatten(-1, (attention.heads, -1)) for each in seen]  # (token, head, channel)
        if number < DOUBLES:
            query, key, value, text_key, text_value = heads
            query, key = attention.norm_q(query), torch.cat([attention.norm_added_k(text_key), attention.norm_k(key)])
            value = torch.cat([text_value, value])
            query = torch.cat([torch.zeros_like(text_key), query])  # text first, as the positions count
        else:
            query, key, value = attention.norm_q(heads[0]), attention.norm_k(heads[1]), heads[2]
        query, key = (apply_rotary_emb(each[None], turned[0], sequence_dim=1)[0] for each in (query, key))
        scores = torch.einsum("ihc,jhc->hij", query[LENGTH:], key) / query.shape[-1] ** 0.5
        mixed = [
            torch.einsum("hij,jhc->ihc", scores.softmax(-1)[..., at], value[at]) for at in (own, list(range(LENGTH)))
        ]
        concept, whole = ((each.flatten(1) @ out.T).norm(dim=-1).mean().item() for each in mixed)
        given = found.clean.sel(site=f"transformer.{number}.joint").isel(prompt=0, seed=0)
        difference = abs(given.sel(metric="contribution").item() - concept) / concept
        print(f"block {number}: relative difference {difference:.1e}")
        assert difference < 1e-5 > abs(given.sel(metric="contribution_share").item() - concept / whole)
    assert len(set(found.clean.sel(metric="contribution").values.ravel().tolist())) == 4


def test_locogen_replaces_the_texts_part_of_blocks(flux):
    """A window over a block of two streams and one of one stream: text keys and values of the target's run, by plain hooks."""
    model, plain = flux
    prompt = wb.Prompt(ZEBRA, "zebra", target=LION)
    spec = wb.LocoGenSpec(windows=((1, 2),), inputs=("kv", "v"), seeds=(0,), **GUIDED)
    strip = wb.locogen_images(model, prompt, spec)
    double, single = (in_block(plain, number)[2] for number in (1, 2))

    def text_of_target(module, given, made):  # rows are the target's and the prompt's
        return made[[0, 0]]

    def text_part_of_target(module, given, made):
        return torch.cat([made[[0, 0], :LENGTH], made[:, LENGTH:]], 1)

    found = {}
    for inputs, chosen in {"kv": ((3, 4), (1, 2)), "v": ((4,), (2,))}.items():
        with ExitStack() as stack:
            for number in chosen[0]:
                stack.callback(double[number].register_forward_hook(text_of_target).remove)
            for number in chosen[1]:
                stack.callback(single[number].register_forward_hook(text_part_of_target).remove)
            found[inputs] = draw(plain, [LION, ZEBRA])[1]
        difference = apart(strip.sel(world=f"1-2 {inputs}")[0], found[inputs])
        print(f"{inputs}: largest difference {difference:.1e}")
        assert difference < 1e-5
    own = strip.sel(world="unaltered")[0]
    assert apart(found["kv"], found["v"]) > 1e-4 < min(apart(found[inputs], own) for inputs in found)
