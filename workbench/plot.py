"""Pictures of results. Every function takes `ax=None`, draws there, and returns the axes; none shows or saves."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes

from workbench.arguments import checked, instance_of, mapping_of
from workbench.engine import Run
from workbench.experiments.results import UNITS, drawable
from workbench.experiments.statistics import pareto
from workbench.inputs import number, shown, text
from workbench.pictures import as_array
from workbench.steering.direction import DIRECTION, Direction

NAMES = {
    "indirect_effect": "indirect effect",
    "direct_effect": "direct effect",
    "total_effect": "total effect",
    "kind": "component",
    "concept_similarity": "similarity to the concept",
    "similarity": "similarity to the original prompt",
    "concept": "images classified as the concept",
    "change": "change against unsteered",
    "steps": "denoising steps (share of the run)",
    "window": "cross-attention layers given the target prompt",
}

COMPARISON = instance_of("workbench.localize.compare:Comparison")


def grid_of(value: Any, argument: str) -> xr.DataArray:
    """Labelled pictures (ROW, COLUMN, y, x, colour), or a run's."""
    images = value.images if isinstance(value, Run) else value
    if not isinstance(images, xr.DataArray) or images.ndim != 5 or images.shape[-1] != 3:
        raise ValueError(f"{argument}={shown(value)}: give a run, or labelled pictures (ROW, COLUMN, y, x, colour)")
    as_array(images)  # which looks at the colours
    return images


