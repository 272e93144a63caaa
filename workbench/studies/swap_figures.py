"""Pictures of the swap benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr

from workbench import plot
from workbench.edit.low_rank import Edit
from workbench.models import Model
from workbench.prompts import PromptSet

SHOWN = {
    "held_out": "swapped",
    "paraphrase": "swapped",
    "plural": "swapped",
    "two_animal": "changed",
    "homonym": "changed",
    "control": "changed",
}


def frontier(table: pd.DataFrame, path: Path):
    """Efficacy against collateral with 95 % intervals, and what every editor does to every set."""
    accuracy, collateral = _rows(table, "held_out", "swapped"), _rows(table, "control", "changed")
    accuracy = accuracy.loc[
        (collateral["value"].reindex(accuracy.index).fillna(0) - accuracy["value"]).sort_values().index
    ]  # the best first
    figure, (left, right) = plt.subplots(1, 2, figsize=(16, 7.5), layout="constrained", width_ratios=(1.25, 1))
    colours = dict(zip(accuracy.index, sns.color_palette("husl", len(accuracy))))
    for editor, y in accuracy.iterrows():
        if editor not in collateral.index:  # no edit: what the model draws of the other animal when it is told
            left.axhline(y.value, color=colours[editor], ls="--", label=editor)
            continue
        x = collateral.loc[editor]
        left.errorbar(
            x.value,
            y.value,
            [[y.value - y.low], [y.high - y.value]],
            [[x.value - x.low], [x.high - x.value]],
            capsize=2,
            ms=8,
            fmt="o" if y.rules == "UNet" else "s",
            color=colours[editor],
            mfc=colours[editor] if y.rules == "UNet" else "white",
            label=f"{editor} ({y.rules})",
        )
    left.axhline(0.9, color="grey", ls=":")
    left.axvline(0.05, color="grey", ls=":")
    left.set(
        xlabel="collateral: control prompts whose top class changed",
        ylabel="swap accuracy on held-out prompts",
        title=f"Efficacy against collateral, {int(accuracy.n.iloc[0])} and {int(collateral.n.iloc[0])} images per editor, "
        "95 % intervals; dotted: the target",
    )
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=4)
    cells = pd.DataFrame(
        {f"{name}\n{measure}": _rows(table, name, measure)["value"] for name, measure in SHOWN.items()}
    ).reindex(accuracy.index)
    sns.heatmap(cells, ax=right, annot=True, fmt=".2f", cmap="viridis", vmin=0, vmax=1, cbar=False)
    right.set(ylabel="", title="Share of images, by set")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _rows(table: pd.DataFrame, name: str, measure: str) -> pd.DataFrame:
    """One measure on one set, by editor."""
    return table[(table.set == name) & (table.measure == measure)].set_index("editor")


def before_and_after(model: Model, edits: Mapping[str, Edit], sets: Mapping[str, PromptSet], path: Path, steps: int):
    """The same prompts and seeds under each edit: two held-out prompts of each animal, controls, and every leak."""
    chosen = [
        ("held_out", 0),
        ("held_out", 1),
        ("held_out", -1),
        ("held_out", -2),
        ("control", 0),
        ("control", 35),
        ("control", 80),
    ]
    chosen += [(name, i) for name in ("paraphrase", "plural", "two_animal", "homonym") for i in (0, -1)]
    prompts = [sets[name][i % len(sets[name])].prompt for name, i in chosen]
    rows = {"unedited": _drawn(model, prompts, steps)}
    for name, edit in edits.items():
        with model.applied(edit):
            rows[name] = _drawn(model, prompts, steps)
    images = xr.DataArray(
        np.stack(list(rows.values())),
        dims=("world", "seed", "y", "x", "colour"),
        coords={"world": list(rows), "seed": range(len(prompts))},
    )
    figure, ax = plt.subplots(figsize=(22, 1.35 * len(rows) + 1.4), layout="constrained")
    plot.image_grid(images, ax=ax, title="Each column: one prompt and one starting noise")
    ax.set_xticks(
        ax.get_xticks(),
        [
            f"{name}:\n{fill(prompt, 19, break_long_words=False, break_on_hyphens=False)}"
            for (name, _), prompt in zip(chosen, prompts)
        ],
        fontsize=7,
    )
    ax.set_xlabel("")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _drawn(model: Model, prompts: Sequence[str], steps: int) -> np.ndarray:
    """Images of prompts, each of its own seed: (image, y, x, colour)."""
    images = model.generate(prompts, seeds=range(len(prompts)), num_inference_steps=steps)
    return np.stack([np.asarray(image) for image in images]) / 255
