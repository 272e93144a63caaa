"""LocoGen: its laws on random pipelines, its answers on the menagerie."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from workbench import LocoGen, LocoGenSpec, Prompt, PromptSet, locogen, locogen_images, locogen_search
from workbench.localize import locogen as module

LABELS = {"zebra": ("a zebra",), "lion": ("a lion",)}
ZEBRA = Prompt("a zebra in the savanna", "zebra", "zebra", target="a photo of a lion on the beach", target_value="lion")
PROMPTS = PromptSet(
    "two", (ZEBRA, Prompt("a photo of a lion", "lion", "lion", target="a zebra", target_value="zebra")), LABELS
)
QUICK = dict(num_inference_steps=2, guidance_scale=3.0, seeds=(0, 1))


def generated(model, prompt: str) -> xr.DataArray:
    return model.run([wb.World("w", prompt)], **QUICK).images.sel(world="w")


def images(model, prompt=ZEBRA, **spec) -> xr.DataArray:
    return locogen_images(model, prompt, LocoGenSpec(**QUICK | spec))


def apart(a, b) -> float:
    return float(np.abs(a.values - b.values).max())


def test_the_target_at_all_layers_is_generating_with_the_target(model):
    count = len(module.cross_layers(model))
    found = images(model, windows=((0, count),))
    assert apart(found.sel(world="all layers"), generated(model, ZEBRA.target)) < 1e-4
    assert apart(found.sel(world="unaltered"), generated(model, ZEBRA.prompt)) < 1e-4
    window = found.sel(world=f"0-{count - 1}")
    if hasattr(model.pipeline, "text_encoder_2"):  # the pooled vector is no layer's input: it stays the prompt's own
        assert apart(window, found.sel(world="all layers")) > 1e-5
    else:
        assert np.array_equal(window, found.sel(world="all layers"))
    assert apart(found.sel(world="all layers"), found.sel(world="unaltered")) > 1e-4


@pytest.mark.parametrize("inputs", ["kv", "k", "v"])
def test_the_own_prompt_as_target_changes_nothing(model, inputs):
    found = images(model, replace(ZEBRA, target=ZEBRA.prompt), inputs=(inputs,), windows=((0, 2), (1, 1)))
    assert all(apart(found.sel(world=world), found.sel(world="unaltered")) < 1e-4 for world in found.world.values)


def test_keys_and_values_and_all_heads_add_up_to_the_layer(model):
    """Both inputs of a layer's every head, given one by one, are the layer given whole."""
    layer = module.cross_layers(model)[1]
    heads = list(range(layer.heads))
    parts = [
        wb.replace_prompt(f"{layer.name}.{port}", ZEBRA.target, heads=[head]) for port in ("k", "v") for head in heads
    ]
    whole = wb.replace_prompt(f"{layer.name}.context", ZEBRA.target)
    worlds = [
        wb.World(name, ZEBRA.prompt, what)
        for name, what in dict(whole=[whole], parts=parts, some=parts[: len(heads)]).items()
    ]
    run = model.run([wb.World("clean", ZEBRA.prompt), *worlds], **QUICK)
    shown = lambda world: run.images.sel(world=world)
    assert apart(shown("whole"), shown("parts")) < 1e-4
    assert not np.array_equal(shown("some"), shown("clean"))


