"""What studies of edits share: every editor measured on sets of prompts, each picture beside the unedited model's."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from workbench.edit.low_rank import Edit
from workbench.experiments.base import Experiment
from workbench.experiments.shards import Row
from workbench.experiments.spec import Spec
from workbench.experiments.statistics import mean, share
from workbench.metrics import Measures, pixel_distance
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.scorer import Scorer
from workbench.text import replace_words

UNEDITED = "unedited"
CEILING = "told the other"  # the unedited model, given the prompt with the other words

# of a set's name and an editor's rows on it: a value an image
Measure = Callable[[str, pd.DataFrame], pd.Series | None]


@dataclass(frozen=True)
class Fit:
    """What edits may be made from: prompts with their replacement, and prompts of all else."""

    train: tuple[Prompt, ...]
    preserve: tuple[Prompt, ...]

    def thinned(self, every: int) -> "Fit":
        return Fit(self.train[::every], self.preserve[::every])

    @property
    def kept(self) -> list[Prompt]:
        """Preserved prompts, and the empty one that guidance pushes away from; no subject, for all their tokens count."""
        return [Prompt("", ""), *(Prompt(prompt.prompt, "") for prompt in self.preserve)]

    @property
    def corpus(self) -> list[str]:
        return [prompt.prompt for prompt in (*self.train, *self.preserve)]


@dataclass(frozen=True)
class Editor:
    """How an edit is made, when it is needed; rules: what it may change."""

    make: Callable[[], Edit]
    rules: str = "UNet"


@dataclass(frozen=True)
class Pictures:
    """Images of a set, one prompt and one seed each, (image, y, x, colour), and the grader's probabilities, (image, label)."""

    images: np.ndarray
    probabilities: np.ndarray


class EditCells(Experiment):
    """Every editor on every set. A part is one editor on one set.

    sets: by name, the first to be measured first. targets: what a value's picture is to show. ceiling: the set that is also
    drawn by the unedited model when it is told the replacement: no edit can be expected to do better. settings: what the
    editors hang on.
    """

    name = "edits"
    columns: ClassVar[tuple[str, ...]] = ("editor", "set", "prompt", "edited", "unedited", "distance")

    def __init__(
        self,
        model: Model,
        sets: Mapping[str, PromptSet],
        editors: Mapping[str, Editor],
        *,
        targets: Mapping[str, str],
        ceiling: str | None,
        settings: Any,
        scorer: Scorer,
        num_inference_steps: int,
        batch_size: int,
        first_seed: int = 0,
    ):
        count = max(len(prompts) for prompts in sets.values())
        seeds = tuple(range(first_seed, first_seed + count))  # a set's picture i is drawn from the i-th
        spec = Spec(seeds=seeds, num_inference_steps=num_inference_steps)
        super().__init__(model, spec, measures=Measures.of(scorer), batch_size=batch_size)
        self.scorer = scorer
        self.sets, self.editors, self.targets, self.ceiling, self.settings = sets, editors, targets, ceiling, settings
        self.unedited = cache(self.pictures)
        self.edit = cache(lambda editor: editors[editor].make())

    def identity(self) -> dict[str, Any]:
        return super().identity() | {
            "targets": dict(self.targets),
            "batch_size": self.batch_size,
            "settings": self.settings,
            "sets": {name: [prompt.prompt for prompt in prompts] for name, prompts in self.sets.items()},
        }

    def parts(self) -> dict[str, tuple[str, str]]:
        """Efficacy and collateral, the first two sets, of all editors before any other set."""
        cells = [(UNEDITED, name) for name in self.sets]
        cells += [(CEILING, self.ceiling)] if self.ceiling else []
        names = list(self.sets)
        cells += [(editor, name) for some in (names[:2], names[2:]) for editor in self.editors for name in some]
        return {f"{editor}-{name}": (editor, name) for editor, name in cells}

    def check(self, editor: str, name: str) -> int:
        return len(self.sets[name])

    def measure(self, editor: str, name: str, bar: Bar) -> list[Row]:
        """Rows (editor, set, rules, rank, edit, prompt, value, target, edited, unedited, probability, distance)."""
        before = self.unedited(name)
        about = {"editor": editor, "set": name, "rules": "no edit", "rank": 0, "edit": ""}
        if editor == UNEDITED:
            after = before
            about["rules"] = "UNet"
        elif editor == CEILING:
            after = self.pictures(name, told=True)
        else:
            edit = self.edit(editor)
            about |= {
                "rules": self.editors[editor].rules,
                "rank": max(update.rank for update in edit.updates),
                "edit": edit_digest(edit),
            }
            with self.model.applied(edit):
                after = self.pictures(name)
        bar.update(len(self.sets[name]))
        return [{**about, **row} for row in self.compared(name, before, after)]

    def pictures(self, name: str, told: bool = False) -> Pictures:
        """A set as the model now is. told: with the replacement in the prompt."""
        prompts = self.sets[name]
        texts = [told_other(prompt) if told else prompt.prompt for prompt in prompts]
        images = self.model.generate(
            texts, seeds=self.spec.seeds[: len(texts)], batch_size=self.batch_size, num_inference_steps=self.steps
        )
        probabilities = self.scorer.class_probabilities(images, prompts.labels).numpy()
        return Pictures(np.stack([np.asarray(image) for image in images]) / 255, probabilities)

    def compared(self, name: str, before: Pictures, after: Pictures) -> list[Row]:
        """What each picture shows, edited and not, and how far the two are apart."""
        prompts, labels = self.sets[name], list(self.sets[name].labels)
        unedited, edited = ([labels[i] for i in each.probabilities.argmax(1)] for each in (before, after))
        distances, rows = pixel_distance(after.images, before.images), []
        for i, prompt in enumerate(prompts):
            target = self.targets.get(prompt.value)
            rows.append(
                {
                    "prompt": i,
                    "value": prompt.value,
                    "target": target,
                    "edited": edited[i],
                    "unedited": unedited[i],
                    "probability": None if target is None else float(after.probabilities[i, labels.index(target)]),
                    "distance": float(distances[i]),
                }
            )
        return rows


