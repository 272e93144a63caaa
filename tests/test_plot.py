import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from workbench import plot
from workbench.cli.pictures import overview
from workbench.steering.direction import Component, Direction

LAYERS, KINDS = [f"text_encoder.{i}" for i in range(3)], ["attention", "mlp"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def effects(tokens=("subject_last",), steps=("0-1",), prompts=12) -> xr.Dataset:
    sites = [f"{layer}.{kind}" for layer in LAYERS for kind in KINDS]
    value = np.random.default_rng(0).normal(0, 0.1, (len(sites), len(tokens), len(steps)))
    dims = ("site", "token", "steps")
    data = {
        "indirect_effect": (dims, value),
        "indirect_effect_low": (dims, value - 0.1),
        "indirect_effect_high": (dims, value + 0.1),
        "significant": (dims, np.abs(value) > 0.05),
        "prompts": (dims, np.full(value.shape, prompts)),
        "total_effect": 0.4,
    }
    coords = dict(
        site=sites,
        token=list(tokens),
        steps=list(steps),
        layer=("site", np.repeat(LAYERS, 2)),
        kind=("site", KINDS * 3),
        part=("site", ["text"] * len(sites)),
    )
    return xr.Dataset(data, coords, attrs=dict(unit="probability", level=0.95))


def test_a_heatmap_shows_every_cell_its_sign_and_its_unit():
    found = effects()
    ax = plot.heatmap(found, "kind", "layer", title="zebra")
    mesh = ax.collections[0]
    assert np.allclose(np.asarray(mesh.get_array()).reshape(3, 2), found.indirect_effect.values.reshape(3, 2))
    assert mesh.norm.vmin == -mesh.norm.vmax == -np.abs(found.indirect_effect.values).max()
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "0",
        "1",
        "2",
    ] and ax.get_ylabel() == "text encoder layer"
    assert [label.get_text() for label in ax.get_xticklabels()] == KINDS and ax.get_title() == "zebra"
    assert mesh.colorbar.ax.get_ylabel().startswith("indirect effect (probability)\ndot: at least 0.05, 95% interval")
    assert sum(text.get_text() == "•" for text in ax.texts) == int(found.significant.sum())


def test_a_heatmap_of_several_values_a_cell_is_refused():
    with pytest.raises(
        ValueError,
        match=r"several values for one cell, which differ in \['token'\]; select one, as in effects.sel\(token='a'\)",
    ):
        plot.heatmap(effects(tokens=("a", "b")), "kind", "layer")
    with pytest.raises(ValueError, match=r"several values for one site, which differ in \['steps'\]; select one"):
        plot.profile(effects(steps=("0-0.5", "0.5-1")))


def test_a_profile_shows_intervals_in_execution_order():
    ax = plot.profile(effects())
    assert len(ax.containers) == 2 and [text.get_text() for text in ax.get_legend().get_texts()] == [
        "total effect",
        *KINDS,
    ]
    assert ax.get_ylabel() == "indirect effect (probability),\n95% interval" and len(ax.get_xticks()) == 3


def test_an_image_grid_has_a_row_a_world():
    images = xr.DataArray(
        np.random.default_rng(0).random((2, 3, 8, 8, 3)),
        dims=("world", "seed", "y", "x", "colour"),
        coords=dict(world=["clean", "edited"], seed=[4, 5, 6]),
    )
    _, given = plt.subplots()
    ax = plot.image_grid(images, ax=given, title="two worlds")
    assert ax is given and [label.get_text() for label in ax.get_yticklabels()] == ["clean", "edited"]
    assert np.allclose(ax.images[0].get_array()[10:18, 10:18], images[1, 1])


@pytest.mark.parametrize("more", [{}, dict(tokens=("a", "b")), dict(steps=("0-0.5", "0.5-1"))])
def test_the_overview_fits_what_was_traced(more):
    figure = overview(effects(**more), "title")
    assert len([ax for ax in figure.axes if ax.get_ylabel().startswith("text encoder")]) == (2 if more else 1)


def test_a_frontier_joins_what_nothing_beats():
    values = dict(a=[0.0, 1.0, 2.0, 1.0], b=[3.0, 2.0, 0.0, 1.0])
    ends = {
        f"{name}_{end}": np.array(column) + shift
        for name, column in values.items()
        for end, shift in (("low", -0.1), ("high", 0.1))
    }
    table = pd.DataFrame(values | ends | {"kind": list("xxyy")})
    line = plot.frontier(table, "a", "b").lines[-1]
    assert line.get_xydata().tolist() == [[0, 3], [1, 2], [2, 0]]
    ax = plot.frontier(table, "a", "b", by="kind", title="two kinds")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["x", "y"] and ax.get_title() == "two kinds"


def test_activation_differences_are_relative_to_the_norm():
    parts = [Component(f"text_encoder.{i}.mlp", "pooled", torch.full((1, 4), float(i + 1)), 2.0, 0.5) for i in range(3)]
    ax = plot.activation_difference({"winter": Direction(parts)})
    assert (
        ax.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0]
        and ax.get_xlabel() == "text encoder site, in execution order"
    )
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.mlp", "1.mlp", "2.mlp"]


def test_dots_mark_what_is_large_and_over_enough_prompts():
    found = effects()
    dots = lambda **more: sum(text.get_text() == "•" for text in plot.heatmap(found, "kind", "layer", **more).texts)
    size = np.abs(found.indirect_effect.values.ravel())
    assert dots() == (size > 0.05).sum() > 0 == dots(least=1.0)
    found = effects(prompts=5)
    assert dots() == 0 and "dot" not in plt.gcf().axes[-1].get_ylabel()


def test_tokens_are_words():
    ax = plot.heatmap(
        effects(tokens=("0:startoftext", "1:a", "2:zebra", "3:endoftext")).sel(site=LAYERS[0] + ".mlp"), "token", "kind"
    )
    assert [label.get_text() for label in ax.get_xticklabels()] == ["start", "a", "zebra", "end"]
