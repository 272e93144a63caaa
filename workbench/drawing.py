"""The house style of pictures: one width, one smallest text, one function for heat-maps, one for points with intervals.

A figure of `WIDTH` inches is shown 840 pixels wide, at 96 pixels to the inch: its text then has the points that it says.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

WIDTH = 8.75  # inches
SMALL, TEXT = 8.0, 9.0  # points; nothing is smaller
DPI = 192  # twice as sharp as it is shown
STYLE = {
    "font.size": TEXT,
    "axes.labelsize": TEXT,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
}
COLOURS = [tuple(colour) for colour in sns.color_palette("colorblind", 10)]
GREY = "0.45"


house = plt.rc_context(STYLE)  # decorates functions that draw whole figures


def save(figure: Figure, path: Path):
    """Write a figure, and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(DPI)
    figure.draw_without_rendering()  # pictures keep their shape: labels have their room only when it is known
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    print(f"wrote {path}")


def cells(
    grid: pd.DataFrame,
    *,
    ax: Axes,
    limit: float | None = None,
    notes: pd.DataFrame | None = None,
    bar: str = "",
    title: str = "",
    rotation: float | None = None,
    **colours,
) -> Axes:
    """A heat-map of (row, column), labelled as the table is. limit: colours diverge from zero up to it; else give cmap, and vmin and
    vmax or norm. notes: a text for each cell. bar: label of a colour bar, of which there is none when left out. rotation: of the
    columns' labels; as there is room when left out."""
    diverging = {} if limit is None else dict(cmap="RdBu_r", vmin=-limit, vmax=limit)
    sns.heatmap(
        grid.astype(float),
        ax=ax,
        annot=notes,
        fmt="",
        annot_kws={"size": SMALL},
        xticklabels=False,
        yticklabels=False,
        cbar=bool(bar),
        cbar_kws={"label": bar},
        **diverging | colours,
    )
    ax.tick_params(length=0)
    columns = [str(column) for column in grid]
    if rotation is None:
        longest = max(len(line) for column in columns for line in column.split("\n"))
        rotation = 90 if longest > room(ax, len(columns)) else 0
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=rotation)
    ax.set_yticks(np.arange(len(grid)) + 0.5, [str(row) for row in grid.index], rotation=0)
    ax.set(title=title, xlabel="", ylabel="")
    return ax


def bar(axes: Iterable[Axes], label: str, **place):
    """One colour bar for several heat-maps of one scale."""
    first, *others = axes
    place = dict(aspect=35, pad=0.02) | place
    shared = first.figure.colorbar(first.collections[0], ax=[first, *others], label=label, **place)
    shared.outline.set_visible(False)


def intervals(
    ax: Axes,
    at: npt.ArrayLike,
    values: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    *,
    lying: bool = False,
    **style,
) -> ErrorbarContainer:
    """Points with their intervals, upright over places on the x axis, or lying beside places on the y axis."""
    values = np.asarray(values, float)
    spread = np.clip([values - np.asarray(low, float), np.asarray(high, float) - values], 0, None)
    style = dict(fmt="o", ms=4, lw=1.2, capsize=2) | style
    return ax.errorbar(values, at, xerr=spread, **style) if lying else ax.errorbar(at, values, yerr=spread, **style)


def dots(rows: pd.DataFrame, *, ax: Axes, lines: Mapping[str, float] | None = None, title: str = "", **style) -> Axes:
    """A line for each row of (value, low, high), the first on top, named by the index; lines: values drawn through, by name."""
    at = np.arange(len(rows))
    intervals(ax, at, rows.value, rows.low, rows.high, lying=True, **style)
    for (name, value), dash in zip((lines or {}).items(), ("--", ":")):
        ax.axvline(value, color=GREY, ls=dash, lw=1, zorder=0)
        above = dict(xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points")
        ax.annotate(name, (value, 1), ha="center", va="bottom", fontsize=SMALL, color=GREY, **above)
    ax.set_yticks(at, rows.index)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_title(title, pad=16 if lines else 6)
    return ax


def place_names(ax: Axes, names: Sequence[str], *, label: str = ""):
    """Names on the x axis at 0, 1, ..., upright where they would touch."""
    wide = max(map(len, names)) > room(ax, len(names))
    ax.set_xticks(range(len(names)), names, rotation=90 if wide else 0)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xlabel(label)


def room(ax: Axes, columns: int, size: float = SMALL) -> int:
    """About how many letters of a size have room over one of an axes' columns."""
    points = 72 * ax.get_window_extent().width / ax.figure.dpi
    return max(3, int(points / columns / (0.55 * size)))


def wrapped(text: str, width: int) -> str:
    """A text in lines of at most so many letters, but for longer words; its own line breaks stay."""
    return "\n".join(fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
