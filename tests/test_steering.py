"""Steering: laws of directions and of what they do to activations, the sweep, the search, and the strength a prompt needs."""

import time
import warnings
from dataclasses import replace

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats

import workbench as wb
from workbench import World, ablate, remove, steer
from workbench.experiments.base import Experiment
from workbench.experiments.statistics import pareto
from workbench.prompts import FOLDER, Prompt, PromptSet, prompt_set
from workbench.steering.experiment import Steered, Variant
from workbench.steering.sweep import variants_of
from workbench.studies.winter import at_equal_fidelity, method_table
from workbench.studies.winter_setting import WinterOptions, keyword_class
from workbench.studies.winter_study import Winter

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach"
WINTER, SUMMER = (
    ["a zebra in winter", "a cow in the city in winter"],
    ["a zebra in summer", "a cow in the city in summer"],
)
MLP = "text_encoder.*.mlp"


def run(model, *worlds, **more):
    return model.run(worlds, **dict(seeds=(0, 1), num_inference_steps=2, guidance_scale=3.0, progress=False) | more)


def unet_site(model):
    return next(site.name for site in model.sites("unet.*.cross"))


@pytest.fixture
def both(model):
    """A direction in the text encoder and one in the UNet."""
    return wb.direction(model, WINTER, SUMMER), wb.direction(
        model, WINTER, SUMMER, unet_site(model), num_inference_steps=2, batch_size=2
    )


@pytest.mark.parametrize("pool", ["own", "subject_last", "eos", "positions"])
def test_a_direction_is_the_difference_of_means(model, pool):
    site = "text_encoder.1.mlp"
    prompts = [[Prompt(text, text.split()[-1]) for text in side] for side in (WINTER, SUMMER)]
    found = wb.direction(model, *prompts, site, pool=pool)[site]
    recorded = model.run(
        [World(text, text) for text in WINTER + SUMMER], record=[site], num_inference_steps=1, progress=False
    ).values[site]
    tokens = lambda text: model.pipeline.tokenizer(text)["input_ids"]
    where = {
        "own": lambda text: slice(1, len(tokens(text)) - 1),
        "eos": lambda text: [len(tokens(text)) - 1],
        "subject_last": lambda text: [len(tokens(text)) - 2],
    }
    each = recorded.isel(seed=0)
    if pool == "positions":
        by_hand = each.sel(world=WINTER).mean("world") - each.sel(world=SUMMER).mean("world")
        assert found.dims == ("token", "channel")
    else:
        pooled = {text: each.sel(world=text).values[where[pool](text)].mean(0) for text in WINTER + SUMMER}
        by_hand = np.mean([pooled[text] for text in WINTER], 0) - np.mean([pooled[text] for text in SUMMER], 0)
        assert found.dims == ("channel",)
    assert np.abs(found).max() > 0 and np.allclose(found, by_hand, atol=1e-5)


def test_text_directions_never_run_the_denoiser(model):
    hook = model.pipeline.unet.register_forward_pre_hook(lambda *args: pytest.fail("the denoiser ran"))
    try:
        found = wb.direction(model, WINTER, SUMMER, ["text_encoder.*.{mlp,attention,hidden}"])
    finally:
        hook.remove()
    assert len(found.sites) == 3 * len(model.sites(MLP))


def test_the_pooled_vector_of_xl_has_a_direction():
    torch.manual_seed(0)
    model = wb.load(conftest.sdxl())
    pooled = model.sites("text_encoder_2.pooled")
    found = wb.direction(model, WINTER, SUMMER, [*pooled, "text_encoder.0.mlp"], pool="positions")
    assert found[pooled[0].name].dims == ("channel",) and found["text_encoder.0.mlp"].dims == ("token", "channel")
    steered = run(
        model, World("plain", ZEBRA), World("a", ZEBRA, found.at(pooled[0].name).steer(2.0, unit=True))
    ).images
    assert not np.array_equal(steered[0], steered[1])


