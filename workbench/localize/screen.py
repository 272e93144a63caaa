"""Screening: attribution proposes sites, exact patching decides on the best of them.

Attribution patching as a screen (Nanda 2023; AtP*, Kramar et al. 2024, arXiv 2403.00745, section 2); what it misses is estimated
from sites that are patched although it did not propose them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from workbench.arguments import checked, instance_of
from workbench.experiments.base import Part
from workbench.experiments.drawing import Drawing
from workbench.experiments.executors import Executor
from workbench.experiments.forecast import answer_plans
from workbench.experiments.racing import LEFT, Race, Racing
from workbench.experiments.results import effects, measured_by
from workbench.experiments.shards import Shards
from workbench.experiments.spec import RaceSpec
from workbench.experiments.statistics import LEVEL, Estimate
from workbench.experiments.store import Store, as_store
from workbench.experiments.work import working
from workbench.inputs import count
from workbench.localize.attribution import NOISE, Attributing
from workbench.localize.causal_trace import Target, Tracing
from workbench.localize.specs import AttributionSpec, ScreenSpec, TraceSpec
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.prompts import Prompts, PromptSet

PLACES = ("site", "token", "steps", "head", "channel")  # what tells one candidate from another
DRAWS = 2000  # of what the unverified sites may do


@dataclass(frozen=True)
class Screen:
    """What a screening found.

    attributed: what `attribute` returns, of every site. verified: what `causal_trace` returns, of those that were patched (NaN for
    others). table: one row for each site (token, window, head), those with the largest exact effects first, then the unverified by
    attribution: `attributed`, in its own unit; `role`, "proposed", "control" or ""; and of the patched ones `indirect_effect` with
    its interval and `significant`. recall, guaranteed: see `wb.screen`. pictures: how many were drawn; pictures_of_all: how many
    tracing every site takes; backward: how many of the pictures had a backward pass.

    >>> spec = wb.ScreenSpec(sites=("text_encoder.{0,1}.mlp",), best=1, verified=1, controls=1, seeds=(0,), draws=1)
    >>> found = wb.screen(model, prompts, spec)
    >>> found.recall, found.guaranteed  # both sites were patched
    (Estimate(value=1.0, low=1.0, high=1.0), 1.0)
    """

    attributed: xr.Dataset
    verified: xr.Dataset
    table: pd.DataFrame
    recall: Estimate
    guaranteed: float
    pictures: int
    pictures_of_all: int
    backward: int

    @checked(number=count)
    def best(self, number: int = 1) -> tuple[str, ...]:
        """Names of the sites with the largest exact effects, the largest first; ValueError for more than were verified.

        >>> spec = wb.ScreenSpec(sites=("text_encoder.*.mlp",), verified=3, controls=0, seeds=(0,), draws=1)
        >>> len(wb.screen(model, prompts, spec).best(2))
        2
        """
        verified = _in_full(self.table[self.table.role != ""])
        if number > len(verified):
            raise ValueError(f"number={number}: {len(verified)} were verified; ask for as many at most, or verify more")
        return tuple(verified.site[:number])

    @property
    def times_fewer(self) -> float:
        """How many times fewer pictures were drawn than tracing every site takes."""
        return self.pictures_of_all / self.pictures


@checked(spec=instance_of("workbench.localize.specs:ScreenSpec"))
def screen(
    model: Model,
    prompts: Prompts,
    spec: ScreenSpec | None = None,
    *,
    subject: str = "",
    metric: str = "probability",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> Screen:
    """Find the sites with the largest indirect effects without patching every one: attribution proposes, exact patching decides.

    Every site of the spec is attributed (two pictures for each prompt, seed and draw, with one backward pass). The `verified` ones
    with the largest attributions are then patched, as `causal_trace` does, and so are `controls` of the others, drawn at random; all
    of these are ranked by their exact effect on `metric`. Sites with a negative effect are not looked for.

    Two promises are made of the best `spec.best`, both from this run alone, both told by the controls:

    - `recall`: the share of the true best that is among the patched sites, expected, with an interval of 95 %. Exact effects are
      taken to be a straight line in the attributions, with residuals that are normal and as large, everywhere, as the controls'; the
      unpatched sites' effects are drawn from that 2000 times (with a mean and variance of the residuals drawn too, since few controls
      tell little of them), and the patched sites among the best are counted. NaN with fewer than two controls.
    - `guaranteed`: at least that share, in 95 % of runs, whatever the attributions are worth: controls are a random sample of what was
      not proposed, so that the number of controls above the proposed ones' `best`-th limits how many of all others can be
      (hypergeometric, one-sided). It is 0 unless a good part of the sites is patched.

    Both are 1 where every site was patched. Both speak of effects as measured on these prompts and seeds.

    With `race` in the spec the proposed sites race (`wb.race`): who is certainly beaten is patched no further. Its effect in the table is
    the mean over the `units` that were drawn, its `standing` "left", its place behind the others. The best and the controls are patched
    everywhere; intervals are those of the race.

    prompts, subject, scorer, folder (one subfolder each for both parts), executor, batch_size: as for `wb.causal_trace` and `wb.attribute`.
    Raises what these raise, before anything is generated; ValueError for fewer sites than are verified.

    >>> spec = wb.ScreenSpec(sites=("text_encoder.*.{attention,mlp}",), verified=4, controls=2, seeds=(0,), draws=1)
    >>> found = wb.screen(model, prompts, spec)
    >>> found.table.role.value_counts().to_dict()
    {'': 18, 'proposed': 4, 'control': 2}
    >>> found.pictures, found.pictures_of_all  # of two prompts: 2 + 2 + 6 each, against 2 + 24
    (20, 52)
    """
    spec, chosen = spec or ScreenSpec(), PromptSet.of(prompts, subject=subject)
    chosen.require("subject", by="a screening")
    measures = Measures.of(scorer, model)
    measures.require(metric, chosen, "metric")
    attributing = Attributing(
        model,
        AttributionSpec(**_fields(spec, AttributionSpec)),
        prompts=chosen,
        measures=Measures(None) if spec.form == "step" else measures,
        batch_size=batch_size,
    )
    everything = Tracing(
        model, TraceSpec(**_fields(spec, TraceSpec)), prompts=chosen, measures=measures, batch_size=batch_size
    )
    pictures_of_all = everything.total()
    store = as_store(folder)
    candidates = sum(len(everything.single(target)) for target in everything.targets(0))
    if candidates < spec.verified:
        raise ValueError(
            f"verified={spec.verified}: the spec's sites make {candidates} candidates; verify fewer, or name more sites"
        )
    verified_later = partial(_planned, attributing, everything, spec, metric, store)
    answer_plans("screening", [partial(attributing.dataset, store.within("attributed")), verified_later])
    attributed = attributing.dataset(store.within("attributed"), executor)
    table = candidates_of(_scores(attributed, spec), spec)
    verified, exact, drawn = _verified(everything, table, spec, metric, store, executor)
    table = _judged(table, exact)
    return Screen(
        attributed,
        verified,
        table,
        promised_recall(table, spec.best),
        guaranteed_recall(table, spec.best),
        pictures=attributing.total() + drawn,
        pictures_of_all=pictures_of_all,
        backward=spec.points * len(chosen) * spec.draws * len(spec.seeds),
    )


def _scores(attributed: xr.Dataset, spec: ScreenSpec) -> xr.DataArray:
    """What candidates are ranked by."""
    return measured_by(attributed, NOISE if spec.form == "step" else spec.metric).attributed


def _verified(
    everything: Tracing,
    table: pd.DataFrame,
    spec: ScreenSpec,
    metric: str,
    store: Store,
    executor: Executor | str | None = None,
) -> tuple[xr.Dataset, pd.DataFrame, int]:
    """Scores and effects of the candidates that have a role, and how many pictures that took."""
    verifying, store = Verifying(everything, table[table.role != ""]), store.within("verified")
    if not spec.race:
        data = verifying.dataset(store, executor)
        return data, _effects_of_sites(effects(data, metric)), verifying.total()
    race = verifying.raced_beside(table, RaceSpec(best=spec.best, metric=metric, direction="max"), store, executor)
    return race.data, _effects_of_race(race), race.pictures


def _planned(attributing: Attributing, everything: Tracing, spec: ScreenSpec, metric: str, store: Store):
    """The second part, for its plan: of the candidates, where the first is in its folder; else of as many as there may be."""
    first = store.within("attributed")
    if not first.names() or len(Shards(attributing.identity(), first)) < len(attributing.parts()):
        return Unproposed(everything, spec.verified + spec.controls, raced=spec.race).dataset(None)
    with working():
        table = candidates_of(_scores(attributing.dataset(first), spec), spec)
    return _verified(everything, table, spec, metric, store)


class Verifying(Tracing):
    """A causal trace of some candidates alone."""

    name = "verification"

    def __init__(self, everything: Tracing, candidates: pd.DataFrame):
        super().__init__(everything.model, everything.spec, **_common(everything))
        axes = [axis for axis in PLACES if axis in candidates]
        self.candidates = {tuple(row) for row in candidates[axes].itertuples(index=False)}
        self.axes = axes

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"candidates": sorted(map(list, self.candidates))}

    def raced_beside(self, table: pd.DataFrame, race: RaceSpec, store: Store, executor: Executor | str | None) -> Race:
        """The proposed candidates race; controls are patched everywhere."""
        controls = table[table.role == "control"][self.axes].itertuples(index=False)
        return Racing(self, race, {tuple(row) for row in controls}).to_the_end(store, executor)

    def single(self, target: Target) -> Sequence[Target]:
        places: list[tuple[Target, Mapping[str, Any]]] = [(each, each.place) for each in super().single(target)]
        return [each for each, place in places if tuple(place[axis] for axis in self.axes) in self.candidates]


class Unproposed(Tracing):
    """A verification of so many candidates, whichever they are: what it takes at most. raced: whether each seed is a part of its own."""

    name = "verification"
    at_most = True

    def __init__(self, everything: Tracing, candidates: int, *, raced: bool):
        super().__init__(everything.model, everything.spec, **_common(everything))
        self.candidates, self.raced_apart = candidates, raced

    def parts(self) -> dict[str, tuple[int, ...]]:  # type: ignore[override]
        whole = super().parts()
        if not self.raced_apart:
            return dict(whole)
        return {f"{name}-{seed}": (*part, seed) for name, part in whole.items() for seed in self.spec.seeds}

    def together(self, parts: Mapping[str, Part]) -> list[dict[str, Part]]:
        return [{name: part} for name, part in parts.items()] if self.raced_apart else super().together(parts)

    def drawing(self, p: int, draw: int, *seeds: int) -> Drawing:
        """Of candidates that take most: in the denoiser, whose sources are drawn with them, and begun late."""
        targets = [each for target in self.targets(p) for each in self.single(target)]
        most = sorted(targets, key=self.taking, reverse=True)[: self.candidates]
        return Drawing(p, self.worlds(p, draw, most), [{}] * (2 + len(most)), seeds=seeds or None)

    def taking(self, target: Target) -> tuple[bool, Any]:
        return self.model.sites[target.sites[0]].part == "denoiser", target.steps.start


def _common(everything: Tracing) -> dict[str, Any]:
    """What a trace of some of the same candidates is made with."""
    return dict(prompts=everything.prompts, measures=everything.measures, batch_size=everything.batch_size)


def candidates_of(attributed: xr.DataArray, spec: ScreenSpec) -> pd.DataFrame:
    """One row for each candidate with its mean attribution, the largest first, and its role: "proposed", "control" or ""."""
    axes = [axis for axis in PLACES if axis in attributed.dims]
    mean = attributed.mean(["prompt", "draw", "seed"]).transpose(*axes).rename("attributed")
    table = mean.to_dataframe().reset_index()[[*axes, "attributed"]].dropna(subset=["attributed"])
    table = table.sort_values("attributed", ascending=False, kind="stable").reset_index(drop=True)
    others = np.arange(spec.verified, len(table))
    controls = np.random.default_rng(0).permutation(others)[: spec.controls]
    roles = np.full(len(table), "", dtype=object)
    roles[: spec.verified], roles[controls] = "proposed", "control"
    return table.assign(role=roles)


def _effects_of_sites(found: xr.Dataset) -> pd.DataFrame:
    """Exact effects of the candidates that were patched, a row each."""
    names = [*(f"indirect_effect{end}" for end in ("", "_low", "_high")), "significant"]
    return found[names].to_dataframe().reset_index().dropna(subset=["indirect_effect"])


def _effects_of_race(race: Race) -> pd.DataFrame:
    """The same of a race, with who left it."""
    table = race.table.rename(
        columns={"effect": "indirect_effect", "low": "indirect_effect_low", "high": "indirect_effect_high"}
    )
    return table.assign(significant=(table.indirect_effect_low > 0) | (table.indirect_effect_high < 0))


def _judged(table: pd.DataFrame, exact: pd.DataFrame) -> pd.DataFrame:
    """With the exact effects of those that were patched, the largest first, and behind them who left a race."""
    axes = [axis for axis in PLACES if axis in table]
    names = [*(f"indirect_effect{end}" for end in ("", "_low", "_high")), "significant"]
    names += [name for name in ("standing", "units") if name in exact]
    joined = table.merge(exact[[*axes, *names]], on=axes, how="left")
    joined["significant"] = joined.significant.eq(True)
    left = joined.standing.eq(LEFT) if "standing" in joined else pd.Series(False, joined.index)
    order = np.lexsort((-joined.indirect_effect, left, joined.indirect_effect.isna()))
    return joined.iloc[order].reset_index(drop=True)


def _in_full(table: pd.DataFrame) -> pd.DataFrame:
    """Without those that left a race."""
    return table[table.standing != LEFT] if "standing" in table else table


def promised_recall(table: pd.DataFrame, best: int, *, draws: int = DRAWS, level: float = LEVEL) -> Estimate:
    """Share of the true best that is among the patched candidates, by the controls' residuals; see `screen`.

    table: `attributed`, `role` and `indirect_effect`, NaN where it was not patched.
    """
    known, unknown = table[table.role != ""], table[table.role == ""]
    if unknown.empty:
        return Estimate(1.0, 1.0, 1.0)
    slope, offset = _line(known.attributed.to_numpy(), known.indirect_effect.to_numpy())
    controls = known[known.role == "control"]
    residuals = (controls.indirect_effect - offset - slope * controls.attributed).to_numpy()
    if len(residuals) < 2:
        return Estimate(np.nan, np.nan, np.nan)
    rng, free = np.random.default_rng(0), len(residuals) - 1
    deviation = residuals.std(ddof=1) * np.sqrt(free / rng.chisquare(free, size=(draws, 1)))
    centre = residuals.mean() + deviation * rng.standard_normal((draws, 1)) / np.sqrt(len(residuals))
    others = centre + deviation * rng.standard_normal((draws, len(unknown)))
    others += offset + slope * unknown.attributed.to_numpy()
    patched = np.broadcast_to(known.indirect_effect.to_numpy(), (draws, len(known)))
    first = np.argsort(-np.concatenate([patched, others], axis=1), axis=1, kind="stable")[:, :best]
    shares = (first < len(known)).mean(1)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(shares.mean()), float(low), float(high))


def guaranteed_recall(table: pd.DataFrame, best: int, *, level: float = LEVEL) -> float:
    """At least this share of the true best is among the patched candidates, with a confidence of `level`; see `screen`."""
    proposed, controls = (_in_full(table[table.role == role]).indirect_effect for role in ("proposed", "control"))
    others = int((table.role != "proposed").sum())
    above = int((controls > proposed.nlargest(best).iloc[-1]).sum())
    possible = [
        number
        for number in range(above, above + others - len(controls) + 1)
        if stats.hypergeom.cdf(above, others, number, len(controls)) >= 1 - level
    ]
    return 1 - min(best, possible[-1] - above) / best


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset of least squares; 0 and the mean where all x are equal."""
    if np.ptp(x) == 0:
        return 0.0, float(np.mean(y))
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(offset)


def _fields(spec: ScreenSpec, kind: type) -> dict[str, Any]:
    """What a screening's spec says to one of its parts."""
    return {each.name: getattr(spec, each.name) for each in fields(kind)}
