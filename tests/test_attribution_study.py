"""The study of attribution: what its numbers mean, on effects whose truth is known."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.studies import attribution as study


def effects(exact):
    """(prompt, site) as a trace's results, one seed, one draw, restored - corrupted."""
    prompts, sites = exact.shape
    coords = {
        "metric": ["probability"],
        "prompt": range(prompts),
        "draw": [0],
        "seed": [0],
        "site": list("abcdefgh")[:sites],
    }
    coords |= {"token": ["subject_last"], "steps": ["0-1"]}
    restored = xr.DataArray(0.1 + exact[None, :, None, None, :, None, None], coords, list(coords))
    corrupted = xr.full_like(restored.isel(site=0, token=0, steps=0, drop=True), 0.1)
    return xr.Dataset({"restored": restored, "corrupted": corrupted, "clean": corrupted.isel(draw=0, drop=True) + 0.5})


def test_effects_of_single_images_and_their_log_odds():
    data = effects(np.array([[0.4, 0.0, -0.05], [0.2, 0.1, 0.0]]))
    assert np.allclose(study.single_effects(data, "probability").values[0, 0], [0.4, 0.0, -0.05])
    assert study.single_effects(data, "log_odds").values[0, 0, 0] == pytest.approx(np.log(9), abs=1e-6)


def test_recall_counts_ties_and_costs_what_is_drawn():
    exact = np.array([[0.5, 0.4, 0.3, 0.29, 0.0, 0.0], [0.5, 0.4, 0.3, 0.0, 0.0, 0.0]])
    best = study.recalls(exact, exact, 3)
    assert best["recall"] == best["all_found"] == 1 and best["pictures"] == 7 and best["pictures_of_all"] == 8
    swapped = exact[
        :, [0, 1, 3, 2, 4, 5]
    ]  # the fourth is proposed in the third's place: as good in the first prompt only
    worse = study.recalls(exact, swapped, 3)
    assert worse["all_found"] == 0.5 and worse["recall"] == pytest.approx((1 + 2 / 3) / 2)
    assert study.recalls(exact, swapped, 4)["all_found"] == 1
    random = study.recalls(exact[1:], None, 3)  # one of 20 subsets holds all three
    assert random["all_found"] == pytest.approx(1 / 20, abs=0.03) and random["recall"] == pytest.approx(0.5, abs=0.05)


def test_agreement_is_that_of_means():
    data = effects(np.array([[0.4, 0.1, -0.05, 0.0]] * 3 + [[0.3, 0.2, -0.1, 0.0]]))
    found = data.restored - data.corrupted
    guess = xr.Dataset({"attributed": -found.assign_coords(metric=["log_odds"])})
    row = study.compared(data, guess, "image")
    assert row["spearman"] == pytest.approx(-1) and row["same_sign"] == 0.25 and row["significant"] == 2
    assert row["same_sign_of_significant"] == 0 and row["sites"] == 4 and row["prompts"] == 4


def test_the_command_measures_draws_and_goes_on(tmp_path, monkeypatch):
    few = dict(sites=("text_encoder.{0,1}.{attention,mlp}",))
    monkeypatch.setattr(study, "KINDS", {"text components": few, "components": few})
    options = study.AttributionOptions(
        prompts=1, screened=1, seeds=1, num_inference_steps=1, parts=("compare", "screen")
    )
    options.runs, options.out = tmp_path / "runs", tmp_path / "out"
    study.main(options)
    first = pd.read_csv(tmp_path / "out" / "attribution.csv")
    study.measure(options)  # every part is there
    assert pd.read_csv(tmp_path / "out" / "attribution.csv").equals(first) and len(first) == 4
    assert (tmp_path / "out" / "attribution.png").exists()
    screen = pd.read_csv(tmp_path / "out" / "attribution_screen.csv")
    assert (screen[screen.verified == 4].recall == 1).all()