def test_directions_of_the_unet_are_by_step(model):
    site = unet_site(model)
    found = wb.direction(model, WINTER, SUMMER, [site], seeds=(0, 1), num_inference_steps=2, guidance_scale=3.0)
    worlds = [World(text, text) for text in WINTER + SUMMER]
    recorded = run(model, *worlds, record=[site]).values[site].mean(("seed", "pixel"))
    by_hand = recorded.sel(world=WINTER).mean("world") - recorded.sel(world=SUMMER).mean("world")
    assert found[site].dims == ("step", "channel") and np.allclose(found[site], by_hand, atol=1e-5)
    resnet = next(site.name for site in model.sites("unet.*.resnet"))
    assert wb.direction(model, WINTER, SUMMER, resnet, num_inference_steps=2)[resnet].sizes["step"] == 2


def test_strength_zero_changes_nothing(model, both):
    text, unet = both
    worlds = [
        World("text", ZEBRA, text.steer(0)),
        World("unit", ZEBRA, text.steer(0, unit=True, keep_norm=True)),
        World("unet", ZEBRA, unet.steer(0, keep_norm=True)),
        World("removed", ZEBRA, unet.remove(0)),
    ]
    steered, plain = run(model, *worlds), run(model, *[replace(world, interventions=()) for world in worlds])
    assert np.array_equal(steered.images, plain.images)
    assert not np.array_equal(run(model, World("text", ZEBRA, text.steer(3, unit=True))).images[0], plain.images[0])


