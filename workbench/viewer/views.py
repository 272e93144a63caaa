"""Results and runs as plain data: the cells of heat-maps, their intervals, and the prompts and pictures behind them.

    study = study_of(wb.open_results("runs/trace"))
    study.views[0].cells["value"]  # numbers, (axes...)
    study.plain()                  # the same as JSON holds it

The numbers are those of `workbench.effects`, `LocoGen.effects` and `Sweep.effects`; nothing is measured here.
"""

import json
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
        return {
            "name": self.name,
            "values": values,
            "ordered": self.ordered,
            "about": [list(each) for each in self.about],
        }


@dataclass(frozen=True)
class View:
    """One heat-map.

    group: which sites, where those of one measure are in several views. axes: of the cells. cells: `value`, and where there are
    intervals `low`, `high`, `marked`; where there is a total, `share` of it with `share_low`, `share_high`; `prompts`, how many
    entered: (axes...). totals: effects that belong to no cell, with their intervals. references: scores of each prompt, by what was
    scored. behind: the same of each cell, (axes..., prompt), the effect last. signed: whether zero is in the middle. down, across:
    the axes that are shown first.
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
    beside = [other for other, each in data.coords.items() if each.dims == (name,) and other not in (name, "part")]
    about = tuple(
        tuple(f"{other}: {_said(data[other].values[i])}" for other in beside if str(data[other].values[i]))
        for i in range(len(labels))
    )
    ordered = name in ORDERED or np.issubdtype(labels.dtype, np.number)
    return Axis(name, tuple(labels.tolist()), ordered, about)


def _said(setting: Any) -> str:
    """A setting beside an axis; strengths of several sites, which results keep as JSON, one after the other."""
    if not str(setting).startswith("{"):
        return str(setting)
    return ", ".join(f"{name} {strength:.3g}" for name, strength in json.loads(setting).items()) or "none"


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


@dataclass(frozen=True)
class Measured:
    """Averaged effects, and the single scores behind them.

    value: which of the effects. scores: by world, (prompt, [draw,] seed[, axes...]). contrast: the single effects, with axes.
    signed: whether zero is in the middle.
    """

    label: str
    value: str
    effects: xr.Dataset
    scores: Mapping[str, xr.DataArray]
    contrast: xr.DataArray
    signed: bool = True

    def cells(self) -> xr.Dataset:
        """What `View.cells` has, (axes...)."""
        names = {"value": self.value, "low": f"{self.value}_low", "high": f"{self.value}_high"}
        if ratio := self.effects.attrs["ratio"]:
            names |= {"share": ratio, "share_low": f"{ratio}_low", "share_high": f"{ratio}_high"}
        cells = self.effects[[*names.values(), "prompts"]].rename({old: new for new, old in names.items()})
        if self.value == self.effects.attrs["effect"]:
            cells = cells.assign(marked=_marked(self.effects, self.value, self.contrast))
        return cells

    def totals(self) -> dict[str, tuple[float, float, float]]:
        """Effects that belong to no cell, with their intervals."""
        totals = {}
        for name in ("total_effect", "pooled_effect"):
            if name in self.effects and not self.effects[name].dims:
                value, low, high = (float(self.effects[f"{name}{end}"]) for end in ("", "_low", "_high"))
                totals[name.replace("_", " ")] = (value, low, high)
        return totals

    def singles(self) -> tuple[dict[str, np.ndarray], dict[str, xr.DataArray]]:
        """Of each prompt the scores that have no axes, (prompt,), and those that have, (prompt, axes...), with settings and effects."""
        inner = [axis for axis in ("draw", "seed") if axis in self.contrast.dims]
        means = {name: each.mean([axis for axis in inner if axis in each.dims]) for name, each in self.scores.items()}
        placed = {name: each for name, each in means.items() if set(each.dims) > {"prompt"}}
        references = {name: each.values for name, each in means.items() if name not in placed}
        for name, beside in self.contrast.coords.items():  # such as the strength of each prompt in each round
            if set(beside.dims) > {"prompt"} and np.issubdtype(beside.dtype, np.number):
                placed[str(name)] = beside.drop_vars(str(name))
        if self.signed:
            placed["effect"] = self.contrast.mean(inner)
        return references, placed


def effect_views(measured: Measured, order: Sequence[str]) -> Iterator[View]:
    """Heat-maps of averaged effects, one for each group of sites. order: of the model's sites."""
    cells, (references, placed) = measured.cells(), measured.singles()
    behind = xr.Dataset({f"behind {name}": each for name, each in placed.items()})
    groups = list(alike(cells.merge(behind, compat="override"), "value"))
    for group in groups:
        data = by_layer(group, order)
        names = _cell_axes(data)
        several = [name for name in names if data.sizes[name] > 1] or names[:1]
        across = [name for name in ("token", "strength", "steps", "kind", *several) if name in several[1:]]
        numbers = {str(name): data[name].transpose(*names).values for name in cells.data_vars}
        places: list[str] = group.layer.values.tolist() if len(groups) > 1 else []
        yield View(
            measured.label,
            measured.effects.attrs["unit"],
            tuple(axis_of(data["value"], name) for name in names),
            numbers | {"prompts": np.nan_to_num(numbers["prompts"])},
            measured.signed,
            several[0],
            across[0] if across else "",
            " to ".join(dict.fromkeys(places[:1] + places[-1:])),
            f"{100 * measured.effects.attrs['level']:g} % interval",
            measured.totals(),
            references,
            {name: data[f"behind {name}"].transpose(*names, "prompt").values for name in placed},
        )


def _cell_axes(data: xr.Dataset) -> list[str]:
    """Layers and components first."""
    names = [str(name) for name in data["value"].dims]
    return sorted(names, key=lambda name: name not in ("layer", "site", "kind"))


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
