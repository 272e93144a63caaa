"""The strength that each prompt needs: measured and found by bisection, not looked up by its words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from workbench.arguments import Check, at_least_zero, checked, instance_of, mapping_of, prompt_set
from workbench.experiments.base import Kept
from workbench.experiments.executors import Executor
from workbench.experiments.store import Store
from workbench.inputs import count, number, text
from workbench.metrics import Scoring
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.steering.direction import DIRECTION, Direction
from workbench.steering.experiment import UNSTEERED, Concept, Steered, SteerSpec, Variant, image_means

STRENGTHS = mapping_of(number, "{'text_encoder.*.mlp': 1.0}")


@dataclass(frozen=True, kw_only=True)
class AdaptiveSpec(SteerSpec):
    """How strong steering may be, and what it may cost.

    >>> wb.AdaptiveSpec(strongest=2.0, rounds=4, budget=0.1).fidelity
    'similarity'
    """

    strongest: float = 4.0
    rounds: int = 6
    """Of bisection: the strength is found to within strongest / 2^rounds."""
    budget: float = 0.3
    """Largest drop of `fidelity` from the unsteered images, in its own unit."""
    fidelity: str = "similarity"
    """Metric that the budget is about."""
    margin: float = 0.0
    """Enough is where `concept_similarity` exceeds `opposite_similarity` by this."""

    def _checks(self) -> dict[str, Check]:
        strongest = partial(number, above=0)
        return super()._checks() | dict(
            strongest=strongest, rounds=count, budget=at_least_zero, fidelity=text, margin=number
        )


@checked(
    prompts=prompt_set,
    direction=DIRECTION,
    spec=instance_of("workbench.steering.adaptive:AdaptiveSpec"),
    strengths=STRENGTHS,
)
def adaptive_strength(
    model: Model,
    prompts: PromptSet,
    direction: Direction,
    concept: Concept,
    spec: AdaptiveSpec = AdaptiveSpec(),
    *,
    strengths: Mapping[str, float] | None = None,
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """For each prompt the least strength that brings the concept, or the largest within a fidelity budget where none does.

    strengths: of each glob of sites at strength 1; all alike when left out. Returns one row for each prompt: `resistance`,
    the unsteered images' similarity to the opposite concept less that to the concept; `strength`, what was found; `stopped_by`, "concept",
    "budget" or "strongest"; and at that strength `lead` (similarity to the concept less that to its opposite) and `drop` (of the
    fidelity). Each is a mean over the spec's seeds: report on others. Bisection supposes that both grow with strength.

    All prompts take a step of the bisection in one batch. Rounds are kept in `folder`; the same call goes on. executor: as for
    `causal_trace`. Raises as
    `steer_sweep` does, and ValueError for a concept without an opposite.

    >>> concept = wb.Concept("a photo in winter", "a photo in summer")
    >>> found = wb.adaptive_strength(model, prompts, winter, concept, wb.AdaptiveSpec(rounds=1))
    >>> list(found)
    ['prompt', 'resistance', 'strength', 'stopped_by', 'lead', 'drop']
    """
    if not concept.opposite:
        raise ValueError(
            f"adaptive_strength(concept={concept.text!r}): resistance is measured against an opposite; give Concept(opposite=...)"
        )
    relative = dict(strengths or dict.fromkeys(direction.sites, 1.0))
    study = Adapting(model, prompts, direction, concept, spec, relative, scorer, batch_size)
    study.complete(folder, executor)
    return study.bisection.table(prompts)


class Bisection:
    """The strengths that are still possible for each prompt, narrowed by what was measured."""

    def __init__(self, unsteered: pd.DataFrame, spec: AdaptiveSpec):
        count = len(unsteered)
        self.unsteered, self.spec = unsteered, spec
        self.low, self.high = np.zeros(count), np.full(count, spec.strongest)
        self.best = unsteered.assign(strength=0.0)  # what is kept if all else is over budget
        self.reached, self.over = np.zeros(count, bool), np.zeros(count, bool)

    def next(self, number: int) -> np.ndarray:
        """Strengths of the next round: (prompt,)."""
        return self.high.copy() if number == 0 else (self.low + self.high) / 2

    def tell(self, tried: np.ndarray, found: pd.DataFrame):
        """What came of these strengths."""
        drop = self.unsteered[self.spec.fidelity] - found[self.spec.fidelity]
        affordable = (drop <= self.spec.budget).to_numpy()
        enough = (found.lead >= self.spec.margin).to_numpy()
        better = affordable & (enough | ~self.reached)  # weaker ones that suffice, else stronger ones that do not
        self.best[better] = found.assign(strength=tried)[better]
        self.reached |= affordable & enough
        self.over |= ~affordable
        up = affordable & ~enough
        self.low, self.high = np.where(up, tried, self.low), np.where(up, self.high, tried)

    def table(self, prompts: PromptSet) -> pd.DataFrame:
        return pd.DataFrame(
            dict(
                prompt=[prompt.prompt for prompt in prompts],
                resistance=-self.unsteered.lead,
                strength=self.best.strength,
                stopped_by=np.select([self.reached, self.over], ["concept", "budget"], "strongest"),
                lead=self.best.lead,
                drop=self.unsteered[self.spec.fidelity] - self.best[self.spec.fidelity],
            )
        )


def round_name(number: int) -> str:
    """How a round's part is called."""
    return f"round{number:02d}"


