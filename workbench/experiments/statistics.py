"""Intervals, shares, correlations and chance: every resampling there is, and nothing that knows what was measured.

Resamples are drawn from a generator seeded with 0, so that the same values have the same interval. Intervals are
percentile bootstraps (Efron & Tibshirani 1993, chapter 13) but for shares, which are Wilson's, and for means of values that all lie at
a bound, as probabilities do at 0 or 1 (`unseen_ends`).
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95
AT_BOUND = 0.05  # of a bound: where all values are so near, resampling them does not know what it has not seen


class Estimate(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def share(hits: Sequence[bool] | npt.NDArray[np.bool_] | pd.Series) -> Estimate:
    """A share with its 95 % Wilson interval."""
    interval = stats.binomtest(int(np.sum(hits)), len(hits)).proportion_ci(method="wilson")
    return Estimate(float(np.mean(hits)), float(interval.low), float(interval.high))


def mean(values: npt.ArrayLike, *, resamples: int = RESAMPLES, bounds: tuple[float, float] | None = None) -> Estimate:
    """A mean with its 95 % interval over (image,), each of its own prompt and seed. bounds: of what may be measured, (0, 1) of
    probabilities, whose interval is wider where all values lie at a bound (`unseen_ends`). Raises ValueError for no values."""
    values = np.asarray(values, float)
    if not values.size:
        raise ValueError("mean: found no values; give at least one")
    low = high = float(values[0])
    if np.ptp(values) > 0:
        own = stats.bootstrap((values,), np.mean, rng=0, n_resamples=resamples, method="percentile").confidence_interval
        low, high = float(own.low), float(own.high)
    if bounds is not None:
        (least,), (most,) = unseen_ends(values[:, None], bounds)
        low, high = float(np.fmin(low, least)), float(np.fmax(high, most))
    return Estimate(float(values.mean()), low, high)


def unseen_ends(units: np.ndarray, bounds: tuple[float, float], level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals of means, (column,), of (unit, column) whose values all lie within 0.05 of one bound; NaN of others.

    Of n values that are all alike, at most a share u = 1 - ((1 - level) / 2)^(1 / n) of the population is otherwise (Clopper & Pearson
    1934, of none in n); it may lie anywhere between the bounds. A bootstrap of such values has hardly any width: where 3 % of prompts
    fail, 12 show no failure in two of three studies, whose bootstrap interval then misses the mean.
    """
    seen = ~np.isnan(units)
    count, (least, most) = seen.sum(0), bounds
    near = (~seen | (units <= least + AT_BOUND)).all(0) | (~seen | (units >= most - AT_BOUND)).all(0)
    value = np.where(seen, units, 0.0).sum(0) / np.maximum(count, 1)
    unseen = 1 - ((1 - level) / 2) ** (1 / np.maximum(count, 1))
    fits = near & (count > 0)
    return (
        np.where(fits, value - unseen * (value - least), np.nan),
        np.where(fits, value + unseen * (most - value), np.nan),
    )