def test_windows_steps_heads_and_inputs_are_told_apart(menagerie, scorer):
    spec = LocoGenSpec(
        **QUICK,
        windows=((3, 2), (10, 1)),
        inputs=("kv", "v"),
        heads=(0, 3),
        steps=(wb.window(0.0, 0.5), wb.window(0.5, 1.0)),
    )
    found = locogen(menagerie, PROMPTS, spec, scorer=scorer)
    data = found.data
    assert dict(data.patched.sizes) == dict(metric=6, prompt=2, seed=2, site=2, width=2, inputs=2, heads=2, steps=2)
    assert data.heads.values.tolist() == ["0", "3"] and data.steps.values.tolist() == ["0-0.5", "0.5-1"]
    first, second = found.layers[3], found.layers[10]
    assert (
        data.patched.sel(site=first, width=2).notnull().all() and data.patched.sel(site=first, width=1).isnull().all()
    )
    assert data.patched.sel(site=second, width=1).notnull().all() and data.width.dtype.kind == "i"
    cells = data.patched.sel(metric="pixel_distance", site=first, width=2).stack(cell=("inputs", "heads", "steps"))
    assert len(np.unique(cells.mean(["prompt", "seed"]).values.round(9))) == 8
    with pytest.raises(
        ValueError, match=r"several inputs were measured: \['kv', 'v'\]; name one, as in best\(2, inputs='kv'\)"
    ):
        found.best(2)
    assert found.best(2, inputs="v", heads="0", steps="0-0.5") == (first, found.layers[4])
    with pytest.raises(ValueError, match=r"width=5 was not measured; found \[2, 1\]; ask for it in LocoGenSpec"):
        found.best(5)


def test_on_the_menagerie_the_object_is_in_the_later_layers(menagerie, scorer, tmp_path):
    """Half of the object's probability goes with two layers of up.1 and up.2; nothing with the first ones."""
    prompts = wb.prompt_set("object")[:1]
    spec = LocoGenSpec(seeds=(0,), num_inference_steps=6, widths=(2,))
    found = locogen(menagerie, prompts, spec, scorer=scorer, folder=tmp_path / "all")
    effects = found.effects()
    assert float(effects.total_effect) > 0.5
    best = found.best(2)
    assert (
        best[0] in ("unet.up.1.2.cross", "unet.up.2.0.cross")
        and best[1] == found.layers[found.layers.index(best[0]) + 1]
    )
    assert (
        float(effects.direct_effect.sel(site=best[0]).squeeze())
        > 0.3
        > 0.1
        > abs(float(effects.direct_effect[0].squeeze()))
    )
    assert effects.window.values.tolist()[:2] == ["0-1", "1-2"] and wb.strongest(effects).site[0] == best[0]
    reread = LocoGen(wb.open_results(tmp_path / "all"))
    xr.testing.assert_identical(reread.effects(), effects)
    search = locogen_search(menagerie, prompts, spec, scorer=scorer, folder=tmp_path / "search")
    assert search.windows < search.exhaustive == 15 and search.best(2) == best
    edit = wb.edit.swap(menagerie, "zebra", "giraffe", sites=found.best(2))  # from a localizer's answer to an edit
    assert edit.sites == tuple(f"{layer.removesuffix('.cross')}.cross.{port}" for layer in best for port in "kv")


def made(effect: np.ndarray) -> LocoGen:
    """A result with these direct effects (prompt, seed, window)."""
    import json

    sites = [f"unet.up.{i}.0.cross" for i in range(effect.shape[2])]
    scored, unit = ("metric", "prompt", "seed"), dict(width=[1], inputs=["kv"], heads=["all"], steps=["0-1"])
    same = np.ones((1, *effect.shape[:2]))
    patched = (1 - effect)[None, ..., None, None, None, None]
    data = xr.Dataset(
        {"clean": (scored, same), "full": (scored, 0 * same), "patched": ((*scored, "site", *unit), patched)}
    )
    data = data.assign_coords(metric=["probability"], site=sites, **unit)
    return LocoGen(data.assign_attrs(spec=json.dumps({"layers": sites})))


def test_chance_is_a_permutation_p_value():
    """Of 200 results without any effect, as many as should be fall below 0.1; a true window is found far below."""
    rng = np.random.default_rng(0)
    null = [made(rng.normal(0, 0.1, (6, 1, 8))).chance(1, permutations=200) for _ in range(200)]
    assert 0.05 < np.mean(np.array(null) <= 0.1) < 0.16
    effect = rng.normal(0, 0.1, (6, 2, 8))
    effect[..., 5] += 0.5
    assert made(effect).chance(1, permutations=2000) < 0.01 and made(effect).best(1) == ("unet.up.5.0.cross",)
    found = made(effect).effects()
    assert (
        np.isclose(found.direct_effect.sel(site="unet.up.5.0.cross").item(), effect[..., 5].mean())
        and float(found.total_effect) == 1
    )


