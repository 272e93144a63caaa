"""One picture of what holds for another architecture."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.drawing import COLOURS, TEXT, WIDTH, bar, cells, house, intervals
from workbench.studies.agreement import WINDOW
from workbench.studies.architectures_parts import ARCHITECTURES, ATTRIBUTES, ENCODER

LEAST = 0.05  # of an effect with a dot
DOT = "\u2022"
# of the lower panels: the findings, in which order, with their title
PANELS = (
    (
        "swap of two animals",
        {
            ("best editor, denoiser", "swapped, held out"): "best in the denoiser,\nswapped",
            ("best editor, denoiser", "collateral, control"): "its collateral",
            ("best editor, text encoder", "swapped, held out"): "best in the encoders,\nswapped",
            ("best editor, text encoder", "collateral, control"): "its collateral ",
            ("shows the other animal", "states told"): "told the states alone",
            ("shows the other animal", "pooled vector told"): "told the pooled\nvector alone",
        },
    ),
    (
        "winter, erased, recovered",
        {
            ("winter, told winter", "share of winters"): "told winter",
            ("winter, text encoder", "share of winters"): "steered text encoder",
            ("winter, first text layer", "share of winters"): "steered layer 0",
            ("winter, denoiser", "share of winters"): "steered denoiser",
            ("erased: erase", "still shown"): "erased, still shown",
            ("recovered", "nearest states within 0.4, concept"): "recovered by states",
            ("recovered", "nearest states within 0.4, random"): "the same at random",
        },
    ),
)


@house
def figure(trace: pd.DataFrame, windows: pd.DataFrame, best: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Where an attribute sits in the text encoders and is decided in the denoiser, an architecture a column; below, edits and steering."""
    models = [name for name in ARCHITECTURES if name in set(trace.model)]
    fig = plt.figure(figsize=(WIDTH, 9.6), layout="constrained")
    upper, lower = fig.subfigures(2, 1, height_ratios=(1.25, 1))
    axes = upper.subplots(2, len(models), squeeze=False)
    encoders = trace[trace.place == ENCODER]
    sure = best.set_index(["model", "attribute", "site"]).chance.rename("p")  # of each attribute's best window alone
    pairs = windows[windows.width == WINDOW].drop(columns="p").join(sure, on=sure.index.names)
    limit = float(max(encoders.indirect_effect.abs().max(), pairs.direct_effect.abs().max()))
    for column, model in enumerate(models):
        title = ARCHITECTURES[model].title
        traced, replaced = (rows[rows.model == model] for rows in (encoders, pairs))
        heat(axes[0][column], traced, "indirect_effect", "layer", limit, f"{title}: text encoders traced", "layer")
        heat(
            axes[1][column],
            replaced,
            "direct_effect",
            "stage",
            limit,
            f"{title}: LocoGen",
            "block of the window's first layer",
        )
        for ax in (axes[0][column], axes[1][column]) if column else ():
            ax.set_yticklabels([])
    bar(
        axes.flat,
        f"effect on the grader's probability\n{DOT}: at least {LEAST:g}, p at most 0.05 against shuffled sites, or of the best window",
    )
    below = lower.subplots(1, len(PANELS))
    for ax, (title, rows) in zip(below, PANELS):
        compared(ax, table, rows, models, title)
    handles, labels = below[0].get_legend_handles_labels()
    lower.legend(handles, labels, loc="outside lower center", ncols=len(models))
    count = int(trace.prompts.max())
    fig.suptitle(
        f"{len(models)} architectures trained on one world; above, {count} prompts of each attribute",
        fontsize=TEXT + 1,
    )
    return fig


def heat(ax: Axes, rows: pd.DataFrame, effect: str, by: str, limit: float, title: str, label: str):
    """Attributes by layers or stages, of each the strongest site or window."""
    kept = rows.loc[rows.groupby(["attribute", by], sort=False)[effect].idxmax()]
    names = [name for name in ATTRIBUTES if name in set(kept.attribute)]
    order = list(dict.fromkeys(rows.sort_values("order")[by]))
    order = sorted(order) if by == "layer" else order
    marked = kept.assign(dot=np.where((kept[effect] >= LEAST) & (kept.p <= 0.05), DOT, ""))
    grid, dots = (
        marked.pivot(index="attribute", columns=by, values=value).reindex(index=names, columns=order)
        for value in (effect, "dot")
    )
    cells(grid, ax=ax, limit=limit, notes=dots.fillna(""), title=title, rotation=0 if by == "layer" else 90)
    ax.set_xlabel(label)


def compared(ax: Axes, table: pd.DataFrame, rows: dict[tuple[str, str], str], models: list[str], title: str):
    """Numbers of the findings, a line for each, an architecture a colour."""
    found = table.set_index(["finding", "of", "model"])
    shown = [key for key in rows if any((*key, model) in found.index for model in models)]
    for number, model in enumerate(models):
        own = found.reindex([(*key, model) for key in shown])
        at = np.arange(len(shown)) + 0.22 * (number - (len(models) - 1) / 2)
        label = ARCHITECTURES[model].title
        intervals(ax, at, own.value, own.low, own.high, lying=True, color=COLOURS[number], label=label)
    ax.set_yticks(range(len(shown)), [rows[key] for key in shown])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set(xlim=(-0.03, 1.03), xlabel="share of images, 95 % interval", title=title)
    ax.grid(axis="y", color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
