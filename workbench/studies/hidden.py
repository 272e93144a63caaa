"""Erased, or only hidden? `python -m workbench.studies.hidden`.

The zebra is erased, towards a cow, by every editor of `hidden_edits`, and every attack of `wb.recover` tries to bring it back: on
held-out prompts, beside the unedited model, the edit before any attack, a control concept, something random and other seeds. What each
edit changes beside the concept is measured on the swap benchmark's control prompts, and drawn against what the attacks bring back. A
second table erases every subject and style of a grid in turn, by three editors: UnlearnCanvas' columns, before and after two attacks.

Writes `hidden.csv`, `hidden_grid.csv`, `hidden.png` (attacks), `hidden_frontier.png` and `hidden_curves.png`. Finished jobs, and of those
begun the finished parts, are kept in `--runs`: what was stopped goes on with the same command. `--redraw` draws from the tables in `--out`.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import pandas as pd
import tyro

import workbench as wb
from workbench.drawing import save
from workbench.edit.low_rank import Edit
from workbench.experiments.statistics import share
from workbench.files import write_bytes
from workbench.processes import worked
from workbench.progress import Bar
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.recovery.specs import RecoverySpec
from workbench.studies import hidden_figures
from workbench.studies.edits import EditCells, Editor, silent
from workbench.studies.hidden_edits import (
    CONCEPT,
    GRID_EDITORS,
    GUIDES,
    STYLES,
    Eraser,
    erasers,
    grid,
    held_out,
    of_style,
    of_subject,
)

STATES = ("closed_form", "nearest_states", "concept_vector", "completion")
LEARNED = ("token_search", "inversion", "relearning")
CONTROL = "lion"  # what the control attacks ask for
IN_GRID = RecoverySpec(
    attacks=("closed_form", "concept_vector"),
    lams=(0.1,),
    distances=(0.2, float("inf")),
    strengths=(1.0, 2.0),
    redraws=1,
    seeds=(0,),
)


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
    """Of the kinds of jobs: states, learned, grid; all when left out."""
    targets: tuple[str, ...] = ()
    """Subjects and styles that are erased in the grid; all when left out."""
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
    """What one process does in one go. kind: "states" or "learned" attacks on an editor, or the "grid" of one target."""

    kind: str
    editor: str
    target: str = ""

    @property
    def name(self) -> str:
        words = " ".join([self.kind, self.editor, self.target]).strip()
        return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in words)


def main(options: HiddenOptions):
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.redraw:
        measure(options)
        attacks, grids = (pd.DataFrame(rows_of(options, *kinds)) for kinds in (("states", "learned"), ("grid",)))
        for name, table in (("hidden", attacks), ("hidden_grid", grids)):
            if len(table):
                table.round(4).to_csv(options.out / f"{name}.csv", index=False)
    if (options.out / "hidden.csv").exists():
        table = pd.read_csv(options.out / "hidden.csv")
        print(hidden_figures.wide(table).round(2).to_string())
        for name, figure in hidden_figures.figures(table).items():
            save(figure, options.out / f"{name}.png")
    if (options.out / "hidden_grid.csv").exists():
        table = pd.read_csv(options.out / "hidden_grid.csv")
        print(hidden_figures.grid_means(table).round(3).to_string(index=False))


def jobs(options: HiddenOptions) -> list[Job]:
    """What takes longest comes first."""
    every = _known(options.every)
    if unknown := set(options.editors) - set(every) - set(GRID_EDITORS):
        raise ValueError(f"editors={sorted(unknown)}: unknown; there are {', '.join(every)}")

    def named(names: Iterable[str]) -> list[str]:
        return [name for name in names if not options.editors or name in options.editors]

    targets = [each for each in (*GUIDES, *STYLES) if not options.targets or each in options.targets]
    found = [Job("learned", name) for name in named(every) if every[name].learned]
    found += [Job("states", name) for name in named(every)]
    found += [Job("grid", name, target) for target in targets for name in named(GRID_EDITORS)]
    return [job for job in found if not options.only or job.kind in options.only]


@cache
def _known(every: int) -> dict[str, Eraser]:
    """The editors, to know their names."""
    return erasers(wb.load(), every)


def measure(options: HiddenOptions):
    """Do what has not been done yet, several jobs at a time."""
    options.runs.mkdir(parents=True, exist_ok=True)
    due = [job for job in jobs(options) if not (options.runs / f"{job.name}.csv").exists()]
    with Bar(len(due), "hidden", unit="job") as bar:
        for _ in worked(Worker, (options,), due, processes=options.processes, minutes=options.minutes):
            bar.update(1)


def rows_of(options: HiddenOptions, *kinds: str) -> list[dict]:
    """Rows of all finished jobs of these kinds, editor by editor, whatever is asked for now."""
    every = jobs(replace(options, editors=(), only=(), targets=()))
    order = list(_known(options.every))
    chosen = [job for job in every if job.kind in kinds]
    if "grid" not in kinds:
        chosen.sort(key=lambda job: (order.index(job.editor), kinds.index(job.kind)))
    paths = [options.runs / f"{job.name}.csv" for job in chosen]
    return [row for path in paths if path.exists() for row in pd.read_csv(path).to_dict("records")]


class Worker:
    """Does one job after another; the model stays loaded."""

    def __init__(self, options: HiddenOptions):
        self.options = options
        self.model, self.scorer = wb.load(device=options.device), wb.Scorer(device=options.device)
        self.erasers = erasers(self.model, options.every)

    def __call__(self, job: Job):
        began = time.monotonic()
        rows = list(self.in_grid(job) if job.kind == "grid" else self.attacked(job))
        table = pd.DataFrame(rows).assign(seconds=round(time.monotonic() - began, 1))
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

    @cached_property
    def unedited(self) -> pd.DataFrame:
        return self.graded()

    def graded(self) -> pd.DataFrame:
        """The grid as the model now is: rows (prompt, subject, style, shown, looks)."""
        scenes = grid(tuple(GUIDES))
        images = self.model.generate(
            [text for text, _, _ in scenes],
            seeds=range(len(scenes)),
            batch_size=self.options.batch_size,
            num_inference_steps=self.options.num_inference_steps,
        )
        table = pd.DataFrame(scenes, columns=["prompt", "subject", "style"])
        for column, labels in (("shown", "object"), ("looks", "style")):
            table[column] = self.scorer.likeliest(images, prompt_set(labels).labels)
        return table

    def in_grid(self, job: Job) -> Iterator[dict]:
        """One row: UA, IRA and CRA of a target that an editor erased, and UA after the attacks."""
        options, styled = self.options, job.target in STYLES
        own = (
            of_style(self.model, job.target, options.every)
            if styled
            else of_subject(self.model, job.target, GUIDES[job.target], options.every)
        )
        edit = GRID_EDITORS[job.editor](own)
        with self.model.applied(edit):
            after = self.graded()
        row = dict(editor=job.editor, target=job.target, kind="style" if styled else "subject", guide=own.guide)
        for suffix, table in (("", after), ("_unedited", self.unedited)):
            row |= {f"{name}{suffix}": value for name, value in canvas(table, job.target, styled).items()}
        yield row | self.attacked_in_grid(edit, job.target, styled)

    def attacked_in_grid(self, edit: Edit, target: str, styled: bool) -> dict:
        """UA after each attack; none where the unedited model does not draw the target."""
        table = self.unedited
        chosen = table[(table["style"] if styled else table.subject) == target]
        seen = (chosen.looks if styled else chosen.shown) == target
        labels = prompt_set("style" if styled else "object").labels
        if seen.mean() <= 2 / len(labels):
            return {}
        words = STYLES[target] if styled else target
        prompts = PromptSet(target, [Prompt(text, words, target) for text in chosen.prompt], labels)
        others = [words for name, words in STYLES.items() if name != target] if styled else [GUIDES[GUIDES[target]]]
        control = others[0] if styled or others[0] != target else "elephant"
        spec = replace(IN_GRID, control=control, num_inference_steps=self.options.num_inference_steps)
        recovered = wb.recover(self.model, edit, prompts, spec, scorer=self.scorer, batch_size=self.options.batch_size)
        rows = recovered.table(resamples=100)
        rows = rows[rows.tries == 1]
        return {f"UA after {row.attack}, {row.setting}": 1 - row.after for row in rows.itertuples()} | dict(
            attacked=len(prompts)
        )


def canvas(table: pd.DataFrame, target: str, styled: bool) -> dict[str, float]:
    """UA: the target is gone from its pictures; IRA: the others of its kind are right; CRA: the other kind is, in pictures without it."""
    own, other = (("style", "looks"), ("subject", "shown")) if styled else (("subject", "shown"), ("style", "looks"))
    at = table[own[0]] == target
    gone, kept = table[at], table[~at]
    return dict(
        UA=float((gone[own[1]] != target).mean()),
        IRA=float((kept[own[1]] == kept[own[0]]).mean()),
        CRA=float((kept[other[1]] == kept[other[0]]).mean()),
    )


if __name__ == "__main__":
    main(tyro.cli(HiddenOptions))
