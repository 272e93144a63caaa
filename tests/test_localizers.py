"""Localizers by one interface: what each says is what its experiment says, and a person's own stand beside them."""

import numpy as np
import pytest
import xarray as xr

import workbench as wb

QUICK = dict(seeds=(0,), num_inference_steps=2, draws=1)
CROSS = wb.TraceSpec(sites=("unet.up.2.*.cross",), **QUICK)
TEXT = wb.TraceSpec(sites=("text_encoder.{0,1}.{attention,mlp}",), **QUICK)


@pytest.fixture(scope="module")
def prompts():
    return wb.prompt_set("object")[:2]


def by_depth(model, prompts, spec):
    """A localizer of a person's own, its axes in an order of its own."""
    layers = [site.name for site in model.sites(*spec.sites)]
    axes = {"layer": layers[::-1], "seed": list(spec.seeds), "prompt": range(len(prompts))}
    depth = np.arange(len(layers))[::-1, None, None] * np.ones((len(layers), len(spec.seeds), len(prompts)))
    return xr.DataArray(depth, axes, list(axes))


def test_every_localizer_of_the_table_scores_prompts_seeds_and_layers(menagerie, prompts):
    wanted = {"prompt": [0, 1], "seed": [0], "layer": [site.name for site in menagerie.sites(*CROSS.sites)]}
    for name, localizer in wb.localizers(batch_size=32).items():
        scores = localizer(menagerie, prompts, CROSS)
        assert {axis: scores[axis].values.tolist() for axis in scores.dims} == wanted, name
        assert scores.notnull().all() and scores.std("layer").min() > 0, name


def test_of_the_text_encoder_only_those_speak_that_can(menagerie, prompts):
    silent = []
    for name, localizer in wb.localizers(batch_size=32).items():
        try:
            assert localizer(menagerie, prompts, TEXT).layer.values.tolist() == [
                s.name for s in menagerie.sites(*TEXT.sites)
            ]
        except wb.Abstains as error:
            assert "cross-attention layers alone, not of text_encoder.0.attention" in str(error)
            silent.append(name)
    assert silent == ["LocoGen", "low entropy", "contribution", "head relevance"]


def test_ones_own_is_compared_and_ranked(menagerie, prompts):
    attribution = wb.localizers()["attribution"]
    found = wb.compare_localizers(menagerie, prompts, TEXT, localizers={"a": attribution, "b": by_depth, "c": by_depth})
    assert found.best("b", 1) == ("text_encoder.1.mlp",)
    agreed = found.agreement(resamples=20).set_index(["a", "b"]).spearman
    assert agreed["b", "c"] == pytest.approx(1)
    assert np.array_equal(found.scores.sel(localizer="a"), attribution(menagerie, prompts, TEXT))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda scores: scores.values, r"localizers\['mine'\] returned .* with the axes prompt, seed and layer"),
        (lambda scores: scores.isel(layer=[0, 1]), "whose layer axis is .* names of the spec's sites"),
        (
            lambda scores: scores.assign_coords(prompt=["a", "b"]),
            r"whose prompt axis is \['a', 'b'\]; it must be \[0, 1\]",
        ),
        (lambda scores: scores.assign_coords(seed=[7]), r"whose seed axis is \[7\]"),
    ],
)
def test_scores_that_do_not_fit_are_refused(menagerie, prompts, change, said):
    def mine(*asked):
        return change(by_depth(*asked))

    with pytest.raises(ValueError, match=said):
        wb.compare_localizers(menagerie, prompts, TEXT, localizers={"mine": mine})


def test_what_a_mapping_brings_itself_is_not_given_beside_it(menagerie, prompts):
    with pytest.raises(ValueError, match=r"batch_size= is of the localizers .* wb.localizers\(batch_size=\.\.\.\)"):
        wb.compare_localizers(menagerie, prompts, TEXT, localizers={"b": by_depth}, batch_size=3)


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("causal tracing", dict(tokens=("subject", "eos")), "causal tracing gives one score for each layer"),
        ("attribution", dict(steps=(wb.window(0.0, 0.5),)), "attribution gives one score for each layer"),
        ("step attribution", dict(sites=("text_encoder.0.hidden",)), "cannot tell what a stream holds of its own"),
    ],
)
def test_a_localizer_abstains_before_anything_is_drawn(menagerie, prompts, monkeypatch, name, changes, said):
    monkeypatch.setattr("workbench.engine.batch.Batch.traced", None)
    with pytest.raises(wb.Abstains, match=said):
        wb.localizers()[name](menagerie, prompts, wb.TraceSpec(**QUICK | {"sites": TEXT.sites} | changes))


def test_heads_are_traced_each_by_itself(menagerie, prompts):
    """Of one head, the trace is that of a world which restores this head."""
    spec = wb.TraceSpec(sites=("text_encoder.0.z",), tokens=("subject",), over="head", noise_multiple=6.0, **QUICK)
    found = wb.causal_trace(menagerie, prompts[:1], spec, batch_size=32)
    assert found.restored.sizes["head"] == menagerie.sites["text_encoder.0.z"].heads == 4
    effects = wb.effects(found, "pixel_distance")
    assert {"site", "token", "steps", "head"} == set(effects.indirect_effect.dims)
    assert "head" in wb.strongest(effects) and effects.indirect_effect.std() > 0
    with pytest.raises(ValueError, match=r'text_encoder\.0\.mlp: over="head" asks for sites whose heads stand apart'):
        wb.causal_trace(menagerie, prompts, wb.TraceSpec(sites=("text_encoder.0.mlp",), over="head", **QUICK))
    with pytest.raises(ValueError, match="over='head', window=3: neighbours have heads of their own"):
        wb.TraceSpec(over="head", window=3)
