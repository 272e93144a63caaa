"""Every figure, drawn from the committed tables, can be read where it is shown: 840 pixels wide."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.text import Text

from workbench import drawing, plot
from workbench.menagerie import evaluate
from workbench.models import load
from workbench.prompts import prompt_set
from workbench.steering.direction import Component, Direction
from workbench.studies import (
    agreement,
    architectures_figure,
    attribution,
    coverage,
    demo,
    erase_grid_figures,
    hidden_figures,
    looking,
    matrix,
    planted,
    prompt_to_prompt_figures,
    survey,
    swap_figures,
    swap_rank,
    windows,
    winter_figures,
)

FIGURES = Path(__file__).parents[1] / "figures"
SHOWN = 840  # pixels
LEAST = 8 * 96 / 72  # pixels of 8 points, at 96 pixels to the inch
LONG = "a photo of a zebra in the desert on a sunny summer day"


def smallest(figure) -> float:
    """Height in pixels of a figure's smallest text, when it is shown at most 840 pixels wide."""
    figure.draw_without_rendering()
    width = figure.get_size_inches()[0]
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return min(text.get_fontsize() for text in texts) / 72 * min(96, SHOWN / width)


def tables(study: str) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in (FIGURES / study).glob("*.csv")}


def pictures(rows: int, columns: int, axes=("world", "prompt")) -> xr.DataArray:
    names = {axes[0]: [f"{LONG} {i}" for i in range(rows)], axes[1]: [f"held out:\n{LONG}"] * columns}
    return xr.DataArray(np.zeros((rows, columns, 8, 8, 3)), names, (*axes, "y", "x", "colour"))


def directions(sites: list[str]) -> Direction:
    return Direction([Component(site, "pooled", torch.ones(1, 4), 2.0, 0.5) for site in sites])


def surveyed(part, draw):
    options, table = survey.SurveyOptions(), tables("causal_trace")["causal_trace"]
    sites = load().sites(*survey.SITES[part])
    some = table[table.site.isin([site.name for site in sites])]
    found = {
        name: survey.from_table(rows, sites, survey.EFFECT, "probability")
        for name, rows in some.groupby("attribute", sort=False)
    }
    return draw(found, f"{options.prompts} prompts")


def compared(*attributes):
    found = tables("localizers")
    return agreement.agreement_figure(found["localizers"], found["agreement"], attributes, "12 prompts")


def overlaid():
    picture = looking.Picture(looking.World("a", LONG, subject="zebra"), np.zeros((64, 64, 3)), np.eye(64), "beach")
    word = xr.DataArray(np.ones((8, 8)), dims=("y", "x"))
    return looking.figure(tables("attention")["attention_iou"], [(picture, word)] * 4, "unet.up.3.1.cross", 25)


def traced():
    images = pictures(4, 3, ("world", "seed")).assign_coords(world=list("abcd"), seed=range(3))
    return demo.figure(tables("demo")["zebra_trace"], load(), images, demo.DemoOptions())


def swept():
    found = tables("winter")
    return winter_figures.layers_figure(
        {where: found[f"steering_sweep_{stem}"] for where, stem in (("text encoder", "text_encoder"), ("UNet", "unet"))}
    )


def directed():
    text = directions([f"text_encoder.{i}.mlp" for i in range(12)])
    unet = [site.name for site in load().sites("unet.*.cross")]
    return winter_figures.directions_figure({"winter": text, "night": text}, directions(unet))


