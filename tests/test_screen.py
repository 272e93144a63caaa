"""Screening: what is verified is exact, and what is promised holds on effects whose truth is known."""

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.localize.screen import guaranteed_recall, promised_recall

QUICK = dict(seeds=(0,), num_inference_steps=2, draws=1, noise_multiple=6.0)
SITES = dict(sites=("text_encoder.{0,1,2,3}.{attention,mlp}",))


def simulated(rng, sites=40, verified=6, controls=8, noise=0.05) -> tuple[pd.DataFrame, np.ndarray]:
    """A screening's table, and every exact effect."""
    attributed = np.sort(rng.exponential(0.1, sites))[::-1]
    exact = attributed + rng.normal(0, noise, sites)
    roles = np.full(sites, "", dtype=object)
    roles[:verified] = "proposed"
    roles[rng.choice(np.arange(verified, sites), controls, replace=False)] = "control"
    table = pd.DataFrame(dict(attributed=attributed, role=roles, indirect_effect=np.where(roles != "", exact, np.nan)))
    return table, exact


def true_recall(table, exact, best=3):
    return (table.role[np.argsort(-exact)[:best]] != "").mean()


@pytest.fixture(scope="module")
def screened(menagerie, tmp_path_factory):
    folder = tmp_path_factory.mktemp("screen")
    spec = wb.ScreenSpec(**SITES, best=2, verified=3, controls=2, **QUICK)
    return wb.screen(menagerie, wb.prompt_set("object")[:2], spec, folder=folder, batch_size=32), spec, folder


def test_what_it_verifies_is_what_a_trace_says(menagerie, screened):
    found, _, _ = screened
    trace = wb.causal_trace(menagerie, wb.prompt_set("object")[:2], wb.TraceSpec(**SITES, **QUICK), batch_size=32)
    exact = wb.effects(trace, "probability").indirect_effect.squeeze().to_series()
    patched = found.table[found.table.role != ""].set_index("site").indirect_effect
    assert len(patched) == 5 and np.allclose(patched, exact[patched.index], atol=1e-3)
    assert list(patched.index) == list(exact[patched.index].sort_values(ascending=False).index)
    assert found.best(2) == tuple(patched.index[:2]) and found.table.indirect_effect.isna().sum() == 3
    # two pictures with a backward pass, and two with five restored, of two prompts; eight sites in all
    assert (found.pictures, found.pictures_of_all, found.backward) == (2 * 9, 2 * 10, 2)
    assert found.times_fewer == pytest.approx(20 / 18)


def test_it_proposes_what_attribution_puts_first(menagerie, screened):
    found, _, _ = screened
    order = found.table.sort_values("attributed", ascending=False).role.tolist()
    assert order[:3] == ["proposed"] * 3 and sorted(order[3:]) == ["", "", "", "control", "control"]


def test_it_goes_on_where_it_was_stopped(menagerie, screened, monkeypatch):
    found, spec, folder = screened
    monkeypatch.setattr("workbench.engine.run", None)
    again = wb.screen(menagerie, wb.prompt_set("object")[:2], spec, folder=folder, batch_size=32)
    assert again.table.equals(found.table) and again.recall == found.recall


def test_heads_are_screened_apart(menagerie):
    spec = wb.ScreenSpec(sites=("text_encoder.{0,1}.z",), over="head", best=1, verified=2, controls=0, **QUICK)
    found = wb.screen(menagerie, wb.prompt_set("object")[:1], spec, batch_size=32)
    assert len(found.table) == 8 and {"site", "head"} <= set(found.table)
    assert (found.table.role == "proposed").sum() == 2 and np.isnan(found.recall.value) and found.guaranteed == 0


def test_with_every_site_patched_all_is_promised():
    table, _ = simulated(np.random.default_rng(0), sites=14, verified=6, controls=8)
    assert promised_recall(table, 3) == (1, 1, 1) and guaranteed_recall(table, 3) == 1


def test_what_is_promised_holds():
    """Where residuals are alike everywhere, the expected recall is right on average, and the guarantee is kept in 95 %."""
    rng = np.random.default_rng(1)
    said, true, kept, guaranteed = [], [], [], []
    for _ in range(300):
        table, exact = simulated(rng)
        recall, actual = promised_recall(table, 3, draws=200), true_recall(table, exact)
        said.append(recall.value)
        true.append(actual)
        kept.append(recall.low <= actual)
        guaranteed.append(guaranteed_recall(table, 3) <= actual)
    assert 0.5 < np.mean(true) < 0.98 and abs(np.mean(said) - np.mean(true)) < 0.05
    assert np.mean(kept) > 0.95 and np.mean(guaranteed) > 0.95


def test_the_guarantee_needs_no_line():
    """Attributions that say nothing: every site's effect is as good as another's."""
    rng, kept = np.random.default_rng(2), []
    for _ in range(300):
        table, exact = simulated(rng, noise=10.0, controls=20)
        kept.append(guaranteed_recall(table, 3) <= true_recall(table, exact))
    assert np.mean(kept) >= 0.95


def test_what_cannot_be_screened_is_refused(menagerie, monkeypatch):
    prompts = wb.prompt_set("object")[:1]
    monkeypatch.setattr("workbench.engine.batch.Batch.traced", None)  # nothing is drawn
    with pytest.raises(ValueError, match="verified=1, best=3: verify at least as many as are looked for"):
        wb.ScreenSpec(verified=1)
    with pytest.raises(ValueError, match="verified=9: the spec's sites make 8 candidates"):
        wb.screen(menagerie, prompts, wb.ScreenSpec(**SITES, verified=9, **QUICK))
    with pytest.raises(ValueError, match=r"text_encoder\.0\.hidden is a stream"):
        wb.screen(menagerie, prompts, wb.ScreenSpec(sites=("text_encoder.*.hidden",), **QUICK))
    with pytest.raises(KeyError, match="metric='beauty' is not measured here"):
        wb.screen(menagerie, prompts, wb.ScreenSpec(**SITES, **QUICK), metric="beauty")
