"""Erased, or only hidden? `python -m workbench.studies.hidden`.

The zebra is erased, towards a cow, by every editor of `hidden_edits`, and every attack of `wb.recover` tries to bring it back: on
held-out prompts, beside the unedited model, the edit before any attack, a control concept, something random and other seeds. What each
edit changes beside the concept is measured on the swap benchmark's control prompts, and drawn against what the attacks bring back. Other
subjects, and styles, are erased in `erase_grid`.

Writes `hidden.csv`, `hidden.png` (attacks), `hidden_frontier.png` and `hidden_curves.png`. Finished jobs, and of those
begun the finished parts, are kept in `--runs`: what was stopped goes on with the same command. `--redraw` draws from the tables in `--out`.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import tyro

import workbench as wb
from workbench.drawing import save
from workbench.edit.low_rank import Edit
from workbench.experiments.statistics import share
from workbench.files import write_bytes
from workbench.processes import job_name, worked
from workbench.progress import Bar
from workbench.prompts import PromptSet, prompt_set
from workbench.recovery.specs import RecoverySpec
from workbench.studies import hidden_figures
from workbench.studies.edits import EditCells, Editor, silent
from workbench.studies.hidden_edits import CONCEPT, GUIDE, Eraser, erasers, held_out, of_subject

STATES = ("closed_form", "nearest_states", "concept_vector", "completion")
LEARNED = ("token_search", "inversion", "relearning")
CONTROL = "lion"  # what the control attacks ask for


@dataclass
class HiddenOptions:
    prompts: int = 50
    """Held-out prompts that name the concept."""
    seeds: int = 2
    controls: int = 100
    """Pictures of other things, that an edit is to leave as they are; at most."""
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    searches: int = 40
    """Gradient steps of a token search, for each prompt."""
    inversions: int = 200
    """Gradient steps of an inversion."""
    redraws: int = 8
    num_inference_steps: int = 8
    attacks: tuple[str, ...] = ()
    """Which of those on states and learned ones; all that fit an editor when left out."""
    editors: tuple[str, ...] = ()
    """Which of them; all when left out."""
    only: tuple[str, ...] = ()
    """Of the kinds of jobs: states, learned; both when left out."""
    minutes: float | None = None
    """Begin no job later than this."""
    processes: int = 1
    device: str = "cpu"
    batch_size: int = 128
    runs: Path = Path("runs/hidden")
    """Where finished jobs are kept."""
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the tables in `out`."""


@dataclass(frozen=True)
class Job:
    """What one process does in one go. kind: "states" or "learned" attacks on an editor."""

    kind: str
    editor: str

    @property
    def name(self) -> str:
        return job_name(self.kind, self.editor)


def main(options: HiddenOptions):
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.redraw:
        measure(options)
        table = pd.DataFrame(rows_of(options))
        if len(table):
            table.round(4).to_csv(options.out / "hidden.csv", index=False)
    if (options.out / "hidden.csv").exists():
        table = pd.read_csv(options.out / "hidden.csv")
        print(hidden_figures.wide(table).round(2).to_string())
        for name, figure in hidden_figures.figures(table).items():
            save(figure, options.out / f"{name}.png")


def jobs(options: HiddenOptions) -> list[Job]:
    """What takes longest comes first."""
    every = _known(options.every)
    if unknown := set(options.editors) - set(every):
        raise ValueError(f"editors={sorted(unknown)}: unknown; there are {', '.join(every)}")

    def named(names: Iterable[str]) -> list[str]:
        return [name for name in names if not options.editors or name in options.editors]

    found = [Job("learned", name) for name in named(every) if every[name].learned]
    found += [Job("states", name) for name in named(every)]
    return [job for job in found if not options.only or job.kind in options.only]


@cache
def _known(every: int) -> dict[str, Eraser]:
    """The editors, to know their names."""
    return erasers(of_subject(wb.load(), CONCEPT, GUIDE, every))


