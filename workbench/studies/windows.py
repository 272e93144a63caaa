"""Does localization help editing? `python -m workbench.studies.windows`.

The same swap edit at every window of two neighbouring cross-attention layers, at random sets of two, at all layers, and at
all but each window, scored on training prompts that it was not made from: the probability of the other animal. Windows are
then correlated (Spearman) with what localizers say of their layers: `figures/localizers/localizers.csv`, which
`python -m workbench.studies.agreement` writes, or any table with the columns layer, localizer, score. Writes
`windows.csv`, `windows_correlation.csv` and `windows.png`. `--redraw` draws from the table in `--out`.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from workbench import edit as edits
from workbench.drawing import TEXT, WIDTH, dots, house, save
from workbench.edit.low_rank import Edit
from workbench.experiments.statistics import correlation
from workbench.models import Model, load
from workbench.prompts import prompt_set
from workbench.scorer import Scorer
from workbench.studies.edits import UNEDITED, EditCells, Editor, Fit, thinned
from workbench.studies.swap import cell_table
from workbench.studies.swap_editors import BEST, OTHER

MEASURE = "probability of the target"


@dataclass
class WindowsOptions:
    width: int = 2
    random_sets: int = 8
    localizers: Path | None = Path("figures/localizers/localizers.csv")
    """A table with the columns layer, localizer, score (of objects, where it has a column attribute); left out where there is none."""
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    images: int | None = None
    num_inference_steps: int = 8
    batch_size: int = 25
    runs: Path = Path("runs/windows")
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


def layer_sets(model: Model, width: int, random_sets: int) -> dict[str, tuple[str, ...]]:
    """What is edited, by name: "window 0-1", "all but 0-1", "random 3,9", "all layers"; numbers are the papers'."""
    layers = [site.name for site in model.sites("unet.*.cross")]
    found = {"all layers": tuple(layers)}
    for start in range(len(layers) - width + 1):
        window = tuple(layers[start : start + width])
        found[f"window {start}-{start + width - 1}"] = window
        found[f"all but {start}-{start + width - 1}"] = tuple(layer for layer in layers if layer not in window)
    rng = random.Random("random layers")
    while sum(name.startswith("random") for name in found) < random_sets:
        chosen = sorted(rng.sample(range(len(layers)), width))
        if chosen != list(range(chosen[0], chosen[0] + width)):
            found[f"random {','.join(map(str, chosen))}"] = tuple(layers[i] for i in chosen)
    return found


def localizer_scores(options: WindowsOptions) -> pd.DataFrame:
    """Rows (localizer, layer, score) of the table that is given."""
    if options.localizers is None or not options.localizers.exists():
        return pd.DataFrame(columns=["localizer", "layer", "score"])
    table = pd.read_csv(options.localizers)
    if missing := [column for column in ("layer", "localizer", "score") if column not in table]:
        raise ValueError(f"localizers={str(options.localizers)!r} lacks the columns {missing}; found {list(table)}")
    return table[table.attribute == "object"] if "attribute" in table else table


def correlations(table: pd.DataFrame, sets: dict[str, tuple[str, ...]], scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rho between what a localizer says of a window (mean over its layers) and what editing it does.

    "window": the edit there alone; "all but": the loss, where the edit leaves that window out. Intervals are 95 %
    bootstraps over windows, which overlap: they are somewhat too narrow.
    """
    value, found = table.set_index("editor")["value"], []
    for localizer, rows in scores.groupby("localizer"):
        of_layer = rows.set_index("layer")["score"]
        for kind, sign in (("window", 1), ("all but", -1)):
            names = [name for name in sets if name.startswith(kind)]
            windows = [sets[name.replace("all but", "window")] for name in names]
            if not {layer for window in windows for layer in window} <= set(of_layer.index):
                raise ValueError(
                    f"localizer {localizer!r} has no score for some layers; its table names {list(of_layer.index)[:4]}, ..."
                )
            said = np.array([of_layer[list(window)].mean() for window in windows])
            done = sign * value[names].to_numpy()
            rho, low, high = correlation(said, done)
            row = dict(localizer=localizer, edit=kind, spearman=rho, low=low, high=high, windows=len(said))
            found.append(row)
    return pd.DataFrame(found)


def parts_of(whole: Callable[[], Edit], sets: Mapping[str, tuple[str, ...]]) -> dict[str, Editor]:
    """One edit at each set of layers; it is solved once, whatever layers it is used at."""
    return {name: Editor(partial(_at, whole, layers)) for name, layers in sets.items()}


def _at(whole: Callable[[], Edit], layers: tuple[str, ...]) -> Edit:
    return whole().at(*layers)


def main(options: WindowsOptions):
    if not options.redraw:
        measure(options)
    save(figure(pd.read_csv(options.out / "windows.csv"), options.width), options.out / "windows.png")


def measure(options: WindowsOptions):
    model, train, preserve = load(), prompt_set("swap/train"), prompt_set("swap/preserve")
    fit = Fit(tuple(train)[::2], tuple(preserve)[::2]).thinned(options.every)
    sets = layer_sets(model, options.width, options.random_sets)
    whole = cache(partial(edits.from_concepts, model, fit.train, preserve=fit.kept, **BEST))
    cells = EditCells(
        model,
        thinned({"train": train[1::2][::6]}, options.images),
        parts_of(whole, sets),
        targets=OTHER,
        ceiling=None,
        settings=[BEST, options.every, {name: list(layers) for name, layers in sets.items()}],
        scorer=Scorer(),
        num_inference_steps=options.num_inference_steps,
        batch_size=options.batch_size,
    )
    rows = cells.table(options.runs)
    order = [UNEDITED, *sorted(sets, key=lambda name: (name.split()[0], list(sets).index(name)))]
    table = pd.concat([cell_table(rows[rows.editor == name]) for name in order], ignore_index=True)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "windows.csv", index=False)
    table = table[table.measure == MEASURE]
    found = correlations(table, sets, localizer_scores(options))
    found.round(3).to_csv(options.out / "windows_correlation.csv", index=False)
    shown = table[["editor", "value", "low", "high", "n"]]
    print(shown.to_string(index=False), found.round(3).to_string(index=False), sep="\n\n")


@house
def figure(table: pd.DataFrame, width: int) -> Figure:
    """Sets of layers edited alone, and all but each window, on one scale."""
    rows = table[table.measure == MEASURE].set_index("editor")
    lines = {name: rows.value[name] for name in ("all layers", UNEDITED)}
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 5.4), layout="constrained", sharex=True)
    titles = f"edited at {width} layers alone", f"edited at all layers but {width}"
    for ax, title, kinds in zip(axes, titles, (("window", "random"), ("all but",))):
        chosen = pd.concat([rows[rows.index.str.startswith(kind)] for kind in kinds])
        names = [name.removeprefix("window ").removeprefix("all but ").replace(",", ", ") for name in chosen.index]
        dots(chosen.set_axis(names), ax=ax, lines=lines, title=title)
        ax.set_ylabel("cross-attention layers (numbers)")
    figure.supxlabel("probability of the other animal, 95 % interval", fontsize=TEXT)
    return figure


if __name__ == "__main__":
    main(tyro.cli(WindowsOptions))
