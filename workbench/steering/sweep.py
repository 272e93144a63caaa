"""Which layers, and how strongly: every layer at every strength, or a search that tries fewer combinations.

Both look at two things at once, how much of the concept is there and how much of the original prompt is left, and give the
Pareto front of the two. Choose on some prompts, report on others.
"""

from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from workbench.experiment import check_spec
from workbench.metrics import Scorer
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.results import Shards, averages, mean, measured_by, pareto
from workbench.steering.direction import Direction
from workbench.steering.experiment import UNSTEERED, Concept, Steered, SteerSpec

ALL = "all"


@dataclass(frozen=True)
class SweepSpec(SteerSpec):
    """Which strengths are tried."""

    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    together: bool = True
    """All sites at once too, each at that strength, as site "all"."""

    def __post_init__(self):
        check_spec(self, "seeds", "strengths")


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    data: scores `unsteered` (metric, prompt, seed) and `steered` (metric, prompt, seed, site, strength).
    """

    data: xr.Dataset

    def effects(self, metric: str = "concept_similarity", **options) -> xr.Dataset:
        """`value` under steering and `change` against the unsteered images, with intervals; options: see `workbench.effects`."""
        scores = measured_by(self.data, metric)
        contrasts = {"value": scores.steered, "change": scores.steered - scores.unsteered}
        return averages(contrasts, attrs=self.data.attrs | {"metric": metric}, **options)

    def table(self, concept: str = "concept_similarity", fidelity: str = "similarity") -> pd.DataFrame:
        """One row for each site and strength, and one for the unsteered images: both metrics and the pixel distance with their
        intervals, and whether it is on the Pareto front."""
        rows = pd.MultiIndex.from_product(
            [self.data.site.values, self.data.strength.values], names=["site", "strength"]
        ).to_frame(index=False)
        unsteered = pd.DataFrame([{"site": UNSTEERED, "strength": 0.0}])
        for name, metric in {concept: concept, fidelity: fidelity, "pixel_distance": "pixel_distance"}.items():
            found, before = self.effects(metric), measured_by(self.data, metric).unsteered
            for end in ("", "_low", "_high"):
                rows[f"{name}{end}"] = found[f"value{end}"].transpose("site", "strength").values.ravel()
            plain = averages({"value": before}, attrs={"metric": metric})
            unsteered = unsteered.assign(
                **{f"{name}{end}": float(plain[f"value{end}"]) for end in ("", "_low", "_high")}
            )
        rows = pd.concat([unsteered, rows], ignore_index=True)
        return rows.assign(pareto=pareto(rows, concept, fidelity))


def steer_sweep(
    model: Model,
    prompts: PromptSet,
    direction: Direction,
    concept: Concept,
    spec: SweepSpec = SweepSpec(),
    *,
    scorer: Scorer | None = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
) -> Sweep:
    """Steer by every site of a direction at every strength, and measure concept, fidelity and distance to the unsteered image.

    Finished cells are kept in `folder`; the same call goes on. Raises KeyError and ValueError for what does not fit the
    model, all before the first image.
    """
    if 0 in spec.strengths:
        raise ValueError(f"strengths={spec.strengths}: 0 is the unsteered image, which every sweep has; leave it out")
    sites = [*direction.sites, *([ALL] if spec.together and len(direction.sites) > 1 else [])]
    variants = {}
    for site in sites:
        for strength in spec.strengths:
            what = direction.steer(strength if site == ALL else {site: strength}, **spec.applied())
            variants[f"{site}-{strength:g}"] = (dict(site=site, strength=float(strength)), [what] * len(prompts))
    data = Steered(model, prompts, concept, spec, scorer, batch_size, variants).dataset(folder)
    return Sweep(data.sel(site=sites, strength=sorted(spec.strengths)))


@dataclass(frozen=True)
class SearchSpec(SteerSpec):
    """What the search may choose."""

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
        check_spec(self, "seeds")
        if not 0 < self.weakest < self.strongest:
            raise ValueError(f"weakest={self.weakest}, strongest={self.strongest}: give 0 < weakest < strongest")


@dataclass(frozen=True)
class Search:
    """What a search found.

    table: one row for each trial, the unsteered images first: concept and fidelity with intervals over images, whether it is on the
    Pareto front, and the strength of each site, NaN where the site was left alone.
    """

    table: pd.DataFrame
    spec: SearchSpec
    sites: tuple[str, ...]

    def best(self, fidelity: float) -> dict[str, float]:
        """Strength of each site in the trial with most of the concept among those of at least that fidelity.

        Raises ValueError when no trial has it.
        """
        kept = self.table[1:][self.table[1:][self.spec.fidelity] >= fidelity]
        if kept.empty:
            most = self.table[1:][self.spec.fidelity].max()
            raise ValueError(
                f"best(fidelity={fidelity:g}): the best of {len(self.table) - 1} trials keeps {most:.3f}; "
                "ask for less, or search weaker strengths (weakest=) or more trials="
            )
        return kept.loc[kept[self.spec.concept].idxmax(), list(self.sites)].dropna().astype(float).to_dict()


def steer_search(
    model: Model,
    prompts: PromptSet,
    direction: Direction,
    concept: Concept,
    spec: SearchSpec = SearchSpec(),
    *,
    scorer: Scorer | None = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
) -> Search:
    """Search sets of layers and a strength for each: most concept at most fidelity, by a tree-structured Parzen estimator.

    Optuna's multi-objective TPE (Ozaki et al. 2022) proposes each trial from those before. Trials are kept in `folder`; the same call
    goes on, and finds what an uninterrupted one would. Raises as `steer_sweep` does.
    """
    study = Steered(model, prompts, concept, spec, scorer, batch_size)
    study.name = "steer_search"
    whole = direction.steer(spec.strongest, **spec.applied())
    per_trial = study.check({}, [whole] * len(prompts))
    asked = study.asked() | {"direction": direction.digest}
    shards = Shards(
        {key: value for key, value in asked.items() if key != "trials"}, folder
    )  # a longer search is the same one, gone on
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=spec.sampler_seed)
    proposals = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    done = sum(f"trial{t:04d}" in shards for t in range(spec.trials))
    with tqdm(total=(spec.trials - done) * per_trial, desc=study.name, unit="image", disable=None) as bar:
        rows = [_summary(study.once(shards, UNSTEERED, {}, [()] * len(prompts), bar), spec)]
        for t in range(spec.trials):
            trial = proposals.ask()
            strengths = {}
            for site in direction.sites:
                if trial.suggest_categorical(site, [False, True]):
                    strengths[site] = trial.suggest_float(f"{site} strength", spec.weakest, spec.strongest, log=True)
            what = direction.steer(strengths, **spec.applied())
            found = _summary(study.once(shards, f"trial{t:04d}", {"trial": t}, [what] * len(prompts), bar), spec)
            proposals.tell(trial, [found[spec.concept], found[spec.fidelity]])
            rows.append(found | strengths)
    table = pd.DataFrame(rows, columns=[*rows[0], *direction.sites])
    return Search(table.assign(pareto=pareto(table, spec.concept, spec.fidelity)), spec, direction.sites)


def _summary(rows: pd.DataFrame, spec: SearchSpec) -> dict[str, float]:
    """Means of the two metrics, with their intervals over images."""
    found = {}
    for metric in (spec.concept, spec.fidelity):
        values = mean(rows[rows.metric == metric].value)
        found |= {f"{metric}{end}": value for end, value in zip(("", "_low", "_high"), values)}
    return found