@checked(effects=drawable, x=text, y=text, value=text, limit=partial(number, above=0))
def heatmap(
    effects: xr.Dataset,
    x: str,
    y: str,
    value: str | None = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> Axes:
    """Effects over two of their axes: "token", "steps", "site", a site's "layer" and "kind", or LocoGen's "window".

    effects: what `workbench.effects` or `LocoGen.effects` returns, one number for each cell (select the rest:
    `effects.sel(token="eos")`). value: the indirect or direct effect when left out. Colours diverge from zero, up to `limit` when
    given; a dot marks cells whose interval leaves out zero. Raises ValueError for several numbers in one cell.
    """
    value = value or effects.attrs.get("effect", "indirect_effect")
    table = _table(effects, value, x, y)
    if table[value].isna().all():
        axes = [axis for axis in (x, y) if axis in effects.coords]
        empty = "; ".join(f"{axis} {effects[axis].values.tolist()[:6]}" for axis in axes)
        raise ValueError(
            f"heatmap(value={value!r}): no cell has a value ({empty}): no prompt had what was asked there, or the total effect is zero, "
            "where no ratio is defined; draw the effects themselves"
        )
    if table.duplicated([x, y]).any():
        apart = [
            axis
            for axis in effects[value].dims
            if axis not in (x, y) and table.groupby([x, y])[axis].nunique().max() > 1
        ]
        first = apart[0]
        raise ValueError(
            f"heatmap(x={x!r}, y={y!r}): several values for one cell, which differ in {apart}; select one, as in "
            f"effects.sel({first}={table[first].iloc[0]!r})"
        )
    grid = lambda column: table.pivot(index=y, columns=x, values=column).reindex(
        index=table[y].unique(), columns=table[x].unique()
    )
    cells, marks = grid(value), grid("significant").map(lambda mark: "•" if mark is True else "")
    bound = limit or float(np.nanmax(np.abs(cells.to_numpy(float)))) or 1.0
    ax = (
        ax
        or plt.subplots(
            figsize=(max(4.2, 1.6 + 0.42 * cells.shape[1]), max(2.8, 1.6 + 0.3 * cells.shape[0])), layout="constrained"
        )[1]
    )
    sns.heatmap(
        cells.astype(float),
        ax=ax,
        cmap="RdBu_r",
        vmin=-bound,
        vmax=bound,
        annot=marks,
        fmt="",
        annot_kws={"color": "black"},
        xticklabels=True,
        yticklabels=True,
        cbar_kws={"label": _label(effects, value)},
    )
    for axis, name, labels in (("x", x, cells.columns), ("y", y, cells.index)):
        prefix, short = _shorten(labels)
        getattr(ax, f"set_{axis}ticklabels")(short, rotation=0 if axis == "y" or max(map(len, short)) < 4 else 90)
        getattr(ax, f"set_{axis}label")(f"{prefix} {NAMES.get(name, name)}".strip())
    ax.set_title(title or "")
    return ax


@checked(effects=drawable, value=text)
def profile(effects: xr.Dataset, value: str | None = None, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Effects of sites in execution order, with their intervals, one colour for each kind; the dashed line is the total.

    effects: one number for each site (select the rest); value: the indirect or direct effect when left out. Raises ValueError for
    several.
    """
    value = value or effects.attrs.get("effect", "indirect_effect")
    table = _table(effects, value, "site")
    if table.duplicated(["site"]).any():
        apart = [axis for axis in effects[value].dims if axis != "site" and table[axis].nunique() > 1]
        raise ValueError(
            f"profile: several values for one site, which differ in {apart}; select one, as in "
            f"effects.sel({apart[0]}={table[apart[0]].iloc[0]!r})"
        )
    ax = ax or plt.subplots(figsize=(2 + 0.16 * len(table), 4), layout="constrained")[1]
    at = pd.Series(range(len(table)), index=table["site"])
    for colour, (kind, rows) in zip(sns.color_palette("colorblind", 10), table.groupby("kind", sort=False)):
        spread = np.abs(rows[[f"{value}_low", f"{value}_high"]].to_numpy().T - rows[value].to_numpy())
        ax.errorbar(at[rows["site"]], rows[value], spread, fmt="o", ms=4, capsize=2, color=colour, label=kind)
    ax.axhline(0, color="black", lw=0.8)
    if value.endswith("direct_effect"):
        ax.axhline(float(effects.total_effect), color="grey", ls="--", lw=1, label="total effect")
    windows = "window" in table
    prefix, short = ("", list(table["window"])) if windows else _shorten(table["layer"])
    ax.set_xticks(range(len(table)), short, rotation=90, fontsize=7)
    ax.set(
        xlabel=NAMES["window"] if windows else f"{prefix} layer, in execution order".strip(),
        ylabel=f"{_label(effects, value)}, {effects.attrs['level']:.0%} interval",
        title=title or "",
    )
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@checked(images=grid_of)
def image_grid(images: xr.DataArray | Run, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Images (ROW, COLUMN, y, x, colour) in [0, 1], or a run's (world, seed, ...); transpose them to lay them otherwise."""
    rows, columns, height, width = images.shape[:4]
    names = [[str(label) for label in images[axis].values] for axis in images.dims[:2]]
    longest = max(len(line) for name in names[1] for line in name.split("\n"))
    space = 0.6 + (0.08 * longest if longest > 10 else 0)  # inches, for the title and what stands below
    ax = ax or plt.subplots(figsize=(1.5 + 1.2 * columns, space + 1.2 * rows), layout="constrained")[1]
    sheet = np.ones((rows * (height + 2), columns * (width + 2), 3), np.float32)
    for r in range(rows):
        for c in range(columns):
            sheet[r * (height + 2) : r * (height + 2) + height, c * (width + 2) : c * (width + 2) + width] = images[
                r, c
            ]
    ax.imshow(sheet)
    ax.set_xticks(np.arange(columns) * (width + 2) + width / 2, names[1], rotation=90 if longest > 10 else 0)
    ax.set_yticks(np.arange(rows) * (height + 2) + height / 2, names[0])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel=images.dims[1], title=title or "")
    if images.dims[0] != "world":
        ax.set_ylabel(images.dims[0])
    return ax


@checked(word_map=instance_of("xarray:DataArray", fix="a map (y, x), such as maps.word('zebra')[0, 0, 0, 0, 0]"))
def overlay(image, word_map: xr.DataArray, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """A word's attention map (y, x) over its image (y, x, colour) in [0, 1] or a PIL one."""
    (picture,) = as_array(image)
    image = picture
    ax = ax or plt.subplots(figsize=(3.6, 3), layout="constrained")[1]
    place = (0, image.shape[1], image.shape[0], 0)
    ax.imshow(image, extent=place)
    shown = ax.imshow(
        word_map.transpose("y", "x"), extent=place, cmap="inferno", alpha=0.55, interpolation="bilinear", vmin=0
    )
    ax.figure.colorbar(shown, ax=ax, label="attention probability")
    ax.set_axis_off()
    ax.set_title(title or "")
    return ax


@checked(comparison=COMPARISON)
def ranks(comparison, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """A `Comparison`'s layers as each localizer ranks them, 1 for the strongest."""
    table = comparison.table(resamples=2).pivot(index="layer", columns="localizer", values="rank")
    table = table.reindex(index=comparison.scores.layer.values, columns=comparison.scores.localizer.values)
    ax = ax or plt.subplots(figsize=(5, 5.5), layout="constrained")[1]
    prefix, short = _shorten([name.removesuffix(".cross") for name in table.index])
    sns.heatmap(
        table,
        ax=ax,
        cmap="viridis_r",
        annot=True,
        cbar_kws={"label": "rank (1 = strongest layer)"},
        yticklabels=[f"{name} ({i})" for i, name in enumerate(short)],
        xticklabels=True,
    )
    ax.set(xlabel="localizer", ylabel=f"{prefix} cross-attention layer (number)", title=title or "")
    ax.set_xticklabels(ax.get_xticklabels(), rotation=30, ha="right")
    return ax


@checked(comparison=COMPARISON)
def agreement(comparison, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Spearman correlations between a `Comparison`'s localizers with their intervals; on the diagonal, between halves of the prompts."""
    names = list(comparison.scores.localizer.values)
    cells, notes = np.full((len(names),) * 2, np.nan), np.full((len(names),) * 2, "", dtype=object)
    for row in comparison.agreement().itertuples():
        for i, j in {(names.index(row.a), names.index(row.b)), (names.index(row.b), names.index(row.a))}:
            cells[i, j], notes[i, j] = row.spearman, f"{row.spearman:.2f}\n({row.low:.2f} to {row.high:.2f})"
    ax = ax or plt.subplots(figsize=(6, 4.6), layout="constrained")[1]
    sns.heatmap(
        cells,
        ax=ax,
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        annot=notes,
        fmt="",
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "Spearman correlation over layers"},
    )
    ax.set_xticklabels(names, rotation=30, ha="right")
    ax.set_yticklabels(names, rotation=0)
    ax.set_title(title or "")
    return ax


@checked(
    table=instance_of("pandas:DataFrame", fix="a table, as Sweep.table() or Search.table gives it"),
    concept=text,
    fidelity=text,
    by=text,
)
def frontier(
    table: pd.DataFrame,
    concept: str,
    fidelity: str,
    *,
    by: str | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Fidelity against concept of each row, with intervals, and a line through those that no other row of its kind beats.

    table: as `Sweep.table` and `Search.table` give it: NAME, NAME_low, NAME_high. by: a column whose values are drawn as kinds apart.
    """
    columns = {"concept": concept, "fidelity": fidelity} | ({} if by is None else {"by": by})
    for argument, name in columns.items():
        ends = ("",) if argument == "by" else ("", "_low", "_high")
        if lost := [f"{name}{end}" for end in ends if f"{name}{end}" not in table]:
            raise KeyError(
                f"{argument}={name!r}: the table has no column {lost[0]!r}; it has {', '.join(map(str, table))}"
            )
    ax = ax or plt.subplots(figsize=(6.5, 4.6), layout="constrained")[1]
    kinds = [(None, table)] if by is None else list(table.groupby(by, sort=False))
    for colour, (kind, rows) in zip(sns.color_palette("colorblind", len(kinds)), kinds):
        spread = [
            np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy().T - rows[name].to_numpy())
            for name in (concept, fidelity)
        ]
        ax.errorbar(
            rows[concept],
            rows[fidelity],
            spread[1],
            spread[0],
            fmt="o",
            ms=4,
            lw=0.6,
            alpha=0.6,
            color=colour,
            label=kind,
        )
        front = rows[pareto(rows, concept, fidelity)].sort_values(concept)
        ax.plot(front[concept], front[fidelity], color=colour, lw=1.5, label="Pareto front" if by is None else None)
    label = lambda name: f"{NAMES.get(name, name)} ({UNITS.get(name, name)}), mean and 95 % interval"
    ax.set(xlabel=label(concept), ylabel=label(fidelity), title=title or "")
    ax.legend(fontsize=8)
    return ax


@checked(directions=mapping_of(DIRECTION, "{'winter': wb.direction(...)}"))
def activation_difference(
    directions: Mapping[str, Direction], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """How far each concept moves the activations at each site, in multiples of their mean norm; bars are standard errors."""
    sites = list(dict.fromkeys(site for direction in directions.values() for site in direction.sites))
    ax = ax or plt.subplots(figsize=(2.5 + 0.3 * len(sites), 3.6), layout="constrained")[1]
    for name, direction in directions.items():
        rows = direction.table()
        ax.errorbar(
            [sites.index(site) for site in rows.site],
            rows.relative_length,
            rows.relative_error,
            marker="o",
            ms=4,
            capsize=2,
            label=name,
        )
    prefix, short = _shorten(sites)
    ax.set_xticks(range(len(sites)), short, rotation=90 if len(sites) > 8 else 0)
    ax.set(
        xlabel=f"{prefix} site, in execution order".strip(),
        ylabel="difference of means / mean activation norm",
        title=title or "",
    )
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8)
    return ax


def _table(effects: xr.Dataset, value: str, *axes: str) -> pd.DataFrame:
    names = [value, f"{value}_low", f"{value}_high", "significant"]
    if lost := [name for name in names if name not in effects.data_vars]:
        known = [str(name).removesuffix("_low") for name in effects.data_vars if str(name).endswith("_low")]
        raise KeyError(f"value={value!r}: the effects have no {lost[0]!r}; value may be {', '.join(map(repr, known))}")
    for argument, axis in zip(("x", "y") if len(axes) > 1 else ("effects",), axes):
        if axis not in effects.coords:
            raise KeyError(f"{argument}={axis!r}: the effects have the axes {', '.join(map(str, effects.coords))}")
    return effects[names].to_dataframe().reset_index().dropna(subset=[value])


def _label(effects: xr.Dataset, value: str) -> str:
    return f"{NAMES.get(value, value)} ({'of the total effect' if value in ('recovery', 'share') else effects.attrs['unit']})"


def _shorten(labels) -> tuple[str, list[str]]:
    """What all labels begin with, up to a dot, and the rest of each."""
    labels = [str(label) for label in labels]
    parts = [label.split(".") for label in labels]
    shared = 0
    while len(set(labels)) > 1 and len({tuple(part[: shared + 1]) for part in parts}) == 1:
        shared += 1
    shared = 0 if any("-" in label for label in labels) else shared  # windows of steps hold dots of their own
    return ".".join(parts[0][:shared]), [".".join(part[shared:]) for part in parts]
