"""Is the guide free? `python -m workbench.studies.erase`.

Each of the twelve subjects is erased by `wb.edit.erase`, which is given all others as guides and chooses the one that moves the least,
with the contexts and the states to keep that come with the workbench. Measured on the swap benchmark's held-out wordings with the
subject in them, and on its control prompts without those that say or show it. Whether the subject can be brought back is another
question. Finished cells are kept in `runs/`: a stopped study goes on with the same command.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import tyro

from workbench import edit as edits
from workbench.experiments.statistics import mean, share
from workbench.models import Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set, with_article
from workbench.scorer import Scorer
from workbench.studies.edits import EditCells, Editor, thinned
from workbench.studies.swap_rank import silent
from workbench.text import replace_words

EVERY = "all subjects"
RANKS = (1, 4)


@dataclass
class EraseOptions:
    subjects: tuple[str, ...] = ()
    """Which of the twelve; all when left out."""
    images: int | None = 25
    """At most about so many of each set."""
    num_inference_steps: int = 8
    batch_size: int = 25
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


def subject_table(rows: pd.DataFrame, subject: str) -> pd.DataFrame:
    """One row for each editor and measure of a subject, or of all: value, 95 % interval, number of images."""
    found = []
    for (editor, name), cell in rows.groupby(["editor", "set"], sort=False):
        measures = {"subject shown": share(cell.edited == cell.value)}
        if name == "control":
            measures = {
                "collateral": share(cell.edited != cell.unedited),
                "image distance, control": mean(cell.distance),
            }
        for measure, estimate in measures.items():
            found.append(dict(subject=subject, editor=editor, measure=measure, **estimate._asdict(), n=len(cell)))
    return pd.DataFrame(found)


def measured(model: Model, options: EraseOptions) -> pd.DataFrame:
    """The table of all subjects, with the guide of each."""
    tables, every = [], []
    for subject in options.subjects or tuple(prompt_set("object").labels):
        guides = [with_article(other) for other in prompt_set("object").labels if other != subject]
        make = partial(edits.erase, model, with_article(subject), guides)
        cells = EditCells(
            model,
            thinned(sets_of(subject), options.images),
            {f"erase, rank {rank}": Editor(partial(make, rank=rank)) for rank in RANKS},
            targets={},
            ceiling=None,
            settings=[subject],
            scorer=Scorer(),
            num_inference_steps=options.num_inference_steps,
            batch_size=options.batch_size,
        )
        rows = cells.table(options.runs / subject)
        chosen = {name: cells.edit(name).provenance["guide"] for name in cells.editors}
        table = subject_table(rows, subject)
        tables.append(table.assign(guide=table.editor.map(chosen)))
        every.append(rows)
    return pd.concat([subject_table(pd.concat(every), EVERY), *tables]).round(4)


def main(options: EraseOptions):
    table = measured(load(), options)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "erase.csv", index=False)
    print(
        table.pivot_table(index="subject", columns=["measure", "editor"], values="value", sort=False)
        .round(2)
        .to_string()
    )


if __name__ == "__main__":
    main(tyro.cli(EraseOptions))
