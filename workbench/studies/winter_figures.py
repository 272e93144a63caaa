"""Pictures of the winter benchmark."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench import plot
from workbench.drawing import WIDTH, bar, cells, dots, house
from workbench.steering.direction import Direction
from workbench.steering.experiment import UNSTEERED

METRICS = {
    "concept": "classified\nas winter",
    "concept_similarity": "similarity\nto winter",
    "probability": "right subject\n(probability)",
    "similarity": "similarity to the\noriginal prompt",
}


@house
def methods_figure(report: pd.DataFrame) -> Figure:
    """Every method of the report by every metric, most winters first."""
    report = report[~report.variant.str.contains(" minus ")]
    winters = report[report.metric == "concept"].set_index("variant").value
    order = sorted(winters.index, key=lambda name: (name == UNSTEERED, -winters[name]))
    figure = plt.figure(figsize=(WIDTH, 0.29 * len(order) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(METRICS))
    for ax, (metric, title) in zip(axes, METRICS.items()):
        rows = report[report.metric == metric].set_index("variant")[["value", "low", "high"]].reindex(order)
        dots(rows, ax=ax, lines={UNSTEERED: rows.value[UNSTEERED]}, title=title)
        ax.locator_params(axis="x", nbins=4)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    figure.suptitle(f"Held-out prompts steered towards winter, {int(report.n.max())} images a row, 95 % intervals")
    return figure


@house
def frontier_figure(curves: pd.DataFrame) -> Figure:
    """Text encoder and UNet, searched layers and all, from weak to strong."""
    curves = wide(curves[curves.variant.isin(curves.dropna(subset="factor").variant)])
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    for ax, pair in zip(axes, (("concept", "probability"), ("concept_similarity", "similarity"))):
        plot.frontier(curves, *pair, by="variant", ax=ax)
    axes[1].get_legend().remove()
    figure.suptitle("From weak to strong, 0.25 to 2 times the searched strengths")
    return figure


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and factor, with every metric as NAME, NAME_low, NAME_high."""
    parts = [
        table.pivot(index=["variant", "factor"], columns="metric", values=name).add_suffix(end)
        for name, end in (("value", ""), ("low", "_low"), ("high", "_high"))
    ]
    return pd.concat(parts, axis=1).reset_index()


@house
def layers_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What each layer at each strength gains of winter and loses of the prompt and the subject, all on one scale."""
    names = ("concept_similarity", "similarity", "probability")
    metrics = [name for name in names if all(name in table for table in tables.values())]
    sizes = [table.site.nunique() for table in tables.values()]
    figure, axes = plt.subplots(
        len(tables), len(metrics), figsize=(WIDTH, 0.24 * sum(sizes) + 1.2), layout="constrained", height_ratios=sizes
    )
    grids = {}
    for where, table in tables.items():  # the first row is the unsteered images'
        sites = table.site[1:].unique()
        for name in metrics:
            steered = table[1:].pivot(index="site", columns="strength", values=name).loc[sites]
            grids[where, name] = steered - table[name].iloc[0]
    limit = max(float(grid.abs().max().max()) for grid in grids.values())
    for ax, ((where, name), grid) in zip(axes.flat, grids.items()):
        sites = [site.removesuffix(".cross").removesuffix(".mlp").split(".", 1)[-1] for site in grid.index]
        title = (
            f"{where}: {plot.NAMES[name].replace('the concept', 'winter').replace('the original prompt', 'the prompt')}"
        )
        cells(grid.set_axis(sites).set_axis([f"{s:g}" for s in grid], axis=1), ax=ax, limit=limit, title=title)
        if name != metrics[0]:
            ax.set_yticklabels([])
    for ax in axes[:, 0]:
        ax.set_ylabel("steered layer")
    for ax in axes[-1]:
        ax.set_xlabel("strength")
    bar(axes.flat, "change against the unsteered images")
    return figure


@house
def directions_figure(text: Mapping[str, Direction], unet: Direction) -> Figure:
    """How far each concept moves each layer's activations, on one scale."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.8), layout="constrained", sharey=True)
    plot.activation_difference(text, ax=axes[0], title="MLP outputs by position, 100 pairs of prompts")
    plot.activation_difference({"winter": unet}, ax=axes[1], title="cross-attention outputs, mean over steps, 25 pairs")
    for ax in axes:
        short = [label.get_text().removesuffix(".mlp").removesuffix(".cross") for label in ax.get_xticklabels()]
        ax.set_xticklabels(short)
    axes[1].get_legend().remove()
    axes[1].set_ylabel("")
    return figure


@house
def strips_figure(rows: Mapping[str, xr.DataArray]) -> Figure:
    """Images over strengths, one panel for each place that is steered: (prompt, strength, y, x, colour)."""
    lines = [len(images) for images in rows.values()]
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(WIDTH, 0.6 + 1.02 * sum(lines)), layout="constrained", height_ratios=lines, squeeze=False
    )
    for ax, (where, images) in zip(axes.flat, rows.items()):
        plot.image_grid(images, ax=ax, title=where)
        ax.set(xlabel="", ylabel="")
    ax.set_xlabel("factor of the searched strengths")
    return figure
