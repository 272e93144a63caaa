"""Results and runs as plain data: the cells of heat-maps, their intervals, and the prompts and pictures behind them.

    study = study_of(wb.open_results("runs/trace"))
    study.views[0].cells["value"]  # numbers, (axes...)
    study.plain()                  # the same as JSON holds it

The numbers are those of `workbench.effects`, `LocoGen.effects` and `Sweep.effects`; nothing is measured here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

CHOICES = ("prompt", "seed", "draw")  # axes of single pictures: cells are means over them
MARKED = 0.1  # of the largest effect of a view: what a dot marks at the least
ORDERED = ("steps", "world")  # axes of texts that are an order all the same
ENOUGH = 5  # prompts, or of a single prompt seeds, below which an interval earns no dot

Url = str
Pictures = Sequence[tuple[str, Url]]


@dataclass(frozen=True)
class Axis:
    """values: as results hold them. ordered: they are steps of one quantity, for a slider. about: lines on each value."""

    name: str
    values: tuple[Any, ...]
    ordered: bool = False
    about: tuple[tuple[str, ...], ...] = ()

    def plain(self) -> dict[str, Any]:
        values = [f"{value:g}" if isinstance(value, float) else str(value) for value in self.values]
        return {"name": self.name, "values": values, "ordered": self.ordered, "about": [list(each) for each in self.about]}


@dataclass(frozen=True)
class View:
    """One heat-map.

    group: which sites, where those of one measure are in several views. axes: of the cells. cells: `value`, and where there are intervals `low`, `high`, `marked`; where there is a total, `share` of it
    with `share_low`, `share_high`; `prompts`, how many entered: (axes...). totals: effects that belong to no cell, with their
    intervals. references: scores of each prompt, by what was scored. behind: the same of each cell, (axes..., prompt), the effect
    last. signed: whether zero is in the middle. down, across: the axes that are shown first.
    """

    label: str
    unit: str
    axes: tuple[Axis, ...]
    cells: Mapping[str, np.ndarray]
    signed: bool
    down: str
    across: str = ""
    group: str = ""
    interval: str = ""
    totals: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    references: Mapping[str, np.ndarray] = field(default_factory=dict)
    behind: Mapping[str, np.ndarray] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "unit": self.unit,
            "axes": [axis.plain() for axis in self.axes],
            "cells": {name: _numbers(values) for name, values in self.cells.items()},
            "signed": self.signed,
            "down": self.down,
            "across": self.across,
            "group": self.group,
            "interval": self.interval,
            "totals": {name: _numbers(np.array(values)) for name, values in self.totals.items()},
            "references": {name: _numbers(values) for name, values in self.references.items()},
            "behind": {name: _numbers(values) for name, values in self.behind.items()},
        }


@dataclass
class Study:
    """Everything that is shown of one run or one experiment.

    about: lines on what was asked of what. choices: axes of the single pictures behind a cell. pictures: by `key`, each with its
    caption. hint: said where a cell has no pictures. live: whether they are drawn when asked for.
    """

    title: str
    about: Sequence[str]
    views: Sequence[View]
    choices: Sequence[Axis] = ()
    pictures: dict[str, Pictures] = field(default_factory=dict)
    hint: str = ""
    live: bool = False

    def plain(self) -> dict[str, Any]:
        urls: dict[Url, int] = {}  # a picture that belongs to many cells is kept once
        pictures = {
            key: [[caption, urls.setdefault(url, len(urls))] for caption, url in each]
            for key, each in self.pictures.items()
        }
        return {
            "title": self.title,
            "about": list(self.about),
            "views": [view.plain() for view in self.views],
            "choices": [axis.plain() for axis in self.choices],
            "pictures": pictures,
            "urls": list(urls),
            "hint": self.hint,
            "live": self.live,
        }


def key(at: Mapping[str, int]) -> str:
    """How pictures are named: by the number of each axis's value, axes in alphabetical order."""
    return " ".join(f"{name}={at[name]}" for name in sorted(at))


def axis_of(data: xr.DataArray | xr.Dataset, name: str) -> Axis:
    """An axis with what stands beside it, such as the strengths of a trial."""
    labels = data[name].values
    beside = [other for other, each in data.coords.items() if each.dims == (name,) and other != name]
    about = tuple(
        tuple(f"{other}: {data[other].values[i]}" for other in beside if str(data[other].values[i]))
        for i in range(len(labels))
    )
    ordered = name in ORDERED or np.issubdtype(labels.dtype, np.number)
    return Axis(name, tuple(labels.tolist()), ordered, about)


