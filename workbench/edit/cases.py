"""Edits scored on cases, as TIME does: assumptions of a model that an edit changes (Orgad et al. 2023, arXiv 2303.08084, section 5).

cases = read_cases("TIMED_test_set.csv")  # or the embedded model's, when left out
rows = score_cases(model, lambda model, old, new: uce(model, {old: new}), cases)
case_table(rows)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from workbench.arguments import checked, fit, function, instance_of, optional
from workbench.edit.low_rank import Edit
from workbench.experiments.base import Experiment
from workbench.experiments.executors import Executor
from workbench.experiments.shards import Row
from workbench.experiments.spec import Spec
from workbench.experiments.statistics import mean
from workbench.experiments.store import Store
from workbench.experiments.work import working
from workbench.inputs import shown, text, user_path
from workbench.loading import DATA
from workbench.metrics import Measures
from workbench.models import Model
from workbench.progress import Bar
from workbench.scorer import Scorer, default_scorer
from workbench.tables import read_table

CASES = DATA / "prompts" / "timed.csv"
EFFICACY, GENERALITY, SPECIFICITY = "efficacy", "generality", "specificity"
POSITIVE, NEGATIVE = (
    ("positive", "gt"),
    ("negative", "gn"),
)  # columns of prompts, and of what their pictures would be of
MEASURES = (EFFICACY, GENERALITY, SPECIFICITY)
EXAMPLE = "wb.edit.EditCase('a car', 'a red car', positives={'a car at night': 'a red car at night'}, negatives={'a house': 'a red house'})"
Editor = Callable[[Model, str, str], Edit]


def pairs_of_texts(value: Any, argument: str) -> tuple[tuple[str, str], ...]:
    """Texts and their counterparts, of a mapping or of pairs."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    several = isinstance(pairs, (list, tuple)) and pairs
    if not several or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            f"{argument}={shown(value)}: give a mapping of prompts to what the edit would make of them, as {EXAMPLE}"
        )
    return tuple((text(prompt, argument), text(other, argument)) for prompt, other in pairs)


def editor_of_cases(value: Any, argument: str) -> "Editor":
    """A function of model, old and new."""
    try:
        signature(function(value, argument)).bind("model", "old", "new")
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument}={shown(value)} cannot be called with model, old and new; give a function of these three, such as "
            "lambda model, old, new: wb.edit.uce(model, {old: new})"
        ) from None
    return value


@dataclass(frozen=True)
class EditCase:
    """One assumption: what an under-specified prompt shall show from now on.

    positives: prompts that shall change with it, and what their pictures shall then be of. negatives: prompts that shall not change,
    and what their pictures would be of, had the edit gone too far.

    >>> case = wb.edit.EditCase("a car", "a red car", {"a car at night": "a red car at night"}, {"a house": "a red house"})
    >>> case.negatives
    (('a house', 'a red house'),)
    """

    old: str
    new: str
    positives: tuple[tuple[str, str], ...]
    negatives: tuple[tuple[str, str], ...]

    def __post_init__(self):
        fit(self, old=text, new=text, positives=pairs_of_texts, negatives=pairs_of_texts)

    def prompts(self) -> list[tuple[str, str, str]]:
        """Measure, prompt and its counterpart, of each picture that the case asks for.

        >>> wb.edit.read_cases()[0].prompts()[0]
        ('efficacy', 'a car', 'a red car')
        """
        return [
            (EFFICACY, self.old, self.new),
            *((GENERALITY, *pair) for pair in self.positives),
            *((SPECIFICITY, *pair) for pair in self.negatives),
        ]


def some_cases(value: Any, argument: str) -> tuple[EditCase, ...]:
    """Cases, one or several."""
    cases = (value,) if isinstance(value, EditCase) else tuple(value) if isinstance(value, Iterable) else ()
    if not cases or not all(isinstance(case, EditCase) for case in cases):
        raise ValueError(f"{argument}={shown(value)}: give cases, as wb.edit.read_cases() returns them, or {EXAMPLE}")
    return cases


