"""Results: kept on disk as they come, read back whole, and averaged with intervals.

A folder of results holds `spec.json`, what was asked, and one Parquet shard of long-form rows for each finished part. A
killed experiment goes on with the same call: parts that are there are not computed again.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

SPEC = "spec.json"
NEAR_ZERO = 1e-4  # a total effect below it is rounding: recovery is then undefined


class Shards:
    """The finished parts of one experiment, in a folder or, without one, in memory; files carry the specification's hash.

    Raises ValueError for a folder that holds another experiment, naming what differs.
    """

    def __init__(self, spec: dict, folder: str | Path | None = None):
        self.spec, self.folder = json.loads(json.dumps(spec)), None if folder is None else Path(folder)
        self.found: dict[str, pd.DataFrame] = {}
        self.hash = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:12]
        if self.folder is None:
            return
        if (self.folder / SPEC).exists():
            held = json.loads((self.folder / SPEC).read_text())
            if held != self.spec:
                differs = {
                    key: (held.get(key), self.spec.get(key))
                    for key in {*held, *self.spec}
                    if held.get(key) != self.spec.get(key)
                }
                lines = "".join(
                    f"\n  {key}: the folder has {_short(a)}, asked {_short(b)}"
                    for key, (a, b) in sorted(differs.items())
                )
                raise ValueError(
                    f"folder={str(folder)!r} holds the results of another specification; name another folder, or ask "
                    f"for the same:{lines}"
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"folder={str(folder)!r} holds files but no {SPEC}; name an empty or a new folder")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.folder / SPEC, lambda path: path.write_text(json.dumps(self.spec, indent=1) + "\n"))
        files = sorted(self.folder.glob(f"{self.hash}-*.parquet"))
        self.found = {path.stem.removeprefix(f"{self.hash}-"): pd.read_parquet(path) for path in files}

    def __contains__(self, part: str) -> bool:
        return part in self.found

    def write(self, part: str, rows: Iterable[dict]):
        """Keep a finished part; a process killed at any moment leaves whole shards only."""
        table = pd.DataFrame(rows)
        if self.folder is not None:
            _replace(self.folder / f"{self.hash}-{part}.parquet", lambda path: table.to_parquet(path, index=False))
        self.found[part] = table

    def table(self) -> pd.DataFrame:
        """All rows so far, long-form: world, metric, where it was measured, value."""
        return pd.concat([self.found[part] for part in sorted(self.found)], ignore_index=True)

    def dataset(self) -> xr.Dataset:
        """The rows as labelled arrays, one for each kind of world, over the columns that it has."""
        table = self.table()
        places = [column for column in table if column not in ("world", "value")]
        floats = [column for column in places if table[column].dtype.kind == "f"]
        whole = {
            column: "Int64" for column in floats if (table[column].dropna() % 1 == 0).all()
        }  # floats only for the missing ones
        table = table.astype(whole)
        order = {column: list(dict.fromkeys(table[column].dropna())) for column in places}
        arrays = {}
        for world, rows in table.groupby("world", sort=False):
            axes = [column for column in places if rows[column].notna().all()]
            rows = rows.drop_duplicates(axes).astype({axis: int for axis in axes if axis in whole})
            found = rows.set_index(axes)["value"].to_xarray()
            arrays[world] = found.reindex({axis: order[axis] for axis in axes})
        data = xr.Dataset(arrays).assign_attrs(spec=json.dumps(self.spec), versions=json.dumps(_versions()))
        if "site" in data.dims:
            places = [self.spec["places"].get(str(name), (name, name)) for name in data.site.values]
            data = data.assign_coords(layer=("site", [p[0] for p in places]), kind=("site", [p[1] for p in places]))
        if "prompt" in data.dims:
            prompts = [self.spec["prompts"][int(i)] for i in data.prompt.values]
            data = data.assign_coords(
                {"text" if key == "prompt" else key: ("prompt", [p[key] for p in prompts]) for key in prompts[0]}
            )
        return data


def open_results(folder: str | Path) -> xr.Dataset:
    """The results in a folder, whole or as far as they have come; raises FileNotFoundError where there are none."""
    folder = Path(folder)
    if not (folder / SPEC).exists() or not any(folder.glob("*.parquet")):
        held = (
            "it does not exist"
            if not folder.exists()
            else f"it holds {sorted(path.name for path in folder.iterdir())[:5]}"
        )
        raise FileNotFoundError(
            f"open_results({str(folder)!r}): no {SPEC} with finished parts there ({held}); name the folder= of an experiment"
        )
    return Shards(json.loads((folder / SPEC).read_text()), folder).dataset()


def _versions() -> dict[str, str]:
    return {
        name: version(name)
        for name in ("diffusion-workbench", "torch", "diffusers", "transformers", "nnsight", "open_clip_torch")
    }


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else f"{text[:100]}... ({len(text)} characters)"


def _replace(path: Path, write):
    write(path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def effects(
    trace: xr.Dataset,
    metric: str,
    *,
    over: tuple[str, ...] = ("prompt", "draw", "seed"),
    level: float = 0.95,
    resamples: int = 2000,
) -> xr.Dataset:
    """Average effects of a trace, with percentile bootstrap intervals.

    trace: `clean` (metric, prompt, seed), `corrupted` (metric, prompt, draw, seed), `restored` (metric, prompt, draw, seed,
    ...). Returns, in the metric's unit: `total_effect` = clean - corrupted; `indirect_effect` = restored - corrupted,
    signed (Meng et al. 2022, section 2.1); and `recovery`, the ratio of the two means (a mean of ratios would be ruled by
    prompts with no effect), NaN where the total effect is below 1e-4. Each comes as `NAME`, `NAME_low`, `NAME_high`;
    `significant` says whether the indirect effect's interval leaves out 0; `prompts` counts what entered.

    Prompts and seeds are resampled as crossed factors, draws of noise within their prompt. An axis that `over` leaves out
    stays; one of length 1 adds no uncertainty, so an interval over one prompt speaks of that prompt alone.

    Raises KeyError for a metric that the trace lacks.
    """
    chosen = measured_by(trace, metric)
    contrasts = {"total_effect": chosen.clean - chosen.corrupted, "indirect_effect": chosen.restored - chosen.corrupted}
    return averages(
        contrasts, "recovery", over=over, level=level, resamples=resamples, attrs=trace.attrs | {"metric": metric}
    )


def averages(
    contrasts: dict[str, xr.DataArray],
    ratio: str | None = None,
    *,
    over: tuple[str, ...] = ("prompt", "draw", "seed"),
    level: float = 0.95,
    resamples: int = 2000,
    attrs: dict,
) -> xr.Dataset:
    """Means of contrasts, intervals as `effects` says; the last says what is significant.

    ratio: name of the ratio of two contrasts, the total and that of single sites.
    """
    *total, single = contrasts
    over = tuple(axis for axis in over if axis in contrasts[single].dims)
    weights = _weights(contrasts[single], over, resamples)
    parts = dict(contrasts)
    if ratio:  # of the prompts that have the target
        parts["comparable"] = contrasts[total[0]].where(contrasts[single].notnull())
    found, drawn = {}, {}
    for name, cells in parts.items():
        found[name], drawn[name] = cells.mean(over), _weighted(cells, weights, over)
    for values in (found, drawn) if ratio else ():
        whole = values.pop("comparable")
        values[ratio] = values[single] / whole.where(abs(whole) > NEAR_ZERO)
    tail = (1 - level) / 2
    for name, values in drawn.items():
        values = values.transpose("resample", ...)
        found[f"{name}_low"], found[f"{name}_high"] = (_quantile(values, q) for q in (tail, 1 - tail))
    found["significant"] = (found[f"{single}_low"] > 0) | (found[f"{single}_high"] < 0)
    found["prompts"] = (
        contrasts[single].notnull().any([axis for axis in ("draw", "seed") if axis in over]).sum("prompt")
    )
    attrs = attrs | {"level": level, "resamples": resamples, "over": list(over), "effect": single, "ratio": ratio}
    metric = attrs["metric"].removeprefix("target_")
    return xr.Dataset(found, attrs=attrs).assign_attrs(unit=UNITS.get(metric, metric))


def resampled_means(
    cells: xr.DataArray, over: tuple[str, ...] = ("prompt", "seed"), resamples: int = 2000
) -> xr.DataArray:
    """Means of bootstrap resamples (resample, ...), drawn as in `effects`; alike for all cells of the same sizes."""
    return _weighted(cells, _weights(cells, over, resamples), over).transpose("resample", ...)


def _weights(cells: xr.DataArray, over: tuple[str, ...], resamples: int) -> xr.DataArray:
    """How often each prompt, seed and draw is drawn in each resample."""
    rng = np.random.default_rng(0)
    weight = lambda axis, *outer: xr.DataArray(
        rng.multinomial(
            cells.sizes[axis],
            [1 / cells.sizes[axis]] * cells.sizes[axis],
            size=(resamples, *(cells.sizes[o] for o in outer)),
        ),
        dims=("resample", *outer, axis),
    )
    weights = weight("prompt") if "prompt" in over else xr.DataArray(1)
    return weights * (weight("seed") if "seed" in over else 1) * (weight("draw", "prompt") if "draw" in over else 1)


def _weighted(cells: xr.DataArray, weights: xr.DataArray, over: tuple[str, ...]) -> xr.DataArray:
    count = xr.dot(cells.notnull().astype(float), weights, dim=over)
    return xr.dot(cells.fillna(0), weights, dim=over) / count.where(count > 0)


def measured_by(data: xr.Dataset, metric: str) -> xr.Dataset:
    """The scores by one metric; raises KeyError for one that was not measured."""
    if metric not in data.metric.values:
        raise KeyError(f"metric={metric!r} was not measured; the trace has {', '.join(map(str, data.metric.values))}")
    return data.sel(metric=metric, drop=True)


def strongest(found: xr.Dataset) -> pd.DataFrame:
    """Effects as a table, one row for each thing restored or patched, the largest effects first."""
    effect, ratio = found.attrs["effect"], found.attrs["ratio"]
    names = [f"{name}{end}" for name in (effect, ratio) for end in ("", "_low", "_high")]
    table = found[[*names, "significant", "prompts"]].to_dataframe().reset_index().dropna(subset=[effect])
    order = np.argsort(-table[effect].abs(), kind="stable")
    places = [axis for axis in PLACES if axis in table]
    return table.iloc[order][[*places, *names, "significant", "prompts"]].reset_index(drop=True)


def share(hits: Sequence[bool]) -> tuple[float, float, float]:
    """A share with its 95 % Wilson interval."""
    interval = stats.binomtest(int(np.sum(hits)), len(hits)).proportion_ci(method="wilson")
    return float(np.mean(hits)), interval.low, interval.high


def mean(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean with its 95 % bootstrap interval over images, each of its own prompt and seed."""
    values = np.asarray(values, float)
    if np.ptp(values) == 0:
        return values[0], values[0], values[0]
    interval = stats.bootstrap((values,), np.mean, rng=0, n_resamples=2000, method="percentile").confidence_interval
    return float(values.mean()), interval.low, interval.high


def with_interval(values, name: str) -> str:
    """ "0.42 (0.31 to 0.55)", of a table's row or of a Dataset's single numbers."""
    value, low, high = (float(values[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _quantile(values: xr.DataArray, q: float) -> xr.DataArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN where recovery is undefined: so is its interval
        return values[0].copy(data=np.nanquantile(values.values, q, axis=0))


def pareto(table: pd.DataFrame, *best: str) -> np.ndarray:
    """Which rows no other beats: (row,) of bool. best: columns of which more is better; rows with a missing value lose."""
    points = table[list(best)].to_numpy(float)
    beats = (points[:, None] >= points).all(-1) & (points[:, None] > points).any(-1)  # (by whom, whom)
    return ~beats.any(0) & ~np.isnan(points).any(-1)


PLACES = ("site", "token", "width", "inputs", "heads", "steps")  # what an effect is an effect of
UNITS = {
    "probability": "probability",
    "similarity": "cosine",
    "pixel_distance": "mean absolute difference",
    "ssim": "SSIM",
    "concept": "share of images",
    "concept_probability": "probability",
    "concept_similarity": "cosine",
    "opposite_similarity": "cosine",
}
