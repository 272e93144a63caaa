"""Which layer, and how strongly: every layer of a direction at every strength (`search` tries combinations).

It looks at two things at once, how much of the concept is there and how much of the original prompt is left, and gives the
Pareto front of the two. Choose on some prompts, report on others.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import xarray as xr

from workbench.arguments import Check, checked, fit, instance_of, numbers, prompt_set
from workbench.experiments.executors import Executor
from workbench.experiments.results import averages, measured_by, scores
from workbench.experiments.statistics import LEVEL, RESAMPLES, pareto
from workbench.experiments.store import Store
from workbench.inputs import text
from workbench.metrics import Scoring
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.steering.direction import DIRECTION, Direction
from workbench.steering.experiment import UNSTEERED, Concept, Steered, SteerSpec, Variant

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class SweepSpec(SteerSpec):
    """Which strengths are tried.

    >>> wb.SweepSpec(strengths=(0.5, 1.0), together=False).strengths
    (0.5, 1.0)
    """

    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    together: bool = True
    """All sites at once too, each at that strength, as site "all"."""

    def __post_init__(self):
        super().__post_init__()
        if 0 in self.strengths:
            raise ValueError(
                f"strengths={self.strengths}: 0 is the unsteered image, which every sweep has; leave it out"
            )
        if len(set(self.strengths)) < len(self.strengths):
            raise ValueError(f"strengths={self.strengths}: one stands there twice; give each once")

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | dict(strengths=numbers)


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    data: scores `unsteered` (metric, prompt, seed) and `steered` (metric, prompt, seed, site, strength).

    >>> first, concept = winter.at("text_encoder.0.mlp"), wb.Concept("a photo in winter")
    >>> sweep = wb.steer_sweep(model, prompts, first, concept, wb.SweepSpec(strengths=(1.0,)))
    >>> dict(sweep.data.unsteered.sizes)
    {'metric': 7, 'prompt': 2, 'seed': 1}
    """

    data: xr.Dataset

    def __post_init__(self):
        fit(self, data=scores("unsteered", "steered"))

    @checked
    def effects(
        self,
        metric: str = "concept_similarity",
        *,
        over: tuple[str, ...] = ("prompt", "seed"),
        level: float = LEVEL,
        resamples: int = RESAMPLES,
    ) -> xr.Dataset:
        """`value` under steering and `change` against the unsteered images, with intervals as `workbench.effects` has them.

        >>> first, concept = winter.at("text_encoder.0.mlp"), wb.Concept("a photo in winter")
        >>> sweep = wb.steer_sweep(model, prompts, first, concept, wb.SweepSpec(strengths=(1.0,)))
        >>> dict(sweep.effects("concept_similarity").change.sizes)
        {'site': 1, 'strength': 1}
        """
        by = measured_by(self.data, metric)
        contrasts = {"value": by.steered, "change": by.steered - by.unsteered}
        attrs = self.data.attrs | {"metric": metric}
        against = {"change": by.unsteered}
        return averages(contrasts, against=against, over=over, level=level, resamples=resamples, attrs=attrs)

    @checked(concept=text, fidelity=text)
    def table(self, concept: str = "concept_similarity", fidelity: str = "similarity") -> pd.DataFrame:
        """One row for each site and strength, and one for the unsteered images: both metrics and the pixel distance with their
        intervals, and whether it is on the Pareto front.

        >>> first, concept = winter.at("text_encoder.0.mlp"), wb.Concept("a photo in winter")
        >>> sweep = wb.steer_sweep(model, prompts, first, concept, wb.SweepSpec(strengths=(1.0,)))
        >>> sweep.table()[["site", "strength"]]
                         site  strength
        0           unsteered       0.0
        1  text_encoder.0.mlp       1.0
        """
        for argument, metric in (("concept", concept), ("fidelity", fidelity)):
            if metric not in (known := self.data.metric.values.tolist()):
                raise KeyError(f"{argument}={metric!r} was not measured; there are {', '.join(known)}")
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


@checked(prompts=prompt_set, direction=DIRECTION, spec=instance_of("workbench.steering.sweep:SweepSpec"))
def steer_sweep(
    model: Model,
    prompts: PromptSet,
    direction: Direction,
    concept: Concept,
    spec: SweepSpec = SweepSpec(),
    *,
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> Sweep:
    """Steer by every site of a direction at every strength, and measure concept, fidelity and distance to the unsteered image.

    Finished cells are kept in `folder`; the same call goes on. executor: as for `causal_trace`. Raises KeyError and
    ValueError for what does not fit the model, all before the first image.

    >>> concept = wb.Concept("a photo in winter", "a photo in summer")
    >>> first = winter.at("text_encoder.0.mlp")
    >>> sweep = wb.steer_sweep(model, prompts, first, concept, wb.SweepSpec(strengths=(0.5, 1.0)))
    >>> dict(sweep.data.steered.sizes)
    {'site': 1, 'strength': 2, 'metric': 8, 'prompt': 2, 'seed': 1}
    """
    if 0 in spec.strengths:
        raise ValueError(f"strengths={spec.strengths}: 0 is the unsteered image, which every sweep has; leave it out")
    variants = variants_of(direction, spec, len(prompts))
    study = Steered(model, prompts, concept, spec, scorer, batch_size, variants, direction.sites)
    sites = list(dict.fromkeys(variant.place["site"] for variant in variants.values()))
    return Sweep(study.dataset(folder, executor).sel(site=sites, strength=sorted(spec.strengths)))


def variants_of(direction: Direction, spec: SweepSpec, prompts: int) -> dict[str, Variant]:
    """Every site at every strength, by the names of their parts. prompts: so many are steered alike."""
    sites = [*direction.sites, *([ALL] if spec.together and len(direction.sites) > 1 else [])]
    variants = {}
    for site in sites:
        for strength in spec.strengths:
            steered = direction.steer(strength if site == ALL else {site: strength}, **spec.applied())
            place = dict(site=site, strength=float(strength))
            variants[f"{site}-{str(strength).removesuffix('.0')}"] = Variant(place, [steered] * prompts)
    return variants
