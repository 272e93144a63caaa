"""Where the image looks: cross-attention maps per word, how sharp they are, and what a word's tokens contribute.

Maps after Tang et al. 2022 (DAAM, arXiv 2210.04885, section 3); contribution after Zarei et al. 2025. Nothing is intervened
on: one clean run tells all of it.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import xarray as xr
from einops import rearrange
from PIL import Image

from workbench.arguments import checked, instance_of, optional, prompt_set
from workbench.engine import Fold, Run
from workbench.experiments.base import Experiment
from workbench.experiments.executors import Executor
from workbench.experiments.forecast import answer_run
from workbench.experiments.shards import Row
from workbench.experiments.spec import Spec
from workbench.experiments.store import Store
from workbench.families.attention import output_weight
from workbench.inputs import count, shown, text
from workbench.interventions import World
from workbench.models import Model, Worlds, as_worlds
from workbench.progress import Bar
from workbench.prompts import PromptSet
from workbench.schema import site_names
from workbench.sites import Sites
from workbench.steps import window
from workbench.text import Tokens, text_of

PICTURES = instance_of("collections.abc:Mapping", fix="pictures by the worlds' names, as {'a zebra': picture}")


def layers_or_glob(value: Any, argument: str) -> str | tuple[str, ...]:
    """A glob as it is, or several."""
    names = site_names(value, argument)
    return value if isinstance(value, str) else names


def a_mask(value: Any, argument: str) -> np.ndarray:
    """A picture of True and False, (y, x)."""
    mask = np.asarray(value) if hasattr(value, "shape") else np.empty(0)
    if mask.dtype != bool or mask.ndim != 2 or not mask.any():
        raise ValueError(f"{argument}={shown(value)}: give an array of bools (y, x), some of them True")
    return mask


@dataclass(frozen=True)
class AttentionMaps:
    """Cross-attention probabilities of the conditional half, averaged over the steps of each bin.

    maps: by layer, (world, seed, steps, head, y, x, token), each pixel's row summing to one over the tokens. images: float in
    [0, 1], (world, seed, y, x, colour). tokens: each world's prompt as the text encoder reads it.

    >>> maps.tokens["clean"]
    0:<|startoftext|>  1:a  2:photo  3:of  4:a  5:zebra  6:<|endoftext|>
    >>> dict(maps.maps["unet.mid.cross"].sizes)
    {'world': 1, 'seed': 1, 'steps': 1, 'head': 4, 'y': 2, 'x': 2, 'token': 32}
    """

    maps: dict[str, xr.DataArray]
    images: xr.DataArray
    tokens: dict[str, Tokens]

    @checked(phrase=text, sites=text)
    def word(self, phrase: str, *, sites: str = "*") -> xr.DataArray:
        """A word's maps, the mean over its tokens, brought to the grid of the largest layer (bilinear).

        Returns (site, world, seed, steps, head, y, x), NaN for heads that a layer lacks; average over what is not asked:
        `.mean(["site", "steps", "head"])`. Raises ValueError for a word that a world's prompt lacks, KeyError for no such layer.

        >>> zebra = maps.word("zebra", sites="unet.up.2.*.cross").mean(["site", "steps", "head"])
        >>> dict(zebra.sizes)
        {'world': 1, 'seed': 1, 'y': 16, 'x': 16}
        """
        largest = max(self.maps.values(), key=lambda values: values.sizes["y"] * values.sizes["x"])
        grid = (largest.sizes["y"], largest.sizes["x"])
        found = {name: _resized(self._own(name, phrase), grid) for name in self._layers(sites)}
        return xr.concat(
            found.values(), dim=pd.Index(list(found), name="site"), join="outer", coords="minimal", compat="override"
        )

    @checked(phrase=text, sites=text)
    def focus(self, phrase: str, *, sites: str = "*", per_head: bool = False) -> xr.Dataset:
        """How sharp a word's map is, `entropy`, and how much attention it gets, `mass`: (site, world, seed, steps[, head]).

        entropy: of the map as a distribution over the layer's own pixels, divided by the logarithm of their number, so that 0 is
        one pixel, 1 is uniform, and resolutions compare. mass: the mean over pixels of what they give a token of the word; a
        sharp map of little mass means little. Heads are averaged into one map first, unless `per_head`.

        >>> found = maps.focus("zebra")
        >>> dict(found.entropy.sizes)
        {'site': 16, 'world': 1, 'seed': 1, 'steps': 1}
        >>> bool(((found.entropy > 0) & (found.entropy <= 1)).all())
        True
        """
        found = {}
        for name in self._layers(sites):
            own = self._own(name, phrase)
            own = own if per_head else own.mean("head")
            density = own / own.sum(["y", "x"])
            surprise = -(density * np.log(density.where(density > 0, 1))).sum(["y", "x"])
            found[name] = xr.Dataset(
                {"entropy": surprise / np.log(own.sizes["y"] * own.sizes["x"]), "mass": own.mean(["y", "x"])}
            )
        return xr.concat(found.values(), dim=pd.Index(list(found), name="site"), join="outer")

    @checked(phrase=text)
    def sharpest(self, phrase: str) -> pd.DataFrame:
        """Layers by the entropy of a word's map, the sharpest first, with its mass; means over worlds, seeds and steps.

        >>> maps.sharpest("zebra").columns.tolist()
        ['site', 'entropy', 'mass']
        >>> len(maps.sharpest("zebra"))
        16
        """
        found = self.focus(phrase).mean(["world", "seed", "steps"])
        return found.to_dataframe().sort_values("entropy").reset_index()

    def _own(self, name: str, phrase: str) -> xr.DataArray:
        """A word's maps in one layer, at its own resolution."""
        worlds = [
            self.maps[name].sel(world=world).isel(token=list(tokens.of(phrase))).mean("token")
            for world, tokens in self.tokens.items()
        ]
        return xr.concat(worlds, dim=pd.Index(list(self.tokens), name="world"))

    def _layers(self, glob: str) -> list[str]:
        if not (found := fnmatch.filter(self.maps, glob)):
            raise KeyError(f"sites={glob!r} matches no layer whose maps were kept; they are {', '.join(self.maps)}")
        return found


