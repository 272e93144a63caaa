"""Which layers look where the word is? `python -m workbench.studies.looking` holds word maps against the truth.

Rendered pictures, whose masks are known, are noised to a step of the run and shown to the UNet once. The map of the subject's
word is compared with the subject's true mask: `attention_iou.png`, `attention_iou.csv`. `--redraw` draws from the table in `--out`.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
import xarray as xr
from einops import reduce
from matplotlib.figure import Figure

from workbench import plot
from workbench.drawing import COLOURS, GREY, WIDTH, house, intervals, place_names, save
from workbench.experiments.statistics import mean
from workbench.interventions import World
from workbench.localize.attention import AttentionMaps, attention_maps, mask_iou
from workbench.menagerie.captions import caption
from workbench.menagerie.world import INDIVIDUALS, SUBJECTS, render, sample_scene
from workbench.models import Model, load
from workbench.progress import each

RESAMPLES = 9999
EXAMPLES = 4
CHANCE, CENTRE = "chance", "mean mask of the other pictures"


@dataclass
class Shown:
    """Which pictures are shown, and how noised."""

    pictures: int = 96
    steps: tuple[int, ...] = (5, 12, 19)
    """Of the run's 25: the earlier, the more noise."""
    seed: int = 7
    batch_size: int = 32


@dataclass
class LookingOptions(Shown):
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


@dataclass(frozen=True)
class Picture:
    """A rendered subject, its caption, its mask, and the place where it is shown."""

    world: World
    image: object
    mask: np.ndarray
    place: str


def main(options: LookingOptions):
    model, pictures = load(), draw_pictures(options)
    if not options.redraw:
        measure(model, pictures, options)
    draw(model, pictures[:EXAMPLES], options)


