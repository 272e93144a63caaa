"""Statistics: against scipy's own, by hand, and by what they promise over many draws."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

import workbench as wb
from workbench.experiments import statistics
from workbench.experiments.statistics import Estimate


def test_a_share_has_wilsons_interval():
    found = statistics.share([True] * 8 + [False] * 2)
    z, p, n = stats.norm.ppf(0.975), 0.8, 10
    centre, spread = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found == pytest.approx((0.8, (centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)))
    assert isinstance(found, Estimate) and statistics.share(np.zeros(4, bool)).low == 0


def test_a_mean_is_scipys_and_constant_ones_have_no_spread():
    values = np.random.default_rng(3).normal(size=30)
    own = stats.bootstrap(
        (values,),
        np.mean,
        rng=0,
        n_resamples=2000,
        method="percentile",
        confidence_level=statistics.expanded(0.95, 30),
    ).confidence_interval
    assert statistics.mean(values) == pytest.approx((values.mean(), own.low, own.high))
    assert statistics.mean(pd.Series(values), resamples=9999) != statistics.mean(values)
    assert statistics.mean([0.25] * 5) == (0.25, 0.25, 0.25) == statistics.mean([0.25])
    with pytest.raises(ValueError, match="found no values; give at least one"):
        statistics.mean([])


def test_a_difference_of_groups_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        value, low, high = statistics.difference(rng.normal(1, 1, 30), rng.normal(0, 1, 20), resamples=300)
        covered += low <= 1 <= high
        assert low < value < high
    assert 85 <= covered <= 100


def test_resamples_are_crossed_and_draws_within_their_prompt():
    cells = xr.DataArray(np.arange(24.0).reshape(2, 3, 4), dims=("prompt", "draw", "seed"))
    weights = statistics.crossed_weights(cells, ("prompt", "draw", "seed"), 50)
    assert set(weights.dims) == {"resample", "prompt", "draw", "seed"}
    by = weights.transpose("resample", "prompt", "draw", "seed").values
    assert (by.sum((1, 2, 3)) == 2 * 3 * 4).all()
    for one in by:  # a seed drawn twice is drawn twice for every prompt and draw
        prompts, seeds = one.sum((1, 2)) / 12, one.sum((0, 1)) / 6
        assert np.allclose(one.sum(1), np.outer(prompts, seeds) * 3)
    means = statistics.resampled_means(cells, ("prompt", "draw", "seed"), resamples=50)
    assert np.allclose(means, (cells.values * by).sum((1, 2, 3)) / 24)
    both = statistics.resampled_means(cells.mean("draw"))
    assert both.dims[0] == "resample" and both.sizes["resample"] == 2000


def test_missing_cells_are_left_out():
    cells = xr.DataArray([[1.0, np.nan], [3.0, 5.0]], dims=("prompt", "seed"))
    means = statistics.resampled_means(cells, ("prompt",), resamples=200)
    assert set(np.unique(means.isel(seed=0))) == {1.0, 2.0, 3.0}
    assert set(np.unique(means.isel(seed=1).dropna("resample"))) == {5.0} and means.isel(seed=1).isnull().any()


def test_ends_are_percentiles_of_what_there_is():
    drawn = np.stack([np.arange(101.0), np.r_[[np.nan] * 20, np.arange(81.0)], [np.nan] * 101], 1)
    low, high = statistics.ends(drawn, 0.9)
    assert low == pytest.approx([5, 4, np.nan], nan_ok=True) and high == pytest.approx([95, 76, np.nan], nan_ok=True)
    assert np.isnan(statistics.ends(drawn, missing=0.05)[0]).tolist() == [False, True, True]


def test_correlation_of_ranks():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12), rng.normal(size=12)
    assert statistics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert statistics.correlation(a, a**3) == pytest.approx((1, 1, 1))
    value, low, high = statistics.correlation(a, b)
    assert -1 <= low < value < high <= 1
    assert all(type(each) is float for each in statistics.correlation(a, b))


def test_halves_of_the_prompts_agree_where_there_is_something_to_agree_on():
    rng = np.random.default_rng(0)
    signal = np.linspace(0, 1, 16) + rng.normal(0, 0.05, (1, 12, 16))
    strong, none = statistics.halves_agree(np.concatenate([signal, rng.normal(size=(1, 12, 16))]))
    assert strong.value > 0.9 and strong.low > 0.8 and abs(none.value) < 0.4
    assert np.isnan(statistics.halves_agree(signal[:, :1])[0]).all()


def test_chance_of_the_best_is_uniform_without_effect_and_small_with_one():
    rng = np.random.default_rng(0)
    null = [statistics.chance_of_best(rng.normal(size=(6, 8)), permutations=200) for _ in range(200)]
    assert 0.05 < np.mean(np.array(null) <= 0.1) < 0.16
    scores = rng.normal(0, 0.1, (6, 8))
    scores[:, 5] += 0.5
    assert statistics.chance_of_best(scores, permutations=2000) < 0.01


def test_pareto_by_hand():
    points = pd.DataFrame(dict(a=[0.0, 1, 2, 1, 2, np.nan], b=[3.0, 2, 0, 1, 0, 9]))
    assert statistics.pareto(points, "a", "b").tolist() == [True, True, True, False, True, False]


def test_the_best_of_many_is_a_false_alarm_as_seldom_as_it_says():
    """Nulls of 12 prompts and 20 sites, whose noise is in common, of different sizes, or not normal: alarms at the nominal rate."""
    rng = np.random.default_rng(5)
    nulls = {
        "alike": lambda: rng.normal(size=(12, 20)),
        "in common": lambda: rng.normal(size=(12, 1)) + 0.3 * rng.normal(size=(12, 20)),
        "of different sizes": lambda: rng.normal(size=(12, 20)) * np.geomspace(0.01, 1, 20),
        "rare": lambda: rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(12, 20)),
        "few prompts": lambda: rng.normal(size=(7, 20)),
    }
    for name, null in nulls.items():
        best = np.array([statistics.chance_of_means(null(), flips=400).min() for _ in range(400)])
        least = 0.0 if name == "rare" else 0.02  # ties make it careful
        assert least <= (best <= 0.05).mean() <= 0.085, (name, (best <= 0.05).mean())
        assert (best <= 0.2).mean() <= 0.26, name
    # by contrast: some site's interval leaves out 0 in more than half of the nulls
    pointwise = [stats.ttest_1samp(rng.normal(size=(12, 20)), 0).pvalue.min() for _ in range(200)]
    assert (np.array(pointwise) < 0.05).mean() > 0.5


def test_a_real_effect_is_found_among_many_sites_and_the_others_are_not():
    rng = np.random.default_rng(6)
    cells = rng.normal(size=(12, 20))
    cells[:, 7] += 2
    found = statistics.chance_of_means(cells)
    assert found[7] < 0.01 and (np.delete(found, 7) > 0.05).all()


def test_chance_of_means_by_hand():
    # of the 8 flips two have a largest absolute mean of 1 (all signs alike), two of 2/3, the others of 1/3
    cells = np.array([[1.0, 1.0, np.nan], [1.0, 1.0, np.nan], [1.0, 0.0, np.nan]])
    found = statistics.chance_of_means(cells)
    assert found[:2].tolist() == [2 / 8, 4 / 8] and np.isnan(found[2])
    assert statistics.chance_of_means(np.ones((1, 3))).tolist() == [1, 1, 1]  # one prompt shows nothing


@pytest.mark.parametrize("count", [6, 12, 24])
@pytest.mark.parametrize("rate", [1.0, 0.99, 0.97, 0.95, 0.9])
def test_intervals_of_probabilities_at_a_bound_cover_the_truth(rate, count):
    """Prompts succeed (a probability near 1) or fail (near 0): of 300 small studies, the interval contains the mean of all."""
    rng = np.random.default_rng(int(1000 * rate) + count)

    def study(size):
        return np.where(rng.random(size) < rate, rng.beta(200, 1, size), rng.beta(1, 20, size))

    truth = study(10**6).mean()
    found = [statistics.mean(study(count), bounds=(0, 1)) for _ in range(200)]
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.9
    if rate in (0.99, 0.97):  # what the bootstrap alone would do
        plain = [statistics.mean(study(count), resamples=300) for _ in range(100)]
        assert np.mean([each.low <= truth <= each.high for each in plain]) < 0.7


def test_expanded_percentiles_are_as_wide_as_students():
    """By hand: the normal quantile times the bootstrap's own spread, s sqrt((n - 1) / n), is t times s."""
    for count in (3, 6, 24):
        level = statistics.expanded(0.95, count)
        wide = stats.norm.ppf((1 + level) / 2) * np.sqrt((count - 1) / count)
        assert wide == pytest.approx(stats.t.ppf(0.975, count - 1))
    assert statistics.expanded(0.95, 1) == 0.95 and statistics.expanded(0.9, 10**6) == pytest.approx(0.9, abs=1e-4)


