"""Pictures that the commands draw."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from workbench import plot
from workbench.cli.common import beside
from workbench.drawing import WIDTH, bar


def overview(found: xr.Dataset, title: str) -> plt.Figure:
    """The picture that fits a trace: layer x token and module x steps as heat-maps, else layer x component or a profile."""
    kinds = list(dict.fromkeys(found.kind.values))
    if found.sizes["token"] > 1 or found.sizes["steps"] > 1:
        x = "token" if found.sizes["token"] > 1 else "steps"
        panels = [found.sel(site=found.kind == kind) for kind in kinds]
        rows = max(panel.sizes["site"] for panel in panels)
        figure, axes = plt.subplots(
            1,
            len(kinds),
            figsize=(min(WIDTH, 1 + len(kinds) * (1 + 0.4 * found.sizes[x])), 2 + 0.28 * rows),
            layout="constrained",
            squeeze=False,
        )
        limit = float(np.nanmax(np.abs(found.indirect_effect)))
        for ax, kind, panel in zip(axes.flat, kinds, panels):
            plot.heatmap(panel, x, "layer", ax=ax, title=plot.WORDS.get(kind, kind), limit=limit, bar=False)
        bar(axes.flat, f"indirect effect ({found.attrs['unit']})\n{plot.DOT}")
        figure.suptitle(title)
        return figure
    if (found.part == "text").all():
        return plot.heatmap(found, "kind", "layer", title=title).figure
    return plot.profile(found, title=title).figure


def save_grid(images: xr.DataArray, title: str, out: Path):
    """Write a grid of pictures as OUT.png."""
    plot.image_grid(images, title=title).figure.savefig(beside(out, ".png"), dpi=120, bbox_inches="tight")
