"""UnlearnCanvas' columns: `python -m workbench.studies.erase_grid`.

Every subject and style of a grid is erased in turn, towards a guide of its kind. UA: the target is gone from its pictures; IRA: the others
of its kind are right; CRA: the other kind is, in pictures without the target (Zhang et al. 2024, arXiv 2402.11846). UA again behind
attacks 1 and 2 of `wb.recover`: the nearest states within a distance, the closed form without one, the concept's vector. The three best
editors on all targets; every editor on four subjects and two styles, with fewer pictures. A picture has one prompt and one seed, the
same before an edit, behind it and attacked.

Writes `grid.csv`, `grid.png` (every editor) and `grid_targets.png` (every target). Finished jobs are kept in `--runs`: what was stopped
goes on with the same command. `--redraw` draws from the table in `--out`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import pandas as pd
import tyro

import workbench as wb
from workbench.drawing import save
from workbench.edit.low_rank import Edit
from workbench.experiments.statistics import Estimate, share
from workbench.files import write_bytes
from workbench.interventions import World
from workbench.processes import job_name, worked
from workbench.progress import Bar
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.recovery.case import Case
from workbench.recovery.recover import MADE
from workbench.recovery.specs import RecoverySpec
from workbench.studies import erase_grid_figures
from workbench.studies.erase_scenes import (
    BEST,
    EVERY,
    GROUPS,
    SOME,
    UNEDITED,
    Scene,
    attacked_scenes,
    canvas,
    distinct,
    graded_scenes,
    scenes,
)
from workbench.studies.hidden_edits import GUIDES, PHOTO, STYLES, Erasure, erasers, of_style, of_subject

COLUMNS = ["editor", "kind", "target", "guide", "measure", "value", "low", "high", "n"]
GRID, ATTACKED = "grid", "attacked"  # kinds of jobs
ATTACKS = {  # by name and setting: the measure
    ("nearest_states", 0.2): "UA, states within 0.2",
    ("closed_form", float("inf")): "UA, closed form",
    ("concept_vector", 1.0): "UA, vector",
}
SPEC = RecoverySpec(
    attacks=tuple(name for name, _ in ATTACKS), lams=(0.1,), distances=(0.2, float("inf")), strengths=(1.0,), redraws=1
)


@dataclass
class GridOptions:
    editors: tuple[str, ...] = ()
    """Which of them; all when left out."""
    targets: tuple[str, ...] = ()
    """Subjects and styles that are erased; all when left out."""
    only: tuple[str, ...] = ()
    """Of the kinds of jobs: grid, attacked; both when left out."""
    num_inference_steps: int = 8
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    minutes: float | None = None
    """Begin no job later than this."""
    processes: int = 1
    device: str = "cpu"
    batch_size: int = 24
    runs: Path = Path("runs/erase_grid")
    """Where finished jobs are kept."""
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


@dataclass(frozen=True)
class Job:
    """A target that an editor erases: its columns ("grid"), or UA behind each attack ("attacked")."""

    kind: str
    editor: str
    target: str

    @property
    def name(self) -> str:
        return job_name(self.kind, self.editor, self.target)


def jobs(options: GridOptions) -> list[Job]:
    """What all is compared with comes first, then every editor on some targets, then the other targets of the best."""
    if unknown := set(options.editors) - {UNEDITED, *EVERY}:
        raise ValueError(f"editors={sorted(unknown)}: unknown; there are {', '.join((UNEDITED, *EVERY))}")
    targets = (*GUIDES, *STYLES)
    every = [Job(GRID, UNEDITED, target) for target in targets]
    every += [Job(kind, name, target) for name in EVERY for target in SOME for kind in (GRID, ATTACKED)]
    every += [Job(kind, name, target) for kind in (GRID, ATTACKED) for target in targets for name in BEST]
    return [
        job
        for job in dict.fromkeys(every)
        if (not options.editors or job.editor in options.editors)
        and (not options.targets or job.target in options.targets)
        and (not options.only or job.kind in options.only)
    ]


class Worker:
    """Does one job after another; the model stays loaded."""

    def __init__(self, options: GridOptions):
        self.options = options
        self.model, self.scorer = wb.load(device=options.device), wb.Scorer(device=options.device)
        self.edit = lru_cache(maxsize=1)(self._edit)

    def __call__(self, job: Job):
        path = self.options.runs / f"{job.name}.csv"
        if path.exists():  # another process did it
            return
        hits = self.in_grid(job) if job.kind == GRID else self.attacked(job)
        kind, own = ("style" if job.target in STYLES else "subject"), self.erasure(job.target)
        about = dict(editor=job.editor, kind=kind, target=job.target, guide=own.guide)
        rows = [about | dict(measure=name, hits=int(each.sum()), n=len(each)) for name, each in hits.items()]
        write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())

    def erasure(self, target: str) -> Erasure:
        every = self.options.every
        if target in STYLES:
            return of_style(self.model, target, every)
        return of_subject(self.model, target, GUIDES[target], every)

    def _edit(self, editor: str, target: str) -> Edit:
        return erasers(self.erasure(target))[editor].make()

    @cached_property
    def unedited(self) -> pd.DataFrame:
        return self.graded(scenes())

    def in_grid(self, job: Job) -> dict[str, pd.Series]:
        if job.editor == UNEDITED:
            return canvas(self.unedited, job.target)
        with self.model.applied(self.edit(job.editor, job.target)):
            return canvas(self.graded(graded_scenes(job.editor, job.target)), job.target)

    def graded(self, some: Sequence[Scene]) -> pd.DataFrame:
        """Scenes as the model now draws them: rows (subject, style, shown, looks)."""
        images = self.model.generate(
            [scene.prompt for scene in some],
            seeds=[scene.seed for scene in some],
            batch_size=self.options.batch_size,
            num_inference_steps=self.options.num_inference_steps,
        )
        return self.labelled(some, images)

    def labelled(self, some: Sequence[Scene], images) -> pd.DataFrame:
        table = pd.DataFrame([dict(subject=scene.subject, style=scene.style) for scene in some])
        for column, labels in (("shown", "object"), ("looks", "style")):
            table[column] = self.scorer.likeliest(images, prompt_set(labels).labels)
        return table

    def attacked(self, job: Job) -> dict[str, pd.Series]:
        """UA behind each attack that can be made on the edit."""
        some, case = attacked_scenes(job.target), self.case(job)
        made = [attack for name in SPEC.attacks if not (attack := MADE[name](case)).refusal()]
        drawn: dict[str, list] = {}
        for scene, prompt in zip(some, case.prompts):
            worlds = {
                measure: World(measure, prompt.prompt, each.interventions)
                for attack in made
                for each in attack.tries(prompt)
                if each.place["asks"] == "concept" and (measure := measure_of(attack.name, each.place))
            }
            run = self.model.run(
                list(worlds.values()),
                seeds=(scene.seed,),
                num_inference_steps=case.steps,
                guidance_scale=case.guidance,
                progress=False,
            )
            for measure in worlds:
                drawn.setdefault(measure, []).append(run.pil(measure, seed=scene.seed)[0])
        graded = {measure: self.labelled(some, images) for measure, images in drawn.items()}
        return {measure: canvas(table, job.target)["UA"] for measure, table in graded.items()}

    def case(self, job: Job) -> Case:
        """The edit under attack, with the target's prompts."""
        styled = job.target in STYLES
        words = STYLES.get(job.target, job.target)
        prompts = [Prompt(scene.prompt, words, job.target) for scene in attacked_scenes(job.target)]
        chosen = PromptSet(job.target, prompts, prompt_set("style" if styled else "object").labels)
        edit = self.edit(job.editor, job.target)
        guidance = self.model.guidance_scale
        return Case(self.model, edit, chosen, SPEC, PHOTO, self.options.num_inference_steps, guidance)