@checked(path=optional(user_path))
def read_cases(path: str | Path | None = None) -> tuple[EditCase, ...]:
    """Cases of a file in TIMED's form: a CSV with columns old, new, positive1, gt1, positive2, ..., negative1, gn1, ...

    path: the embedded model's cases when left out. Raises FileNotFoundError for no such file, ValueError for columns that lack their
    counterpart, for a row that lacks a text, and for what is no table.

    >>> cases = wb.edit.read_cases()
    >>> len(cases), cases[0].old, cases[0].new, cases[0].positives[0]
    (16, 'a car', 'a red car', ('a car in the savanna', 'a red car in the savanna'))
    """
    table = read_table(Path(path or CASES), ("old", "new", "positive1", "gt1", "negative1", "gn1"))
    numbered = {kind: numbers_of(table.columns, kind) for kind in (*POSITIVE, *NEGATIVE)}
    for asked, target in (POSITIVE, NEGATIVE):
        if numbered[asked] != numbered[target]:
            raise ValueError(
                f"{table.path}: each column {asked}N wants a {target}N beside it; it has {', '.join(table.columns)}"
            )
    table.require_values(*table.columns)
    return tuple(
        EditCase(
            row["old"],
            row["new"],
            *(
                tuple((row[f"{asked}{n}"], row[f"{target}{n}"]) for n in numbered[asked])
                for asked, target in (POSITIVE, NEGATIVE)
            ),
        )
        for row in table.rows
    )


def numbers_of(columns: Sequence[str], kind: str) -> list[str]:
    """The numbers behind a kind of column, in order."""
    return sorted((name.removeprefix(kind) for name in columns if name.removeprefix(kind).isdecimal()), key=int)