def test_blocks_are_those_of_the_unet(tiny, menagerie):
    groups = module.blocks(wb.load(tiny))
    assert groups[0][0] == 0 and all(a + width == b for (a, width), (b, _) in pairwise(groups))
    assert module.blocks(menagerie) == ((0, 2), (2, 2), (4, 2), (6, 1), (7, 3), (10, 3), (13, 3))


@pytest.mark.parametrize(
    ("text", "prompts", "spec"),
    [
        (
            "LocoGen compares a prompt with its target, which ['a lion'] lack; give Prompt(..., target=...), or a column target",
            PromptSet("x", (Prompt("a lion", "lion", "lion"),), LABELS),
            {},
        ),
        (
            "windows [(0, 17)] (first layer, width) do not fit the model's cross-attention layers, 0 to 15; name others",
            PROMPTS,
            dict(widths=(17,)),
        ),
        ("windows [(15, 2)] (first layer, width) do not fit", PROMPTS, dict(windows=((15, 2), (0, 1)))),
        ("inputs='q': may be 'kv', 'k', 'v'", PROMPTS, dict(inputs=("q",))),
        ("heads=[9], the attention has heads 0 to 3", PROMPTS, dict(heads=(9,))),
        ("widths=() holds none: give at least one whole number", PROMPTS, dict(widths=())),
        ("windows are shares of the run, from 0.0 to 1.0", PROMPTS, dict(steps=((0.5, 1.5),))),
    ],
)
def test_bad_input_is_told_before_anything_runs(menagerie, scorer, monkeypatch, text, prompts, spec):
    monkeypatch.setattr(type(menagerie.pipeline), "__call__", lambda *a, **k: pytest.fail("the pipeline ran"))
    with pytest.raises(ValueError) as raised:
        locogen(menagerie, prompts, LocoGenSpec(**QUICK | spec), scorer=scorer)
    assert text in str(raised.value)


def test_directions_and_metrics_have_their_names(menagerie, scorer):
    found = locogen(menagerie, PROMPTS, LocoGenSpec(**QUICK | dict(windows=((9, 2),))), scorer=scorer)
    rise = found.effects(direction="max")
    expected = (found.data.patched - found.data.clean).sel(metric="target_probability").mean()
    assert np.isclose(rise.direct_effect.mean(), expected, atol=1e-6) and rise.attrs["metric"] == "target_probability"
    with pytest.raises(ValueError, match="direction='up': may be 'min', 'max'"):
        found.effects(direction="up")
    with pytest.raises(
        KeyError, match="metric='clip' was not measured; the trace has probability, similarity, target_probability"
    ):
        found.effects("clip")


def test_the_command_line_locates(tmp_path, monkeypatch, capsys):
    from workbench import cli

    arguments = "workbench locate --prompts season --first 1 --seeds 0 --num-inference-steps 1 --batch-size 64"
    monkeypatch.setattr("sys.argv", [*arguments.split(), "--widths", "15", "16", "--out", str(tmp_path / "locate")])
    cli.main()
    said = capsys.readouterr().out
    assert (
        "width 15: full replacement" in said
        and "against shuffled windows" in said
        and (tmp_path / "locate.png").exists()
    )
    assert len((tmp_path / "locate.csv").read_text().splitlines()) == 1 + 2 + 1
    monkeypatch.setattr(
        "sys.argv",
        [*arguments.split(), "--compare", "--folder", str(tmp_path / "c"), "--out", str(tmp_path / "compare")],
    )
    cli.main()
    assert "causal tracing" in capsys.readouterr().out and (tmp_path / "compare.png").exists()
    assert wb.open_results(tmp_path / "c" / "trace").sizes["prompt"] == 1