DRAWN = {
    "demo": traced,
    "causal trace, text": lambda: surveyed("text", survey.text_figure),
    "causal trace, UNet": lambda: surveyed("unet", survey.unet_figure),
    "locogen": lambda: agreement.windows_figure(tables("localizers")["locogen"], load(), "12 prompts"),
    "localizers": lambda: compared("object", "season"),
    "other localizers": lambda: compared("style", "colour", "action", "fact"),
    "locogen images": lambda: agreement.images_figure(pictures(6, 7, ("prompt", "window"))),
    "attribution": lambda: attribution.figure(
        *(tables("attribution")[f"attribution_{each}"] for each in ("sites", "screen"))
    ),
    "planted": lambda: planted.figure(*(tables("planted")[each] for each in ("planted", "planted_edits"))),
    "coverage": lambda: coverage.figure(*(tables("coverage")[each] for each in ("coverage", "false_alarms"))),
    "attention": overlaid,
    "windows": lambda: windows.figure(tables("windows")["windows"], 2),
    "swap": lambda: swap_figures.overview(tables("swap")["swap"]),
    "swap rank": lambda: swap_rank.overview(tables("swap_rank")["swap_rank"]),
    "hidden": lambda: hidden_figures.overview(tables("hidden")["hidden"]),
    "hidden, frontier": lambda: hidden_figures.frontier(tables("hidden")["hidden"]),
    "hidden, curves": lambda: hidden_figures.curves(tables("hidden")["hidden"], ["completion", "relearning"]),
    "erase, every editor": lambda: erase_grid_figures.overview(tables("erase")["grid"]),
    "erase, every target": lambda: erase_grid_figures.targets(tables("erase")["grid"]),
    "swap images": lambda: swap_figures.images_figure(pictures(4, 8)),
    "prompt to prompt": lambda: prompt_to_prompt_figures.arms_figure(tables("prompt_to_prompt")["prompt_to_prompt"]),
    "prompt to prompt images": lambda: prompt_to_prompt_figures.images_figure(pictures(6, 5, ("pair", "world"))),
    "winter": lambda: winter_figures.methods_figure(tables("winter")["steering"]),
    "winter, frontier": lambda: winter_figures.frontier_figure(tables("winter")["steering_frontier"]),
    "winter, layers": swept,
    "winter, directions": directed,
    "winter, images": lambda: winter_figures.strips_figure({"UNet": pictures(5, 7), "text encoder": pictures(5, 7)}),
    "menagerie": lambda: evaluate.contact_figure([LONG] * 24, [np.zeros((64, 128, 3))] * 24),
    "menagerie, VAE": lambda: evaluate.vae_figure(*[torch.zeros(24, 3, 8, 8)] * 2),
    "menagerie, guidance": lambda: evaluate.guidance_figure([1.0, 3.0], *[np.ones(2)] * 3, 3.0, 48),
    "architectures": lambda: architectures_figure.figure(
        *(tables("architectures")[f"architectures{each}"] for each in ("_trace", "_windows", "_locogen", ""))
    ),
    "matrix": lambda: matrix.figure(tables("matrix")["matrix"]),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_of_a_figure_is_smaller_than_eight_points_where_it_is_shown(name):
    figure = DRAWN[name]()
    assert figure.get_size_inches()[0] == drawing.WIDTH and smallest(figure) >= LEAST - 1e-9


def test_small_text_is_noticed():
    figure, ax = plt.subplots(figsize=(15, 5))
    ax.set_title("a", fontsize=10)
    assert smallest(figure) < LEAST


def test_pictures_of_notebooks_are_no_wider_than_they_are_shown():
    found = tables("localizers")
    one = [each[each.attribute == "object"] for each in (found["localizers"], found["agreement"])]
    for ax in (plot.ranks(one[0]), plot.agreement(one[1]), plot.image_grid(pictures(3, 12))):
        assert ax.figure.get_size_inches()[0] <= drawing.WIDTH and smallest(ax.figure) >= LEAST - 1e-9


def test_names_of_editors_are_those_of_the_text():
    readme = (FIGURES / "swap" / "README.md").read_text()
    labels = [label.get_text() for label in DRAWN["swap"]().axes[0].get_yticklabels()]
    assert not [label for label in labels if label.rstrip("*") not in readme] and len(labels) == 17


def test_the_prompts_shown_are_those_of_their_sets():
    assert len(swap_figures.SHOWN) == 8
    assert all(len(prompt_set(f"swap/{name}")) > abs(i) for name, i, _, _ in swap_figures.SHOWN)
