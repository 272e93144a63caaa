"""Results: rows as labelled arrays, read back whole, and averaged with intervals."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.arguments import checked, store
from workbench.experiments.shards import SPEC, Shards, opened
from workbench.experiments.statistics import (
    LEVEL,
    RESAMPLES,
    chance_of_means,
    crossed_weights,
    ends,
    expanded,
    unseen_means,
    weighted_means,
)
from workbench.experiments.store import Store, as_store
from workbench.families.base import Site
from workbench.inputs import shown, text

NEAR_ZERO = 1e-4  # a total effect below it is rounding: recovery is then undefined
OVER = ("prompt", "seed", "draw")  # what flips its sign in a test, the first that is averaged over
PLACES = (
    "site",
    "token",
    "width",
    "inputs",
    "heads",
    "head",
    "channel",
    "steps",
    "strength",
)  # what an effect is an effect of
FACTS = ("layer", "kind", "part")  # of sites, beside their axis
UNITS = {
    "probability": "probability",
    "similarity": "cosine",
    "pixel_distance": "mean absolute difference",
    "ssim": "SSIM",
    "log_odds": "log-odds (nats)",
    "noise": "share of what the corruption changes",
    "concept": "share of images",
    "control": "share of images",
    "concept_probability": "probability",
    "concept_similarity": "cosine",
    "opposite_similarity": "cosine",
}


BOUNDS = {
    "probability": (0.0, 1.0),
    "similarity": (-1.0, 1.0),
    "pixel_distance": (0.0, 1.0),
    "ssim": (-1.0, 1.0),
    "concept": (0.0, 1.0),
    "concept_probability": (0.0, 1.0),
    "concept_similarity": (-1.0, 1.0),
    "opposite_similarity": (-1.0, 1.0),
}  # of single pictures


def site_facts(site: Site) -> dict[str, str]:
    """What results say of a site."""
    return dict(zip(FACTS, (site.place, site.kind, site.part)))


def scores(*worlds: str) -> Any:
    """A check for scores by kinds of worlds, as experiments return them."""

    def check(value: Any, argument: str) -> xr.Dataset:
        if not isinstance(value, xr.Dataset) or not set(worlds) <= set(value.data_vars):
            raise ValueError(
                f"{argument}={shown(value)}: give an experiment's scores, a Dataset with {', '.join(worlds)}"
            )
        return value

    return check


def traced(value: Any, argument: str) -> xr.Dataset:
    """A check for scores of a causal trace, or of an attribution."""
    if not isinstance(value, xr.Dataset) or not {"restored", "attributed"} & set(value.data_vars):
        raise ValueError(f"{argument}={shown(value)}: give what wb.causal_trace or wb.attribute return")
    return scores("clean", "corrupted")(value, argument)


def effects_of(value: Any, argument: str) -> xr.Dataset:
    """A check for what `effects` returns."""
    if not isinstance(value, xr.Dataset) or not {"effect", "ratio"} <= set(value.attrs):
        raise ValueError(
            f"{argument}={shown(value)}: give effects, as wb.effects(trace, metric) or .effects(...) return them"
        )
    return value


def drawable(value: Any, argument: str) -> xr.Dataset:
    """A check for effects, whole or a selection of them."""
    if not isinstance(value, xr.Dataset) or "significant" not in value:
        raise ValueError(
            f"{argument}={shown(value)}: give effects, as wb.effects(trace, metric) or .effects(...) return them"
        )
    return value


@checked(folder=store)
def open_results(folder: str | Path | Store) -> xr.Dataset:
    """The results in a folder, whole or as far as they have come.

    Raises FileNotFoundError where there are none, ValueError for those of an experiment whose rows are no scores by world
    (`open_table` reads any).

    >>> spec = wb.AttentionSpec(seeds=(0,))
    >>> found = wb.attention_contribution(model, prompts, spec, folder="runs/attention")
    >>> wb.open_results("runs/attention").equals(found)
    True
    """
    return dataset(_shards("open_results", folder))


@checked(folder=store)
def open_table(folder: str | Path | Store) -> pd.DataFrame:
    """The rows in a folder, as far as they have come; raises FileNotFoundError where there are none."""
    return _shards("open_table", folder).table()


def _shards(asked: str, folder: str | Path | Store) -> Shards:
    store = as_store(folder)
    shards = opened(store)
    if shards is None or not len(shards):
        names = store.names()[:5]
        there = f"it holds {names}" if names else "it does not exist or holds no files"
        raise FileNotFoundError(
            f"{asked}({str(store)!r}): no {SPEC} with finished parts there ({there}); name the folder= of an experiment"
        )
    return shards


def dataset(shards: Shards) -> xr.Dataset:
    """Rows as labelled arrays, one for each kind of world, over the columns that it has.

    Settings stand beside their axes as coordinates, sites with their `layer`, `kind` and `part`, prompts with their texts. In
    `attrs`, as JSON: `spec`, all that was asked, `versions`, of what computed the rows, and `parts`, those that are finished.
    """
    table, along = shards.table(), shards.spec.get("coordinates", {})
    if missing := [column for column in ("world", "metric", "value") if column not in table]:
        raise ValueError(
            f"{shards.store}: its rows have no columns {missing}, so they are no scores by world; read them with "
            "workbench.experiments.results.open_table"
        )
    places = [column for column in table if column not in ("world", "value", *along)]
    whole = [column for column in places if _whole(table[column])]
    table = table.astype(dict.fromkeys(whole, "Int64"))  # floats only for the missing ones
    order = {column: list(dict.fromkeys(table[column].dropna())) for column in places}
    arrays = {}
    for world, rows in table.groupby("world", sort=False):
        axes = [column for column in places if rows[column].notna().all()]
        arrays[world] = _array(rows, "value", axes, order, whole)
    data = xr.Dataset(arrays)
    for column, axes in along.items():
        if column in table:
            settings = _array(table.dropna(subset=[column, *axes]), column, axes, order, whole)
            data = data.assign_coords({column: settings})
    about = {"spec": shards.spec, "versions": shards.versions, "parts": shards.parts}
    data = data.assign_attrs({name: json.dumps(value) for name, value in about.items()})
    return _described(data, shards.spec)


def _whole(column: pd.Series) -> bool:
    return column.dtype.kind == "f" and bool((column.dropna() % 1 == 0).all())


def _array(
    rows: pd.DataFrame, name: str, axes: Sequence[str], order: Mapping[str, list[Any]], whole: Sequence[str]
) -> xr.DataArray:
    """One column over some of the others, (axes...), each in the order of its first appearance."""
    rows = rows.drop_duplicates(list(axes)).astype({axis: int for axis in axes if axis in whole})
    values = rows.set_index(list(axes))[name].to_xarray()
    return values.reindex({axis: order[axis] for axis in axes})


def _described(data: xr.Dataset, spec: Mapping[str, Any]) -> xr.Dataset:
    """With what is known of each site and prompt beside its axis."""
    if "site" in data.dims:
        known = spec.get("site_facts", {})
        facts = [known.get(site, {"layer": site, "kind": site, "part": ""}) for site in data.site.values]
        data = data.assign_coords({name: ("site", [each[name] for each in facts]) for name in FACTS})
    if "prompt" in data.dims and spec.get("prompts"):
        prompts = [spec["prompts"][int(i)] for i in data.prompt.values]
        texts = {("text" if key == "prompt" else key): [each[key] for each in prompts] for key in prompts[0]}
        data = data.assign_coords({name: ("prompt", values) for name, values in texts.items()})
    return data


def measured_by(data: xr.Dataset, metric: str) -> xr.Dataset:
    """The scores by one metric; raises KeyError for one that was not measured, ValueError for scores of a race."""
    if json.loads(data.attrs.get("spec", "{}")).get("race"):
        raise ValueError(
            "these are the scores of a race, which drew a candidate the more often the better it did: averages of them have no ordinary "
            "intervals; read the race's own table, or run without race="
        )
    if metric not in data.metric.values:
        raise KeyError(f"metric={metric!r} was not measured; the trace has {', '.join(map(str, data.metric.values))}")
    return data.sel(metric=metric, drop=True)


@checked(trace=traced)
def effects(
    trace: xr.Dataset,
    metric: str,
    *,
    over: tuple[str, ...] = ("prompt", "draw", "seed"),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> xr.Dataset:
    """Average effects of a trace or an attribution, with intervals.

    trace: `clean` (metric, prompt, seed), `corrupted` (metric, prompt, draw, seed), `restored` (metric, prompt, draw, seed,
    ...), or, of `attribute`, `attributed`, an indirect effect to first order. Returns, in the metric's unit: `total_effect`
    = clean - corrupted; `indirect_effect` = restored - corrupted, signed (Meng et al. 2022, section 2.1); and `recovery`,
    the ratio of the two means (a mean of ratios would be ruled by prompts with no effect), NaN where the total effect is
    below 1e-4. Each comes as `NAME`, `NAME_low`, `NAME_high`; `significant` says whether the indirect effect's interval
    leaves out 0; `prompts` counts what entered. `p` knows that an effect is one of many: the largest effect of all sites (tokens,
    windows, heads) is compared with the largest where signs of whole prompts are flipped, so that `p` of the best site is right
    although it was picked, while one in twenty sites of no effect may be `significant`; over n prompts it is at least 2 / 2^n.

    Intervals are over prompts, of one prompt over its seeds. Those of probabilities and shares of images are a Bayesian bootstrap of the
    prompts and of half a one that was not seen, whose restored image shows nothing, or everything; those of other metrics resample prompts
    and seeds as crossed factors, draws of noise within their prompt, at the level that so few prompts ask for
    (`experiments.statistics`; how often they hold: figures/coverage), and are NaN of a single picture. An axis that `over` leaves out
    stays; an interval over one prompt speaks of that prompt alone.

    Raises KeyError for a metric that the trace lacks.

    >>> effects = wb.effects(trace, "probability")
    >>> dict(effects.indirect_effect.sizes), effects.attrs["unit"]
    ({'site': 16, 'token': 1, 'steps': 1}, 'probability')
    >>> wb.effects(trace, "probability", over=("seed", "draw")).indirect_effect.dims
    ('prompt', 'site', 'token', 'steps')
    """
    chosen = measured_by(trace, metric)
    single = chosen.attributed if "attributed" in chosen else chosen.restored - chosen.corrupted
    contrasts = {"total_effect": chosen.clean - chosen.corrupted, "indirect_effect": single}
    attrs = trace.attrs | {"metric": metric}
    against = dict.fromkeys(contrasts, chosen.corrupted)
    return averages(contrasts, "recovery", against=against, over=over, level=level, resamples=resamples, attrs=attrs)


def bounded(metric: str) -> bool:
    """Whether a metric's values lie between 0 and 1: a probability or a share."""
    return UNITS.get(metric.removeprefix("target_")) in ("probability", "share of images")


