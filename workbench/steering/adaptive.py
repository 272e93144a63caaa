"""The strength that each prompt needs: measured and found by bisection, not looked up by its words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from workbench.experiment import check_spec
from workbench.metrics import Scorer
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.results import Shards
from workbench.steering.direction import Direction
from workbench.steering.experiment import UNSTEERED, Concept, Steered, SteerSpec


@dataclass(frozen=True)
class AdaptiveSpec(SteerSpec):
    """How strong steering may be, and what it may cost."""

    strongest: float = 4.0
    rounds: int = 6
    """Of bisection: the strength is found to within strongest / 2^rounds."""
    budget: float = 0.3
    """Largest drop of `fidelity` from the unsteered images, in its own unit."""
    fidelity: str = "similarity"
    """Metric that the budget is about."""
    margin: float = 0.0
    """Enough is where `concept_similarity` exceeds `opposite_similarity` by this."""

    def __post_init__(self):
        check_spec(self, "seeds")
        if not (self.strongest > 0 and self.rounds > 0 and self.budget >= 0):
            raise ValueError(
                f"strongest={self.strongest}, rounds={self.rounds}, budget={self.budget}: give positive ones"
            )


def adaptive_strength(
    model: Model,
    prompts: PromptSet,
    direction: Direction,
    concept: Concept,
    spec: AdaptiveSpec = AdaptiveSpec(),
    *,
    strengths: Mapping[str, float] | None = None,
    scorer: Scorer | None = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """For each prompt the least strength that brings the concept, or the largest within a fidelity budget where none does.

    strengths: of each glob of sites at strength 1; all alike when left out. Returns one row for each prompt: `resistance`,
    the unsteered images' similarity to the opposite concept less that to the concept; `strength`, what was found; `stopped_by`, "concept",
    "budget" or "strongest"; and at that strength `lead` (similarity to the concept less that to its opposite) and `drop` (of the
    fidelity). Each is a mean over the spec's seeds: report on others. Bisection supposes that both grow with strength.

    All prompts take a step of the bisection in one batch. Rounds are kept in `folder`; the same call goes on. Raises as
    `steer_sweep` does, and ValueError for a concept without an opposite.
    """
    if not concept.opposite:
        raise ValueError(
            f"adaptive_strength(concept={concept.text!r}): resistance is measured against an opposite; give Concept(opposite=...)"
        )
    relative = dict(strengths or dict.fromkeys(direction.sites, 1.0))
    at = lambda strength: direction.steer(
        {glob: strength * factor for glob, factor in relative.items()}, **spec.applied()
    )
    study = Steered(model, prompts, concept, spec, scorer, batch_size)
    study.name = "adaptive_strength"
    images = study.check({}, [at(spec.strongest)] * len(prompts))
    shards = Shards(study.asked() | {"direction": direction.digest, "strengths": relative}, folder)
    low, high = np.zeros(len(prompts)), np.full(len(prompts), spec.strongest)
    with tqdm(total=(spec.rounds + 2) * images, desc=study.name, unit="image", disable=None) as bar:
        unsteered = _means(study.once(shards, UNSTEERED, {}, [()] * len(prompts), bar), spec)
        best = unsteered.assign(strength=0.0)  # what is kept if all else is over budget
        reached = np.zeros(len(prompts), bool)
        over = np.zeros(len(prompts), bool)
        for number in range(spec.rounds + 1):
            tried = high.copy() if number == 0 else (low + high) / 2
            some = [at(float(strength)) for strength in tried]
            found = _means(study.once(shards, f"round{number:02d}", {"round": number}, some, bar), spec)
            drop = unsteered[spec.fidelity] - found[spec.fidelity]
            affordable = (drop <= spec.budget).to_numpy()
            enough = (found.lead >= spec.margin).to_numpy()
            better = affordable & (enough | ~reached)  # weaker ones that suffice, else stronger ones that do not
            best[better] = found.assign(strength=tried)[better]
            reached |= affordable & enough
            over |= ~affordable
            up = affordable & ~enough
            low, high = np.where(up, tried, low), np.where(up, high, tried)
    stopped = np.select([reached, over], ["concept", "budget"], "strongest")
    return pd.DataFrame(
        dict(
            prompt=[prompt.prompt for prompt in prompts],
            resistance=-unsteered.lead,
            strength=best.strength,
            stopped_by=stopped,
            lead=best.lead,
            drop=unsteered[spec.fidelity] - best[spec.fidelity],
        )
    )


def _means(rows: pd.DataFrame, spec: AdaptiveSpec) -> pd.DataFrame:
    """Means over seeds, one row for each prompt."""
    table = rows.groupby(["prompt", "metric"])["value"].mean().unstack()
    if spec.fidelity not in table:
        raise KeyError(f"fidelity={spec.fidelity!r} was not measured; there are {', '.join(table)}")
    return table.assign(lead=table.concept_similarity - table.opposite_similarity)