class Adapting(Steered):
    """One bisection of all prompts: a part is a round, whose rows say what strength each prompt had."""

    name = "adaptive_strength"
    coordinates: ClassVar[Mapping[str, tuple[str, ...]]] = {"strength": ("round", "prompt")}
    spec: AdaptiveSpec
    bisection: Bisection

    def __init__(
        self,
        model: Model,
        prompts: PromptSet,
        direction: Direction,
        concept: Concept,
        spec: AdaptiveSpec,
        relative: Mapping[str, float],
        scorer: Scoring,
        batch_size: int,
    ):
        super().__init__(model, prompts, concept, spec, scorer, batch_size)
        self.direction, self.relative = direction, relative
        self.require("fidelity")

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"direction": self.direction.digest, "relative_strengths": self.relative}

    def parts(self) -> dict[str, tuple[Variant]]:
        """The rounds, at whatever strengths."""
        strongest = self.variant(0, np.full(len(self.prompts), self.spec.strongest))
        rounds = {round_name(number): (strongest,) for number in range(self.spec.rounds + 1)}
        return {UNSTEERED: (self.plain,)} | rounds

    def total(self) -> int:
        return (2 + self.spec.rounds) * self.check(*self.parts()[round_name(0)])

    def stages(self, kept: Kept) -> Iterator[Mapping[str, tuple[Variant]]]:
        yield {UNSTEERED: (self.plain,)}
        self.bisection = Bisection(self.means(kept(UNSTEERED)), self.spec)
        for round_number in range(self.spec.rounds + 1):
            name = round_name(round_number)
            yield {name: (self.variant(round_number, self.bisection.next(round_number)),)}
            rows = kept(name)
            tried = rows.drop_duplicates("prompt").sort_values("prompt").strength.to_numpy()
            self.bisection.tell(tried, self.means(rows))

    def variant(self, number: int, strengths: np.ndarray) -> Variant:
        """All prompts at strengths of their own."""
        interventions = [
            self.direction.steer(
                {glob: float(strength) * factor for glob, factor in self.relative.items()}, **self.spec.applied()
            )
            for strength in strengths
        ]
        return Variant({"round": number}, interventions, [{"strength": float(strength)} for strength in strengths])

    def means(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Means over seeds, one row for each prompt, and by how much the concept leads."""
        table = image_means(rows)
        return table.assign(lead=table.concept_similarity - table.opposite_similarity)