def by_layer(data: xr.Dataset, order: Sequence[str]) -> xr.Dataset:
    """Sites in the order of the model; of several kinds in several layers, as two axes."""
    if "site" not in data.dims:
        return data
    known = [name for name in order if name in data.site.values]
    data = data.sel(site=[*known, *(name for name in data.site.values if name not in known)])
    pairs = list(zip(data.layer.values, data.kind.values))
    layers, kinds = (list(dict.fromkeys(names)) for names in zip(*pairs))
    if len(layers) in (1, len(pairs)) or len(set(pairs)) < len(pairs):  # one kind a layer, or no layers at all
        return data.drop_vars(["layer", "kind"])
    apart = data.set_index(site=["layer", "kind"]).unstack("site")
    return apart.reindex(layer=layers, kind=kinds)


def alike(data: xr.Dataset, value: str) -> Iterator[xr.Dataset]:
    """Sites that were measured at the same tokens and steps, together: each group with these alone."""
    axes = [axis for axis in ("token", "steps") if axis in data[value].dims]
    if "site" not in data.dims or not axes:
        yield data
        return
    measured = data[value].notnull()
    there = {axis: measured.any([other for other in measured.dims if other not in ("site", axis)]) for axis in axes}
    groups: dict[tuple, list[str]] = {}
    for site in data.site.values:
        has = tuple(tuple(there[axis][axis].values[there[axis].sel(site=site).values]) for axis in axes)
        groups.setdefault(has, []).append(site)
    for has, sites in groups.items():
        if all(has):
            yield data.sel(site=sites).sel({axis: list(values) for axis, values in zip(axes, has)})


def effect_views(
    effects: xr.Dataset,
    scores: Mapping[str, xr.DataArray],
    contrast: xr.DataArray,
    *,
    value: str,
    label: str,
    signed: bool,
    order: Sequence[str],
) -> Iterator[View]:
    """Heat-maps of averaged effects, one for each group of sites.

    scores: by world, single ones of the effects' metric, (prompt, [draw,] seed[, axes...]). contrast: the single effects, with axes.
    order: of the model's sites.
    """
    names = {"value": value, "low": f"{value}_low", "high": f"{value}_high"}
    if ratio := effects.attrs["ratio"]:
        names |= {"share": ratio, "share_low": f"{ratio}_low", "share_high": f"{ratio}_high"}
    cells = effects[[*names.values(), "prompts"]].rename({old: new for new, old in names.items()})
    if value == effects.attrs["effect"]:
        cells = cells.assign(marked=_marked(effects, value, contrast))
    inner = [axis for axis in ("draw", "seed") if axis in contrast.dims]
    singles = {name: each.mean([axis for axis in inner if axis in each.dims]) for name, each in scores.items()}
    placed = {name: each for name, each in singles.items() if set(each.dims) > {"prompt"}}
    if signed:
        placed["effect"] = contrast.mean(inner)
    behind = xr.Dataset({f"behind {name}": each for name, each in placed.items()})
    references = {name: each.values for name, each in singles.items() if name not in placed}
    totals = {
        name.replace("_", " "): tuple(float(effects[f"{name}{end}"]) for end in ("", "_low", "_high"))
        for name in ("total_effect", "pooled_effect")
        if name in effects and not effects[name].dims
    }
    groups = list(alike(cells.merge(behind, compat="override"), "value"))
    for group in groups:
        places = group.layer.values if len(groups) > 1 else ()
        data = by_layer(group, order)
        data = data.assign(value=data["value"].transpose(*_cell_axes(data)))
        axes = tuple(axis_of(data["value"], name) for name in data["value"].dims)
        several = [axis.name for axis in axes if len(axis.values) > 1] or [axes[0].name]
        across = [name for name in ("token", "strength", "steps", "kind", *several) if name in several[1:]]
        numbers = {name: data[name].transpose(*data["value"].dims).values for name in cells.data_vars}
        yield View(
            label,
            effects.attrs["unit"],
            axes,
            numbers | {"prompts": np.nan_to_num(numbers["prompts"])},
            signed,
            several[0],
            across[0] if across else "",
            " to ".join(dict.fromkeys([places[0], places[-1]])) if len(places) else "",
            f"{100 * effects.attrs['level']:g} % interval",
            totals,
            references,
            {name.removeprefix("behind "): data[name].transpose(*data["value"].dims, "prompt").values for name in behind},
        )


def _cell_axes(data: xr.Dataset) -> list[str]:
    first = [name for name in ("layer", "site", "kind") if name in data["value"].dims]
    return [*first, *(name for name in data["value"].dims if name not in first)]


def _marked(effects: xr.Dataset, value: str, contrast: xr.DataArray) -> xr.DataArray:
    """Where the interval leaves out zero, the effect is of some size, and enough prompts or seeds stand behind it."""
    counted = effects.prompts if contrast.sizes["prompt"] > 1 else contrast.sizes["seed"]
    size = abs(effects[value])
    return effects.significant & (size >= MARKED * size.max()) & (counted >= ENOUGH)


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """In C order, four significant digits of each; None for NaN."""
    flat = np.asarray(values, float).ravel()
    return [None if np.isnan(number) else _short(number) for number in flat.tolist()]


def _short(number: float) -> float | int:
    short = float(f"{number:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
