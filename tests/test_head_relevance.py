"""Head relevance: each head votes once a call, for the concept whose word it attends to most."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.engine.text import encode
from workbench.families.attention import attention_of
from workbench.localize.head_relevance import other_concepts
from workbench.text import tokens_of

CONCEPTS = {"animal": ["zebra"], "style": ["pencil sketch"], "season": ["winter", "summer"]}
QUICK = dict(num_inference_steps=2, guidance_scale=3.0)


def test_votes_add_up_to_one_over_concepts_for_the_heads_that_there_are(model):
    found = wb.head_relevance(model, ["a zebra", "winter"], CONCEPTS, seeds=(0, 1), batch_size=8, **QUICK)
    assert found.dims == ("concept", "prompt", "seed", "site", "head")
    assert found.concept.values.tolist() == list(CONCEPTS) and found.prompt.values.tolist() == [0, 1]
    for site in model.sites("unet.*.cross"):
        votes = found.sel(site=site.name).isel(head=slice(site.heads))
        assert np.allclose(votes.sum("concept"), 1) and set(np.unique(votes)) <= {0, 0.5, 1}
        assert found.sel(site=site.name).isel(head=slice(site.heads, None)).isnull().all()
    few = wb.head_relevance(model, ["a zebra", "winter"], CONCEPTS, seeds=(1,), batch_size=1, **QUICK)
    assert (abs(few.sel(seed=1) - found.sel(seed=1)) > 0.1).mean() < 0.05  # but for near ties
    turned = wb.head_relevance(
        model, ["a zebra", "winter"], dict(reversed(CONCEPTS.items())), seeds=(0, 1), batch_size=8, **QUICK
    )
    assert turned.reindex_like(found).equals(found)


def test_votes_are_those_of_the_attention_to_the_words(menagerie):
    """By hand: queries of a plain run against the keys of words that are encoded each by itself, behind a start token."""
    words, site = {"a": ["zebra"], "b": ["pencil sketch"], "c": ["night"]}, menagerie.sites["unet.up.3.1.cross"]
    found = wb.head_relevance(menagerie, "a zebra at night", words, sites=site.name, **QUICK)
    queries = menagerie.run("a zebra at night", record=f"{site.name}.q", **QUICK).values[f"{site.name}.q"]
    queries = queries.isel(world=0, seed=0).transpose("step", "pixel", "channel").values
    states = [encode(menagerie.pipeline, word)[0][0] for (word,) in words.values()]
    counts = [len(tokens_of(menagerie.pipeline, word).own) for (word,) in words.values()]
    assert counts[1] == 2
    rows = torch.cat([states[0][:1], *(state[1 : 1 + count] for state, count in zip(states, counts))])
    keys = attention_of(menagerie.pipeline, site).to_k(rows).detach().numpy()
    width = keys.shape[1] // site.heads
    votes = np.zeros((3, site.heads))
    for query in queries:
        for head in range(site.heads):
            own = slice(head * width, (head + 1) * width)
            scores = query[:, own] @ keys[:, own].T / width**0.5
            probs = np.exp(scores - scores.max(1, keepdims=True))
            mean = (probs / probs.sum(1, keepdims=True)).mean(0)[1:]
            parts = np.split(mean, np.cumsum(counts)[:-1])
            votes[np.argmax([part.mean() for part in parts]), head] += 1 / len(queries)
    assert np.allclose(found.isel(prompt=0, seed=0, site=0), votes)
    assert len(np.unique(votes.argmax(0))) > 1  # heads differ, or nothing is tested


def test_the_localizer_adds_up_heads_that_answer_to_the_subject(menagerie):
    prompts = wb.prompt_set("object")[:2]
    spec = wb.TraceSpec(sites=("unet.up.2.*.cross",), seeds=(0, 1), num_inference_steps=2)
    scores = wb.localizers()["head relevance"](menagerie, prompts, spec)
    concepts = {"subject": ["giraffe"]} | other_concepts(prompts, "giraffe")
    assert set(concepts) == {"subject", "action", "colour", "position", "season", "style"}  # facts are of objects too
    own = wb.head_relevance(
        menagerie, prompts[1].prompt, concepts, sites=spec.sites, seeds=(0, 1), num_inference_steps=2
    )
    assert np.allclose(scores.sel(prompt=1), own.sel(concept="subject", prompt=0).sum("head"))


@pytest.mark.parametrize(
    "given, kind, said",
    [
        (dict(concepts={"a": ["zebra"]}), ValueError, "heads choose among concepts; give at least two"),
        (dict(concepts={"a": ["zebra"], "b": []}), ValueError, r"concepts\['b'\]"),
        (dict(concepts=["zebra", "lion"]), ValueError, "give a mapping such as {'animal': "),
        (dict(concepts={"a": "zebra", "b": "a zebra " * 40}), ValueError, "does not read 'a zebra a zebra .* whole"),
        (dict(concepts={"a": "zebra", "b": " "}), ValueError, "concepts"),
        (dict(sites="unet.mid.self"), KeyError, "matches unet.mid.self: not cross-attention"),
    ],
)
def test_what_no_head_can_vote_on_is_refused_before_anything_runs(menagerie, monkeypatch, given, kind, said):
    monkeypatch.setattr("workbench.engine.batch.Batch.traced", None)
    with pytest.raises(kind, match=said):
        wb.head_relevance(menagerie, "a zebra", **dict(concepts=CONCEPTS) | given)


def test_attention_of_another_make_is_refused(model, monkeypatch):
    site = model.sites("unet.mid*.cross")[0]
    monkeypatch.setattr(attention_of(model.pipeline, site), "rescale_output_factor", 2.0)
    with pytest.raises(ValueError, match="rescale_output_factor, which the path that shows probabilities lacks"):
        wb.head_relevance(model, "a zebra", CONCEPTS, sites=site.name)


@pytest.mark.parametrize(
    "prompt, changes, said",
    [
        (wb.Prompt("a zebra", "zebra"), dict(sites=("text_encoder.0.mlp",)), "cross-attention layers alone"),
        (wb.Prompt("a zebra", "zebra"), dict(window=3), "window=3 asks for neighbours"),
        (wb.Prompt("a zebra"), {}, "looks at the subject's words, which a prompt does not name"),
    ],
)
def test_the_localizer_abstains(menagerie, prompt, changes, said):
    asked = wb.TraceSpec(**dict(sites=("unet.mid.cross",)) | changes)
    with pytest.raises(wb.Abstains, match=said):
        wb.localizers()["head relevance"](menagerie, wb.PromptSet.of([prompt]), asked)
