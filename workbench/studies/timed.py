"""Assumptions edited, as TIME measures it: `python -m workbench.studies.timed`.

Three closed-form editors on cases in TIMED's form (Orgad et al. 2023, arXiv 2303.08084): each case's edit is made of two words alone,
and its pictures are judged by the nearer of two texts. Writes `timed.csv`; finished cases are kept in `runs/`.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from workbench import edit as edits
from workbench.edit.cases import Editor, case_table, read_cases, score_cases
from workbench.models import load
from workbench.scorer import Scorer

EDITORS: dict[str, Editor] = {
    "time": lambda model, old, new: edits.time_edit(model, {old: new}),
    "uce, all tokens": lambda model, old, new: edits.uce(model, {old: new}, tokens="all"),
    "locoedit, all layers": lambda model, old, new: edits.locoedit(model, {old: new}, sites="unet.*.cross"),
}


@dataclass
class TimedOptions:
    cases: Path | None = None
    """A file in TIMED's form; the embedded model's when left out."""
    seeds: int = 4
    num_inference_steps: int = 8
    batch_size: int = 32
    device: str = "cpu"
    runs: Path = Path("runs/timed")
    out: Path = Path("runs/figures")


def main(options: TimedOptions):
    model, scorer, cases = load(device=options.device), Scorer(device=options.device), read_cases(options.cases)
    tables = []
    for name, editor in EDITORS.items():
        rows = score_cases(
            model,
            editor,
            cases,
            seeds=range(options.seeds),
            num_inference_steps=options.num_inference_steps,
            scorer=scorer,
            folder=options.runs / name,
            batch_size=options.batch_size,
        )
        tables.append(case_table(rows).assign(editor=name))
    table = pd.concat(tables).round(4)
    options.out.mkdir(parents=True, exist_ok=True)
    table[["editor", *table.columns[:-1]]].to_csv(options.out / "timed.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(tyro.cli(TimedOptions, description=__doc__))