def averages(
    contrasts: Mapping[str, xr.DataArray],
    ratio: str = "",
    *,
    against: Mapping[str, xr.DataArray] = {},
    falls: bool = False,
    over: tuple[str, ...] = ("prompt", "draw", "seed"),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Means of contrasts, intervals as `effects` says; the last says what is significant.

    ratio: name of the ratio of two contrasts, the total and that of single sites. against: what contrasts are taken from, nothing where
    left out; falls: the contrasts are what falls from there, not what rises. Both say, of values between 0 and 1, where one that was not
    seen may lie. Raises ValueError where `over` names none of the axes.
    """
    *total, single = contrasts
    given, over = over, tuple(axis for axis in over if axis in contrasts[single].dims)
    if not over:
        raise ValueError(f"over={given}: the scores have the axes {contrasts[single].dims}; name what to average over")
    parts = dict(contrasts)
    if ratio:  # of the prompts that have the target
        parts["comparable"] = contrasts[total[0]].where(contrasts[single].notnull())
    means = {name: cells.mean(over) for name, cells in parts.items()}
    if bounded(attrs["metric"]):
        drawn, at = _with_unseen(parts, means, against, falls, over, resamples), level
    else:
        weights = crossed_weights(contrasts[single], over, resamples)
        drawn = [{name: weighted_means(cells, weights, over) for name, cells in parts.items()}]
        unit, units = _units(contrasts[single], over)
        at = expanded(level, units.sizes[unit])
    for values in (means, *drawn) if ratio else ():
        whole = values.pop("comparable")
        values[ratio] = values[single] / whole.where(abs(whole) > NEAR_ZERO)
    found = dict(means)
    for name, mean in means.items():
        cells = contrasts.get(name, contrasts[single])
        unit, units = _units(cells, [axis for axis in over if axis in cells.dims])
        several = units.notnull().sum(unit) > 1
        resampled, *upper = (each[name].transpose("resample", *mean.dims).values for each in drawn)
        for end, each in zip(("low", "high"), ends(resampled, at, upper=upper[0] if upper else None)):
            found[f"{name}_{end}"] = mean.copy(data=each)
            if not bounded(attrs["metric"]):  # one alone does not say how far apart two would be
                found[f"{name}_{end}"] = found[f"{name}_{end}"].where(several)
    found["p"] = _chance(contrasts[single], over)
    found["significant"] = (found[f"{single}_low"] > 0) | (found[f"{single}_high"] < 0)
    inner = [axis for axis in ("draw", "seed") if axis in over]
    found["prompts"] = contrasts[single].notnull().any(inner).sum("prompt")
    about = {"level": level, "resamples": resamples, "over": " ".join(over), "effect": single, "ratio": ratio}
    metric = attrs["metric"].removeprefix("target_")
    return xr.Dataset(found, attrs={**attrs, **about, "unit": UNITS.get(metric, metric)})


def _with_unseen(
    parts: Mapping[str, xr.DataArray],
    means: Mapping[str, xr.DataArray],
    against: Mapping[str, xr.DataArray],
    falls: bool,
    over: Sequence[str],
    resamples: int,
) -> list[dict[str, xr.DataArray]]:
    """Resampled means of contrasts of values between 0 and 1, (resample, ...), with a unit that was not seen: at its least, at its most.

    What a contrast is taken from is in that unit as it is on average, and so is the total that a ratio compares with.
    """
    drawn: list[dict[str, xr.DataArray]] = [{}, {}]
    for name, cells in parts.items():
        mean, base = means[name], xr.DataArray(0.0)
        if name in against:
            base = against[name].mean([axis for axis in over if axis in against[name].dims])
        least, most = (base - 1, base) if falls else (-base, 1 - base)
        if name == "comparable":
            least = most = mean
        unit, units = _units(cells, [axis for axis in over if axis in cells.dims])
        flat = units.transpose(unit, *mean.dims).values.reshape(units.sizes[unit], -1)
        least, most = mean.where(mean < least, least), mean.where(mean > most, most)  # of first order they lie anywhere
        for values, unseen in zip(drawn, (least, most)):
            each = unseen_means(flat, unseen.transpose(*mean.dims).values.ravel(), resamples)
            values[name] = mean.expand_dims(resample=resamples).copy(data=each.reshape(resamples, *mean.shape))
    return drawn


def _units(cells: xr.DataArray, over: Sequence[str]) -> tuple[str, xr.DataArray]:
    """What is independent among what is averaged over: prompts; seeds, where prompts stay apart or there is one. And means of them."""
    several = [axis for axis in OVER if axis in over and cells.sizes[axis] > 1]
    unit = (several or [axis for axis in OVER if axis in over] or list(over))[0]
    return unit, cells.mean([axis for axis in over if axis != unit])


def _chance(cells: xr.DataArray, over: Sequence[str]) -> xr.DataArray:
    """Family-wise p-values of means, of each place among all places."""
    unit, units = _units(cells, over)
    places = [axis for axis in units.dims if axis in PLACES]
    apart = [axis for axis in units.dims if axis not in (unit, *places)]
    units = units.transpose(*apart, unit, *places)
    shape = units.shape[: len(apart)]
    flat = units.values.reshape(-1, units.sizes[unit], int(np.prod(units.shape[len(apart) + 1 :])))
    values = np.stack([chance_of_means(each) for each in flat])
    return units.isel({unit: 0}, drop=True).copy(data=values.reshape((*shape, *units.shape[len(apart) + 1 :])))


@checked(found=effects_of)
def strongest(found: xr.Dataset) -> pd.DataFrame:
    """Effects as a table, one row for each thing restored or patched, the largest effects first.

    >>> table = wb.strongest(wb.effects(trace, "probability"))
    >>> len(table), list(table)[:5]
    (16, ['site', 'token', 'steps', 'indirect_effect', 'indirect_effect_low'])
    """
    effect, ratio = found.attrs["effect"], found.attrs["ratio"]
    names = [f"{name}{end}" for name in filter(None, (effect, ratio)) for end in ("", "_low", "_high")]
    table = found[[*names, "significant", "p", "prompts"]].to_dataframe().reset_index().dropna(subset=[effect])
    order = np.argsort(-table[effect].abs(), kind="stable")
    places = [axis for axis in PLACES if axis in table]
    return table.iloc[order][[*places, *names, "significant", "p", "prompts"]].reset_index(drop=True)


def from_table(
    table: pd.DataFrame, sites: Iterable[Site], effect: str, unit: str, *, level: float = LEVEL
) -> xr.Dataset:
    """Effects (site, token) of a table as `strongest` gives it, in execution order; (site,) where it says no tokens, or one.

    sites: the model's.
    """
    known = {site.name: site for site in sites}
    order = [name for name in known if name in set(table.site)]
    columns = [effect, f"{effect}_low", f"{effect}_high", "significant", "prompts"]
    tokens = sorted(table.token.unique(), key=_position) if "token" in table else []
    if len(tokens) > 1:
        found = table.set_index(["site", "token"])[columns].to_xarray().sel(site=order, token=tokens)
    else:
        found = table.set_index("site").loc[order, columns].to_xarray()
    facts = [site_facts(known[name]) for name in order]
    coords = {name: ("site", [each[name] for each in facts]) for name in FACTS}
    total = {"total_effect": table.total_effect.iloc[0]} if "total_effect" in table else {}
    return found.assign(total).assign_coords(coords).assign_attrs(effect=effect, unit=unit, level=level)


def _position(token: str) -> int:
    """The number of a token "3:zebra"; named ones, as "eos", stay as they come."""
    number = token.split(":")[0]
    return int(number) if number.isdecimal() else 0


@checked(name=text)
def with_interval(values: Any, name: str) -> str:
    """ "0.42 (0.31 to 0.55)", of a table's row or of a Dataset's single numbers.

    >>> wb.with_interval({"recovery": 0.42, "recovery_low": 0.31, "recovery_high": 0.55}, "recovery")
    '0.42 (0.31 to 0.55)'
    """
    try:
        value, low, high = (float(values[f"{name}{end}"]) for end in ("", "_low", "_high"))
    except (KeyError, TypeError, ValueError, IndexError):
        raise ValueError(
            f"with_interval(name={name!r}): values={shown(values)} have no single numbers {name}, {name}_low and {name}_high; give a "
            "row of a table, or effects of one site: effects.sel(site=...)"
        ) from None
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
