"""Pictures of the Prompt-to-Prompt benchmark."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench import plot
from workbench.drawing import WIDTH, dots, house
from workbench.interventions import World
from workbench.models import Model
from workbench.p2p.edit import LocalBlend, prompt_to_prompt
from workbench.studies.p2p_pairs import NEW, P2P, SOURCE, Pair

NAMES = {  # of arms, as texts have them
    NEW: "new prompt, same noise",
    P2P: "P2P, the paper's settings",
    **{f"cross {f:g}": f"cross {f:g}, self 0" for f in (0.2, 0.4, 0.6, 0.8, 1.0)},
    **{f"self {f:g}": f"P2P, self {f:g}" for f in (0.2, 0.8, 1.0)},
    **{f"self {f:g}, all sizes": f"P2P, self {f:g} at all sizes" for f in (0.4, 0.8)},
    "word 0": "P2P, the new word's own attention",
    **{f"word {f:g}": f"P2P, the new word's own from {f:g} on" for f in (0.2, 0.4)},
    "P2P, blend 0.25": "P2P, local blend at 1/4, threshold 0.3",
    "P2P, blend 1": "P2P, local blend at 1/1, threshold 0.3",
    "P2P, blend 0.5": "P2P, local blend at 1/2, threshold 0.3",
    **{f"P2P, blend 0.5, threshold {f:g}": f"P2P, local blend at 1/2, threshold {f:g}" for f in (0.5, 0.7)},
    "self 0.4, all sizes, blend 0.5, threshold 0.7": "the same, self 0.4 at all sizes",
}
MEASURES = {
    f"background, minus {NEW}": "change outside both subjects,\nminus the new prompt's",
    "target": "share that shows\nthe target",
    "position kept": "share with the\nposition kept",
}


@house
def arms_figure(table: pd.DataFrame) -> Figure:
    """Every arm of the study swap: what it changes outside the subjects, beside what it costs and what else it keeps."""
    table = table[table.study == "swap"]
    arms = [arm for arm in table.arm.unique() if arm != SOURCE]
    figure = plt.figure(figsize=(WIDTH, 0.27 * len(arms) + 1.4), layout="constrained")
    axes = figure.subplots(1, len(MEASURES), width_ratios=(1.4, 1, 1))
    for ax, (measure, label) in zip(axes, MEASURES.items()):
        rows = table[table.measure == measure].set_index("arm")[["value", "low", "high"]].reindex(arms)
        plain = rows.value[NEW] if measure in ("target", "position kept") else 0.0
        dots(rows.set_axis([NAMES.get(arm, arm) for arm in arms]), ax=ax, lines={"new prompt": plain})
        ax.set_xlabel(label)
        ax.locator_params(axis="x", nbins=4)
    for ax in axes[1:]:
        ax.set(yticklabels=[], xlim=(None, 1.04))
    pairs = int(table.n.max())
    figure.suptitle(f"One animal for another, {pairs} pairs, 95 % intervals; left of 0 more of the background stays")
    return figure


def pictures(model: Model, pairs: Sequence[Pair], steps: int | None) -> xr.DataArray:
    """The source, the new prompt from the same noise, and edits: (pair, world, y, x, colour)."""
    rows = []
    for i, pair in enumerate(pairs):
        blend = LocalBlend(pair.words, resolution=0.5, threshold=0.7)
        arms = {
            "P2P": {},
            "P2P, local blend at 1/2, threshold 0.7": dict(blend=blend),
            "P2P, self 0.8 at all sizes": dict(self_replace_steps=0.8, self_resolution=1.0),
        }
        edits = [prompt_to_prompt(model, pair.source, {name: pair.target}, **more)[1] for name, more in arms.items()]
        worlds = [World("source", pair.source), World("new prompt", pair.target), *edits]
        run = model.run(worlds, seeds=[1000 + i], num_inference_steps=steps, progress=False)
        rows.append(run.images.isel(seed=0, drop=True))
    names = [f"{pair.words[0]} \u2192 {pair.words[1]}\n{pair.source.split(maxsplit=2)[2]}" for pair in pairs]
    return xr.concat(rows, dim=pd.Index(names, name="pair")).transpose("pair", "world", ...)


@house
def images_figure(images: xr.DataArray) -> Figure:
    """A row a pair, a column a world."""
    figure, ax = plt.subplots(figsize=(WIDTH, 1.1 + 1.42 * images.sizes["pair"]), layout="constrained")
    plot.image_grid(images, ax=ax, title="One starting noise in each row").set(xlabel="", ylabel="")
    return figure
