"""Experiments: what is kept, who computes it, how it is stopped, and what it becomes, on a random tiny pipeline."""

import json
import random
import re
from functools import partial

import conftest
import kill_many
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import workbench as wb
from workbench.experiments import results
from workbench.experiments.base import Experiment
from workbench.experiments.shards import Shards
from workbench.experiments.spec import Spec
from workbench.experiments.store import Folder
from workbench.experiments.work import complete
from workbench.metrics import Measures
from workbench.progress import Bar
from workbench.prompts import Prompt, PromptSet
from workbench.steering.adaptive import Adapting
from workbench.steering.search import Searching
from workbench.steps import Window, unless_whole

LABELS = {"zebra": ("a zebra",), "lion": ("a lion",)}
PROMPTS = PromptSet("two", (Prompt("a zebra", "zebra", "zebra"), Prompt("a lion", "lion", "lion")), LABELS)
CONCEPT = wb.Concept("winter", "summer", {"winter": ("winter",), "summer": ("summer",)}, "winter")
QUICK = dict(seeds=(0,), num_inference_steps=1, guidance_scale=3.0)


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(0)
    pipeline = conftest.sd1()
    pipeline.set_progress_bar_config(disable=True)
    return wb.load(pipeline)


@pytest.fixture(scope="module")
def direction(tiny_model):
    return wb.direction(tiny_model, ["a zebra in winter"], ["a zebra in summer"]).at("text_encoder.[01].mlp")


def trace(model, scorer, store=None) -> pd.DataFrame:
    spec = wb.TraceSpec(sites=("text_encoder.*.mlp",), draws=3, **QUICK)
    return wb.causal_trace(model, PROMPTS, spec, scorer=scorer, folder=store).to_dataframe()


def searching(model, direction, scorer, **spec) -> Searching:
    return Searching(model, PROMPTS, direction, CONCEPT, wb.SearchSpec(**QUICK | spec), scorer, 16)


# processes


def test_five_kills_lose_nothing_and_change_nothing(tiny_model, scorer, tmp_path):
    found = kill_many.kill_many(partial(trace, tiny_model, scorer), 5, tmp_path, random.Random(0))
    assert found.kills == 5 and found.ends >= 1 and found.parts == 6 * found.ends


def test_four_processes_divide_the_parts(tiny_model, scorer, tmp_path):
    parts = kill_many.share_out(partial(trace, tiny_model, scorer), 4, tmp_path)
    assert sorted(parts) == [f"prompt{p:04d}-draw{draw:02d}" for p in range(2) for draw in range(3)]


def test_four_processes_take_turns_where_each_trial_waits_for_the_last(tiny_model, direction, scorer, tmp_path):
    def search(store) -> pd.DataFrame:
        spec = wb.SearchSpec(trials=5, **QUICK)
        return wb.steer_search(tiny_model, PROMPTS, direction, CONCEPT, spec, scorer=scorer, folder=store).table

    parts = kill_many.share_out(search, 4, tmp_path)
    assert sorted(parts) == [*(f"trial{t:04d}" for t in range(5)), "unsteered"]


# one process


class Counting(Experiment):
    """Rows without a model's help."""

    name = "counting"
    fails_at: str | None = None

    def parts(self):
        return {f"part {i}": (i,) for i in range(5)}

    def check(self, i: int) -> int:
        return 2

    def measure(self, i: int, bar) -> list[dict]:
        if self.fails_at == f"part {i}":
            raise KeyboardInterrupt
        bar.update(2)
        return [dict(world="w", metric="m", prompt=i, seed=seed, value=float(i + seed)) for seed in (0, 1)]


def test_who_interrupts_is_told_what_is_kept(tiny_model, tmp_path):
    experiment = Counting(tiny_model, Spec(**QUICK))
    experiment.fails_at = "part 2"
    for folder, said in (
        (None, r"nothing is kept; give folder="),
        (tmp_path / "c", r"\(2 so far\); the same call goes on"),
    ):
        with pytest.raises(KeyboardInterrupt) as stopped:
            experiment.dataset(folder)
        assert re.search(said, stopped.value.__notes__[0])
    assert wb.open_results(tmp_path / "c").sizes["prompt"] == 2
    assert not list((tmp_path / "c").glob("*.lease"))
    experiment.fails_at = None
    assert experiment.dataset(tmp_path / "c").w.sel(metric="m", prompt=4, seed=1) == 5


def test_a_part_that_another_holds_is_waited_for(tiny_model, tmp_path, capsys, monkeypatch):
    """The others are done first; when its process dies, the part is taken."""
    folder = Folder(tmp_path, lease_seconds=0.6)
    shards = Shards(Counting(tiny_model, Spec(**QUICK)).identity(), folder)
    lease = folder.lease(f"{shards.hash}-part 1")
    lease._ended.set()  # as if its process had been killed
    shards = complete(Counting(tiny_model, Spec(**QUICK)), Folder(tmp_path, lease_seconds=0.6))
    assert "waiting for part 1, which another process is at" in capsys.readouterr().err and len(shards) == 5


