"""Faithfulness of a ranking: how much of the concept do its first sites keep, when all the others are corrupted?

The circuit metrics of MIB (Mueller et al. 2025, arXiv 2504.13151, section 4.1): f(p) of the share p of sites that are kept, and two
areas: CPR under f, which asks for the parts that make the concept, and CMD between f and 1, which asks for those that are as the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.arguments import checked, fit, instance_of
from workbench.experiments.executors import Executor
from workbench.experiments.results import NEAR_ZERO, measured_by, scores
from workbench.experiments.shards import Row
from workbench.experiments.statistics import LEVEL, RESAMPLES, crossed_weights, ends, weighted_means
from workbench.experiments.store import Store
from workbench.inputs import shown, strings
from workbench.interventions import World, restore
from workbench.localize.causal_trace import Corrupting
from workbench.localize.specs import FaithfulnessSpec
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import Prompts, PromptSet
from workbench.sites import Sites

RANKING, RANDOM = "ranking", "random"
OVER = ("prompt", "draw", "seed")


def a_ranking(value: Any, argument: str) -> tuple[str, ...]:
    """Names of sites, the most important first: a list of them, or scores by site."""
    if isinstance(value, xr.DataArray):
        axis = next((name for name in ("site", "layer") if name in value.dims), None)
        if axis is None:
            raise ValueError(f"{argument} has the axes {value.dims}: give scores with an axis site or layer")
        mean = value.mean([name for name in value.dims if name != axis])
        value = dict(zip(map(str, mean[axis].values), mean.values.tolist()))
    if isinstance(value, Mapping):
        if wrong := [name for name, score in value.items() if not isinstance(score, (int, float)) or np.isnan(score)]:
            raise ValueError(
                f"{argument}: {shown(wrong[0])} has the score {shown(value[wrong[0]])}: give finite numbers"
            )
        value = sorted(value, key=lambda name: -value[name])
    names = strings(value, argument)
    if len(set(names)) < len(names) or len(names) < 2:
        raise ValueError(
            f"{argument}={shown(value)}: give the names of at least two sites, each once, the most important first"
        )
    return tuple(names)


@dataclass(frozen=True)
class Faithfulness:
    """How faithful a ranking is.

    data: scores `clean` (metric, prompt, seed), `corrupted` (metric, prompt, draw, seed) and `kept` (metric, prompt, draw, seed,
    order, count): with the first `count` sites of an order ("ranking", "random 0", ...) kept.

    >>> dict(faithful.data.kept.sizes)
    {'draw': 1, 'metric': 6, 'prompt': 2, 'seed': 1, 'order': 2, 'count': 6}
    """

    data: xr.Dataset

    def __post_init__(self):
        fit(self, data=scores("clean", "corrupted", "kept"))
        object.__setattr__(self, "data", self.data.sortby("count").transpose(..., "order", "count"))

    @checked
    def curve(self, metric: str = "probability", *, level: float = LEVEL, resamples: int = RESAMPLES) -> pd.DataFrame:
        """f of the share of sites that are kept: rows (order, count, share, faithfulness, low, high), of the ranking and, averaged, of
        the random orders. 0: no site is kept; 1: all are. Intervals over prompts, draws and seeds (and random orders).

        Raises KeyError for a metric that was not measured; ValueError where keeping all sites and keeping none give the same (0/0).

        >>> curve = faithful.curve(resamples=100)
        >>> curve[curve.order == "ranking"]["count"].tolist()
        [0, 1, 2, 3, 8, 16]
        """
        shares, rows = self._shares, []
        for order, (value, drawn) in self._curves(metric, resamples).items():
            low, high = ends(drawn.mean(1), level)
            for i, number in enumerate(self.data["count"].values.tolist()):
                row = dict(order=order, count=number, share=shares[i], faithfulness=value.mean(0)[i])
                rows.append(row | dict(low=low[i], high=high[i]))
        return pd.DataFrame(rows)

    @checked
    def areas(self, metric: str = "probability", *, level: float = LEVEL, resamples: int = RESAMPLES) -> pd.DataFrame:
        """CPR, the area under f over the share of sites kept (larger is better), and CMD, that between f and 1 (smaller is better), of
        the ranking, the mean random order, and their difference, each with its interval. Errors as of `curve`.

        >>> faithful.areas(resamples=100).order.tolist()
        ['ranking', 'random', 'difference']
        """
        shares, curves = self._shares, self._curves(metric, resamples)
        areas = {}
        for order, both in curves.items():
            areas[order] = [
                {"cpr": np.trapezoid(f, shares, axis=-1), "cmd": np.trapezoid(np.abs(1 - f), shares, axis=-1)}
                for f in both
            ]
        rows = []
        for order in (RANKING, RANDOM, "difference"):
            row: dict[str, Any] = {"order": order}
            for name in ("cpr", "cmd"):
                values = [[areas[each][i][name].mean(-1) for i in (0, 1)] for each in (RANKING, RANDOM)]
                pair = [a - b for a, b in zip(*values)] if order == "difference" else values[order == RANDOM]
                low, high = map(float, ends(pair[1], level))
                row |= {name: float(pair[0]), f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def _shares(self) -> np.ndarray:
        counts = self.data["count"].values
        return counts / counts[-1]

    def _curves(self, metric: str, resamples: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """f of the ranking and of the random orders: (order, count), and of resamples (resample, order, count)."""
        kept = measured_by(self.data, metric).kept
        whole = kept.sel(count=[0, kept["count"].values[-1]], order=RANKING).mean(OVER).values
        if abs(whole[1] - whole[0]) <= NEAR_ZERO:
            raise ValueError(
                f"metric={metric!r}: with all sites kept it is {whole[1]:.4g}, with none {whole[0]:.4g}, so that faithfulness would be "
                "0/0: corrupt more (noise_multiple=), rank sites that carry the concept, or take another metric"
            )
        weights = crossed_weights(kept, OVER, resamples)
        means = _faithful(kept.mean(OVER))
        drawn = _faithful(weighted_means(kept, weights, OVER))
        names = kept.order.values.tolist()
        random = [name for name in names if name != RANKING]
        rng = np.random.default_rng(0)
        again = rng.integers(len(random), size=(resamples, len(random)))
        others = np.take_along_axis(drawn.sel(order=random).values, again[:, :, None], axis=1)
        return {
            RANKING: (means.sel(order=[RANKING]).values, drawn.sel(order=[RANKING]).values),
            RANDOM: (means.sel(order=random).values, others),
        }


def _faithful(means: xr.DataArray) -> xr.DataArray:
    """(m(p) - m(0)) / (m(1) - m(0)), ([resample,] order, count); NaN where the whole is nothing."""
    first, last = means.isel(count=0), means.isel(count=-1)
    whole = last - first
    return ((means - first) / whole.where(abs(whole) > NEAR_ZERO)).transpose(..., "order", "count")


@checked(ranking=a_ranking, spec=instance_of("workbench.localize.specs:FaithfulnessSpec"))
def faithfulness(
    model: Model,
    prompts: Prompts,
    ranking: Sequence[str] | Mapping[str, float] | xr.DataArray,
    spec: FaithfulnessSpec | None = None,
    *,
    subject: str = "",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> Faithfulness:
    """How much of each prompt's concept the first sites of a ranking keep, when all its other sites have the corrupted world's values.

    f(p) = (m(p) - m(0)) / (m(1) - m(0)), m a metric with the first share p of the sites left as they are and the rest given what
    they have in the corrupted world (conditional half for what comes from the text; every step). m(1) is the clean picture; m(0)
    is the corrupted one only where nothing but these sites carries the concept. The same sites in random orders are the baseline.

    prompts, subject, scorer, folder, executor: as for `wb.causal_trace`. ranking: names of sites, the most important
    first, or scores: a mapping
    by name, or an array with an axis site or layer, such as `effects.indirect_effect` or a localizer's scores, averaged over other
    axes. Distances are measured to the corrupted picture.

    Raises, before anything is generated, what `wb.causal_trace` raises, and ValueError for streams, which hold all that came before them;
    `Faithfulness.curve` and `.areas` raise for 0/0.

    >>> spec = wb.FaithfulnessSpec(noise_multiple=6.0, draws=1, seeds=(0,), random_orders=1)
    >>> effects = wb.effects(trace, "probability").indirect_effect
    >>> found = wb.faithfulness(model, prompts, effects, spec)
    >>> found.data.order.values.tolist()
    ['ranking', 'random 0']
    """
    chosen, measures = PromptSet.of(prompts, subject=subject), Measures.of(scorer, model)
    chosen.require("subject", by="faithfulness")
    names: Any = ranking
    keeping = Keeping(model, names, spec or FaithfulnessSpec(), chosen, measures, batch_size)
    return Faithfulness(keeping.dataset(folder, executor))


class Keeping(Corrupting):
    """One test of faithfulness. A part is a prompt under one draw of noise."""

    name = "faithfulness"
    uncounted = ""
    spec: FaithfulnessSpec

    def __init__(
        self,
        model: Model,
        ranking: Iterable[str],
        spec: FaithfulnessSpec,
        prompts: PromptSet,
        measures: Measures,
        batch_size: int,
    ):
        super().__init__(model, spec, prompts=prompts, measures=measures, batch_size=batch_size)
        self.ranking = tuple(model.sites[name].name for name in ranking)
        if streams := [name for name in self.ranking if model.sites[name].stream]:
            raise ValueError(
                f"ranking: {', '.join(streams[:3])} hold all that came before them; rank components, such as attention, mlp or cross"
            )

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"ranking": list(self.ranking)}

    def sites(self) -> Sites:
        return self.model.sites(*self.ranking)

    @cached_property
    def orders(self) -> dict[str, tuple[str, ...]]:
        """The ranking, and random orders of the same sites, whatever the ranking's was."""
        rng, names = np.random.default_rng(0), np.array(sorted(self.ranking))
        return {RANKING: self.ranking} | {
            f"{RANDOM} {i}": tuple(map(str, rng.permutation(names))) for i in range(self.spec.random_orders)
        }

    @cached_property
    def inner(self) -> list[tuple[str, int]]:
        """What is drawn between keeping none and keeping all."""
        counts = self.spec.counts(len(self.ranking))[1:-1]
        return [(order, number) for order in self.orders for number in counts]

    def worlds(self, p: int, draw: int) -> list[World]:
        """The corrupted world, the clean one, and those that keep none of the sites, and some of them."""
        clean, corrupted = self.pair(p, draw)
        kept = [("none", self.ranking)]
        kept += [(f"{order}, {number}", self.orders[order][number:]) for order, number in self.inner]
        worlds = [replace(clean, name=name, interventions=(restore(others, corrupted.name),)) for name, others in kept]
        return [corrupted, clean, *worlds]

    def check(self, p: int, draw: int) -> int:
        return self.plan(self.worlds(p, draw))

    def measure(self, p: int, draw: int, bar: Bar) -> list[Row]:
        """Rows (world, metric, prompt, draw, seed, order, count, value)."""
        places: list[Row] = [dict(world="corrupted", draw=draw), dict(world="clean"), dict(world="none")]
        places += [dict(world="kept", draw=draw, order=order, count=number) for order, number in self.inner]
        rows: list[Row] = []
        for row in self.score(p, self.worlds(p, draw), places, bar):
            ends = {"none": 0, "clean": len(self.ranking)}
            if row["world"] in ends:  # the same picture in every order
                kept = {"world": "kept", "draw": draw, "count": ends[row["world"]]}
                rows += [{**row, **kept, "order": order} for order in self.orders]
            if row["world"] != "none":
                rows.append(row)
        return rows