def test_with_half_a_unit_unseen_shares_lie_between_jeffreys_and_clopper_and_pearson():
    for hits in (0, 1, 6, 11, 12):
        value, low, high = statistics.mean([1.0] * hits + [0.0] * (12 - hits), bounds=(0, 1), resamples=50000)
        jeffreys = stats.beta.ppf([0.025, 0.975], hits + 0.5, 12 - hits + 0.5)
        exact = stats.binomtest(hits, 12).proportion_ci(method="exact")
        if hits < 12:
            assert jeffreys[1] - 0.005 <= high <= exact.high
        if hits:
            assert exact.low <= low <= jeffreys[0] + 0.005
        if hits in (0, 12):  # what no unit showed has a share of the beta distribution's tail
            unseen = stats.beta.ppf(0.975, 0.5, 12)
            assert (value, low, high) == pytest.approx((0, 0, unseen) if hits == 0 else (1, 1 - unseen, 1), abs=0.005)


def test_the_unit_that_was_not_seen_is_where_it_is_told_and_missing_ones_are_nowhere():
    units = np.array([[0.2, np.nan, np.nan], [0.2, 0.4, np.nan]])
    means = statistics.unseen_means(units, np.array([1.0, 1.0, 1.0]), 4000)
    assert np.isnan(means[:, 2]).all() and (means[:, :2] > np.array([0.2, 0.4])).all() and (means[:, :2] <= 1).all()
    weights = (means[:, :2] - [0.2, 0.4]) / [0.8, 0.6]  # of the unseen: half of 2.5 units, half of 1.5
    assert weights.mean(0) == pytest.approx([0.5 / 2.5, 0.5 / 1.5], abs=0.01)


