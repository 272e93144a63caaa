"""How many vectors is a concept's swap? `python -m workbench.studies.swap_rank`.

Five pairs of words are swapped by the recipe of the swap benchmark, M - I cut to 1, 2, 4, 8 singular values and not at all, and by
reflections; and each first word is erased by projections. The benchmark's prompts are taken with other words in them: edits are made
from `train` and from `preserve` prompts, measured on `held_out` and `control` ones, without those that say or show one of the pair.
Finished cells are kept in `runs/`: a stopped study goes on with the same command, and `--redraw` draws from the table in `--out`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
from matplotlib.figure import Figure

from workbench import edit as edits
from workbench.drawing import COLOURS, GREY, WIDTH, house, intervals, save
from workbench.edit.low_rank import Edit
from workbench.models import Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set, with_article
from workbench.scorer import Scorer
from workbench.studies.edits import CEILING, EditCells, Editor, Measure, cell_rows, silent, thinned
from workbench.studies.swap_editors import ALL, BEST, OVERSHOOT
from workbench.text import replace_words

PAIRS = (
    ("zebra", "giraffe"),
    ("lion", "penguin"),
    ("cow", "camel"),
    ("elephant", "flamingo"),
    ("camel", "zebra"),
)
REFLECTED = "reflect, rank 1"
RANKS = (1, 2, 4, 8, None)
EVERY = "all pairs"
COLUMNS = ["pair", "editor", "rank", "measure", "value", "low", "high", "n"]


@dataclass
class RankOptions:
    pairs: int = len(PAIRS)
    """The first so many of them."""
    every: int = 1
    """Make edits from every so many-th prompt only."""
    images: int | None = 40
    """At most about so many of each set."""
    num_inference_steps: int = 8
    batch_size: int = 20
    runs: Path = Path("runs/swap_rank")
    """Where finished parts are kept."""
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


def spoken(name: str, pair: tuple[str, str]) -> list[Prompt]:
    """A set of the benchmark with each of the pair in the zebra's place."""
    zebras = [prompt.prompt for prompt in prompt_set(f"swap/{name}") if prompt.subject == "zebra"]
    return [
        Prompt(replace_words(text, "a zebra", with_article(word)).text, with_article(word), word, with_article(other))
        for word, other in (pair, pair[::-1])
        for text in zebras
    ]


def sets_of(pair: tuple[str, str]) -> dict[str, PromptSet]:
    labels = prompt_set("swap/held_out").labels
    made = {"held_out": spoken("held_out", pair), "control": silent("control", pair)}
    return {name: PromptSet(name, prompts, labels) for name, prompts in made.items()}


def editors(model: Model, pair: tuple[str, str], every: int = 1) -> dict[str, Editor]:
    """Swaps by rank, a reflection, and projections that erase the first word."""
    first, second = map(with_article, pair)
    train, kept = spoken("train", pair)[::every], [prompt.prompt for prompt in silent("preserve", pair)[::every]]
    templates = [prompt.prompt.replace(first, "{}") for prompt in train if prompt.value == pair[0]]
    stay = [Prompt("", ""), *(Prompt(text, "") for text in kept)]
    guides = [template.format(second) for template in templates]

    def swap(rank: int | None) -> Edit:
        return edits.from_concepts(model, train, preserve=stay, rank=rank, **BEST) * OVERSHOOT

    def reflect(rank: int) -> Edit:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="reflect: ")  # whether a pair suits is what is measured
            return edits.reflect(model, first, second, sites=ALL, templates=templates, corpus=kept, rank=rank)

    oblique = partial(edits.oblique, model, first, second, sites=ALL, templates=templates, corpus=[*kept, *guides])
    made: dict[str, Callable[[], Edit]] = {f"swap, {rank_name(rank)}": partial(swap, rank) for rank in RANKS}
    made[REFLECTED] = partial(reflect, 1)
    made |= {f"oblique, {rank_name(rank)}": partial(oblique, rank=rank) for rank in (1, 4)}
    return {name: Editor(make) for name, make in made.items()}


def rank_name(rank: int | None) -> str:
    return "full rank" if rank is None else f"rank {rank}"


def shows(column: str, first: bool) -> Measure:
    """Whether held-out pictures of the pair's first word, or of its second, show what a column of theirs says."""

    def of(name: str, cell: pd.DataFrame) -> pd.Series | None:
        own = cell[(cell.value == cell.pair.str.split(" / ").str[0]) == first]
        return None if name == "control" else own.edited == own[column]

    return of


