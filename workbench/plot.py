"""Pictures of results. Every function takes `ax=None`, draws there, and returns the axes; none shows or saves."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes

NAMES = {"indirect_effect": "indirect effect", "total_effect": "total effect", "recovery": "recovery",
         "layer": "layer", "kind": "component", "steps": "denoising steps (share of the run)"}  # fmt: skip


def heatmap(effects: xr.Dataset, x: str, y: str, value: str = "indirect_effect", *, ax: Axes | None = None, title: str | None = None,
            limit: float | None = None) -> Axes:  # fmt: skip
    """Effects over two of their axes: "token", "steps", "site", or a site's "layer" and "kind".

    effects: what `workbench.effects` returns, one number for each cell (select the rest: `effects.sel(token="eos")`).
    Colours diverge from zero, up to `limit` when given; a dot marks cells whose interval leaves out zero. Raises
    ValueError for several numbers in one cell.
    """
    table = _table(effects, value)
    if table.duplicated([x, y]).any():
        apart = [axis for axis in effects[value].dims if axis not in (x, y) and table.groupby([x, y])[axis].nunique().max() > 1]
        first = apart[0]
        raise ValueError(f"heatmap(x={x!r}, y={y!r}): several values for one cell, which differ in {apart}; select one, as in "
                         f"effects.sel({first}={table[first].iloc[0]!r})")  # fmt: skip
    grid = lambda column: table.pivot(index=y, columns=x, values=column).reindex(index=table[y].unique(), columns=table[x].unique())
    cells, marks = grid(value), grid("significant").map(lambda mark: "•" if mark is True else "")
    bound = limit or float(np.nanmax(np.abs(cells.to_numpy(float)))) or 1.0
    ax = ax or plt.subplots(figsize=(1.6 + 0.42 * cells.shape[1], 1.6 + 0.3 * cells.shape[0]), layout="constrained")[1]
    sns.heatmap(cells.astype(float), ax=ax, cmap="RdBu_r", vmin=-bound, vmax=bound, annot=marks, fmt="", annot_kws={"color": "black"},
                xticklabels=True, yticklabels=True, cbar_kws={"label": _label(effects, value)})  # fmt: skip
    for axis, name, labels in (("x", x, cells.columns), ("y", y, cells.index)):
        prefix, short = _shorten(labels)
        getattr(ax, f"set_{axis}ticklabels")(short, rotation=0 if axis == "y" or max(map(len, short)) < 4 else 90)
        getattr(ax, f"set_{axis}label")(f"{prefix} {NAMES.get(name, name)}".strip())
    ax.set_title(title or "")
    return ax


def profile(effects: xr.Dataset, value: str = "indirect_effect", *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Effects of sites in execution order, with their intervals, one colour for each kind; the dashed line is the total.

    effects: one number for each site (select the rest). Raises ValueError for several.
    """
    table = _table(effects, value)
    if table.duplicated(["site"]).any():
        apart = [axis for axis in effects[value].dims if axis != "site" and table[axis].nunique() > 1]
        raise ValueError(f"profile: several values for one site, which differ in {apart}; select one, as in "
                         f"effects.sel({apart[0]}={table[apart[0]].iloc[0]!r})")  # fmt: skip
    ax = ax or plt.subplots(figsize=(2 + 0.16 * len(table), 4), layout="constrained")[1]
    at = pd.Series(range(len(table)), index=table["site"])
    for colour, (kind, rows) in zip(sns.color_palette("colorblind", 10), table.groupby("kind", sort=False)):
        spread = np.abs(rows[[f"{value}_low", f"{value}_high"]].to_numpy().T - rows[value].to_numpy())
        ax.errorbar(at[rows["site"]], rows[value], spread, fmt="o", ms=4, capsize=2, color=colour, label=kind)
    ax.axhline(0, color="black", lw=0.8)
    if value == "indirect_effect":
        ax.axhline(float(effects.total_effect), color="grey", ls="--", lw=1, label="total effect")
    prefix, short = _shorten(table["layer"])
    ax.set_xticks(range(len(table)), short, rotation=90, fontsize=7)
    ax.set(xlabel=f"{prefix} layer, in execution order".strip(), ylabel=f"{_label(effects, value)}, {effects.attrs['level']:.0%} interval",
           title=title or "")  # fmt: skip
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def image_grid(images: xr.DataArray, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Images (world, seed, y, x, colour) in [0, 1], such as a run's: one row a world, one column a seed."""
    worlds, seeds = images.sizes["world"], images.sizes["seed"]
    height, width = images.sizes["y"], images.sizes["x"]
    ax = ax or plt.subplots(figsize=(1.5 + 1.2 * seeds, 0.6 + 1.2 * worlds), layout="constrained")[1]
    sheet = np.ones((worlds * (height + 2), seeds * (width + 2), 3), np.float32)
    for w in range(worlds):
        for s in range(seeds):
            sheet[w * (height + 2) : w * (height + 2) + height, s * (width + 2) : s * (width + 2) + width] = images[w, s]
    ax.imshow(sheet)
    ax.set_xticks(np.arange(seeds) * (width + 2) + width / 2, [str(seed) for seed in images.seed.values])
    ax.set_yticks(np.arange(worlds) * (height + 2) + height / 2, [str(world) for world in images.world.values])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="seed", title=title or "")
    return ax


def _table(effects: xr.Dataset, value: str) -> pd.DataFrame:
    names = [value, f"{value}_low", f"{value}_high", "significant"]
    return effects[names].to_dataframe().reset_index().dropna(subset=[value])


def _label(effects: xr.Dataset, value: str) -> str:
    return f"{NAMES[value]} ({'share of the total' if value == 'recovery' else effects.attrs['unit']})"


def _shorten(labels) -> tuple[str, list[str]]:
    """What all labels begin with, up to a dot, and the rest of each."""
    labels = [str(label) for label in labels]
    parts = [label.split(".") for label in labels]
    shared = 0
    while len(set(labels)) > 1 and len({tuple(part[: shared + 1]) for part in parts}) == 1:
        shared += 1
    shared = 0 if any("-" in label for label in labels) else shared  # windows of steps hold dots of their own
    return ".".join(parts[0][:shared]), [".".join(part[shared:]) for part in parts]
