"""The zebra / giraffe benchmark of edits: `python -m workbench.studies.swap` (or `workbench benchmark swap`).

After IOAI 2024: swap two concepts by changing weights. Every editor is measured on the same prompts, seeds and starting
noise as the unedited model: swap accuracy (share of held-out prompts whose picture shows the other animal), collateral (share
of control prompts whose top class changed), leakage (paraphrases, plurals, both animals, homonyms), and distance between
images. Classes are the grader's zero-shot ones over all subjects. Edits are made, and their settings chosen (`--tune`), from
`train` and `preserve` prompts alone. Finished cells are kept in `runs/`: a stopped benchmark goes on with the same command, and
`--redraw` draws from the table in `--out`.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from workbench.drawing import save
from workbench.experiments.statistics import Estimate, mean, share
from workbench.models import load
from workbench.prompts import prompt_set
from workbench.scorer import Scorer
from workbench.studies import swap_figures
from workbench.studies.edits import UNEDITED, EditCells, Fit, thinned
from workbench.studies.swap_editors import BEST, OTHER, OVERSHOOT, SIX, WINDOW, editors

SETS = ("held_out", "control", "paraphrase", "plural", "two_animal", "homonym")


@dataclass
class SwapOptions:
    editors: tuple[str, ...] = ()
    """Which of them; all when left out."""
    tune: bool = False
    """Choose settings on training prompts instead: fitted on every second one, measured on the others."""
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    images: int | None = None
    """At most so many of each set."""
    num_inference_steps: int = 8
    batch_size: int = 25
    runs: Path = Path("runs/swap")
    """Where finished parts are kept."""
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


def cell_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each editor, set and measure: value, 95 % interval, number of images."""
    found = []
    for _, cell in rows.groupby(["editor", "set"], sort=False):
        swapped, changed = cell.edited == cell.target, cell.edited != cell.unedited
        measures = {"changed": share(changed), "image distance": mean(cell.distance)}
        if cell.target.notna().all():
            measures |= {"swapped": share(swapped), "probability of the target": mean(cell.probability)}
            for animal, part in cell.assign(swapped=swapped).groupby("value"):
                found.append(_row(cell, f"swapped, {animal}", share(part.swapped), len(part)))
        found += [_row(cell, measure, estimate, len(cell)) for measure, estimate in measures.items()]
    return pd.DataFrame(found)


def _row(cell: pd.DataFrame, measure: str, estimate: Estimate, count: int) -> dict:
    about = cell.iloc[0][["editor", "rules", "rank", "set"]].to_dict()
    rounded = {name: round(value, 4) for name, value in estimate._asdict().items()}
    return {**about, "measure": measure, **rounded, "n": count}


def score(table: pd.DataFrame, efficacy: str = "held_out", control: str = "control") -> pd.DataFrame:
    """The benchmark's one number, 100 (swap accuracy - collateral), with both, the best editors first."""
    found = pd.DataFrame(
        {"swap_accuracy": picked(table, efficacy, "swapped"), "collateral": picked(table, control, "changed")}
    )
    found["score"] = 100 * (found.swap_accuracy - found.collateral)
    about = table.drop_duplicates("editor").set_index("editor")[["rules", "rank"]]
    return found.join(about).sort_values("score", ascending=False)


def picked(table: pd.DataFrame, name: str, measure: str) -> pd.Series:
    """One measure on one set, by editor."""
    return table[(table.set == name) & (table.measure == measure)].set_index("editor")["value"]


def main(options: SwapOptions):
    train, preserve = prompt_set("swap/train"), prompt_set("swap/preserve")
    if options.tune:
        fit = Fit(tuple(train)[::2], tuple(preserve)[::2])
        sets = {"train": train[1::2][::3], "preserve": preserve[1::2][::5]}
    else:
        fit, sets = Fit(tuple(train), tuple(preserve)), {name: prompt_set(f"swap/{name}") for name in SETS}
    sets, model = thinned(sets, options.images), load()
    cells = EditCells(
        model,
        sets,
        editors(model, fit.thinned(options.every), options.editors, tuning=options.tune),
        targets=OTHER,
        ceiling="train" if options.tune else "held_out",
        settings=[BEST, OVERSHOOT, WINDOW, SIX, options.every],
        scorer=Scorer(),
        num_inference_steps=options.num_inference_steps,
        batch_size=options.batch_size,
    )
    path = options.out / ("swap_tuning.csv" if options.tune else "swap.csv")
    if not options.redraw:
        table = cell_table(cells.table(options.runs / ("tune" if options.tune else "benchmark")))
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    table = pd.read_csv(path)
    ranked = score(table, *sets) if options.tune else score(table)
    print(ranked.round(3).to_string())
    if not options.tune:
        draw(cells, table, ranked, options)


def draw(cells: EditCells, table: pd.DataFrame, ranked: pd.DataFrame, options: SwapOptions):
    """Both pictures: all editors, and what the best and two published ones do to single prompts."""
    save(swap_figures.overview(table), options.out / "swap.png")
    best = ranked[(ranked.rules == "UNet") & (ranked.index != UNEDITED)].index[0]
    names = dict.fromkeys((best, "uce", "locoedit, all layers"))
    shown = {name: cells.edit(name) for name in names if name in cells.editors}
    images = swap_figures.before_and_after(cells.model, shown, cells.sets, options.num_inference_steps)
    save(swap_figures.images_figure(images), options.out / "swap_images.png")


if __name__ == "__main__":
    main(tyro.cli(SwapOptions))
