"""Rows that are no scores by world, such as those of edits and of Prompt-to-Prompt, as heat-maps.

A cell is a mean over pictures with a bootstrap interval, or the share of pictures that something is true of, with Wilson's.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from workbench.experiments.statistics import LEVEL, mean, share
from workbench.viewer.views import Axis, View

AXES = ("editor", "set", "method", "arm")  # columns that say what was done
SETTINGS = ("pair", "prompt", "value", "settings", "rules", "rank", "edit")  # other columns that measure nothing
UNITS = {
    "distance": "mean absolute difference",
    "background": "mean absolute difference",
    "probability": "probability",
    "target probability": "probability",
    "similarity to the target": "cosine",
    "x shift": "pixels",
}
LABELS = {"target": "shows the target"}
SHARE = "share of pictures"
INTERVAL = f"{100 * LEVEL:g} % interval"

Item = tuple[str, int]  # a set, or "", and a picture's number in it


def table_views(rows: pd.DataFrame, spec: Mapping[str, Any]) -> tuple[list[View], Axis]:
    """A heat-map of each measure, and the pictures that cells are over, as choices. Raises ValueError for rows of another form."""
    axes = [name for name in AXES if name in rows]
    if not axes or not {"pair", "prompt"} & set(rows):
        raise ValueError(f"rows with the columns {list(rows)} are neither edits of prompts nor edited pairs of prompts")
    texts = item_texts(spec)
    rows = rows.assign(item=list(_items(rows, spec)))
    places = tuple(Axis(name, tuple(dict.fromkeys(rows[name]))) for name in axes)
    cells = {at if isinstance(at, tuple) else (at,): cell for at, cell in rows.groupby(axes, sort=False)}
    views = [
        _view(
            measure, {at: values[cell.index].dropna() for at, cell in cells.items()}, places, rows["item"], list(texts)
        )
        for measure, values in measures_of(rows)
    ]
    return views, Axis("prompt", tuple(texts.values()))


def measures_of(rows: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """Everything that rows measure, by name: numbers, or whether something is so; None and NaN where it was not measured."""
    if {"edited", "unedited"} <= set(rows):
        yield "changed", rows.edited != rows.unedited
    if {"edited", "target"} <= set(rows):
        yield "shows the target", (rows.edited == rows.target).where(rows.target.notna(), None)
    for name in rows:
        values = rows[name].dropna()
        measured = len(values) and all(isinstance(value, (bool, float, np.bool_, np.floating)) for value in values)
        if measured and name not in SETTINGS:
            yield LABELS.get(name, name), rows[name]


def item_texts(spec: Mapping[str, Any]) -> dict[Item, str]:
    """What each picture was drawn from."""
    if "pairs" in spec:
        return {
            ("", i): source if source == target else f"{source} → {target}"
            for i, (source, target) in enumerate(spec["pairs"])
        }
    return {(name, i): text for name, texts in spec["sets"].items() for i, text in enumerate(texts)}


def _items(rows: pd.DataFrame, spec: Mapping[str, Any]) -> Iterator[Item]:
    if "pairs" in spec:
        yield from (("", int(number)) for number in rows.pair)
    else:
        yield from ((name, int(number)) for name, number in zip(rows.set, rows.prompt))


def _view(
    measure: str, cells: Mapping[tuple, pd.Series], axes: tuple[Axis, ...], items: pd.Series, order: list[Item]
) -> View:
    shape = [len(axis.values) for axis in axes]
    numbers = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "prompts")}
    behind = np.full((*shape, len(order)), np.nan)
    hits = all(isinstance(value, (bool, np.bool_)) for values in cells.values() for value in values)
    for index, at in zip(np.ndindex(*shape), product(*(axis.values for axis in axes))):
        values = cells.get(at, pd.Series(dtype=float))
        numbers["prompts"][index] = len(values)
        if len(values):
            estimate = (share if hits else mean)(values.to_numpy(bool if hits else float))
            for name, number in estimate._asdict().items():
                if hits or len(values) > 1 or name == "value":  # one number says nothing of others
                    numbers[name][index] = number
        for item, value in zip(items[values.index], values):
            behind[(*index, order.index(item))] = float(value)
    several = [axis.name for axis in axes if len(axis.values) > 1] or [axes[0].name]
    down, across = (several[-1], several[0]) if "arm" in several else (several[0], several[-1])
    return View(
        measure,
        SHARE if hits else UNITS.get(measure, measure),
        axes,
        numbers,
        signed=False,
        down=down,
        across=across if len(several) > 1 else "",
        interval=INTERVAL,
        behind={measure: behind},
    )