@checked(
    editor=editor_of_cases,
    cases=some_cases,
    scorer=optional(instance_of("workbench.scorer:Scorer")),
)
def score_cases(
    model: Model,
    editor: Editor,
    cases: EditCase | Sequence[EditCase] | None = None,
    *,
    seeds: Sequence[int] = (0, 1),
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scorer: Scorer | None = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Every case's edit, made, applied and judged: rows (case, old, new, measure, prompt, counterpart, seed, unedited, edited).

    editor: called with model, old and new, returns the case's edit; every edit is made before anything is drawn. cases: the embedded
    model's when left out. Each prompt is drawn before and behind the edit from the same seeds, and `unedited` and `edited` say
    whether the scorer finds the picture nearer to what it ought to be than to the other of the two texts (two-way CLIP): to the
    counterpart for efficacy (the case's own prompt) and generality (positives), to the prompt itself for specificity (negatives).
    scorer: an open_clip model; the embedded grader, for the embedded model alone, when left out. folder: where
    finished cases are kept. executor: as for `causal_trace`.

    Raises ValueError, before anything is drawn, for an editor that returns no edit, and what the editor itself refuses.

    >>> case = wb.edit.read_cases()[0]
    >>> rows = wb.edit.score_cases(model, lambda model, old, new: wb.edit.uce(model, {old: new}), case, seeds=0, num_inference_steps=4)
    >>> rows.groupby("measure", sort=False).size().to_dict()
    {'efficacy': 1, 'generality': 5, 'specificity': 5}
    """
    chosen = read_cases() if cases is None else cases
    with working():  # they are what is asked, and may come of experiments of their own
        edits = [editor(model, case.old, case.new) for case in chosen]
    if wrong := [edit for edit in edits if not isinstance(edit, Edit)]:
        raise ValueError(
            f"editor returned {shown(wrong[0])}: give a function of model, old and new that returns an edit, such as wb.edit.uce's"
        )
    spec = Spec(seeds=tuple(seeds), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    return Cases(model, spec, chosen, edits, scorer or default_scorer(model), batch_size).table(folder, executor)


class Cases(Experiment):
    """Edits on their cases. A part is one case."""

    name = "edit_cases"
    uncounted = ""
    columns: ClassVar[tuple[str, ...]] = ("case", "measure", "prompt", "seed", "unedited", "edited")

    def __init__(
        self,
        model: Model,
        spec: Spec,
        cases: Sequence[EditCase],
        edits: Sequence[Edit],
        scorer: Scorer,
        batch_size: int,
    ):
        super().__init__(model, spec, measures=Measures.of(scorer), batch_size=batch_size)
        self.cases, self.edits, self.scorer = cases, edits, scorer

    def identity(self) -> dict[str, Any]:
        cases = [[case.old, case.new, *map(list, case.prompts())] for case in self.cases]
        return super().identity() | {"cases": cases, "edits": [edit.digest for edit in self.edits]}

    def parts(self) -> dict[str, tuple[int]]:
        return {f"case{number:04d}": (number,) for number in range(len(self.cases))}

    def check(self, number: int) -> int:
        images = len(self.cases[number].prompts()) * len(self.spec.seeds)
        if self.counting is not None:
            for at in (at for _ in ("unedited", "edited") for at in range(0, images, self.batch_size)):
                self.counting.add(min(self.batch_size, images - at), len(self.model.calls(self.steps)))
        return 2 * images

    @property
    def sample(self) -> str:
        return self.cases[0].old

    def measure(self, number: int, bar: Bar) -> list[Row]:
        case, prompts = self.cases[number], self.cases[number].prompts()
        unedited = self.as_it_ought(prompts)
        with self.model.applied(self.edits[number]):
            edited = self.as_it_ought(prompts)
        bar.update(self.check(number))
        pictures = [(*asked, seed) for asked in prompts for seed in self.spec.seeds]
        about = dict(case=number, old=case.old, new=case.new)
        return [
            about
            | dict(measure=measure, prompt=prompt, counterpart=counterpart, seed=seed, unedited=before, edited=after)
            for (measure, prompt, counterpart, seed), before, after in zip(pictures, unedited, edited)
        ]

    def as_it_ought(self, prompts: Sequence[tuple[str, str, str]]) -> list[bool]:
        """Of each prompt and seed, whether the picture is nearer to what it ought to show than to the other text."""
        seeds = list(self.spec.seeds)
        images = self.model.generate(
            [prompt for _, prompt, _ in prompts for _ in seeds],
            seeds=seeds * len(prompts),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            batch_size=self.batch_size,
        )
        pictures = self.scorer.image_embeddings(images).reshape(len(prompts), len(seeds), -1)
        right = []
        for (measure, prompt, counterpart), own in zip(prompts, pictures):
            ought, other = (prompt, counterpart) if measure == SPECIFICITY else (counterpart, prompt)
            near, far = (own @ self.scorer.text_embeddings((ought, other)).T).unbind(-1)
            right += (near > far).tolist()
        return right


@checked(rows=instance_of("pandas:DataFrame"))
def case_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of pictures that are as they ought to be, of the rows of `score_cases`: a row for each measure.

    Intervals are over cases, whose pictures are no news of each other: `unedited`, `edited`, each with `_low` and `_high`.

    >>> case = wb.edit.read_cases()[0]
    >>> rows = wb.edit.score_cases(model, lambda model, old, new: wb.edit.uce(model, {old: new}), case, seeds=0, num_inference_steps=2)
    >>> wb.edit.case_table(rows).measure.tolist()
    ['efficacy', 'generality', 'specificity']
    """
    table = []
    for measure in MEASURES:
        by_case = rows[rows.measure == measure].groupby("case")
        row: dict[str, Any] = dict(measure=measure)
        for state in ("unedited", "edited"):
            found = mean(by_case[state].mean(), bounds=(0.0, 1.0))
            row |= {state: found.value, f"{state}_low": found.low, f"{state}_high": found.high}
        table.append(row | dict(cases=len(by_case), pictures=int(by_case.size().sum())))
    return pd.DataFrame(table)
