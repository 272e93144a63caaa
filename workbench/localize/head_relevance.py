"""Head relevance vectors: which heads of cross-attention answer to a concept's words? (Park et al. 2025, arXiv 2412.02237, section 3)

Every head of every layer votes, at each call of the denoiser, for the concept whose word its attention goes to most. What a
head's attention goes to says what it looks for; not what it writes into the picture, nor whether that matters.
"""

import random
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
import xarray as xr
from einops import rearrange

from workbench.arguments import checked, mapping_of
from workbench.engine import Fold
from workbench.engine.text import encode
from workbench.experiments.forecast import answer_run
from workbench.families.attention import attention_of, check_attention
from workbench.inputs import shown, strings
from workbench.interventions import World
from workbench.locks import lock_of
from workbench.models import Model
from workbench.prompts import PromptSet, attributes, prompt_set
from workbench.schema import site_names
from workbench.sites import Site
from workbench.text import tokens_of

CONCEPTS = mapping_of(
    strings, "{'animal': ['zebra', 'lion'], 'style': ['sketch']}, words by the concept that they name"
)


def texts(value, argument: str) -> tuple[str, ...]:
    """Prompts of any kind, as mere texts."""
    return tuple(prompt.prompt for prompt in PromptSet.of(value))


@checked(prompts=texts, concepts=CONCEPTS)
def head_relevance(
    model: Model,
    prompts: str | Sequence[str],
    concepts: Mapping[str, str | Sequence[str]],
    *,
    sites: str | Sequence[str] = "unet.*.cross",
    seeds: Sequence[int] = (0,),
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 16,
) -> xr.DataArray:
    """How often each concept's word is what a head of cross-attention attends to most, in runs of some prompts.

    At each call a word of each concept is drawn (the same for all layers, prompts and seeds). The words, encoded each by itself, stand
    behind one start token as if they were the prompt; a head's attention of the image's conditional half to them is averaged over
    pixels, then over each word's tokens, and the head votes for the concept with the most. The run itself is not touched.

    Returns (concept, prompt, seed, site, head), the share of calls in which the head voted so: over concepts it adds up to 1; NaN for
    heads that a layer lacks. The paper's vector of a concept is `own = found.mean(["prompt", "seed"]).sel(concept=...)` over
    `own.mean()`, from 2100 prompts, with words drawn for each layer apart.

    Raises, before anything is generated, KeyError for sites that are no cross-attention, ValueError for fewer than two concepts, for
    words that the text encoder does not read whole, and for attention that is computed in another way.

    >>> concepts = {"animal": ["zebra", "lion"], "style": ["watercolor", "pencil sketch"]}
    >>> found = wb.head_relevance(model, "a watercolor of a zebra", concepts)
    >>> dict(found.sizes), bool((found.sum("concept") == 1).all())
    ({'concept': 2, 'prompt': 1, 'seed': 1, 'site': 16, 'head': 4}, True)
    """
    if model.family.joint:
        raise ValueError(
            "head_relevance: it asks what a layer's keys would be for single words, which in joint attention do not follow from the text "
            f"alone; this is a {type(model.pipeline).__name__}"
        )
    if model.family.given is not None:
        raise ValueError(
            "head_relevance: it asks what a layer's keys would be for single words behind a start token, which T5 puts before no text; "
            f"this is a {type(model.pipeline).__name__}"
        )
    if len(concepts) < 2:
        raise ValueError(f"concepts={shown(dict(concepts))}: heads choose among concepts; give at least two")
    layers = model.sites(*site_names(sites))
    if other := [site.name for site in layers if site.kind != "cross"]:
        raise KeyError(
            f"sites={shown(sites)} matches {', '.join(other[:5])}: not cross-attention; they are unet.*.cross"
        )
    for site in layers:
        check_attention(model.pipeline, model.sites[f"{site.name}.probs"])
    calls = len(model.calls(num_inference_steps))
    drawn = [
        [random.Random(f"{call} {name}").choice(words) for name, words in concepts.items()] for call in range(calls)
    ]
    states, spans = word_states(model, list(dict.fromkeys(word for words in drawn for word in words)))
    folds = [_votes(model, site, states, spans, drawn) for site in layers]
    worlds = [World(str(p), prompt) for p, prompt in enumerate(prompts)]

    def of_trial(steps: int) -> list[Fold]:
        return [_votes(model, site, states, spans, drawn[:1] * len(model.calls(steps))) for site in layers]

    settings = model._settings(num_inference_steps, guidance_scale)
    answer_run("head relevance", model, worlds, seeds, settings, of_trial, batch_size=batch_size)
    run = model.run(
        worlds,
        seeds=seeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        record=folds,
        progress=False,
    )
    votes = [
        run.values[fold.name].assign_coords(head=range(run.values[fold.name].sizes["head"]), concept=list(concepts))
        for fold in folds
    ]
    joined = xr.concat(votes, dim=pd.Index([site.name for site in layers], name="site"), join="outer")
    joined = joined.rename(world="prompt").assign_coords(prompt=range(len(prompts)))
    return joined.transpose("concept", "prompt", "seed", "site", "head")


def word_states(model: Model, words: Sequence[str]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """States (token, channel) of each word's own tokens, "" those before any word (the start token), and how many a word has."""
    pipeline = model.pipeline
    positions = {}
    for word in words:
        tokens = tokens_of(pipeline, word)
        if not tokens.own or tokens.read < len(word):
            raise ValueError(f"concepts: the text encoder does not read {word!r} whole: {tokens!r}; give shorter words")
        positions[word] = tokens.own
    with lock_of(pipeline):
        states, _ = encode(pipeline, words)
    found = {word: state[list(positions[word])] for word, state in zip(words, states)}
    return found | {"": states[0, : positions[words[0]][0]]}, {word: len(own) for word, own in positions.items()}


def _votes(
    model: Model,
    site: Site,
    states: Mapping[str, torch.Tensor],
    spans: Mapping[str, int],
    drawn: Sequence[Sequence[str]],
) -> Fold:
    """Shares of the calls in which each head attends most to each concept's word: (head, concept)."""
    attention = attention_of(model.pipeline, site)
    dtype = next(attention.to_k.parameters()).dtype
    with torch.no_grad():  # by calling the module, so that adapters act as they do in the run
        keys = {
            word: rearrange(attention.to_k(state.to(dtype)), "token (head c) -> head token c", head=site.heads).float()
            for word, state in states.items()
        }

    def update(total, call, worlds, query):
        words = drawn[call]
        of = torch.cat([keys[""], *(keys[word] for word in words)], 1)
        query = rearrange(query.float(), "row pixel (head c) -> row head pixel c", head=site.heads)
        attended = (query @ of.transpose(-1, -2) * attention.scale).softmax(-1).mean(-2)  # (row, head, token)
        parts = attended[..., keys[""].shape[1] :].split([spans[word] for word in words], -1)
        most = torch.stack([part.mean(-1) for part in parts], -1).argmax(-1)
        votes = F.one_hot(most, len(words)).float() / len(drawn)
        return votes if total is None else total + votes

    return Fold(f"{site.name} votes", (f"{site.name}.q",), ("head", "concept"), update)


def other_concepts(prompts: PromptSet, subject: str) -> dict[str, list[str]]:
    """Words of every attribute that comes with the workbench, but of those to which a subject or the prompts' labels belong."""
    found = {}
    for name in attributes():
        words = [label for label in prompt_set(name).labels if label != "none"]
        if not {subject, *prompts.labels}.intersection(words):
            found[name] = words
    return found
