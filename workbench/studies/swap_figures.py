"""Pictures of the swap benchmark."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench import plot
from workbench.drawing import WIDTH, cells, dots, house
from workbench.edit.low_rank import Edit
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.studies.edits import CEILING, UNEDITED

NAMES = {  # of editors, as texts have them
    "swap": "swap, all layers",
    "time": "TIME",
    "uce": "UCE",
    "rome": "ROME",
    "locoedit, two layers": "LocoEdit, two layers",
    "locoedit, all layers": "LocoEdit, all layers",
    "diff_quickfix": "Diff-QuickFix*",
    "embedding_swap": "embedding swap*",
    "textual_inversion": "textual inversion*",
    CEILING: "told the other animal's name",
}
LEAKS = {
    ("paraphrase", "swapped"): "para-\nphrases\nswapped",
    ("plural", "swapped"): "plurals\nswapped",
    ("two_animal", "changed"): "both\nanimals\nchanged",
    ("homonym", "changed"): "zebra\ncrossings\nchanged",
}
# What is shown of which prompt of a set, and the seed of its picture.
SHOWN = (
    ("held_out", 0, 0, "held out"),
    ("held_out", -1, 2, "held out"),
    ("paraphrase", 0, 7, "paraphrase"),
    ("plural", 0, 9, "plural"),
    ("two_animal", 0, 11, "both animals"),
    ("homonym", 0, 13, "zebra crossing"),
    ("control", 0, 4, "control"),
    ("control", 80, 6, "control"),
)


@house
def overview(table: pd.DataFrame) -> Figure:
    """Every editor's accuracy and collateral with 95 % intervals, the best above, and what it does to every other set."""
    accuracy, collateral = picked(table, "held_out", "swapped"), picked(table, "control", "changed")
    score = accuracy.value - collateral.value.reindex(accuracy.index).fillna(0)
    groups = table.drop_duplicates("editor").set_index("editor").rules.map(["UNet", "text encoder", "no edit"].index)
    groups[UNEDITED] = max(groups)
    order = sorted(accuracy.index, key=lambda editor: (groups[editor], -score[editor]))
    names = [NAMES.get(editor, editor) for editor in order]
    figure = plt.figure(figsize=(WIDTH, 0.29 * len(order) + 1.7), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    measured = (
        (accuracy, f"swapped, held out\n({int(accuracy.n.max())} images)"),
        (
            collateral,
            f"collateral, control\n({int(collateral.n.max())} images)",
        ),
    )
    for ax, (rows, title) in zip(axes, measured):
        dots(rows.reindex(order).set_axis(names), ax=ax)
        ax.set(xlim=(-0.03, 1.03), xlabel="share of images, 95 %", title=title)
    leaks = {title: picked(table, *which).value.reindex(order) for which, title in LEAKS.items()}
    grid = pd.DataFrame(leaks).set_axis(names)
    notes = grid.map(lambda share: "" if np.isnan(share) else f"{share:.2f}").to_numpy()
    scale = dict(cmap="viridis", vmin=0, vmax=1)
    cells(grid, ax=axes[2], notes=notes, title="leakage: share of images", rotation=0, **scale)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    figure.suptitle("Swap of zebra and giraffe by every editor; *: changes the text encoder, outside the task's rules")
    return figure


def picked(table: pd.DataFrame, name: str, measure: str) -> pd.DataFrame:
    """One measure on one set, by editor."""
    return table[(table.set == name) & (table.measure == measure)].set_index("editor")[["value", "low", "high", "n"]]


def before_and_after(
    model: Model, edits: Mapping[str, Edit], sets: Mapping[str, PromptSet], steps: int
) -> xr.DataArray:
    """The same prompts and seeds under each edit: (world, prompt, y, x, colour)."""
    prompts = [sets[name][i % len(sets[name])].prompt for name, i, _, _ in SHOWN]
    seeds = [seed for _, _, seed, _ in SHOWN]
    rows = {"unedited": drawn(model, prompts, seeds, steps)}
    for name, edit in edits.items():
        with model.applied(edit):
            rows[NAMES.get(name, name)] = drawn(model, prompts, seeds, steps)
    captions = [f"{title}:\n{prompt}" for prompt, (_, _, _, title) in zip(prompts, SHOWN)]
    coords = {"world": list(rows), "prompt": captions}
    return xr.DataArray(np.stack(list(rows.values())), coords, ("world", "prompt", "y", "x", "colour"))


def drawn(model: Model, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> np.ndarray:
    """Images of prompts, each of its own seed: (image, y, x, colour)."""
    images = model.generate(prompts, seeds=seeds, num_inference_steps=steps)
    return np.stack([np.asarray(image) for image in images]) / 255


@house
def images_figure(images: xr.DataArray) -> Figure:
    """A row an edit, a column a prompt."""
    figure, ax = plt.subplots(figsize=(WIDTH, 1.6 + 0.95 * images.sizes["world"]), layout="constrained")
    plot.image_grid(images, ax=ax, title="Each column: one prompt and one starting noise").set_xlabel("")
    return figure