def test_a_mean_without_places_has_a_p_value_too():
    from workbench.experiments.results import averages

    cells = xr.DataArray(np.ones((6, 1)), dims=("prompt", "seed"), coords={"prompt": range(6), "seed": [0]})
    assert float(averages({"value": cells}, attrs={"metric": "ssim"}).p) == 2 / 2**6


def test_a_single_picture_has_no_interval_and_is_not_significant():
    """Of a metric without bounds; a probability's is told by where one that was not seen may lie."""
    axes = {"metric": ["similarity", "probability"], "prompt": [0, 1], "draw": [0], "seed": [0], "site": ["a", "b"]}
    scores = np.zeros((2, 2, 1, 1, 2))
    scores[:, :, 0, 0] = [[0.3, 0.4], [0.5, np.nan]]
    restored = xr.DataArray(scores, axes, list(axes))
    corrupted = restored.isel(site=0, drop=True) * 0 + 0.1
    trace = xr.Dataset({"restored": restored, "corrupted": corrupted, "clean": corrupted.isel(draw=0, drop=True) + 0.5})
    found = wb.effects(trace, "similarity")
    assert found.indirect_effect_low.notnull().values.tolist() == [True, False]  # b was measured once
    assert not found.significant.sel(site="b") and found.total_effect_low.notnull()
    one = wb.effects(trace.isel(prompt=[0]), "similarity")
    assert one.indirect_effect.values == pytest.approx([0.2, 0.3]) and not one.significant.any()
    for name in ("indirect_effect", "total_effect", "recovery"):
        assert one[f"{name}_low"].isnull().all() and one[f"{name}_high"].isnull().all()
    assert wb.effects(trace.isel(prompt=[0]), "probability").indirect_effect_low.notnull().all()