def test_equal_prompts_give_zero_and_say_so(model):
    with pytest.warns(UserWarning, match="positive= and negative= are the same prompts, so the direction is zero"):
        found = wb.direction(model, WINTER, WINTER[::-1])
    assert not any(found[site].any() for site in found.sites) and "zero" in repr(found)
    with pytest.raises(
        ValueError, match=r"the direction at text_encoder.0.mlp is zero and has no unit; leave unit=False"
    ):
        found.steer(1.0, unit=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "zero" not in repr(wb.direction(model, WINTER, SUMMER))


@pytest.mark.parametrize("pool", ["own", "positions"])
def test_a_direction_and_its_opposite_are_symmetric_on_activations(model, pool):
    site = "text_encoder.1.mlp"
    found = wb.direction(model, WINTER, SUMMER, site, pool=pool)
    worlds = World("plain", ZEBRA), World("plus", ZEBRA, found.steer(2.0)), World("minus", ZEBRA, (-found).steer(2.0))
    values = run(model, *worlds, record=[site]).values[site]
    up, down = (values.sel(world=name) - values.sel(world="plain") for name in ("plus", "minus"))
    assert np.allclose(up, -down, atol=1e-5) and np.allclose(up, 2 * found[site], atol=1e-5) and np.abs(up).max() > 1e-4


def test_one_token_leaves_those_before_it(model):
    """The text encoder is causal: what is added at a token reaches itself and those behind."""
    found = wb.direction(model, WINTER, SUMMER, "text_encoder.0.mlp")
    values = run(
        model,
        World("plain", ZEBRA),
        World("at 3", ZEBRA, found.steer(5.0, unit=True, tokens=3)),
        record=["text_encoder.final"],
    )
    plain, steered = (values.values["text_encoder.final"].sel(world=name) for name in ("plain", "at 3"))
    assert np.array_equal(plain[:, :3], steered[:, :3])
    assert all(not np.array_equal(plain[:, token], steered[:, token]) for token in range(3, plain.sizes["token"]))


def test_unit_strength_is_the_activations_norm(model, both):
    for found in both:
        (site, *_) = found.sites
        values = run(
            model, World("plain", ZEBRA), World("unit", ZEBRA, found.at(site).steer(1.0, unit=True)), record=[site]
        ).values[site]
        values = values.isel(step=0) if "step" in values.dims else values  # later steps have another input
        added = np.sqrt(((values.sel(world="unit") - values.sel(world="plain")) ** 2).sum("channel"))
        assert np.allclose(added, found.at(site).table().mean_norm.iloc[0], rtol=1e-3)


def test_norms_are_kept_and_the_direction_is_removed(model, both):
    unet = both[1]
    (site,) = unet.sites
    project = lambda values, vector: xr.dot(values, vector, dim="channel") / np.sqrt((vector**2).sum())
    first = lambda *worlds: run(model, *worlds, record=[site]).values[site].isel(step=0)
    if not (project(first(World("plain", ZEBRA)), unet[site].isel(step=0)) > 0).any():
        unet = -unet  # or there would be nothing to remove
    added, removed, turned = (
        unet.steer(3.0, unit=True, keep_norm=True),
        unet.remove(1.0, keep_norm=False),
        unet.remove(2.0, keep_norm=False),
    )
    worlds = [
        World("plain", ZEBRA),
        World("added", ZEBRA, added),
        World("removed", ZEBRA, removed),
        World("turned", ZEBRA, turned),
    ]
    values = first(*worlds)
    norms = np.sqrt((values**2).sum("channel"))
    assert np.allclose(norms.sel(world="added"), norms.sel(world="plain"), rtol=1e-4)
    along = project(values, unet[site].isel(step=0))
    before = along.sel(world="plain")
    assert (before > 0).any() and np.allclose(along.sel(world="removed"), before.clip(max=0), atol=1e-4)
    assert np.allclose(along.sel(world="turned"), -np.abs(before), atol=1e-4)
    plain, removed = (run(model, World("a", ZEBRA, what)).images for what in ((), unet.remove(1.0)))
    assert not np.array_equal(plain, removed)


def test_schedules_and_runs_of_another_length(model, both):
    site, unet = both[1].sites[0], both[1]
    steps = lambda interventions: [(what.steps, what.rule.alpha) for what in interventions]
    early, late = wb.window(0, 0.5), wb.window(0.5, 1)
    assert steps(unet.steer(2.0)) == [(early, 2.0), (late, 2.0)]
    assert steps(unet.steer(2.0, steps=late)) == [(late, 2.0)]
    assert steps(unet.steer(2.0, steps={early: 1.0, late: 0.25})) == [(early, 2.0), (late, 0.5)]
    twice = run(model, World("plain", ZEBRA), World("a", ZEBRA, unet.steer(1.0)), num_inference_steps=4, record=[site])
    assert twice.fired == {("a", 0): 2, ("a", 1): 2}
    with pytest.raises(ValueError, match=r"holds none of the run's 1 steps"):
        run(model, World("a", ZEBRA, unet.steer(1.0)), num_inference_steps=1)
    assert len(unet.averaged().steer(1.0)) == 1
    with pytest.raises(ValueError, match="the text encoder runs once, outside the steps; leave steps out"):
        run(model, World("a", ZEBRA, both[0].steer(1.0, steps=early)))


def test_several_concepts_and_strengths(model):
    winter, lion = wb.direction(model, WINTER, SUMMER), wb.direction(model, [LION], ["a zebra on the beach"])
    site = "text_encoder.0.mlp"
    together = run(
        model,
        World("plain", ZEBRA),
        World("sum", ZEBRA, (winter + 2 * lion).at(site).steer(1.0)),
        World("both", ZEBRA, winter.at(site).steer(1.0) + lion.at(site).steer(2.0)),
        record=[site],
    ).values[site]
    assert np.allclose(together.sel(world="sum"), together.sel(world="both"), atol=1e-5)
    by_site = winter.steer({"text_encoder.0.mlp": 0.5, "text_encoder.1.*": 2.0})
    assert [(what.sites, what.rule.alpha) for what in by_site] == [((site,), 0.5), (("text_encoder.1.mlp",), 2.0)]


def test_algebra_and_cosine(model):
    a, b = wb.direction(model, WINTER, SUMMER), wb.direction(model, [LION], [ZEBRA])
    assert np.allclose(a.cosine(3 * a), 1) and np.allclose(a.cosine(-a), -1) and (a.cosine(b).abs() < 1).all()
    assert np.allclose((a + b - b)["text_encoder.0.mlp"], a["text_encoder.0.mlp"], atol=1e-6)
    assert (2 * a).table().relative_length.to_numpy() == pytest.approx(2 * a.table().relative_length.to_numpy())
    eos = wb.direction(model, WINTER, SUMMER, pool="positions")
    with pytest.raises(
        ValueError,
        match=r"directions at text_encoder.0.mlp do not add: one is 1 pooled x \d+ channels, the other \d+ token",
    ):
        a + eos
    with pytest.raises(ValueError, match=r"do not compare: .* make both with the same pool= and num_inference_steps="):
        a.cosine(eos)
    with pytest.raises(ValueError, match="the directions share no site: text_encoder"):
        a.at("text_encoder.0.mlp").cosine(a.at("text_encoder.1.mlp"))
    with pytest.raises(
        KeyError, match=r"the direction has nothing at \['unet.\*'\]; its sites are text_encoder.0.mlp, "
    ):
        a.steer({"unet.*": 1.0})


def test_a_file_brings_the_direction_back(model, both, tmp_path):
    for found in both:
        found.save(tmp_path / "d.safetensors")
        again = wb.Direction.load(tmp_path / "d.safetensors")
        assert (
            again.digest == found.digest
            and again.provenance == found.provenance
            and again.table().equals(found.table())
        )
    data = bytearray((tmp_path / "d.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "d.safetensors").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"d.safetensors: it was altered: .* give path= of a file that Direction.save wrote"
    ):
        wb.Direction.load(tmp_path / "d.safetensors")
    wb.edit.swap(model, "a zebra", "a giraffe").save(tmp_path / "edit.safetensors")
    with pytest.raises(
        ValueError, match=r"it is a safetensors file of format .* not .diffusion-workbench direction 1."
    ):
        wb.Direction.load(tmp_path / "edit.safetensors")


def test_bad_input_says_what_to_change(model):
    bad = {
        (
            ("a cow",),
            (),
            MLP,
            "own",
        ): r"negative=\(\): give prompts, as texts or wb.Prompt\(...\)s, at least one on each side",
        (
            ("a cow",),
            ("",),
            MLP,
            "own",
        ): r"""the prompt '' has no tokens of its own; leave it out, or give pool="eos\"""",
        (("a cow",), ("a lion",), MLP, "subject_last"): r"'a cow' names no subject; give wb.Prompt\(text, subject\)",
        (
            ("a cow",),
            ("a lion",),
            MLP,
            "mean",
        ): "pool='mean': may be 'own', 'subject_last', 'eos', 'positions'",
        (
            ("a cow",),
            ("a lion",),
            "unet.*.cross.probs",
            "own",
        ): r"cannot be steered; name sites of the text encoder or the UNet that have",
    }
    for (positive, negative, sites, pool), said in bad.items():
        with pytest.raises(ValueError, match=said):
            wb.direction(model, positive, negative, sites, pool=pool)
    with pytest.raises(
        ValueError, match=r"Steer at text_encoder.0.mlp in world 'a': it was made for 3 channels, the site has \d+"
    ):
        run(model, World("a", ZEBRA, [steer("text_encoder.0.mlp", [1, 2, 3])]))
    channels = model.sites("text_encoder.0.mlp")[0].sizes[-1]
    with pytest.raises(
        ValueError, match=r"Remove at text_encoder.0.mlp .* it was made for 2 tokens, .* with pool=\"positions\""
    ):
        run(model, World("a", ZEBRA, [remove("text_encoder.0.mlp", np.ones((2, channels)))]))


def test_interventions_of_directions_are_plain_values(model, both):
    for what in (
        *both[0].steer(0.5),
        *both[1].remove(),
        *wb.direction(model, WINTER, SUMMER, pool="positions").steer(1.0),
    ):
        assert wb.Intervention.from_json(what.to_json()) == what


def test_a_zero_activation_has_no_norm_to_keep(model):
    channels = model.sites("text_encoder.1.mlp")[0].sizes[-1]
    what = [ablate("text_encoder.1.mlp"), steer("text_encoder.1.mlp", np.ones(channels), 1.0, keep_norm=True)]
    assert np.isfinite(run(model, World("a", ZEBRA, what)).images).all()


def test_two_hundred_prompts_within_ten_seconds(menagerie):
    pairs = wb.prompt_pairs("winter")
    assert list(map(len, pairs)) == [100, 100]
    start = time.perf_counter()
    found = wb.direction(menagerie, *pairs)
    assert time.perf_counter() - start < 10 and len(found.sites) == 12
    assert (
        found.table().relative_length > 3 * found.table().relative_error
    ).all()  # the concept moves every layer, past chance


# sweeps, on few images of the trained model

CONCEPT = wb.Concept("winter", "summer", prompt_set("season").labels, "winter")
TUNE = PromptSet("tune", tuple(prompt_set("steer/tune"))[:3], prompt_set("object").labels)
FEW = dict(seeds=(0,), num_inference_steps=6)


@pytest.fixture(scope="module")
def winter(menagerie):
    return wb.direction(menagerie, *(side[:40] for side in wb.prompt_pairs("winter")), pool="positions")


def test_steering_brings_winter(menagerie, scorer, winter):
    sweep = wb.steer_sweep(
        menagerie,
        TUNE,
        winter.at("text_encoder.{0,1}.mlp".replace("{0,1}", "[01]")),
        CONCEPT,
        wb.SweepSpec(strengths=(1.0, 0.05), **FEW),
        scorer=scorer,
    )
    assert list(sweep.data.site.values) == ["text_encoder.0.mlp", "text_encoder.1.mlp", "all"] and list(
        sweep.data.strength
    ) == [0.05, 1.0]
    found = sweep.effects("concept_probability")
    assert (
        float(found.change.sel(site="all", strength=1.0))
        > 0.8
        > 0.05
        > float(found.change.sel(site="all", strength=0.05))
    )
    table = sweep.table()
    assert len(table) == 7 and table.site.iloc[0] == "unsteered" and table.pareto.any() and not table.pareto.all()
    distance = sweep.effects("pixel_distance").value
    assert (distance.sel(strength=1.0) > distance.sel(strength=0.05)).all()


def test_strengths_that_are_nearly_alike_are_variants_of_their_own(both):
    near = wb.SweepSpec(strengths=(0.1234567, 0.1234568, 1.0))
    names = list(variants_of(both[0].at("text_encoder.0.mlp"), near, 1))
    assert names == ["text_encoder.0.mlp-0.1234567", "text_encoder.0.mlp-0.1234568", "text_encoder.0.mlp-1"]


def test_a_sweep_goes_on_where_it_stopped(menagerie, scorer, winter, tmp_path, monkeypatch):
    spec, some = (
        wb.SweepSpec(strengths=(0.5, 1.0), **FEW | dict(num_inference_steps=2)),
        winter.at("text_encoder.0.mlp"),
    )
    asked = lambda: wb.steer_sweep(menagerie, TUNE, some, CONCEPT, spec, scorer=scorer, folder=tmp_path)
    measure, calls = Steered.measure, []

    def breaks(self, *args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return measure(self, *args)

    monkeypatch.setattr(Steered, "measure", breaks)
    with pytest.raises(KeyboardInterrupt):
        asked()
    monkeypatch.setattr(Steered, "measure", measure)
    whole = asked()
    monkeypatch.setattr(Experiment, "run", lambda *args, **kwargs: pytest.fail("computed again"))
    assert asked().data.identical(whole.data)
    with pytest.raises(ValueError, match="holds the results of another specification"):
        wb.steer_sweep(menagerie, TUNE, 2 * some, CONCEPT, replace(spec, unit=False), scorer=scorer, folder=tmp_path)
    with pytest.raises(ValueError, match="0 is the unsteered image, which every sweep has; leave it out"):
        wb.steer_sweep(menagerie, TUNE, some, CONCEPT, wb.SweepSpec(strengths=(0, 1)))


def test_the_search_resumes_as_if_never_stopped(menagerie, scorer, winter, tmp_path):
    some, few = winter.at("text_encoder.[0-3].mlp"), FEW | dict(num_inference_steps=2)
    search = lambda trials, folder: wb.steer_search(
        menagerie, TUNE, some, CONCEPT, wb.SearchSpec(trials=trials, **few), scorer=scorer, folder=folder
    )
    whole = search(6, tmp_path)
    for late in sorted(tmp_path.glob("*trial000[345]*")):
        late.unlink()
    again = search(6, tmp_path)
    assert again.table.equals(whole.table) and len(whole.table) == 7
    assert whole.table[list(some.sites)].notna().any(axis=None)
    chosen = whole.best(-1.0)
    assert chosen == whole.table.loc[whole.table.concept_similarity[1:].idxmax(), list(some.sites)].dropna().to_dict()
    with pytest.raises(
        ValueError, match=r"best\(fidelity=2\): the best of 6 trials keeps .*; ask for less, or search weaker strengths"
    ):
        whole.best(2)


def test_adaptive_strength_keeps_its_budget(menagerie, scorer, winter):
    spec = wb.AdaptiveSpec(strongest=2.0, rounds=3, budget=0.25, **FEW)
    found = wb.adaptive_strength(menagerie, TUNE, winter, CONCEPT, spec, scorer=scorer)
    assert list(found.prompt) == [prompt.prompt for prompt in TUNE]
    assert (found["drop"] <= 0.25).all() and found.strength.between(0, 2).all()
    assert (found.lead[found.stopped_by == "concept"] >= 0).all() and (
        found.lead[found.stopped_by != "concept"] < 0
    ).all()
    assert found.resistance.idxmax() == 0 and "summer" in found.prompt[0]  # what asks for summer resists most
    none = wb.adaptive_strength(menagerie, TUNE, winter, CONCEPT, replace(spec, budget=0.0, rounds=1), scorer=scorer)
    assert (none["drop"] <= 0).all()
    with pytest.raises(ValueError, match=r"resistance is measured against an opposite; give Concept\(opposite=...\)"):
        wb.adaptive_strength(menagerie, TUNE, winter, replace(CONCEPT, opposite=""))
    with pytest.raises(
        ValueError, match=r"Concept\(value='snow'\): its labels are \['none', 'winter', 'summer', 'night'\]; name one"
    ):
        replace(CONCEPT, value="snow")


def test_pareto_by_hand():
    points = pd.DataFrame(dict(a=[0.0, 1, 2, 1, 2, np.nan], b=[3.0, 2, 0, 1, 0, 9]))
    assert pareto(points, "a", "b").tolist() == [True, True, True, False, True, False]


def test_families_are_compared_where_they_lost_as_much():
    """By hand: the text encoder gains 0.4 while it loses 0.2, the UNet as much while it loses 0.4, and never loses 0.6."""
    steps, families = [0.5, 1.0], ["text encoder", "UNet"]
    variants = [f"{where}, {layers} layers" for layers in ("all", "searched") for where in families]
    lost = {"text encoder": [0.2, 0.8], "UNet": [0.4, 0.5]}
    shape = dict(
        metric=["concept_similarity", "similarity"], prompt=[0, 1, 2], seed=[0, 1], variant=variants, factor=steps
    )
    steered = xr.DataArray(np.zeros([len(axis) for axis in shape.values()]), shape)
    unsteered = xr.DataArray([0.1, 0.9], dict(metric=shape["metric"])) * xr.ones_like(
        steered.isel(metric=0, variant=0, factor=0, drop=True)
    )
    for variant in variants:
        steered.loc[dict(metric="similarity", variant=variant)] = 0.9 - np.array(lost[variant.split(",")[0]])
        steered.loc[dict(metric="concept_similarity", variant=variant)] = [0.5, 0.6]
    data = xr.Dataset(dict(steered=steered, unsteered=unsteered))
    found = at_equal_fidelity(data, (0.1, 0.4, 0.6), "concept_similarity").set_index(["drop", "variant"])
    assert found.value[0.1, variants[0]] == pytest.approx(0.3) and found.value[0.1, variants[1]] == pytest.approx(0.2)
    assert found.value[0.1, "UNet, all layers minus text encoder, all layers"] == pytest.approx(-0.1)
    assert found.low[0.1, variants[0]] == found.high[0.1, variants[0]] == pytest.approx(0.3) and (found.n == 6).all()
    assert found.value[0.4, variants[0]] == pytest.approx(0.5 + 0.1 / 3, abs=1e-4)
    assert np.isnan([found.value[0.6, variants[1]], found.high[0.6, variants[1]]]).all()


def test_shares_of_nothing_have_an_interval():
    shape = dict(metric=["concept"], prompt=range(4), seed=range(2), variant=["a"])
    scores = xr.DataArray(np.zeros([len(axis) for axis in shape.values()]), shape)
    (row,) = method_table(xr.Dataset(dict(steered=scores, unsteered=scores.isel(variant=0, drop=True))), ["concept"])[
        1:
    ].to_dict("records")
    assert row["value"] == row["low"] == 0 and row["high"] == pytest.approx(
        stats.beta.ppf(0.975, 0.5, 4), abs=0.04
    )  # none of 4 prompts


def test_the_benchmark_prompts():
    held, tune = pd.read_csv(FOLDER / "winter.csv"), prompt_set("steer/tune")
    assert list(held.columns) == ["ID", "prompt"] and list(held.ID) == list(range(1, 31)) and held.prompt.is_unique
    assert not set(held.prompt) & {prompt.prompt for prompt in tune}
    assert pd.Series(held.prompt.map(keyword_class)).value_counts().to_dict() == {"high": 10, "medium": 10, "low": 10}
    for concept in ("winter", "night", "watercolor"):
        positive, negative = wb.prompt_pairs(concept)
        assert not set(held.prompt) & {*positive, *negative} and all(
            a != b for a, b in zip(positive, negative, strict=True)
        )
    with pytest.raises(
        FileNotFoundError,
        match=r"prompt_pairs\('spring'\): no such file, and no set of that name; the sets are night, water",
    ):
        wb.prompt_pairs("spring")


def test_the_benchmark_end_to_end(tmp_path):
    options = WinterOptions(runs=tmp_path, out=tmp_path, seeds=(17,), num_inference_steps=1, prompts=2)
    study = Winter(options)
    told = study.told(["winter"], study.held_out)
    assert [what[0].rule.prompt for what in told] == [
        "a photo of a zebra in the desert in winter",
        "a photo of a giraffe in the savanna in winter",
    ]
    variants = {"told": Variant({"variant": "told winter"}, told), "plain": Variant({"variant": "plain"}, [()] * 2)}
    found = method_table(study.measure("some", study.held_out, study.concepts["winter"], variants, study.reporting))
    plain, unsteered = (found[found.variant == name].value.tolist() for name in ("plain", "unsteered"))
    assert plain == unsteered and set(found.n) == {2} and torch.is_grad_enabled()
