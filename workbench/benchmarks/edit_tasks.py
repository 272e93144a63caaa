"""Erase a subject, remove a style, update a fact: `python -m workbench.benchmarks.edit_tasks`.

Each with its own small prompt sets (`data/prompts/swap/TASK_train.csv`, `TASK_held_out.csv`), by two settings of the solver:
the swap benchmark's chosen one, and LocoEdit's on all layers. Reported on held-out prompts: the share of pictures that still
show the old value, the share that show the new one, and collateral on the control prompts. Writes `edit_tasks.csv`.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from workbench import edit as edits
from workbench.benchmarks.swap import ALL, BEST, UNEDITED, Cells, Fit
from workbench.edit.low_rank import Edit
from workbench.metrics import Scorer
from workbench.models import Model, load
from workbench.prompts import prompt_set
from workbench.results import mean, share

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
    out: Path = Path("figures")


def material(task: str) -> Fit:
    """A task's training prompts, and those to preserve: no word of the task stands in them."""
    train = tuple(prompt_set(f"swap/{task}_train"))
    others = [*prompt_set("swap/preserve"), *(p for p in prompt_set("swap/train") if p.subject != train[0].subject)]
    return Fit(train, tuple(p for p in others if train[0].subject not in p.prompt))


def editors(model: Model, fit: Fit) -> dict[str, Edit]:
    return {
        "chosen": edits.from_concepts(model, fit.train, preserve=fit.kept, **BEST),
        "locoedit, all layers": edits.locoedit(model, fit.train, sites=ALL),
    }


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows (task, editor, measure, value, low, high, n)."""
    found = []
    for (editor, name), cell in rows.groupby(["editor", "set"], sort=False):
        measures = {"changed": share(cell.edited != cell.unedited), "image distance": mean(cell.distance)}
        if name != "control":
            measures["shows the old"] = share(cell.edited == cell.value)
            if cell.target.notna().all():
                measures["shows the new"] = share(cell.edited == cell.target)
        found += [
            dict(editor=editor, set=name, measure=measure, value=value, low=low, high=high, n=len(cell))
            for measure, (value, low, high) in measures.items()
        ]
    return pd.DataFrame(found)


def main(options: TasksOptions):
    model, scorer, tables = load(), Scorer(), []
    for task, target in TASKS.items():
        sets = {"control": prompt_set("swap/control"), task: prompt_set(f"swap/{task}_held_out")}
        sets = {
            name: some[:: max(1, len(some) // options.images)] if options.images else some
            for name, some in sets.items()
        }
        targets = {} if target is None else {prompt.value: target for prompt in sets[task]}
        cells = Cells(model, scorer, sets, options, options.runs / task, targets)
        cells.measure(UNEDITED, lambda: None)
        cells.ceiling(task)
        for name, edit in editors(model, material(task).thinned(options.every)).items():
            cells.measure(name, lambda edit=edit: edit)
        tables.append(summary(cells.shards.table()).assign(task=task))
    table = pd.concat(tables).round(4)
    options.out.mkdir(parents=True, exist_ok=True)
    table[["task", *table.columns[:-1]]].to_csv(options.out / "edit_tasks.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(tyro.cli(TasksOptions))