@checked(sites=optional(layers_or_glob), bins=count, images=PICTURES, step=partial(count, least=0))
def attention_maps(
    model: Model,
    worlds: Worlds,
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
) -> AttentionMaps:
    """Cross-attention maps of a run, or of one call of the UNet on given images.

    worlds: a prompt, or worlds with their interventions. sites: of the attention that text enters; all of it when left out. bins:
    equal parts of the denoising, averaged each by itself, over the calls of their steps. height, width: in pixels. images: by the
    worlds' names, noised to `step` of the run and looked at once (guidance 1). The maps are summed while the steps pass, so that their
    memory does not grow with the steps; the layers that are read take attention's explicit softmax.

    Raises, before anything is generated, KeyError for sites that are no cross-attention, ValueError for more bins than steps.

    >>> maps = wb.attention_maps(model, "a photo of a zebra", bins=2)
    >>> dict(maps.word("zebra").sizes)
    {'site': 16, 'world': 1, 'seed': 1, 'steps': 2, 'head': 4, 'y': 16, 'x': 16}
    """
    looked = look(
        "attention maps",
        model,
        worlds,
        lambda held: map_folds(model, sites, held),
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
    grids = {site.name: site.grid for site in model.sites_at(height, width)}
    maps = {
        name: _on_grid(values, grids[name]).assign_coords(steps=looked.bins)
        for name, values in looked.run.values.items()
    }
    tokens = {world.name: text_of(model.pipeline, world.prompt) for world in looked.run.worlds}
    return AttentionMaps(maps, looked.run.images, tokens)


class Bins:
    """Equal parts of the denoising, over whose calls something is averaged. step_of: the step of each call of the denoiser."""

    def __init__(self, count: int, step_of: Sequence[int]):
        self.count, self.of = count, [step * count // (step_of[-1] + 1) for step in step_of]

    @property
    def names(self) -> list[str]:
        return [str(window(i / self.count, (i + 1) / self.count)) for i in range(self.count)]

    def add(self, total: torch.Tensor | None, call: int, values: torch.Tensor) -> torch.Tensor:
        """The running means (row, bin, ...) with the values (row, ...) of one call more."""
        if total is None:
            total = torch.zeros(len(values), self.count, *values.shape[1:], device=values.device)
        own = self.of[call]
        total[:, own].add_(values, alpha=1 / self.of.count(own))
        return total


@dataclass(frozen=True)
class Looked:
    """A run in which something was averaged over bins of the steps, and the bins' names."""

    run: Run
    bins: list[str]


def look(
    name: str,
    model: Model,
    worlds: Worlds,
    folds: Callable[[Bins], list[Fold]],
    *,
    bins: int,
    seeds: Sequence[int],
    num_inference_steps: int | None,
    guidance_scale: float | None,
    height: int | None,
    width: int | None,
    images: Mapping[str, Image.Image] | None,
    step: int | None,
    batch_size: int,
) -> Looked:
    """A run of worlds, or one call of the denoiser on given images, with what accumulates over its bins; see `attention_maps`.

    name: of what is asked, in plans.
    """
    chosen = [World("clean", worlds)] if isinstance(worlds, str) else as_worlds(worlds)
    steps = 1 if images else model.num_inference_steps if num_inference_steps is None else num_inference_steps
    if not 1 <= bins <= steps:
        raise ValueError(f"bins={bins}: the run has {steps} steps; give 1 to {steps}, or raise num_inference_steps")
    if (images is None) != (step is None):
        raise ValueError(
            f"images and step go together; found step={step} and {'no' if images is None else len(images)} images"
        )
    if images is not None and (height is not None or width is not None):
        raise ValueError(f"height={height}, width={width}: images are of the model's own size; leave both out")
    held = Bins(bins, (0,) if images else model.calls(num_inference_steps).step)
    if images is None or step is None:
        settings = model._settings(num_inference_steps, guidance_scale, height, width)
    else:
        settings = model._settings_once(chosen, images, step, num_inference_steps)

    def of_trial(steps: int) -> list[Fold]:
        return folds(Bins(1, model.calls(steps).step))

    answer_run(name, model, chosen, seeds, settings, of_trial, batch_size=batch_size)
    common = dict(seeds=seeds, num_inference_steps=num_inference_steps, record=folds(held), batch_size=batch_size)
    if images is None:
        run = model.run(chosen, guidance_scale=guidance_scale, height=height, width=width, **common)
    else:
        run = model.run_once(chosen, images, step=step, **common)
    return Looked(run, held.names)


def map_folds(model: Model, sites: str | Sequence[str] | None, bins: Bins) -> list[Fold]:
    """Running means of the attention probabilities of these layers, or of all: (steps, head, pixel, token).

    Of joint attention, those of the picture's queries at the text's keys: the rest of each pixel's attention is at the picture.
    """
    layers = model.sites(*site_names(model.family.layers if sites is None else sites))
    if other := [site.name for site in layers if site.kind not in ("cross", "joint")]:
        raise KeyError(
            f"sites={shown(sites)} matches {', '.join(other[:5])}: not cross-attention layers; they are {model.family.layers}"
        )

    def update(total, call, worlds, probs):
        return bins.add(total, call, probs)

    return [
        Fold(site.name, (model.sites.beside(site, "cross.probs").name,), ("steps", "head", "pixel", "token"), update)
        for site in layers
    ]


def _on_grid(values: xr.DataArray, grid: tuple[int, int]) -> xr.DataArray:
    """Pixels as rows and columns."""
    array = rearrange(values.values, "world seed steps head (y x) token -> world seed steps head y x token", y=grid[0])
    coords = {"world": values.world, "seed": values.seed, "head": range(values.sizes["head"])}
    return xr.DataArray(array, dims=("world", "seed", "steps", "head", "y", "x", "token"), coords=coords)


def _resized(values: xr.DataArray, grid: tuple[int, int]) -> xr.DataArray:
    """Maps (..., y, x) on a grid of so many rows and columns."""
    flat = torch.from_numpy(values.values).reshape(-1, 1, *values.shape[-2:])
    array = F.interpolate(flat, size=grid, mode="bilinear", align_corners=False).numpy()
    return xr.DataArray(array.reshape(*values.shape[:-2], *grid), dims=values.dims, coords=values.coords)


@checked(maps=instance_of("xarray:DataArray", fix="maps (..., y, x), such as maps.word('zebra')"), mask=a_mask)
def mask_iou(maps: xr.DataArray, mask: np.ndarray) -> xr.DataArray:
    """Overlap, as intersection over union, of a map's brightest pixels with a true mask of as many.

    maps: (..., y, x). mask: bool (y, x) of a multiple of that size. As many pixels of the map, brought to the mask's grid, count
    as the mask has, so that no threshold is chosen. Chance is a / (2 - a) for a mask that covers a share a.

    >>> mask = np.zeros((64, 64), bool)
    >>> mask[16:48, 16:48] = True
    >>> zebra = maps.word("zebra").mean(["site", "steps", "head"])
    >>> dict(wb.mask_iou(zebra, mask).sizes)
    {'world': 1, 'seed': 1}
    """
    if missing := [axis for axis in ("y", "x") if axis not in maps.dims]:
        raise ValueError(f"maps has the axes {maps.dims}, without {missing}: give maps (..., y, x)")
    maps = maps.transpose(..., "y", "x")
    fine = maps if maps.shape[-2:] == mask.shape else _resized(maps, mask.shape)
    flat, count = fine.values.reshape(-1, mask.size), int(mask.sum())
    brightest = np.zeros(flat.shape, bool)
    np.put_along_axis(brightest, np.argpartition(-flat, count - 1, axis=1)[:, :count], True, axis=1)
    inside = (brightest & mask.reshape(-1)).sum(1)
    return maps.isel(y=0, x=0, drop=True).copy(data=(inside / (2 * count - inside)).reshape(fine.shape[:-2]))


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(Spec):
    """What `attention_contribution` asks.

    >>> wb.AttentionSpec(seeds=(0, 1), num_inference_steps=2).seeds
    (0, 1)
    """


@checked(prompts=prompt_set, spec=instance_of("workbench.localize.attention:AttentionSpec"))
def attention_contribution(
    model: Model,
    prompts: PromptSet,
    spec: AttentionSpec | None = None,
    *,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> xr.Dataset:
    """What the concept's words put into each cross-attention layer's output, in one clean run of each prompt.

    Returns a Dataset whose `clean` (metric, prompt, seed, site) has, averaged over steps: `contribution`, mean over pixels
    of | concat_h(sum_{j in J} A^h_ij V^h_j) W_O | for the tokens J of the prompt's subject (Zarei et al. 2025); `contribution_share`,
    the same divided by that of all tokens; `entropy` and `mass` of the subject's map (see `AttentionMaps.focus`). Of joint
    attention J are tokens of the text's stream; in FLUX's blocks of one stream W_O are those columns of the block's projection
    that take the attention, beside those that take the feed-forward.

    folder, executor: as for `workbench.causal_trace`. Raises ValueError for a subject that its prompt lacks, before anything is generated.

    >>> found = wb.attention_contribution(model, prompts, wb.AttentionSpec(seeds=(0,)))
    >>> found.metric.values.tolist()
    ['contribution', 'contribution_share', 'entropy', 'mass']
    >>> dict(found.clean.sizes)
    {'site': 16, 'metric': 4, 'prompt': 2, 'seed': 1}
    """
    prompts.require("subject", by="attention_contribution")
    return Looking(model, spec or AttentionSpec(), prompts=prompts, batch_size=batch_size).dataset(folder, executor)


class Looking(Experiment):
    """Attention of clean runs. A part is a prompt."""

    name = "attention"
    uncounted = ""

    def sites(self) -> Sites:
        return self.model.sites(self.model.family.layers)

    def check(self, p: int) -> int:
        text_of(self.model.pipeline, self.prompts[p].prompt).of(self.prompts[p].subject)
        return self.plan([World("clean", self.prompts[p].prompt)], scored=False, reuse=False)

    def measure(self, p: int, bar: Bar) -> list[Row]:
        """Rows (world, metric, prompt, seed, site, value)."""
        prompt = self.prompts[p]
        tokens = text_of(self.model.pipeline, prompt.prompt)
        step_of = self.model.calls(self.steps).step
        maps = map_folds(self.model, None, Bins(1, step_of))
        parts = [_contribution(self.model, fold.name, tokens.of(prompt.subject), len(step_of)) for fold in maps]
        run = self.run([World("clean", prompt.prompt)], record=[*maps, *parts])
        grids = {site.name: site.grid for site in self.sites()}
        own = {
            fold.name: _on_grid(run.values[fold.name], grids[fold.name]).assign_coords(steps=["0-1"]) for fold in maps
        }
        focus = AttentionMaps(own, run.images, {"clean": tokens}).focus(prompt.subject).sel(world="clean", steps="0-1")
        rows = []
        for fold, part in zip(maps, parts):
            concept, whole = run.values[part.name].sel(world="clean").transpose("part", "seed").values
            found = {
                "contribution": concept,
                "contribution_share": concept / whole,
                **{name: focus[name].sel(site=fold.name).values for name in ("entropy", "mass")},
            }
            rows += self.value_rows(p, {"world": "clean", "site": fold.name}, found)
        bar.update(len(self.spec.seeds))
        return rows


def _contribution(model: Model, layer: str, positions: tuple[int, ...], calls: int) -> Fold:
    """Mean norms, over so many calls, of what the tokens at these positions, and all tokens, add to a layer's output: (part,)."""
    site = model.sites[layer]
    out = output_weight(model.pipeline, site)
    split = partial(rearrange, pattern="row token (head c) -> row head token c", head=site.heads)

    def update(total, call, worlds, values, probs):
        values = split(values)
        own = torch.zeros(values.shape[-2], device=values.device, dtype=values.dtype)
        own[list(positions)] = 1
        parts = [
            F.linear(rearrange(probs @ v, "row head i c -> row i (head c)"), out)
            for v in (values * own[:, None], values)
        ]
        norms = torch.stack([part.float().norm(dim=-1).mean(-1) for part in parts], -1) / calls
        return norms if total is None else total + norms

    read = tuple(model.sites.beside(site, kind).name for kind in (model.family.values, "cross.probs"))
    return Fold(f"{layer} contribution", read, ("part",), update)