def test_everything_is_checked_before_anything_is_computed(tiny_model, tmp_path, monkeypatch):
    experiment = Counting(tiny_model, Spec(**QUICK))

    def check(i: int) -> int:
        if i == 4:
            raise ValueError("part 4 does not fit")
        return 2

    monkeypatch.setattr(experiment, "check", check)
    monkeypatch.setattr(experiment, "measure", lambda *part: pytest.fail("computed"))
    with pytest.raises(ValueError, match="part 4 does not fit"):
        experiment.dataset(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_identity_holds_all_that_numbers_depend_on(tiny_model, scorer):
    experiment = Counting(tiny_model, Spec(**QUICK), prompts=PROMPTS, measures=Measures.of(scorer))
    asked = json.loads(json.dumps(experiment.identity()))
    assert asked["model"] == json.loads(json.dumps(tiny_model.record)) and asked["scorer"] == scorer.record
    assert asked["seeds"] == [0] and asked["num_inference_steps"] == 1 and asked["guidance_scale"] == 3.0
    assert asked["prompts"][0]["prompt"] == "a zebra" and asked["labels"] == {k: list(v) for k, v in LABELS.items()}
    other = Counting(wb.Model(tiny_model.pipeline, guidance_scale=2.0), Spec(seeds=(0,), num_inference_steps=1))
    assert other.identity()["guidance_scale"] == 2.0  # the model's own, where nothing is said


def test_an_identity_does_not_change_with_use(tiny_model):
    before = tiny_model.record
    tiny_model.pipeline.tokenizer("a zebra", padding="longest", truncation=True, max_length=9)
    tiny_model.run("a zebra", seeds=0, num_inference_steps=1)
    assert tiny_model.record == before


def test_sites_bring_their_layer_and_kind(tiny_model, scorer):
    spec = wb.TraceSpec(sites=("text_encoder.*.mlp", "unet.mid.cross"), draws=1, **QUICK)
    data = wb.causal_trace(tiny_model, PROMPTS, spec, scorer=scorer)
    assert data.layer.values[[0, -1]].tolist() == ["text_encoder.0", "unet.mid"]
    assert data.kind.values[[0, -1]].tolist() == ["mlp", "cross"]


# strengths stand in the rows


def test_a_search_reads_its_strengths_from_the_rows(tiny_model, direction, scorer, tmp_path, monkeypatch):
    """Where proposals replay differently (another version of Optuna), what was measured keeps the strengths it had."""
    spec = wb.SearchSpec(trials=4, **QUICK)
    search = partial(wb.steer_search, tiny_model, PROMPTS, direction, CONCEPT, spec, scorer=scorer, folder=tmp_path)
    whole = search()
    sites = list(direction.sites)
    proposed = Searching.proposed

    def otherwise(self, trial):
        return {site: strength / 2 for site, strength in proposed(self, trial).items()} or {sites[0]: 1.0}

    monkeypatch.setattr(Searching, "proposed", otherwise)
    monkeypatch.setattr(Experiment, "run", lambda *args, **kwargs: pytest.fail("computed again"))
    pd.testing.assert_frame_equal(search().table, whole.table)
    kept = wb.open_results(tmp_path)
    assert [json.loads(text) for text in kept.strengths.values] == [
        row.dropna().to_dict() for _, row in whole.table[sites][1:].iterrows()
    ]
    assert "optuna" in json.loads(kept.attrs["versions"])


def test_a_search_goes_on_from_trials_that_it_would_not_have_proposed(tiny_model, direction, scorer, tmp_path):
    """Trials of other strengths are told to the estimator as they were; those behind them are new."""
    first = searching(tiny_model, direction, scorer, trials=2)
    shards = Shards(first.identity(), Folder(tmp_path))
    for t, strength in enumerate((0.7, 1.3)):
        variant = first.variant(t, {direction.sites[0]: strength})
        shards.take(f"trial{t:04d}", partial(first.measure, variant, Bar(1, "trial")))
    found = wb.steer_search(
        tiny_model, PROMPTS, direction, CONCEPT, wb.SearchSpec(trials=4, **QUICK), scorer=scorer, folder=tmp_path
    )
    assert found.table[direction.sites[0]].tolist()[1:3] == [0.7, 1.3] and len(found.table) == 5


def test_a_bisection_reads_its_strengths_from_the_rows(tiny_model, direction, scorer, tmp_path, monkeypatch):
    spec = wb.AdaptiveSpec(rounds=2, strongest=2.0, margin=-9.0, **QUICK)  # anything is enough
    adapt = partial(wb.adaptive_strength, tiny_model, PROMPTS, direction, CONCEPT, spec, scorer=scorer, folder=tmp_path)
    whole = adapt()
    kept = wb.open_results(tmp_path)
    assert kept.strength.dims == ("round", "prompt") and kept.strength.sel(round=0).values.tolist() == [2.0, 2.0]
    assert set(kept.strength.sel(round=1).values) == {1.0}
    variant = Adapting.variant
    monkeypatch.setattr(Adapting, "variant", lambda self, number, strengths: variant(self, number, strengths * 0.9))
    pd.testing.assert_frame_equal(adapt(), whole)


# results


def test_effects_are_written_as_netcdf_and_come_back(tiny_model, scorer, tmp_path):
    spec = wb.TraceSpec(sites=("text_encoder.*.mlp",), draws=1, **QUICK)
    data = wb.causal_trace(tiny_model, PROMPTS, spec, scorer=scorer)
    for name, each in {"trace": data, "effects": wb.effects(data, "similarity")}.items():
        each.to_netcdf(tmp_path / f"{name}.nc", engine="scipy")
        back = xr.open_dataset(tmp_path / f"{name}.nc", engine="scipy")
        xr.testing.assert_allclose(
            back.drop_vars("significant", errors="ignore"), each.drop_vars("significant", errors="ignore")
        )
        assert {key: str(value) for key, value in back.attrs.items()} == {k: str(v) for k, v in each.attrs.items()}


def test_a_table_is_no_dataset(tiny_model, tmp_path):
    class Table(Counting):
        columns = ("editor", "distance")

        def measure(self, i: int, bar) -> list[dict]:
            return [dict(editor="e", distance=float(i))]

    assert Table(tiny_model, Spec(**QUICK)).table(tmp_path).distance.tolist() == [0, 1, 2, 3, 4]
    assert results.open_table(tmp_path).distance.sum() == 10
    with pytest.raises(ValueError, match=r"its rows have no columns \['world', 'metric', 'value'\], .*open_table"):
        wb.open_results(tmp_path)


def test_effects_over_nothing_are_refused(tiny_model, scorer):
    data = Counting(tiny_model, Spec(**QUICK)).dataset()
    with pytest.raises(ValueError, match=r"over=\('draw',\): the scores have the axes \('prompt', 'seed'\); name what"):
        results.averages({"value": data.w.sel(metric="m")}, over=("draw",), attrs={"metric": "m"})


# specs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(seeds=()), r"seeds"),
        (dict(seeds=(1, 2, 1)), r"seeds.* 1 "),
        (dict(seeds=(1.5,)), r"seeds.*1\.5"),
        (dict(seeds="12"), r"seeds='12'"),
        (dict(num_inference_steps=0), r"num_inference_steps=0"),
        (dict(num_inference_steps=1.5), r"num_inference_steps=1\.5"),
        (dict(num_inference_steps=True), r"num_inference_steps=True"),
    ],
)
@pytest.mark.parametrize("kind", [wb.TraceSpec, wb.LocoGenSpec, wb.AttentionSpec, wb.SweepSpec, wb.SearchSpec])
def test_specs_refuse_what_they_cannot_mean(kind, given, said):
    with pytest.raises(ValueError, match=said):
        kind(**given)


