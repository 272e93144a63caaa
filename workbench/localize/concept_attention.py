"""Where a word shows in the picture, whether or not the prompt has it: ConceptAttention, for joint attention.

Helbling et al. 2025 (arXiv 2502.04320): words go through the text's weights of every block as a third stream, which looks at the
picture and at itself, and at which nothing looks. A map is how near a word's output of the attention is to each pixel's, among the
words that are asked.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import pandas as pd
import torch
import xarray as xr
from einops import rearrange
from PIL import Image

from workbench.arguments import checked, optional
from workbench.engine import Fold, aside, encode
from workbench.families.attention import attention_of
from workbench.families.joint import is_joint
from workbench.families.third import is_rotary, rotation_of, through_block, without_pooled
from workbench.inputs import count, shown, strings, text
from workbench.localize.attention import PICTURES, Bins, layers_or_glob, look
from workbench.models import Model, Worlds
from workbench.schema import site_names
from workbench.sites import Sites
from workbench.text import text_of


def some_concepts(value: Sequence[str], argument: str) -> tuple[str, ...]:
    """Words, at least two, no two the same."""
    found = strings(value, argument)
    if len(found) < 2:
        raise ValueError(
            f"{argument}={shown(found)}: a map says where one of several words is the likeliest; give at least two, such as "
            "['zebra', 'grass', 'sky']"
        )
    if len(set(found)) < len(found):
        raise ValueError(f"{argument}={shown(found)}: the same word twice; give each once")
    return found


@dataclass(frozen=True)
class ConceptMaps:
    """How likely each of some words is at each pixel, averaged over the steps of each bin.

    maps: (site, world, seed, steps, y, x, concept), summing to one over the words. images: float in [0, 1], (world, seed, y, x, colour).

    >>> dit = wb.load("menagerie-dit")
    >>> found = wb.concept_attention(dit, "a zebra on the beach", ["zebra", "sand", "sky"], num_inference_steps=2)
    >>> dict(found.maps.sizes)
    {'site': 6, 'world': 1, 'seed': 1, 'steps': 1, 'y': 8, 'x': 8, 'concept': 3}
    """

    maps: xr.DataArray
    images: xr.DataArray

    @checked(concept=text, sites=text)
    def word(self, concept: str, *, sites: str = "*") -> xr.DataArray:
        """A word's maps, (site, world, seed, steps, y, x); average over what is not asked.

        Raises KeyError for a word that was not asked, and for no such layer.

        >>> dit = wb.load("menagerie-dit")
        >>> found = wb.concept_attention(dit, "a zebra on the beach", ["zebra", "sky"], num_inference_steps=2)
        >>> dict(found.word("zebra").mean(["site", "steps"]).sizes)
        {'world': 1, 'seed': 1, 'y': 8, 'x': 8}
        """
        known = self.maps.concept.values.tolist()
        if concept not in known:
            raise KeyError(f"{concept!r} is not among the concepts that were asked: {', '.join(known)}")
        if not (names := fnmatch.filter(self.maps.site.values.tolist(), sites)):
            raise KeyError(f"sites={sites!r} matches no layer of the maps; they are {', '.join(self.maps.site.values)}")
        return self.maps.sel(concept=concept, site=names).drop_vars("concept")


@checked(
    concepts=some_concepts, sites=optional(layers_or_glob), bins=count, images=PICTURES, step=partial(count, least=0)
)
def concept_attention(
    model: Model,
    worlds: Worlds,
    concepts: Sequence[str],
    *,
    seeds: int | Iterable[int] = (0,),
    sites: str | Sequence[str] | None = None,
    bins: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    images: Mapping[str, Image.Image] | None = None,
    step: int | None = None,
    batch_size: int = 16,
) -> ConceptMaps:
    """Where words show in the pictures of a run, or in given pictures; the prompt need not have them (Helbling et al. 2025).

    concepts: words or phrases, at least two. Each is read alone, and its tokens, of every encoder that the denoiser is given, go
    through the blocks of joint attention by the text's weights. Their queries look at the picture's keys and at their own; nothing
    looks at them, so that the pictures are bitwise what they are without. At a pixel, a layer and a step, a word's weight is the
    softmax, over the words, of <its output, the pixel's output> of the attention before the output projection, a word of several
    tokens by their mean. So maps say which of *these* words is the likeliest at a pixel: name what else is there to be seen.

    Words are modulated as the published code does it: by the timestep, in Stable Diffusion 3 with the prompt's pooled vector, in
    FLUX with one of zeros. A world's interventions act on its picture, not on the words' own stream; a committed edit acts on both.
    worlds, seeds, bins, images, step: as of `workbench.attention_maps`. sites: whose maps are kept; all layers of joint attention
    in which the text has weights of its own, when left out.

    Raises, before anything is generated, ValueError for a model without joint attention and for words that it does not read whole,
    KeyError for layers in which the text has no weights of its own (FLUX's later blocks).

    >>> dit = wb.load("menagerie-dit")
    >>> found = wb.concept_attention(dit, "a zebra on the beach", ["zebra", "sand", "sky"], num_inference_steps=2)
    >>> likeliest = found.maps.mean(["site", "steps"]).argmax("concept")
    >>> axes = wb.plot.overlay(found.images[0, 0], found.word("zebra").mean(["site", "steps"])[0, 0])
    """
    layers, kept = _layers(model, sites)
    words = _Words.of(model, concepts)
    grid = model.sites_at(height, width)[layers[0].name].grid or (0, 0)
    stream = _Stream(model, layers, words, grid)
    looked = look(
        "concept attention",
        model,
        worlds,
        lambda held: [stream.fold(number, held) for number in range(len(layers))],
        bins=bins,
        seeds=seeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        images=images,
        step=step,
        batch_size=batch_size,
    )
    maps = xr.concat([looked.run.values[name] for name in kept], dim=pd.Index(kept, name="site"))
    maps = maps.assign_coords(steps=looked.bins, concept=list(concepts))
    grids = rearrange(maps.values, "... (y x) concept -> ... y x concept", y=grid[0])
    axes = ("site", "world", "seed", "steps", "y", "x", "concept")
    return ConceptMaps(xr.DataArray(grids, dims=axes, coords=maps.coords), looked.run.images)


def _layers(model: Model, sites: str | Sequence[str] | None) -> tuple[Sites, list[str]]:
    """The attention whose text has weights of its own, and the names of those that are asked."""
    family, pipeline = model.family, model.pipeline
    if not family.joint:
        raise ValueError(
            f"concept_attention: words would go through the text's own weights in joint attention, which a {type(pipeline).__name__} of "
            f"the family {family.name} does not have; wb.attention_maps shows where the prompt's own words go"
        )
    own = Sites([site for site in model.sites(family.layers) if is_joint(attention_of(pipeline, site))])
    asked = own if sites is None else model.sites(*site_names(sites))
    if other := [site.name for site in asked if site not in own]:
        raise KeyError(
            f"sites={shown(sites)} matches {', '.join(other[:5])}: no joint attention in which the text has weights of its own; that "
            f"are {own[0].name} to {own[-1].name}"
        )
    return own, [site.name for site in asked]


@dataclass(frozen=True)
class _Words:
    """Concepts as blocks are given them. states: (token, channel). share: of each token in each concept, (concept, token)."""

    states: torch.Tensor
    share: torch.Tensor

    @classmethod
    def of(cls, model: Model, concepts: Sequence[str]) -> "_Words":
        pipeline, denoiser = model.pipeline, model.family.model(model.pipeline)
        places = []
        for concept in concepts:
            tokens = text_of(pipeline, concept)
            if tokens.read < len(concept):
                raise ValueError(
                    f"concepts: the text encoder does not read {concept!r} whole: {tokens!r}; give shorter words"
                )
            places.append(list(tokens.of(concept)))
        with model.lock, torch.no_grad():
            states = encode(pipeline, concepts)[0].to(denoiser.dtype)
            own = torch.cat([state[place] for state, place in zip(states, places)])
            embedded = denoiser.context_embedder(own)
        shares = [torch.full((1, len(place)), 1 / len(place), device=own.device) for place in places]
        return cls(embedded, torch.block_diag(*shares))


class _Stream:
    """The words on their way through the blocks, one call of the denoiser after the other: a fold for each block."""

    def __init__(self, model: Model, layers: Sites, words: _Words, grid: tuple[int, int]):
        self.model, self.layers, self.given = model, layers, words
        self.call = cache(partial(aside, model.pipeline))
        self.rotary = is_rotary(attention_of(model.pipeline, layers[0]))
        self.rotation = rotation_of(model.family.model(model.pipeline), grid) if self.rotary else None
        self.words = self.modulation = words.states  # of the call that passes, (row, ...)

    def fold(self, number: int, bins: Bins) -> Fold:
        """What one block's attention makes of the words: (steps, pixel, concept)."""
        site, sites = self.layers[number], self.model.sites
        attention = attention_of(self.model.pipeline, site)
        component = site.component
        begin = [f"{component}.pooled", f"{component}.modulation"] if number == 0 else []
        read = [*begin, *(sites.beside(site, kind).name for kind in ("image.k", "image.v", "image.z"))]

        def update(total, call, worlds, *values):
            *entering, key, value, output = values
            if entering:
                self.enter(*entering)
            given, self.words = through_block(
                site, attention, self.call, self.words, self.modulation, key, value, self.rotation
            )
            scores = output.float() @ (self.given.share @ given.float()).mT
            return bins.add(total, call, scores.softmax(-1))

        return Fold(site.name, tuple(read), ("steps", "pixel", "concept"), update)

    def enter(self, pooled: torch.Tensor, modulation: torch.Tensor):
        """A call of the denoiser begins."""
        self.words = self.given.states.expand(len(modulation), -1, -1)
        embedder = self.call(self.model.sites[f"{self.layers[0].component}.pooled"].module)
        self.modulation = without_pooled(modulation, pooled, embedder) if self.rotary else modulation