def measure(options: HiddenOptions):
    """Do what has not been done yet, several jobs at a time."""
    options.runs.mkdir(parents=True, exist_ok=True)
    due = [job for job in jobs(options) if not (options.runs / f"{job.name}.csv").exists()]
    with Bar(len(due), "hidden", unit="job") as bar:
        for _ in worked(Worker, (options,), due, processes=options.processes, minutes=options.minutes):
            bar.update(1)


def rows_of(options: HiddenOptions) -> list[dict]:
    """Rows of all finished jobs, editor by editor, whatever is asked for now."""
    every, order = jobs(replace(options, editors=(), only=())), list(_known(options.every))
    every.sort(key=lambda job: (order.index(job.editor), job.kind == "learned"))
    paths = [options.runs / f"{job.name}.csv" for job in every]
    return [row for path in paths if path.exists() for row in pd.read_csv(path).to_dict("records")]


class Worker:
    """Does one job after another; the model stays loaded."""

    def __init__(self, options: HiddenOptions):
        self.options = options
        self.model, self.scorer = wb.load(device=options.device), wb.Scorer(device=options.device)
        self.erasers = erasers(of_subject(self.model, CONCEPT, GUIDE, options.every))

    def __call__(self, job: Job):
        began = time.monotonic()
        table = pd.DataFrame(self.attacked(job)).assign(seconds=round(time.monotonic() - began, 1))
        write_bytes(self.options.runs / f"{job.name}.csv", table.to_csv(index=False).encode())

    def attacked(self, job: Job) -> Iterator[dict]:
        """A row for each attack that can be made on an editor and each of its settings, with what the edit changes beside."""
        options, eraser = self.options, self.erasers[job.editor]
        edit = eraser.make()
        spec = RecoverySpec(
            attacks=self.fitting(edit, STATES if job.kind == "states" else LEARNED),
            control=CONTROL,
            redraws=options.redraws,
            searches=options.searches,
            inversions=options.inversions,
            seeds=tuple(range(options.seeds)),
            num_inference_steps=options.num_inference_steps,
        )
        prompts = held_out(options.prompts)
        folder = options.runs / "parts" / job.name
        beside = self.beside(job, eraser, edit)
        settings = dict(scorer=self.scorer, folder=folder, batch_size=options.batch_size)
        table = wb.recover(self.model, edit, prompts, spec, **settings).table()
        about = dict(editor=job.editor, family=eraser.family, rank=edit.rank, n=len(prompts) * options.seeds)
        yield from (about | row | beside for row in table.to_dict("records"))

    def fitting(self, edit: Edit, attacks: tuple[str, ...]) -> tuple[str, ...]:
        """Those asked for that can be made on the edit: some need to know what cross-attention's own weights were."""
        attacks = tuple(name for name in attacks if not self.options.attacks or name in self.options.attacks)
        if all(self.model.sites[name].part == "denoiser" for name in edit.sites):
            return attacks
        return tuple(name for name in attacks if name not in ("closed_form", "nearest_states"))

    def beside(self, job: Job, eraser: Eraser, edit: Edit) -> dict:
        """How many control pictures change, one seed each, with the interval."""
        prompts = silent("control", (CONCEPT,))[: self.options.controls]
        cells = EditCells(
            self.model,
            {"control": PromptSet("control", prompts, prompt_set("swap/held_out").labels)},
            {job.editor: Editor(lambda: edit)},
            targets={},
            ceiling=None,
            settings=[self.options.every],
            scorer=self.scorer,
            num_inference_steps=self.options.num_inference_steps,
            batch_size=self.options.batch_size,
        )
        rows = cells.table(self.options.runs / "parts" / f"{job.name}-control")
        rows = rows[rows.editor == job.editor]
        changed = share(rows.edited != rows.unedited)
        return dict(
            collateral=changed.value, collateral_low=changed.low, collateral_high=changed.high, controls=len(rows)
        )


if __name__ == "__main__":
    main(tyro.cli(HiddenOptions))