def test_specs_take_numbers_as_numpy_has_them():
    assert wb.TraceSpec(seeds=np.arange(3)).seeds == (0, 1, 2) == wb.SweepSpec(seeds=range(3)).seeds
    assert json.dumps(wb.TraceSpec(seeds=np.arange(3)).seeds) == "[0, 1, 2]"


def test_windows_have_one_form():
    half, late = wb.window(0.0, 0.5), wb.window(0.25, 1)
    assert str(half) == "0-0.5" and Window.of_name("0-0.5") == half and unless_whole(half) == half
    assert unless_whole(wb.window(0, 1)) is None and wb.TraceSpec().steps == (wb.window(0.0, 1.0),)
    assert wb.TraceSpec(steps=[half, late]).steps == (half, late) and wb.LocoGenSpec(steps=late).steps == (late,)
    assert wb.SweepSpec(steps=half).steps == half and wb.SweepSpec(steps=[3, 1]).steps == (1, 3)
    for wrong in ((0.5, 0.5), (0.5, 0.2), (-0.1, 1), (0, 2), ("0", "1"), (True, 1)):
        with pytest.raises(ValueError, match=r"go from 0\.0 to 1\.0"):
            wb.window(*wrong)
    for wrong, written in (
        (((0.0, 0.5), (0.5, 1.0)), "[wb.window(0.0, 0.5), wb.window(0.5, 1.0)]"),
        ((0.2, 0.8), "[wb.window(0.2, 0.8)]"),
        (((0.5, 1.5),), "[wb.window(0.0, 0.5)]"),
        (0.5, "[wb.window(0.0, 0.5)]"),
        ("0-1", "[wb.window(0.0, 0.5)]"),
        ((0, 1), "[wb.window(0.0, 1.0)]"),
        (3, "[wb.window(0.0, 0.5)]"),
        (None, "[wb.window(0.0, 0.5)]"),
    ):
        for spec in (wb.TraceSpec, wb.LocoGenSpec):
            with pytest.raises(ValueError, match=r"windows are shares of the run, from 0.0 to 1.0") as error:
                spec(steps=wrong)
            assert str(error.value).startswith("steps=") and str(error.value).endswith(f"write steps={written}")
    with pytest.raises(
        ValueError, match=r"whole numbers are steps; for a share of the run write steps=wb.window\(0.2, 0.8\)"
    ):
        wb.SweepSpec(steps=(0.2, 0.8))
    with pytest.raises(ValueError, match=r"give two shares of the run, such as 0-0.5"):
        Window.of_name("half")
