"""Pictures of the winter benchmark."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr

from workbench import plot
from workbench.steering.direction import Direction
from workbench.steering.sweep import Sweep

PANELS = (("concept", "probability"), ("concept_similarity", "similarity"))


def layers(sweeps: Mapping[str, Sweep], path: Path):
    """Layer x strength: what each site gains of the concept and loses of the prompt."""
    sizes = [sweep.data.sizes["site"] for sweep in sweeps.values()]
    figure, axes = plt.subplots(
        len(sweeps), 3, figsize=(15, 2 + 0.33 * sum(sizes)), layout="constrained", height_ratios=sizes
    )
    for row, (where, sweep) in zip(axes, sweeps.items()):
        for ax, metric in zip(row, ("concept_similarity", "similarity", "probability")):
            what = plot.NAMES.get(metric, "probability of the right subject")
            plot.heatmap(sweep.effects(metric), "strength", "layer", "change", ax=ax, title=f"{where}: {what}")
    prompts = next(iter(sweeps.values())).data.sizes["prompt"]
    figure.suptitle(
        f"Steering one layer (or all) towards winter, change against the unsteered images; {prompts} tuning prompts"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def frontier(curves: pd.DataFrame, report: pd.DataFrame, path: Path):
    """Both families from weak to strong, and every method of the report, on the held-out prompts."""
    curves = wide(curves[curves.variant.isin(curves.dropna(subset="factor").variant)])
    points = wide(report[~report.variant.str.contains(" minus ")])
    figure, axes = plt.subplots(2, len(PANELS), figsize=(15, 11), layout="constrained")
    for ax, (concept, fidelity) in zip(axes[0], PANELS):
        plot.frontier(curves, concept, fidelity, by="variant", ax=ax, title="From weak to strong, factors 0.25 to 2")
    for above, ax, (concept, fidelity) in zip(*axes, PANELS):
        for (_, row), colour in zip(points.iterrows(), sns.color_palette("husl", len(points))):
            spread = [
                [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]] for name in (concept, fidelity)
            ]
            ax.errorbar(
                row[concept],
                row[fidelity],
                spread[1],
                spread[0],
                fmt="s" if row.variant.startswith("UNet") else "o",
                capsize=2,
                color=colour,
                label=row.variant,
            )
        ax.set(xlabel=above.get_xlabel(), ylabel=above.get_ylabel(), title="All methods of the report")
    for ax in axes[:, 0]:
        ax.set_ylabel("probability of the right subject, mean and 95 % interval")
    axes[1, 1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"Steering held-out prompts towards winter, {report.n.max()} images a point")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each method, with every metric as NAME, NAME_low, NAME_high."""
    axes = [axis for axis in ("variant", "factor") if axis in table]
    parts = [
        table.pivot(index=axes, columns="metric", values=name).add_suffix({"value": ""}.get(name, f"_{name}"))
        for name in ("value", "low", "high")
    ]
    return pd.concat(parts, axis=1).reset_index()


def differences(text: Mapping[str, Direction], unet: Direction, path: Path):
    """How far each concept moves each layer's activations."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    plot.activation_difference(text, ax=axes[0], title="Text encoder, MLP outputs by position, 100 pairs of prompts")
    plot.activation_difference(
        {"winter": unet}, ax=axes[1], title="UNet, cross-attention outputs, mean over steps, 25 pairs"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def strips(rows: Mapping[str, xr.DataArray], path: Path):
    """Images over strengths, one panel for each family: (prompt, strength, y, x, colour)."""
    figure, axes = plt.subplots(
        1,
        len(rows),
        figsize=(9 * len(rows), 0.9 + 1.05 * max(len(images) for images in rows.values())),
        layout="constrained",
    )
    for ax, (where, images) in zip(np.atleast_1d(axes), rows.items()):
        plot.image_grid(images, ax=ax, title=where)
        ax.set(xlabel="factor of the searched strengths", ylabel="")
    figure.savefig(path, dpi=100)
    plt.close(figure)
