"""The swap benchmark asked anew: `python -m workbench.studies.swap_fresh`.

Its held-out prompts were looked at while editors and their settings came to be what they are. Here the best of its editors, and swaps of
rank one and two, are measured on prompts in wordings that no other set has, from seeds that nothing was drawn from, and on words that the
model never saw: other animals, things, words that are none, and words that begin as the pair's do. Finished cells are kept in `runs/`: a
stopped study goes on with the same command, and `--redraw` draws from the table in `--out`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
from matplotlib.figure import Figure

from workbench import edit as edits
from workbench.drawing import WIDTH, dots, house, save
from workbench.edit.low_rank import Edit
from workbench.menagerie.edit_prompts import PAIR, UNSEEN
from workbench.models import Model, load
from workbench.prompts import PromptSet, prompt_set
from workbench.scorer import Scorer
from workbench.studies.edits import EditCells, Editor, Fit, Measure, cell_rows, thinned
from workbench.studies.swap_editors import ALL, BEST, EDITORS, OTHER, OVERSHOOT, SIX, TEXT_ENCODER, Maker, solved
from workbench.studies.swap_figures import NAMES

SETS = ("fresh", "fresh_control", "unseen")
FIRST_SEED = 700_000
KIND = {word: kind for kind, words in UNSEEN.items() for word in words}
BEFORE = (
    "swap",
    "swap, six layers",
    "swap, null space",
    "uce",
    "locoedit, all layers",
    "diff_quickfix",
    "embedding_swap",
)


def reflected(model: Model, fit: Fit, *, rank: int) -> Edit:
    """A mirror between the two animals in the wordings of the training prompts."""
    first, second = (f"a {animal}" for animal in PAIR)
    templates = [prompt.prompt.replace(first, "{}") for prompt in fit.train if prompt.value == PAIR[0]]
    kept = [prompt.prompt for prompt in fit.preserve]
    return edits.reflect(model, first, second, sites=ALL, templates=templates, corpus=kept, rank=rank)


MAKERS: dict[str, Maker] = {name: EDITORS[name] for name in BEFORE}
MAKERS |= {f"swap, rank {rank}": partial(solved, scale=OVERSHOOT, rank=rank) for rank in (1, 2)}
MAKERS |= {f"swap, six layers, rank {rank}": partial(solved, sites=SIX, scale=OVERSHOOT, rank=rank) for rank in (1, 2)}
MAKERS |= {f"reflect, rank {rank}": partial(reflected, rank=rank) for rank in (1, 2)}


@dataclass
class FreshOptions:
    editors: tuple[str, ...] = ()
    """Which of them; all when left out."""
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    images: int | None = None
    """At most about so many of each set."""
    num_inference_steps: int = 8
    batch_size: int = 25
    runs: Path = Path("runs/swap_fresh")
    """Where finished parts are kept."""
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


def of_unseen(count: Callable[[pd.DataFrame], pd.Series], kind: str | None = None) -> Measure:
    """What pictures of unseen words count, or of one kind of them."""

    def of(name: str, cell: pd.DataFrame) -> pd.Series | None:
        own = cell if kind is None else cell[cell.kind == kind]
        return count(own) if name == "unseen" and len(own) else None

    return of


def changed(cell: pd.DataFrame) -> pd.Series:
    return cell.edited != cell.unedited


def became(cell: pd.DataFrame) -> pd.Series:
    """Whether one of the pair is shown, which was not shown before."""
    return cell.edited.isin(PAIR) & ~cell.unedited.isin(PAIR)


MEASURES: dict[str, Measure] = {
    "swapped": lambda name, cell: cell.edited == cell.target if name == "fresh" else None,
    "collateral": lambda name, cell: changed(cell) if name == "fresh_control" else None,
    "image distance, control": lambda name, cell: cell.distance if name == "fresh_control" else None,
    "unseen, changed": of_unseen(changed),
    "unseen, becomes one of the pair": of_unseen(became),
    "unseen, was one of the pair": of_unseen(lambda cell: cell.unedited.isin(PAIR)),
    **{f"unseen, changed: {kind}": of_unseen(changed, kind) for kind in UNSEEN},
}
DRAWN = {
    "swapped": "swapped\nin fresh wordings",
    "collateral": "collateral\nin fresh wordings",
    "unseen, changed": "words never seen:\ntop class changes",
}


def measured(model: Model, options: FreshOptions) -> pd.DataFrame:
    """One row for each editor and measure: value, 95 % interval, number of images."""
    if unknown := set(options.editors) - set(MAKERS):
        raise ValueError(f"editors={sorted(unknown)}: unknown; there are {', '.join(MAKERS)}")
    fit = Fit(tuple(prompt_set("swap/train")), tuple(prompt_set("swap/preserve"))).thinned(options.every)
    labels = prompt_set("swap/held_out").labels
    sets = thinned({name: prompt_set(f"swap/{name}", labels=labels) for name in SETS}, options.images)
    cells = EditCells(
        model,
        sets,
        {
            name: Editor(partial(MAKERS[name], model, fit), "text encoder" if name in TEXT_ENCODER else "UNet")
            for name in options.editors or MAKERS
        },
        targets=OTHER,
        ceiling="fresh",
        settings=[BEST, OVERSHOOT, SIX, options.every],
        scorer=Scorer(),
        num_inference_steps=options.num_inference_steps,
        batch_size=options.batch_size,
        first_seed=FIRST_SEED,
    )
    rows = cells.table(options.runs)
    return cell_rows(rows.assign(kind=kinds(rows, sets["unseen"])), MEASURES).round(4)


def kinds(rows: pd.DataFrame, unseen: PromptSet) -> list[str | None]:
    """What kind of word each row's prompt has, where it is an unseen one."""
    return [
        KIND[unseen[number].subject] if name == "unseen" else None for name, number in zip(rows["set"], rows.prompt)
    ]


@house
def overview(table: pd.DataFrame) -> Figure:
    """Every editor on fresh wordings and unseen words, the best above."""
    values = table.pivot_table(index="editor", columns="measure", values="value", sort=False)
    order = (values.swapped - values.collateral.fillna(0)).sort_values(ascending=False).index
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 0.29 * len(order) + 1.4), layout="constrained")
    for ax, (measure, title) in zip(axes, DRAWN.items()):
        rows = table[table.measure == measure].set_index("editor")[["value", "low", "high", "n"]].reindex(order)
        count = int(rows.n.max())
        dots(rows.set_axis([NAMES.get(name, name) for name in order]), ax=ax)
        ax.set(xlim=(-0.03, 1.03), xlabel="share of images, 95 %", title=f"{title}\n({count} images)")
    for ax in axes[1:]:
        ax.set_yticklabels([])
    figure.suptitle("Swap of zebra and giraffe on prompts that nothing was chosen by; *: changes the text encoder")
    return figure


def main(options: FreshOptions):
    path = options.out / "swap_fresh.csv"
    if not options.redraw:
        table = measured(load(), options)
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    table = pd.read_csv(path)
    print(table.pivot_table(index="editor", columns="measure", values="value", sort=False).round(2).to_string())
    save(overview(table), options.out / "swap_fresh.png")


if __name__ == "__main__":
    main(tyro.cli(FreshOptions))
