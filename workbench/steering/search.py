"""Which layers together, and how strongly each: a search that tries few of the many combinations.

After each trial a tree-structured Parzen estimator proposes the next (Ozaki et al. 2022, through Optuna).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pandas as pd

from workbench.arguments import Check, checked, instance_of, prompt_set
from workbench.experiments.base import Kept
from workbench.experiments.executors import Executor
from workbench.experiments.shards import PACKAGES
from workbench.experiments.statistics import mean, pareto
from workbench.experiments.store import Store
from workbench.inputs import count, number, text
from workbench.metrics import Scoring
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.schema import whole
from workbench.steering.direction import DIRECTION, Direction
from workbench.steering.experiment import UNSTEERED, Concept, Steered, SteerSpec, Variant

SAMPLER_SEED = partial(whole, least=0, most=2**32 - 1)  # what numpy takes


@dataclass(frozen=True, kw_only=True)
class SearchSpec(SteerSpec):
    """What the search may choose.

    >>> spec = wb.SearchSpec(trials=20, weakest=0.1, strongest=2.0, fidelity="ssim")
    >>> spec.concept, spec.fidelity
    ('concept_similarity', 'ssim')
    """

    trials: int = 40
    """More of them go on from those that a folder holds."""
    weakest: float = 0.1
    """Of a layer that is used; strengths are sampled on a logarithmic scale."""
    strongest: float = 4.0
    concept: str = "concept_similarity"
    """Metric to raise."""
    fidelity: str = "similarity"
    """Metric to keep."""
    sampler_seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not self.weakest < self.strongest:
            raise ValueError(f"weakest={self.weakest}, strongest={self.strongest}: give 0 < weakest < strongest")

    def _checks(self) -> dict[str, Check]:
        metrics = dict(concept=text, fidelity=text)
        strengths = dict.fromkeys(("weakest", "strongest"), partial(number, above=0))
        return super()._checks() | metrics | strengths | dict(trials=count, sampler_seed=SAMPLER_SEED)


@dataclass(frozen=True)
class Search:
    """What a search found.

    table: one row for each trial, the unsteered images first: concept and fidelity with intervals over images, whether it is on the
    Pareto front, and the strength of each site, NaN where the site was left alone.

    >>> two, concept = winter.at("text_encoder.[01].mlp"), wb.Concept("a photo in winter")
    >>> found = wb.steer_search(model, prompts, two, concept, wb.SearchSpec(trials=2))
    >>> len(found.table), found.sites
    (3, ('text_encoder.0.mlp', 'text_encoder.1.mlp'))
    """

    table: pd.DataFrame
    spec: SearchSpec
    sites: tuple[str, ...]

    @checked(fidelity=number)
    def best(self, fidelity: float) -> dict[str, float]:
        """Strength of each site in the trial with most of the concept among those of at least that fidelity.

        Raises ValueError when no trial has it.

        >>> two, concept = winter.at("text_encoder.[01].mlp"), wb.Concept("a photo in winter")
        >>> found = wb.steer_search(model, prompts, two, concept, wb.SearchSpec(trials=2))
        >>> strengths = found.best(fidelity=-1.0)  # of each site, for winter.steer
        >>> set(strengths) <= set(found.sites)
        True
        """
        kept = self.table[1:][self.table[1:][self.spec.fidelity] >= fidelity]
        if kept.empty:
            most = self.table[1:][self.spec.fidelity].max()
            raise ValueError(
                f"best(fidelity={fidelity:g}): the best of {len(self.table) - 1} trials keeps {most:.3f}; "
                "ask for less, or search weaker strengths (weakest=) or more trials="
            )
        return kept.loc[kept[self.spec.concept].idxmax(), list(self.sites)].dropna().astype(float).to_dict()


class Searching(Steered):
    """One search: a part is a trial, which says in its rows what strengths it had. The next one hangs on all before."""

    name = "steer_search"
    coordinates: ClassVar[Mapping[str, tuple[str, ...]]] = {"strengths": ("trial",)}
    packages = (*PACKAGES, "optuna")
    at_most = True
    spec: SearchSpec

    def __init__(
        self,
        model: Model,
        prompts: PromptSet,
        direction: Direction,
        concept: Concept,
        spec: SearchSpec,
        scorer: Scoring,
        batch_size: int,
    ):
        super().__init__(model, prompts, concept, spec, scorer, batch_size)
        self.direction = direction
        self.require("concept", "fidelity")

    def identity(self) -> dict[str, Any]:
        asked = super().identity() | {"direction": self.direction.digest}
        return {
            key: value for key, value in asked.items() if key != "trials"
        }  # a longer search is the same one, gone on

    def parts(self) -> dict[str, tuple[Variant]]:
        """The trials as if each steered all sites, as strongly as may be."""
        strongest = Variant({}, [self.direction.steer(self.spec.strongest, **self.spec.applied())] * len(self.prompts))
        return {UNSTEERED: (self.plain,)} | {trial_name(i): (strongest,) for i in range(self.spec.trials)}

    def total(self) -> int:
        return (1 + self.spec.trials) * self.check(*self.parts()[trial_name(0)])

    def stages(self, kept: Kept) -> Iterator[Mapping[str, tuple[Variant]]]:
        yield {UNSTEERED: (self.plain,)}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self.spec.sampler_seed)
        study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        for trial_number in range(self.spec.trials):
            trial = study.ask()
            proposed = self.proposed(trial)
            name = trial_name(trial_number)
            yield {name: (self.variant(trial_number, proposed),)}
            rows = kept(name)
            found = search_means(rows, self.spec)
            values, strengths = [found[self.spec.concept], found[self.spec.fidelity]], strengths_of(rows)
            if strengths == proposed:
                study.tell(trial, values)
            else:  # kept by another version or machine, whose proposal was another: its rows say what was measured
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                study.add_trial(self.told(strengths, values))

    def proposed(self, trial: optuna.Trial) -> dict[str, float]:
        """Strength of each site that the trial uses."""
        strengths = {}
        for site in self.direction.sites:
            if trial.suggest_categorical(site, [False, True]):
                strengths[site] = trial.suggest_float(
                    f"{site} strength", self.spec.weakest, self.spec.strongest, log=True
                )
        return strengths

    def told(self, strengths: Mapping[str, float], values: list[float]) -> optuna.trial.FrozenTrial:
        """A finished trial of these strengths."""
        used = optuna.distributions.CategoricalDistribution([False, True])
        strength = optuna.distributions.FloatDistribution(self.spec.weakest, self.spec.strongest, log=True)
        chosen: dict[str, Any] = {site: site in strengths for site in self.direction.sites}
        sizes = {f"{site} strength": value for site, value in strengths.items()}
        kinds = dict.fromkeys(chosen, used) | dict.fromkeys(sizes, strength)
        return optuna.trial.create_trial(params=chosen | sizes, distributions=kinds, values=values)

    def variant(self, number: int, strengths: Mapping[str, float]) -> Variant:
        steered = self.direction.steer(strengths, **self.spec.applied())
        return Variant({"trial": number, "strengths": json.dumps(strengths)}, [steered] * len(self.prompts))


@checked(prompts=prompt_set, direction=DIRECTION, spec=instance_of("workbench.steering.search:SearchSpec"))
def steer_search(
    model: Model,
    prompts: PromptSet,
    direction: Direction,
    concept: Concept,
    spec: SearchSpec = SearchSpec(),
    *,
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> Search:
    """Search sets of layers and a strength for each: most concept at most fidelity, by a tree-structured Parzen estimator.

    Optuna's multi-objective TPE (Ozaki et al. 2022) proposes each trial from those before. Trials are kept in `folder` with their
    strengths; the same call goes on, and finds what an uninterrupted one would. executor: as for `causal_trace`.
    Raises as `steer_sweep` does.

    >>> concept = wb.Concept("a photo in winter")
    >>> found = wb.steer_search(model, prompts, winter, concept, wb.SearchSpec(trials=2))
    >>> len(found.table), len(found.sites)
    (3, 12)
    """
    shards = Searching(model, prompts, direction, concept, spec, scorer, batch_size).complete(folder, executor)
    rows = [search_means(shards.rows(UNSTEERED), spec)]
    for trial_number in range(spec.trials):
        trial = shards.rows(trial_name(trial_number))
        rows.append(search_means(trial, spec) | strengths_of(trial))
    table = pd.DataFrame(rows, columns=[*rows[0], *direction.sites])
    return Search(table.assign(pareto=pareto(table, spec.concept, spec.fidelity)), spec, direction.sites)


def trial_name(number: int) -> str:
    """How a trial's part is called."""
    return f"trial{number:04d}"


def strengths_of(rows: pd.DataFrame) -> dict[str, float]:
    """Strength of each site in a trial, as its rows say."""
    return json.loads(rows.strengths.iloc[0])


def search_means(rows: pd.DataFrame, spec: SearchSpec) -> dict[str, float]:
    """Means of the two metrics, with their intervals over images."""
    found = {}
    for metric in (spec.concept, spec.fidelity):
        found |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), mean(rows[rows.metric == metric].value)))
    return found
