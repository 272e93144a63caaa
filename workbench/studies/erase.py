"""Is the guide free? `python -m workbench.studies.erase`.

Each of the twelve subjects is erased by `wb.edit.erase`, with the contexts and the states to keep that come with the workbench. It is
given all others as guides and chooses the one that moves the least, or (`--guide kind`) one of the same kind, from a table. Measured
on the swap benchmark's held-out wordings with the subject in them, and on its control prompts without those that say or show it.
Whether the subject can be brought back is another question (`hidden`). Finished cells are kept in `runs/`: a stopped study goes on
with the same command. Writes `erase.csv`, or `erase_kind.csv`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from workbench import edit as edits
from workbench.models import Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set, with_article
from workbench.scorer import Scorer
from workbench.studies.edits import EditCells, Editor, Measure, cell_rows, silent, thinned
from workbench.studies.hidden_edits import GUIDES
from workbench.text import replace_words

EVERY = "all subjects"
RANKS = (1, 4)
COLUMNS = ["subject", "editor", "measure", "value", "low", "high", "n"]


@dataclass
class EraseOptions:
    subjects: tuple[str, ...] = ()
    """Which of the twelve; all when left out."""
    guide: Literal["free", "kind"] = "free"
    """Chosen by `wb.edit.erase` among all other subjects, or one of the same kind, from the table GUIDES."""
    images: int | None = 25
    """At most about so many of each set."""
    num_inference_steps: int = 8
    batch_size: int = 25
    device: str = "cpu"
    runs: Path = Path("runs/erase")
    """Where finished parts are kept."""
    out: Path = Path("runs/figures")


def sets_of(subject: str) -> dict[str, PromptSet]:
    held_out, word = prompt_set("swap/held_out"), with_article(subject)
    texts = [replace_words(each.prompt, "a zebra", word).text for each in held_out if each.subject == "zebra"]
    control = PromptSet("control", silent("control", (subject,)), held_out.labels)
    return {
        "held_out": PromptSet("held_out", [Prompt(text, word, subject) for text in texts], held_out.labels),
        "control": control,
    }


MEASURES: dict[str, Measure] = {
    "subject shown": lambda name, cell: cell.edited == cell.value if name == "held_out" else None,
    "collateral": lambda name, cell: cell.edited != cell.unedited if name == "control" else None,
    "image distance, control": lambda name, cell: cell.distance if name == "control" else None,
}


def subject_table(rows: pd.DataFrame, subject: str) -> pd.DataFrame:
    """One row for each editor and measure of a subject, or of all: value, 95 % interval, number of images."""
    table = cell_rows(rows, MEASURES)
    return table.drop(columns=["set", "rank"]).assign(subject=subject)[COLUMNS]


def measured(model: Model, options: EraseOptions) -> pd.DataFrame:
    """The table of all subjects, with the guide of each."""
    tables, every = [], []
    for subject in options.subjects or tuple(prompt_set("object").labels):
        others = [other for other in prompt_set("object").labels if other != subject]
        guides = [with_article(other) for other in (others if options.guide == "free" else [GUIDES[subject]])]
        make = partial(edits.erase, model, with_article(subject), guides)
        cells = EditCells(
            model,
            thinned(sets_of(subject), options.images),
            {f"erase, rank {rank}": Editor(partial(make, rank=rank)) for rank in RANKS},
            targets={},
            ceiling=None,
            settings=[subject] if options.guide == "free" else [subject, GUIDES[subject]],
            scorer=Scorer(device=options.device),
            num_inference_steps=options.num_inference_steps,
            batch_size=options.batch_size,
        )
        rows = cells.table(options.runs / (subject if options.guide == "free" else f"{subject}-kind"))
        chosen = {name: cells.edit(name).provenance["guide"] for name in cells.editors}
        table = subject_table(rows, subject)
        tables.append(table.assign(guide=table.editor.map(chosen)))
        every.append(rows)
    return pd.concat([subject_table(pd.concat(every), EVERY), *tables]).round(4)


def main(options: EraseOptions):
    table = measured(load(device=options.device), options)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / ("erase.csv" if options.guide == "free" else "erase_kind.csv"), index=False)
    print(
        table.pivot_table(index="subject", columns=["measure", "editor"], values="value", sort=False)
        .round(2)
        .to_string()
    )


if __name__ == "__main__":
    main(tyro.cli(EraseOptions))