MEASURES: dict[str, Measure] = {
    "collateral": lambda name, cell: cell.edited != cell.unedited if name == "control" else None,
    "image distance, control": lambda name, cell: cell.distance if name == "control" else None,
    "swapped": lambda name, cell: cell.edited == cell.target if name != "control" else None,
    "first shows the other": shows("target", True),
    "first shows itself": shows("value", True),
    "second shows the other": shows("target", False),
    "second shows itself": shows("value", False),
}


def pair_table(rows: pd.DataFrame, pair: str) -> pd.DataFrame:
    """One row for each editor and measure of a pair, or of all: value, 95 % interval, number of images."""
    return cell_rows(rows, MEASURES).assign(pair=pair)[COLUMNS]


def measured(model: Model, options: RankOptions) -> pd.DataFrame:
    """The table of all pairs, with how well each suits a reflection."""
    tables, every = [], []
    for pair in PAIRS[: options.pairs]:
        name, made = " / ".join(pair), editors(model, pair, options.every)
        cells = EditCells(
            model,
            thinned(sets_of(pair), options.images),
            made,
            targets=dict([pair, pair[::-1]]),
            ceiling="held_out",
            settings=[BEST, OVERSHOOT, list(pair), options.every],
            scorer=Scorer(),
            num_inference_steps=options.num_inference_steps,
            batch_size=options.batch_size,
        )
        rows = cells.table(options.runs / "-".join(pair)).assign(pair=name)
        tables.append(pair_table(rows, name))
        every.append(rows)
        edit = cells.edit(REFLECTED)
        miss = dict(
            pair=name, editor=REFLECTED, rank=edit.rank, measure="miss", value=edit.provenance["miss"]["text states"]
        )
        tables.append(pd.DataFrame([miss]).reindex(columns=COLUMNS))
    return pd.concat([pair_table(pd.concat(every), EVERY), *tables]).round(4)


@house
def overview(table: pd.DataFrame) -> Figure:
    """Efficacy and collateral over rank for all pairs together, each pair beside; and which pairs suit a reflection."""
    pick = lambda measure, editors: table[(table.measure == measure) & table.editor.isin(editors)]
    swaps = [f"swap, {rank_name(rank)}" for rank in RANKS]
    pairs = [pair for pair in table.pair.unique() if pair != EVERY]
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.6), layout="constrained", width_ratios=(1.2, 1.2, 1))
    for ax, (measure, title) in zip(axes, (("swapped", "swapped, held out"), ("collateral", "collateral, control"))):
        rows = pick(measure, swaps)
        for pair, colour in zip(pairs, COLOURS):
            own = rows[rows.pair == pair].set_index("editor").reindex(swaps)
            ax.plot(range(len(swaps)), own.value, color=colour, lw=1, alpha=0.6, marker=".", label=pair)
        own = rows[rows.pair == EVERY].set_index("editor").reindex(swaps)
        intervals(ax, range(len(swaps)), own.value, own.low, own.high, color="black", lw=2, zorder=5, label=EVERY)
        told = table[(table.pair == EVERY) & (table.editor == CEILING) & (table.measure == measure)]
        if len(told):
            ax.axhline(told.value.item(), color=GREY, ls="--", lw=1, zorder=0, label=CEILING)
        ax.set_xticks(range(len(swaps)), [str(rank or "full") for rank in RANKS])
        ax.set(ylim=(-0.03, 1.03), xlabel="rank of the change", title=title)
    axes[0].set_ylabel("share of images")
    axes[1].legend(*axes[0].get_legend_handles_labels(), loc="upper right")
    missed = pick("miss", [REFLECTED]).set_index("pair").value
    swapped = pick("swapped", [REFLECTED]).set_index("pair").reindex(missed.index)
    for pair, colour in zip(missed.index, COLOURS):
        row = swapped.loc[[pair]]
        intervals(axes[2], [missed[pair]], row.value, row.low, row.high, color=colour)
    axes[2].axvline(edits.projections.SUITS, color=GREY, ls=":", lw=1)
    axes[2].set(ylim=(-0.03, 1.03), xlabel="miss, from the states", title="reflected, rank 1: swapped")
    held, control = (int(pick(measure, swaps).n.max()) for measure in ("swapped", "collateral"))
    figure.suptitle(
        f"{len(pairs)} pairs swapped by one matrix for all layers, cut to a rank; {held} held-out and {control} control images"
    )
    return figure


def main(options: RankOptions):
    path = options.out / "swap_rank.csv"
    if not options.redraw:
        table = measured(load(), options)
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    table = pd.read_csv(path)
    for measure in ("swapped", "collateral", "miss"):
        shown = table[table.measure == measure].pivot_table(index="editor", columns="pair", values="value", sort=False)
        print(f"{measure}\n{shown.round(2).to_string()}")
    save(overview(table), options.out / "swap_rank.png")


if __name__ == "__main__":
    main(tyro.cli(RankOptions))
