"""The study of several architectures: what it names is there, items are picked, and its table says what was measured."""

from pathlib import Path

import pandas as pd
import pytest

from workbench.models import load
from workbench.studies.architectures import ArchitecturesOptions, Item, items, kept
from workbench.studies.architectures_findings import chosen, findings, of_trace, summaries
from workbench.studies.architectures_parts import ARCHITECTURES, DENOISER, ENCODER, FIRST, PARTS, placed, stage


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_an_architecture_names_is_there(name):
    about, model = ARCHITECTURES[name], load(ARCHITECTURES[name].model)
    text, denoiser = model.sites(about.text), model.sites(about.denoiser)
    assert {site.part for site in text} == {"text"} and {site.part for site in denoiser} == {"denoiser"}
    assert {site.component for site in text} == {encoder.component for encoder in model.family.present(model.pipeline)}
    assert all(model.sites(each) for each in (about.entrances, about.pooled) if each)
    assert bool(about.pooled) == any(site.kind == "pooled" and site.read for site in model.sites)
    assert 5 < len({stage(site) for site in denoiser}) < 11
    layers = model.sites(model.family.layers)
    windows = placed({"windows": pd.DataFrame(dict(site=[site.name for site in layers]))}, model)["windows"]
    assert windows.order.is_monotonic_increasing and set(windows.stage) <= {stage(site) for site in denoiser}


def test_items_are_picked_by_model_part_and_name():
    every = items(ArchitecturesOptions())
    assert len(every) == len(ARCHITECTURES) * sum(len(part.items) for part in PARTS.values())
    only = lambda *given: items(ArchitecturesOptions(only=given))
    assert {item.model for item in only("xl")} == {"xl"} and {item.part for item in only("told")} == {"told"}
    assert only("xl:trace:object-denoiser") == [Item("xl", "trace", "object-denoiser")]
    assert len(only("sd:swap", "xl:told")) == 2
    with pytest.raises(ValueError, match="nothing is called so; there are the models sd, xl, dit"):
        only("sdxl")


def test_finished_items_make_the_tables_in_the_order_of_models(tmp_path: Path):
    for model in ("xl", "sd"):
        item = Item(model, "told", "all")
        assert not item.finished(tmp_path)
        pd.DataFrame(dict(way=["all told"], prompt=[0], value=[1.0], model=[model])).to_csv(
            item.file(tmp_path, "told"), index=False
        )
        assert item.finished(tmp_path)
    rows = kept(ArchitecturesOptions(runs=tmp_path), "told")
    assert rows.model.tolist() == ["sd", "xl"]
    raw = {name: pd.DataFrame() for part in PARTS.values() for name in part.tables} | {"told": rows}
    table = findings(summaries(raw))
    assert table.finding.unique().tolist() == ["shows the other animal"] and table.value.tolist() == [1.0, 1.0]
    assert (table.low < 1).all() and table.said[0].startswith("1.00 (")


def traced(effects: dict[str, float], p: float) -> pd.DataFrame:
    about = dict(place=ENCODER, attribute="object", p=p, prompts=12)
    rows = []
    for layer, (site, effect) in enumerate(effects.items()):
        ends = {f"{name}{end}": effect for name in ("indirect_effect", "recovery") for end in ("", "_low", "_high")}
        rows.append(about | dict(site=site, layer=layer) | ends)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "effects, p, said",
    [((0.8, 0.1), 0.001, "yes, 0.mlp"), ((0.1, 0.8), 0.001, "no, 0.mlp"), ((0.8, 0.1), 0.2, "not told, 0.mlp")],
)
def test_layer_0_is_said_to_be_the_causal_state_where_it_is_the_best_for_sure(effects, p, said):
    best, first = of_trace(traced(dict(zip(("0.mlp", "1.mlp"), effects)), p))
    assert best["answer"] == ("0.mlp" if effects[0] > effects[1] else "1.mlp") and best["value"] == max(effects)
    assert first["answer"] == said and first["value"] == effects[0]


def test_a_strength_is_chosen_among_those_that_cost_no_more_than_telling():
    rows = [("unsteered", None, 0.1, 0.6), ("told winter", None, 0.4, 0.5)]
    rows += [(ENCODER, 0.5, 0.3, 0.55), (ENCODER, 1.0, 0.5, 0.45), (FIRST, 0.5, 0.2, 0.4), (DENOISER, 0.5, 0.2, 0.6)]
    rows += [(DENOISER, 1.0, 0.3, 0.5)]
    table = pd.DataFrame(
        [
            dict(variant=variant, factor=factor, metric=metric, value=value)
            for variant, factor, *values in rows
            for metric, value in zip(("concept_similarity", "similarity"), values)
        ]
    )
    found = chosen(table)
    assert found[ENCODER] == 0.5 and found[DENOISER] == 1.0 and pd.isna(found[FIRST])