def difference(a: npt.ArrayLike, b: npt.ArrayLike, *, resamples: int = RESAMPLES) -> Estimate:
    """The mean of a less that of b, two groups that are not paired, with its 95 % interval. Of pairs, take `mean(a - b)`."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    found = stats.bootstrap((a, b), _apart, rng=0, n_resamples=resamples, method="percentile").confidence_interval
    return Estimate(float(a.mean() - b.mean()), float(found.low), float(found.high))


def _apart(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(a, axis) - np.mean(b, axis)


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Rank correlation of two lists of as many values."""
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def correlation(a: npt.ArrayLike, b: npt.ArrayLike, *, resamples: int = RESAMPLES) -> Estimate:
    """Rank correlation with its 95 % interval over pairs; resamples in which all of a or all of b are equal are left out."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(a), size=len(a)) for _ in range(resamples)]
    drawn = [spearman(a[draw], b[draw]) for draw in draws if np.ptp(a[draw]) and np.ptp(b[draw])]
    return Estimate(spearman(a, b), *map(float, ends(np.array(drawn))))


def halves_agree(values: np.ndarray, *, splits: int = 200, level: float = LEVEL) -> list[Estimate]:
    """Of each localizer the rank correlation between the means of two halves of the prompts: (localizer, prompt, layer).

    It limits what agreement with anything else can be. Prompts are split at random; the interval is over the splits, NaN for
    a single prompt.
    """
    rng, found = np.random.default_rng(0), []
    for own in values:
        drawn = []
        for _ in range(splits):
            one, other = np.array_split(own[rng.permutation(len(own))], 2)
            drawn.append(spearman(one.mean(0), other.mean(0)) if len(other) else np.nan)
        found.append(Estimate(float(np.mean(drawn)), *map(float, np.quantile(drawn, _tails(level)))))
    return found


def chance_of_best(scores: np.ndarray, *, permutations: int) -> float:
    """Permutation p-value of the best column's mean: scores (prompt, column), shuffled within each prompt.

    The largest mean over prompts is compared with the largest of each shuffling, so that having picked the best of many is
    accounted for.
    """
    rng = np.random.default_rng(0)
    largest = np.array([rng.permuted(scores, axis=1).mean(0).max() for _ in range(permutations)])
    return float((1 + (largest >= scores.mean(0).max() - 1e-12).sum()) / (1 + permutations))


def chance_of_means(cells: np.ndarray, *, flips: int = RESAMPLES) -> np.ndarray:
    """P-values of means over units, (column,), that know of how many columns each is one: cells (unit, column), NaN for missing ones.

    Under the null hypothesis a unit's values are as likely with the other sign, those of all columns together, whatever they have in
    common. A column's p-value is the share of sign flips whose largest absolute mean, of all columns, is at least its own (Westfall &
    Young 1993, maxT): that of the best column is right although it was picked. All flips are taken where there are at most `flips`
    of them, so that few units have no small p-value (of n at least 2 / 2^n); else so many random ones, and the one that was seen.
    """
    present = ~np.isnan(cells)
    cells, count, units = np.where(present, cells, 0.0), present.sum(0), len(cells)
    known = count > 0
    if 2**units <= flips:
        signs = 1 - 2 * (np.arange(2**units)[:, None] >> np.arange(units) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], size=(flips, units))
        signs[0] = 1
    largest = np.abs(signs @ cells[:, known] / count[known]).max(1, initial=0.0)
    seen = np.abs(cells.sum(0) / np.maximum(count, 1))
    return np.where(known, (largest[:, None] >= seen - 1e-12).mean(0), np.nan)


def resampled_means(
    cells: xr.DataArray, over: tuple[str, ...] = ("prompt", "seed"), resamples: int = RESAMPLES
) -> xr.DataArray:
    """Means of bootstrap resamples: (resample, ...) of cells (prompt, [draw,] seed, ...), missing ones left out.

    Prompts and seeds are drawn as crossed factors, draws of noise within their prompt; alike for all cells of the same sizes.
    """
    return weighted_means(cells, crossed_weights(cells, over, resamples), over)


def crossed_weights(cells: xr.DataArray, over: tuple[str, ...], resamples: int) -> xr.DataArray:
    """How often each prompt, seed and draw is drawn in each resample: (resample, ...)."""
    rng, weights = np.random.default_rng(0), xr.DataArray(1)
    for axis, outer in (("prompt", ()), ("seed", ()), ("draw", ("prompt",))):
        if axis in over:
            size, count = (resamples, *(cells.sizes[name] for name in outer)), cells.sizes[axis]
            drawn = rng.multinomial(count, [1 / count] * count, size=size)
            weights = weights * xr.DataArray(drawn, dims=("resample", *outer, axis))
    return weights


def weighted_means(cells: xr.DataArray, weights: xr.DataArray, over: tuple[str, ...]) -> xr.DataArray:
    """Means of each resample, (resample, ...), missing cells left out."""
    count = xr.dot(cells.notnull().astype(float), weights, dim=over)
    means = xr.dot(cells.fillna(0), weights, dim=over) / count.where(count > 0)
    return means.transpose("resample", ...) if "resample" in means.dims else means


def ends(drawn: np.ndarray, level: float = LEVEL, *, missing: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the interval that (resample, ...) give, those that are NaN left out.

    missing: the largest share of NaN; where there is more, the ends are NaN too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN where a ratio is undefined: so is its interval
        low, high = np.nanquantile(drawn, _tails(level), axis=0)
    enough = np.isnan(drawn).mean(0) <= missing
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def pareto(table: pd.DataFrame, *best: str) -> np.ndarray:
    """Which rows no other beats: (row,) of bool. best: columns of which more is better; rows with a missing value lose."""
    points = table[list(best)].to_numpy(float)
    beats = (points[:, None] >= points).all(-1) & (points[:, None] > points).any(-1)  # (by whom, whom)
    return ~beats.any(0) & ~np.isnan(points).any(-1)


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2
