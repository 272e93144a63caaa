"""Pictures of UnlearnCanvas' columns: every editor over its targets, and every target of the best editors."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.drawing import COLOURS, GREY, WIDTH, cells, house, intervals
from workbench.studies.erase_scenes import BEST, GROUPS, UNEDITED

MEASURES = {  # as columns and panels say them
    "UA": "UA",
    "UA, states within 0.2": "UA,\nstates\nto 0.2",
    "UA, closed form": "UA,\nclosed\nform",
    "UA, vector": "UA,\nvector",
    "IRA": "IRA",
    "CRA": "CRA",
}
OFFSET = 0.22  # of an editor's points from a target's line


def figures(table: pd.DataFrame) -> dict[str, Figure]:
    whole = (
        {"grid": overview(table)} if table.target.isin(GROUPS).any() else {}
    )  # else no editor has all of a group yet
    return whole | {"grid_targets": targets(table)}


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Means over targets, ((editor, group), measure)."""
    rows = table[table.target.isin(GROUPS)]
    found = rows.pivot(index=["target", "editor"], columns="measure", values="value")
    order = [(group, editor) for group in GROUPS for editor in dict.fromkeys(rows[rows.target == group].editor)]
    return found.loc[order, [name for name in MEASURES if name in found]].round(2)


@house
def overview(table: pd.DataFrame) -> Figure:
    """Every editor over the same targets, with intervals."""
    groups = [name for name in GROUPS if name.startswith("some")]
    names = list(dict.fromkeys(table[table.target.isin(groups)].editor))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(WIDTH, 1.6 + 0.36 * len(names)), layout="constrained", sharey=True
    )
    for ax, group in zip(axes, groups):
        own = table[table.target == group]
        values = own.pivot(index="editor", columns="measure", values="value").reindex(names, columns=list(MEASURES))
        notes = own.assign(note=[note(row) for row in own.itertuples()])
        notes = notes.pivot(index="editor", columns="measure", values="note")
        notes = notes.reindex(names, columns=list(MEASURES)).fillna("")
        values.columns = list(MEASURES.values())
        cells(values, ax=ax, notes=notes, cmap="viridis", vmin=0, vmax=1, rotation=0)
        ax.set_title(f"{len(GROUPS[group])} {group.split()[1]}, each erased in turn", loc="left")
    figure.suptitle(
        "UA: gone from its own pictures; IRA: others of its kind right; CRA: the other kind right. 1 is best"
    )
    return figure


def note(row) -> str:
    """A value above the ends of its interval."""
    low, high = (f"{end:.2f}".removeprefix("0") for end in (row.low, row.high))
    return f"{row.value:.2f}\n{low}-{high}"


@house
def targets(table: pd.DataFrame) -> Figure:
    """Every target of the editors that erased them all, a panel for each measure."""
    rows = table[~table.target.isin(GROUPS)]
    names = list(dict.fromkeys(rows.target))
    editors = [name for name in BEST if name in set(rows.editor)]
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(WIDTH, 1.4 + 0.36 * len(names)), layout="constrained")
    for ax, measure in zip(axes, MEASURES):
        panel(ax, rows[rows.measure == measure], editors, names)
        ax.set_title(MEASURES[measure], loc="left")
        if ax is not axes[0]:
            ax.set_yticklabels([])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle("Every subject and style, erased by the best editors: shares of pictures, with 95 % intervals")
    return figure


def panel(ax: Axes, rows: pd.DataFrame, editors: list[str], names: list[str]):
    """Points of each editor beside each other on every target's line; the unedited model's as ticks."""
    places = {name: place for place, name in enumerate(names)}
    before = rows[rows.editor == UNEDITED]
    if len(before):
        ax.plot(before.value, before.target.map(places), "|", color=GREY, ms=13, mew=1.5, label=UNEDITED)
    for number, editor in enumerate(editors):
        own = rows[rows.editor == editor]
        at = own.target.map(places) + OFFSET * (number - (len(editors) - 1) / 2)
        style = dict(lying=True, color=COLOURS[number], ms=3, capsize=0, label=editor)
        intervals(ax, at, own.value, own.low, own.high, **style)
    ax.set_yticks(np.arange(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(-0.04, 1.04), xticks=(0, 0.5, 1))
    ax.set_xticklabels(["0", "0.5", "1"])
    ax.grid(axis="y", color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
