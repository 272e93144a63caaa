"""Where the image looks: cross-attention maps per word, how sharp they are, and what a word's tokens contribute.

Maps after Tang et al. 2022 (DAAM, arXiv 2210.04885, section 3); contribution after Zarei et al. 2025. Nothing is intervened
on: one clean run tells all of it.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import xarray as xr
from einops import rearrange
from PIL import Image

from workbench.engine import Fold
from workbench.experiments.base import Experiment
from workbench.experiments.shards import Row
from workbench.experiments.spec import Spec, window_name
from workbench.experiments.store import Store
from workbench.interventions import World
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import PromptSet
from workbench.sites import Sites
from workbench.text import Tokens, tokens_of


@dataclass(frozen=True)
class AttentionMaps:
    """Cross-attention probabilities of the conditional half, averaged over the steps of each bin.

    maps: by layer, (world, seed, steps, head, y, x, token), each pixel's row summing to one over the tokens. images: float in
    [0, 1], (world, seed, y, x, colour). tokens: each world's prompt as the text encoder reads it.
    """

    maps: dict[str, xr.DataArray]
    images: xr.DataArray
    tokens: dict[str, Tokens]

    def word(self, phrase: str, *, sites: str = "*") -> xr.DataArray:
        """A word's maps, the mean over its tokens, brought to the grid of the largest layer (bilinear).

        Returns (site, world, seed, steps, head, y, x), NaN for heads that a layer lacks; average over what is not asked:
        `.mean(["site", "steps", "head"])`. Raises ValueError for a word that a world's prompt lacks, KeyError for no such layer.
        """
        side = max(values.sizes["y"] for values in self.maps.values())
        found = {name: _resized(self._own(name, phrase), side) for name in self._layers(sites)}
        return xr.concat(
            found.values(), dim=pd.Index(list(found), name="site"), join="outer", coords="minimal", compat="override"
        )

    def focus(self, phrase: str, *, sites: str = "*", per_head: bool = False) -> xr.Dataset:
        """How sharp a word's map is, `entropy`, and how much attention it gets, `mass`: (site, world, seed, steps[, head]).

        entropy: of the map as a distribution over the layer's own pixels, divided by the logarithm of their number, so that 0 is
        one pixel, 1 is uniform, and resolutions compare. mass: the mean over pixels of what they give a token of the word; a
        sharp map of little mass means little. Heads are averaged into one map first, unless `per_head`.
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

    def sharpest(self, phrase: str) -> pd.DataFrame:
        """Layers by the entropy of a word's map, the sharpest first, with its mass; means over worlds, seeds and steps."""
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


def attention_maps(
    model: Model,
    worlds: str | World | Sequence[World],
    *,
    seeds: Sequence[int] = (0,),
    sites: str = "unet.*.cross",
    bins: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    images: Mapping[str, Image.Image] | None = None,
    step: int | None = None,
    batch_size: int = 16,
) -> AttentionMaps:
    """Cross-attention maps of a run, or of one call of the UNet on given images.

    worlds: a prompt, or worlds with their interventions. bins: equal parts of the denoising, averaged each by itself. images:
    by the worlds' names, noised to `step` of the run and looked at once (guidance 1). The maps are summed while the steps pass,
    so that their memory does not grow with the steps; the layers that are read take attention's explicit softmax.

    Raises, before anything is generated, KeyError for sites that are no cross-attention, ValueError for more bins than steps.
    """
    worlds = (
        [World("clean", worlds)] if isinstance(worlds, str) else [worlds] if isinstance(worlds, World) else list(worlds)
    )
    steps = 1 if images else model.num_inference_steps if num_inference_steps is None else num_inference_steps
    if not 1 <= bins <= steps:
        raise ValueError(f"bins={bins}: the run has {steps} steps; give 1 to {steps}, or raise num_inference_steps")
    if (images is None) != (step is None):
        raise ValueError(
            f"images and step go together; found step={step} and {'no' if images is None else len(images)} images"
        )
    folds = map_folds(model, sites, bins, steps)
    common = dict(seeds=seeds, num_inference_steps=num_inference_steps, record=folds, batch_size=batch_size)
    if images is None:
        run = model.run(worlds, guidance_scale=guidance_scale, **common)
    else:
        run = model.run_once(worlds, images, step=step, **common)
    edges = [window_name((i / bins, (i + 1) / bins)) for i in range(bins)]
    maps = {fold.name: _on_grid(run.values[fold.name]).assign_coords(steps=edges) for fold in folds}
    return AttentionMaps(maps, run.images, {world.name: tokens_of(model.pipeline, world.prompt) for world in worlds})


