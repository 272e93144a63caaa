"""Erase a subject, remove a style, update a fact: `python -m workbench.studies.edit_tasks`.

Each with its own small prompt sets (`data/prompts/swap/TASK_train.csv`, `TASK_held_out.csv`), by two settings of the solver:
the swap benchmark's chosen one, and LocoEdit's on all layers. Reported on held-out prompts: the share of pictures that still
show the old value, the share that show the new one, and collateral on the control prompts. Writes `edit_tasks.csv`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import tyro

from workbench import edit as edits
from workbench.experiments.statistics import mean, share
from workbench.models import Model, load
from workbench.prompts import prompt_set
from workbench.scorer import Scorer
from workbench.studies.edits import EditCells, Editor, Fit, thinned
from workbench.studies.swap_editors import ALL, BEST, OVERSHOOT

TASKS = {
    "erase": None,
    "style": "none",
    "fact": "lion",
}  # what pictures are to show; nothing in particular where a subject is erased


@dataclass
class TasksOptions:
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    images: int | None = None
    """At most so many of each set."""
    num_inference_steps: int = 8
    batch_size: int = 25
    runs: Path = Path("runs/edit_tasks")
    out: Path = Path("runs/figures")


def material(task: str) -> Fit:
    """A task's training prompts, and those to preserve: no word of the task stands in them."""
    train = tuple(prompt_set(f"swap/{task}_train"))
    others = [*prompt_set("swap/preserve"), *(p for p in prompt_set("swap/train") if p.subject != train[0].subject)]
    return Fit(train, tuple(p for p in others if train[0].subject not in p.prompt))


def editors(model: Model, fit: Fit) -> dict[str, Editor]:
    chosen = partial(edits.from_concepts, model, fit.train, preserve=fit.kept, **BEST)
    return {
        "chosen": Editor(chosen),
        "chosen x 1.2": Editor(lambda: chosen() * OVERSHOOT),
        "chosen x 1.2, rank 1": Editor(lambda: chosen(rank=1) * OVERSHOOT),
        "locoedit, all layers": Editor(partial(edits.locoedit, model, fit.train, sites=ALL)),
    }


def task_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows (editor, set, measure, value, low, high, n)."""
    found = []
    for (editor, name), cell in rows.groupby(["editor", "set"], sort=False):
        measures = {"changed": share(cell.edited != cell.unedited), "image distance": mean(cell.distance)}
        if name != "control":
            measures["shows the old"] = share(cell.edited == cell.value)
            if cell.target.notna().all():
                measures["shows the new"] = share(cell.edited == cell.target)
        for measure, estimate in measures.items():
            found.append(dict(editor=editor, set=name, measure=measure, **estimate._asdict(), n=len(cell)))
    return pd.DataFrame(found)


def main(options: TasksOptions):
    model, scorer, tables = load(), Scorer(), []
    for task, target in TASKS.items():
        sets = {"control": prompt_set("swap/control"), task: prompt_set(f"swap/{task}_held_out")}
        cells = EditCells(
            model,
            thinned(sets, options.images),
            editors(model, material(task).thinned(options.every)),
            targets={} if target is None else {prompt.value: target for prompt in sets[task]},
            ceiling=task,
            settings=[BEST, options.every],
            scorer=scorer,
            num_inference_steps=options.num_inference_steps,
            batch_size=options.batch_size,
        )
        tables.append(task_table(cells.table(options.runs / task)).assign(task=task))
    table = pd.concat(tables).round(4)
    options.out.mkdir(parents=True, exist_ok=True)
    table[["task", *table.columns[:-1]]].to_csv(options.out / "edit_tasks.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(tyro.cli(TasksOptions))
