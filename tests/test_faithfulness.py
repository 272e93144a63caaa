"""Faithfulness: the ends are what they must be, the areas those of known curves, and a right ranking beats its reverse."""

import numpy as np
import pytest
import xarray as xr

import workbench as wb

SPEC = wb.FaithfulnessSpec(seeds=(0,), num_inference_steps=2, draws=1, noise_multiple=6.0, random_orders=2)


def known(*curves, prompts=3, seeds=2, ends=(0.1, 0.9)) -> wb.Faithfulness:
    """Results whose f is known: one curve over as many counts for each order, the ranking's first."""
    names = ["ranking", *(f"random {i}" for i in range(len(curves) - 1))]
    coords = {"metric": ["probability"], "prompt": range(prompts), "draw": [0], "seed": range(seeds)}
    coords |= {"order": names, "count": range(len(curves[0]))}
    levels = ends[0] + (ends[1] - ends[0]) * np.array(curves)
    shape = [len(axis) for axis in coords.values()]
    kept = xr.DataArray(np.broadcast_to(levels, shape), coords, list(coords))
    kept = kept + 0.01 * xr.DataArray(np.arange(prompts), dims="prompt")  # prompts differ, f does not
    corrupted = kept.isel(order=0, count=0, drop=True)
    return wb.Faithfulness(
        xr.Dataset({"kept": kept, "corrupted": corrupted, "clean": corrupted.isel(draw=0, drop=True)})
    )


def test_areas_of_known_curves():
    found = known([0, 1, 1, 1, 1], [0, 0.25, 0.5, 0.75, 1], [0, 0, 0, 0, 1]).areas(resamples=50).set_index("order")
    assert found.cpr.ranking == pytest.approx(0.875) and found.cmd.ranking == pytest.approx(0.125)
    assert found.cpr.random == pytest.approx((0.5 + 0.125) / 2) and found.cmd.random == pytest.approx((0.5 + 0.875) / 2)
    assert found.cpr.difference == pytest.approx(0.875 - 0.3125)
    assert found.cpr_low.ranking == pytest.approx(0.875) == found.cpr_high.ranking  # f is the same in every prompt
    assert found.cpr_low.random == pytest.approx(0.125) and found.cpr_high.random == pytest.approx(0.5)  # orders differ


def test_what_overshoots_is_credited_by_cpr_and_not_by_cmd():
    found = known([0, 1.5, 1.5, 1.5, 1], [0, 1, 1, 1, 1]).areas(resamples=5).set_index("order")
    assert found.cpr.ranking > found.cpr.random and found.cmd.ranking > found.cmd.random


def test_nothing_divided_by_nothing_is_refused():
    found = known([0, 1, 1], [0, 0, 1], ends=(0.3, 0.3))
    for ask in (found.curve, found.areas):
        with pytest.raises(ValueError, match=r"with all sites kept it is 0.31, with none 0.31, .* 0/0: corrupt more"):
            ask()


@pytest.fixture(scope="module")
def sites(menagerie):
    return [site.name for site in menagerie.sites("unet.*.cross")]


def test_with_none_of_all_layers_kept_the_picture_is_the_corrupted_one(menagerie, sites):
    """The text enters through the cross-attention layers alone."""
    found = wb.faithfulness(menagerie, wb.prompt_set("object")[:2], sites, SPEC, batch_size=32)
    kept = found.data.kept.sel(order="ranking")
    assert np.abs(kept.sel(metric="pixel_distance", count=0)).max() < 1e-4
    assert kept.sel(metric="pixel_distance", count=16).min() > 1e-2
    assert np.array_equal(
        kept.sel(metric="probability", count=16).isel(draw=0), found.data.clean.sel(metric="probability")
    )
    curve = found.curve(resamples=20)
    ends = curve[curve["count"].isin([0, 16])].faithfulness.tolist()
    assert ends == pytest.approx([0, 1, 0, 1]) and curve["count"].unique().tolist() == [0, 1, 2, 3, 8, 16]


def test_a_right_ranking_beats_its_reverse(menagerie):
    """Layer 0 of the text encoder carries the object (see figures/causal_trace)."""
    names = [site.name for site in menagerie.sites("text_encoder.*.{attention,mlp}")]
    areas = {}
    for way, ranking in (("forwards", names), ("backwards", names[::-1])):
        spec = wb.FaithfulnessSpec(seeds=(0,), num_inference_steps=6, draws=1, noise_multiple=6.0, random_orders=1)
        found = wb.faithfulness(menagerie, wb.prompt_set("object")[:2], ranking, spec, batch_size=32)
        areas[way] = found.areas(resamples=20).set_index("order").cpr.ranking
    assert areas["forwards"] > areas["backwards"] + 0.1


def test_scores_are_rankings(menagerie, sites, tmp_path):
    scores = {name: float(-i) for i, name in enumerate(sites)}
    array = xr.DataArray(np.array(list(scores.values()))[None], {"seed": [0], "layer": sites}, ("seed", "layer"))
    prompts = wb.prompt_set("object")[:1]
    found = wb.faithfulness(menagerie, prompts, sites, SPEC, folder=tmp_path, batch_size=32)
    for same in (scores, array, array.mean("seed").rename(layer="site")):  # the same parts, so that nothing is drawn
        again = wb.faithfulness(menagerie, prompts, same, SPEC, folder=tmp_path, batch_size=32)
        assert again.data.equals(found.data)


@pytest.mark.parametrize(
    "ranking, said",
    [
        (["unet.mid.cross"], "give the names of at least two sites, each once"),
        (["unet.mid.cross", "unet.mid.cross"], "give the names of at least two sites, each once"),
        (["unet.mid.cross", "text_encoder.0.hidden"], "text_encoder.0.hidden hold all that came before them"),
        ({"unet.mid.cross": 1.0, "unet.mid.self": float("nan")}, "'unet.mid.self' has the score nan: give finite"),
        (xr.DataArray([1.0], dims="head"), "give scores with an axis site or layer"),
    ],
)
def test_what_is_no_ranking_is_refused(menagerie, monkeypatch, ranking, said):
    monkeypatch.setattr("workbench.engine.batch.Batch.traced", None)  # nothing is drawn
    with pytest.raises(ValueError, match=said):
        wb.faithfulness(menagerie, wb.prompt_set("object")[:1], ranking, SPEC)


def test_worlds_that_are_equal_are_refused():
    with pytest.raises(ValueError, match="noise_multiple=0: the corrupted world is the clean one"):
        wb.FaithfulnessSpec(noise_multiple=0.0)
    with pytest.raises(ValueError, match=r"shares=1\.5"):
        wb.FaithfulnessSpec(shares=(1.5,))