def map_folds(model: Model, sites: str, bins: int, steps: int) -> list[Fold]:
    """Running means of the attention probabilities of these layers: (steps, head, pixel, token)."""
    layers = [site.name for site in model.sites(sites)]
    if other := [name for name in layers if not name.endswith(".cross")]:
        raise KeyError(
            f"sites={sites!r} matches {', '.join(other[:5])}: not cross-attention layers; they are unet.*.cross"
        )
    bin_of = [step * bins // steps for step in range(steps)]

    def update(total, step, worlds, probs):
        if total is None:
            total = torch.zeros(len(probs), bins, *probs.shape[1:], device=probs.device)
        total[:, bin_of[step]].add_(probs, alpha=1 / bin_of.count(bin_of[step]))
        return total

    return [Fold(name, (f"{name}.probs",), ("steps", "head", "pixel", "token"), update) for name in layers]


def _on_grid(values: xr.DataArray) -> xr.DataArray:
    """Pixels as rows and columns of a square."""
    side = round(values.sizes["pixel"] ** 0.5)
    array = rearrange(values.values, "world seed steps head (y x) token -> world seed steps head y x token", y=side)
    coords = {"world": values.world, "seed": values.seed, "head": range(values.sizes["head"])}
    return xr.DataArray(array, dims=("world", "seed", "steps", "head", "y", "x", "token"), coords=coords)


def _resized(values: xr.DataArray, side: int) -> xr.DataArray:
    """Maps (..., y, x) on a grid of this side."""
    flat = torch.from_numpy(values.values).reshape(-1, 1, *values.shape[-2:])
    array = F.interpolate(flat, size=(side, side), mode="bilinear", align_corners=False).numpy()
    return xr.DataArray(array.reshape(*values.shape[:-2], side, side), dims=values.dims, coords=values.coords)


def mask_iou(maps: xr.DataArray, mask: np.ndarray) -> xr.DataArray:
    """Overlap, as intersection over union, of a map's brightest pixels with a true mask of as many.

    maps: (..., y, x). mask: bool (y, x) of a multiple of that size. As many pixels of the map, brought to the mask's grid, count
    as the mask has, so that no threshold is chosen. Chance is a / (2 - a) for a mask that covers a share a.
    """
    maps = maps.transpose(..., "y", "x")
    fine = _resized(maps, mask.shape[0]) if maps.sizes["y"] != mask.shape[0] else maps
    flat, count = fine.values.reshape(-1, mask.size), int(mask.sum())
    brightest = np.zeros(flat.shape, bool)
    np.put_along_axis(brightest, np.argpartition(-flat, count - 1, axis=1)[:, :count], True, axis=1)
    inside = (brightest & mask.reshape(-1)).sum(1)
    return maps.isel(y=0, x=0, drop=True).copy(data=(inside / (2 * count - inside)).reshape(fine.shape[:-2]))


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(Spec):
    """What `attention_contribution` asks."""


def attention_contribution(
    model: Model,
    prompts: PromptSet,
    spec: AttentionSpec | None = None,
    *,
    folder: str | Path | Store | None = None,
    batch_size: int = 16,
) -> xr.Dataset:
    """What the concept's words put into each cross-attention layer's output, in one clean run of each prompt.

    Returns a Dataset whose `clean` (metric, prompt, seed, site) has, averaged over steps: `contribution`, mean over pixels
    of | concat_h(sum_{j in J} A^h_ij V^h_j) W_O | for the tokens J of the prompt's subject (Zarei et al. 2025); `contribution_share`,
    the same divided by that of all tokens; `entropy` and `mass` of the subject's map (see `AttentionMaps.focus`).

    folder: as for `workbench.causal_trace`. Raises ValueError for a subject that its prompt lacks, before anything is generated.
    """
    return Looking(model, spec or AttentionSpec(), prompts=prompts, batch_size=batch_size).dataset(folder)


class Looking(Experiment):
    """Attention of clean runs. A part is a prompt."""

    name = "attention"

    def sites(self) -> Sites:
        return self.model.sites("unet.*.cross")

    def check(self, p: int) -> int:
        tokens_of(self.model.pipeline, self.prompts[p].prompt).of(self.prompts[p].subject)
        return len(self.spec.seeds)

    def measure(self, p: int, bar: Bar) -> list[Row]:
        """Rows (world, metric, prompt, seed, site, value)."""
        prompt = self.prompts[p]
        tokens = tokens_of(self.model.pipeline, prompt.prompt)
        maps = map_folds(self.model, "unet.*.cross", 1, self.steps)
        parts = [_contribution(self.model, fold.name, tokens.of(prompt.subject), self.steps) for fold in maps]
        run = self.run([World("clean", prompt.prompt)], record=[*maps, *parts])
        own = {fold.name: _on_grid(run.values[fold.name]).assign_coords(steps=["0-1"]) for fold in maps}
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


def _contribution(model: Model, layer: str, positions: tuple[int, ...], steps: int) -> Fold:
    """Mean norms of what the tokens at these positions, and all tokens, add to a layer's output: (part,)."""
    site = model.sites(layer)[0]
    out = model.pipeline.unet.get_submodule(f"{site.module.removeprefix('unet.')}.to_out.0").weight
    split = partial(rearrange, pattern="row token (head c) -> row head token c", head=site.heads)

    def update(total, step, worlds, values, probs):
        values = split(values)
        own = torch.zeros(values.shape[-2], device=values.device, dtype=values.dtype)
        own[list(positions)] = 1
        parts = [
            F.linear(rearrange(probs @ v, "row head i c -> row i (head c)"), out)
            for v in (values * own[:, None], values)
        ]
        norms = torch.stack([part.float().norm(dim=-1).mean(-1) for part in parts], -1) / steps
        return norms if total is None else total + norms

    return Fold(f"{layer} contribution", (f"{layer}.v", f"{layer}.probs"), ("part",), update)