def told_other(prompt: Prompt) -> str:
    """The prompt with its replacement in the subject's place."""
    return replace_words(prompt.prompt, prompt.subject, prompt.replacement).text


def edit_digest(edit: Edit) -> str:
    """What tells an edit from others: its numbers."""
    state = hashlib.sha256()
    for update in edit.updates:
        state.update(update.site.encode())
        state.update(update.b.numpy().tobytes() + update.a.numpy().tobytes())
    return state.hexdigest()[:12]


def silent(name: str, words: Sequence[str]) -> list[Prompt]:
    """A set of the swap benchmark without prompts that say or show one of these words."""
    return [prompt for prompt in prompt_set(f"swap/{name}") if prompt.value not in words]


def cell_rows(rows: pd.DataFrame, measures: Mapping[str, Measure]) -> pd.DataFrame:
    """One row for each editor, set and measure: value, 95 % interval, number of images.

    measures: by name, what each picture of an editor on a set counts, None where that says nothing: shares where it is true or false,
    else means.
    """
    found = []
    for (editor, name), cell in rows.groupby(["editor", "set"], sort=False):
        about = dict(editor=editor, set=name, rank=int(cell["rank"].max()))
        for measure, of in measures.items():
            if (values := of(name, cell)) is not None:
                estimate = share(values) if values.dtype == bool else mean(values)
                found.append(about | dict(measure=measure, n=len(values)) | estimate._asdict())
    return pd.DataFrame(found)


def thinned(sets: Mapping[str, PromptSet], images: int | None) -> dict[str, PromptSet]:
    """At most about so many prompts of each set, spread over it."""
    if images is None:
        return dict(sets)
    return {name: prompts[:: max(1, len(prompts) // images)] for name, prompts in sets.items()}