def measure_of(attack: str, place: dict) -> str:
    """The measure of a setting of an attack; "" of settings that are not drawn."""
    return ATTACKS.get((attack, place.get("distance", place.get("strength"))), "")


def measure(options: GridOptions):
    """Do what has not been done yet, several jobs at a time."""
    options.runs.mkdir(parents=True, exist_ok=True)
    due = [job for job in jobs(options) if not (options.runs / f"{job.name}.csv").exists()]
    if not due:
        return
    with Bar(len(due), "erase grid", unit="job") as bar:
        for _ in worked(Worker, (options,), due, processes=options.processes, minutes=options.minutes):
            bar.update(1)


def finished(runs: Path) -> pd.DataFrame:
    """Rows (editor, kind, target, guide, measure, hits, n) of all finished jobs, whatever is asked for now."""
    paths = [runs / f"{job.name}.csv" for job in jobs(GridOptions())]
    return pd.concat([pd.read_csv(path) for path in paths if path.exists()], ignore_index=True)


def table_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Values with 95 % Wilson intervals, (editor, kind, target, guide, measure, value, low, high, n), and means over targets.

    A target's pictures have a prompt and a seed of their own. What other targets' pictures are kept of are the same scenes again, so a
    mean's interval counts each of these once, as if nothing were learned from seeing it behind another edit. Means are over GROUPS
    of targets, of those that an editor has all of.
    """
    rows = rows.assign(scenes=rows.n)
    means = []
    for (editor, measure), own in rows.groupby(["editor", "measure"], sort=False):
        for name, targets in GROUPS.items():
            some = own[own.target.isin(targets)]
            if len(some) == len(targets):
                seen = len(distinct(editor, targets)) if measure in ("IRA", "CRA") else some.n.sum()
                about = dict(editor=editor, kind=some.kind.iloc[0], target=name, guide="", measure=measure)
                means.append(about | dict(hits=some.hits.sum(), n=some.n.sum(), scenes=seen))
    both = pd.concat([pd.DataFrame(means), rows], ignore_index=True)
    estimates = [wilson(row.hits / row.n, row.scenes) for row in both.itertuples()]
    found = both.drop(columns=["hits", "scenes"])
    return found.assign(**pd.DataFrame(estimates).set_index(found.index))[COLUMNS]


def wilson(value: float, n: int) -> Estimate:
    """A share of n pictures with its 95 % Wilson interval."""
    shown = round(value * n)
    low, high = share([True] * shown + [False] * (n - shown))[1:]
    return Estimate(value, low, high)


def main(options: GridOptions):
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.redraw:
        measure(options)
        table_of(finished(options.runs)).round(4).to_csv(options.out / "grid.csv", index=False)
    table = pd.read_csv(options.out / "grid.csv", keep_default_na=False)
    print(erase_grid_figures.wide(table).to_string())
    for name, figure in erase_grid_figures.figures(table).items():
        save(figure, options.out / f"{name}.png")


if __name__ == "__main__":
    main(tyro.cli(GridOptions))