def measure(model: Model, pictures: list[Picture], options: LookingOptions):
    rows = []
    for step in each(options.steps, "noise levels", "level"):
        for at in range(0, len(pictures), options.batch_size):
            some = pictures[at : at + options.batch_size]
            maps = seen(model, some, step, options)
            for picture in some:
                found = mask_iou(word_map(maps, picture), picture.mask)
                rows += [
                    dict(
                        step=step,
                        site=site,
                        picture=picture.world.name,
                        iou=float(found.sel(site=site)),
                        ceiling=ceiling(picture.mask, values.sizes["y"]),
                    )
                    for site, values in maps.maps.items()
                ]
    rows += [
        dict(step=step, site=name, picture=picture, iou=iou)
        for step in options.steps
        for name, picture, iou in baselines(pictures)
    ]
    table = layer_table(pd.DataFrame(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(options.out / "attention_iou.csv", index=False)
    print(table.sort_values("iou", ascending=False).round(3).head(12).to_string(index=False))
    print(table[table.site.isin([CHANCE, CENTRE])].round(3).to_string(index=False))


def draw(model: Model, pictures: list[Picture], options: LookingOptions):
    """Overlap by layer and noise, and the best layer's map over some pictures, half way through."""
    table = pd.read_csv(options.out / "attention_iou.csv")
    steps = table.step.unique()
    half, layers = steps[len(steps) // 2], table[~table.site.isin([CHANCE, CENTRE])]
    middle = layers[layers.step == half]
    best = middle.loc[middle.iou.idxmax(), "site"]
    maps = seen(model, pictures, half, options)
    examples = [(picture, word_map(maps, picture).sel(site=best)) for picture in pictures]
    save(figure(table, examples, best, model.num_inference_steps), options.out / "attention_iou.png")


def seen(model: Model, pictures: list[Picture], step: int, options: Shown) -> AttentionMaps:
    """What the UNet attends to in some pictures that are noised to a step."""
    return attention_maps(
        model,
        [picture.world for picture in pictures],
        images={picture.world.name: picture.image for picture in pictures},
        step=step,
        seeds=(options.seed,),
        batch_size=options.batch_size,
    )


def draw_pictures(options: Shown) -> list[Picture]:
    """Single subjects that their caption names."""
    rng, found = random.Random(options.seed), []
    while len(found) < options.pictures:
        scene = sample_scene(rng)
        if scene.subject not in SUBJECTS or scene.beside or scene.count == 2 or scene.individual in INDIVIDUALS:
            continue
        text = caption(scene, rng, paraphrase=0)
        image, masks = render(scene)
        found.append(
            Picture(
                World(f"picture {len(found)}", text, subject=scene.subject), image, masks[scene.subject], scene.scene
            )
        )
    return found


def word_map(maps: AttentionMaps, picture: Picture) -> xr.DataArray:
    """The subject's maps of one picture, heads averaged: (site, y, x)."""
    name = picture.world.name
    own = AttentionMaps(
        {site: values.sel(world=[name]) for site, values in maps.maps.items()}, maps.images, {name: maps.tokens[name]}
    )
    return own.word(picture.world.subject).mean("head").isel(world=0, seed=0, steps=0, drop=True)


def ceiling(mask: np.ndarray, side: int) -> float:
    """What the true mask itself reaches at a layer's resolution."""
    coarse = reduce(mask.astype(np.float32), "(y a) (x b) -> y x", "mean", y=side, x=side)
    return float(mask_iou(xr.DataArray(coarse[None], dims=("site", "y", "x")), mask)[0])


def baselines(pictures: list[Picture]) -> list[tuple[str, str, float]]:
    """What a map reaches that knows nothing of its picture."""
    masks, found = np.stack([picture.mask for picture in pictures]).astype(np.float32), []
    for i, picture in enumerate(pictures):
        name, share, others = picture.world.name, picture.mask.mean(), (masks.sum(0) - masks[i]) / (len(masks) - 1)
        found.append((CHANCE, name, share / (2 - share)))
        centre = xr.DataArray(others[None], dims=("site", "y", "x"))
        found.append((CENTRE, name, float(mask_iou(centre, picture.mask)[0])))
    return found


def layer_table(table: pd.DataFrame) -> pd.DataFrame:
    """Means over pictures with their 95 % bootstrap intervals."""
    rows = []
    for (step, site), group in table.groupby(["step", "site"], sort=False):
        iou, low, high = mean(group.iou, resamples=RESAMPLES)
        about, ceiling = dict(step=step, site=site), group.ceiling.mean()
        rows.append(about | dict(iou=iou, low=low, high=high, ceiling=ceiling, pictures=len(group)))
    return pd.DataFrame(rows)


@house
def figure(table: pd.DataFrame, examples: list[tuple[Picture, xr.DataArray]], best: str, steps: int) -> Figure:
    """Overlap by layer and noise above, maps (y, x) over pictures below."""
    sheet = plt.figure(figsize=(WIDTH, 6.6), layout="constrained")
    top, bottom = sheet.subfigures(2, 1, height_ratios=(1.7, 1))
    ax, layers = top.subplots(), table[~table.site.isin([CHANCE, CENTRE])]
    for i, (step, rows) in enumerate(layers.groupby("step")):
        at, label = np.arange(len(rows)) + 0.2 * (i - 1), f"after {step / steps:.0%} of the denoising"
        intervals(ax, at, rows.iou, rows.low, rows.high, color=COLOURS[i], label=label)
    highest = layers.groupby("site", sort=False).ceiling.first()
    at, ceiling = np.arange(len(highest)), "the true mask at the layer's resolution"
    ax.scatter(at, highest, marker="_", s=300, color="black", label=ceiling)
    for name, style in ((CHANCE, ":"), (CENTRE, "--")):
        ax.axhline(table[table.site == name].iou.mean(), color=GREY, ls=style, label=name)
    names = [site.removeprefix("unet.").removesuffix(".cross") for site in highest.index]
    place_names(ax, [f"{name} ({i})" for i, name in enumerate(names)], label="cross-attention layer (number)")
    pictures = int(table.pictures.max())
    ax.set(ylabel="IoU with the true mask, 95 % interval", ylim=(0, 1))
    ax.set_title(f"Do word maps cover their subject? {pictures} rendered pictures, noised and seen once")
    ax.legend(ncols=2, loc="upper center")
    panels = bottom.subplots(1, len(examples))
    for panel, (picture, word) in zip(panels, examples):
        plot.overlay(picture.image, word / word.max(), ax=panel, title=f'"{picture.world.subject}"', bar=False)
        at = np.arange(len(picture.mask)) + 0.5
        panel.contour(at, at, picture.mask, levels=[0.5], colors="cyan", linewidths=0.8)
    bottom.colorbar(panels[0].images[-1], ax=list(panels), label="attention, of the map's largest", pad=0.02)
    bottom.suptitle(
        f"maps of the subject's word at {best.removeprefix('unet.').removesuffix('.cross')}; cyan: its true mask"
    )
    return sheet


if __name__ == "__main__":
    main(tyro.cli(LookingOptions))
