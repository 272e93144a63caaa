"""Does ConceptAttention find the subject? `python -m workbench.studies.concept_maps` holds its maps, and word maps, against the truth.

As `workbench.studies.looking`, on the embedded transformer: rendered pictures, whose masks are known, are noised to a step of the run
and shown to the model once. Words of the world's subjects and places go through it as a third stream, beside the picture's caption and
beside the empty prompt, which has none of them. `concept_attention_iou.csv`.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
import xarray as xr

from workbench.experiments.statistics import mean
from workbench.interventions import World
from workbench.localize.attention import mask_iou
from workbench.localize.concept_attention import concept_attention
from workbench.menagerie.world import SCENES, SUBJECTS
from workbench.models import Model, load
from workbench.progress import each
from workbench.studies.looking import (
    RESAMPLES,
    Picture,
    Shown,
    baselines,
    ceiling,
    draw_pictures,
    seen,
    word_map,
)

WORDS = (*SUBJECTS, *SCENES)  # all that can be where; none is chosen
MEAN = "mean of the layers"
ATTENTION, CONCEPTS, BLANK = "attention", "concepts beside the caption", "concepts beside the empty prompt"
AGAINST = "{}, against the place's word alone"
GAIN = "concepts less attention, picture by picture"


@dataclass
class ConceptMapsOptions(Shown):
    model: str = "menagerie-dit"
    out: Path = Path("runs/figures")


def main(options: ConceptMapsOptions):
    model, pictures = load(options.model), draw_pictures(options)
    rows = []
    for step in each(options.steps, "noise levels", "level"):
        for at in range(0, len(pictures), options.batch_size):
            rows += measured(model, pictures[at : at + options.batch_size], step, options)
    every = [
        dict(step=step, method=name, site="", picture=own, iou=iou)
        for step in options.steps
        for name, own, iou in baselines(pictures)
    ]
    table = summary(pd.DataFrame(rows + every))
    options.out.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(options.out / "concept_attention_iou.csv", index=False)
    print(table[(table.site == MEAN) | (table.site == "")].round(3).to_string(index=False))


def measured(model: Model, pictures: list[Picture], step: int, options: ConceptMapsOptions) -> list[dict]:
    """IoU of each picture's subject, by method and layer."""
    attention = seen(model, pictures, step, options)
    concepts = {
        CONCEPTS: concept_maps(model, pictures, step, options, blank=False),
        BLANK: concept_maps(model, pictures, step, options, blank=True),
    }
    rows = []
    for picture in pictures:
        name, subject = picture.world.name, picture.world.subject
        maps = {ATTENTION: word_map(attention, picture)}
        for method, found in concepts.items():
            own = found.sel(world=name, drop=True)
            maps[method] = own.sel(concept=subject, drop=True)
            place = own.sel(concept=picture.place, drop=True)
            maps[AGAINST.format(method)] = maps[method] / (maps[method] + place)
        for method, own in maps.items():
            overlaps = dict(zip(own.site.values.tolist(), mask_iou(own, picture.mask).values.tolist()))
            overlaps[MEAN] = mask_iou(own.mean("site"), picture.mask).item()
            about = dict(step=step, method=method, picture=name, ceiling=ceiling(picture.mask, own.sizes["y"]))
            rows += [about | dict(site=site, iou=iou) for site, iou in overlaps.items()]
    return rows


def concept_maps(
    model: Model, pictures: list[Picture], step: int, options: ConceptMapsOptions, *, blank: bool
) -> xr.DataArray:
    """Maps of all words, (site, world, y, x, concept)."""
    found = concept_attention(
        model,
        [World(picture.world.name, "" if blank else picture.world.prompt) for picture in pictures],
        WORDS,
        images={picture.world.name: picture.image for picture in pictures},
        step=step,
        seeds=(options.seed,),
        batch_size=options.batch_size,
    )
    return found.maps.isel(seed=0, steps=0, drop=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over pictures with their 95 % bootstrap intervals, and of the gain of one map over the other in each picture."""
    wide = table.pivot_table(index=["step", "site", "picture"], columns="method", values="iou")
    gain = (wide[CONCEPTS] - wide[ATTENTION]).dropna().rename("iou").reset_index().assign(method=GAIN)
    rows = []
    for (step, method, site), group in pd.concat([table, gain]).groupby(["step", "method", "site"], sort=False):
        iou, low, high = mean(group.iou, resamples=RESAMPLES)
        rows.append(
            dict(
                step=step,
                method=method,
                site=site,
                iou=iou,
                low=low,
                high=high,
                ceiling=group.ceiling.mean(),
                pictures=len(group),
            )
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(tyro.cli(ConceptMapsOptions))
