"""Words that are in no prompt, as a third stream through joint attention, against diffusers' own blocks given these words as their text."""

import numpy as np
import pytest
import torch
from cases import equal, hooked
from test_transformers import GUIDED, LENGTH, LION, ZEBRA, apart, draw, fresh, pair

import workbench as wb
from workbench.text import text_of

CONCEPTS = ("giraffe", "beach", "red car")  # the last of several tokens, the first of T5's letters


def blocks_given_the_words(plain, embedded, share, zeros: bool, calls: list):
    """Hooks on a plain pipeline's blocks, that run each once more on its own picture with the words as its text.

    embedded: (token, channel). share: (concept, token). zeros: whether the pooled vector of the words' modulation is zero. calls: to
    which the softmax over the words is added, (row, pixel, concept) of each block.
    """
    transformer = plain.transformer
    state = {}

    def begin(module, args, kwargs):
        state.update(words=embedded, again=False)

    def timed(module, args, kwargs, output):
        if zeros and not state["again"]:
            state["again"] = True
            state["modulation"] = module(*args[:-1], torch.zeros_like(args[-1]))
            state["again"] = False

    handles = [transformer.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [transformer.time_text_embed.register_forward_hook(timed, with_kwargs=True)]

    def at(block):
        last = getattr(block, "context_pre_only", False)
        inputs: dict = {}
        attention = block.attn

        def normed(module, args, kwargs, output):  # the picture's modulation is the prompt's, whatever the words' is
            return inputs["normed"] if state["again"] else inputs.update(normed=output)

        def of_picture(module, args):
            inputs["image"] = args[0]

        def of_text(module, args):
            inputs["text"] = args[0]

        def attended(module, args, kwargs, output):
            inputs["text"] = output[1]

        handles.append(block.norm1.register_forward_hook(normed, with_kwargs=True))
        handles.append(attention.to_out[0].register_forward_pre_hook(of_picture))
        if last:
            handles.append(attention.register_forward_hook(attended, with_kwargs=True))
        else:
            handles.append(attention.to_add_out.register_forward_pre_hook(of_text))

        def after(module, args, kwargs, output):
            if state["again"]:
                return
            picture, state["again"] = inputs["image"], True
            words = state["words"].expand(len(picture), -1, -1)
            more = {}
            if zeros:  # FLUX: the words stand at zero, as text does
                cos, sin = kwargs["image_rotary_emb"]
                more["image_rotary_emb"] = tuple(
                    torch.cat([each[:1].expand(words.shape[1], -1), each[LENGTH:]]) for each in (cos, sin)
                )
            modulation = state["modulation"] if zeros else kwargs["temb"]
            text, _ = module(
                hidden_states=kwargs["hidden_states"], encoder_hidden_states=words, temb=modulation, **more
            )
            state["again"] = False
            state["words"] = text
            calls.append((picture @ (share @ inputs["text"]).mT).softmax(-1))

        handles.append(block.register_forward_hook(after, with_kwargs=True))

    for block in transformer.transformer_blocks:
        at(block)
    return handles


@pytest.mark.parametrize("name", ["sd3", "sd35", "flux"])
def test_words_pass_as_if_they_were_the_blocks_text(name):
    model, plain = pair(name)
    found = wb.concept_attention(model, [ZEBRA, LION], CONCEPTS, seeds=(0, 5), bins=3, **GUIDED)
    states = model.family.encode(model.pipeline, list(CONCEPTS))[0]
    own = [list(text_of(model.pipeline, concept).of(concept)) for concept in CONCEPTS]
    share = torch.zeros(len(CONCEPTS), sum(map(len, own)))
    at = 0
    for number, places in enumerate(own):
        share[number, at : at + len(places)] = 1 / len(places)
        at += len(places)
    with torch.no_grad():
        embedded = plain.transformer.context_embedder(torch.cat([s[p] for s, p in zip(states, own)]))
    calls: list[torch.Tensor] = []
    handles = blocks_given_the_words(plain, embedded, share, name == "flux", calls)
    rows = [ZEBRA, ZEBRA, LION, LION]
    images = draw(plain, rows, (0, 5, 0, 5))
    for handle in handles:
        handle.remove()
    assert equal(found.images.values.reshape(images.shape), images)  # bitwise what diffusers draws without the words
    layers = len(plain.transformer.transformer_blocks)
    expected = torch.stack([each[-4:] for each in calls]).unflatten(0, (3, layers)).detach()
    maps = found.maps.transpose("steps", "site", "world", "seed", "y", "x", "concept").values
    difference = apart(maps.reshape(expected.shape), expected)
    print(name, "largest difference", difference)
    assert difference < 1e-5 and np.ptp(expected.numpy()) > 0.01
    assert found.maps.site.values.tolist() == [f"transformer.{i}.joint" for i in range(layers)]
    assert np.allclose(found.maps.sum("concept"), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["sd35", "flux"])
def test_maps_are_as_other_maps_are(name):
    """Another size, some layers, half precision; cut by word and laid over the picture; beside the one call on a given picture."""
    model = wb.load(fresh(name, "bfloat16"), max_sequence_length=LENGTH)
    size = dict(height=24, width=32)
    found = wb.concept_attention(model, ZEBRA, ["zebra", "beach"], sites="transformer.1.joint", **size, **GUIDED)
    assert equal(found.images[:, 0], draw(fresh(name, "bfloat16"), [ZEBRA], **size))
    assert dict(found.word("beach").sizes) == {"site": 1, "world": 1, "seed": 1, "steps": 1, "y": 6, "x": 8}
    assert np.allclose(found.word("beach") + found.word("zebra"), 1, atol=1e-5)
    mask = np.zeros((24, 32), bool)
    mask[:12] = True
    assert 0 <= wb.mask_iou(found.word("zebra").mean(["site", "steps"]), mask).item() <= 1
    wb.plot.overlay(found.images[0, 0], found.word("zebra")[0, 0, 0, 0])
    (picture,) = model.generate(LION, num_inference_steps=1)
    given = dict(images={"a": picture}, step=1, num_inference_steps=2)
    once = wb.concept_attention(model, {"a": ZEBRA}, ["zebra", "beach"], **given)
    other = wb.concept_attention(model, {"a": LION}, ["zebra", "beach"], **given)
    assert (
        once.maps.sizes["steps"] == 1 and apart(once.maps, other.maps) > 1e-5
    )  # what is seen is seen beside the prompt


def test_what_has_no_third_stream_is_refused():
    flux, unet = wb.load(fresh("flux"), max_sequence_length=LENGTH), wb.load()
    asked = {
        "words would go through the text's own weights in joint attention, which a StableDiffusionPipeline": (unet, {}),
        "give at least two, such as": (flux, dict(concepts=["zebra"])),
        "the same word twice": (flux, dict(concepts=["zebra", "zebra"])),
        "the text encoder does not read": (flux, dict(concepts=["zebra", "a zebra and a giraffe with a hat"])),
        "transformer.2.joint, transformer.3.joint: no joint attention in which the text has weights of its own": (
            flux,
            dict(sites="transformer.*.joint"),
        ),
        "bins=9: the run has 2 steps": (flux, dict(bins=9)),
        "images and step go together": (flux, dict(step=1)),
    }
    for message, (model, more) in asked.items():
        denoiser = model.family.model(model.pipeline)
        with hooked(denoiser) as calls, pytest.raises((ValueError, KeyError)) as raised:
            wb.concept_attention(model, ZEBRA, **dict(concepts=["zebra", "beach"], num_inference_steps=2) | more)
        assert message in str(raised.value) and not calls
    found = wb.concept_attention(flux, ZEBRA, ["zebra", "beach"], num_inference_steps=1)
    with pytest.raises(KeyError, match="'lion' is not among the concepts that were asked: zebra, beach"):
        found.word("lion")
    with pytest.raises(KeyError, match="matches no layer of the maps"):
        found.word("zebra", sites="unet.*")
